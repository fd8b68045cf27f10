"""Siamese augmentation: each kind against what it is said to be, pixel by pixel, and its gradient."""

import math

import pytest
import torch
import torch.nn.functional as F

from wmdd.base.rng import generator
from wmdd.networks.siamese import KINDS, Distortions, apply, draw, joined

SIDE = 12


def images(count=4):
    return torch.randn(count, 3, SIDE, SIDE, generator=generator("siamese test", count), dtype=torch.float64)


def one(kind, *numbers, count=4):
    whole = torch.tensor(numbers or (0.3, 0.6, 0.9), dtype=torch.float64).expand(count, 3)
    return Distortions(torch.full((count,), KINDS.index(kind)), whole)


def test_color_is_brightness_then_saturation_then_contrast():
    x = images()
    found = apply(x, one("color", 0.3, 0.6, 0.9))
    lit = x - 0.2
    grey = lit.mean(1, keepdim=True)
    saturated = grey + 1.2 * (lit - grey)
    middle = saturated.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(found, middle + 1.4 * (saturated - middle))


@pytest.mark.parametrize(("number", "pixels"), [(0.0, -2), (0.45, 0), (0.99, 2)])
def test_crop_shifts_by_whole_pixels_up_to_an_eighth_with_zeros_behind(number, pixels):
    x = images()
    found = apply(x, one("crop", number, 0.5, 0.0))  # 12 / 8 rounds to 2; a half is no shift
    padded = F.pad(x, (2, 2, 2, 2))
    torch.testing.assert_close(found, padded[:, :, 2 + pixels : 2 + pixels + SIDE, 2 : 2 + SIDE])


def test_cutout_zeroes_a_square_of_half_the_side_that_the_edge_may_cut():
    x = images() + 10
    inside = apply(x, one("cutout", 0.5, 0.5, 0.0))
    assert (inside == 0).sum() == 4 * 3 * 6 * 6
    torch.testing.assert_close(torch.where(inside == 0, x, inside), x, rtol=0, atol=0)
    corner = apply(x, one("cutout", 0.0, 0.0, 0.0))
    assert (corner == 0).sum() == 4 * 3 * 3 * 3
    assert (corner[:, :, :3, :3] == 0).all()


@pytest.mark.parametrize(("number", "mirrored"), [(0.4, True), (0.6, False)])
def test_flip_mirrors_half_of_the_time(number, mirrored):
    x = images()
    torch.testing.assert_close(apply(x, one("flip", number, 0, 0)), x.flip(-1) if mirrored else x)


RAMP = torch.linspace(-1, 1, SIDE + 1, dtype=torch.float64)
MIDDLES = (RAMP[:-1] + RAMP[1:]) / 2
ACROSS = MIDDLES.expand(1, 3, SIDE, SIDE).contiguous()  # each pixel is its own place across


def test_scale_shrinks_and_enlarges_by_up_to_a_fifth():
    shrunk = apply(ACROSS, one("scale", 1.0, 1.0, 0.0, count=1))[0, 0, SIDE // 2]
    inner = MIDDLES.abs() * 1.2 < 1 - 1 / SIDE
    torch.testing.assert_close(shrunk[inner], MIDDLES[inner] * 1.2)
    assert shrunk[0].abs() < 1  # zeros come in
    enlarged = apply(ACROSS, one("scale", 0.0, 0.0, 0.0, count=1))[0, 0, SIDE // 2]
    torch.testing.assert_close(enlarged, MIDDLES / 1.2)


def test_rotate_turns_by_up_to_fifteen_degrees():
    found = apply(ACROSS, one("rotate", 0.9, 0, 0, count=1))[0, 0]
    angle, (y, x) = math.radians(0.8 * 15), (MIDDLES[:, None], MIDDLES[None, :])
    wanted = math.cos(angle) * x - math.sin(angle) * y
    inner = (x.abs() < 0.6) & (y.abs() < 0.6)
    torch.testing.assert_close(found[inner], wanted[inner])


def test_an_image_is_distorted_alike_whatever_is_beside_it():
    x, how = images(6), draw(generator("siamese test", "six"), 6)
    whole = apply(x, how)
    for i in range(6):
        torch.testing.assert_close(apply(x[i : i + 1], how.of(torch.tensor([i]))), whole[i : i + 1], rtol=0, atol=1e-14)


def test_both_sides_of_a_pair_see_the_same():
    how = joined([draw(generator("siamese test", "pair", c), 1) for c in range(3)])
    x = images(3)
    real = apply(x.repeat_interleave(5, 0), how.repeated(5)).view(3, 5, 3, SIDE, SIDE)
    fake = apply(x.repeat_interleave(2, 0), how.repeated(2)).view(3, 2, 3, SIDE, SIDE)
    torch.testing.assert_close(real[:, 4], fake[:, 1], rtol=0, atol=1e-14)


def test_all_kinds_are_drawn_equally_often():
    kinds = draw(generator("siamese test", "many"), 6000).kind.bincount(minlength=len(KINDS))
    assert kinds.min() > 850
    assert kinds.max() < 1150


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_by_the_pixels_is_that_of_the_function(kind):
    x = images(2)[:, :, :6, :6].contiguous().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: apply(x, one(kind, count=2)), (x,))
