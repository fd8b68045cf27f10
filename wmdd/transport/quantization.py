r"""Optimal quantization: the W2 barycenter of one measure, with free or uniform weights.

For one measure mu = 1/N \sum_i delta_{x_i}, the barycenter with at most K atoms minimises

    W_2^2(\sum_k w_k delta_{b_k}, mu) = min_{T >= 0, T 1 = w, T' 1 = 1/N} \sum_ki T_ki ||b_k - x_i||^2

over the atoms b [K, D], and over the weights w [K] when these are free: then every point goes to its nearest atom, the
problem is optimal quantization [1], that is k-means, and w_k is the mass of the k-th Voronoi cell. With uniform weights it is
balanced k-means, see `wmdd.transport.uniform`. So W2^2(free) <= W2^2(uniform); K = 1 gives the mean; K = N the points.

Free weights start from swaps on a summary of the points (`wmdd.transport.swaps`; up to 32 atoms) or greedy k-means++, and go on
by Hartigan's simultaneous moves (`wmdd.transport.cells`) and exchanges of parts of cells (`wmdd.transport.search`). No step
raises the cost. A measure of many more dimensions than points is solved in as many dimensions as it has points
(`wmdd.transport.span`).

References:
    [1] Graf, Luschgy: Foundations of Quantization for Probability Distributions, Springer 2000.
    [2] Cuturi, Doucet: Fast Computation of Wasserstein Barycenters, ICML 2014, Section 4 (one measure: k-means).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wmdd.base.errors import WmddError
from wmdd.transport.cells import Cells, Measures
from wmdd.transport.descent import descend
from wmdd.transport.measure import Barycenter, Points, as_points, check_k, check_squares
from wmdd.transport.plans import balanced
from wmdd.transport.search import improve
from wmdd.transport.seeding import greedy
from wmdd.transport.span import Span, wide
from wmdd.transport.swaps import lloyd, swapped
from wmdd.transport.uniform import balance

COARSE = 1e-4  # tolerance before the exchanges, which move the optimum anyway
FEW = 32  # atoms up to which seeds cost little and exchanges save much
ROUNDS = 10  # of exchanges
LAST = 10  # tolerances of a step of Hartigan's after steps of Lloyd
TRIED = (3, 1)  # sets of exchanges a round
TRIAL = 3  # steps after which an exchange is judged
CACHE = 2**20  # numbers of a measure; on the CPU, a batch that fits the cache is faster than a larger one


@dataclass(frozen=True)
class _Task:
    """What is asked of a solver: K atoms, the kind of their weights, most steps, tolerance, rounds of exchanges."""

    k: int
    weights: str
    steps: int
    tolerance: float
    exchanges: int | None


def quantize(
    points: Points,
    k: int,
    *,
    weights: str = "free",
    generator: torch.Generator | None = None,
    max_iterations: int = 300,
    tolerance: float = 1e-5,
    restarts: int = 1,
    exchanges: int | None = None,
) -> Barycenter:
    """Return the W2 barycenter of one measure with `k` atoms.

    Args:
        points: [N, D], tensor (on any device) or array; float32 is computed in float32 and summed in float64.
        k: atoms.
        weights: `free` (the masses of the cells) or `uniform` (1/K each).
        generator: draws of the start, on the CPU; without one always the same.
        max_iterations: steps, at most.
        tolerance: stop when the cost falls by less than this share of itself.
        restarts: independent starts; the cheapest result is returned.
        exchanges: rounds of local search by exchanges of parts of cells, at most (free weights); 0 for none, and no swaps
            before. If not given, none up to 32 atoms, and beyond 10 as long as two cells look as if they shared a cluster;
            elsewhere a round or two more save 0.1-1 % of the cost there for about half as much time again.

    Returns:
        Atoms and weights in the type of `points`, on the CPU. The trace never rises.

    Raises:
        WmddError: there are no points, some are not numbers or too large to be squared, or a count is out of bounds.

    >>> import torch
    >>> found = quantize(torch.tensor([[0.0], [1.0], [10.0], [11.0], [12.0]]).double(), k=2)
    >>> found.atoms.sort(0).values.tolist(), sorted(round(w, 1) for w in found.weights.tolist())
    ([[0.5], [11.0]], [0.4, 0.6])
    >>> round(found.cost, 3)
    0.5
    """
    return quantize_all(
        [points], k, weights=weights, generators=[generator or torch.Generator().manual_seed(0)],
        max_iterations=max_iterations, tolerance=tolerance, restarts=restarts, exchanges=exchanges,
    )[0]  # fmt: skip


def quantize_all(
    measures: Sequence[Points],
    k: int,
    *,
    weights: str = "free",
    generators: list[torch.Generator] | None = None,
    names: Sequence[str] | None = None,
    max_iterations: int = 300,
    tolerance: float = 1e-5,
    restarts: int = 1,
    exchanges: int | None = None,
) -> list[Barycenter]:
    """Return the barycenter of each measure, many at a time where that is faster (on a GPU: all that fit).

    A result depends neither on the other measures nor on how many are solved at a time, up to rounding.

    Args:
        measures: C of them, [N_c, D] each; N_c may differ.
        k: atoms of each.
        generators: one a measure.
        names: what to call the measures in errors.
        weights: as of `quantize`, and so the others.
        max_iterations: of each.
        tolerance: of each.
        restarts: of each.
        exchanges: of each.

    Raises:
        WmddError: as `quantize`; names the measure.
    """
    check_k(k)
    if weights not in ("free", "uniform"):
        raise WmddError(f"weights are 'free' or 'uniform', not {weights!r}")
    if restarts < 1 or max_iterations < 1 or (exchanges or 0) < 0:
        raise WmddError(
            f"restarts and max_iterations must be at least 1 and exchanges at least 0, got {restarts}, {max_iterations} "
            f"and {exchanges}"
        )
    names = names or ["the measure" if len(measures) == 1 else f"measure {c}" for c in range(len(measures))]
    clouds = [as_points(points, name) for points, name in zip(measures, names, strict=True)]
    for name, points in zip(names, clouds, strict=True):
        check_squares(points, name)
    generators = generators or [torch.Generator().manual_seed(c) for c in range(len(clouds))]
    task = _Task(k, weights, max_iterations, tolerance, exchanges)
    results: list[Barycenter] = []
    for first in range(0, len(clouds), many := _together(clouds)):
        part, draws = clouds[first : first + many], generators[first : first + many]
        tries = [_solve(part, task, draws) for _ in range(restarts)]
        for starts in zip(*tries, strict=True):
            best, seconds = _cheapest(starts), sum(b.seconds for b in starts)
            # cloned because tensors made in inference mode are of no use to autograd
            results.append(replace(best, atoms=best.atoms.clone(), weights=best.weights.clone(), seconds=seconds))
    return results


def _cheapest(tries: Sequence[Barycenter]) -> Barycenter:
    """Return the cheapest, the first of those that differ by rounding."""
    least = min(b.cost for b in tries)
    return next(b for b in tries if b.cost <= least * (1 + 1e-12))


def _together(clouds: Sequence[Tensor]) -> int:
    """Return how many measures to solve at a time."""
    if not clouds:
        return 1
    size = max(points.numel() for points in clouds)
    if clouds[0].device.type == "cpu":
        return max(1, min(16, CACHE // (8 * size)))
    free, _ = torch.cuda.mem_get_info(clouds[0].device)
    return max(1, free // (16 * 4 * size))


@torch.inference_mode()
def _solve(clouds: Sequence[Tensor], task: _Task, generators: list[torch.Generator]) -> list[Barycenter]:
    """Solve a batch from one start each."""
    begun = time.perf_counter()
    k, free = task.k, task.weights == "free"
    if len(clouds) == 1 and k < len(clouds[0]) and wide(clouds[0]):
        solved = _in_span(clouds[0], task, generators[0])
        return [_as(solved, clouds[0], k, time.perf_counter() - begun)]
    floats = [points if points.dtype in (torch.float32, torch.float64) else points.float() for points in clouds]
    count = torch.tensor([len(points) for points in floats], device=floats[0].device)
    small = min(k, int(count.min()))
    if small < k and len(clouds) > 1:  # a measure with fewer points than atoms is solved alone
        return [_solve([p], task, [g])[0] for p, g in zip(clouds, generators, strict=True)]
    batch = floats[0][None] if len(floats) == 1 else torch.nn.utils.rnn.pad_sequence(floats, batch_first=True)
    tolerance, exchanges = (task.tolerance, task.exchanges) if free else (COARSE, 0)
    cells, trace = free_cells(Measures.of(batch, count), small, generators, task.steps, tolerance, exchanges)
    results = _finish(cells, trace) if free else balance(cells, k, task.steps, task.tolerance)
    seconds = (time.perf_counter() - begun) / len(clouds)
    return [_as(b, points, k, seconds) for b, points in zip(results, clouds, strict=True)]


def _in_span(points: Tensor, task: _Task, generator: torch.Generator) -> Barycenter:
    """Solve for fewer atoms than points in the coordinates of the points' span; only the end takes place in all dimensions."""
    span = Span.of(points)
    solved = _solve([span.coordinates], task, [generator])[0]
    atoms = span.back(solved.atoms)
    costs = span.distances(atoms)
    if task.weights == "free":
        near, label = costs.min(0)
        mass = torch.bincount(label, minlength=task.k).double() / len(points)
        cost, gap = float(near.mean(dtype=torch.float64)), 0.0
    else:
        plan = balanced(costs)
        mass, cost, gap = torch.full((task.k,), 1 / task.k, dtype=torch.float64), plan.cost, plan.gap
    excess = solved.cost - cost  # which the ridge adds, and rounding
    trace = [max(step - excess, cost) for step in solved.trace]
    return Barycenter((atoms.double() + span.centre).cpu(), mass.cpu(), cost, trace, gap)


def free_cells(
    measures: Measures,
    k: int,
    generators: list[torch.Generator],
    steps: int,
    tolerance: float,
    exchanges: int | None,
) -> tuple[Cells, list[Tensor]]:
    """Return cells at a local optimum (R = 1) and the costs [C] after each step."""
    c = len(measures.count)
    if bool((measures.count == k).all()):  # every point is an atom
        cells = Cells.of(measures, torch.arange(k, device=measures.x.device).expand(c, 1, k), k)
        return cells, [cells.cost.view(c)]
    few = k <= FEW
    trace = list[Tensor]()
    if few and exchanges != 0:
        label, trace = lloyd(measures, swapped(measures, k, generators), steps - 1, tolerance)
    else:
        label = greedy(measures, k, 1, generators)
    cells = Cells.of(measures, label, k).repaired()
    trace.append(cells.cost)
    doubled = exchanges is None
    rounds = (0 if few else ROUNDS) if exchanges is None else exchanges
    if k > 1:
        left = steps - torch.stack(trace).isfinite().sum(0)
        coarse = max(tolerance, COARSE) if rounds and not doubled else tolerance
        cells, costs = descend(cells, left, LAST * tolerance if few and exchanges is None else coarse)
        trace += costs
        if rounds:
            cells, costs = improve(cells, TRIED[k > FEW], TRIAL, left, rounds, coarse, doubled)
            trace += costs
        if coarse > tolerance:
            cells, costs = descend(cells, left, tolerance)
            trace += costs
    return cells, [cost.view(c) for cost in trace]


def _finish(cells: Cells, trace: list[Tensor]) -> list[Barycenter]:
    """Return the atoms with the masses of their Voronoi cells and the exact cost."""
    measures = cells.measures
    cells = Cells.of(measures, cells.label, cells.sums.shape[2])  # without the rounding of many small changes
    means, count = cells.means[:, 0], cells.count[:, 0]
    heaviest = means.gather(1, count.argmax(1)[:, None, None].expand(-1, 1, means.shape[2]))
    means = means.where(count[..., None] > 0, heaviest)  # an atom for which there is no point of its own joins another
    near, label = measures.distances(means[:, None])[:, 0].min(1)
    mass = torch.zeros_like(count, dtype=torch.float64).scatter_add_(1, label, measures.real.double())
    cost = near.clamp_(min=0).sum(1, dtype=torch.float64) / measures.count
    history = (torch.stack(trace, 1) / measures.count[:, None]).clamp_(min=0)
    traces = [row[row.isfinite()].tolist() for row in history]
    atoms = (means.double() + measures.centre[:, None]).cpu()
    mass, cost = (mass / measures.count[:, None]).cpu(), cost.cpu()
    return [Barycenter(atoms[c], mass[c], float(cost[c]), [*traces[c], float(cost[c])]) for c in range(len(atoms))]


def _as(solved: Barycenter, points: Tensor, k: int, seconds: float) -> Barycenter:
    """Return in the type of the points; more atoms than points share the points evenly."""
    atoms, weights = solved.atoms, solved.weights
    if len(atoms) < k:
        row = torch.arange(k) % len(atoms)
        atoms, weights = atoms[row], (weights / torch.bincount(row))[row]
    return replace(solved, atoms=atoms.to(points.dtype), weights=weights.to(points.dtype), seconds=seconds)
