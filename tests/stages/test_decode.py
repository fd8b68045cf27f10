"""Decode: what an image depends on, whatever the batch, the block and how often the job was killed."""

from dataclasses import replace

import pytest
import torch

from wmdd.generators.generator import noise
from wmdd.networks.context import quiet
from wmdd.networks.engine import plain
from wmdd.settings.latent import DecodeSettings
from wmdd.stages.decode import decode

SHAPE = (1, 2, 2)


class Coder:
    """Its images show latent, label and draw of each."""

    def __init__(self):
        self.sizes = []

    def decode(self, latents, labels, draws):
        self.sizes.append(len(latents))
        drawn = noise(SHAPE, draws)
        seen = torch.stack([latents, labels.view(-1, 1, 1, 1).expand_as(latents).float(), drawn], 1).flatten(1, 2)
        return (seen * 16 + 128).round().clamp(0, 255).to(torch.uint8)


def run(labels=(0, 1, 2), batch_size=16, seed=0, keeper=None, coder=None):
    atoms = torch.arange(4 * 3 * 4).view(4, 3, 4) / 16
    labels = torch.tensor(labels)
    settings, context = DecodeSettings(batch_size=batch_size), quiet(plain())
    context = replace(context, keeper=keeper or context.keeper)
    return decode(coder or Coder(), atoms[labels], labels, SHAPE, settings, seed, context)


def test_every_atom_is_decoded_with_its_class():
    found = run()
    assert found.shape == (3, 3, 3, 2, 2)
    assert found.dtype == torch.uint8
    expected = torch.arange(4 * 3 * 4).view(4, 3, 2, 2)[:3] + 128
    assert torch.equal(found[:, :, 0].int(), expected)
    assert (found[:, :, 1] == (torch.arange(3) * 16 + 128).view(3, 1, 1, 1)).all()


def test_draws_belong_to_seed_class_and_number():
    drawn = run()[:, :, 2]
    assert len({tuple(image.flatten().tolist()) for image in drawn.flatten(0, 1)}) == 9
    assert not torch.equal(run(seed=1)[:, :, 2], drawn)


@pytest.mark.parametrize("size", [1, 5])
def test_neither_batch_nor_block_matters(size):
    whole = run()
    coder = Coder()
    assert torch.equal(run(batch_size=size, coder=coder), whole)
    assert max(coder.sizes) == size
    assert torch.equal(torch.cat([run((0,)), run((1, 2))]), whole)


def test_a_killed_job_goes_on_to_the_same_images(dying_keeper):
    coder, again = Coder(), dying_keeper.after(lambda keeper: run(batch_size=2, keeper=keeper), save_at=2, die_at=3)
    assert torch.equal(run(batch_size=2, keeper=again, coder=coder), run())
    assert len(coder.sizes) == 3, "what was kept is decoded again"
