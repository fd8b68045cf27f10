"""The autoencoder stage: it learns, standardises, depends on nothing but settings and seed, and survives a kill."""

from dataclasses import replace

import pytest
import torch

from wmdd.base.rng import generator
from wmdd.datasets.loader import Resident
from wmdd.generators.generator import Autoencoder
from wmdd.networks.context import quiet
from wmdd.networks.engine import plain
from wmdd.settings.latent import AutoencoderSettings
from wmdd.stages.autoencoder import moments, psnr, train


@pytest.fixture(scope="module")
def pictures():
    """Forty pictures of 8 px: a bright half somewhere, of some colour."""
    draws = generator("pictures")
    images = torch.zeros(40, 3, 8, 8, dtype=torch.uint8)
    for image in images:
        row, color = int(torch.randint(5, (), generator=draws)), torch.randint(80, 256, (3, 1, 1), generator=draws)
        image[:, row : row + 4] = color
    return Resident(images, torch.arange(4).repeat_interleave(10))


def settings(**changes):
    usual = {"width": 8, "channels": 3, "factor": 2, "epochs": 20, "batch_size": 20, "lr": 5e-3}
    return AutoencoderSettings(**usual | changes)


def run(pictures, seed=0, keeper=None, **changes):
    context = quiet(plain())
    context = replace(context, keeper=keeper or context.keeper)
    return train(pictures, pictures, settings(**changes), seed, context)


@pytest.fixture(scope="module")
def trained(pictures):
    return run(pictures)


def test_it_learns_to_reconstruct(pictures, trained):
    network, history = trained
    blank = 10 * torch.log10(4 / (pictures.images.float() / 127.5 - 1).square().mean())
    assert history[-1]["psnr"] > blank + 5
    assert history[-1]["psnr"] == pytest.approx(psnr(network, pictures, plain()), abs=1e-6)  # after standardising
    assert history[-1]["loss"] < history[0]["loss"] / 3
    assert run(pictures, divergence=10.0)[1][-1]["psnr"] < history[-1]["psnr"] - 1


def test_its_latents_are_standardised(pictures, trained):
    mean, std = moments(trained[0], pictures, plain())
    torch.testing.assert_close(mean, torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(std, torch.ones(3), atol=1e-4, rtol=0)


def test_a_killed_job_goes_on_to_the_same_bits(pictures, dying_keeper):
    whole = run(pictures, epochs=4, ema=0.9)[0].state_dict()
    assert not torch.equal(run(pictures, 1, epochs=1)[0].encoder[0].weight, whole["encoder.0.weight"])
    changes = {"epochs": 4, "ema": 0.9}
    keeper = dying_keeper.after(lambda keeper: run(pictures, keeper=keeper, **changes), save_at=4, die_at=6)
    again = run(pictures, keeper=keeper, **changes)[0].state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_encode_and_decode_do_not_depend_on_the_batch(pictures, trained):
    coder = Autoencoder(trained[0], plain())
    latents = coder.encode(pictures.images)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(torch.cat([coder.encode(x) for x in pictures.images.split(7)]), latents)
    images = coder.decode(latents, pictures.labels, ())
    assert images.dtype == torch.uint8
    assert (torch.cat([coder.decode(x, x, ()) for x in latents.split(7)]).int() - images.int()).abs().max() <= 1
