"""Random views of images, drawn for a whole data set at once and replayed exactly from a seed.

A draw holds, for each of N images: an order of its patches, a crop box, a flip, and (CutMix) a partner and a pasted box. It
does not depend on batches, so teacher and student, or two batch sizes, see the same views.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ASPECT = (3 / 4, 4 / 3)  # of a random resized crop (Szegedy et al. 2015; torchvision's default)


@dataclass(frozen=True)
class Views:
    """How each of N images is to be seen. Boxes are (top, left, height, width) as shares of the side, float64."""

    crop: Tensor  # [N, 4]
    flip: Tensor  # [N] bool
    partner: Tensor  # [N] int64; the image itself where nothing is mixed
    paste: Tensor  # [N, 4]; the part of the view that comes from the partner
    mixed: bool = True  # whether any view may have such a part
    patches: Tensor | None = None  # [N, 2, F] int64: to which places the F rows and F columns of patches go

    def of(self, index: Tensor) -> "Views":
        """Return the views of some of the images."""
        return self._each(lambda part: part[index])

    def to(self, device: torch.device) -> "Views":
        """Return a copy elsewhere."""
        return self._each(lambda part: part.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Views":
        changed: dict[str, Any] = {n: change(part) for n, part in vars(self).items() if isinstance(part, Tensor)}
        return replace(self, **changed)

    def pasted(self, height: int, width: int) -> Tensor:
        """Return the pasted boxes in whole pixels, [N, 4]: first row, first column, and the ones behind the last."""
        first, last = self.paste[:, :2], self.paste[:, :2] + self.paste[:, 2:]
        rows, columns = torch.stack([first, last], 1).unbind(2)  # [N, 2] each
        return torch.stack([rows * height, columns * width], 2).flatten(1).round().long()

    def kept(self, height: int, width: int) -> Tensor:
        """Return the share of each view's pixels that show the image itself, [N] float64."""
        top, left, bottom, right = self.pasted(height, width).unbind(1)
        return 1 - ((bottom - top) * (right - left)).double() / (height * width)


def identity(count: int) -> Views:
    """Return the views that show every image as it is."""
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64).expand(count, 4).clone()
    return Views(whole, torch.zeros(count, dtype=torch.bool), torch.arange(count), torch.zeros_like(whole), False)


def resized_crop(
    generator: torch.Generator, count: int, scale: tuple[float, float], aspect: tuple[float, float] = ASPECT
) -> Tensor:
    """Draw `count` boxes [N, 4] of random area and aspect, as shares of the side.

    The area is uniform in `scale`, the log of the aspect ratio uniform in that of `aspect`; a box longer than the side is cut
    to it (torchvision tries again up to ten times instead).
    """
    u = torch.rand(count, 4, generator=generator, dtype=torch.float64)
    area = scale[0] + (scale[1] - scale[0]) * u[:, 0]
    low, high = (math.log(a) for a in aspect)
    ratio = (low + (high - low) * u[:, 1]).exp()
    height = (area / ratio).sqrt().clamp(max=1)
    width = (area * ratio).sqrt().clamp(max=1)
    if scale[0] >= 1:  # no crop at all
        height, width = torch.ones(count, dtype=torch.float64), torch.ones(count, dtype=torch.float64)
    return torch.stack([u[:, 2] * (1 - height), u[:, 3] * (1 - width), height, width], 1)


def shifted(generator: torch.Generator, count: int, pixels: int, resolution: int) -> Tensor:
    """Draw whole-pixel shifts by up to `pixels` (zero padding), as boxes [N, 4] of full size."""
    offset = torch.randint(-pixels, pixels + 1, (count, 2), generator=generator) / resolution
    return torch.cat([offset.double(), torch.ones(count, 2, dtype=torch.float64)], 1)


def draw(
    generator: torch.Generator, count: int, scale: tuple[float, float], flip: bool, mix: str = "none", patches: int = 1
) -> Views:
    """Draw random resized crops, mirror images, CutMix partners and orders of `patches` x `patches` patches for `count` images.

    CutMix (Yun et al. 2019, alpha = 1) with a partner and a box for each image; the published relabelling draws one box
    for a batch, which would tie the labels to the batch size.
    """
    views = identity(count)
    views = replace(views, crop=resized_crop(generator, count, scale))
    u = torch.rand(count, 4, generator=generator, dtype=torch.float64)
    if flip:
        views = replace(views, flip=u[:, 0] < 0.5)
    if mix == "cutmix":
        side = u[:, 1].sqrt()  # pasted area 1 - lambda is uniform, so is lambda ~ Beta(1, 1)
        centre = u[:, 2:]
        start = (centre - side[:, None] / 2).clamp(0, 1)
        end = (centre + side[:, None] / 2).clamp(0, 1)
        partner = torch.randperm(count, generator=generator)
        views = replace(views, partner=partner, paste=torch.cat([start, end - start], 1), mixed=True)
    if patches > 1:
        orders = torch.rand(count, 2, patches, generator=generator, dtype=torch.float64).argsort(2)
        views = replace(views, patches=orders)
    return views


def shuffled(images: Tensor, places: Tensor) -> Tensor:
    """Return images [B, 3, H, W] whose rows and columns of patches have moved to their new `places` [B, 2, F].

    The patches of RDED's ShufflePatches: strips of floor(side / F) pixels, of which the last takes what is left; all columns
    change their order, then all rows.
    """
    down, across = (_sources(places[:, axis], images.shape[2 + axis]) for axis in (0, 1))
    rows = images.gather(2, down[:, None, :, None].expand(images.shape))
    return rows.gather(3, across[:, None, None, :].expand(images.shape))


def _sources(places: Tensor, side: int) -> Tensor:
    """Return which pixel of a side goes to each place, [B, side], when its strips go to `places` [B, F]."""
    count = places.shape[1]
    strip = (torch.arange(side, device=places.device) // max(side // count, 1)).clamp(max=count - 1)
    return places[:, strip].argsort(dim=1, stable=True)


def apply(images: Tensor, views: Views, index: Tensor, padded: bool = False) -> Tensor:
    """Return the views of `images[index]`, [B, 3, H, W] float32, of normalised float images [N, 3, H, W].

    All on one device, which is not waited for. Bilinear; crops never shrink, so no antialiasing is needed. Outside the image
    a shifted view is zero, the mean colour.
    """
    mine = views.of(index)
    seen = _crop(images[index], mine, padded)
    if not views.mixed:
        return seen
    other = _crop(images[mine.partner], views.of(mine.partner), padded)
    height, width = images.shape[-2:]
    top, left, bottom, right = mine.pasted(height, width).unbind(1)
    rows, columns = torch.arange(height, device=index.device), torch.arange(width, device=index.device)
    inside_rows = (rows >= top[:, None]) & (rows < bottom[:, None])  # [B, H]
    inside_columns = (columns >= left[:, None]) & (columns < right[:, None])  # [B, W]
    return torch.where(inside_rows[:, None, :, None] & inside_columns[:, None, None, :], other, seen)


def _crop(images: Tensor, views: Views, padded: bool) -> Tensor:
    """Cut and enlarge boxes of [B, 3, H, W] by one bilinear sampling, whose places are float32 under autocast, too.

    Patches are put into their order before.
    """
    images = images if views.patches is None else shuffled(images, views.patches)
    top, left, height, width = views.crop.double().unbind(1)
    across = _places(left, width, images.shape[3])
    across = torch.where(views.flip[:, None], across.flip(1), across)
    down = _places(top, height, images.shape[2])
    size = (len(images), images.shape[2], images.shape[3])
    grid = torch.stack([across[:, None, :].expand(size), down[:, :, None].expand(size)], 3)
    return F.grid_sample(
        images, grid, mode="bilinear", padding_mode="zeros" if padded else "border", align_corners=False
    )


def _places(start: Tensor, length: Tensor, count: int) -> Tensor:
    """Return the middles [B, count] of equal parts of intervals of a side, which reaches from -1 to 1."""
    middles = (torch.arange(count, device=start.device, dtype=start.dtype) + 0.5) / count
    return (2 * (start[:, None] + length[:, None] * middles) - 1).float()
