"""Quantize: for each class, K atoms and the masses of their cells in the space of latents (DDOQ, Section 3; D4M).

The solvers are those of the barycenter stage: with free weights the W2 barycenter of one measure is its optimal quantization.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.stages.barycenter import Progress, Quality, barycenters
from wmdd.stages.point_clouds import Cloud
from wmdd.transport import Barycenter, intrinsic_dimension
from wmdd.transport.measure import transport_cost

if TYPE_CHECKING:
    from wmdd.settings.latent import QuantizeSettings


class Latents:
    """Latents [N, D] in an open file, read by the row, as float32 whatever they are stored as."""

    dtype = np.dtype(np.float32)

    def __init__(self, data: Any) -> None:
        self._data, self.shape = data, data.shape

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: Any) -> np.ndarray:
        return np.asarray(self._data[rows]).astype(np.float32)


@dataclass(frozen=True)
class Quantized:
    """Atoms of a class, how good they are, and what the theory of DDOQ speaks of."""

    atoms: Barycenter  # with their weights
    quality: Quality  # W2^2 and more, with these weights
    uniform_cost: float  # W2^2 of the same atoms with weights 1/K each
    dimension: float  # intrinsic, of the class's latents


def quantize(
    cloud: Cloud, wanted: range, k: int, settings: "QuantizeSettings", seed: int, progress: Progress
) -> list[Quantized]:
    """Return the quantization of each wanted class; draws depend on (seed, class) alone.

    Raises:
        WmddError: a class has fewer images than K, or the settings ask for what no solver does.
    """
    for label in wanted:
        if (count := len(cloud.rows(label))) < k:
            raise WmddError(
                f"{cloud.title(label)} has {count} training images, fewer than the {k} images per class to distil; lower ipc "
                "to that or less, or add images"
            )
    solved = barycenters(cloud, wanted, k, settings, seed, progress)
    return [_judged(cloud, label, atoms, quality) for label, (atoms, quality) in zip(wanted, solved, strict=True)]


def _judged(cloud: Cloud, label: int, atoms: Barycenter, quality: Quality) -> Quantized:
    points = cloud.read(cloud.rows(label))
    equal = torch.full_like(atoms.weights, 1 / len(atoms.weights))
    uniform = quality.cost if torch.equal(atoms.weights, equal) else transport_cost(atoms.atoms, equal, points)
    dimension = intrinsic_dimension(points, generator=generator("quantize", "dimension", label))
    return Quantized(atoms, quality, uniform, dimension)
