"""The barycenter of one measure: closed forms, brute force, a linear program, the symmetries of W2, and other solvers."""

import doctest
import functools
import importlib
import itertools
import math
import pkgutil

import numpy as np
import ot
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linprog
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from torch import Tensor

import wmdd.transport
from wmdd.base.errors import WmddError
from wmdd.transport import Barycenter, quantization, quantize, quantize_all

from .samples import by_rows, cloud, draws, mixture

BOTH = pytest.mark.parametrize("weights", ["uniform", "free"])
KINDS = st.sampled_from(["uniform", "free"])
quick = settings(max_examples=40, deadline=None)

# Whole numbers: many coincide, and sums of them are exact.
clouds = st.tuples(st.integers(1, 9), st.integers(1, 3)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(-6, 6).map(float)).map(torch.from_numpy)
)


# The same, of more points.
grids = st.tuples(st.integers(1, 40), st.integers(1, 3)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(-4, 4).map(float)).map(torch.from_numpy)
)


def best(points: Tensor, k: int, weights: str) -> Barycenter:
    """Solve a small problem from so many starts that the cheapest is the optimum."""
    return quantize(points, k, weights=weights, generator=draws(), tolerance=0, restarts=20)


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


# ---- one atom, as many atoms as points, more


@BOTH
def test_one_atom_is_the_mean_and_as_many_as_points_are_the_points(weights):
    points = cloud(23, 5)
    one, all_points = (quantize(points, k, weights=weights, generator=draws()) for k in (1, 23))
    torch.testing.assert_close(one.atoms[0], points.mean(0))
    assert one.weights.tolist() == [1.0]
    assert one.cost == pytest.approx(variance(points), rel=1e-12)
    torch.testing.assert_close(by_rows(all_points.atoms), by_rows(points))
    assert all_points.weights.tolist() == pytest.approx([1 / 23] * 23)
    assert all_points.cost == pytest.approx(0, abs=1e-12)


@quick
@given(st.integers(1, 5), st.integers(1, 20), st.integers(1, 12), st.integers(0, 99))
def test_no_more_places_than_free_atoms_cost_nothing(places, copies, k, seed):
    points = cloud(places, 3, seed).repeat(copies, 1)
    found = quantize(points, max(k, places), generator=draws(seed))
    assert found.atoms.shape == (max(k, places), 3)
    assert found.cost == pytest.approx(0, abs=1e-12)
    assert float(found.weights.sum()) == pytest.approx(1)
    used = found.atoms[found.weights > 0]
    assert float(torch.cdist(points, used).min(1).values.max()) == pytest.approx(0, abs=1e-6)


def test_fewer_points_than_uniform_atoms():
    # On a line the optimum is known for any number of atoms.
    for count, k in ((2, 3), (3, 5), (3, 6), (5, 7), (4, 30)):
        points = cloud(count, 1)
        found = quantize(points, k, weights="uniform", restarts=10)
        assert found.weights.tolist() == pytest.approx([1 / k] * k)
        assert found.cost == pytest.approx(transport_cost(found.atoms, found.weights, points), rel=1e-9, abs=1e-12)
        assert found.cost >= quantile_cost(points[:, 0].tolist(), k) - 1e-12
        assert k % count or found.cost == pytest.approx(0, abs=1e-12)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_features_and_a_single_point(weights, dtype):
    for value, count, k in ((0.1, 37, 4), (-3e4, 5, 2), (1e-20, 5, 11), (2.5, 1, 4)):
        found = quantize(torch.full((count, 3), value, dtype=dtype), k, weights=weights)
        assert torch.equal(found.atoms, torch.full((k, 3), value, dtype=dtype))
        assert float(found.weights.sum()) == pytest.approx(1, abs=1e-6)
        assert found.cost == pytest.approx(0, abs=1e-24 * value**2)


# ---- two Diracs, two clusters


def test_two_diracs_uniform_split_the_heavy_one():
    # Mass 3/4 at p and 1/4 at q, 5 apart. One atom takes half of the mass from p; the other takes a quarter of each and
    # lies half-way: the cost is 1/2 (5/2)^2.
    p, q = torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0])
    found = quantize(torch.stack([p] * 3 + [q]).double(), 2, weights="uniform", generator=draws())
    torch.testing.assert_close(by_rows(found.atoms), torch.stack([p, (p + q) / 2]).double())
    assert found.cost == pytest.approx(0.5 * 2.5**2)


@BOTH
def test_two_separated_clusters_give_their_means(weights):
    a, b = cloud(10, 4, 1), 100 + cloud(10, 4, 2)
    found = quantize(torch.cat([a, b]), 2, weights=weights, generator=draws())
    torch.testing.assert_close(by_rows(found.atoms), by_rows(torch.stack([a.mean(0), b.mean(0)])))
    assert found.weights.tolist() == [0.5, 0.5]
    assert found.cost == pytest.approx((variance(a) + variance(b)) / 2)


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
    found = quantize(torch.tensor(numbers, dtype=torch.float64)[:, None], k, weights="free", generator=draws(seed))
    assert found.cost >= best_contiguous(numbers, k) - 1e-9


@pytest.mark.parametrize("k", [2, 3, 5])
def test_restarts_reach_the_best_cut_of_a_line(k):
    for seed in range(4):
        points = cloud(14, 1, seed)
        assert best(points, k, "free").cost == pytest.approx(best_contiguous(points[:, 0].tolist(), k), rel=1e-9)


@quick
@given(st.sets(st.integers(-99, 99).map(float), min_size=1, max_size=12), st.integers(1, 6), st.integers(0, 99))
def test_uniform_atoms_on_a_line_are_the_means_of_quantile_groups_from_any_start(numbers, k, seed):
    assume(k <= len(numbers))
    found = quantize(
        torch.tensor(sorted(numbers), dtype=torch.float64)[:, None], k, weights="uniform", generator=draws(seed)
    )
    assert found.cost == pytest.approx(quantile_cost(list(numbers), k), rel=1e-9, abs=1e-9)


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
@given(grids, st.integers(1, 12), KINDS, st.integers(0, 99), st.sampled_from([0, 10]), st.sampled_from([1, 2, 300]))
def test_every_result_is_consistent(points, k, weights, seed, exchanges, most):
    options = {"exchanges": exchanges, "max_iterations": most, "tolerance": 0}
    found = quantize(points, k, weights=weights, generator=draws(seed), **options)
    scale = 1e-9 * (1 + variance(points))
    assert found.atoms.shape == (k, points.shape[1])
    assert found.weights.shape == (k,)
    assert float(found.weights.sum()) == pytest.approx(1, abs=1e-12)
    assert bool((found.weights >= 0).all())
    assert all(b <= a + scale for a, b in itertools.pairwise(found.trace))  # never rises
    assert found.trace[-1] == found.cost
    assert len(found.trace) <= most + 1  # the last is the exact cost of what is returned
    assert found.cost == pytest.approx(transport_cost(found.atoms, found.weights, points), abs=scale)
    assert found.gap == pytest.approx(0, abs=1e-9)
    nearest = (found.atoms[:, None] - points[None]).square().sum(2).min(0).values
    assert float(nearest.mean()) <= found.cost + scale  # freeing the weights never costs more


@quick
@given(clouds, st.integers(1, 12), KINDS, st.integers(0, 99))
def test_law_of_total_variance(points, k, weights, seed):
    # At a fixed point each atom is the mean of what it is given, so variance = W2^2 + variance of the atoms.
    found = quantize(points, k, weights=weights, generator=draws(seed), tolerance=0)
    mean = found.weights @ found.atoms
    torch.testing.assert_close(mean, points.mean(0), rtol=0, atol=1e-9)
    spread = float(found.weights @ (found.atoms - mean).square().sum(1))
    assert found.cost + spread == pytest.approx(variance(points), abs=1e-9)


@pytest.mark.parametrize("k", [2, 5, 9])
def test_free_below_uniform_below_a_random_subset(k):
    points = cloud(30, 3, k)
    subset = points[torch.randperm(30, generator=draws(k))[:k]]
    free, uniform = (quantize(points, k, weights=w, restarts=10).cost for w in ("free", "uniform"))
    assert free < uniform < transport_cost(subset, torch.full((k,), 1 / k, dtype=torch.float64), points)


@pytest.mark.parametrize("seed", range(3))
def test_free_weights_are_the_voronoi_masses_of_the_returned_atoms(seed):
    points = cloud(50, 4, seed)
    for most in (1, 2, 300):  # also when it is stopped early
        found = quantize(points, 6, generator=draws(seed), max_iterations=most, exchanges=0)
        cell = (points[:, None] - found.atoms[None]).square().sum(2).argmin(1)
        assert found.weights.tolist() == (torch.bincount(cell, minlength=6).double() / 50).tolist()


@BOTH
def test_more_iterations_or_restarts_never_cost_more(weights):
    points = cloud(40, 3)
    options = {"weights": weights, "tolerance": 0, "exchanges": 0}
    costs = [quantize(points, 5, generator=draws(3), max_iterations=most, **options).cost for most in (1, 2, 3, 300)]
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(costs))
    assert costs[0] > costs[-1]
    costs = [quantize(points, 5, weights=weights, generator=draws(), restarts=starts).cost for starts in (1, 2, 4, 16)]
    assert costs == sorted(costs, reverse=True)


def test_a_tolerance_stops_early():
    points = cloud(400, 4)
    loose, tight = (quantize(points, 8, tolerance=tolerance, exchanges=0) for tolerance in (0.05, 0))
    assert len(loose.trace) < len(tight.trace)
    assert tight.cost < loose.cost < 1.1 * tight.cost


@pytest.mark.parametrize("seed", range(3))
def test_exchanges_lower_the_cost(seed):
    points = 3 * cloud(20, 4, seed)[torch.randint(20, (300,), generator=draws(seed))] + cloud(300, 4, seed + 1)
    without, with_them = (quantize(points, 20, generator=draws(seed), exchanges=rounds).cost for rounds in (0, 10))
    assert with_them <= without * (1 + 1e-12)


# ---- starts and empty cells


def test_the_start_does_not_miss_what_is_rare_and_far():
    # 500 points at one place and three elsewhere, each alone: k-means++ never draws a place twice.
    points = torch.cat([torch.zeros(500, 2), torch.eye(2), torch.ones(1, 2)]).double()
    for seed in range(5):
        found = quantize(points, 4, generator=draws(seed), max_iterations=1, exchanges=0)
        torch.testing.assert_close(by_rows(found.atoms), by_rows(points.unique(dim=0)))
        assert sorted(found.weights.tolist()) == pytest.approx([1 / 503] * 3 + [500 / 503])


# ---- symmetries


@BOTH
def test_order_of_the_points_is_irrelevant(weights):
    points = cloud(7, 2)
    order = torch.randperm(7, generator=draws(1))
    one, two = best(points, 3, weights), best(points[order], 3, weights)
    assert one.cost == pytest.approx(two.cost, rel=1e-12)
    torch.testing.assert_close(by_rows(one.atoms), by_rows(two.atoms))


@BOTH
def test_translation_rotation_and_scaling(weights):
    points, shift = cloud(200, 3), torch.tensor([5.0, -700.0, 0.25], dtype=torch.float64)
    turn = torch.linalg.qr(cloud(3, 3, 1)).Q
    one = quantize(points, 6, weights=weights, generator=draws())
    for scale in (1e-9, 1e-4, 1.0, 1e5):
        other = quantize(scale * points @ turn + scale * shift, 6, weights=weights, generator=draws())
        torch.testing.assert_close(other.atoms, scale * (one.atoms @ turn + shift))
        assert other.cost == pytest.approx(scale**2 * one.cost, rel=1e-9)


# ---- types, draws, errors


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_type_is_kept(weights, dtype):
    points = cloud(12, 3).to(dtype)
    found = quantize(points, 3, weights=weights, generator=draws())
    assert found.atoms.dtype == found.weights.dtype == dtype
    reference = quantize(points.double(), 3, weights=weights, generator=draws())
    assert found.cost == pytest.approx(reference.cost, rel=1e-5)
    torch.testing.assert_close(found.atoms, reference.atoms.to(dtype), rtol=0, atol=4 * torch.finfo(dtype).eps)
    # The squares of 300 are above what float16 can hold, and so is the sum of the squares of smaller numbers.
    wide = torch.promote_types(dtype, torch.float32)
    for scale in (300, 3):
        large = (scale * cloud(900, 20)).to(dtype)
        one, other = (quantize(p, 3, weights=weights, generator=draws()) for p in (large, large.to(wide)))
        assert one.cost == other.cost


@BOTH
def test_the_same_generator_gives_the_same_bits(weights):
    points = cloud(60, 3)
    one, two, other = (quantize(points, 8, weights=weights, generator=draws(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.atoms, two.atoms)
    assert torch.equal(one.weights, two.weights)
    assert one.trace == two.trace
    assert not torch.equal(one.atoms, other.atoms)
    assert torch.equal(quantize(points, 8).atoms, quantize(points, 8, generator=draws(0)).atoms)
    assert one.seconds > 0


def test_what_may_be_passed_as_points():
    points = cloud(12, 3)
    whole = (10 * points).round()
    found = quantize(whole.int().numpy(), 3)
    assert found.cost == quantize(whole, 3).cost
    assert found.atoms.dtype == torch.float64
    assert quantize(points.numpy(), 3).cost == quantize(points, 3).cost
    assert quantize(points.T.contiguous().T, 3).cost == quantize(points, 3).cost
    strided = torch.zeros(24, 5, dtype=torch.float64)
    strided[::2, 1:4] = points
    assert quantize(strided[::2, 1:4], 3).cost == quantize(points, 3).cost


@BOTH
def test_the_result_is_detached_and_the_points_are_left_as_they_are(weights):
    # Whoever trains with the atoms must be able to use them in autograd.
    points = cloud(12, 3).requires_grad_()
    found = quantize(points, 3, weights=weights)
    assert torch.equal(points, cloud(12, 3))
    assert not found.atoms.requires_grad
    assert not found.atoms.is_inference()
    assert not found.weights.is_inference()


def with_number(value: float) -> Tensor:
    points = cloud(6, 2)
    points[3, 1] = value
    return points


@BOTH
@pytest.mark.parametrize(
    ("points", "message"),
    [
        *[(with_number(bad), "holds NaN or infinity, first in point 3;") for bad in (math.nan, math.inf, -math.inf)],
        *[(torch.zeros(shape), r"needs points \[N, D\]") for shape in ((0, 3), (4,), (), (3, 0), (2, 3, 4))],
        (torch.complex(cloud(9, 2), cloud(9, 2)), "holds complex numbers"),
    ],
)
def test_points_that_cannot_be_used_are_named(weights, points, message):
    with pytest.raises(WmddError, match=f"^the measure {message}"):
        quantize(points, 2, weights=weights)
    with pytest.raises(WmddError, match=f"^measure 1 {message}"):
        quantize_all([cloud(6, 2), points], 2, weights=weights)
    with pytest.raises(WmddError, match=rf"^class 7 \(owl\) {message}"):
        quantize_all([cloud(6, 2), points], 2, weights=weights, names=["class 2 (cat)", "class 7 (owl)"])


def test_large_numbers():
    large = torch.full((5, 2), 2e38)  # finite, though the sum of them is not
    large[0] = -2e38
    assert quantize(large.double(), 2).cost == 0
    with pytest.raises(WmddError, match=r"^the squared distances of cats overflow"):
        quantize_all([1e25 * cloud(9, 2).float()], 3, names=["cats"])


@BOTH
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"k": 0}, "at least one atom, not 0"),
        ({"k": -1}, "at least one atom, not -1"),
        ({"weights": "both"}, "'free' or 'uniform', not 'both'"),
        *[
            ({name: value}, "must be at least 1")
            for name, value in (("restarts", 0), ("max_iterations", 0), ("exchanges", -1))
        ],
    ],
)
def test_what_cannot_be_asked_for_is_refused(weights, wrong, message):
    with pytest.raises(WmddError, match=message):
        quantize(cloud(9, 2), **{"k": 3, "weights": weights} | wrong)


# ---- awkward measures


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dimensions_without_variance_change_nothing(weights, dtype):
    points = cloud(50, 3).to(dtype)
    wide = torch.cat([points, torch.full((50, 4), 7.3, dtype=dtype)], 1)
    one, two = (quantize(p, 6, weights=weights, generator=draws()) for p in (points, wide))
    assert two.cost == pytest.approx(one.cost, rel=1e-6)
    torch.testing.assert_close(two.atoms[:, 3:], torch.full((6, 4), 7.3, dtype=dtype))


def test_two_clusters_at_a_great_distance():
    # The small structure must survive the large: within each cluster the cells are those of the cluster alone.
    near, far = cloud(40, 2), cloud(40, 2, 50)
    found = quantize(torch.cat([near, far + 1e4]), 4, restarts=20)
    alone = [quantize(p, 2, restarts=20).cost for p in (near, far)]
    assert found.cost == pytest.approx(sum(alone) / 2, rel=1e-6)


# ---- single precision


@BOTH
@pytest.mark.parametrize("offset", [0.0, 3e3])
@pytest.mark.parametrize("k", [2, 9])
def test_single_precision_loses_nothing_even_far_from_the_origin(weights, offset, k):
    points = (3 * cloud(9, 6)[torch.arange(270) % 9] + cloud(270, 6, 1) + offset).float()
    found = quantize(points, k, weights=weights, generator=draws())
    reference = quantize(points.double(), k, weights=weights, generator=draws())
    assert found.cost == pytest.approx(reference.cost, rel=1e-5)
    # What is returned is worth what it says, up to the rounding of the atoms themselves.
    cost = (found.atoms.double()[:, None] - points.double()[None]).square().sum(2)
    if weights == "free":
        own = float(cost.min(0).values.mean())
    else:
        own = float(ot.emd2(np.full(k, 1 / k), np.full(270, 1 / 270), cost.numpy()))
    assert found.cost == pytest.approx(own, rel=1e-5)
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(found.trace))


@quick
@given(grids, st.integers(1, 12), KINDS, st.integers(0, 99))
def test_single_precision_of_whole_numbers(points, k, weights, seed):
    found = quantize(points.float(), k, weights=weights, generator=draws(seed), tolerance=0)
    scale = 1e-5 * (1e-3 + variance(points))
    cost = transport_cost(found.atoms.double(), found.weights.double() / found.weights.double().sum(), points)
    assert found.cost == pytest.approx(cost, abs=scale)
    assert all(b <= a + scale for a, b in itertools.pairwise(found.trace))


# ---- many measures


def clouds_of_all_sizes(dtype=torch.float64) -> list[Tensor]:
    """Different sizes, spreads and places; the largest is long enough for focused steps."""
    sizes = (90, 41, 700, 25, 130)
    return [((1 + 5 * i) * cloud(n, 5, i) + 10 * i).to(dtype) for i, n in enumerate(sizes)]


@pytest.fixture
def one_batch(monkeypatch):
    """All measures in one batch, with padding."""
    monkeypatch.setattr(quantization, "CACHE", 2**60)


@pytest.fixture
def no_batch(monkeypatch):
    monkeypatch.setattr(quantization, "CACHE", 0)


def all_and_each(several: list[Tensor], k: int, **options) -> list[tuple[Barycenter, Barycenter]]:
    found = quantize_all(several, k, generators=[draws(c) for c in range(len(several))], **options)
    each = [quantize(points, k, generator=draws(c), **options) for c, points in enumerate(several)]
    return list(zip(found, each, strict=True))


@BOTH
@pytest.mark.parametrize("k", [1, 3, 40])
def test_one_at_a_time_gives_the_same_bits(no_batch, weights, k):
    for one, other in all_and_each(clouds_of_all_sizes(), k, weights=weights):
        assert torch.equal(one.atoms, other.atoms)
        assert torch.equal(one.weights, other.weights)
        assert (one.cost, one.trace) == (other.cost, other.trace)


@BOTH
@pytest.mark.parametrize(
    "options", [{}, {"restarts": 3}, {"exchanges": 0}, {"tolerance": 0.0}], ids=["plain", "restarts", "still", "exact"]
)
def test_a_batch_gives_what_each_gives(one_batch, weights, options):
    for k in (1, 3, 50):  # 50: more atoms than some have points
        for one, other in all_and_each(clouds_of_all_sizes(), k, weights=weights, **options):
            assert one.atoms.shape == (k, 5)
            assert one.cost == pytest.approx(other.cost, rel=1e-9, abs=1e-12)
            torch.testing.assert_close(one.atoms, other.atoms, rtol=0, atol=1e-8)
            torch.testing.assert_close(one.weights, other.weights, rtol=0, atol=1e-9)
    for one, other in all_and_each(clouds_of_all_sizes(torch.float32), 3, weights=weights):
        assert one.cost == pytest.approx(other.cost, rel=1e-5)


@BOTH
def test_the_other_measures_and_their_order_do_not_matter(one_batch, weights):
    several = clouds_of_all_sizes()
    whole = quantize_all(several, 4, weights=weights, generators=[draws(c) for c in range(5)])
    part = quantize_all([several[2], several[0]], 4, weights=weights, generators=[draws(2), draws(0)])
    for one, other in zip(part, (whole[2], whole[0]), strict=True):
        assert one.cost == pytest.approx(other.cost, rel=1e-9)
        torch.testing.assert_close(one.atoms, other.atoms, rtol=0, atol=1e-8)


def test_a_generator_each_by_default():
    one, two = (quantize_all([cloud(30, 3, 5)] * 3, 4, exchanges=0, max_iterations=1) for _ in range(2))
    assert not torch.equal(one[0].atoms, one[1].atoms)
    assert all(torch.equal(a.atoms, b.atoms) for a, b in zip(one, two, strict=True))
    assert quantize_all([], 3) == []


@BOTH
@pytest.mark.parametrize("k", [3, 20])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_agrees_with_cpu(weights, k):
    several = clouds_of_all_sizes()
    found = quantize_all([points.cuda() for points in several], k, weights=weights)
    for one, other in zip(found, quantize_all(several, k, weights=weights), strict=True):
        assert one.atoms.device.type == one.weights.device.type == "cpu"
        assert one.cost == pytest.approx(other.cost, rel=1e-9, abs=1e-12)
        torch.testing.assert_close(one.atoms, other.atoms, rtol=0, atol=1e-8)


# ---- against k-means


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images).float(), torch.from_numpy(labels)


def k_means(points: Tensor, k: int) -> float:
    return float(KMeans(k, n_init=10, random_state=0).fit(points.numpy()).inertia_) / len(points)


@pytest.mark.parametrize("digit", range(0, 10, 3))
def test_a_start_or_a_few_are_no_worse_than_ten_of_k_means_on_digits(digit):
    images, labels = digits()
    points = images[labels == digit]
    for k, restarts in (
        (5, 4),
        (10, 1),
        (50, 1),
    ):  # with few atoms single optima differ by up to a percent, whoever finds them
        assert quantize(points, k, restarts=restarts).cost <= 1.001 * k_means(points, k)


@pytest.mark.parametrize("k", [5, 10, 50])
def test_one_start_is_no_worse_than_ten_of_k_means_on_mixtures(k):
    for seed in range(2):
        points = mixture(600, 16, k, seed).float()
        assert quantize(points, k).cost <= 1.001 * k_means(points, k)


# ---- what the documentation shows


def test_examples_in_the_documentation_run():
    names = [module.name for module in pkgutil.iter_modules(wmdd.transport.__path__)]
    results = {name: doctest.testmod(importlib.import_module(f"wmdd.transport.{name}")) for name in names}
    assert not sum(result.failed for result in results.values())
    assert {name for name, result in results.items() if result.attempted} == {"quantization", "several", "dimension"}
