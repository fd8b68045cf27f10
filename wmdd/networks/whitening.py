r"""Whitening: zero-phase component analysis (ZCA) of the training images, as MTT's published experts see them.

With X [N, D] the normalised training images, D = 3 R^2, m their mean and V diag(s) V^T the covariance of X - m,

    z = (x - m) W,    W = V diag((s + eps)^(-1/2)) V^T,    x = z W^{-1} + m

(Krizhevsky 2009; eps = 0.1 as in MTT's released code, which takes it from kornia). Computed in float64 from one pass over the
images; for D of 12,288 (64 px) at most, whose matrix has 150 million numbers.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from wmdd.base.errors import WmddError
from wmdd.networks.models import normalise
from wmdd.networks.normalisation import Normalisation

if TYPE_CHECKING:
    from wmdd.datasets.loader import Pictures

EPS = 0.1
LARGEST = 64  # px


@dataclass(frozen=True)
class Whitening:
    """m [D], W and its inverse [D, D], float32."""

    middle: Tensor
    matrix: Tensor
    inverse: Tensor

    def apply(self, images: Tensor) -> Tensor:
        """Whiten normalised images [B, 3, R, R]."""
        return ((images.flatten(1) - self.middle) @ self.matrix).view(images.shape)

    def undo(self, images: Tensor) -> Tensor:
        """Return the normalised images [B, 3, R, R] of whitened ones."""
        return (images.flatten(1) @ self.inverse + self.middle).view(images.shape)

    def to(self, device: torch.device) -> "Whitening":
        """Return a copy elsewhere."""
        return replace(
            self, middle=self.middle.to(device), matrix=self.matrix.to(device), inverse=self.inverse.to(device)
        )


class Whitened(nn.Module):
    """A network that is given normalised images and sees whitened ones."""

    def __init__(self, network: nn.Module, whitening: Whitening) -> None:
        super().__init__()
        self.network, self._whitening = network, whitening

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, C]."""
        logits: Tensor = self.network(self._whitening.apply(images))
        return logits


def fit(pictures: "Pictures", normalisation: Normalisation, eps: float = EPS) -> Whitening:
    """Return the whitening of a training set.

    Raises:
        WmddError: the images are too large.
    """
    side = pictures.resolution
    if side > LARGEST:
        raise WmddError(f"whitening takes images of at most {LARGEST} px, not of {side} px; set whiten: false")
    size = 3 * side**2
    total, products = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    for images in pictures.batches(torch.arange(len(pictures.labels)).split(1024)):
        x = normalise(images.cpu(), normalisation).flatten(1)
        total += x.double().sum(0)
        products += (x.T @ x).double()
    count = len(pictures.labels)
    middle = total / count
    values, vectors = torch.linalg.eigh((products - count * torch.outer(middle, middle)) / max(1, count - 1))
    scale = (values.clamp(min=0) + eps).sqrt()
    matrix, inverse = ((vectors * stretch) @ vectors.T for stretch in (1 / scale, scale))
    return Whitening(middle.float(), matrix.float(), inverse.float())
