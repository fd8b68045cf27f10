r"""Exact plans between K atoms and N equal points, fast when K is much smaller than N.

    min \sum_ki T_ki c_ki   over   T >= 0, T 1 = w, T' 1 = 1/N        (w = 1/K by default)

The dual has only K unknowns, the prices g: max_g \sum_k w_k g_k + 1/N \sum_i min_k (c_ki - g_k). At good prices nearly
every point has one clear favourite and only the few between two cells are in question. So:

1. Prices from the smoothed dual (min replaced by a softmin of width eps: log-domain Sinkhorn's semi-dual [1] Section 5.3),
   maximised by damped Newton steps in K unknowns while eps shrinks; or those of a similar problem solved before.
2. The points with clear favourites are given to them; the linear program of the others is solved exactly (network simplex).
3. Its prices must not make any given point prefer another cell. Points that would are freed and step 2 is repeated. In the
   end the plan satisfies complementary slackness with the prices, so it is optimal for the whole problem, not only nearly.

All the work on N points is products and reductions, on the CPU or a GPU; the linear program is small, on the CPU.

References:
    [1] Peyré, Cuturi: Computational Optimal Transport, 2019, Sections 4.4 and 5.3.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wmdd.transport.measure import exact

DIRECT = 300_000  # costs up to which the whole linear program is solved at once,
CLEAR = 100  # unless an atom has so many points that most of them are clear
UNSURE = 8  # points an atom that are left to the linear program at first
CHEAP = 32  # atoms up to which a Newton step costs less than it saves when there are prices to begin from
LEVELS = (3e-1, 1e-1, 3e-2, 1e-2, 3e-3)  # eps, as shares of the spread of the costs of a point
NEWTON = 4  # steps a level
REACH = 3.0  # eps that a Newton step moves a price, at most: between far clusters of points the smoothed dual is nearly linear
ROUNDS = 50


@dataclass(frozen=True)
class Plan:
    r"""An exact plan.

    Attributes:
        row, column, mass: its entries T_ki > 0, on the device of the costs.
        cost: \sum_ki T_ki c_ki.
        prices: g [K].
        gap: to the dual, as a share of the cost.
    """

    row: Tensor
    column: Tensor
    mass: Tensor
    cost: float
    prices: Tensor
    gap: float = 0.0


def balanced(cost: Tensor, start: Plan | None = None, weights: Tensor | None = None) -> Plan:
    """Return the optimal plan for costs [K, N].

    Args:
        cost: on any device.
        start: the plan of a similar problem, for its prices.
        weights: w [K], positive, sum 1; equal by default.

    Raises:
        WmddError: a linear program was not solved.
    """
    k, n = cost.shape
    if k == 1:
        column = torch.arange(n, device=cost.device)
        mass = torch.full((n,), 1 / n, dtype=torch.float64, device=cost.device)
        return Plan(torch.zeros_like(column), column, mass, float(cost.mean(dtype=torch.float64)), torch.zeros(1))
    w = torch.full((k,), 1 / k, dtype=torch.float64) if weights is None else weights.double().cpu()
    if cost.numel() <= DIRECT and n < CLEAR * k:
        return _whole(cost, w)
    if start is None:
        return _reduced(cost, prices(cost, weights=w), w)
    return _reduced(cost, prices(cost, start.prices, w) if k <= CHEAP else start.prices, w)


def _whole(cost: Tensor, weights: Tensor) -> Plan:
    n = cost.shape[1]
    solved = exact(weights, torch.full((n,), 1 / n, dtype=torch.float64), cost)
    row, column = solved.plan.nonzero(as_tuple=True)
    place = (row.to(cost.device), column.to(cost.device), solved.plan[row, column].to(cost.device))
    return Plan(*place, solved.cost, solved.f)


def prices(cost: Tensor, start: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
    """Return prices g [K], float64 on the device of the costs, that nearly solve the dual, by Newton on the smoothed dual."""
    k = len(cost)
    low = cost.amin(0)
    spread = float((cost.mean(0) - low).mean())
    g = torch.zeros(k, dtype=cost.dtype, device=cost.device) if start is None else start.to(cost)
    w = torch.full_like(g, 1 / k) if weights is None else weights.to(g)
    if spread <= 0:
        return g.double()
    for level in LEVELS if start is None else LEVELS[-1:]:
        g = _newton(cost, g, w, level * spread, NEWTON if start is None else 1)
    return g.double()


def _newton(cost: Tensor, g: Tensor, w: Tensor, eps: float, steps: int) -> Tensor:
    r"""Maximise \sum_k w_k g_k - eps / N \sum_i log \sum_k exp((g_k - c_ki) / eps) by Newton steps with halving."""
    k, n = cost.shape
    value, share = _smoothed(cost, g, w, eps)
    for _ in range(steps):
        mass = share.mean(1)
        gradient = w - mass
        if float(gradient.abs().sum()) < 1e-3:
            break
        hessian = (torch.diag(mass) - share @ share.T / n).double()
        hessian += 1e-6 / k * torch.eye(k, dtype=torch.float64, device=g.device)
        direction = torch.linalg.solve(hessian, gradient.double())
        direction = (eps * direction * (REACH / direction.abs().max()).clamp(max=1)).to(g.dtype)
        for _ in range(8):
            value_new, share_new = _smoothed(cost, g + direction, w, eps)
            if value_new > value:
                break
            direction = direction / 2
        else:
            break
        g, value, share = g + direction, value_new, share_new
    return g


def _smoothed(cost: Tensor, g: Tensor, w: Tensor, eps: float) -> tuple[float, Tensor]:
    """Return the smoothed dual at g, and the shares [K, N] of each point."""
    score = (g[:, None] - cost).div_(eps)
    top = score.amax(0)
    share = score.sub_(top).exp_()
    total = share.sum(0)
    value = float((w.double() * g).sum() - eps * (top + total.log()).mean(dtype=torch.float64))
    return value, share.div_(total)


def _reduced(cost: Tensor, g: Tensor, weights: Tensor) -> Plan:
    """Solve exactly, with linear programs of the points that have no clear favourite at prices g."""
    k, n = cost.shape
    left = cost - g.to(cost)[:, None]
    best, favourite = left.min(0)
    margin = left.scatter(0, favourite[None], torch.inf).amin(0) - best
    order = margin.argsort()
    free = torch.zeros(n, dtype=torch.bool, device=cost.device)
    free[order[: UNSURE * k]] = True
    room = (weights * n + 1e-9).long().to(cost.device)
    largest = float(cost.max())
    for _ in range(ROUNDS):
        free |= _overfull(favourite, free, order, room)
        plan, f = _program(cost, favourite, free, weights)
        left = cost - f.to(cost)[:, None]
        # the free points are optimal among themselves; a given one must not prefer another cell
        regret = left.gather(0, favourite[None])[0] - left.amin(0)
        wrong = (regret > 1e-6 * cost.gather(0, favourite[None])[0].abs() + 1e-12 * largest) & ~free
        if not bool(wrong.any()):
            break
        free |= wrong
    else:  # not seen; the whole program needs no prices
        return _whole(cost, weights)
    dual = float(f @ weights) + float(left.amin(0).mean(dtype=torch.float64))
    excess = plan.cost - dual
    rounding = 1e-12 * float(cost.abs().mean(dtype=torch.float64))  # a cost of 0 is found as a little more
    return replace(plan, gap=excess / plan.cost if excess > rounding else 0.0)


def _overfull(favourite: Tensor, free: Tensor, order: Tensor, room: Tensor) -> Tensor:
    """Return the least certain points to free of cells that were given more than the `room` [K] they have."""
    n, k = len(favourite), len(room)
    given = torch.bincount(favourite[~free], minlength=k)
    surplus = given - room
    rank = torch.empty_like(order)
    rank[order] = torch.arange(n, device=order.device)
    # the rank of a given point within its cell, the least certain first
    key = favourite * n + rank
    key = key.masked_fill(free, k * n)
    place = key.argsort()
    cell = favourite[place]
    begin = torch.cumsum(given, 0) - given
    within = torch.arange(n, device=order.device) - begin[cell]
    out = torch.zeros_like(free)
    out[place] = (within < surplus[cell]) & ~free[place]
    return out


def _program(cost: Tensor, favourite: Tensor, free: Tensor, weights: Tensor) -> tuple[Plan, Tensor]:
    """Give each point that is not free to its favourite and solve for the free ones exactly."""
    k, n = cost.shape
    given, rest = (~free).nonzero()[:, 0], free.nonzero()[:, 0]
    used = torch.bincount(favourite[given], minlength=k).double().cpu()
    left = weights - used / n
    some = left > 1e-12 / k
    masses = torch.full((len(rest),), 1 / n, dtype=torch.float64)
    solved = exact(left[some] / left[some].sum(), masses / masses.sum(), cost[some.to(cost.device)][:, rest])
    f = torch.full((k,), -torch.inf, dtype=torch.float64)
    f[some] = solved.f
    cell = some.nonzero()[:, 0]
    row, column = solved.plan.nonzero(as_tuple=True)
    mass = solved.plan[row, column] * float(masses.sum())
    device = cost.device
    rows = torch.cat([favourite[given], cell[row].to(device)])
    columns = torch.cat([given, rest[column.to(device)]])
    share = torch.cat([torch.full((len(given),), 1 / n, dtype=torch.float64), mass]).to(device)
    total = float((cost[rows, columns].double() * share).sum())
    return Plan(rows, columns, share, total, f), f
