"""Views of recover: in every iteration a random crop, mirror image and cyclic shift of the images.

One for all, drawn for (seed, iteration), or with `draws: image` one of each, drawn for (seed, iteration, class). `view` makes
them step by step and is the reference; `sampled` makes them as two matrix products.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wmdd.base.rng import generator
from wmdd.networks import augment

if TYPE_CHECKING:
    from wmdd.settings.recover import RecoverSettings


class View(NamedTuple):
    """One random view: the crop box (top, left, height, width) in pixels, mirrored or not, cyclic shift down and right."""

    top: int
    left: int
    height: int
    width: int
    flip: int
    down: int
    right: int


def drawn(settings: "RecoverSettings", side: int, seed: int, iteration: int, labels: Tensor, k: int) -> Tensor:
    """Draw the views [C K, 7] of K images each of some classes that belong to an iteration, or [1, 7], the one of all."""
    if settings.draws == "iteration":
        return torch.tensor([_drawn(settings, side, generator("recover", "view", seed, iteration))])
    draws_of_classes = [generator("recover", "view", seed, iteration, label) for label in labels.tolist()]
    return torch.tensor([_drawn(settings, side, draws) for draws in draws_of_classes for _ in range(k)])


def _drawn(settings: "RecoverSettings", side: int, draws: torch.Generator) -> View:
    """Draw a view of images of a side."""
    box = augment.resized_crop(draws, 1, settings.crop_scale)[0]
    flip = bool(torch.rand((), generator=draws) < 0.5) and settings.flip
    down, right = torch.randint(-settings.jitter, settings.jitter + 1, (2,), generator=draws).tolist()
    if settings.crop_scale[0] >= 1:
        return View(0, 0, side, side, flip, down, right)
    top, left, height, width = (int(v) for v in (box * side).round().tolist())
    top, left = min(top, side - 1), min(left, side - 1)
    return View(top, left, min(max(height, 1), side - top), min(max(width, 1), side - left), flip, down, right)


def view(images: Tensor, chosen: Tensor) -> Tensor:
    """Return the views [B, 7] of images [B, 3, R, R], or the one [1, 7] of all, step by step; the reference for `sampled`."""
    views = [View(*map(int, row)) for row in chosen.tolist()]
    parts = images.split(1) if len(views) > 1 else [images]
    return torch.cat([_view(part, one) for part, one in zip(parts, views, strict=True)])


def _view(images: Tensor, chosen: View) -> Tensor:
    side = images.shape[-1]
    top, left, height, width, flip, *shift = chosen
    if (height, width) != (side, side):
        cut = images[..., top : top + height, left : left + width]
        images = F.interpolate(cut, (side, side), mode="bilinear", align_corners=False)
    images = images.flip(-1) if flip else images
    return images.roll(shift, (2, 3)) if any(shift) else images


def sampled(images: Tensor, chosen: Tensor) -> Tensor:
    r"""Return the views [B, 7] of images [B, 3, R, R], or the one [1, 7] of all, as two products per channel, A x B^T.

    Crop, bilinear resizing, mirroring and cyclic shift each act on rows and columns alone and are linear. Row i of the view
    is row i - down of the resized crop, which samples the image at s_i = top + clamp((i + 1/2) h / R - 1/2, 0, h - 1), so
    A_ip = max(0, 1 - |s_i - p|); B likewise. No shape and no host decision depends on what was drawn, floats.
    """
    side = images.shape[-1]
    top, left, height, width, flip, down, right = chosen[:, :, None].unbind(1)  # [B, 1] or [1, 1]
    pixels = torch.arange(side, device=images.device, dtype=images.dtype)
    across = (pixels - right) % side
    across = torch.where(flip > 0, side - 1 - across, across)
    rows = _interpolation((pixels - down) % side, top, height, pixels)
    columns = _interpolation(across, left, width, pixels)
    if len(chosen) == 1:
        return rows[0] @ images @ columns[0].T
    return rows[:, None] @ images @ columns.mT[:, None]


def _interpolation(positions: Tensor, start: Tensor, length: Tensor, pixels: Tensor) -> Tensor:
    """Return the weights [B, R, R] by which pixels of the view are made of those of the image, along one side."""
    inner = (positions + 0.5) * length / len(pixels) - 0.5
    sources = start + torch.minimum(inner.clamp(min=0), length - 1)
    return (1 - (sources[..., None] - pixels).abs()).clamp(min=0)
