r"""The barycenter by Cuturi and Doucet's alternation [1], which WMDD [2] prescribes.

For measures mu_m with points x_m [N_m, D] and masses a_m [N_m], and shares lambda_m [M] that sum to 1, minimise

    F(b, w) = \sum_m lambda_m W_2^2(\sum_k w_k delta_{b_k}, mu_m)

over the atoms b [K, D] and the weights w [K]. In turn ([1], Algorithm 2; [2], Algorithm 3): over w by mirror descent ([1],
Algorithm 1; [2], Algorithm 2), and over b by the Newton step of [1], Eq. 8, with the optimal plans T_m [K, N_m],

    b <- (1 - theta) b + theta \sum_m lambda_m diag(1/w) T_m x_m.

[1] writes X for b, a for w, b_i for a_m, Y_i for x_m and 1/N for lambda_m.

References:
    [1] Cuturi, Doucet: Fast Computation of Wasserstein Barycenters, ICML 2014.
    [2] Liu et al.: Dataset Distillation via the Wasserstein Metric, arXiv 2311.18531, ICCV 2025.
    [3] Peyré, Cuturi: Computational Optimal Transport, 2019, Section 4.4 (Sinkhorn's iteration in the log domain).
"""

import math
import time
from dataclasses import replace

import torch
from torch import Tensor

from wmdd.base.errors import WmddError
from wmdd.transport.measure import Barycenter, Points, Transport, as_points, check_k, exact, squared_distances

FLOOR = 1e-12  # no learned weight is smaller: far below any mass that matters, far above the rounding of a plan
STAGES = 6  # quarterings of the mirror descent's step, to a four-thousandth


def weights_by_mirror_descent(
    costs: list[Tensor],
    masses: list[Tensor],
    lambdas: Tensor,
    step: float = 1.0,
    iterations: int = 100,
    tolerance: float = 1e-3,
    entropy: float = 0.0,
    start: Tensor | None = None,
) -> tuple[Tensor, list[float]]:
    r"""Return the weights that minimise F(w) = \sum_m lambda_m W(w, a_m; C_m), the atoms being fixed ([1], Algorithm 1).

    Accelerated mirror descent on the simplex with the Kullback-Leibler prox. From a^ = a~ = 1/K and t = 1,

        1: beta = (t + 1) / 2,  a = (1 - 1/beta) a^ + (1/beta) a~
        2: alpha = \sum_m lambda_m alpha_m, where alpha_m [K] is the dual optimum f of transporting a to measure m
        3: a~ <- a~ exp(-t0 beta alpha), divided by its sum
        4: a^ <- (1 - 1/beta) a^ + (1/beta) a~,  t <- t + 1

    For one measure the optimum is the masses of the Voronoi cells, and costs the mean distance to the nearest atom.

    `step`, `tolerance` and `entropy` are in units of the spread S = \sum_m lambda_m \sum_i a_mi (max_k C_mki - min_k C_mki),
    by which the costs are divided. So scaling the points scales the trace and changes nothing else, and adding to the
    costs what depends on i alone shifts it.

    Departures from [1]: a~ is kept as its logarithm and no entry falls below `FLOOR`, so that none becomes 0. Returned is
    the cheapest a that was met, not the last a^: with exact duals F has kinks, and a^ need not descend. [1] stops "when
    converged"; here the duals of each step bound F(w) >= \sum_m lambda_m (w.f_m + a_m.g_m) for all w. Each such bound, and
    the mean of all, weighted as line 4 weighs a~, is least at a vertex; the descent stops within `tolerance` of the best.

    Args:
        costs: C_m [K, N_m].
        masses: a_m [N_m], positive, sum 1.
        lambdas: [M], sum 1.
        step: t0; near 1 F falls fastest, but may end up swinging about a kink where 0.3 still closes the gap.
        iterations: at most; each solves one transport problem a measure.
        tolerance: of the gap between F and its lower bound.
        entropy: 0 for exact transport, else the smoothing epsilon of `sinkhorn`; F is then the smoothed cost.
        start: [K], where a^ and a~ begin instead of 1/K; the result is never dearer.

    Returns:
        The weights [K], float64, and F(a) at each iteration.

    Raises:
        WmddError: a transport problem was not solved.
    """
    k, spread = len(costs[0]), _spread(costs, masses, lambdas)
    weights = torch.full((k,), 1 / k, dtype=torch.float64) if start is None else start
    if spread == 0:  # one atom, or all in one place: nothing to choose
        return weights, [_mean(lambdas, [float(cost[0] @ mass) for cost, mass in zip(costs, masses, strict=True)])]
    costs = [cost / spread for cost in costs]
    log_mirror = _floored(weights.log())  # log a~
    average = log_mirror.exp()  # a^
    bound, lower = torch.zeros_like(average), -math.inf
    potentials: list[tuple[Tensor, Tensor] | None] = [None] * len(costs)
    trace: list[float] = []
    for t in range(1, iterations + 1):
        beta = (t + 1) / 2  # 1
        a = average.lerp(log_mirror.exp(), 1 / beta)
        found = [_transport(a, *problem, entropy) for problem in zip(masses, costs, potentials, strict=True)]  # 2
        potentials = [(one.f, one.g) for one in found]
        # A shift of alpha cancels in line 3. With this one F(a) = a.alpha, and F(w) >= w.alpha for all w.
        alpha = sum(share * (one.f + mass @ one.g) for share, one, mass in zip(lambdas, found, masses, strict=True))
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


def sinkhorn(
    weights: Tensor,
    masses: Tensor,
    cost: Tensor,
    epsilon: float,
    start: tuple[Tensor, Tensor] | None = None,
    tolerance: float = 1e-9,
    iterations: int = 10_000,
) -> Transport:
    r"""Return the plan of smoothed transport, min_T \sum_ki T_ki C_ki + epsilon T_ki log T_ki ([1], Algorithm 3).

    T_ki = exp((f_k + g_i - C_ki) / epsilon), its rows sum to w and its columns to a. f and g are found in turn, in the log
    domain [3], where nothing under- or overflows however small epsilon is. [1] writes u for exp(f / epsilon) and lambda for
    1 / epsilon.

    Args:
        weights: w [K], positive, sum 1.
        masses: a [N], positive, sum 1.
        cost: C [K, N].
        epsilon: above 0, in units of the cost.
        start: f and g to begin from.
        tolerance: stop when |T 1 - w|_1 is below; the columns are exact then.
        iterations: at most; if they run out the rows are exact and the columns are not.

    Returns:
        The plan, f and g, and as cost \sum_ki T_ki C_ki without the entropy; w.f + a.g is the smoothed cost.
    """
    log_w, log_a, kernel = weights.log(), masses.log(), -cost / epsilon
    u = torch.zeros_like(weights) if start is None else start[0] / epsilon
    for _ in range(iterations):
        v = log_a - (kernel + u[:, None]).logsumexp(0)
        following = log_w - (kernel + v).logsumexp(1)
        if float((weights * (u - following).expm1().abs()).sum()) <= tolerance:  # T 1 = w exp(u - following)
            break
        u = following
    plan = (u[:, None] + kernel + v).exp()
    return Transport(plan, float((plan * cost).sum()), epsilon * u, epsilon * v)


def alternate(
    points: list[Tensor],
    masses: list[Tensor],
    lambdas: Tensor,
    atoms: Tensor,
    free: bool,
    rounds: int,
    tolerance: float,
    theta: float = 1.0,
    entropy: float = 0.0,
    step: float = 1.0,
    iterations: int = 10,
) -> Barycenter:
    r"""Return the barycenter that alternation from `atoms` reaches ([1], Algorithm 2).

    For fixed w, F(b) is \sum_k w_k ||b_k||^2 plus a concave function of b, so F falls all the way along the Newton step: of the
    theta in [0, 1] that the line search of [1] may choose from, 1 is the best, and with exact transport no step raises F.

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
        theta: of the Newton step.
        entropy: 0 for exact transport, else `epsilon` of both halves of a round, in units of the spread of the costs.
        step: t0 of the mirror descent, at first.
        iterations: of the mirror descent, at most, in a round.

    Returns:
        The cheapest atoms and weights that were met; trace: F at each round, by exact transport.
    """
    began = time.perf_counter()
    weights = torch.full((len(atoms),), 1 / len(atoms), dtype=torch.float64)
    stages = STAGES if free and len(atoms) > 1 else 0
    trace: list[float] = []
    while True:
        costs = [squared_distances(atoms, x) for x in points]
        if free:
            weights, _ = weights_by_mirror_descent(
                costs, masses, lambdas, step, iterations, tolerance, entropy, weights
            )
        plans = [exact(weights, mass, cost) for mass, cost in zip(masses, costs, strict=True)]
        trace.append(_mean(lambdas, [plan.cost for plan in plans]))
        if entropy > 0:
            epsilon = entropy * _spread(costs, masses, lambdas)
            plans = [_transport(weights, mass, cost, None, epsilon) for mass, cost in zip(masses, costs, strict=True)]
        if trace[-1] == min(trace):
            dearer = _mean(lambdas, [plan.cost for plan in plans]) - trace[-1]
            best = atoms, weights, trace[-1], dearer / trace[-1] if dearer else 0.0
        if len(trace) > 1 and trace[-2] - trace[-1] <= tolerance * trace[-2]:
            stages, step = stages - 1, step / 4
        if stages < 0 or len(trace) == rounds:
            atoms, weights, cost, gap = best
            return Barycenter(atoms, weights, cost, trace, gap, time.perf_counter() - began)
        atoms = atoms.lerp(_newton(points, plans, lambdas, atoms), theta)


def cuturi_doucet(
    points: Points,
    k: int,
    generator: torch.Generator,
    weights: str = "free",
    rounds: int = 300,
    tolerance: float = 1e-6,
    theta: float = 1.0,
    entropy: float = 0.0,
    step: float = 1.0,
    iterations: int = 10,
) -> Barycenter:
    """Return the barycenter of one measure, all points of the same mass, by `alternate` from k of its points.

    Args:
        points: [N, D].
        k: atoms; beyond N the points are drawn again, after each was drawn once.
        generator: draws the points.
        weights: `free` or `uniform` (1/K each).
        rounds: of the alternation, at most ([2]: 10).
        tolerance: the cost has settled when it falls by less than this share of itself.
        theta: of the Newton step, in (0, 1]; 1 is the best of them.
        entropy: 0 for exact transport, else the smoothing of [1], Algorithm 3, in units of the spread of the costs.
        step: t0 of the mirror descent at first, in units of 1 / spread.
        iterations: of the mirror descent in a round, at most.

    Returns:
        Atoms and weights in the type and on the device of `points`; trace: the cost at each round.

    Raises:
        WmddError: the points, k or a setting are not usable.
    """
    found = as_points(points)
    check_k(k)
    check_weights(weights)
    if not 0 < theta <= 1 or entropy < 0:
        raise WmddError(f"theta must lie in (0, 1] and entropy must not be negative, got {theta} and {entropy}")
    if rounds < 1 or iterations < 1:
        raise WmddError(f"rounds and iterations must be at least 1, got {rounds} and {iterations}")
    x = found.detach().double().cpu()
    masses, one = torch.full((len(x),), 1 / len(x), dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    start = draw(x, masses, k, generator)
    settings = (weights == "free", rounds, tolerance, theta, entropy, step, iterations)
    return like(found, alternate([x], [masses], one, start, *settings))


def check_weights(weights: str) -> None:
    """Refuse a word for the weights that is not known."""
    if weights not in ("free", "uniform"):
        raise WmddError(f"weights are free or uniform, not {weights}")


def draw(points: Tensor, masses: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Draw k points [K, D] by their masses, without repetition until every point is drawn."""
    order = torch.multinomial(masses, min(k, len(points)), generator=generator)
    return points[order[torch.arange(k) % len(order)]]


def like(points: Tensor, found: Barycenter) -> Barycenter:
    """Return the barycenter in the type and on the device of the points."""
    return replace(found, atoms=found.atoms.to(points), weights=found.weights.to(points))


def _transport(
    weights: Tensor, masses: Tensor, cost: Tensor, start: tuple[Tensor, Tensor] | None, epsilon: float
) -> Transport:
    if epsilon > 0:
        return sinkhorn(weights, masses, cost, epsilon, start)
    return exact(weights, masses, cost, start)


def _newton(points: list[Tensor], plans: list[Transport], lambdas: Tensor, atoms: Tensor) -> Tensor:
    r"""Return the atoms that are best for the plans: \sum_m lambda_m diag(1/w) T_m x_m ([1], Eq. 8)."""
    weighted = [share * plan.plan for share, plan in zip(lambdas, plans, strict=True)]
    mass = sum(plan.sum(1) for plan in weighted)
    total = sum(plan @ x for plan, x in zip(weighted, points, strict=True))
    return torch.where(mass[:, None] > 0, total / mass[:, None], atoms)


def _spread(costs: list[Tensor], masses: list[Tensor], lambdas: Tensor) -> float:
    ranges = [cost.amax(0) - cost.amin(0) for cost in costs]
    return _mean(lambdas, [float(one @ mass) for one, mass in zip(ranges, masses, strict=True)])


def _mean(lambdas: Tensor, values: list[float]) -> float:
    return float(lambdas @ torch.tensor(values, dtype=torch.float64))


def _floored(logarithm: Tensor) -> Tensor:
    """Return log w of the weights with this logarithm, up to a constant, none below FLOOR."""
    return logarithm.log_softmax(0).clamp(min=math.log(FLOOR)).log_softmax(0)
