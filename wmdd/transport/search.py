r"""Local search for quantization: leave an optimum of single moves by moving half a cell at a time.

Every cell is cut in two. With n', n'' points and means m', m'' of the parts, the cut of cell s saves
n' n'' / n_s ||m' - m''||^2 of N W_2^2, and joining any two sets a and b costs n_a n_b / (n_a + n_b) ||m_a - m_b||^2, both
exactly. Two kinds of exchange keep the number of cells: one part of s joins another cell b; or a and b become one cell, and
one part of s the cell that is left over. The difference tells at once which exchanges pay; those that nearly pay may still do
so once the points around have moved, and are tried. (The idea of [1] and [2]; the cut is by a principal direction and two
means, not at a random place, because in many dimensions a point is no atom.)

References:
    [1] Fränti: Efficiency of random swap clustering, Journal of Big Data 5:13, 2018.
    [2] Ball, Hall: ISODATA, Stanford Research Institute, 1965 (splits and merges by thresholds).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from wmdd.transport.cells import Cells
from wmdd.transport.descent import descend

DOUBLED = 0.3  # seen: below 0.15 where a cluster of a mixture is in two cells, above 0.36 elsewhere


def improve(
    cells: Cells, replicas: int, trial: int, steps: Tensor, rounds: int, tolerance: float, doubled: bool = False
) -> tuple[Cells, list[Tensor]]:
    """Exchange cells until no exchange that is tried lowers the cost, or `rounds` times; return the costs [C, 1] as `descend`.

    Args:
        cells: R = 1, at a local optimum of single moves.
        replicas: exchanges tried at once.
        trial: Hartigan steps after which the best exchange is chosen.
        steps: [C, 1], Hartigan steps, at most; those made are taken off.
        rounds: exchanges, at most.
        tolerance: of `descend`, and what an exchange must save, as a share of the cost.
        doubled: only as long as two cells share a cluster, by the look of them.
    """
    trace: list[Tensor] = []
    running = torch.ones_like(cells.cost, dtype=torch.bool)
    for _ in range(rounds if cells.sums.shape[2] > 1 else 0):
        running = running & _share_a_cluster(cells) if doubled else running
        if not bool(running.any()):
            break
        tried, _ = descend(Cells.of(cells.measures, exchanges(cells, replicas), cells.sums.shape[2]), trial, tolerance)
        tried = tried.pick(tried.cost.argmin(1))
        steps -= trial * running.long()
        running = running & (steps >= 0) & (cells.cost - tried.cost > tolerance * cells.cost) & (tried.count > 0).all(2)
        if not bool(running.any()):
            break
        cells, costs = descend(tried.where(running, cells), steps, tolerance, running)
        trace += costs
    return cells, trace


@dataclass(frozen=True)
class Parts:
    """The two parts of every cell: means [C, K, 2, D], counts [C, K, 2], what the cut saves [C, K], points' part [C, N]."""

    mean: Tensor
    count: Tensor
    saved: Tensor
    part: Tensor


@dataclass(frozen=True)
class Exchanges:
    """T exchanges a measure, [C, T] each: all of b goes to a, then part h of s to b; and what each saves, net."""

    s: Tensor
    h: Tensor
    a: Tensor
    b: Tensor
    net: Tensor

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """All of them, in order."""
        return self.s, self.h, self.a, self.b, self.net

    def apply(self, label: Tensor, part: Tensor, chosen: Tensor, where: Tensor) -> Tensor:
        """Return labels [C, N] after the exchanges `chosen` [C], made `where` [C]."""
        s, h, a, b = (table.gather(1, chosen[:, None]) for table in (self.s, self.h, self.a, self.b))
        moved = torch.where(label == b, a, label).where(~((label == s) & (part == h)), b)
        return moved.where(where[:, None], label)

    def touching(self, chosen: Tensor) -> Tensor:
        """Return which exchanges share a cell with the chosen one [C]."""
        used = [table.gather(1, chosen[:, None]) for table in (self.s, self.a, self.b)]
        return torch.stack([mine == cell for mine in (self.s, self.a, self.b) for cell in used]).any(0)


def exchanges(cells: Cells, replicas: int) -> Tensor:
    """Return labels [C, R, N] after exchanges: in replica 0 all that pay and share no cell, in the others the best joins.

    The best of all stands in replica 0 even if it does not pay.
    """
    parts = split(cells)
    moves, joins = moves_of_parts(cells, parts), joins_of_cells(cells, parts)
    old = cells.label[:, 0]
    always = torch.ones_like(old[:, 0], dtype=torch.bool)
    both = Exchanges(*(torch.cat(pair, 1) for pair in zip(moves.tables, joins.tables, strict=True)))
    net, (best, chosen) = both.net, both.net.max(1)
    new = both.apply(old, parts.part, chosen, torch.isfinite(best))
    for _ in range(cells.sums.shape[2] // 2 - 1):
        net = net.masked_fill(both.touching(chosen), -torch.inf)
        best, chosen = net.max(1)
        if not bool((best > 0).any()):
            break
        new = both.apply(new, parts.part, chosen, best > 0)
    ranked = joins.net.topk(min(replicas - 1, joins.net.shape[1]), dim=1).indices
    others = [joins.apply(old, parts.part, chosen, always) for chosen in ranked.unbind(1)]
    return torch.stack([new, *others], 1)


def moves_of_parts(cells: Cells, parts: Parts) -> Exchanges:
    """List all moves of a part to another cell."""
    mean, n = cells.means[:, 0], cells.count[:, 0]
    c, k, _ = mean.shape
    cell = torch.arange(k, device=mean.device)
    price = _price(parts.mean.flatten(1, 2), parts.count.flatten(1), mean, n).view(c, k, 2, k)
    net = (parts.saved[:, :, None, None] - price).masked_fill((cell[:, None] == cell)[:, None], -torch.inf)
    s, h, b = torch.meshgrid(cell, torch.arange(2, device=mean.device), cell, indexing="ij")
    s, h, b = (table.flatten().expand(c, -1) for table in (s, h, b))
    return Exchanges(s, h, b, b, net.flatten(1))


def joins_of_cells(cells: Cells, parts: Parts) -> Exchanges:
    """List all splits with the K cheapest joins of two others."""
    mean, n = cells.means[:, 0], cells.count[:, 0]
    k = n.shape[1]
    cell = torch.arange(k, device=mean.device)[None, :, None]
    one, two = torch.triu_indices(k, k, 1, device=mean.device)
    price, index = _price(mean, n, mean, n)[:, one, two].topk(min(k, len(one)), dim=1, largest=False)
    a, b = one[index][:, None].expand(-1, k, -1), two[index][:, None].expand(-1, k, -1)
    s = cell.expand_as(a)
    net = (parts.saved[:, :, None] - price[:, None]).masked_fill((s == a) | (s == b), -torch.inf)
    return Exchanges(*(table.flatten(1) for table in (s, torch.ones_like(s), a, b, net)))


def _share_a_cluster(cells: Cells) -> Tensor:
    """Return whether two cells stand much closer than cells use to, [C, 1]: the cheapest join against the median cell's."""
    mean, n = cells.means[:, 0], cells.count[:, 0]
    nearest = (_price(mean, n, mean, n) + torch.diag(n.new_full(n.shape[1:], torch.inf))).amin(2)
    return (nearest.amin(1) < DOUBLED * nearest.median(1).values)[:, None]


def _price(mean: Tensor, count: Tensor, other: Tensor, counts: Tensor) -> Tensor:
    """Return what joining sets costs of N W2^2, [C, A, B], from means [C, A, D], [C, B, D] and counts [C, A], [C, B]."""
    together = (count[:, :, None] + counts[:, None]).clamp(min=1)
    return torch.cdist(mean, other).square() * count[:, :, None] * counts[:, None] / together


def split(cells: Cells) -> Parts:
    """Cut each cell across the direction of one power iteration from its farthest point, then by two means.

    Everything is a product with the points, of which only the entries of the own cell are used: no copy of the points is made.
    """
    measures, own, mean = cells.measures, cells.label, cells.means[:, 0]
    x, n = measures.x, cells.count[:, 0]
    c, k, d = mean.shape

    def along(directions: Tensor, offset: Tensor) -> Tensor:  # of each point, [C, N]: v.(x - m) - offset of its cell
        start = -(directions * mean).sum(2) - offset
        left = torch.cat([directions, torch.zeros_like(start)[..., None], start[..., None]], 2)
        return torch.bmm(left, x.mT).gather(1, own)[:, 0]

    def gather(weights: Tensor) -> tuple[Tensor, Tensor]:  # sums of w (x - m), [C, K, D], and of w, [C, K]
        spread = x.new_zeros(c, k, x.shape[1]).scatter_(1, own, weights[:, None])
        sums = torch.bmm(spread, x)
        return sums[..., :d] - mean * sums[..., d + 1 :], sums[..., d + 1]

    far = measures.distances(cells.means)[:, 0].gather(1, own)[:, 0].where(measures.real, -torch.inf)
    first = x.new_full((c, k, x.shape[1]), -torch.inf).scatter_(1, own, far[:, None]).argmax(2)
    none = torch.zeros_like(n)
    axis, _ = gather(along(x.gather(1, first[..., None].expand(-1, -1, d)) - mean, none))
    sums, inside = gather((along(axis, none) > 0).to(x.dtype))
    one, two = sums / inside.clamp(min=1)[..., None], -sums / (n - inside).clamp(min=1)[..., None]
    side = along(one - two, (one.square() - two.square()).sum(2) / 2) > 0
    sums, inside = gather(side.to(x.dtype))
    count = torch.stack([n - inside, inside], 2)
    rest = torch.stack([-sums, sums], 2) / count.clamp(min=1)[..., None]
    saved = (sums.square().sum(2) * n / (inside * (n - inside))).where((inside > 0.5) & (inside < n - 0.5), 0)
    return Parts(mean[:, :, None] + rest, count, saved, side.long())
