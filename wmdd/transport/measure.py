r"""Measures, their barycenter, and exact transport between two of them.

A measure is a set of points x [N, D] with masses a [N] that sum to 1; a barycenter has K atoms b [K, D] with weights w [K].
Exact transport solves the linear program

    W_2^2 = min_{T >= 0, T 1 = w, T' 1 = a} \sum_ki T_ki ||b_k - x_i||^2
          = max_{f, g}  w.f + a.g   subject to  f_k + g_i <= ||b_k - x_i||^2

by POT's network simplex [1].

References:
    [1] Flamary et al.: POT: Python Optimal Transport, JMLR 22(78), 2021; Bonneel et al. 2011 for the network simplex.
"""

import os
import sys
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmdd.base.errors import WmddError

Points = Tensor | np.ndarray
BLOCK = 2**20  # numbers that are read at a time


@dataclass(frozen=True)
class Barycenter:
    """K weighted atoms and how good they are.

    Attributes:
        atoms: [K, D].
        weights: [K], not negative, sum 1.
        cost: W2^2 between the atoms and the measure (the weighted mean of it over several measures), always by exact transport.
        trace: the cost after each step; never rises for our own solvers, may rise for the published ones.
        gap: share by which the solver's own plan was dearer than the exact one (0 where it was exact).
        seconds: spent, on the wall clock.
    """

    atoms: Tensor
    weights: Tensor
    cost: float
    trace: list[float] = field(default_factory=list)
    gap: float = 0.0
    seconds: float = 0.0

    @property
    def effective_atoms(self) -> float:
        r"""Return 1 / \sum_k w_k^2: K for equal weights, 1 when one atom has all the mass."""
        return float(1 / self.weights.double().square().sum())


@dataclass(frozen=True)
class Transport:
    """An optimal plan T [K, N], its cost, and the dual potentials f [K] and g [N]; all float64 on the CPU."""

    plan: Tensor
    cost: float
    f: Tensor
    g: Tensor


def as_points(points: Points, what: str = "the measure") -> Tensor:
    """Return points [N, D] as a floating-point tensor.

    Raises:
        WmddError: there are no points, or some are not finite numbers.
    """
    x = torch.as_tensor(points)
    if x.ndim != 2 or len(x) == 0 or x.shape[1] == 0:
        raise WmddError(f"{what} needs points [N, D] with N and D at least 1, got {tuple(x.shape)}")
    if x.is_complex():
        raise WmddError(f"{what} holds complex numbers; give real numbers, such as both parts side by side")
    if not x.is_floating_point():
        x = x.double()
    # A sum is finite only when every term is, up to overflow; so the slow look is rarely taken.
    if not bool(torch.isfinite(_sum(x))) and not bool(torch.isfinite(x).all()):
        row = int((~torch.isfinite(x)).any(1).nonzero()[0])
        raise WmddError(f"{what} holds NaN or infinity, first in point {row}; check where the points come from")
    return x


def _sum(points: Tensor) -> Tensor:
    """Return the sum of all numbers; of half precision, which overflows early, in float32 and without a copy of the points."""
    if points.element_size() > 2:
        return points.sum()
    return torch.stack([part.sum(dtype=torch.float32) for part in points.split(max(1, BLOCK // points.shape[1]))]).sum()


def check_k(k: int) -> None:
    """Refuse a number of atoms below 1."""
    if k < 1:
        raise WmddError(f"a barycenter needs at least one atom, not {k}")


def check_squares(points: Tensor, what: str = "the measure") -> None:
    """Refuse points whose squares, in the type that is computed in, overflow when they are summed; no copy is made of them."""
    kind = torch.float64 if points.dtype == torch.float64 else torch.float32
    blocks = points.detach().split(max(1, BLOCK // points.shape[1]))
    norms = torch.stack([torch.linalg.vector_norm(block.to(kind)) for block in blocks])
    if not bool(torch.isfinite(torch.linalg.vector_norm(norms))):
        raise WmddError(f"the squared distances of {what} overflow; scale the points down or give float64")


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return ||a_i - b_j||^2, [A, B], centred first so that little is lost to cancellation."""
    centre = b.mean(0)
    return _distances(a - centre, b - centre)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.addmm(a.square().sum(1)[:, None] + b.square().sum(1), a, b.T, alpha=-2).clamp_(min=0)


def exact(
    weights: Tensor,
    masses: Tensor,
    cost: Tensor,
    start: tuple[Tensor, Tensor] | None = None,
    iterations: int = 10_000_000,
) -> Transport:
    """Return the optimal plan between `weights` [K] and `masses` [N] at `cost` [K, N], by network simplex in float64.

    Args:
        weights: of the atoms.
        masses: of the points; both sum to 1.
        cost: any type and device.
        start: dual potentials (f, g) to begin from; near the optimum they save most of the pivots.
        iterations: pivots, at most.

    Raises:
        WmddError: the program was not solved.
    """
    a, b, m = (as_numpy(x) for x in (weights, masses, cost))
    scale = float(np.abs(m).max()) or 1.0  # the solver's tolerances are absolute
    warm = None if start is None else tuple(as_numpy(x) / scale for x in start)
    plan, log = pot().emd(a / a.sum(), b / b.sum(), m / scale, numItermax=iterations, log=True, potentials_init=warm)
    if log["warning"]:
        raise WmddError(f"the transport problem of {len(a)} x {len(b)} was not solved: {log['warning']}")
    f, g = torch.from_numpy(log["u"] * scale), torch.from_numpy(log["v"] * scale)
    return Transport(torch.from_numpy(plan), float(log["cost"]) * scale, f, g)


def transport_cost(atoms: Points, weights: Tensor, points: Points) -> float:
    r"""Return W2^2 between \sum_k w_k delta_{b_k} and the uniform measure on the points, exactly, in float64.

    On one core, K = 50 and D = 512 take 0.02 s for N = 1,300, 0.15-0.3 s for 5,000 and 1-4 s for 50,000; where 50,000 points
    form far clusters whose masses the weights don't fit, up to 40 s, as the network simplex alone. Memory: some ten arrays
    [K, N] of float64.

    Args:
        atoms: b [K, D].
        weights: w [K], not negative, some positive; divided by their sum.
        points: x [N, D]; read by the block, in any type.

    Raises:
        WmddError: the arguments are no atoms, weights and points of one dimension, or the transport problem was not solved.
    """
    from wmdd.transport.plans import balanced  # which is built on this module

    b, x = as_points(atoms, "the set of atoms").detach(), as_points(points).detach()
    w = torch.as_tensor(weights).detach()
    if w.shape != (len(b),) or b.shape[1] != x.shape[1]:
        shapes = ", ".join(str(tuple(part.shape)) for part in (b, w, x))
        raise WmddError(f"atoms [K, D], weights [K] and points [N, D] do not fit each other: {shapes}")
    w = w.double().cpu()
    if not (bool((w >= 0).all()) and 0 < float(w.sum()) < np.inf):
        raise WmddError("weights must be finite, not negative and not all zero")
    b, w = b.double().cpu()[w > 0], w[w > 0] / w.sum()
    centre = b.mean(0)
    rows = max(1, BLOCK // x.shape[1])
    cost = torch.cat([_distances(b - centre, part.double().cpu() - centre) for part in x.split(rows)], 1)
    if not bool(torch.isfinite(cost.sum())):
        raise WmddError("the squared distances of the atoms and points overflow; scale them down")
    return balanced(cost, weights=w).cost


def as_numpy(x: Tensor) -> np.ndarray:
    """Return a float64 array on the CPU, as POT takes it."""
    return np.ascontiguousarray(x.detach().double().cpu().numpy())


@cache
def pot() -> Any:
    """Import POT's linear programs without the rest of it, which takes a second or two: scikit-learn, pandas, networkx.

    POT would look for every array library that it knows; NumPy will do.
    """
    os.environ.setdefault("POT_BACKEND_DISABLE_PYTORCH", "1")
    spec = find_spec("ot")
    if "ot" in sys.modules or spec is None:
        return import_module("ot.lp")
    sys.modules["ot"] = module_from_spec(spec)  # empty, while its part `lp` is imported
    try:
        return import_module("ot.lp")
    finally:
        del sys.modules["ot"]
