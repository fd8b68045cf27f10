r"""Siamese augmentation: one random, differentiable distortion for real images and the distilled ones beside them (DSA).

Zhao and Bilen 2021 (DSA, ICML), Eq. 6-7: both sides of a match see A(x; omega) with one omega, so that the gradient of a
distilled pixel knows where in the distorted image it is. Their released code, which DM, DataDAM and MTT share, draws one of six
kinds for a batch, and of the chosen kind its numbers:

    color   x + (u - 1/2), then m_c + 2u (x - m_c), m_c the mean over channels, then m + (u + 1/2) (x - m), m the image's mean
    crop    shifted by up to an eighth of the side, zeros behind it
    cutout  a square of half the side is zero, its centre anywhere
    flip    mirrored with probability 1/2
    scale   height and width each divided by a number of [1/1.2, 1.2], zeros behind it
    rotate  by up to 15 degrees, zeros behind it

each u uniform in [0, 1), anew for each of the three steps of color. In normalised pixels, so that zero is the mean colour.

Departures: an image (or pair) has a kind of its own where there is no partner to share one with, where the released code draws
one for a batch, which would tie a student's views to its batch; shifts, mirror images, scalings and rotations are one bilinear
sampling; and the two shifts of a crop are independent, as are the two factors of scale, where the released code's siamese
mode draws one after the other from seeds that differ by one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("color", "crop", "cutout", "flip", "scale", "rotate")
SCALE, ANGLE, SHIFT, HOLE = 1.2, 15.0, 0.125, 0.5  # the released code's


@dataclass(frozen=True)
class Distortions:
    """How each of N images is distorted: one of `KINDS`, and three uniform numbers for it."""

    kind: Tensor  # [N] int64
    numbers: Tensor  # [N, 3] float64 in [0, 1)

    def of(self, index: Tensor) -> "Distortions":
        """Return those of some of the images."""
        return Distortions(self.kind[index], self.numbers[index])

    def to(self, device: torch.device) -> "Distortions":
        """Return a copy elsewhere."""
        return replace(self, kind=self.kind.to(device), numbers=self.numbers.to(device))

    def repeated(self, count: int) -> "Distortions":
        """Return each `count` times, one behind the other: the pairs' for all images of their sides."""
        return Distortions(self.kind.repeat_interleave(count), self.numbers.repeat_interleave(count, 0))


def draw(generator: torch.Generator, count: int) -> Distortions:
    """Draw distortions for `count` images, or pairs."""
    kind = torch.randint(len(KINDS), (count,), generator=generator)
    return Distortions(kind, torch.rand(count, 3, generator=generator, dtype=torch.float64))


def joined(parts: Sequence[Distortions]) -> Distortions:
    """Return the distortions of several draws, one behind the other."""
    return Distortions(torch.cat([part.kind for part in parts]), torch.cat([part.numbers for part in parts]))


def apply(images: Tensor, how: Distortions) -> Tensor:
    """Return normalised images [N, 3, R, R], each distorted in its own way; a differentiable function of the pixels.

    All on one device, which is not waited for.
    """
    chosen = {name: how.kind == number for number, name in enumerate(KINDS)}
    u = how.numbers.to(images.dtype)
    moved = _moved(images, chosen, u)
    return _cut(_coloured(moved, chosen["color"], u), chosen["cutout"], u)


def _only(chosen: Tensor, value: Tensor, neutral: float) -> Tensor:
    return torch.where(chosen, value, torch.full_like(value, neutral))


def _moved(images: Tensor, chosen: dict[str, Tensor], u: Tensor) -> Tensor:
    """Sample the images where an affine map takes each pixel: the output's places in units of half a side, from the middle."""
    side, zero = images.shape[-1], torch.zeros_like(u[:, 0])
    furthest = int(side * SHIFT + 0.5)
    pixels = [((2 * furthest + 1) * u[:, i]).floor() - furthest for i in (0, 1)]
    down, right = (_only(chosen["crop"], 2 * p / side, 0.0) for p in pixels)
    mirror = _only(chosen["flip"] & (u[:, 0] < 0.5), zero - 1, 1.0)
    wide, high = (_only(chosen["scale"], 1 / SCALE + (SCALE - 1 / SCALE) * u[:, i], 1.0) for i in (0, 1))
    angle = _only(chosen["rotate"], (2 * u[:, 0] - 1) * math.radians(ANGLE), 0.0)
    cos, sin = angle.cos(), angle.sin()
    rows = [torch.stack([mirror * wide * cos, -sin, right], 1), torch.stack([sin, high * cos, down], 1)]
    grid = F.affine_grid(torch.stack(rows, 1).to(images.dtype), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    still = (chosen["color"] | chosen["cutout"])[:, None, None, None]  # exactly as they are, not up to rounding
    return torch.where(still, images, moved)


def _coloured(images: Tensor, chosen: Tensor, u: Tensor) -> Tensor:
    """Change brightness, saturation and contrast, in this order."""
    u = u[:, :, None, None, None]
    lit = images + (u[:, 0] - 0.5)
    grey = lit.mean(1, keepdim=True)
    saturated = grey + 2 * u[:, 1] * (lit - grey)
    middle = saturated.mean((1, 2, 3), keepdim=True)
    return torch.where(chosen[:, None, None, None], middle + (u[:, 2] + 0.5) * (saturated - middle), images)


def _cut(images: Tensor, chosen: Tensor, u: Tensor) -> Tensor:
    """Put zeros into a square, which the edge of the image may cut."""
    side = images.shape[-1]
    size = int(side * HOLE + 0.5)
    places = torch.arange(side, device=images.device)

    def within(number: Tensor) -> Tensor:
        first = (number * (side + 1 - size % 2)).floor() - size // 2
        return (places >= first[:, None]) & (places < first[:, None] + size)

    hole = within(u[:, 0])[:, :, None] & within(u[:, 1])[:, None, :] & chosen[:, None, None]
    return images.masked_fill(hole[:, None], 0.0)
