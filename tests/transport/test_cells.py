"""Hartigan's steps and the starts, against the cost of a partition computed from its definition."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wmdd.transport import seeding
from wmdd.transport.cells import Cells, Measures
from wmdd.transport.descent import descend

from .samples import SEEDS, batch, cloud, draws, grid

quick = settings(max_examples=40, deadline=None)


def labels(measures: Measures, k: int, replicas: int, seed: int) -> Tensor:
    """Random labels, every cell with at least one point."""
    c, n = measures.real.shape
    label = torch.randint(k, (c, replicas, n), generator=draws(seed))
    for i in range(c):
        for r in range(replicas):
            label[i, r, torch.randperm(int(measures.count[i]), generator=draws(seed + r))[:k]] = torch.arange(k)
    return label


def cost(points: Tensor, label: Tensor) -> float:
    """The sum of squared distances of the points to the means of their cells, from the definition."""
    label = label[: len(points)]
    return sum(float((p - p.mean(0)).square().sum()) for p in (points[label == k] for k in label.unique()))


def best_move(points: Tensor, label: Tensor, i: int, k: int) -> float:
    """The most that moving point i to another cell saves, from the definition."""
    here = cost(points, label)
    saved = []
    for b in range(k):
        if b != int(label[i]):
            moved = label.clone()
            moved[i] = b
            saved.append(here - cost(points, moved))
    return max(saved)


# ---- partitions


@given(SEEDS, st.lists(st.integers(4, 12), min_size=1, max_size=3), st.integers(1, 4), st.integers(1, 3))
@quick
def test_the_cost_of_a_partition(seed, sizes, k, replicas):
    points = [100 + cloud(n, 3, seed + n) for n in sizes]
    measures = batch(points)
    label = labels(measures, k, replicas, seed)
    found = Cells.of(measures, label, k)
    for c, p in enumerate(points):
        assert float(measures.total[c]) == pytest.approx(float((p - p.mean(0)).square().sum()), rel=1e-9)
        torch.testing.assert_close(measures.centre[c], p.mean(0))
        for r in range(replicas):
            own = label[c, r, : len(p)]
            assert float(found.cost[c, r]) == pytest.approx(cost(p, own), rel=1e-9, abs=1e-9)
            assert found.count[c, r].tolist() == torch.bincount(own, minlength=k).tolist()
            means = torch.stack([p[own == cell].mean(0) for cell in range(k)])
            torch.testing.assert_close(found.means[c, r] + measures.centre[c], means)


def test_one_replica_of_each_is_picked():
    points = [cloud(9, 3, 1), cloud(12, 3, 2)]
    measures = batch(points)
    label = labels(measures, 3, 4, 0)
    found = Cells.of(measures, label, 3).pick(torch.tensor([2, 1]))
    assert float(found.cost[0, 0]) == pytest.approx(cost(points[0], label[0, 2]))
    assert float(found.cost[1, 0]) == pytest.approx(cost(points[1], label[1, 1]))
    assert torch.equal(found.label[1, 0], label[1, 1])


# ---- single moves


@given(SEEDS, st.lists(st.integers(5, 9), min_size=1, max_size=3), st.integers(2, 4), st.integers(1, 2), st.booleans())
@quick
def test_the_gain_of_a_move_is_what_it_saves(seed, sizes, k, replicas, whole):
    points = [grid(n, 2, seed + n) if whole else 50 + cloud(n, 2, seed + n) for n in sizes]
    measures = batch(points)
    label = labels(measures, k, replicas, seed)
    _, gain = Cells.of(measures, label, k).hartigan()
    for c, p in enumerate(points):
        for r in range(replicas):
            own = label[c, r, : len(p)]
            saved = [best_move(p, own, i, k) for i in range(len(p))]
            # a point that is alone in its cell never gains by leaving it
            torch.testing.assert_close(
                gain[c, r, : len(p)], torch.tensor(saved, dtype=torch.float64), rtol=0, atol=1e-9
            )
        assert bool((gain[c, :, len(p) :] < 0).all())  # padding never moves


@given(SEEDS, st.lists(st.integers(6, 40), min_size=1, max_size=3), st.integers(2, 6), st.booleans())
@quick
def test_no_step_raises_a_cost_or_empties_a_cell(seed, sizes, k, whole):
    points = [grid(n, 2, seed + n) if whole else cloud(n, 2, seed + n) for n in sizes]
    measures = batch(points)
    now = Cells.of(measures, labels(measures, k, 2, seed), k)
    for _ in range(6):
        after, gain = now.hartigan()
        assert bool((after.cost <= now.cost).all())
        assert bool((after.count > 0).all())
        # a partition changes where a move saves more than rounding, and only there
        assert not bool((after.cost < now.cost)[(gain <= 0).all(2)].any())
        assert bool((after.cost < now.cost)[(gain > 1e-9).any(2)].all())
        for c, p in enumerate(points):
            for r in range(2):
                assert float(after.cost[c, r]) == pytest.approx(cost(p, after.label[c, r]), rel=1e-9, abs=1e-9)
        now = after


@given(SEEDS, st.lists(st.integers(6, 14), min_size=1, max_size=3), st.integers(2, 5), st.booleans())
@quick
def test_no_single_move_improves_the_end(seed, sizes, k, whole):
    points = [grid(n, 2, seed + n) if whole else cloud(n, 2, seed + n) for n in sizes]
    measures = batch(points)
    end, trace = descend(Cells.of(measures, labels(measures, k, 1, seed), k), 1000, 0.0)
    assert len(trace) < 1000
    for c, p in enumerate(points):
        own = end.label[c, 0, : len(p)]
        assert max(best_move(p, own, i, k) for i in range(len(p))) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_no_single_move_improves_the_end_where_steps_look_at_some_of_the_points(seed, dtype, monkeypatch):
    focused = []
    focus = Cells.focus
    monkeypatch.setattr(Cells, "focus", lambda self, gain: focused.append(1) or focus(self, gain))
    points = cloud(700, 3, seed).to(dtype)
    measures = batch([points])
    end, trace = descend(Cells.of(measures, labels(measures, 12, 1, seed), 12), 1000, 0.0)
    assert focused
    assert all(bool((b <= a * (1 + 1e-7)).all()) for a, b in itertools.pairwise(trace))
    assert float(end.cost) == pytest.approx(cost(points.double(), end.label[0, 0]), rel=1e-6)
    _, gain = Cells.of(measures, end.label, 12).hartigan()
    assert float(gain.max()) <= 1e-4 if dtype == torch.float32 else 1e-9
    # each point is also nearest to the mean of its own cell
    means = torch.stack([points[end.label[0, 0] == cell].mean(0) for cell in range(12)])
    near = (points[:, None] - means).square().sum(2)
    own = near.gather(1, end.label[0, 0, :, None])[:, 0]
    assert float((own - near.min(1).values).max()) <= 1e-5


def test_it_leaves_a_fixed_point_of_lloyd():
    # {0, 2} and {3.2, 3.2}: 2 is nearer to the mean 1 than to 3.2, so Lloyd stops. But 1 is only so near because 2 pulls it:
    # {0} and {2, 3.2, 3.2} cost 0 + 3 * 0.32 = 0.96 instead of 2.
    points = torch.tensor([[0.0], [2.0], [3.2], [3.2]], dtype=torch.float64)
    label = torch.tensor([[[0, 0, 1, 1]]])
    start = Cells.of(batch([points]), label, 2)
    nearest = (points - torch.tensor([[1.0, 3.2]])).abs().argmin(1)
    assert nearest.tolist() == label[0, 0].tolist()
    assert float(start.cost) == pytest.approx(2)
    after, gain = start.hartigan()
    assert float(gain[0, 0, 1]) == pytest.approx(2 - 0.96)
    assert after.label.tolist() == [[[0, 1, 1, 1]]]
    assert float(after.cost) == pytest.approx(0.96)


def test_each_partition_of_a_batch_takes_its_own_step():
    points = [cloud(30, 3, seed) for seed in range(3)] + [cloud(17, 3, 9)]
    measures = batch(points)
    label = labels(measures, 6, 3, 0)
    label[2, 1] = descend(Cells.of(batch(points[2:3]), label[2:3, 1:2], 6), 1000, 0.0)[0].label  # one is at its end
    now = Cells.of(measures, label, 6)
    for _ in range(5):
        after, _ = now.hartigan()
        for c, p in enumerate(points):
            for r in range(3):
                alone, _ = Cells.of(batch([p]), now.label[c : c + 1, r : r + 1, : len(p)], 6).hartigan()
                assert torch.equal(alone.label[0, 0], after.label[c, r, : len(p)])
        now = after
    assert torch.equal(now.label[2, 1], label[2, 1])


@given(SEEDS, st.integers(1, 30))
@quick
def test_the_number_of_steps_is_kept(seed, steps):
    measures = batch([cloud(600, 3, seed)])
    _, trace = descend(Cells.of(measures, labels(measures, 8, 1, seed), 8), steps, 0.0)
    assert 1 <= len(trace) <= steps


# ---- empty cells


def test_an_empty_cell_is_given_the_farthest_point():
    points = torch.tensor([[0.0], [1.0], [10.0]], dtype=torch.float64)
    found = Cells.of(batch([points]), torch.zeros(1, 1, 3, dtype=torch.long), 2).repaired()
    assert found.label.tolist() == [[[0, 0, 1]]]
    assert float(found.cost) == pytest.approx(0.5)


def test_an_empty_cell_takes_no_point_that_is_alone_or_at_its_mean():
    alone = torch.tensor([[0.0], [5.0]], dtype=torch.float64)
    found = Cells.of(batch([alone]), torch.tensor([[[0, 1]]]), 3).repaired()
    assert found.label.tolist() == [[[0, 1]]]
    same = torch.ones(4, 2, dtype=torch.float64)
    found = Cells.of(batch([same]), torch.zeros(1, 1, 4, dtype=torch.long), 3).repaired()
    assert found.label.unique().tolist() == [0]


# ---- starts


@pytest.mark.parametrize("k", [1, 7, 12, 60])
def test_a_start_has_k_cells_or_all_the_points(k):
    points = [cloud(80, 3, 1), cloud(60, 3, 2), 5 + cloud(71, 3, 3)]
    label = seeding.greedy(batch(points), k, 2, [draws(c) for c in range(3)])
    assert label.shape == (3, 2, 80)
    for c, p in enumerate(points):
        for r in range(2):
            used = label[c, r, : len(p)].unique().tolist()
            # several atoms a round may draw one point twice; the empty cell is given another later
            assert used == list(range(k)) if k <= 25 else len(used) > 0.9 * k


@pytest.mark.parametrize("k", [2, 9, 40])
def test_a_start_depends_on_its_own_generator_only(k):
    points = [cloud(480, 3, 1), cloud(350, 3, 2)]
    whole = seeding.greedy(batch(points), k, 3, [draws(7), draws(8)])
    for c, p in enumerate(points):
        alone = seeding.greedy(batch([p]), k, 3, [draws(7 + c)])
        assert torch.equal(whole[c, :, : len(p)], alone[0])
    replicas = whole[0]
    assert not torch.equal(replicas[0], replicas[1])


@pytest.mark.parametrize("k", [3, 30, 60])
@pytest.mark.parametrize("seed", range(5))
def test_greedy_never_draws_a_place_twice(k, seed):
    # As many places as atoms, at every scale, some with many points: all are found, at no cost.
    scale = 10.0 ** (torch.arange(k) % 4)[:, None]
    places = (scale * cloud(k, 4, seed)).repeat_interleave(1 + torch.arange(k) % 7, 0)
    measures = batch([places, cloud(len(places) + 50, 4, 1)])
    label = seeding.greedy(measures, k, 2, [draws(seed), draws(1)])
    found = Cells.of(measures, label, k).cost[0]
    assert float(found.max()) == pytest.approx(0, abs=1e-9 * float(measures.total[0]))


def test_the_greedy_start_is_cheaper_than_a_uniform_one():
    points = 10 * cloud(30, 5)[torch.arange(600) % 30] + cloud(600, 5, 1)
    measures = batch([points])
    greedy = float(Cells.of(measures, seeding.greedy(measures, 30, 20, [draws()]), 30).cost.mean())
    rows = torch.stack([torch.randperm(600, generator=draws(seed))[:30] for seed in range(20)])
    uniform = torch.stack([torch.cdist(points, points[row]).square().amin(1).sum() for row in rows]).mean()
    assert greedy < float(uniform) / 5


def test_draws_have_the_given_odds():
    odds = torch.tensor([0.0, 3.0, 0.0, 1.0, 6.0, 0.0], dtype=torch.float64)
    uniform = torch.rand(1, 1, 100_000, generator=draws(), dtype=torch.float64)
    found = torch.bincount(seeding.sample(odds[None, None], uniform)[0, 0], minlength=6) / 100_000
    assert found[odds == 0].tolist() == [0.0] * 3
    for share, odd in zip(found.tolist(), (odds / 10).tolist(), strict=True):
        assert share == pytest.approx(odd, abs=5 * math.sqrt(0.25 / 100_000))
    ends = torch.tensor([[[0.0, 1 - 2**-53]]], dtype=torch.float64)
    assert seeding.sample(odds[None, None], ends).tolist() == [[[1, 4]]]


def test_the_first_atom_is_any_of_the_points_and_no_padding():
    points = torch.arange(5.0, dtype=torch.float64)[:, None]
    measures = batch([points, torch.zeros(50, 1, dtype=torch.float64)])
    label = seeding.greedy(measures, 1, 400, [draws(), draws(1)])
    assert bool((label == 0).all())
