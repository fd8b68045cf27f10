r"""The pixels of a set that others distilled, in unit scale; un-tiled, or resized.

With x the pixels in [0, 1], the authors' code stores one of

    bytes         255 x
    unit          x                  (IDC, NCFM)
    normalised    (x - m) / s        with m and s per channel (DC, DSA, DM; MTT and DATM without --zca)
    zca           (x - m) W          with m and W of kornia's ZCAWhitening(eps=0.1), fitted on the training images in [0, 1],
                                     neither shifted nor scaled before (MTT and DATM with --zca)

Sources: VICO-UoE/DatasetCondensation utils.py; GeorgeCazenavette/mtt-distillation utils.py; NUS-HPC-AI-Lab/DATM
utils/utils_baseline.py; kornia/enhance/zca.py; snu-mllab/Efficient-Dataset-Condensation condense.py, test.py.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from wmdd.base.errors import WmddError
from wmdd.networks.normalisation import Normalisation
from wmdd.networks.whitening import LARGEST, Whitening, fit

if TYPE_CHECKING:
    from wmdd.datasets.loader import Pictures

SPACES = ("unit", "normalised", "zca", "bytes")
_ASK = "say which by space: unit, normalised, zca or bytes"
UNCHANGED = Normalisation([0.0] * 3, [1.0] * 3)  # of pixels in [0, 1], which the authors' whitening is fitted on
_CIFAR = Normalisation([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])
_IMAGENET = Normalisation([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
# What DC's utils.py and its descendants normalise with. CIFAR's deviations are smaller than those of all training pixels, which
# are this package's (0.247, 0.2435, 0.2616); CIFAR-100 has CIFAR-10's numbers, and Tiny-ImageNet has ImageNet's.
PUBLISHED = {"cifar10": _CIFAR, "cifar100": _CIFAR, "tiny-imagenet": _IMAGENET}
MANY = 0.3  # of the pixels outside [0, 1]; normalised sets have 3.7 %, whitened ones that were not inverted 50 %


def published_normalisation(source: str, ours: Normalisation) -> tuple[Normalisation, str]:
    """Return what the code of DC, DM and MTT normalises a data set with, and a sentence that says so.

    Args:
        source: name of the data set in the catalogue.
        ours: mean and deviation of this package, which are taken where that code does not know the data set.
    """
    published = PUBLISHED.get(source, ours)
    numbers = (
        f"mean {', '.join(f'{m:g}' for m in published.mean)} and deviation {', '.join(f'{s:g}' for s in published.std)}"
    )
    whose = "of DC's code" if source in PUBLISHED else "of this data set here"
    return published, f"Normalisation was undone with the {numbers} {whose}."


def authors_whitening(pictures: "Pictures") -> Whitening:
    """Return the whitening that MTT and DATM fit on a whole training set: of pixels in [0, 1], with eps 0.1.

    Raises:
        WmddError: the images are larger than 64 px.
    """
    if pictures.resolution > LARGEST:
        raise WmddError(
            f"whitening is undone for images of at most {LARGEST} px, and the data's have {pictures.resolution} px; name the "
            "data at the set's resolution, or set space: normalised"
        )
    return fit(pictures, UNCHANGED)


def space_of(images: np.ndarray, asked: str = "auto", stored: str | None = None, layout: str = "") -> tuple[str, str]:
    """Return the space that pixels are in, and a sentence that says how that is known.

    Bytes are told by their type, and the layouts of DC, IDC and NCFM have one space. Of other numbers, whole ones up to 255
    are bytes and those within [0, 1] are in unit scale, as a normalised or whitened set has negative pixels. The code of MTT
    and DATM saves normalised or whitened pixels without saying which; above 64 px nobody whitens.

    Args:
        images: [N, 3, H, W].
        asked: one of SPACES, or "auto".
        stored: the space that the layout says, if it does.
        layout: of the file.

    Raises:
        WmddError: it cannot be known, or the pixels are not of the space that was asked for.
    """
    low, high = float(images.min()), float(images.max())
    if asked not in ("auto", *SPACES):
        raise WmddError(f"there is no space {asked!r} of pixels; name one of auto, {', '.join(SPACES)}")
    if images.dtype == np.uint8:
        if asked not in ("auto", "bytes"):
            raise WmddError(f"the set's pixels are bytes, so they are not {asked}; set space: auto")
        return "bytes", "The pixels are bytes."
    if asked != "auto":
        if asked == "bytes" and (low < 0 or high > 255 or high <= 1):
            raise WmddError(f"the set's pixels are {low:.4g} to {high:.4g}, so they are no bytes; {_ASK}")
        return asked, f"The pixels were said to be {asked}."
    if stored is not None:
        return stored, f"The pixels are {stored}, as the layout {layout} has them."
    if low >= 0 and high <= 1:
        return "unit", "The pixels are numbers in [0, 1], and so in unit scale."
    if low >= 0 and high <= 255 and (images == np.round(images)).all():
        return "bytes", "The pixels are whole numbers up to 255, and so bytes."
    if layout in ("mtt", "datm") and images.shape[-1] > LARGEST:
        return "normalised", f"The pixels are taken as normalised: sets of more than {LARGEST} px are not whitened."
    may = "normalised or whitened, which the layout does not say" if low < 0 else "of any scale"
    raise WmddError(f"the set's pixels are {low:.4g} to {high:.4g}, and may be {may}; {_ASK}")


def in_unit_scale(
    images: np.ndarray, space: str, normalisation: Normalisation, whitening: Whitening | None = None
) -> tuple[np.ndarray, list[str]]:
    """Return images [N, 3, H, W] in unit scale, float32 with black 0 and white 1; bytes stay bytes. And what was noticed.

    Nothing is clipped: values outside [0, 1] are part of a distilled set.

    Args:
        images: [N, 3, H, W], uint8 or float32.
        space: that they are in, one of SPACES.
        normalisation: that made them, for `normalised`.
        whitening: that made them, for `zca`, of pixels in [0, 1] (`authors_whitening`).

    Raises:
        WmddError: it is zca and there is no whitening, or one of another size.
    """
    if space == "bytes":
        if images.dtype == np.uint8 or (images == np.round(images)).all():
            return images.astype(np.uint8, copy=False), []
        unit = images / np.float32(255)
    elif space == "normalised":
        mean, std = (np.array(values, np.float64)[:, None, None] for values in normalisation)
        unit = (images * std + mean).astype(np.float32)
    elif space == "zca":
        unit = _unwhitened(images, whitening)
    else:
        unit = images.astype(np.float32, copy=False)
    outside = float(((unit < 0) | (unit > 1)).mean())
    if not outside:
        return unit, []
    notes = [f"{100 * outside:.1f} % of the pixels lie outside [0, 1]; they are kept."]
    if outside > MANY:
        notes.append(
            "That is more than distilled sets have: check space, and which data set the set was distilled from."
        )
    return unit, notes


def _unwhitened(images: np.ndarray, whitening: Whitening | None) -> np.ndarray:
    """Return x = z W^{-1} + m, in float64."""
    if whitening is None:
        raise WmddError(
            "the set's pixels are whitened, and the whitening is undone with that of the training images, which are not "
            "there; give the data set that the set was distilled from"
        )
    if whitening.middle.numel() != images[0].size:
        size = list(images.shape[2:])
        raise WmddError(
            f"the set's whitened images are {size} px and the training images have {whitening.middle.numel()} numbers, not "
            f"{images[0].size}; give the data set that the set was distilled from, at its resolution"
        )
    flat = torch.from_numpy(images).double().flatten(1) @ whitening.inverse.double() + whitening.middle.double()
    return flat.float().view(images.shape).numpy()


def untiled(images: np.ndarray, labels: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Undo IDC's multi-formation: factor² pictures out of each image, and its label for each of them.

    An image of side R is cut into tiles of side ceil(R / factor), row by row, what is missing at the right and the bottom
    being grey (0.5), and each is enlarged to R (bilinear). The first tiles of all images come first, then the second ones.
    It is IDC's `decode_zoom` (decode_type single; snu-mllab/Efficient-Dataset-Condensation test.py, NCFM condenser/decode.py).

    Args:
        images: [N, 3, R, R] in unit scale; bytes become float32.
        labels: [N] or [N, C].
        factor: how many tiles there are in a row; 1 changes nothing.

    Raises:
        WmddError: the factor is below 1 or above the side.
    """
    if factor == 1:
        return images, labels
    side = images.shape[-1]
    if not 1 <= factor <= side or images.shape[-2] != side:
        raise WmddError(f"images of {images.shape[-2]} x {side} px cannot be un-tiled by a factor of {factor}")
    pixels = torch.from_numpy(images)
    pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
    tile, missing = -(-side // factor), -side % factor
    if missing:
        pixels = functional.pad(pixels, (0, missing, 0, missing), value=0.5)
    tiles = pixels.unfold(2, tile, tile).unfold(3, tile, tile)  # [N, 3, f, f, t, t]
    tiles = tiles.permute(2, 3, 0, 1, 4, 5).flatten(0, 2)  # [f f N, 3, t, t]
    enlarged = functional.interpolate(tiles, size=(side, side), mode="bilinear", align_corners=False)
    return enlarged.numpy(), np.concatenate([labels] * factor**2)


def resized(images: np.ndarray, side: int) -> np.ndarray:
    """Return images [N, 3, H, W] at side x side (bilinear, antialiased); bytes are rounded to bytes."""
    pixels = torch.from_numpy(images).float()
    small = functional.interpolate(pixels, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
    return small.round().clamp(0, 255).byte().numpy() if images.dtype == np.uint8 else small.numpy()
