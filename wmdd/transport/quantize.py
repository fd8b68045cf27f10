r"""Free-support W2 barycenter of one empirical measure with K atoms.

For a single measure mu = 1/N \sum_i delta_{x_i}, the barycenter with at most K atoms minimises

    W_2^2(\sum_k w_k delta_{b_k}, mu) = min_{T >= 0, T 1 = w, T' 1 = 1/N} \sum_ki T_ki ||b_k - x_i||^2

over the atoms b [K, D], and over the weights w [K] when these are free. With free weights this is optimal quantization,
that is k-means, and w_k is the mass of the k-th Voronoi cell; with uniform weights it is balanced k-means, whose
assignment step is a transportation problem. So W_2^2(free) <= W_2^2(uniform); K = 1 gives the mean; K = N the points.

References:
    [1] Cuturi, Doucet: Fast Computation of Wasserstein Barycenters, ICML 2014, Algorithm 2 and Eq. 8 (the Newton step).
    [2] Arthur, Vassilvitskii: k-means++: The Advantages of Careful Seeding, SODA 2007.
    [3] Graf, Luschgy: Foundations of Quantization for Probability Distributions, Springer 2000.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from wmdd.errors import WmddError

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, float]]


@dataclass(frozen=True)
class Barycenter:
    """Atoms [K, D] and weights [K] (sum 1), the cost W2^2, and the cost after each step."""

    atoms: Tensor
    weights: Tensor
    cost: float
    trace: list[float] = field(default_factory=list)


def solve(
    features: Tensor,
    k: int,
    weights: str = "uniform",
    generator: torch.Generator | None = None,
    max_iterations: int = 300,
    tolerance: float = 1e-6,
    restarts: int = 1,
) -> Barycenter:
    """Return the barycenter of `features` with `k` atoms.

    Args:
        features: [N, D], any float type; computed in float64.
        k: atoms.
        weights: `uniform` (1/K each) or `free` (the masses of the cells).
        generator: draws of the k-means++ start.
        max_iterations: alternations, at most.
        tolerance: stop when the cost falls by less than this share of itself.
        restarts: independent starts; the cheapest result is returned.

    Returns:
        Atoms and weights in the type of `features`. The trace never rises.

    Raises:
        WmddError: there are no points, or some are not numbers.
    """
    if features.ndim != 2 or len(features) == 0:
        raise WmddError(f"a barycenter needs points [N, D] with N >= 1, got {tuple(features.shape)}")
    if not bool(torch.isfinite(features).all()):
        raise WmddError("the features hold NaN or infinity; check the teacher")
    points = features.double().cpu()
    step = {"uniform": _uniform, "free": _free}[weights]
    generator = generator or torch.Generator().manual_seed(0)
    starts = [_start(points, k, generator) for _ in range(restarts)]
    best = min((_alternate(points, start, step, max_iterations, tolerance) for start in starts), key=lambda b: b.cost)
    return Barycenter(best.atoms.to(features.dtype), best.weights.to(features.dtype), best.cost, best.trace)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return ||a_i - b_j||^2, [A, B], of float64 points, centred first so that little is lost to cancellation."""
    centre = b.mean(0)
    a, b = a - centre, b - centre
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp(min=0)


def _start(points: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Draw k atoms by greedy k-means++ [2]: of 2 + log k candidates, the one that lowers the cost most."""
    count = len(points)
    if k >= count:
        return points[torch.arange(k) % count].clone()
    candidates = 2 + int(math.log(k))
    chosen = [int(torch.randint(count, (1,), generator=generator))]
    nearest = squared_distances(points[chosen], points)[0]
    while len(chosen) < k:
        odds = nearest if bool((nearest > 0).any()) else torch.ones_like(nearest)
        tries = torch.multinomial(odds, candidates, replacement=True, generator=generator)
        reduced = torch.minimum(squared_distances(points[tries], points), nearest)
        best = int(reduced.sum(1).argmin())
        nearest = reduced[best]
        chosen.append(int(tries[best]))
    return points[chosen].clone()


def _alternate(points: Tensor, atoms: Tensor, step: Step, max_iterations: int, tolerance: float) -> Barycenter:
    """Alternate assignment and means until the cost settles; every step lowers it or leaves it."""
    trace: list[float] = []
    while True:
        proposal, weights, cost = step(points, atoms)
        trace.append(cost)
        settled = len(trace) > 1 and trace[-2] - cost <= tolerance * trace[-2]
        if settled or len(trace) == max_iterations:
            return Barycenter(atoms, weights, cost, trace)
        atoms = proposal


def _free(points: Tensor, atoms: Tensor) -> tuple[Tensor, Tensor, float]:
    """One step of Lloyd: cells of the atoms, their masses, the cost of the atoms, and the means of the cells.

    An empty cell's atom is moved to the point that is farthest from its own atom, if there is one at a distance.
    """
    near, cell = squared_distances(atoms, points).min(0)
    count = torch.bincount(cell, minlength=len(atoms)).double()
    total = torch.zeros_like(atoms).index_add_(0, cell, points)
    means = torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], atoms)
    far = near.argsort(descending=True).tolist()
    for empty, index in zip((count == 0).nonzero()[:, 0].tolist(), far, strict=False):
        if near[index] > 0:
            means[empty] = points[index]
    return means, count / len(points), float(near.mean())


def _uniform(points: Tensor, atoms: Tensor) -> tuple[Tensor, Tensor, float]:
    r"""One step of balanced k-means: exact transport of the atoms to the points, then b_k = K \sum_i T_ki x_i ([1], Eq. 8)."""
    os.environ.setdefault(
        "POT_BACKEND_DISABLE_PYTORCH", "1"
    )  # POT looks for every array library it knows; NumPy will do
    import ot

    k, count = len(atoms), len(points)
    mass = np.full(k, 1 / k)
    cost = squared_distances(atoms, points).numpy()
    plan, log = ot.emd(mass, np.full(count, 1 / count), cost, numItermax=10_000_000, log=True)
    if log["warning"]:
        raise WmddError(f"the transport problem of {k} x {count} was not solved: {log['warning']}")
    return k * torch.from_numpy(plan) @ points, torch.from_numpy(mass), float(log["cost"])
