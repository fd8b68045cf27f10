r"""Optimal quantization of one measure that does not fit in memory: the free-weight W2 barycenter of a file.

For points x [N, D] of mass 1/N each, find atoms b [K, D] and weights w [K] of

    min_{b, w} W_2^2(\sum_k w_k delta_{b_k}, 1/N \sum_i delta_{x_i}) = min_b 1/N \sum_i min_k ||x_i - b_k||^2,

where w_k is the mass of the Voronoi cell of b_k. No more than a chunk of the points and a sample are held at a time:

1. a survey, in order: the points' mean, which is subtracted from what is read afterwards, and a stratified sample;
2. `quantize` of the sample;
3. refinement: Lloyd's iteration [1], with sums in float64 over the chunks. Each pass measures the cost and the masses of the
   atoms before it moves them, and only atoms that were measured are returned, so both are exact.

Mini-batches [2] and competitive learning read all points once or twice before they are as good as the optimum of a sample, and
are no cheaper (`docs/understand/transport.md`). An atom whose cell is empty is drawn anew from the sample, with odds in
proportion to the squared distance to the nearest atom.

References:
    [1] Lloyd: Least squares quantization in PCM, IEEE Transactions on Information Theory 28(2), 1982.
    [2] Sculley: Web-scale k-means clustering, WWW 2010, Algorithm 1.
"""

import time
from dataclasses import replace

import torch
from torch import Tensor

from wmdd.base.errors import WmddError
from wmdd.transport.measure import Barycenter, check_k
from wmdd.transport.quantization import quantize
from wmdd.transport.row_source import Progress, Rows, RowSource
from wmdd.transport.seeding import sample

BLOCK = 2**17  # numbers in a temporary array, which the cache holds
ROWS = 64  # of a block, at least: fewer make no product worth a call
SAMPLE = 10_000  # points of the sample; 10 for each atom where that is more
LOOSE = 1e-4  # tolerance on the sample, whose optimum is not that of all points


def stream(
    source: Rows,
    k: int,
    *,
    generator: torch.Generator | None = None,
    rows: slice | range | None = None,
    refinements: int = 10,
    tolerance: float = 1e-4,
    chunk_bytes: int = 2**24,
    progress: Progress = lambda items, *_, **__: iter(items),
) -> Barycenter:
    """Return the barycenter with free weights of points that are read 2 + refinements times at most, by the chunk.

    Memory is about six chunks and what `quantize` takes for a sample of 10,000 or 10 K points, whatever N. The result depends
    on the values and the generator, not on the kind of source nor, but for rounding, on `chunk_bytes`.

    Args:
        source: points [N, D]. float64 and whole numbers are computed in float64, shorter floats in float32.
        k: atoms.
        generator: on the CPU; draws the sample and the start.
        rows: those of the source that make up the measure, rising; all by default.
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
    if refinements < 0:
        raise WmddError(f"refinements cannot be negative: {refinements}")
    data = RowSource.of(source, rows, chunk_bytes, progress)
    draws = generator or torch.Generator().manual_seed(0)
    if k >= len(data):
        return replace(_everything(data, k), seconds=time.perf_counter() - began)
    data, chosen = _survey(data, min(len(data), max(SAMPLE, 10 * k)), draws)
    atoms = quantize(chosen, k, generator=draws, tolerance=LOOSE).atoms
    return replace(_refine(data, atoms, chosen, refinements, tolerance, draws), seconds=time.perf_counter() - began)


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
    chosen = data.centre.new_empty(size, len(data.centre))
    for at, points in data.in_order("survey"):
        total += points.sum(0, dtype=torch.float64)
        low, high = torch.searchsorted(picks, torch.tensor([at, at + len(points)])).tolist()
        chosen[low:high] = points[picks[low:high] - at]
    centre = (total / len(data)).to(data.centre)
    return replace(data, centre=centre), chosen - centre


def _cells(points: Tensor, atoms: Tensor) -> Tensor:
    """Return the atom that is nearest to each point, [B]: argmin_k ||b_k||^2 / 2 - x.b_k."""
    half = atoms.square().sum(1) / 2
    return torch.cat([torch.addmm(half, x, atoms.T, alpha=-1).argmin(1) for x in _blocks(points, len(atoms))])


def _blocks(points: Tensor, width: int) -> tuple[Tensor, ...]:
    return points.split(max(ROWS, BLOCK // width))


def _add(sums: Tensor, points: Tensor, cells: Tensor) -> Tensor:
    """Add the points to the sums of their cells, [K, D] in float64, in place."""
    return sums.index_add_(0, cells, points.double())


def _revive(atoms: Tensor, dead: Tensor, points: Tensor, draws: torch.Generator) -> Tensor:
    """Return the atoms, those that are dead [K] drawn anew from the sampled points."""
    if bool(dead.any()):
        alive, atoms = atoms[~dead].to(points), atoms.clone()
        near = (points - alive[_cells(points, alive)]).square().sum(1)
        uniform = torch.rand(1, 1, int(dead.sum()), generator=draws, dtype=torch.float64)
        atoms[dead] = points[sample(near[None, None], uniform)[0, 0]].to(atoms)
    return atoms


def _refine(
    data: RowSource, atoms: Tensor, chosen: Tensor, refinements: int, tolerance: float, draws: torch.Generator
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
        atoms = _revive(means, counts == 0, chosen, draws)
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
