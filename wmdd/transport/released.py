r"""The barycenter as WMDD's released code computes it; kept to be compared with, not to be used.

References:
    [1] Liu et al.: Dataset Distillation via the Wasserstein Metric, arXiv 2311.18531, ICCV 2025; its repository Liu-Hy/WMDD.
    [2] Flamary et al.: POT: Python Optimal Transport, JMLR 22(78), 2021.
"""

import time

import torch
from torch import Tensor

from wmdd.base.errors import WmddError
from wmdd.transport.cuturi_doucet import check_weights, like
from wmdd.transport.measure import Barycenter, Points, as_numpy, as_points, check_k, exact, pot, squared_distances


def released(points: Points, k: int, generator: torch.Generator, weights: str = "free") -> Barycenter:
    r"""Return what the released code of [1] computes for one measure, all points of the same mass.

    `uniform`, as its run script asks: POT's [2] `free_support_barycenter` (Newton steps with theta = 1) from N(0, 1) noise.
    `free`: from the same noise ten rounds of

        1: w from 1/K by w <- w exp(-10 f), normalised, with the exact potentials f at cost C / max C, 100 times at most,
           or until |w - previous w|_1 < 1e-9
        2: stop, with the old w, if |w - w of the last round|_2 < 1e-6
        3: b <- 0.8 b + 0.2 free_support_barycenter(x, from b, with w)

    POT stops after 100 steps, or when \sum_k ||move of b_k||^2 < 1e-7, in the square of the units of the points.

    Why `free` stays near its start: after ten rounds 0.8^10 = 10.7 % of the noise is left in the atoms, whatever the
    points. At K = 1 the weights cannot change, so line 2 stops after one round at 0.8 noise + 0.2 mean. And the noise has no
    regard for where and how large the points are, while the maximum of C, which sets the size of the step, grows with both.

    A weight that falls to 0 makes line 3 divide by 0, and the released code goes on with NaN; this one refuses. Departures:
    none in the result, but for the random numbers (`generator` in place of NumPy's unseeded ones).

    Args:
        points: [N, D].
        k: atoms.
        generator: draws the noise.
        weights: `free` or `uniform`.

    Returns:
        Atoms and weights in the type and on the device of `points`; trace: the cost after each round.

    Raises:
        WmddError: the points or k are not usable, or a weight fell to 0.
    """
    began = time.perf_counter()
    given = as_points(points)
    check_k(k)
    check_weights(weights)
    x = given.detach().double().cpu()
    masses = torch.full((len(x),), 1 / len(x), dtype=torch.float64)
    w = torch.full((k,), 1 / k, dtype=torch.float64)
    atoms = torch.randn(k, x.shape[1], generator=generator, dtype=torch.float64)
    trace: list[float] = []
    if weights == "uniform":
        atoms = _free_support(x, masses, atoms, w)
        trace.append(exact(w, masses, squared_distances(atoms, x)).cost)
    for turn in range(10 if weights == "free" else 0):
        old, w = w, _released_weights(squared_distances(atoms, x), masses)  # 1
        if turn > 0 and float((w - old).norm()) < 1e-6:  # 2
            w = old
            break
        atoms = 0.8 * atoms + 0.2 * _free_support(x, masses, atoms, w)  # 3
        trace.append(exact(w, masses, squared_distances(atoms, x)).cost)
    return like(given, Barycenter(atoms, w, trace[-1], trace, seconds=time.perf_counter() - began))


def _released_weights(cost: Tensor, masses: Tensor) -> Tensor:
    w = torch.full((len(cost),), 1 / len(cost), dtype=torch.float64)
    cost = cost / cost.max()
    for _ in range(100):
        old, w = w, w * (-10 * exact(w, masses, cost).f).exp()
        w = w / w.sum()
        if float((w - old).abs().sum()) < 1e-9:
            break
    return w


def _free_support(points: Tensor, masses: Tensor, atoms: Tensor, weights: Tensor) -> Tensor:
    """Return POT's free_support_barycenter with its defaults, as the released code calls it."""
    if bool((weights < torch.finfo(weights.dtype).tiny).any()):
        index = int(weights.argmin())
        raise WmddError(
            f"the released recipe cannot go on: the weight of atom {index} fell to 0, by which it divides; "
            "use the solver cuturi-doucet, whose weights stay positive, or uniform weights"
        )
    moved = pot().free_support_barycenter([as_numpy(points)], [as_numpy(masses)], as_numpy(atoms), b=as_numpy(weights))
    return torch.from_numpy(moved)
