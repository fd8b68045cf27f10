"""Encode: latents in order, of the classes that were asked for, whatever the batch, the block and where it began."""

import pytest
import torch

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.datasets.loader import Resident
from wmdd.networks.engine import plain
from wmdd.settings.latent import EncodeSettings
from wmdd.stages.encode import encode


class Means:
    """The latent of an image is its mean by quarter; counts its passes."""

    def __init__(self, bad=None):
        self.sizes, self.bad = [], bad

    def encode(self, images):
        self.sizes.append(len(images))
        found = images.float().mean(1, keepdim=True).unflatten(3, (2, -1)).unflatten(2, (2, -1)).mean((3, 5))
        return found / 16 if self.bad is None else torch.full_like(found, self.bad)


@pytest.fixture(scope="module")
def pictures():
    images = torch.randint(0, 256, (30, 3, 8, 8), generator=generator("encode"), dtype=torch.uint8)
    return Resident(images, torch.arange(3).repeat_interleave(10))


def run(pictures, coder=None, size=4, **more):
    shards = list(encode(coder or Means(), pictures, EncodeSettings(batch_size=size), plain(), **more))
    return shards, torch.cat([shard.latents for shard in shards])


def test_a_latent_for_every_picture_in_order(pictures):
    (shard,), latents = run(pictures)
    assert (shard.first, shard.shape) == (0, (1, 2, 2))
    assert torch.equal(shard.labels, pictures.labels)
    assert latents.dtype == torch.float16
    assert torch.equal(latents, Means().encode(pictures.images).flatten(1).half())


@pytest.mark.parametrize(("size", "largest"), [(1, 1), (7, 5), (100, 10)])  # in parts as equal as can be
def test_no_batch_has_two_classes_or_too_many_pictures(pictures, size, largest):
    coder = Means()
    _, latents = run(pictures, coder, size)
    assert torch.equal(latents, run(pictures)[1])
    assert max(coder.sizes) == largest


def test_a_block_is_its_part_of_the_whole(pictures):
    (shard,), latents = run(pictures, classes=range(1, 3))
    assert shard.first == 10
    assert torch.equal(latents, run(pictures)[1][10:])


def test_it_hands_over_when_it_is_due_and_goes_on_from_there(pictures):
    shards, latents = run(pictures, due=lambda: True)
    assert [shard.first for shard in shards] == [0, 4, 7, 10, 14, 17, 20, 24, 27]
    assert torch.equal(latents, run(pictures)[1])
    coder = Means()
    _, rest = run(pictures, coder, start=14)
    assert torch.equal(rest, latents[14:])
    assert sum(coder.sizes) == 16


@pytest.mark.parametrize("bad", [float("nan"), 1e6])
def test_an_encoder_that_overflows_is_named(pictures, bad):
    with pytest.raises(WmddError, match=r"training image 10 holds NaN.*float32.*precision: fp32"):
        run(pictures, Means(bad), classes=range(1, 2))
