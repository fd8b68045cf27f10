"""Exchanges of cells, against the cost of a partition computed from its definition."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wmdd.transport.cells import Cells
from wmdd.transport.descent import descend
from wmdd.transport.search import exchanges, improve, joins_of_cells, moves_of_parts, split

from .samples import SEEDS, batch, cloud, draws, grid

quick = settings(max_examples=40, deadline=None)
SIZES = st.lists(st.integers(8, 25), min_size=1, max_size=3)


def partition(points: list[Tensor], k: int, seed: int) -> Cells:
    """Random cells, none empty, the padding in one of them."""
    measures = batch(points)
    label = torch.randint(k, (len(points), 1, measures.real.shape[1]), generator=draws(seed))
    for c, p in enumerate(points):
        label[c, 0, torch.randperm(len(p), generator=draws(seed + c))[:k]] = torch.arange(k)
    return Cells.of(measures, label, k)


def cost(points: Tensor, label: Tensor) -> float:
    label = label[: len(points)]
    return sum(float((p - p.mean(0)).square().sum()) for p in (points[label == k] for k in label.unique()))


def made(seed: int, sizes: list[int], whole: bool) -> list[Tensor]:
    return [grid(n, 3, seed + n) if whole else 20 + cloud(n, 3, seed + n) for n in sizes]


# ---- what a split saves and a merger costs


@given(SEEDS, SIZES, st.integers(1, 6), st.booleans())
@quick
def test_a_split_saves_what_it_says(seed, sizes, k, whole):
    points = made(seed, sizes, whole)
    now = partition(points, k, seed)
    parts = split(now)
    for c, p in enumerate(points):
        own, part = now.label[c, 0, : len(p)], parts.part[c, : len(p)]
        for cell in range(k):
            after = torch.where((own == cell) & (part == 1), k, own)
            saved = float(parts.saved[c, cell])
            assert saved == pytest.approx(cost(p, own) - cost(p, after), rel=1e-9, abs=1e-9)
            # what has extent can be split, and nothing else
            assert (saved > 1e-9) == (len(p[own == cell].unique(dim=0)) > 1)
            for h in range(2):
                mine = p[(own == cell) & (part == h)]
                assert float(parts.count[c, cell, h]) == len(mine)
                if len(mine):
                    torch.testing.assert_close(parts.mean[c, cell, h], mine.mean(0) - p.mean(0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dimensions", [1, 2, 16])
def test_two_clusters_in_one_cell_are_told_apart(dimensions):
    a, b = cloud(12, dimensions, 1), 30 + cloud(9, dimensions, 2)
    other = -50 + cloud(10, dimensions, 3)
    label = torch.tensor([0] * 21 + [1] * 10)
    now = Cells.of(batch([torch.cat([a, b, other])]), label[None, None], 2)
    parts = split(now)
    saved = parts.saved
    assert parts.part[0, :21].tolist() in ([1] * 12 + [0] * 9, [0] * 12 + [1] * 9)
    apart = float((a.mean(0) - b.mean(0)).square().sum())
    assert float(saved[0, 0]) == pytest.approx(12 * 9 / 21 * apart)
    assert float(saved[0, 0]) > float(saved[0, 1])


def test_a_split_of_a_line_is_close_to_the_best_one():
    ratio = []
    for seed in range(20):
        p = cloud(25, 1, seed)
        here, s = cost(p, torch.zeros(25)), p[:, 0].sort().values[:, None]
        best = max(here - cost(s, (torch.arange(25) < cut).long()) for cut in range(1, 25))
        saved = split(Cells.of(batch([p]), torch.zeros(1, 1, 25, dtype=torch.long), 1)).saved
        assert float(saved[0, 0]) <= best * (1 + 1e-9)
        ratio.append(float(saved[0, 0]) / best)
    assert sum(ratio) / len(ratio) > 0.9


def real_net(points: Tensor, label: Tensor, part: Tensor, s: int, h: int, a: int, b: int) -> float:
    """What it saves to let all of b go to a, then part h of s to b; from the definition."""
    label, part = label[: len(points)], part[: len(points)]
    moving = (label == s) & (part == h)
    joined = torch.where(label == b, a, label)
    return cost(points, label) - cost(points, torch.where(moving, b, joined))


@given(SEEDS, SIZES, st.integers(3, 6), st.booleans())
@quick
def test_an_exchange_saves_what_it_says_and_the_best_are_listed(seed, sizes, k, whole):
    points = made(seed, sizes, whole)
    now = partition(points, k, seed)
    parts = split(now)
    moves, joins = moves_of_parts(now, parts), joins_of_cells(now, parts)
    for c, p in enumerate(points):
        own = now.label[c, 0]
        for table in (moves, joins):
            listed = {}
            for s, h, a, b, net in zip(*(column[c].tolist() for column in table.tables), strict=True):
                if s in (a, b):
                    assert net == -float("inf")
                else:
                    listed[s, h, a, b] = net
                    assert net == pytest.approx(real_net(p, own, parts.part[c], s, h, a, b), rel=1e-9, abs=1e-8)
            if table is moves:
                possible = [(s, h, b, b) for s, h, b in itertools.product(range(k), range(2), range(k)) if s != b]
                assert listed.keys() == set(possible)
            else:
                possible = [
                    (s, 1, a, b)
                    for s, (a, b) in itertools.product(range(k), itertools.combinations(range(k), 2))
                    if s not in (a, b)
                ]
                assert listed.keys() <= set(possible)
            best = max(real_net(p, own, parts.part[c], *exchange) for exchange in possible)
            assert max(listed.values()) == pytest.approx(best, rel=1e-9, abs=1e-8)


# ---- exchanges


@given(SEEDS, SIZES, st.integers(3, 7), st.integers(1, 4), st.booleans())
@quick
def test_all_exchanges_that_pay_are_made_and_the_best_joins_are_tried(seed, sizes, k, replicas, whole):
    points = made(seed, sizes, whole)
    now = partition(points, k, seed)
    parts = split(now)
    moves, joins = moves_of_parts(now, parts), joins_of_cells(now, parts)
    after = Cells.of(now.measures, exchanges(now, replicas), k)
    for c in range(len(points)):
        gone = float(now.cost[c, 0]) - after.cost[c]
        best = float(torch.cat([moves.net[c], joins.net[c]]).max())
        # several at once save at least as much as the best of them, if it saves anything
        assert float(gone[0]) >= best - 1e-8
        if best <= 0 or k < 4:  # no other one would pay, or there is no room for one
            assert float(gone[0]) == pytest.approx(best, rel=1e-9, abs=1e-8)
        ranked = sorted(joins.net[c].tolist(), reverse=True)
        for r in range(1, after.label.shape[1]):
            if ranked[r - 1] > -float("inf"):
                assert float(gone[r]) == pytest.approx(ranked[r - 1], rel=1e-9, abs=1e-8)
        assert best <= 0 or bool((after.count[c, 0] > 0).all())


def test_exchanges_that_share_no_cell_are_made_at_once():
    # Two far copies of: a pair of clusters in one cell, and one cluster in two cells.
    a, b, c = cloud(10, 2, 1), cloud(10, 2, 2) + torch.tensor([0.0, 40.0]), cloud(10, 2, 3) + torch.tensor([40.0, 0.0])
    half = torch.cat([a, b, c])
    label = torch.tensor([0] * 20 + [1] * 5 + [2] * 5)
    now = Cells.of(batch([torch.cat([half, half + 1e3])]), torch.cat([label, label + 3])[None, None], 6)
    after = Cells.of(now.measures, exchanges(now, 2), 6)
    clusters = sum(float((p - p.mean(0)).square().sum()) for p in (a, b, c))
    assert float(after.cost[0, 0]) == pytest.approx(2 * clusters, rel=1e-6)
    assert float(after.cost[0, 1]) > 2.5 * clusters


# ---- out of a local optimum


def three_clusters(seed: int = 0) -> tuple[Tensor, Tensor, float]:
    """Three far clusters, the first in two cells, the others together in one: no single move leaves this."""
    clusters = [cloud(14, 3, seed + i) + 200 * torch.eye(3, dtype=torch.float64)[i] for i in range(3)]
    points = torch.cat(clusters)
    far = clusters[0][:, 0] > clusters[0][:, 0].median()
    label = torch.cat([far.long(), torch.full((28,), 2)])
    return points, label, sum(float((p - p.mean(0)).square().sum()) for p in clusters)


@pytest.mark.parametrize("seed", range(5))
def test_an_exchange_leaves_an_optimum_of_single_moves(seed):
    points, label, best = three_clusters(seed)
    stuck, _ = descend(Cells.of(batch([points]), label[None, None], 3), 1000, 0.0)
    assert float(stuck.cost) > 100 * best
    assert bool((stuck.label[0, 0, 14:] == 2).all())
    again, gain = stuck.hartigan()
    assert torch.equal(again.label, stuck.label)
    assert bool((gain <= 0).all())
    end, trace = improve(stuck, 2, 3, 300, 10, 0.0)
    assert float(end.cost) == pytest.approx(best, rel=1e-9)
    assert [float(c) for c in trace] == sorted((float(c) for c in trace), reverse=True)


def test_only_those_that_get_better_are_changed():
    points, label, best = three_clusters()
    good = torch.arange(3).repeat_interleave(14)
    stuck = Cells.of(batch([points, points + 7]), torch.stack([label, good])[:, None], 3)
    end, _ = improve(stuck, 2, 3, 300, 10, 0.0)
    assert end.cost[:, 0].tolist() == pytest.approx([best, best], rel=1e-9)
    assert end.label[1, 0].tolist() == good.tolist()


@given(SEEDS, SIZES, st.integers(1, 7), st.booleans(), st.sampled_from([0.0, 1e-4]))
@quick
def test_improving_never_costs_more_nor_empties_a_cell(seed, sizes, k, whole, tolerance):
    points = made(seed, sizes, whole)
    start, _ = descend(partition(points, k, seed), 300, tolerance)
    end, trace = improve(start, 2, 3, 300, 5, tolerance)
    assert bool((end.cost <= start.cost).all())
    assert bool((end.count > 0).all())
    for c, p in enumerate(points):
        # a measure that made no step while others did has NaN
        costs = [float(x[c, 0]) for x in [start.cost, *trace] if not bool(x[c, 0].isnan())]
        assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(costs))
        assert float(end.cost[c, 0]) == pytest.approx(cost(p, end.label[c, 0]), rel=1e-9, abs=1e-9)


def test_one_cell_leaves_nothing_to_exchange():
    start = partition([cloud(20, 2)], 1, 0)
    end, trace = improve(start, 2, 3, 300, 5, 0.0)
    assert end is start
    assert trace == []
