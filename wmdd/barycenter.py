"""Barycenter: for each class, the free-support Wasserstein barycenter of its features with K = IPC atoms (WMDD, Section 3)."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wmdd.errors import WmddError
from wmdd.rng import generator
from wmdd.transport import Barycenter, solve

if TYPE_CHECKING:
    from wmdd.settings import BarycenterSettings


def barycenters(
    features: Tensor,
    labels: Tensor,
    wanted: range,
    k: int,
    settings: "BarycenterSettings",
    seed: int,
    progress: Callable[..., Iterator[Any]] = lambda items, *_, **__: iter(items),
) -> list[Barycenter]:
    """Return the barycenter of each wanted class, from features [N, D] and labels [N]; draws depend on (seed, class) alone.

    Raises:
        WmddError: a class has no features.
    """
    found = []
    for label in progress(wanted, "barycenters", len(wanted), unit="class"):
        points = features[labels == label]
        if len(points) == 0:
            raise WmddError(f"class {label} has no features; run the features stage on data that hold it")
        draws = generator("barycenter", seed, label)
        found.append(
            solve(points, k, settings.weights, draws, settings.max_iterations, settings.tolerance, settings.restarts)
        )
    return found


def explained(features: Tensor, barycenter: Barycenter) -> float:
    """Return the share of the total variance that the atoms explain, 1 - W2^2 / Var, in [0, 1]."""
    total = float(torch.var(features.double(), 0, correction=0).sum())
    return 1 - barycenter.cost / total if total > 0 else 1.0
