"""Soft labels are the teacher's logits on views that anybody can replay."""

import pytest
import torch
from torch import Tensor

from wmdd import augment
from wmdd.engine import plain
from wmdd.relabel import relabel, seeds_of, views_of
from wmdd.rng import generator
from wmdd.settings import AugmentationSettings
from wmdd.training import quiet

COUNT = 9
CUTMIX = AugmentationSettings()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(COUNT, 3, 16, 16, generator=generator("relabel test"))


def labels(network, images: Tensor, seeds: list[int], settings=CUTMIX, size: int = 4) -> Tensor:
    return relabel(network, images, seeds, settings, size, quiet(plain()))


@pytest.mark.parametrize(
    "settings",
    [CUTMIX, AugmentationSettings(mix="none"), AugmentationSettings(crop_scale=(1, 1), flip=False, mix="none")],
    ids=["cutmix", "crops", "still"],
)
def test_labels_are_the_logits_of_the_replayed_views(tiny_teacher, images, settings):
    seeds = seeds_of(3, 4)
    found = labels(tiny_teacher, images, seeds, settings)
    assert found.shape == (4, COUNT, 5)
    assert found.dtype == torch.float16
    for epoch, seed in enumerate(seeds):
        draws = torch.Generator().manual_seed(seed)
        views = augment.draw(draws, COUNT, settings.crop_scale, settings.flip, settings.mix)
        with torch.no_grad():
            expected = tiny_teacher(augment.apply(images, views, torch.arange(COUNT)))
        torch.testing.assert_close(found[epoch].float(), expected, rtol=2e-3, atol=1e-4)


def test_still_views_give_the_logits_of_the_images_in_every_epoch(tiny_teacher, images):
    still = AugmentationSettings(crop_scale=(1, 1), flip=False, mix="none")
    with torch.no_grad():
        expected = tiny_teacher(images)
    for found in labels(tiny_teacher, images, seeds_of(0, 3), still):
        torch.testing.assert_close(found.float(), expected, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_labels_do_not_depend_on_the_batch_size(tiny_teacher, images, size):
    # CutMix partners lie in other batches, so the views must be made of the whole set.
    seeds = seeds_of(1, 2)
    torch.testing.assert_close(
        labels(tiny_teacher, images, seeds, size=size),
        labels(tiny_teacher, images, seeds, size=COUNT),
        rtol=2e-3,
        atol=1e-4,
    )


def test_running_statistics_are_used_and_left(tiny_teacher, images):
    seeds = seeds_of(1, 1)
    expected = labels(tiny_teacher, images, seeds)
    before = {name: value.clone() for name, value in tiny_teacher.state_dict().items()}
    assert torch.equal(labels(tiny_teacher.train(), images, seeds), expected)
    assert all(torch.equal(value, before[name]) for name, value in tiny_teacher.state_dict().items())


def test_fewer_epochs_are_the_first_of_more(tiny_teacher, images):
    assert seeds_of(0, 5) == seeds_of(0, 8)[:5]
    some, more = (labels(tiny_teacher, images, seeds_of(0, epochs)) for epochs in (2, 4))
    assert torch.equal(some, more[:2])


def test_seeds_differ_by_epoch_and_by_seed():
    seeds = [seed for distillation in range(3) for seed in seeds_of(distillation, 300)]
    assert len(set(seeds)) == 900
    assert seeds_of(2, 300) == seeds[600:]
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_epochs_have_different_views():
    one, two = (views_of(CUTMIX, 50, seed) for seed in seeds_of(0, 2))
    assert not torch.equal(one.crop, two.crop)
    assert not torch.equal(one.partner, two.partner)
    assert not torch.equal(one.flip, two.flip)


def test_replayed_views_are_the_same():
    one, two = (views_of(CUTMIX, 50, 12345) for _ in range(2))
    assert all(torch.equal(getattr(one, f), getattr(two, f)) for f in ("crop", "flip", "partner", "paste"))
