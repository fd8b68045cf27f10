r"""Partitions of a batch of measures into K cells, and the steps that lower their cost.

Legend: C measures (classes), R replicas of the partition of each, N points, D dimensions, K cells, M moves.

A cell k with n_k points that sum to S_k has its optimal atom at the mean S_k / n_k, so with centred points the cost of a
partition is

    N W_2^2 = \sum_i ||x_i||^2 - \sum_k ||S_k||^2 / n_k

and only the sums must be kept. Lloyd's step gives every point to the nearest mean. It stops too early where cells are small,
because a point pulls the mean of its own cell towards itself: moving point i from cell a to cell b changes N W_2^2 by

    n_b / (n_b + 1) ||x_i - S_b/n_b||^2 - n_a / (n_a - 1) ||x_i - S_a/n_a||^2                        (Hartigan, [1] Eq. 4)

Hartigan's step makes every move for which this is negative, all at once, and keeps the result when the cost has really fallen;
else it retries with the most profitable moves, then with moves that share no cell, and last with the best one, which
cannot fail. A partition that it leaves alone is a local optimum of single moves, a proper subset of Lloyd's fixed points [1].

References:
    [1] Telgarsky, Vattani: Hartigan's Method: k-means Clustering without Voronoi, AISTATS 2010.
    [2] Hartigan, Wong: Algorithm AS 136, Applied Statistics 28(1), 1979 (moves one point at a time; here they are batched).
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

FOCUS = 4  # of so many points, the one nearest to a move is looked at between full steps
THIN = 16  # dimensions
SHARES = (0.5, 1.0)  # of the gain of the best move that touches the same cells: the better moves, then one for a cell


@dataclass(frozen=True)
class Measures:
    """C measures of at most N points, centred; rows beyond `count` are padding.

    Attributes:
        x: [C, N, D + 2], the centred points, ||x||^2 and 1, so that one product gives distances; 0 on padding.
        count: [C] points.
        real: [C, N], False on padding.
        rounding: [C, N], what a difference of distances must exceed to count; infinite on padding.
        total: [C], sum of ||x||^2, float64.
        centre: [C, D], float64.
    """

    x: Tensor
    count: Tensor
    real: Tensor
    rounding: Tensor
    total: Tensor
    centre: Tensor

    @classmethod
    def of(cls, points: Tensor, count: Tensor) -> "Measures":
        """Centre points [C, N, D] of which `count` [C] are real; computed in their own type."""
        real = torch.arange(points.shape[1], device=points.device) < count[:, None]
        whole = bool(real.all())
        kept = points if whole else points.where(real[..., None], 0)
        centre = kept.sum(1, dtype=torch.float64) / count[:, None]
        c, n, d = points.shape
        # thin products are faster from columns
        x = points.new_empty(1, d + 2, n).mT if c == 1 and d < THIN else points.new_empty(c, n, d + 2)
        torch.sub(kept, centre[:, None].to(points.dtype), out=x[..., :-2])
        x[..., -2] = x[..., :-2].square().sum(2)
        x[..., -1] = 1
        if not whole:
            x *= real[..., None]
        rounding = (4 * torch.finfo(x.dtype).eps * x[..., -2]).where(real, torch.inf)
        return cls(x, count, real, rounding, x[..., -2].sum(1, dtype=torch.float64), centre)

    @property
    def points(self) -> Tensor:
        """The centred points [C, N, D]."""
        return self.x[..., :-2]

    def subset(self, chosen: Tensor, free: Tensor) -> "Measures":
        """Keep the chosen rows [C, M], of which the `free` [C, M] may move; count and total stay those of the whole measure."""
        row = torch.arange(len(chosen), device=chosen.device)[:, None].expand_as(chosen)
        x = self.rows(row.flatten(), chosen.flatten()).view(*chosen.shape, -1)
        real, rounding = self.real.gather(1, chosen) & free, self.rounding.gather(1, chosen).where(free, torch.inf)
        return replace(self, x=x, real=real, rounding=rounding)

    def rows(self, measure: Tensor, point: Tensor) -> Tensor:
        """Return the rows of x of the given measures and points, [M, D + 2]."""
        return self.x.flatten(0, 1).index_select(0, measure * self.x.shape[1] + point)

    def distances(self, atoms: Tensor) -> Tensor:
        """Return ||b_k - x_i||^2, [C, R, K, N], of centred atoms [C, R, K, D]; may be a rounding error below 0."""
        return self.product(
            torch.cat([atoms * -2, torch.ones_like(atoms[..., :1]), atoms.square().sum(-1, keepdim=True)], -1)
        )

    def product(self, left: Tensor) -> Tensor:
        """Return left [C, R, K, D + 2] times x transposed, [C, R, K, N]."""
        c, r, k, d = left.shape
        return torch.bmm(left.view(c, r * k, d), self.x.mT).view(c, r, k, -1)


@dataclass(frozen=True)
class Moves:
    """M moves of one point each: measure c, point i, partition c R + r, cells (partition K + k), and what each saves."""

    measure: Tensor
    point: Tensor
    partition: Tensor
    source: Tensor
    target: Tensor
    gain: Tensor

    def take(self, chosen: Tensor) -> "Moves":
        """Keep some of them."""
        return Moves(*(getattr(self, part.name)[chosen] for part in fields(self)))

    def rivals(self, cells: int) -> Tensor:
        """Return the gain of the best move that touches one of the two cells of each move; `cells` is C R K."""
        top = self.gain.new_zeros(cells).scatter_reduce_(0, self.source, self.gain, "amax")
        top.scatter_reduce_(0, self.target, self.gain, "amax")
        return torch.maximum(top[self.source], top[self.target])


@dataclass(frozen=True)
class Cells:
    """R partitions of each of C measures.

    Attributes:
        measures: what is divided.
        label: [C, R, N], the cell of each point.
        sums: [C, R, K, D + 2], of the rows x of each cell: S_k, the sum of ||x||^2 and n_k.
        square: [C, R, K], ||S_k||^2, float64.
        cost: [C, R], N W2^2, float64.
    """

    measures: Measures
    label: Tensor
    sums: Tensor
    square: Tensor
    cost: Tensor

    @classmethod
    def of(cls, measures: Measures, label: Tensor, k: int) -> "Cells":
        """Gather the sums of given labels [C, R, N]."""
        c, r, n = label.shape
        x = measures.x
        if x.is_cuda:  # where index_add_ adds in any order, and a launch a partition takes longer than the product
            member = x.new_zeros(c, r, k, n).scatter_(2, label[:, :, None], 1)
            sums = torch.bmm(member.view(c, r * k, n), x).view(c, r, k, -1)
            return cls(measures, label, sums, *_cost(measures, sums))
        sums = x.new_zeros(c, r, k, x.shape[2])
        for i in range(c):
            for j in range(r):
                sums[i, j].index_add_(0, label[i, j], x[i])
        return cls(measures, label, sums, *_cost(measures, sums))

    @property
    def count(self) -> Tensor:
        """Points in each cell, n [C, R, K]."""
        return self.sums[..., -1]

    @property
    def means(self) -> Tensor:
        """The atoms [C, R, K, D]; the centre for an empty cell."""
        return self.sums[..., :-2] / self.count.clamp(min=1)[..., None]

    def pick(self, replica: Tensor) -> "Cells":
        """Return one replica [C] of each measure, R = 1."""
        row = torch.arange(len(replica), device=replica.device)
        return Cells(self.measures, *(part[row, replica][:, None] for part in self._parts()))

    def where(self, mine: Tensor, other: "Cells") -> "Cells":
        """Return this where `mine` [C, R], else the other."""
        pairs = zip(self._parts(), other._parts(), strict=True)
        return Cells(self.measures, *(a.where(mine.view(*mine.shape, *[1] * (a.ndim - 2)), b) for a, b in pairs))

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.label, self.sums, self.square, self.cost

    def repaired(self) -> "Cells":
        """Give each empty cell the point that is farthest from its mean, of a cell that keeps one, if it is off its mean."""
        if bool((self.count > 0).all()):
            return self
        label, count = self.label.clone(), self.count.clone()
        near = self.measures.distances(self.means).gather(2, label[:, :, None])[:, :, 0]
        for c, r, k in (count == 0).nonzero().tolist():
            spare = (count[c, r][label[c, r]] > 1) & (near[c, r] > self.measures.rounding[c])
            if bool(spare.any()):
                i = int(near[c, r].where(spare, -1).argmax())
                count[c, r, label[c, r, i]] -= 1
                count[c, r, k] += 1
                label[c, r, i] = k
        return Cells.of(self.measures, label, count.shape[2])

    def hartigan(self) -> tuple["Cells", Tensor]:
        """Make one step of simultaneous moves; where none lowers the cost the partition stays as it is.

        Returns:
            The partition, and what the best move of each point would have saved (Eq. 4 negated), [C, R, N].
        """
        joined, gain = self._gains()
        moves = self._moves(joined, gain)
        if not len(moves.gain):
            return self, gain
        after = self._after(moves)
        better = self._better(after)
        if not bool(better.all()):
            after = self._careful(after, better, moves, gain)
        return after, gain

    def _careful(self, after: "Cells", better: Tensor, moves: Moves, gain: Tensor) -> "Cells":
        """Retry with fewer moves where making all did not pay."""
        best = after.where(better, self)
        waiting = ~better & (gain > 0).any(2)
        rival, top = moves.rivals(self.count.numel()), gain.argmax(2).flatten()[moves.partition]
        for share in (*SHARES, None):
            if not bool(waiting.any()):
                break
            chosen = moves.point == top if share is None else moves.gain >= share * rival
            after = self._after(moves.take(chosen & waiting.flatten()[moves.partition]))
            better = waiting & self._better(after)
            best, waiting = after.where(better, best), waiting & ~better
        return best

    def _better(self, after: "Cells") -> Tensor:
        return (after.cost < self.cost) & (after.count.amin(2) > 0)

    def _gains(self) -> tuple[Tensor, Tensor]:
        """Return n_b / (n_b + 1) ||x_i - m_b||^2, [C, R, K, N] (infinite for the own cell), and the gain of the best move."""
        n = self.count
        more = n + 1
        factor = torch.stack([n / more, (self.square / (n * more)).to(n.dtype).nan_to_num_(0)], -1)
        joined = self.measures.product(torch.cat([self.sums[..., :-2] * (-2 / more)[..., None], factor], -1))
        own = self.label[:, :, None]
        out = (more / (n - 1)).masked_fill_(n <= 1, 0)
        leave = joined.gather(2, own)[:, :, 0].mul_(out.gather(2, self.label))
        into = joined.scatter_(2, own, torch.inf).amin(2)
        return joined, leave.sub_(into).sub_(self.measures.rounding[:, None])

    def _moves(self, joined: Tensor, gain: Tensor) -> Moves:
        """List the moves that save something."""
        c, r, i = (gain > 0).nonzero(as_tuple=True)
        target = joined[c, r, :, i].argmin(1)
        partition, k = c * self.label.shape[1] + r, self.sums.shape[2]
        row = partition * k
        return Moves(c, i, partition, row + self.label[c, r, i], row + target, gain[c, r, i])

    def _after(self, moves: Moves) -> "Cells":
        """Return the partition after the moves."""
        x = self.measures.rows(moves.measure, moves.point)
        sums = (
            self.sums.flatten(0, 2)
            .index_add(0, moves.target, x)
            .index_add_(0, moves.source, x, alpha=-1)
            .view_as(self.sums)
        )
        label = self.label.clone()
        label.flatten(0, 1)[moves.partition, moves.point] = moves.target % sums.shape[2]
        return Cells(self.measures, label, sums, *_cost(self.measures, sums))

    def focus(self, gain: Tensor) -> tuple["Cells", Tensor]:
        """Return the same cells with only the points nearest to a move free to make it (R = 1), and which these are [C, M]."""
        chosen = gain[:, 0].topk(gain.shape[2] // FOCUS, dim=1).indices
        few = torch.arange(chosen.shape[1], device=chosen.device) < (self.measures.count // FOCUS)[:, None]
        return replace(
            self, measures=self.measures.subset(chosen, few), label=self.label.gather(2, chosen[:, None])
        ), chosen

    def unfocus(self, whole: "Cells", chosen: Tensor) -> "Cells":
        """Return the cells with all points free again."""
        return replace(self, measures=whole.measures, label=whole.label.scatter(2, chosen[:, None], self.label))


def _cost(measures: Measures, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return ||S_k||^2 and N W2^2 of cells with the given sums, float64."""
    square = sums[..., :-2].square().sum(-1, dtype=torch.float64)
    return square, measures.total[:, None] - (square / sums[..., -1].clamp(min=1)).sum(2)
