r"""The barycenter by Cuturi and Doucet's alternation [1], which WMDD [2] prescribes.

For measures mu_m with points x_m [N_m, D] and masses a_m [N_m], and shares lambda_m [M] that sum to 1, minimise

    F(b, w) = \sum_m lambda_m W_2^2(\sum_k w_k delta_{b_k}, mu_m)

over the atoms b [K, D] and the weights w [K]. In turn ([1], Algorithm 2; [2], Algorithm 3): over w by mirror descent ([1],
Algorithm 1; [2], Algorithm 2), and over b by the Newton step of [1], Eq. 8, with the optimal plans T_m [K, N_m],

    b <- (1 - theta) b + theta \sum_m lambda_m diag(1/w) T_m x_m,    theta = 1.

For fixed w, F(b) is \sum_k w_k ||b_k||^2 plus a concave function of b, so F falls all the way along the Newton step: of the
theta in [0, 1] that the line search of [1] may choose from, 1 is the best, and no step raises F.

[1] writes X for b, a for w, b_i for a_m, Y_i for x_m and 1/N for lambda_m.

References:
    [1] Cuturi, Doucet: Fast Computation of Wasserstein Barycenters, ICML 2014.
    [2] Liu et al.: Dataset Distillation via the Wasserstein Metric, arXiv 2311.18531, ICCV 2025.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from wmdd.base.errors import WmddError
from wmdd.transport.measure import Barycenter, Points, Transport, as_points, check_k, exact, squared_distances

FLOOR = 1e-12  # no learned weight is smaller: far below any mass that matters, far above the rounding of a plan
STAGES = 6  # quarterings of the mirror descent's step, to a four-thousandth
ITERATIONS = 10  # of the mirror descent in a round, at most


def weights_by_mirror_descent(
    costs: list[Tensor],
    masses: list[Tensor],
    lambdas: Tensor,
    step: float = 1.0,
    iterations: int = 100,
    tolerance: float = 1e-3,
    start: Tensor | None = None,
) -> tuple[Tensor, list[float]]:
    r"""Return the weights [K] that minimise F(w), the atoms being fixed ([1], Algorithm 1), and F(a) at each iteration.

    Accelerated mirror descent on the simplex with the Kullback-Leibler prox. From a^ = a~ = 1/K and t = 1,

        1: beta = (t + 1) / 2,  a = (1 - 1/beta) a^ + (1/beta) a~
        2: alpha = \sum_m lambda_m alpha_m, where alpha_m [K] is the dual optimum f of transporting a to measure m
        3: a~ <- a~ exp(-t0 beta alpha), divided by its sum
        4: a^ <- (1 - 1/beta) a^ + (1/beta) a~,  t <- t + 1

    Departures from [1]: a~ is kept as its logarithm and no entry falls below `FLOOR`, so that none becomes 0. Returned is
    the cheapest a that was met, not the last a^: with exact duals F has kinks, and a^ need not descend. [1] stops "when
    converged"; here the duals of each step bound F(w) >= \sum_m lambda_m (w.f_m + a_m.g_m) for all w. Each such bound, and
    the mean of all, weighted as line 4 weighs a~, is least at a vertex; the descent stops within `tolerance` of the best.

    Args:
        costs: C_m [K, N_m]; divided by their spread S = \sum_m lambda_m \sum_i a_mi (max_k C_mki - min_k C_mki).
        masses: a_m [N_m], positive, sum 1.
        lambdas: [M], sum 1.
        step: t0, in units of 1 / S; near 1 F falls fastest, but may swing about a kink where 0.3 still closes the gap.
        iterations: at most; each solves one transport problem a measure.
        tolerance: of the gap between F and its lower bound, in units of S.
        start: [K], float64, where a^ and a~ begin instead of 1/K; the result is never dearer.

    Raises:
        WmddError: a transport problem was not solved.
    """
    spread = _spread(costs, masses, lambdas)
    weights = _equal(len(costs[0])) if start is None else start
    if spread == 0:  # one atom, or all in one place: nothing to choose
        return weights, [_mean(lambdas, [float(cost[0] @ mass) for cost, mass in zip(costs, masses, strict=True)])]
    costs = [cost / spread for cost in costs]
    log_mirror = _floored(weights.log())  # log a~
    average = log_mirror.exp()  # a^
    bound, lower = torch.zeros_like(average), -math.inf
    plans, trace = list[Transport](), list[float]()
    for t in range(1, iterations + 1):
        beta = (t + 1) / 2  # 1
        a = average.lerp(log_mirror.exp(), 1 / beta)
        plans = _plans(a, masses, costs, plans)  # 2
        # A shift of alpha cancels in line 3. With this one F(a) = a.alpha, and F(w) >= w.alpha for all w.
        alpha = sum(share * (plan.f + mass @ plan.g) for share, plan, mass in zip(lambdas, plans, masses, strict=True))
        trace.append(spread * float(a @ alpha))
        if trace[-1] == min(trace):
            weights = a
        bound = bound.lerp(alpha, 1 / beta)
        lower = max(lower, float(bound.min()), float(alpha.min()))
        if min(trace) / spread - lower <= tolerance:
            break
        log_mirror = _floored(log_mirror - step * beta * alpha)  # 3
        average = average.lerp(log_mirror.exp(), 1 / beta)  # 4
    return weights, trace


def alternate(
    points: list[Tensor],
    masses: list[Tensor],
    lambdas: Tensor,
    atoms: Tensor,
    free: bool,
    rounds: int,
    tolerance: float,
) -> Barycenter:
    r"""Return the barycenter that alternation from `atoms` reaches ([1], Algorithm 2).

    Departures from [1]: each mirror descent starts from the weights of the round before, so that it can only lower F and a few
    iterations of it are enough (10 a round end within a percent of 100). F is piecewise linear in w, where a step of one length
    comes no nearer than its length, so whenever F has settled t0 is quartered, `STAGES` times. And diag(1/w) is
    taken of the sums of the rows of T, so that no rounding of a small mass is blown up; an atom without mass stays.

    Args:
        points: x_m [N_m, D], float64 on the CPU.
        masses: a_m [N_m], positive, sum 1.
        lambdas: [M], sum 1.
        atoms: b [K, D] to start from.
        free: learn the weights; or keep 1/K each.
        rounds: at most.
        tolerance: F has settled when it falls by less than this share of itself.

    Returns:
        The cheapest atoms and weights that were met; trace: F at each round.
    """
    began = time.perf_counter()
    weights, step = _equal(len(atoms)), 1.0
    stages = STAGES if free and len(atoms) > 1 else 0
    trace: list[float] = []
    while True:
        costs = [squared_distances(atoms, x) for x in points]
        if free:
            weights, _ = weights_by_mirror_descent(costs, masses, lambdas, step, ITERATIONS, tolerance, weights)
        plans = _plans(weights, masses, costs)
        trace.append(_mean(lambdas, [plan.cost for plan in plans]))
        if trace[-1] == min(trace):
            best = atoms, weights, trace[-1]
        if len(trace) > 1 and trace[-2] - trace[-1] <= tolerance * trace[-2]:
            stages, step = stages - 1, step / 4
        if stages < 0 or len(trace) == rounds:
            return Barycenter(*best, trace, seconds=time.perf_counter() - began)
        atoms = newton_step(points, plans, lambdas, atoms)


def cuturi_doucet(
    points: Points,
    k: int,
    generator: torch.Generator,
    weights: str = "free",
    rounds: int = 300,
    tolerance: float = 1e-6,
) -> Barycenter:
    """Return the barycenter of one measure, all points of the same mass, by `alternate` from k of its points.

    Args:
        points: [N, D].
        k: atoms; beyond N the points are drawn again, after each was drawn once.
        generator: draws the points.
        weights: `free` or `uniform` (1/K each).
        rounds: of the alternation, at most ([2]: 10).
        tolerance: the cost has settled when it falls by less than this share of itself.

    Returns:
        Atoms and weights in the type and on the device of `points`; trace: the cost at each round.

    Raises:
        WmddError: the points, k or a setting are not usable.
    """
    given = as_points(points)
    check_k(k)
    check_weights(weights)
    if rounds < 1:
        raise WmddError(f"rounds must be at least 1, got {rounds}")
    x = given.detach().double().cpu()
    masses, one = _equal(len(x)), torch.ones(1, dtype=torch.float64)
    start = draw(x, masses, k, generator)
    return like(given, alternate([x], [masses], one, start, weights == "free", rounds, tolerance))


def check_weights(weights: str) -> None:
    """Refuse a word for the weights that is not known."""
    if weights not in ("free", "uniform"):
        raise WmddError(f"weights are free or uniform, not {weights}")


def draw(points: Tensor, masses: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Draw k points [K, D] by their masses, without repetition until every point is drawn."""
    order = torch.multinomial(masses, min(k, len(points)), generator=generator)
    return points[order[torch.arange(k) % len(order)]]


def like(points: Tensor, barycenter: Barycenter) -> Barycenter:
    """Return the barycenter in the type and on the device of the points."""
    return replace(barycenter, atoms=barycenter.atoms.to(points), weights=barycenter.weights.to(points))


def newton_step(points: list[Tensor], plans: list[Transport], lambdas: Tensor, atoms: Tensor) -> Tensor:
    r"""Return the atoms that are best for the plans: \sum_m lambda_m diag(1/w) T_m x_m ([1], Eq. 8)."""
    weighted = [share * plan.plan for share, plan in zip(lambdas, plans, strict=True)]
    mass = sum(plan.sum(1) for plan in weighted)
    total = sum(plan @ x for plan, x in zip(weighted, points, strict=True))
    return torch.where(mass[:, None] > 0, total / mass[:, None], atoms)


def _plans(
    weights: Tensor, masses: list[Tensor], costs: list[Tensor], before: Sequence[Transport] = ()
) -> list[Transport]:
    """Return the exact plan to each measure, begun from the potentials of the plans before."""
    starts: Sequence[tuple[Tensor, Tensor] | None] = [(plan.f, plan.g) for plan in before] or [None] * len(costs)
    return [exact(weights, mass, cost, start) for mass, cost, start in zip(masses, costs, starts, strict=True)]


def _equal(count: int) -> Tensor:
    return torch.full((count,), 1 / count, dtype=torch.float64)


def _spread(costs: list[Tensor], masses: list[Tensor], lambdas: Tensor) -> float:
    ranges = [cost.amax(0) - cost.amin(0) for cost in costs]
    return _mean(lambdas, [float(one @ mass) for one, mass in zip(ranges, masses, strict=True)])


def _mean(lambdas: Tensor, values: list[float]) -> float:
    return float(lambdas @ torch.tensor(values, dtype=torch.float64))


def _floored(logarithm: Tensor) -> Tensor:
    """Return log w of the weights with this logarithm, up to a constant, none below FLOOR."""
    return logarithm.log_softmax(0).clamp(min=math.log(FLOOR)).log_softmax(0)
