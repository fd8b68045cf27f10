r"""Uniform weights: the W2 barycenter with K atoms of mass 1/K each, that is balanced k-means.

With the optimal atoms b_k = K \sum_i T_ki x_i of a plan T [K, N] (rows sum to 1/K, columns to 1/N), the cost of T is

    F(T) = 1/N \sum_i ||x_i||^2 - 1/K \sum_k ||b_k||^2        (x centred)

a concave function on a polytope. The classical alternation ([1] Algorithm 2, balanced k-means [2]) linearises it: T <- the
exact plan for the costs d_ki = ||b_k - x_i||^2, b <- the means of T; no step raises F. Like Lloyd's it stops too early where
cells are small, because a point pulls the mean of its own cell towards itself. Exchanging points i and j of cells a and b,
with n = N/K points each, changes N F by

    d_bi - d_ai + d_aj - d_bj - 2/n ||x_i - x_j||^2,      and  ||x_i - x_j||^2 ~ d_bi + d_bj ~ d_ai + d_aj

so that we solve the exact plan for the corrected costs (1 - beta/n) d_ki + 2 beta/n d_ki N T_ki, with beta = 1 as long as that
lowers F, then 1/2, then 0, the classical step. This is ours; it is Hartigan's correction (`wmdd.transport.cells`) for balanced
cells, and on features of 1,300 points in 512 dimensions it ends 1-4 % below the classical alternation.

On a line optimal plans are monotone, so the k-th atom is the mean of the k-th of K quantile groups, whatever the start [3].

References:
    [1] Cuturi, Doucet: Fast Computation of Wasserstein Barycenters, ICML 2014, Algorithm 2 and Eq. 8.
    [2] Bennett, Bradley, Demiriz: Constrained K-Means Clustering, MSR-TR-2000-65.
    [3] Peyré, Cuturi: Computational Optimal Transport, 2019, Remark 2.30.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from wmdd.transport.cells import Cells
from wmdd.transport.measure import Barycenter
from wmdd.transport.plans import Plan, balanced

BETAS = ((1.0, torch.inf), (0.5, 30), (0.0, torch.inf))  # strengths of the correction, and up to how many points a cell


@dataclass
class _Step:
    """A plan with its atoms b [K, D] and cost F."""

    plan: Plan
    atoms: Tensor
    cost: float


def balance(cells: Cells, k: int, steps: int, tolerance: float) -> list[Barycenter]:
    """Return the uniform barycenter of each measure, begun from the means of free cells (R = 1).

    Args:
        cells: of K' <= K atoms; a measure with fewer points than atoms gives K' < K, and atoms are repeated.
        k: atoms.
        steps: exact transport problems, at most.
        tolerance: stop when F falls by less than this share of itself.
    """
    barycenters = []
    row = torch.arange(k, device=cells.label.device) % cells.sums.shape[2]
    for c, count in enumerate(cells.measures.count.tolist()):
        x = cells.measures.x[c, :count]
        if x.shape[1] == 3:  # one dimension
            best, costs = _on_a_line(x, k)
        else:
            best, costs = _descend(x, cells.means[c, 0][row], steps, tolerance)
        atoms = (best.atoms.double() + cells.measures.centre[c]).cpu()
        weights = torch.full((k,), 1 / k, dtype=torch.float64)
        barycenters.append(Barycenter(atoms, weights, best.cost, costs, best.plan.gap))
    return barycenters


def _on_a_line(x: Tensor, k: int) -> tuple[_Step, list[float]]:
    """Return the optimum of points of one dimension, x [N, 3], and its cost."""
    n = len(x)
    order = x[:, 0].argsort(stable=True)
    cuts = torch.cat([torch.arange(n) * k, torch.arange(k + 1) * n]).unique().to(x.device)  # in units of 1 / (N K)
    row, column, mass = cuts[:-1] // n, order[cuts[:-1] // k], cuts.diff().double() / (n * k)
    plan = Plan(row, column, mass, 0.0, torch.zeros(k))
    atoms, _ = _means(x, plan, k)
    cost = float((mass * (x[column, 0] - atoms[row, 0]).double().square()).sum())
    return _Step(plan, atoms, cost), [cost]


def _descend(x: Tensor, atoms: Tensor, steps: int, tolerance: float) -> tuple[_Step, list[float]]:
    """Alternate until the cost settles; return the last step, its cost exact, and the costs."""
    n = len(x) / len(atoms)
    now = _step(x, atoms, None, 0.0, n)
    costs = [now.cost]
    for beta in [b for b, most in BETAS if n < most]:
        while len(costs) < steps:
            after = _step(x, now.atoms, now.plan, beta, n)
            if beta == 0 and now.cost - after.cost <= tolerance * now.cost:
                # this plan was solved at the costs of the atoms that are returned, so its cost is W2^2
                return _Step(after.plan, now.atoms, after.plan.cost), [*costs, after.plan.cost]
            fell = now.cost - after.cost
            if fell > 0:
                now = after
                costs.append(now.cost)
            if fell <= tolerance * now.cost:
                break
    last = balanced(_costs(x, now.atoms), now.plan)
    return _Step(last, now.atoms, last.cost), [*costs, last.cost]


def _step(x: Tensor, atoms: Tensor, plan: Plan | None, beta: float, n: float) -> _Step:
    """Solve for the plan at given atoms, corrected for the plan before, and return it with its own atoms."""
    cost = _costs(x, atoms)
    if plan is not None and beta > 0:
        own = cost[plan.row, plan.column] * plan.mass.to(cost.dtype) * (2 * beta / n * len(x))
        cost *= 1 - beta / n
        cost.index_put_((plan.row, plan.column), own, accumulate=True)
    solved = balanced(cost, plan)
    return _Step(solved, *_means(x, solved, len(atoms)))


def _costs(x: Tensor, atoms: Tensor) -> Tensor:
    """Return ||b_k - x_i||^2, [K, N]."""
    left = torch.cat([atoms * -2, torch.ones_like(atoms[:, :1]), atoms.square().sum(1, keepdim=True)], 1)
    return (left @ x.T).clamp_(min=0)


def _means(x: Tensor, plan: Plan, k: int) -> tuple[Tensor, float]:
    r"""Return b_k = K \sum_i T_ki x_i and F."""
    rows = x.index_select(0, plan.column) * (plan.mass.to(x.dtype) * k)[:, None]
    atoms = x.new_zeros(k, x.shape[1]).index_add_(0, plan.row, rows)[:, :-2]
    total = float(x[:, -2].mean(dtype=torch.float64))
    return atoms, max(0.0, total - float(atoms.square().sum(dtype=torch.float64)) / k)
