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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from wmdd.base.errors import WmddError
from wmdd.transport.measure import Barycenter, check_k

Start = Callable[[Tensor, int, torch.Generator], Tensor]
Progress = Callable[..., Iterator[Any]]

BATCH = 1024  # points of a learning step; 4 for each atom where that is more
BLOCK = {"cpu": 2**17, "cuda": 2**24}  # numbers in a temporary array: those that the cache holds, those that fill a GPU
ROWS = 64  # of a block, at least: fewer make no product worth a call
PIECES = 16  # runs of rows that a shuffled chunk is put together from
SAMPLE = 32_768  # points that the start sees, at most; 10 for each atom where that is more
POWER = 0.75  # of the steps; Robbins-Monro needs more than 1/2 and at most 1


class Rows(Protocol):
    """Points [N, D] that are read by the row: an h5py dataset, a memory-mapped file, an array or a tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


def stream(
    source: Rows,
    k: int,
    *,
    generator: torch.Generator | None = None,
    rows: slice | range | None = None,
    start: Start | None = None,
    epochs: int = 2,
    refinements: int = 10,
    tolerance: float = 1e-4,
    chunk_bytes: int = 2**24,
    device: str | torch.device = "cpu",
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
        start: returns atoms for a sample [S, D], `k` and the generator; greedy k-means++ by default.
        epochs: learning passes.
        refinements: Lloyd passes, at most.
        tolerance: stop to refine when a pass lowers the cost by less than this share of itself.
        chunk_bytes: what is read at a time, in the type that is computed in.
        device: where it is computed.
        progress: shows how far each pass is, as `wmdd.base.progress.progress` does.

    Returns:
        Atoms and weights in the type that was computed in, on the CPU; with k >= N, the points themselves, repeated. The
        trace has the exact cost before and after each Lloyd pass and never rises.

    Raises:
        WmddError: the source has no points [N, D], or they are no real numbers, or some are NaN or infinite; it lacks some of
            the rows; a count is out of bounds; squared distances overflow.
    """
    began = time.perf_counter()
    check_k(k)
    if min(epochs, refinements) < 0:
        raise WmddError(f"epochs and refinements cannot be negative: {epochs}, {refinements}")
    data = _Data.of(source, rows, chunk_bytes, torch.device(device), progress)
    draws = generator or torch.Generator().manual_seed(0)
    if k >= len(data):
        found = _everything(data, k)
    else:
        data, sample = _survey(data, min(len(data), max(min(data.size, SAMPLE), 10 * k)), draws)
        atoms = _learn(data, (start or _start)(sample, k, draws).to(sample), sample, epochs, draws)
        found = _refine(data, atoms, sample, refinements, tolerance, draws)
    return replace(found, atoms=found.atoms.cpu(), weights=found.weights.cpu(), seconds=time.perf_counter() - began)


@dataclass(frozen=True)
class _Data:
    """Some rows of a source, less a centre [D], in chunks of `size` rows."""

    source: Rows
    rows: range
    size: int
    centre: Tensor
    progress: Progress

    @classmethod
    def of(
        cls, source: Rows, rows: slice | range | None, chunk_bytes: int, device: torch.device, progress: Progress
    ) -> "_Data":
        shape = tuple(source.shape)
        if len(shape) != 2 or 0 in shape:
            raise WmddError(f"the source needs points [N, D] with N and D at least 1, got {shape}")
        wanted = rows if isinstance(rows, range) else range(shape[0])[rows or slice(None)]
        if wanted.step < 1 or len(wanted) == 0 or wanted[0] < 0 or wanted[-1] >= shape[0]:
            raise WmddError(f"rows {rows} of {shape[0]}: ask for at least one, in rising order, that the source has")
        kind = _tensor(source[:1]).dtype
        dtype = torch.float32 if kind.is_floating_point and kind.itemsize <= 4 else torch.float64
        centre = torch.zeros(shape[1], dtype=dtype, device=device)
        return cls(source, wanted, max(1, chunk_bytes // centre.nbytes), centre, progress)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, start: int, stop: int) -> Tensor:
        """Return a copy of rows start to stop, [B, D], less the centre."""
        part = self.rows[start:stop]
        return _tensor(self.source[part.start : part.stop : part.step]).to(self.centre) - self.centre

    def in_order(self, what: str) -> Iterator[tuple[int, Tensor]]:
        """Yield the number of the first row and the points of each chunk."""
        for at in self._shown(range(0, len(self), self.size), what):
            points = self.read(at, at + self.size)
            # A sum is finite only when every term is, up to overflow; so the slow look is rarely taken.
            if not bool(torch.isfinite(points.sum())) and not bool(torch.isfinite(points).all()):
                row = self.rows[at + int((~torch.isfinite(points)).any(1).nonzero()[0])]
                raise WmddError(f"the source holds NaN or infinity, first in row {row}; check where it comes from")
            yield at, points

    def shuffled(self, what: str, draws: torch.Generator) -> Iterator[Tensor]:
        """Yield chunks of pieces that are drawn from all over the rows, each piece once."""
        piece = max(1, self.size // PIECES)
        order = torch.randperm(-(-len(self) // piece), generator=draws) * piece
        for group in self._shown(order.split(max(1, min(PIECES, self.size))), what):
            yield torch.cat([self.read(at, at + piece) for at in sorted(group.tolist())])

    def _shown(self, chunks: Any, what: str) -> Iterator[Any]:
        return self.progress(chunks, what, len(chunks), unit="chunk")


def _tensor(found: Any) -> Tensor:
    """Return what a source gave as a tensor of real numbers."""
    if not isinstance(found, Tensor):
        found = np.asarray(found)
        try:
            found = torch.from_numpy(np.require(found, found.dtype.newbyteorder("="), ["C", "W"]))
        except TypeError:
            raise WmddError(f"the source holds {found.dtype}, not numbers; give real numbers") from None
    if found.is_complex():
        raise WmddError("the source holds complex numbers; give real numbers, such as both parts side by side")
    return found


def _everything(data: _Data, k: int) -> Barycenter:
    """Return all N <= k points, repeated to k atoms that share the mass of their point."""
    points = torch.cat([points for _, points in data.in_order("read")])
    index = torch.arange(k, device=points.device) % len(points)
    share = 1 / (len(points) * torch.bincount(index).double())
    return Barycenter(points[index], share[index].to(points), 0.0, [0.0])


def _survey(data: _Data, size: int, draws: torch.Generator) -> tuple[_Data, Tensor]:
    """Return the data about their mean, and a sample [size, D]: one point drawn from each of `size` equal runs of rows."""
    edges = torch.arange(size + 1) * len(data) // size
    picks = edges[:-1] + (torch.rand(size, generator=draws, dtype=torch.float64) * edges.diff()).long()
    total = torch.zeros_like(data.centre, dtype=torch.float64)
    sample = data.centre.new_empty(size, len(data.centre))
    for at, points in data.in_order("survey"):
        total += points.sum(0, dtype=torch.float64)
        low, high = torch.searchsorted(picks, torch.tensor([at, at + len(points)])).tolist()
        sample[low:high] = points[(picks[low:high] - at).to(points.device)]
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
    chosen = torch.empty(count, dtype=torch.long, device=points.device)
    for n in range(count):
        odds = near.double().cpu().cumsum(0)
        drawn = odds[-1] * torch.rand(2 + int(math.log(count)), generator=draws, dtype=torch.float64)
        tries = torch.searchsorted(odds, drawn, right=True).clamp_(max=len(points) - 1).to(points.device)
        reduced = torch.addmm(norms[tries][:, None] + norms, points[tries], points.T, alpha=-2).clamp_(min=0)
        best = int(torch.minimum(reduced, near, out=reduced).sum(1).argmin())
        chosen[n], near = tries[best], reduced[best]
    return points[chosen]


def _cells(points: Tensor, atoms: Tensor) -> Tensor:
    """Return the atom that is nearest to each point, [B]: argmin_k ||b_k||^2 / 2 - x.b_k."""
    half = atoms.square().sum(1) / 2
    return torch.cat([torch.addmm(half, x, atoms.T, alpha=-1).argmin(1) for x in _blocks(points, len(atoms))])


def _blocks(points: Tensor, width: int) -> tuple[Tensor, ...]:
    return points.split(max(ROWS, BLOCK[points.device.type] // width))


def _add(sums: Tensor, points: Tensor, cells: Tensor) -> Tensor:
    """Add the points to the sums of their cells, [K, D] in float64, in place and with the same bits each time."""
    if points.is_cuda:  # where index_add_ adds in any order
        return sums.add_(torch.nn.functional.one_hot(cells, len(sums)).double().T @ points.double())
    return sums.index_add_(0, cells, points.double())


def _revive(atoms: Tensor, dead: Tensor, sample: Tensor, draws: torch.Generator) -> Tensor:
    """Return the atoms, those that are dead [K] drawn anew from the sample."""
    if bool(dead.any()):
        atoms = atoms.clone()
        atoms[dead] = _spread(sample.to(atoms), atoms[~dead], int(dead.sum()), draws)
    return atoms


def _learn(data: _Data, atoms: Tensor, sample: Tensor, epochs: int, draws: torch.Generator) -> Tensor:
    """Return the atoms after some passes of CLVQ in mini-batches, those without a win in a pass drawn anew."""
    k = len(atoms)
    wins = atoms.new_zeros(k, dtype=torch.float64)
    for epoch in range(epochs):
        before = wins.clone()
        for points in data.shuffled(f"learn {epoch + 1}/{epochs}", draws):
            for batch in torch.randperm(len(points), generator=draws).split(max(BATCH, 4 * k)):
                x = points[batch.to(points.device)]
                cells = _cells(x, atoms)
                won = torch.bincount(cells, minlength=k)
                wins += won
                pull = 1 - (1 - (1 + wins) ** -POWER) ** won
                sums = _add(torch.zeros_like(atoms, dtype=torch.float64), x - atoms[cells], cells)
                atoms = atoms + ((pull / won.clamp(min=1))[:, None] * sums).to(atoms)
        atoms = _revive(atoms, wins == before, sample, draws)
    return atoms


def _refine(
    data: _Data, atoms: Tensor, sample: Tensor, refinements: int, tolerance: float, draws: torch.Generator
) -> Barycenter:
    """Return the best atoms of some passes of Lloyd, with their exact masses and cost."""
    centre = data.centre.double()
    trace: list[float] = []
    for step in range(refinements + 1):
        placed = (atoms + centre).to(data.centre)  # as they will be returned, rounded
        means, counts, cost = _lloyd(data, placed - data.centre, f"refine {step}/{refinements}")
        if trace and cost > trace[-1]:  # by rounding
            break
        found = Barycenter(placed, (counts / len(data)).to(placed), cost, trace)
        settled = cost == 0 or (len(trace) > 0 and trace[-1] - cost <= tolerance * trace[-1])
        trace.append(cost)
        if settled:
            break
        atoms = _revive(means, counts == 0, sample, draws)
    return found


def _lloyd(data: _Data, atoms: Tensor, what: str) -> tuple[Tensor, Tensor, float]:
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
