"""Views against slices, flips and shifts done by hand."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest
from torch import Tensor

from wmdd.base.rng import generator
from wmdd.networks import augment
from wmdd.networks.augment import Views

quick = settings(max_examples=40, deadline=None)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator("augment test", *shape))


def views(crop: Tensor | None = None, flip: bool = False, count: int = 1) -> Views:
    """Views that differ from the identity by a crop in shares of the side, or a flip."""
    found = augment.identity(count)
    crop = found.crop if crop is None else crop.double().expand(count, 4)
    return Views(crop, torch.full((count,), flip), found.partner, found.paste)


def every(images: Tensor) -> Tensor:
    return torch.arange(len(images))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


# ---- what a view shows


@quick
@given(st.data())
def test_a_crop_is_the_enlarged_cut(data):
    # Around the cut the picture repeats the cut's edge, as the enlargement of a cut does, so that the two agree everywhere.
    side = data.draw(st.integers(8, 24))
    tall, wide = (data.draw(st.integers(2, side)) for _ in range(2))
    top, left = data.draw(st.integers(0, side - tall)), data.draw(st.integers(0, side - wide))
    flip = data.draw(st.booleans())
    cut = noise(1, 3, tall, wide)
    image = F.pad(cut, (left, side - wide - left, top, side - tall - top), mode="replicate")
    expected = F.interpolate(cut, (side, side), mode="bilinear", align_corners=False)
    box = torch.tensor([top, left, tall, wide]) / side
    found = augment.apply(image, views(box, flip), every(image))
    close(found, expected.flip(-1) if flip else expected)


def test_inside_its_edge_a_crop_of_any_picture_is_the_enlarged_cut():
    image = noise(1, 3, 16, 16)
    expected = F.interpolate(image[..., 3:11, 5:13], (16, 16), mode="bilinear", align_corners=False)
    found = augment.apply(image, views(torch.tensor([3, 5, 8, 8]) / 16), every(image))
    close(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])
    assert not torch.allclose(found, expected, atol=1e-2)  # at the edge the view looks beyond the cut
    expected = F.interpolate(image[..., :8], (16, 16), mode="bilinear", align_corners=False)
    found = augment.apply(image, views(torch.tensor([0, 0, 16, 8]) / 16), every(image))
    close(found[..., :-1], expected[..., :-1])  # but not beyond the picture


@pytest.mark.parametrize(("down", "right"), [(0, 0), (-4, 4), (2, -3)])
def test_a_shift_by_whole_pixels_fills_with_zeros(down, right):
    images = noise(2, 3, 8, 8)
    padded = F.pad(images, (4, 4, 4, 4))
    expected = padded[..., 4 + down : 12 + down, 4 + right : 12 + right]
    box = torch.tensor([down / 8, right / 8, 1, 1])
    close(augment.apply(images, views(box, count=2), every(images), padded=True), expected)


# ---- draws


@quick
@given(st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 99))
def test_boxes_are_inside_and_of_the_area_and_aspect_asked_for(one, two, seed):
    low, high = sorted((one, two))
    top, left, height, width = augment.resized_crop(generator(seed), 200, (low, high)).unbind(1)
    assert bool((torch.stack([top, left, 1 - top - height, 1 - left - width]) >= -1e-12).all())
    area, ratio = height * width, width / height
    assert bool((area <= high + 1e-12).all())
    # A box that is cut to the side is at least 3/4 as long the other way.
    assert bool((area >= min(low, 0.75) - 1e-12).all())
    assert bool((ratio >= 3 / 4 - 1e-12).all())
    assert bool((ratio <= 4 / 3 + 1e-12).all())


def test_area_log_aspect_and_places_are_uniform_and_half_the_views_are_mirrored():
    found = augment.draw(generator("law"), 4000, (0.1, 0.7), flip=True)  # no box of these areas is cut
    top, left, height, width = found.crop.unbind(1)
    low, high = math.log(3 / 4), math.log(4 / 3)
    shares = [(height * width - 0.1) / 0.6, ((width / height).log() - low) / (high - low)]
    for share in (*shares, top / (1 - height), left / (1 - width)):
        assert kstest(share, "uniform").pvalue > 0.01
    assert 1900 < int(found.flip.sum()) < 2100


def test_views_follow_from_the_seed_and_full_scale_is_no_crop():
    one, two, other = (augment.draw(generator(s), 20, (0.1, 1), True, "cutmix") for s in (3, 3, 4))
    assert all(torch.equal(getattr(one, f), getattr(two, f)) for f in ("crop", "flip", "partner", "paste"))
    assert not torch.equal(one.crop, other.crop)
    offset = augment.shifted(generator(0), 2000, 2, 16)[:, :2] * 16
    assert sorted(offset.unique(dim=0).tolist()) == [[a, b] for a in range(-2, 3) for b in range(-2, 3)]
    whole = augment.draw(generator(0), 50, (1.0, 1.0), flip=False)
    assert torch.equal(whole.crop, augment.identity(50).crop)
    assert not whole.flip.any()
    assert whole.kept(16, 16).tolist() == [1.0] * 50
    assert whole.partner.tolist() == list(range(50))


# ---- patches


@pytest.mark.parametrize(("side", "count"), [(16, 2), (15, 2), (16, 5), (3, 4)])
def test_patches_are_rows_and_columns_in_another_order(side, count):
    """As concatenation says; of a side that patches do not divide the last takes the rest."""
    images, places = noise(8, 3, side, side), torch.rand(8, 2, count, generator=generator("places", side)).argsort(2)
    found = augment.shuffled(images, places)
    size = max(side // count, 1)
    strips = [slice(i * size, side if i == count - 1 else (i + 1) * size) for i in range(count)]
    for image, (rows, columns), seen in zip(images, places, found, strict=True):
        moved = torch.cat([image[:, :, strips[i]] for i in columns.argsort()], 2)
        assert torch.equal(seen, torch.cat([moved[:, strips[i]] for i in rows.argsort()], 1))
    flat, shown = images.flatten(2).sort(2).values, found.flatten(2).sort(2).values
    assert torch.equal(flat, shown), "every pixel once"


def test_patches_move_before_the_crop_and_replay_and_leave_other_draws_alone():
    images = noise(12, 3, 16, 16)
    drawn, again, usual = (augment.draw(generator("p"), 12, (0.3, 1), True, "cutmix", n) for n in (2, 2, 1))
    assert torch.equal(drawn.patches, again.patches)
    assert all(torch.equal(getattr(drawn, f), getattr(usual, f)) for f in ("crop", "flip", "partner", "paste"))
    expected = augment.apply(augment.shuffled(images, drawn.patches), usual, every(images))
    found = augment.apply(images, drawn, every(images))
    assert torch.equal(found, expected)
    assert not torch.equal(found, augment.apply(images, usual, every(images)))
    for i in range(12):
        assert torch.equal(augment.apply(images, drawn, torch.tensor([i]))[0], found[i])


def test_all_orders_of_patches_are_drawn_alike():
    orders = augment.draw(generator("orders"), 6000, (1, 1), False, "none", 3).patches
    for axis in (0, 1):
        counts = orders[:, axis].unique(dim=0, return_counts=True)[1]
        assert len(counts) == 6
        assert chisquare(counts).pvalue > 0.01


# ---- independence of batches


def test_a_view_does_not_depend_on_the_batch():
    images = noise(12, 3, 16, 16)
    drawn = augment.draw(generator(1), 12, (0.08, 1), True, "cutmix")
    whole = augment.apply(images, drawn, every(images))
    for i in range(12):
        assert torch.equal(augment.apply(images, drawn, torch.tensor([i]))[0], whole[i])
    order = torch.randperm(12, generator=generator(2))
    assert torch.equal(augment.apply(images, drawn, order), whole[order])


# ---- CutMix


def test_the_mixed_area_is_the_share_that_is_not_kept():
    # Every picture is one colour, so a view's colours tell whose pixels they are.
    count, side = 200, 16
    colours = torch.arange(count).float()[:, None, None, None].expand(count, 3, side, side)
    drawn = augment.draw(generator(5), count, (0.08, 1), True, "cutmix")
    seen = augment.apply(colours, drawn, torch.arange(count)).round()[:, 0]
    others = drawn.partner != torch.arange(count)
    pasted = (seen == drawn.partner[:, None, None]) & others[:, None, None]
    assert bool((pasted | (seen == torch.arange(count)[:, None, None])).all())
    area = pasted.sum((1, 2))[others].double()
    torch.testing.assert_close(drawn.kept(side, side)[others], 1 - area / side**2)  # to the pixel
    tall, wide = (drawn.paste[:, 2:] * side).unbind(1)  # real numbers of pixels; both ends of a side are rounded
    assert bool((area <= ((tall + 1) * (wide + 1))[others]).all())
    assert bool((area >= ((tall - 1).clamp(min=0) * (wide - 1).clamp(min=0))[others]).all())


def test_pasted_pixels_come_from_the_partners_own_view():
    images = noise(30, 3, 16, 16)
    drawn = augment.draw(generator(6), 30, (0.08, 1), True, "cutmix")
    assert sorted(drawn.partner.tolist()) == list(range(30))
    plain = augment.apply(images, replace(drawn, mixed=False), every(images))
    seen = augment.apply(images, drawn, every(images))
    for i, (top, left, bottom, right) in enumerate(drawn.pasted(16, 16).tolist()):
        expected = plain[i].clone()
        expected[:, top:bottom, left:right] = plain[drawn.partner[i]][:, top:bottom, left:right]
        assert torch.equal(seen[i], expected)


def test_the_pasted_area_has_the_mean_of_its_law():
    # A box of side s = sqrt(u) around a uniform centre keeps s - s^2 / 4 of each side on average when it is cut to the
    # picture, so the mean area is that of (sqrt(u) - u / 4)^2, which is 1/2 - 1/5 + 1/48.
    area = 1 - augment.draw(generator(9), 20_000, (0.08, 1), True, "cutmix").kept(1000, 1000)
    assert float(area.mean()) == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.01)
    assert float(area.max()) > 0.95
