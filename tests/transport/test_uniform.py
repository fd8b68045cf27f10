"""Balanced k-means: the formulas of its steps by brute force, and the classical alternation as POT solves it."""

import itertools

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wmdd.transport import plans, uniform
from wmdd.transport.cells import Cells, Measures
from wmdd.transport.measure import Barycenter
from wmdd.transport.uniform import balance

from .samples import SEEDS, cloud, draws

quick = settings(max_examples=30, deadline=None)


def begun(points: Tensor, k: int, seed: int, steps: int = 300, tolerance: float = 0.0) -> tuple[Barycenter, Tensor]:
    """The result begun from the means of random cells, and these means."""
    label = torch.arange(len(points))[torch.randperm(len(points), generator=draws(seed))] % k
    measures = Measures.of(points[None], torch.tensor([len(points)]))
    cells = Cells.of(measures, label[None, None], k)
    start = torch.stack([points[label == cell].mean(0) for cell in range(k)])
    return balance(cells, k, steps, tolerance)[0], start


def plan(atoms: Tensor, points: Tensor) -> tuple[np.ndarray, float]:
    k, n = len(atoms), len(points)
    cost = (atoms[:, None] - points).square().sum(2).numpy()
    found = ot.emd(np.full(k, 1 / k), np.full(n, 1 / n), cost, numItermax=10**7)
    return found, float((found * cost).sum())


def classical(points: Tensor, atoms: Tensor, steps: int = 300) -> list[float]:
    """The exact costs of the classical alternation of plans and means."""
    costs = []
    for _ in range(steps):
        found, cost = plan(atoms, points)
        if costs and cost >= costs[-1] * (1 - 1e-12):
            break
        costs.append(cost)
        atoms = len(atoms) * torch.from_numpy(found) @ points
    return costs


def cost_of(label: tuple[int, ...], points: Tensor) -> float:
    own = torch.tensor(label)
    cells = [points[own == k] for k in own.unique()]
    return sum(float((p - p.mean(0)).square().sum()) for p in cells) / len(points)


@given(SEEDS, st.integers(1, 8), st.integers(0, 40), st.booleans())
@quick
def test_the_cost_falls_and_is_that_of_an_exact_plan(seed, k, more, whole):
    points = cloud(k + more, 3, seed)
    points = (2 * points).round() if whole else points
    found, start = begun(points, k, seed)
    scale = 1e-9 * (1 + found.trace[0])
    assert found.cost == pytest.approx(plan(found.atoms, points)[1], abs=scale)
    assert found.trace[-1] == found.cost
    assert all(b <= a + scale for a, b in itertools.pairwise(found.trace))
    assert found.trace[0] <= plan(start, points)[1] + scale
    assert 0 <= found.gap < 1e-9
    # it is also a fixed point of the classical step
    again = classical(points, found.atoms, 2)
    assert again[-1] == pytest.approx(again[0], abs=scale)


@given(SEEDS, st.integers(2, 5), st.integers(1, 6), st.integers(1, 3))
@quick
def test_the_first_cost_is_that_of_the_classical_step(seed, k, each, dimensions):
    points = cloud(k * each, dimensions, seed)
    found, start = begun(points, k, seed, steps=1)
    atoms = k * torch.from_numpy(plan(start, points)[0]) @ points
    assert found.trace[0] == pytest.approx(
        float((points - points.mean(0)).square().sum(1).mean() - (atoms - points.mean(0)).square().sum(1).mean()),
        rel=1e-9, abs=1e-12,
    )  # fmt: skip


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize(("count", "k"), [(60, 20), (90, 9), (300, 10), (1001, 10)])
def test_on_average_below_the_classical_alternation_from_the_same_start(count, k, reduced, monkeypatch):
    if reduced:
        monkeypatch.setattr(plans, "DIRECT", 0)
    ratio = []
    for seed in range(6):
        points = cloud(count, 8, seed)
        found, start = begun(points, k, seed, tolerance=1e-6)
        ratio.append(found.cost / classical(points, start)[-1])
    assert sum(ratio) / len(ratio) < 1.001
    assert max(ratio) < 1.03
    if count <= 10 * k:  # small cells, where the correction matters most
        assert sum(ratio) / len(ratio) < 0.99


@given(SEEDS, st.integers(2, 4), st.integers(2, 4))
@quick
def test_the_change_of_cost_by_an_exchange_of_two_points(seed, k, each):
    # N F changes by d_bi - d_ai + d_aj - d_bj - 2/n |x_i - x_j|^2, as the module says.
    points = cloud(k * each, 3, seed)
    label = torch.arange(k * each) % k
    atoms = torch.stack([points[label == cell].mean(0) for cell in range(k)])
    apart = (atoms[:, None] - points).square().sum(2)
    i, j, a, b = 0, 1, 0, 1
    swapped = label.clone()
    swapped[i], swapped[j] = b, a
    change = len(points) * (cost_of(tuple(swapped.tolist()), points) - cost_of(tuple(label.tolist()), points))
    formula = apart[b, i] - apart[a, i] + apart[a, j] - apart[b, j] - 2 / each * (points[i] - points[j]).square().sum()
    assert change == pytest.approx(float(formula), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_restarts_reach_the_best_balanced_partition(seed):
    points = cloud(8, 3, seed)
    cells = [label for label in itertools.product(range(2), repeat=8) if sum(label) == 4]
    best = min(cost_of(label, points) for label in cells)
    found = [begun(points, 2, start)[0].cost for start in range(12)]
    assert min(found) == pytest.approx(best, rel=1e-9)
    assert all(cost >= best * (1 - 1e-9) for cost in found)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_no_more_steps_than_asked_for(steps):
    points = cloud(80, 4)
    found, _ = begun(points, 10, 0, steps=steps)
    assert len(found.trace) <= steps + 1
    assert found.cost == pytest.approx(plan(found.atoms, points)[1], rel=1e-9)  # though it was stopped early


def test_the_corrected_costs_are_those_of_the_formula(monkeypatch):
    seen = []

    def spy(cost: Tensor, *rest):
        seen.append((cost.clone(), plans.balanced(cost, *rest)))
        return seen[-1][1]

    monkeypatch.setattr(uniform, "balanced", spy)
    points, k, n = cloud(62, 4), 10, 6.2
    begun(points, k, 0)
    (_, first), (corrected, _) = seen[:2]
    share = torch.zeros(k, 62, dtype=torch.float64).index_put((first.row, first.column), first.mass)
    apart = ((k * share @ points)[:, None] - points).square().sum(2)
    torch.testing.assert_close(corrected, (1 - 1 / n) * apart + 2 / n * apart * 62 * share)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_padding_and_other_measures_do_not_matter(dtype):
    points = [cloud(40, 3, 1).to(dtype), 9 + 2 * cloud(55, 3, 2).to(dtype)]
    padded = torch.nn.utils.rnn.pad_sequence(points, batch_first=True, padding_value=1e3)
    label = torch.arange(55) % 4
    both = Measures.of(padded, torch.tensor([40, 55]))
    found = balance(Cells.of(both, label.expand(2, 1, -1), 4), 4, 300, 1e-6)
    for p, result in zip(points, found, strict=True):
        alone = Measures.of(p[None], torch.tensor([len(p)]))
        other = balance(Cells.of(alone, label[: len(p)][None, None], 4), 4, 300, 1e-6)[0]
        assert result.cost == pytest.approx(other.cost, rel=1e-5 if dtype == torch.float32 else 1e-9)
