"""Views of recover: two ways to make them agree, whom they belong to, and what they show."""

import pytest
import torch
from torch import Tensor

from wmdd.base.rng import generator
from wmdd.settings.recover import RecoverSettings
from wmdd.stages.recover_views import drawn, sampled, view

STILL = {"crop_scale": (1.0, 1.0), "jitter": 0, "flip": False}


def looked(
    images: Tensor, settings: RecoverSettings, seed: int, iteration: int, labels: Tensor | None = None
) -> Tensor:
    """The views of an iteration, which both ways to make them agree on; of images of one class, or of these."""
    labels = torch.tensor([0]) if labels is None else labels
    chosen = drawn(settings, images.shape[-1], seed, iteration, labels, len(images) // len(labels))
    seen = view(images, chosen)
    torch.testing.assert_close(sampled(images, chosen.to(images.dtype)), seen, rtol=1e-4, atol=1e-4)
    return seen


def pictures(count: int = 4, side: int = 16) -> Tensor:
    return torch.randn(count, 3, side, side, generator=generator("pictures", count, side))


def test_a_view_is_the_same_for_every_image_and_belongs_to_seed_and_iteration():
    images, settings = pictures(), RecoverSettings(jitter=3)
    seen = looked(images, settings, 1, 5)
    assert torch.equal(looked(images[2:3], settings, 1, 5)[0], seen[2])
    same = looked(images[:1].expand(4, -1, -1, -1), settings, 1, 5)
    assert torch.equal(same[0], same[3])
    assert torch.equal(looked(images, settings, 1, 5), seen)
    assert not torch.equal(looked(images, settings, 1, 6), seen)
    assert not torch.equal(looked(images, settings, 2, 5), seen)


def test_each_image_may_have_a_view_of_its_own():
    settings = RecoverSettings(draws="image", crop_scale=(0.3, 1), jitter=3)
    images, labels = pictures(1).expand(6, -1, -1, -1), torch.tensor([4, 7, 1])
    seen = looked(images, settings, 1, 5, labels)
    assert len({image.numpy().tobytes() for image in seen}) == 6
    assert torch.equal(looked(images[:2], settings, 1, 5, labels[1:2]), seen[2:4]), "whatever other classes are there"
    assert not torch.equal(looked(images, settings, 1, 6, labels), seen)
    assert not torch.equal(looked(images, settings, 2, 5, labels), seen)


def test_jitter_is_a_cyclic_shift_of_both_sides_up_to_its_limit():
    image, settings = pictures(1), RecoverSettings(crop_scale=(1, 1), flip=False, jitter=2)
    rolls = {(a, b): image.roll((a, b), (2, 3)) for a in range(-2, 3) for b in range(-2, 3)}
    found = set()
    for iteration in range(300):
        seen = looked(image, settings, 0, iteration)
        found |= {shift for shift, roll in rolls.items() if torch.equal(roll, seen)}
        assert any(torch.equal(roll, seen) for roll in rolls.values())
    assert len(found) == 25


def test_half_the_views_are_mirrored():
    image, settings = pictures(1), RecoverSettings(crop_scale=(1, 1), jitter=0)
    views = [looked(image, settings, 0, i) for i in range(400)]
    mirrored = [torch.equal(seen, image.flip(-1)) for seen in views]
    assert 160 < sum(mirrored) < 240
    assert [not m for m in mirrored] == [torch.equal(seen, image) for seen in views]


def test_still_views_are_the_images_and_constant_ones_stay_constant():
    images, constant = pictures(), torch.full((2, 3, 16, 16), 1.5)
    for i in range(30):
        assert torch.equal(looked(images, RecoverSettings(**STILL), 0, i), images)
        torch.testing.assert_close(looked(constant, RecoverSettings(jitter=0), 0, i), constant)


def test_crops_see_every_part_of_the_image_and_only_of_it():
    # Of a picture whose rows are numbered, a crop shows a rising run within these numbers.
    rows = torch.arange(16.0)[:, None].expand(1, 3, 16, 16)
    settings = RecoverSettings(crop_scale=(0.08, 0.5), flip=False, jitter=0)
    seen = torch.stack([looked(rows, settings, 0, i)[0, 0, :, 0] for i in range(300)])
    assert bool((seen.diff(dim=1) >= 0).all())
    assert (float(seen.min()), float(seen.max())) == (0, 15)
    assert bool((seen[:, -1] - seen[:, 0] < 15).all())  # no crop of half the area has the whole height


@pytest.mark.parametrize("side", [2, 32])
def test_even_the_smallest_crops_show_something(side):
    images, settings = pictures(1, side), RecoverSettings(crop_scale=(0.0, 1e-3), jitter=1)
    for iteration in range(50):
        assert bool(torch.isfinite(looked(images, settings, 0, iteration)).all())
