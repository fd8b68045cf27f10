"""The summary and the swaps: masses and costs from their definitions, closed forms, independence of the batch."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wmdd.transport.swaps import PATIENCE, SUMMARY, Summary, lloyd, summarise, swapped

from .samples import SEEDS, batch, by_rows, cloud, draws, grid, mixture

quick = settings(max_examples=30, deadline=None)


def uniform(count: int, seed: int, measures: int = 1) -> Tensor:
    return torch.rand(measures, count, generator=draws(seed), dtype=torch.float64)


def cost(points: Tensor, atoms: Tensor) -> float:
    return float((points[:, None] - atoms).square().sum(2).amin(1).sum())


@given(SEEDS, st.lists(st.integers(1, 400), min_size=1, max_size=3), st.booleans())
@quick
def test_a_summary_keeps_the_mass_and_the_mean_and_few_points_are_their_own(seed, sizes, whole):
    points = [grid(n, 2, seed + n) if whole else 7 + cloud(n, 2, seed + n) for n in sizes]
    means, mass = summarise(batch(points), uniform(1 + SUMMARY, seed, len(points)))
    for x, m, w in zip(points, means, mass, strict=True):
        assert bool((w >= 0).all())
        assert float(w.sum()) == pytest.approx(len(x))
        torch.testing.assert_close(w @ m, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-8 * len(x))
        if len(x) <= SUMMARY:
            assert float(torch.cdist(x - x.mean(0), m[w > 0]).amin(1).max()) == pytest.approx(0, abs=1e-6)


@given(SEEDS, st.integers(1, 6), st.integers(1, 4), st.integers(1, 4))
@quick
def test_cells_and_steps_of_a_summary_are_those_of_its_points_repeated(seed, k, replicas, dimensions):
    times = torch.randint(1, 4, (30,), generator=draws(seed))
    points, atoms = cloud(30, dimensions, seed), cloud(replicas * k, dimensions, seed + 1).view(replicas, k, -1)
    summary = Summary.of(points, times.double())
    settled, costs = summary.settle(atoms.numpy(), 1)
    repeated = points.repeat_interleave(times, 0)
    for r in range(replicas):
        own = (repeated[:, None] - atoms[r]).square().sum(2).argmin(1)
        moved = [repeated[own == c].mean(0) if bool((own == c).any()) else atoms[r, c] for c in range(k)]
        torch.testing.assert_close(torch.from_numpy(settled[r]), torch.stack(moved))
        assert costs[r] == pytest.approx(cost(repeated, torch.stack(moved)), rel=1e-9, abs=1e-9)


def test_points_as_near_to_several_atoms_are_shared():
    summary = Summary.of(torch.tensor([[0.0], [4.0]]).double(), torch.tensor([6.0, 1.0]).double())
    member, costs = summary.cells(np.array([[[-1.0], [1.0], [1.0]]]))
    assert member[0].tolist() == [[2.0, 0.0], [2.0, 0.5], [2.0, 0.5]]
    assert costs.tolist() == [6 + 9]


def test_more_dimensions_than_points_keep_the_distances():
    points = cloud(12, 300)
    summary = Summary.of(points, torch.ones(12).double())
    assert summary.points.shape == (12, 12)
    torch.testing.assert_close(
        torch.from_numpy(summary.distances(summary.points)), torch.cdist(points, points).square()
    )


def test_a_swap_takes_one_atom_away_and_makes_a_point_one():
    points = mixture(80, 3, 9)
    summary = Summary.of(points, torch.ones(80).double())
    atoms = points[:6].numpy() + 0.01
    for tried in summary.swap(atoms, np.random.default_rng(0).random((2, 20))):
        changed = (tried != atoms).any(1)
        assert changed.sum() == 1
        assert float(torch.cdist(torch.from_numpy(tried[changed]), points).min()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("k", [1, 5, 25])
@pytest.mark.parametrize("dimensions", [1, 2, 300])
def test_far_clusters_are_found_whatever_the_dimension(k, dimensions):
    centres = 100 * torch.arange(k)[:, None] * torch.linspace(1, 2, dimensions).double() - 7
    points = centres[torch.arange(1500) % k] + 1e-3 * cloud(1500, dimensions, 4)
    measures = batch([points])
    for seed in range(4):
        label, trace = lloyd(measures, swapped(measures, k, [draws(seed)]), 50, 0.0)
        means = torch.stack([points[label[0, 0] == c].mean(0) for c in label.unique()])
        torch.testing.assert_close(by_rows(means), by_rows(centres), rtol=0, atol=1e-3)
        costs = [float(c) for c in trace]
        assert all(
            after <= before * (1 + 1e-4) for before, after in pairwise(costs)
        )  # of 100 beside 0.001, it is rounding


def test_swaps_lower_the_cost_of_the_start(monkeypatch):
    points = [mixture(900, 2, 40, seed) for seed in range(6)]
    after = swapped(batch(points), 10, [draws(c) for c in range(6)])
    monkeypatch.setattr("wmdd.transport.swaps.ROUNDS", 0)
    before = swapped(batch(points), 10, [draws(c) for c in range(6)])
    costs = [[cost(x - x.mean(0), a[0]) for x, a in zip(points, atoms, strict=True)] for atoms in (before, after)]
    assert PATIENCE > 0
    assert sum(costs[1]) < 0.97 * sum(costs[0])


@pytest.mark.parametrize("k", [1, 4])
def test_a_batch_gives_what_each_gives(k):
    points = [cloud(n, 3, n) for n in (90, 700, 400)]
    whole = batch(points)
    atoms = swapped(whole, k, [draws(c) for c in range(3)])
    label, trace = lloyd(whole, atoms, 40, 1e-3)
    for c, x in enumerate(points):
        alone = batch([x])
        own = swapped(alone, k, [draws(c)])
        torch.testing.assert_close(own[0], atoms[c], rtol=0, atol=1e-9)
        labels, costs = lloyd(alone, own, 40, 1e-3)
        assert torch.equal(labels[0, 0], label[c, 0, : len(x)])
        finite = [float(step[c]) for step in trace if bool(step[c].isfinite())]
        assert finite == pytest.approx([float(step) for step in costs], rel=1e-9)
