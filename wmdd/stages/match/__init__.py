r"""Match: images on which networks behave as on real ones, optimised in their pixels (DM, DataDAM, MTT).

`distributions` matches, class by class, what untrained networks make of real and of distilled images (DM, DataDAM);
`trajectories` matches where networks go that are trained on them (MTT).

Images begin as real ones, those that the method `random` chooses under the same seed, as noise, or as those of another method
(`init`). Their pixels are free, as in
the published codes: float32, and they may leave the range from black to white. With `pixels: picture` they are brought back
into it after every step, and rounded to 8 bits at the end.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.datasets.loader import Pictures, read
from wmdd.networks.models import bounds_of, normalise, to_pixels, to_unit
from wmdd.networks.normalisation import Normalisation

if TYPE_CHECKING:
    from wmdd.settings.match import MatchSettings


class Matched(NamedTuple):
    """Images [C, K, 3, R, R]; of MTT also the student's learning rate, and learned labels [C, K, classes] if any."""

    images: Tensor
    rate: float | None = None
    labels: Tensor | None = None


class Real(NamedTuple):
    """The real images of the classes that are matched: where those of each class begin and end in the training set."""

    pictures: Pictures
    labels: list[int]  # of the block
    begins: list[int]
    counts: list[int]
    start: Tensor | None = None  # images [C, K, 3, R, R] of another method to begin with, bytes or in unit scale


def real(
    pictures: Pictures,
    labels: list[int],
    names: list[str],
    least: int,
    remedy: str = "lower match.real_batch",
    start: Tensor | None = None,
) -> Real:
    """Find the real images of some classes.

    Raises:
        WmddError: a class has fewer than `least`.
    """
    begins = [int((pictures.labels < label).sum()) for label in labels]
    counts = [int((pictures.labels == label).sum()) for label in labels]
    for label, count in zip(labels, counts, strict=True):
        if count < least:
            raise WmddError(
                f"class {names[label]} has {count} real images, but {least} are to be drawn at once; {remedy}"
            )
    return Real(pictures, labels, begins, counts, start)


def start(real_images: Real, k: int, normalisation: Normalisation, settings: "MatchSettings", seed: int) -> Tensor:
    """Return the normalised images [C, K, 3, R, R] to begin with."""
    side = real_images.pictures.resolution
    if real_images.start is not None:
        return normalise(real_images.start, normalisation)
    if settings.init == "noise":
        shape = (k, 3, side, side)
        return torch.stack(
            [torch.randn(shape, generator=generator("match", "noise", seed, c)) for c in real_images.labels]
        )
    images = []
    for label, begin, count in zip(real_images.labels, real_images.begins, real_images.counts, strict=True):
        chosen = torch.randperm(count, generator=generator("select", seed, label))[:k]  # as wmdd.stages.select.random
        images.append(normalise(read(real_images.pictures, begin + chosen), normalisation))
    return torch.stack(images)


def limits(settings: "MatchSettings", normalisation: Normalisation, device: torch.device) -> list[Tensor] | None:
    """Return black and white as normalised pixels; None where the pixels are free."""
    return bounds_of(normalisation, device) if settings.pixels == "picture" else None


def within(images: Tensor, bounds: list[Tensor]) -> None:
    """Bring normalised pixels back between black and white, in place."""
    with torch.no_grad():
        torch.minimum(torch.maximum(images, bounds[0], out=images), bounds[1], out=images)


def finished(images: Tensor, normalisation: Normalisation, settings: "MatchSettings") -> Tensor:
    """Return normalised images as they are kept: float32 in unit scale, or rounded to uint8."""
    return (to_pixels if settings.pixels == "picture" else to_unit)(images, normalisation)
