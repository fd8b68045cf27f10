r"""Mini-batch k-means in one pass, as D4M [1] quantizes latents; kept to be compared with `quantize`.

For points x [N, D] of mass 1/N each, drawn in an order at random and cut into batches of `expand` K points ([2], Algorithm 1):

    1: b_k <- greedy k-means++ [3] on the first batch;  n_k <- 0
    2: for each batch, of which M_k are the points nearest to b_k:
    3:     n_k <- n_k + |M_k|
    4:     b_k <- b_k + 1/n_k \sum_{x in M_k} (x - b_k)
    5:     each atom with n_k < `reassign` max_j n_j <- a point of the batch, drawn uniformly;  its n_k <- min n of the others

Line 4 is [2]'s |M_k| steps of the lengths 1/n at once: an atom that was never reassigned is the mean of all it won, so K = 1
gives the mean of the points. Nothing is seen twice, so no atom forgets the points that it won before its neighbours moved, and
the cost is above that of `quantize` from the same points.

Lines 1, 4 and 5 are what [1]'s released code gets from `partial_fit` of scikit-learn's `MiniBatchKMeans` with its defaults:
line 5 after a batch that began with an n_k = 0, and once 10 K points were seen since the last time, at most for half as many
atoms as the batch has points.

Departures from [1]'s released code: what is left over at the end, fewer points than a batch, is learned from too, where theirs
does so only for the class of the very last image; so N < `expand` K points have atoms. Distances are computed about the first
batch's mean. The random numbers are others.

References:
    [1] Su et al.: D4M: Dataset Distillation via Disentangled Diffusion Model, CVPR 2024 (arXiv 2407.15138); its repository
        suduo94/D4M, distillation/gen_prototype.py.
    [2] Sculley: Web-scale k-means clustering, WWW 2010, Algorithm 1.
    [3] Arthur, Vassilvitskii: k-means++: The Advantages of Careful Seeding, SODA 2007.
"""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from wmdd.base.errors import WmddError
from wmdd.transport.cuturi_doucet import check_weights
from wmdd.transport.measure import BLOCK, Barycenter, Points, as_points, check_k
from wmdd.transport.plans import balanced
from wmdd.transport.quantization import quantize
from wmdd.transport.stream import Progress, Start, _cells
from wmdd.transport.stream import _start as _greedy

PAUSE = 10  # points an atom between two reassignments, at least


def minibatch(
    points: Points,
    k: int,
    *,
    generator: torch.Generator | None = None,
    weights: str = "uniform",
    expand: int = 10,
    reassign: float = 0.01,
    start: Start | None = None,
    progress: Progress = lambda items, *_, **__: iter(items),
) -> Barycenter:
    """Return the atoms of one pass of mini-batch k-means over the points.

    Beside the points, a batch and a few K D numbers are in memory, whatever N; uniform weights add some ten K N numbers.

    Args:
        points: [N, D], tensor (on any device) or array; float64 is computed in float64, shorter floats in float32.
        k: atoms.
        generator: on the CPU; draws the order of the points, then the start, then the reassigned atoms.
        weights: `uniform` (1/K each, as D4M has it) or `free` (the masses of the atoms' cells, as DDOQ has it).
        expand: points of a batch for each atom.
        reassign: share of the most successful atom's points below which an atom is put elsewhere; 0 for never.
        start: returns atoms for the first batch [B, D], `k` and the generator; greedy k-means++ by default.
        progress: shows how far the pass is, as `wmdd.base.progress.progress` does.

    Returns:
        Atoms and weights in the type of `points`, on the CPU; with k >= N, what `quantize` gives. The cost is that of exact
        transport, and the only one in the trace.

    Raises:
        WmddError: there are no points, some are not numbers or too large to be squared, or an argument is out of bounds.
    """
    began = time.perf_counter()
    check_k(k)
    check_weights(weights)
    if expand < 1 or not 0 <= reassign < 1:
        raise WmddError(f"expand must be at least 1 and reassign at least 0 and below 1, got {expand} and {reassign}")
    x = as_points(points).detach()
    draws = generator or torch.Generator().manual_seed(0)
    if k >= len(x):
        return quantize(x, k, weights=weights, generator=draws)
    batches = torch.randperm(len(x), generator=draws).to(x.device).split(expand * k)
    centre = _read(x[batches[0]]).mean(0)
    atoms = (start or _start)(_read(x[batches[0]]) - centre, k, draws).to(centre)
    wins = torch.zeros(k, dtype=torch.float64, device=x.device)
    seen = 0
    for rows in progress(batches, "learn", len(batches), unit="batch"):
        batch = _read(x[rows]).sub_(centre)
        seen += len(batches[0])
        due = bool((wins == 0).any()) or seen >= PAUSE * k
        atoms = _learn(atoms, wins, batch)
        if due:
            _reassign(atoms, wins, batch, reassign, draws)
            seen = 0
    costs = _costs(x, atoms, centre)
    if weights == "uniform":
        mass, cost = torch.full((k,), 1 / k, dtype=torch.float64), balanced(torch.cat(list(costs), 1)).cost
    else:
        mass, cost = _masses(costs, k, len(x))
    found = Barycenter((atoms + centre).to(x.dtype).cpu(), mass.to(x.dtype), cost, [cost])
    return replace(found, seconds=time.perf_counter() - began)


def _start(batch: Tensor, k: int, draws: torch.Generator) -> Tensor:
    """Return k points of the batch by greedy k-means++ (line 1).

    In more dimensions than points, the products of all pairs take less time than a pass over the points for each atom.
    """
    if len(batch) > batch.shape[1]:
        return _greedy(batch, k, draws)
    norms = _squares(batch)
    squared = torch.addmm(norms[:, None] + norms, batch, batch.T, alpha=-2).clamp_(min=0).fill_diagonal_(0)
    chosen = torch.randint(len(batch), (1,), generator=draws).tolist()
    near = squared[chosen[0]]
    for _ in range(k - 1):
        odds = near.double().cpu().cumsum(0)
        drawn = odds[-1] * torch.rand(2 + int(math.log(k)), generator=draws, dtype=torch.float64)
        tries = torch.searchsorted(odds, drawn, right=True).clamp_(max=len(batch) - 1)
        reduced = torch.minimum(squared[tries.to(batch.device)], near)
        best = int(reduced.sum(1).argmin())
        near = reduced[best]
        chosen.append(int(tries[best]))
    return batch[chosen]


def _read(rows: Tensor) -> Tensor:
    """Return a copy of points in the type that is computed in; `rows` is one already."""
    return rows if rows.dtype == torch.float64 else rows.float()


def _learn(atoms: Tensor, wins: Tensor, batch: Tensor) -> Tensor:
    """Return the atoms after a batch, whose points are added to the wins n [K] (lines 2 to 4)."""
    k = len(atoms)
    cells = _cells(batch, atoms)
    won = torch.bincount(cells, minlength=k)
    wins += won
    if batch.is_cuda:  # where index_add_ adds in any order
        sums = torch.nn.functional.one_hot(cells, k).to(batch).T @ batch
    else:
        sums = torch.zeros_like(atoms).index_add_(0, cells, batch)
    return atoms + (sums - won[:, None] * atoms) / wins.clamp(min=1)[:, None].to(atoms)


def _reassign(atoms: Tensor, wins: Tensor, batch: Tensor, share: float, draws: torch.Generator) -> None:
    """Put the atoms that won too little on points of the batch (line 5), in place."""
    most = len(batch) // 2
    few = wins < share * wins.max()
    if int(few.sum()) > most:
        few[wins.argsort(stable=True)[most:]] = False
    count = int(few.sum())
    if count > 0:
        atoms[few] = batch[torch.randperm(len(batch), generator=draws)[:count].to(batch.device)]
        wins[few] = wins[~few].min()


def _costs(x: Tensor, atoms: Tensor, centre: Tensor) -> Iterator[Tensor]:
    """Yield ||b_k - x_i||^2, [K, B], of atoms about the centre and blocks of the points.

    Raises:
        WmddError: they overflow.
    """
    norms = _squares(atoms)[:, None]
    for rows in x.split(max(1, BLOCK // x.shape[1])):
        part = rows.to(centre) - centre
        costs = torch.addmm(norms + _squares(part), atoms, part.T, alpha=-2)
        if not bool(torch.isfinite(costs.sum())):
            raise WmddError("the squared distances of the points overflow; scale them down or give float64")
        yield costs.clamp_(min=0)


def _squares(x: Tensor) -> Tensor:
    """Return ||x_i||^2, without an array of the squares."""
    return torch.linalg.vector_norm(x, dim=1).square_()


def _masses(costs: Iterable[Tensor], k: int, n: int) -> tuple[Tensor, float]:
    """Return the masses [K] of the atoms' cells, and the mean squared distance to the nearest atom."""
    count, total = torch.zeros(k, dtype=torch.float64), 0.0
    for part in costs:
        near, cell = part.min(0)
        count += torch.bincount(cell, minlength=k).cpu()
        total += float(near.sum(dtype=torch.float64))
    return count / n, total / n
