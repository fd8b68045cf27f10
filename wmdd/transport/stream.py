r"""Optimal quantization of one measure that does not fit in memory: the free-weight W2 barycenter of a file.

For points x [N, D] of mass 1/N each, find atoms b [K, D] and weights w [K] of

    min_{b, w} W_2^2(\sum_k w_k delta_{b_k}, 1/N \sum_i delta_{x_i}) = min_b 1/N \sum_i min_k ||x_i - b_k||^2,

where w_k is the mass of the Voronoi cell of b_k. No more than a chunk of the points is held at a time. The passes are

1. a survey, in order: the points' mean, which is subtracted from what is read afterwards, and a stratified sample;
2. competitive learning (CLVQ [1], [2]) from a greedy k-means++ start [6] on the sample: the atom nearest to a point steps
   towards it,

       b_k <- b_k - gamma_n (b_k - x),   gamma_n = (1 + n)^(-3/4),   n the points that b_k has won so far.

   These are Robbins-Monro steps [5]: \sum gamma_n = \infty, so no start is too far off, and \sum gamma_n^2 < \infty, so the
   noise dies out. MacQueen's 1/n [3] makes each atom the mean of all it ever won, and so holds it back near the start; with
   3/4 the cost after two passes was lower in nearly all our trials. In mini-batches [4], m wins at once are m steps of the
   last length towards their mean. The wins estimate the masses;
3. refinement: Lloyd's iteration, with sums in float64 over the chunks. Each pass measures the cost and the masses of the
   atoms before it moves them, and only atoms that were measured are returned, so both are exact.

Departures from the references: batches are drawn from chunks that are put together from pieces all over the file, so that
sorted points do little harm; an atom that wins nothing is drawn anew from the sample, with odds in proportion to the squared
distance to the other atoms.

References:
    [1] Pagès: Introduction to vector quantization and its applications for numerics, ESAIM: Proceedings and Surveys 48, 2015.
    [2] Bottou, Bengio: Convergence properties of the k-means algorithms, NIPS 1994.
    [3] MacQueen: Some methods for classification and analysis of multivariate observations, 5th Berkeley Symposium, 1967.
    [4] Sculley: Web-scale k-means clustering, WWW 2010, Algorithm 1.
    [5] Robbins, Monro: A stochastic approximation method, Annals of Mathematical Statistics 22, 1951, Theorem 2.
    [6] Arthur, Vassilvitskii: k-means++: The Advantages of Careful Seeding, SODA 2007.
"""

import math
import time
from dataclasses import replace

import torch
from torch import Tensor

from wmdd.base.errors import WmddError
from wmdd.transport.measure import Barycenter, check_k
from wmdd.transport.row_source import Progress, Rows, RowSource

BATCH = 1024  # points of a learning step; 4 for each atom where that is more
BLOCK = 2**17  # numbers in a temporary array, which the cache holds
ROWS = 64  # of a block, at least: fewer make no product worth a call
SAMPLE = 32_768  # points that the start sees, at most; 10 for each atom where that is more
POWER = 0.75  # of the steps; Robbins-Monro needs more than 1/2 and at most 1


def stream(
    source: Rows,
    k: int,
    *,
    generator: torch.Generator | None = None,
    rows: slice | range | None = None,
    epochs: int = 2,
    refinements: int = 10,
    tolerance: float = 1e-4,
    chunk_bytes: int = 2**24,
    progress: Progress = lambda items, *_, **__: iter(items),
) -> Barycenter:
    """Return the barycenter with free weights of points that are read 2 + epochs + refinements times at most, by the chunk.

    Memory is about six chunks, a few samples (of a chunk or 10 K rows) and a few K D numbers, whatever N. The result depends on
    the values, the generator and `chunk_bytes`, not on the kind of source.

    Args:
        source: points [N, D]. float64 and whole numbers are computed in float64, shorter floats in float32.
        k: atoms.
        generator: on the CPU; draws the sample, the start and the order of the points.
        rows: those of the source that make up the measure, rising; all by default.
        epochs: learning passes.
        refinements: Lloyd passes, at most.
        tolerance: stop to refine when a pass lowers the cost by less than this share of itself.
        chunk_bytes: what is read at a time, in the type that is computed in.
        progress: shows how far each pass is, as `wmdd.base.progress.progress` does.

    Returns:
        Atoms and weights in the type that was computed in; with k >= N, the points themselves, repeated. The
        trace has the exact cost before and after each Lloyd pass and never rises.

    Raises:
        WmddError: the source has no points [N, D], or they are no real numbers, or some are NaN or infinite; it lacks some of
            the rows; a count is out of bounds; squared distances overflow.
    """
    began = time.perf_counter()
    check_k(k)
    if min(epochs, refinements) < 0:
        raise WmddError(f"epochs and refinements cannot be negative: {epochs}, {refinements}")
    data = RowSource.of(source, rows, chunk_bytes, progress)
    draws = generator or torch.Generator().manual_seed(0)
    if k >= len(data):
        return replace(_everything(data, k), seconds=time.perf_counter() - began)
    data, sample = _survey(data, min(len(data), max(min(data.size, SAMPLE), 10 * k)), draws)
    atoms = _learn(data, _start(sample, k, draws), sample, epochs, draws)
    return replace(_refine(data, atoms, sample, refinements, tolerance, draws), seconds=time.perf_counter() - began)


def _everything(data: RowSource, k: int) -> Barycenter:
    """Return all N <= k points, repeated to k atoms that share the mass of their point."""
    points = torch.cat([points for _, points in data.in_order("read")])
    index = torch.arange(k) % len(points)
    share = 1 / (len(points) * torch.bincount(index).double())
    return Barycenter(points[index], share[index].to(points), 0.0, [0.0])


def _survey(data: RowSource, size: int, draws: torch.Generator) -> tuple[RowSource, Tensor]:
    """Return the data about their mean, and a sample [size, D]: one point drawn from each of `size` equal runs of rows."""
    edges = torch.arange(size + 1) * len(data) // size
    picks = edges[:-1] + (torch.rand(size, generator=draws, dtype=torch.float64) * edges.diff()).long()
    total = torch.zeros_like(data.centre, dtype=torch.float64)
    sample = data.centre.new_empty(size, len(data.centre))
    for at, points in data.in_order("survey"):
        total += points.sum(0, dtype=torch.float64)
        low, high = torch.searchsorted(picks, torch.tensor([at, at + len(points)])).tolist()
        sample[low:high] = points[picks[low:high] - at]
    centre = (total / len(data)).to(data.centre)
    return replace(data, centre=centre), sample - centre


def _start(points: Tensor, k: int, draws: torch.Generator) -> Tensor:
    """Return `k` of the points by greedy k-means++ [6]."""
    first = points[int(torch.randint(len(points), (1,), generator=draws))][None]
    return torch.cat([first, _spread(points, first, k - 1, draws)])


def _spread(points: Tensor, atoms: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """Return `count` points to go with the atoms: each time, of some drawn by their cost, the one that lowers it most."""
    norms = points.square().sum(1)
    near = (points - atoms[_cells(points, atoms)]).square().sum(1)
    chosen = torch.empty(count, dtype=torch.long)
    for n in range(count):
        odds = near.double().cumsum(0)
        drawn = odds[-1] * torch.rand(2 + int(math.log(count)), generator=draws, dtype=torch.float64)
        tries = torch.searchsorted(odds, drawn, right=True).clamp_(max=len(points) - 1)
        reduced = torch.addmm(norms[tries][:, None] + norms, points[tries], points.T, alpha=-2).clamp_(min=0)
        best = int(torch.minimum(reduced, near, out=reduced).sum(1).argmin())
        chosen[n], near = tries[best], reduced[best]
    return points[chosen]


def _cells(points: Tensor, atoms: Tensor) -> Tensor:
    """Return the atom that is nearest to each point, [B]: argmin_k ||b_k||^2 / 2 - x.b_k."""
    half = atoms.square().sum(1) / 2
    return torch.cat([torch.addmm(half, x, atoms.T, alpha=-1).argmin(1) for x in _blocks(points, len(atoms))])


def _blocks(points: Tensor, width: int) -> tuple[Tensor, ...]:
    return points.split(max(ROWS, BLOCK // width))


def _add(sums: Tensor, points: Tensor, cells: Tensor) -> Tensor:
    """Add the points to the sums of their cells, [K, D] in float64, in place."""
    return sums.index_add_(0, cells, points.double())


def _revive(atoms: Tensor, dead: Tensor, sample: Tensor, draws: torch.Generator) -> Tensor:
    """Return the atoms, those that are dead [K] drawn anew from the sample."""
    if bool(dead.any()):
        atoms = atoms.clone()
        atoms[dead] = _spread(sample.to(atoms), atoms[~dead], int(dead.sum()), draws)
    return atoms


def _learn(data: RowSource, atoms: Tensor, sample: Tensor, epochs: int, draws: torch.Generator) -> Tensor:
    """Return the atoms after some passes of CLVQ in mini-batches, those without a win in a pass drawn anew."""
    k = len(atoms)
    wins = atoms.new_zeros(k, dtype=torch.float64)
    for epoch in range(epochs):
        before = wins.clone()
        for points in data.shuffled(f"learn {epoch + 1}/{epochs}", draws):
            for batch in torch.randperm(len(points), generator=draws).split(max(BATCH, 4 * k)):
                x = points[batch]
                cells = _cells(x, atoms)
                won = torch.bincount(cells, minlength=k)
                wins += won
                pull = 1 - (1 - (1 + wins) ** -POWER) ** won
                sums = _add(torch.zeros_like(atoms, dtype=torch.float64), x - atoms[cells], cells)
                atoms = atoms + ((pull / won.clamp(min=1))[:, None] * sums).to(atoms)
        atoms = _revive(atoms, wins == before, sample, draws)
    return atoms


def _refine(
    data: RowSource, atoms: Tensor, sample: Tensor, refinements: int, tolerance: float, draws: torch.Generator
) -> Barycenter:
    """Return the best atoms of some passes of Lloyd, with their exact masses and cost."""
    centre = data.centre.double()
    trace: list[float] = []
    for step in range(refinements + 1):
        placed = (atoms + centre).to(data.centre)  # as they will be returned, rounded
        means, counts, cost = _lloyd(data, placed - data.centre, f"refine {step}/{refinements}")
        if trace and cost > trace[-1]:  # by rounding
            break
        best = Barycenter(placed, (counts / len(data)).to(placed), cost, trace)
        settled = cost == 0 or (len(trace) > 0 and trace[-1] - cost <= tolerance * trace[-1])
        trace.append(cost)
        if settled:
            break
        atoms = _revive(means, counts == 0, sample, draws)
    return best


def _lloyd(data: RowSource, atoms: Tensor, what: str) -> tuple[Tensor, Tensor, float]:
    """Return the means of the cells [K, D] in float64, the points in each [K], and the cost of the atoms."""
    k, dimensions = atoms.shape
    total, counts = torch.zeros_like(atoms, dtype=torch.float64), atoms.new_zeros(k, dtype=torch.float64)
    cost = atoms.new_zeros((), dtype=torch.float64)
    for _, points in data.in_order(what):
        for x in _blocks(points, max(k, dimensions)):
            cells = _cells(x, atoms)
            rest = x - atoms[cells]
            cost += rest.square().sum(dtype=torch.float64)
            _add(total, rest, cells)
            counts += torch.bincount(cells, minlength=k)
    if not bool(torch.isfinite(cost)):
        raise WmddError(f"the squared distances overflow {atoms.dtype}; scale the points down")
    return atoms + total / counts.clamp(min=1)[:, None], counts, float(cost) / len(data)
