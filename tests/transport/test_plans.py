"""Balanced plans, found by reduction, against POT's network simplex on the whole problem, SciPy and closed forms."""

from dataclasses import replace

import numpy as np
import ot
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from wmdd.base.errors import WmddError
from wmdd.transport import plans, transport_cost
from wmdd.transport.measure import exact
from wmdd.transport.plans import Plan, balanced, prices

from .samples import SEEDS, cloud, draws

quick = settings(max_examples=60, deadline=None)


def force(patch: pytest.MonkeyPatch, way: str) -> None:
    patch.setattr(plans, "DIRECT", 0 if way == "reduced" else 10**12)
    patch.setattr(plans, "CLEAR", 10**12)


@pytest.fixture(params=["whole", "reduced"])
def way(request, monkeypatch):
    """Force one of the two ways."""
    force(monkeypatch, request.param)
    return request.param


def reduced(cost: Tensor, start: Plan | None = None, cheap: int | None = None, weights: Tensor | None = None) -> Plan:
    with pytest.MonkeyPatch.context() as patch:
        force(patch, "reduced")
        if cheap is not None:
            patch.setattr(plans, "CHEAP", cheap)
        return balanced(cost, start, weights)


def geometric(k: int, n: int, seed: int, dimensions: int = 4) -> Tensor:
    """Squared distances of k places and n points, as they come up in practice."""
    atoms = torch.randn(k, dimensions, generator=draws(seed), dtype=torch.float64)
    points = torch.randn(n, dimensions, generator=draws(seed + 1), dtype=torch.float64)
    return torch.cdist(atoms, points).square()


def optimum(cost: Tensor, weights: Tensor | None = None) -> float:
    """The value of the whole linear program, by the network simplex of POT."""
    k, n = cost.shape
    w = np.full(k, 1 / k) if weights is None else weights.numpy()
    return float(ot.emd2(w, np.full(n, 1 / n), cost.double().contiguous().numpy(), numItermax=10**7))


def check(plan: Plan, cost: Tensor, value: float | None = None, weights: Tensor | None = None) -> None:
    """A plan is feasible, is worth what it says, and is optimal."""
    k, n = cost.shape
    w = torch.full((k,), 1 / k, dtype=torch.float64) if weights is None else weights
    dense = torch.zeros(k, n, dtype=torch.float64).index_put((plan.row, plan.column), plan.mass, accumulate=True)
    size = float(cost.double().abs().mean()) + 1e-300
    assert bool((plan.mass >= 0).all())
    torch.testing.assert_close(dense.sum(0), torch.full((n,), 1 / n, dtype=torch.float64), rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(dense.sum(1), w, rtol=1e-9, atol=1e-14)
    assert plan.cost == pytest.approx(float((dense * cost.double()).sum()), rel=1e-9, abs=1e-12 * size)
    value = optimum(cost, weights) if value is None else value
    assert plan.cost == pytest.approx(value, rel=1e-9, abs=1e-9 * size)
    assert 0 <= plan.gap < (1e-9 if cost.dtype == torch.float64 else 1e-6)
    assert plan.prices.shape == (k,)


def shares(k: int, seed: int) -> Tensor:
    drawn = torch.rand(k, generator=draws(seed), dtype=torch.float64) ** 3 + 1e-6
    return drawn / drawn.sum()


SHAPES = [
    (1, 30),
    (30, 1),
    (2, 2),
    (2, 90),
    (3, 1000),
    (5, 613),
    (10, 400),
    (10, 1301),
    (50, 1300),
    (7, 7),
    (9, 4),
    (40, 13),
    (25, 60),
]


def costs_of(kind: str, k: int, n: int) -> Tensor:
    cost = torch.rand(k, n, generator=draws(k + n), dtype=torch.float64)
    return {
        "uniform": cost,
        "geometric": geometric(k, n, 3),
        "heavy": (10 * geometric(k, n, 4)).exp().log1p() ** 3,
        "integers": (4 * cost).floor(),
        "columns": cost[:1].expand(k, n).clone(),  # the points differ, the atoms do not: every plan is optimal
    }[kind]


@pytest.mark.parametrize("kind", ["uniform", "geometric", "heavy", "integers", "columns"])
def test_it_is_the_optimum_of_the_linear_program_for_any_weights_and_unit(way, kind):
    for k, n in SHAPES:
        cost, weights = costs_of(kind, k, n), shares(k, n)
        value = optimum(cost)
        check(balanced(cost), cost, value)
        check(balanced(cost, weights=weights), cost, weights=weights)
        if (k, n) in ((5, 613), (40, 13)):
            for unit in (1e-16, 1e16):
                check(balanced(unit * cost), unit * cost, unit * value)


@given(st.integers(1, 8), st.integers(1, 60), SEEDS, st.sampled_from([1, 2, 5, 1000]))
@example(6, 3, 2916, 2)  # that cost nothing, and 5e-17 by the solver
@quick
def test_ties_and_any_number_of_points(k, n, seed, values):
    cost = torch.randint(values, (k, n), generator=draws(seed)).double()
    check(reduced(cost), cost)


@given(
    st.integers(2, 8), st.integers(2, 200), SEEDS, st.sampled_from([1e-9, 1e-3, 1.0, 1e4]), st.booleans(), st.booleans()
)
@quick
def test_any_prices_to_begin_with_lead_to_the_optimum(k, n, seed, size, whole, mended):
    cost = torch.randint(6, (k, n), generator=draws(seed)).double() if whole else geometric(k, n, seed, 2)
    start = replace(balanced(cost), prices=size * torch.randn(k, generator=draws(seed + 1), dtype=torch.float64))
    check(reduced(cost, start, cheap=10 if mended else 0), cost)


@pytest.mark.parametrize("cheap", [0, 100])
@pytest.mark.parametrize("shape", [(5, 613), (10, 1301), (50, 1300)])
def test_prices_of_a_problem_solved_before(shape, cheap):
    cost = geometric(*shape, 5)
    first = reduced(cost)
    check(reduced(cost, first, cheap), cost)
    later = cost * (1 + 0.1 * torch.rand(cost.shape, generator=draws(), dtype=torch.float64))
    check(reduced(later, first, cheap), later)
    # a cell that was full of clear points has no price
    first.prices[1] = -torch.inf
    check(reduced(later, first, cheap), later)


def test_as_many_points_as_atoms_are_an_assignment(way):
    size = 17
    cost = geometric(size, size, 6)
    place = linear_sum_assignment(cost.numpy())
    found = balanced(cost)
    check(found, cost, float(cost[place].mean()))
    row = torch.zeros(size, dtype=torch.long)
    row[found.column] = found.row
    assert row.tolist() == torch.from_numpy(place[0])[torch.from_numpy(place[1]).argsort()].tolist()


def test_on_a_line_the_plan_is_monotone(way):
    k, n = 6, 301
    points = torch.randn(n, generator=draws(1), dtype=torch.float64).sort().values
    atoms = torch.randn(k, generator=draws(2), dtype=torch.float64).sort().values
    share = torch.tensor(
        [[max(0.0, min((a + 1) / k, (i + 1) / n) - max(a / k, i / n)) for i in range(n)] for a in range(k)],
        dtype=torch.float64,
    )
    cost = (atoms[:, None] - points).square()
    check(balanced(cost), cost, float((share * cost).sum()))


def test_costs_of_zero_and_constant_costs(way):
    for value in (0.0, 3.0):
        cost = torch.full((4, 30), value, dtype=torch.float64)
        check(balanced(cost), cost, value)


def test_one_cluster_that_all_atoms_must_share(way):
    # Every point prefers the same atom by far, so the prices must move a long way.
    cost = geometric(6, 600, 9)
    cost[1:] += 1e4
    check(balanced(cost), cost)


def test_an_atom_that_no_point_likes_still_gets_its_share(way):
    cost = geometric(6, 601, 10)
    cost[2] += 1e5
    check(balanced(cost), cost)


def test_what_a_price_of_the_points_adds_changes_nothing_else(way):
    cost, extra = geometric(6, 300, 11), 5 * torch.rand(300, generator=draws(), dtype=torch.float64)
    one, two = balanced(cost), balanced(cost + extra)
    assert two.cost == pytest.approx(one.cost + float(extra.mean()), rel=1e-9)


@pytest.mark.parametrize("shape", [(10, 1301), (50, 1300)])
def test_single_precision(way, shape):
    cost = geometric(*shape, 12).float()
    found = balanced(cost)
    check(found, cost)
    assert found.mass.dtype == torch.float64


@pytest.mark.parametrize("shape", [(5, 613), (50, 1300)])
def test_the_prices_are_a_certificate(way, shape):
    # The dual at the prices is never above the optimum, and here it reaches it.
    cost = geometric(*shape, 13)
    g = balanced(cost).prices.double()
    dual = float(g.mean()) + float((cost - g[:, None]).amin(0).mean())
    assert dual == pytest.approx(optimum(cost), rel=1e-9)


def test_the_reduction_is_a_reduction(monkeypatch):
    sizes = []

    def spy(weights, masses, cost, *rest):
        sizes.append(cost.numel())
        return exact(weights, masses, cost, *rest)

    monkeypatch.setattr(plans, "exact", spy)
    cost = geometric(10, 4000, 14, 8)
    check(reduced(cost), cost)
    assert len(sizes) <= 10
    assert max(sizes) < cost.numel() / 4


@pytest.mark.parametrize("shape", [(5, 613), (20, 1300)])
def test_prices_nearly_solve_the_dual(shape):
    cost = geometric(*shape, 15)
    value = optimum(cost)
    for start in (None, torch.zeros(shape[0], dtype=torch.float64)):
        g = prices(cost, start)
        dual = float(g.mean()) + float((cost - g[:, None]).amin(0).mean())
        assert dual <= value * (1 + 1e-12)
        if start is None:
            assert dual > 0.98 * value


@pytest.mark.parametrize("shape", [(10, 1301), (50, 1300)])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_agrees_with_cpu(shape):
    cost = geometric(*shape, 17)
    found = reduced(cost.cuda())
    assert found.row.device.type == "cuda"
    assert found.cost == pytest.approx(optimum(cost), rel=1e-9)


# ---- weights that are not equal


@given(st.integers(2, 8), st.integers(1, 60), SEEDS, st.booleans())
@quick
def test_any_weights_of_whole_points_and_ties(k, n, seed, whole):
    drawn = torch.randint(1, 5, (k,), generator=draws(seed))
    weights = drawn.double() / drawn.sum()
    cost = torch.randint(4, (k, n), generator=draws(seed)).double() if whole else geometric(k, n, seed, 2)
    check(reduced(cost, weights=weights), cost, weights=weights)


def test_far_clusters_with_other_masses_than_the_atoms(way):
    # Mass must go from cluster to cluster, between which the smoothed dual is nearly linear.
    points = torch.cat([cloud(400, 3, 1), cloud(200, 3, 2) + 50, cloud(300, 3, 3) - 80])
    atoms = torch.cat([cloud(3, 3, 4), cloud(4, 3, 5) + 50, cloud(2, 3, 6) - 80])
    cost = torch.cdist(atoms, points).square()
    for weights in (None, shares(9, 1)):
        check(balanced(cost, weights=weights), cost, weights=weights)


# ---- the cost of transport between atoms and points


def value_of(atoms: Tensor, weights: Tensor, points: Tensor) -> float:
    return optimum((atoms[:, None] - points).square().sum(2), weights / weights.sum())


@pytest.mark.parametrize(("k", "n"), [(1, 1), (1, 30), (4, 1), (5, 40), (7, 900), (60, 20)])
def test_the_cost_is_that_of_the_linear_program(k, n):
    atoms, points = cloud(k, 3), 1 + cloud(n, 3, 1)
    for weights in (torch.full((k,), 1 / k, dtype=torch.float64), shares(k, n)):
        assert transport_cost(atoms, weights, points) == pytest.approx(value_of(atoms, weights, points), rel=1e-9)


def test_two_diracs_split_between_two_points():
    atoms, points = torch.tensor([[0.0], [10.0]]), torch.tensor([[0.0], [10.0], [10.0], [10.0]])
    assert transport_cost(atoms, torch.tensor([0.25, 0.75]), points) == 0
    assert transport_cost(atoms, torch.tensor([0.5, 0.5]), points) == pytest.approx(25)
    assert transport_cost(atoms, torch.tensor([1.0, 0.0]), points) == pytest.approx(75)


def test_an_atom_without_mass_and_the_size_of_the_weights_do_not_count():
    atoms, points, weights = cloud(5, 3), cloud(200, 3, 1), shares(5, 1)
    expected = transport_cost(atoms, weights, points)
    far = torch.cat([torch.full((1, 3), 1e3, dtype=torch.float64), atoms])
    assert transport_cost(far, torch.cat([torch.zeros(1), weights]), points) == pytest.approx(expected, rel=1e-9)
    assert transport_cost(atoms, 7 * weights, points) == pytest.approx(expected, rel=1e-12)


def test_with_the_masses_of_their_cells_atoms_cost_the_distance_to_the_nearest_and_with_others_more():
    atoms, points = cloud(6, 4), cloud(500, 4, 1)
    near, cell = torch.cdist(atoms, points).square().min(0)
    masses = torch.bincount(cell, minlength=6) / 500
    assert transport_cost(atoms, masses, points) == pytest.approx(float(near.mean()), rel=1e-6)
    assert transport_cost(atoms, torch.ones(6), points) > 1.01 * float(near.mean())


def test_translation_and_scaling():
    atoms, points, weights = cloud(5, 3), cloud(300, 3, 1), shares(5, 1)
    expected = transport_cost(atoms, weights, points)
    shift = torch.tensor([1e4, 0.0, -7.0], dtype=torch.float64)
    assert transport_cost(atoms + shift, weights, points + shift) == pytest.approx(expected, rel=1e-9)
    for scale in (1e-6, 1e6):
        found = transport_cost(scale * atoms, weights, scale * points)
        assert found == pytest.approx(scale**2 * expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_shorter_floats_are_taken_for_what_they_are(dtype, monkeypatch):
    monkeypatch.setattr("wmdd.transport.measure.BLOCK", 100)
    atoms, points = (200 * cloud(5, 40)).to(dtype), (200 * cloud(300, 40, 1)).to(dtype)
    expected = value_of(atoms.double(), shares(5, 1), points.double())
    assert transport_cost(atoms, shares(5, 1), points) == pytest.approx(expected, rel=1e-9)
    assert transport_cost(atoms.numpy(), shares(5, 1), points.numpy()) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("atoms", "weights", "points", "message"),
    [
        (cloud(3, 2), torch.ones(2), cloud(9, 2), r"do not fit each other: \(3, 2\), \(2,\), \(9, 2\)"),
        (cloud(3, 2), torch.ones(3), cloud(9, 4), "do not fit each other"),
        (cloud(3, 2), torch.tensor([1.0, -1.0, 1.0]), cloud(9, 2), "not negative"),
        (cloud(3, 2), torch.zeros(3), cloud(9, 2), "not all zero"),
        (cloud(3, 2), torch.full((3,), torch.nan), cloud(9, 2), "must be finite"),
        (torch.full((3, 2), torch.nan), torch.ones(3), cloud(9, 2), "the set of atoms holds NaN"),
        (cloud(3, 2), torch.ones(3), torch.zeros(0, 2), "the measure needs points"),
        (1e200 * cloud(3, 2), torch.ones(3), cloud(9, 2), "overflow"),
    ],
)
def test_what_cannot_be_used_is_refused(atoms, weights, points, message):
    with pytest.raises(WmddError, match=message):
        transport_cost(atoms, weights, points)
