"""The diffusion stage: it learns where the latents of a class are, and survives a kill."""

from dataclasses import replace

import pytest
import torch

from wmdd.base.rng import generator
from wmdd.generators.denoiser import build, reverse
from wmdd.networks.context import quiet
from wmdd.networks.engine import plain
from wmdd.settings.latent import DiffusionSettings
from wmdd.stages.diffusion import train

POINTS = torch.tensor([-1.0, 1.0])  # all numbers of a latent of either class, nearly


def latents(count=64):
    labels = torch.arange(2).repeat_interleave(count // 2)
    spread = 0.1 * torch.randn(count, 2, 4, 4, generator=generator("latents"))
    return POINTS[labels].view(-1, 1, 1, 1) + spread, labels


def run(keeper=None, seed=0, **changes):
    usual = {"width": 8, "layers": 1, "epochs": 3, "batch_size": 32, "lr": 4e-3, "ema": 0.9}
    (x, y), context = latents(), quiet(plain())
    context = replace(context, keeper=keeper or context.keeper)
    return train(x, y, x, y, 2, DiffusionSettings(**usual | changes), seed, context)


@pytest.fixture(scope="module")
def trained():
    return run(epochs=60)


def test_the_loss_falls(trained):
    _, history = trained
    assert history[-1]["loss"] < 0.4 * history[0]["loss"]
    assert 0 < history[-1]["val_loss"] < 0.4


@torch.no_grad()
def test_it_takes_noise_to_its_class(trained):
    network, _ = trained
    noise, classes = torch.randn(16, 2, 4, 4, generator=generator("noise")), torch.arange(2).repeat_interleave(8)
    found = reverse(network, torch.zeros(16, 2, 4, 4), noise, classes, 1.0, 1.0, 20).mean((1, 2, 3))
    assert (found[:8] < -0.5).all()
    assert (found[8:] > 0.5).all()
    hidden = reverse(network, torch.zeros(16, 2, 4, 4), noise, torch.full((16,), network.none), 1.0, 1.0, 20)
    assert hidden.mean((1, 2, 3))[:8].max() > -0.5, "without a class it knows of no class"


def test_a_class_that_is_always_hidden_is_not_learnt_and_none_is_only_where_some_are():
    fresh = build(DiffusionSettings(width=8, layers=1), (2, 4, 4), 2, generator("diffusion", "weights", 0))
    seen, hidden = (run(epochs=2, label_dropout=share)[0].unet.class_embedding.weight for share in (0.0, 1.0))
    assert torch.equal(hidden[:2], fresh.unet.class_embedding.weight[:2])
    assert torch.equal(seen[2], fresh.unet.class_embedding.weight[2])


def test_a_killed_job_goes_on_to_the_same_bits(dying_keeper):
    whole, history = run()
    again, same = run(dying_keeper.after(run, save_at=3, die_at=5))
    assert same == history
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in whole.state_dict().items())
    assert not torch.equal(run(seed=1)[0].unet.conv_in.weight, whole.unet.conv_in.weight)
