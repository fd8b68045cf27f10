"""Select: real images as they are, the controls that every distilled set must beat under the same labels."""

from typing import TYPE_CHECKING

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from wmdd.errors import WmddError
from wmdd.points import Cloud
from wmdd.rng import generator
from wmdd.transport import quantize
from wmdd.transport.measure import squared_distances

if TYPE_CHECKING:
    from wmdd.settings import BarycenterSettings, SelectSettings

Chosen = tuple[Tensor, Tensor]  # positions within the class [K], weights [K]


def random(count: int, k: int, seed: int, label: int) -> Chosen:
    """Choose K of `count` images uniformly, without replacement."""
    chosen = torch.randperm(count, generator=generator("select", seed, label))[:k]
    return chosen, torch.full((k,), 1 / k)


def kmeans_medoid(features: Tensor, k: int, settings: "BarycenterSettings", seed: int, label: int) -> Chosen:
    """Choose the K distinct images nearest in all to the atoms of the free-weights barycenter; weights = cell masses."""
    found = quantize(
        features, k, generator=generator("select", seed, label), max_iterations=settings.max_iterations,
        tolerance=settings.tolerance, restarts=settings.restarts, exchanges=settings.exchanges,
    )  # fmt: skip
    rows, chosen = linear_sum_assignment(squared_distances(found.atoms.double(), features.double()).numpy())
    order = torch.from_numpy(rows).argsort()
    return torch.from_numpy(chosen)[order], found.weights


def select(
    labels: Tensor,
    classes: list[str],
    k: int,
    features: Cloud | None,
    settings: "SelectSettings",
    solver: "BarycenterSettings",
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Return the positions in the training set [C, K] and the weights [C, K] of the chosen images.

    Args:
        labels: [N], sorted.
        classes: their names.
        k: images per class.
        features: of the training set; None for the strategy `random`. One class is in memory at a time.
        settings: the strategy.
        solver: settings of the barycenter behind `kmeans-medoid`.
        seed: of the distillation.

    Raises:
        WmddError: a class has fewer images than K.
    """
    count = torch.bincount(labels, minlength=len(classes)).tolist()
    for name, found in zip(classes, count, strict=True):
        if found < k:
            raise WmddError(
                f"class {name!r} has {found} training images, fewer than the {k} images per class to select; "
                f"lower ipc to {min(count)} or less, or add images"
            )
    start = 0
    positions, weights = [], []
    for label, found in enumerate(count):
        if settings.strategy == "random":
            chosen, mass = random(found, k, seed, label)
        else:
            assert features is not None
            chosen, mass = kmeans_medoid(features.read(features.rows(label)), k, solver, seed, label)
        positions.append(chosen + start)
        weights.append(mass)
        start += found
    return torch.stack(positions), torch.stack(weights).float()
