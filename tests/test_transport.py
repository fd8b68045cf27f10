"""The barycenter of one measure, against closed forms, brute force, a linear program and the symmetries of W2."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linprog
from torch import Tensor

from wmdd.barycenter import barycenters, explained
from wmdd.errors import WmddError
from wmdd.settings import BarycenterSettings
from wmdd.transport import Barycenter, solve
from wmdd.transport.quantize import _free

BOTH = pytest.mark.parametrize("weights", ["uniform", "free"])
KINDS = st.sampled_from(["uniform", "free"])
quick = settings(max_examples=40, deadline=None)

# Whole numbers: many coincide, and sums of them are exact.
clouds = st.tuples(st.integers(1, 9), st.integers(1, 3)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(-6, 6).map(float)).map(torch.from_numpy)
)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cloud(count: int, dimensions: int, seed: int = 0) -> Tensor:
    return torch.randn(count, dimensions, generator=draws(seed), dtype=torch.float64)


def best(points: Tensor, k: int, weights: str) -> Barycenter:
    """Solve a small problem from so many starts that the cheapest is the optimum."""
    return solve(points, k, weights, draws(), tolerance=0, restarts=60)


def variance(points: Tensor) -> float:
    return float((points - points.mean(0)).square().sum(1).mean())


def transport_cost(atoms: Tensor, weights: Tensor, points: Tensor) -> float:
    """W2^2 between the weighted atoms and the points, by a linear program."""
    k, count = len(atoms), len(points)
    cost = (atoms[:, None] - points[None]).square().sum(2).numpy()
    rows = np.kron(np.eye(k), np.ones(count))
    columns = np.kron(np.ones(k), np.eye(count))
    masses = np.concatenate([weights.numpy(), np.full(count, 1 / count)])
    # The last constraint follows from the others; without it rounding cannot make the program infeasible.
    found = linprog(cost.ravel(), A_eq=np.vstack([rows, columns])[:-1], b_eq=masses[:-1])
    assert found.status == 0
    return float(found.fun)


def partition_cost(points: Tensor, cells: tuple[int, ...]) -> float:
    """Mean squared distance of the points to the means of their cells."""
    label = torch.tensor(cells)
    inside = [points[label == cell] for cell in set(cells)]
    return float(sum((p - p.mean(0)).square().sum() for p in inside)) / len(points)


def by_rows(points: Tensor) -> Tensor:
    """The points in lexicographic order."""
    return torch.tensor(sorted(points.tolist()), dtype=torch.float64)


# ---- one atom, as many atoms as points, more


@BOTH
def test_one_atom_is_the_mean_and_costs_the_variance(weights):
    points = cloud(23, 5)
    found = solve(points, 1, weights, draws())
    torch.testing.assert_close(found.atoms[0], points.mean(0))
    assert found.weights.tolist() == [1.0]
    assert found.cost == pytest.approx(variance(points), rel=1e-12)


@BOTH
def test_as_many_atoms_as_points_are_the_points(weights):
    points = cloud(8, 3)
    found = solve(points, 8, weights, draws())
    torch.testing.assert_close(by_rows(found.atoms), by_rows(points))
    assert found.weights.tolist() == pytest.approx([1 / 8] * 8)
    assert found.cost == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("k", [4, 5, 7, 12])
def test_more_free_atoms_than_points_cost_nothing(k):
    points = cloud(3, 2)
    found = solve(points, k, "free", draws())
    assert found.atoms.shape == (k, 2)
    assert found.cost == pytest.approx(0, abs=1e-12)
    assert float(found.weights.sum()) == pytest.approx(1)
    assert transport_cost(found.atoms, found.weights, points) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("k", [6, 12])
def test_a_multiple_of_the_points_as_uniform_atoms_costs_nothing(k):
    found = solve(cloud(3, 2), k, "uniform", draws())
    assert found.weights.tolist() == pytest.approx([1 / k] * k)
    assert found.cost == pytest.approx(0, abs=1e-12)


def test_free_atoms_find_all_distinct_points_among_duplicates():
    points = cloud(3, 2).repeat_interleave(torch.tensor([5, 2, 1]), 0)
    found = solve(points, 3, "free", draws())
    torch.testing.assert_close(by_rows(found.atoms), by_rows(points.unique(dim=0)))
    assert sorted(found.weights.tolist()) == pytest.approx([1 / 8, 2 / 8, 5 / 8])
    assert found.cost == pytest.approx(0, abs=1e-12)


@BOTH
@pytest.mark.parametrize("k", [1, 2, 4, 11])
def test_constant_features_and_a_single_point(weights, k):
    for points in (torch.full((5, 3), 2.5), torch.full((1, 3), 2.5)):
        found = solve(points, k, weights, draws())
        torch.testing.assert_close(found.atoms, torch.full((k, 3), 2.5))
        assert float(found.weights.sum()) == pytest.approx(1)
        assert found.cost == pytest.approx(0, abs=1e-12)


# ---- two Diracs, two clusters


def test_two_diracs_free():
    p, q = torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0])
    found = solve(torch.stack([p] * 3 + [q]).double(), 2, "free", draws())
    order = found.atoms[:, 0].argsort()
    torch.testing.assert_close(found.atoms[order], torch.stack([p, q]).double())
    assert found.weights[order].tolist() == [0.75, 0.25]
    assert found.cost == pytest.approx(0, abs=1e-12)


def test_two_diracs_uniform_split_the_heavy_one():
    # Mass 3/4 at p and 1/4 at q, 5 apart. One atom takes half of the mass from p; the other takes a quarter of each and
    # lies half-way: the cost is 1/2 (5/2)^2.
    p, q = torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0])
    found = solve(torch.stack([p] * 3 + [q]).double(), 2, "uniform", draws())
    torch.testing.assert_close(by_rows(found.atoms), torch.stack([p, (p + q) / 2]).double())
    assert found.cost == pytest.approx(0.5 * 2.5**2)


@BOTH
def test_two_separated_clusters_give_their_means(weights):
    a, b = cloud(10, 4, 1), 100 + cloud(10, 4, 2)
    found = solve(torch.cat([a, b]), 2, weights, draws())
    torch.testing.assert_close(by_rows(found.atoms), by_rows(torch.stack([a.mean(0), b.mean(0)])))
    assert found.weights.tolist() == [0.5, 0.5]
    assert found.cost == pytest.approx((variance(a) + variance(b)) / 2)


def test_free_weights_are_the_shares_of_separated_clusters():
    points = torch.cat([cloud(12, 2, 1), 100 + cloud(3, 2, 2), -100 + cloud(5, 2, 3)])
    found = solve(points, 3, "free", draws())
    assert sorted(found.weights.tolist()) == pytest.approx([3 / 20, 5 / 20, 12 / 20])


# ---- the optimum on a line and of small clouds


def best_contiguous(points: list[float], k: int) -> float:
    """The cost of the best cut of sorted numbers into at most k runs, by dynamic programming."""

    def run(a: int, b: int) -> float:
        mean = sum(points[a:b]) / (b - a)
        return sum((p - mean) ** 2 for p in points[a:b])

    points, count = sorted(points), len(points)
    cost = [0.0] + [math.inf] * count
    for _ in range(k):
        cost = [0.0] + [min([cost[b], *(cost[a] + run(a, b) for a in range(b))]) for b in range(1, count + 1)]
    return cost[count] / count


def quantile_cost(points: list[float], k: int) -> float:
    """W2^2 of k equal quantile groups of numbers: the optimum, as transport on a line is monotone."""
    points, count, total = sorted(points), len(points), 0.0
    for a in range(k):
        share = [max(0.0, min((a + 1) / k, (i + 1) / count) - max(a / k, i / count)) for i in range(count)]
        atom = k * sum(s * p for s, p in zip(share, points, strict=True))
        total += sum(s * (p - atom) ** 2 for s, p in zip(share, points, strict=True))
    return total


@quick
@given(st.lists(st.integers(-50, 50).map(float), min_size=1, max_size=12), st.integers(1, 4), st.integers(0, 99))
def test_no_free_cost_on_a_line_is_below_the_best_cut(numbers, k, seed):
    found = solve(torch.tensor(numbers, dtype=torch.float64)[:, None], k, "free", draws(seed))
    assert found.cost >= best_contiguous(numbers, k) - 1e-9


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_restarts_reach_the_best_cut_of_a_line(seed, k):
    points = cloud(14, 1, seed)
    assert best(points, k, "free").cost == pytest.approx(best_contiguous(points[:, 0].tolist(), k), rel=1e-9)


@quick
@given(st.sets(st.integers(-99, 99).map(float), min_size=1, max_size=12), st.integers(1, 6), st.integers(0, 99))
def test_uniform_atoms_on_a_line_are_the_means_of_quantile_groups_from_any_start(numbers, k, seed):
    assume(k <= len(numbers))
    found = solve(torch.tensor(sorted(numbers), dtype=torch.float64)[:, None], k, "uniform", draws(seed))
    assert found.cost == pytest.approx(quantile_cost(list(numbers), k), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_uniform_atoms_of_whole_groups_are_their_means(seed):
    points = cloud(12, 1, seed)
    found = solve(points, 4, "uniform", draws(seed))
    torch.testing.assert_close(found.atoms.sort(0).values, points.sort(0).values.view(4, 3).mean(1, keepdim=True))


@BOTH
@pytest.mark.parametrize(("k", "seed"), [(2, 0), (2, 1), (3, 2), (3, 3)])
def test_restarts_reach_the_best_partition_of_a_small_cloud(weights, k, seed):
    points = cloud(6, 2, seed)
    cells = list(itertools.product(range(k), repeat=6))
    if weights == "uniform":
        cells = [c for c in cells if all(c.count(cell) == 6 // k for cell in range(k))]
    assert best(points, k, weights).cost == pytest.approx(min(partition_cost(points, c) for c in cells), rel=1e-9)


# ---- what holds for every measure


@quick
@given(clouds, st.integers(1, 12), KINDS, st.integers(0, 99))
def test_every_result_is_consistent(points, k, weights, seed):
    found = solve(points, k, weights, draws(seed), tolerance=0)
    scale = 1e-9 * (1 + variance(points))
    assert found.atoms.shape == (k, points.shape[1])
    assert found.weights.shape == (k,)
    assert float(found.weights.sum()) == pytest.approx(1, abs=1e-12)
    assert bool((found.weights >= 0).all())
    assert all(b <= a + scale for a, b in itertools.pairwise(found.trace))  # never rises
    assert found.trace[-1] == found.cost
    assert found.cost == pytest.approx(transport_cost(found.atoms, found.weights, points), abs=scale)


@quick
@given(clouds, st.integers(1, 12), KINDS, st.integers(0, 99))
def test_law_of_total_variance(points, k, weights, seed):
    # At a fixed point each atom is the mean of what it is given, so variance = W2^2 + variance of the atoms.
    found = solve(points, k, weights, draws(seed), tolerance=0)
    mean = found.weights @ found.atoms
    torch.testing.assert_close(mean, points.mean(0), rtol=0, atol=1e-9)
    spread = float(found.weights @ (found.atoms - mean).square().sum(1))
    assert found.cost + spread == pytest.approx(variance(points), abs=1e-9)


@quick
@given(clouds, st.integers(1, 6), st.integers(0, 99))
def test_freeing_the_weights_of_uniform_atoms_never_costs_more(points, k, seed):
    found = solve(points, k, "uniform", draws(seed))
    nearest = (found.atoms[:, None] - points[None]).square().sum(2).min(0).values
    assert float(nearest.mean()) <= found.cost + 1e-9


@pytest.mark.parametrize("k", [2, 5, 9])
@pytest.mark.parametrize("seed", range(3))
def test_free_below_uniform_below_a_random_subset(seed, k):
    points = cloud(30, 3, seed)
    subset = points[torch.randperm(30, generator=draws(seed))[:k]]
    free = solve(points, k, "free", draws(), restarts=10).cost
    uniform = solve(points, k, "uniform", draws(), restarts=10).cost
    assert free < uniform < transport_cost(subset, torch.full((k,), 1 / k, dtype=torch.float64), points)


@pytest.mark.parametrize("seed", range(3))
def test_free_weights_are_the_voronoi_masses_of_the_returned_atoms(seed):
    points = cloud(50, 4, seed)
    for most in (1, 2, 300):  # also when it is stopped early
        found = solve(points, 6, "free", draws(seed), max_iterations=most)
        cell = (points[:, None] - found.atoms[None]).square().sum(2).argmin(1)
        assert found.weights.tolist() == (torch.bincount(cell, minlength=6).double() / 50).tolist()


@BOTH
def test_more_iterations_or_restarts_never_cost_more(weights):
    points = cloud(40, 3)
    costs = [solve(points, 5, weights, draws(), max_iterations=most, tolerance=0).cost for most in (1, 2, 3, 300)]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > costs[-1]
    costs = [solve(points, 5, weights, draws(), restarts=starts).cost for starts in (1, 2, 4, 16)]
    assert costs == sorted(costs, reverse=True)


# ---- starts and empty cells


@BOTH
def test_the_start_does_not_miss_what_is_rare_and_far(weights):
    # 500 points at one place and three elsewhere, each alone: k-means++ never draws a place twice.
    points = torch.cat([torch.zeros(500, 2), torch.eye(2), torch.ones(1, 2)]).double()
    for seed in range(5):
        found = solve(points, 4, weights, draws(seed), max_iterations=1)
        torch.testing.assert_close(by_rows(found.atoms), by_rows(points.unique(dim=0)))


def test_the_greedy_start_is_cheaper_than_plain_seeding():
    points = (100 * cloud(10, 2)).repeat(6, 1) + cloud(60, 2, 1)

    def plain(seed: int) -> float:
        chosen = points[torch.randint(60, (1,), generator=draws(seed))]
        while True:
            nearest = (chosen[:, None] - points[None]).square().sum(2).min(0).values
            if len(chosen) == 10:
                return float(nearest.mean())
            chosen = torch.cat(
                [chosen, points[torch.multinomial(nearest, 1, generator=draws(100 * seed + len(chosen)))]]
            )

    greedy = sum(solve(points, 10, "free", draws(seed), max_iterations=1).cost for seed in range(20))
    assert greedy < 0.7 * sum(plain(seed) for seed in range(20))


def test_an_atom_without_points_moves_to_the_farthest_one():
    points = torch.tensor([[0.0], [1.0], [10.0]]).double()
    atoms, weights, cost = _free(points, torch.tensor([[0.5], [1e6]]).double())
    assert weights.tolist() == [1.0, 0.0]
    assert cost == pytest.approx((0.25 + 0.25 + 9.5**2) / 3)
    assert atoms[1].tolist() == [10.0]
    _, weights, after = _free(points, atoms)
    assert weights.tolist() == pytest.approx([2 / 3, 1 / 3])
    assert after < cost


# ---- symmetries


@BOTH
def test_order_of_the_points_is_irrelevant(weights):
    points = cloud(7, 2)
    order = torch.randperm(7, generator=draws(1))
    one, two = best(points, 3, weights), best(points[order], 3, weights)
    assert one.cost == pytest.approx(two.cost, rel=1e-12)
    torch.testing.assert_close(by_rows(one.atoms), by_rows(two.atoms))


@BOTH
def test_a_measure_counts_and_not_how_it_is_listed(weights):
    points = cloud(6, 2)
    one, three = best(points, 3, weights), best(points.repeat(3, 1), 3, weights)
    assert one.cost == pytest.approx(three.cost, rel=1e-9)


@BOTH
def test_translation_moves_the_atoms_and_keeps_the_cost(weights):
    points, shift = cloud(40, 3), torch.tensor([5.0, -700.0, 0.25], dtype=torch.float64)
    one, two = (solve(p, 4, weights, draws()) for p in (points, points + shift))
    torch.testing.assert_close(two.atoms, one.atoms + shift)
    assert one.cost == pytest.approx(two.cost, rel=1e-9)


@BOTH
def test_rotation_turns_the_atoms_and_keeps_the_cost(weights):
    points = cloud(40, 3)
    turn = torch.linalg.qr(cloud(3, 3, 1)).Q
    one, two = (solve(p, 4, weights, draws()) for p in (points, points @ turn))
    torch.testing.assert_close(two.atoms, one.atoms @ turn)
    assert one.cost == pytest.approx(two.cost, rel=1e-9)


@BOTH
@pytest.mark.parametrize("scale", [1e-4, 0.5, 3.7, 1e5])
def test_scaling_scales_the_cost_by_its_square(weights, scale):
    points = cloud(40, 3)
    one, two = (solve(p, 4, weights, draws()) for p in (points, scale * points))
    torch.testing.assert_close(two.atoms, scale * one.atoms)
    assert two.cost == pytest.approx(scale**2 * one.cost, rel=1e-9)


# ---- types, draws, errors


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_type_is_kept(weights, dtype):
    points = cloud(12, 3).to(dtype)
    found = solve(points, 3, weights, draws())
    assert found.atoms.dtype == found.weights.dtype == dtype
    reference = solve(points.double(), 3, weights, draws())
    assert found.cost == reference.cost
    torch.testing.assert_close(found.atoms, reference.atoms.to(dtype))


@BOTH
def test_the_same_generator_gives_the_same_bits(weights):
    points = cloud(60, 3)
    one, two, other = (solve(points, 8, weights, draws(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.atoms, two.atoms)
    assert torch.equal(one.weights, two.weights)
    assert one.trace == two.trace
    assert not torch.equal(one.atoms, other.atoms)


@BOTH
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_no_numbers_are_refused(weights, bad):
    points = cloud(6, 2)
    points[3, 1] = bad
    with pytest.raises(WmddError, match="NaN"):
        solve(points, 2, weights)


@BOTH
@pytest.mark.parametrize("shape", [(0, 3), (4,)])
def test_no_points_are_refused(weights, shape):
    with pytest.raises(WmddError, match="points"):
        solve(torch.zeros(shape), 2, weights)


# ---- the stage


def test_a_class_has_the_same_barycenter_in_every_block():
    features = cloud(50, 4).float()
    labels = torch.arange(50) % 5
    whole = barycenters(features, labels, range(5), 3, BarycenterSettings(), seed=7)
    block = barycenters(features, labels, range(2, 4), 3, BarycenterSettings(), seed=7)
    assert all(torch.equal(a.atoms, b.atoms) for a, b in zip(whole[2:4], block, strict=True))
    alone = [solve(features[labels == c], 1, "uniform") for c in range(5)]
    stage = barycenters(features, labels, range(5), 1, BarycenterSettings(), seed=7)
    assert all(torch.equal(a.atoms, b.atoms) for a, b in zip(alone, stage, strict=True))


def test_a_class_without_features_is_named():
    with pytest.raises(WmddError, match="class 1 "):
        barycenters(cloud(4, 2), torch.tensor([0, 0, 2, 2]), range(3), 1, BarycenterSettings(), seed=0)


def test_explained_share_of_the_variance():
    points = cloud(9, 3)
    assert explained(points, solve(points, 1)) == pytest.approx(0, abs=1e-12)
    assert explained(points, solve(points, 9)) == pytest.approx(1)
    assert explained(torch.ones(4, 2), solve(torch.ones(4, 2), 2)) == 1
    found = solve(points, 3, "free", tolerance=0)
    mean = points.mean(0)
    between = float(found.weights @ (found.atoms - mean).square().sum(1))
    assert explained(points, found) == pytest.approx(between / variance(points))
