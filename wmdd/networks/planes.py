"""Planes: what is optimised of a picture, its three channels, or of a grey one the plane that they all show."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wmdd.networks.models import normalise, to_pixels
from wmdd.networks.normalisation import Normalisation


@dataclass(frozen=True)
class Planes:
    """What the pixels of an image are optimised in: P = 3 channels, or of grey pictures the one plane that they all show.

    Attributes:
        normalisation: of the P planes.
        gain: [3, 1, 1], by which a grey plane g becomes the teacher's normalised channels gain g + offset; None of colour.
        offset: [3, 1, 1].
    """

    normalisation: Normalisation
    gain: Tensor | None = None
    offset: Tensor | None = None

    @classmethod
    def of(cls, normalisation: Normalisation, grey: bool) -> "Planes":
        """Return the planes of pictures that a teacher sees with this normalisation; a grey one has its mean over channels."""
        if not grey:
            return cls(normalisation)
        mean, std = normalisation
        centre, spread = sum(mean) / 3, sum(std) / 3
        gain = [spread / own for own in std]
        offset = [(centre - own) / width for own, width in zip(mean, std, strict=True)]
        return cls(
            Normalisation([centre], [spread]), torch.tensor(gain).view(3, 1, 1), torch.tensor(offset).view(3, 1, 1)
        )

    def to(self, device: torch.device) -> "Planes":
        """Return a copy elsewhere."""
        if self.gain is None or self.offset is None:
            return self
        return replace(self, gain=self.gain.to(device), offset=self.offset.to(device))

    def taken(self, pixels: Tensor) -> Tensor:
        """Return the normalised planes [..., P, R, R] of images [..., 3, R, R]; a grey one is the mean of the channels."""
        if self.gain is not None:
            mean = pixels.float().mean(-3, keepdim=True)
            pixels = mean / 255 if pixels.dtype == torch.uint8 else mean
        return normalise(pixels, self.normalisation)

    def shown(self, planes: Tensor) -> Tensor:
        """Return the normalised images [..., 3, R, R] that the teacher sees."""
        return planes if self.gain is None or self.offset is None else planes * self.gain + self.offset

    def pixels(self, planes: Tensor) -> Tensor:
        """Return the images [..., 3, R, R] uint8."""
        pixels = to_pixels(planes, self.normalisation)
        return pixels.expand(*pixels.shape[:-3], 3, -1, -1).contiguous()
