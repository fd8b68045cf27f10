"""Cuturi and Doucet's alternation and the released recipe, against closed forms, linear programs and symmetries."""

from itertools import pairwise

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from wmdd.base.errors import WmddError
from wmdd.transport.cuturi_doucet import FLOOR, alternate, cuturi_doucet, newton_step, weights_by_mirror_descent
from wmdd.transport.measure import Transport, exact, squared_distances
from wmdd.transport.released import released

from .samples import SEEDS, by_rows, cloud, draws

BOTH = pytest.mark.parametrize("weights", ["free", "uniform"])
KINDS = st.sampled_from(["free", "uniform"])
ONE = torch.ones(1, dtype=torch.float64)
few = settings(max_examples=15, deadline=None)


def equal(count: int) -> Tensor:
    return torch.full((count,), 1 / count, dtype=torch.float64)


def uneven(count: int, seed: int = 0) -> Tensor:
    found = 0.1 + torch.rand(count, generator=draws(seed), dtype=torch.float64)
    return found / found.sum()


def spread(cost: Tensor, masses: Tensor) -> float:
    return float((cost.amax(0) - cost.amin(0)) @ masses)


def variance(points: Tensor) -> float:
    return float((points - points.mean(0)).square().sum(1).mean())


def never_rises(trace: list[float]) -> bool:
    return all(after <= before * (1 + 1e-12) + 1e-12 for before, after in pairwise(trace))


def three_places(counts: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Three places far apart, and as many points close to each."""
    places = torch.tensor([[0.0, 0.0], [50.0, 0.0], [20.0, 70.0]], dtype=torch.float64)
    return places, torch.cat([places[i] + cloud(count, seed=i) for i, count in enumerate(counts)])


def best_weights(costs: list[Tensor], masses: list[Tensor], lambdas: Tensor) -> float:
    """The least F over the weights and all plans together, by one linear program in (w, T_1, ..., T_M)."""
    k, objective, rows, values = len(costs[0]), [np.zeros(len(costs[0]))], [], []
    sizes = [cost.numel() for cost in costs]
    for m, (cost, mass) in enumerate(zip(costs, masses, strict=True)):
        objective.append(float(lambdas[m]) * cost.numpy().ravel())
        before, after = k + sum(sizes[:m]), sum(sizes[m + 1 :])
        to_rows, to_columns = np.kron(np.eye(k), np.ones(cost.shape[1])), np.kron(np.ones(k), np.eye(cost.shape[1]))
        rows.append(np.hstack([-np.eye(k), np.zeros((k, before - k)), to_rows, np.zeros((k, after))]))
        rows.append(np.hstack([np.zeros((len(mass), before)), to_columns, np.zeros((len(mass), after))]))
        values += [np.zeros(k), mass.numpy()]
    found = linprog(np.concatenate(objective), A_eq=np.vstack(rows), b_eq=np.concatenate(values))
    assert found.status == 0
    return float(found.fun)


# ---- weights by mirror descent


def test_each_line_of_the_algorithm_where_the_dual_is_known():
    # The only plan to a Dirac sends everything to it, so f = c up to a constant and F(a) = a.c.
    c = torch.tensor([0.5, 2.0, 3.0, 4.5], dtype=torch.float64)
    _, trace = weights_by_mirror_descent([c[:, None]], [ONE], ONE, step=0.7, iterations=4, tolerance=0)
    after = [(-0.7 * beta * c / 4).softmax(0) for beta in (0, 1, 1 + 1.5, 1 + 1.5 + 2)]  # a~; the spread is 4
    second = after[1] / 3 + after[2] * 2 / 3  # a^
    third = second / 2 + after[3] / 2
    seen = [after[0], after[1], second / 2 + after[2] / 2, third * 3 / 5 + after[3] * 2 / 5]
    assert trace == pytest.approx([float(a @ c) for a in seen], rel=1e-12)


@given(SEEDS, st.integers(2, 8))
@few
def test_free_weights_of_one_measure_approach_the_masses_of_the_cells(seed, k):
    points, masses = cloud(60, seed=seed), uneven(60, seed)
    cost = squared_distances(cloud(k, seed=seed + 1), points)
    nearest, cell = cost.min(0)
    found, trace = weights_by_mirror_descent([cost], [masses], ONE, iterations=300, tolerance=0)
    assert exact(found, masses, cost).cost == pytest.approx(float(nearest @ masses), abs=1e-3 * spread(cost, masses))
    assert float((found - torch.bincount(cell, masses, k)).abs().max()) < 0.06
    assert min(trace) == pytest.approx(exact(found, masses, cost).cost, rel=1e-9)


@given(SEEDS, st.sampled_from([0.1, 0.03, 0.01, 3e-3]))
@few
def test_the_descent_stops_only_within_the_tolerance_of_the_optimum(seed, tolerance):
    points = cloud(40, seed=seed)
    cost = squared_distances(cloud(6, seed=seed + 1), points)
    least = float(cost.amin(0).mean())
    _, trace = weights_by_mirror_descent([cost], [equal(40)], ONE, 0.3, 1000, tolerance)
    assert len(trace) < 1000
    assert least - 1e-9 <= min(trace) <= least + tolerance * spread(cost, equal(40)) + 1e-9


@given(SEEDS)
@few
def test_free_weights_of_several_measures_approach_the_linear_program(seed):
    atoms, lambdas = cloud(5, seed=seed), uneven(3, seed)
    masses = [uneven(n, seed + n) for n in (4, 6, 7)]
    costs = [squared_distances(atoms, cloud(len(a), seed=seed + 10 * len(a))) for a in masses]
    _, trace = weights_by_mirror_descent(costs, masses, lambdas, iterations=400, tolerance=0)
    scale = sum(float(share) * spread(*one) for share, *one in zip(lambdas, costs, masses, strict=True))
    least = best_weights(costs, masses, lambdas)
    assert least - 1e-9 <= min(trace) <= least + 2e-3 * scale


def test_all_weight_goes_to_the_best_place_between_two_diracs():
    line = torch.linspace(0, 1, 11, dtype=torch.float64)[:, None]
    ends = [torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)]
    lambdas = torch.tensor([0.7, 0.3], dtype=torch.float64)
    costs = [squared_distances(line, end) for end in ends]
    found, trace = weights_by_mirror_descent(costs, [ONE, ONE], lambdas, iterations=400, tolerance=0)
    assert float(found[3]) > 0.99  # 0.3 of the way from 0 to 1
    assert min(trace) == pytest.approx(0.7 * 0.3, rel=1e-3)


def test_no_weight_vanishes_however_far_an_atom_is_and_whatever_the_step():
    atoms = torch.cat([cloud(4), cloud(2, seed=1) + 1e6])
    cost = squared_distances(atoms, cloud(50, seed=2))
    found, trace = weights_by_mirror_descent([cost], [equal(50)], ONE, step=1e4, iterations=50, tolerance=0)
    assert float(found.min()) >= 0.5 * FLOOR
    assert np.isfinite(trace).all()
    assert float(found.sum()) == pytest.approx(1, abs=1e-9)


@given(SEEDS, st.sampled_from([2.0**-20, 0.25, 4.0, 2.0**30]))
@few
def test_scaling_the_points_scales_the_cost_and_nothing_else(seed, scale):
    cost = squared_distances(cloud(5, seed=seed), cloud(30, seed=seed + 1))
    one, trace = weights_by_mirror_descent([cost], [equal(30)], ONE, iterations=20)
    other, scaled = weights_by_mirror_descent([cost * scale], [equal(30)], ONE, iterations=20)
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert scaled == pytest.approx([scale * value for value in trace], rel=1e-12)


@given(SEEDS, st.integers(1, 6))
@few
def test_the_result_is_never_dearer_than_the_start(seed, iterations):
    cost, start = squared_distances(cloud(6, seed=seed), cloud(40, seed=seed + 1)), uneven(6, seed)
    found, trace = weights_by_mirror_descent([cost], [equal(40)], ONE, 3.0, iterations, start=start)
    before, after = exact(start, equal(40), cost).cost, exact(found, equal(40), cost).cost
    assert trace[0] == pytest.approx(before, rel=1e-9)
    assert after <= before + 1e-9


@pytest.mark.parametrize("k", [1, 3])
def test_atoms_in_one_place_leave_nothing_to_choose(k):
    points = cloud(9)
    cost = squared_distances(points.mean(0).expand(k, 2), points)
    found, trace = weights_by_mirror_descent([cost], [equal(9)], ONE)
    assert found.tolist() == pytest.approx([1 / k] * k)
    assert trace == pytest.approx([variance(points)])


# ---- the alternation


@BOTH
def test_one_atom_is_the_mean_and_as_many_as_points_are_the_points(weights):
    points = cloud(23, 5)
    found = cuturi_doucet(points, 1, draws(), weights)
    torch.testing.assert_close(found.atoms[0], points.mean(0))
    assert found.weights.tolist() == [1.0]
    assert found.cost == pytest.approx(variance(points), rel=1e-9)
    same = cuturi_doucet(points, 23, draws(), "uniform")
    torch.testing.assert_close(by_rows(same.atoms), by_rows(points))
    more = cuturi_doucet(points, 46, draws(), weights)
    assert more.atoms.shape == (46, 5)
    assert more.cost < 1e-3 * variance(points)


@given(SEEDS, KINDS, st.sampled_from([2.0**-10, 8.0]))
@few
def test_scaling_and_moving_the_points_scales_and_moves_the_atoms(seed, weights, scale):
    points, shift = cloud(25, seed=seed), torch.tensor([10.0, -3.0], dtype=torch.float64)
    one, scaled, moved = (cuturi_doucet(x, 4, draws(seed), weights) for x in (points, points * scale, points + shift))
    torch.testing.assert_close(scaled.atoms, one.atoms * scale, rtol=1e-9, atol=0)
    torch.testing.assert_close(scaled.weights, one.weights, rtol=0, atol=1e-9)
    assert scaled.cost == pytest.approx(scale**2 * one.cost, rel=1e-9)
    if weights == "uniform":
        torch.testing.assert_close(moved.atoms, one.atoms + shift)


@given(SEEDS, st.integers(1, 7), KINDS)
@few
def test_the_cost_is_exact_and_never_rises(seed, k, weights):
    points = cloud(30, seed=seed)
    found = cuturi_doucet(points, k, draws(seed), weights)
    assert never_rises(found.trace)
    assert found.cost == found.trace[-1] or found.cost == pytest.approx(found.trace[-1], rel=1e-12)
    again = exact(found.weights, equal(30), squared_distances(found.atoms, points)).cost
    assert found.cost == pytest.approx(again, rel=1e-9)
    assert float(found.weights.sum()) == pytest.approx(1)


def test_places_far_apart_are_found_with_their_shares():
    _, points = three_places((50, 30, 20))
    found = min((cuturi_doucet(points, 3, draws(seed)) for seed in range(5)), key=lambda b: b.cost)
    means = torch.stack([part.mean(0) for part in points.split([50, 30, 20])])
    torch.testing.assert_close(by_rows(found.atoms), by_rows(means), rtol=0, atol=0.01)
    assert sorted(found.weights.tolist()) == pytest.approx([0.2, 0.3, 0.5], abs=1e-4)
    assert found.cost == pytest.approx(sum(len(x) / 100 * variance(x) for x in points.split([50, 30, 20])), rel=0.02)


@given(SEEDS)
@few
def test_the_cost_falls_all_the_way_along_a_newton_step(seed):
    points = [cloud(12, seed=seed), cloud(15, seed=seed + 1) + 2]
    masses, atoms, weights = [uneven(12, seed), uneven(15, seed)], cloud(5, seed=seed + 2), uneven(5, seed)
    shares = torch.tensor([0.6, 0.4], dtype=torch.float64)

    def plans(b: Tensor) -> list[Transport]:
        return [exact(weights, a, squared_distances(b, x)) for a, x in zip(masses, points, strict=True)]

    aim = newton_step(points, plans(atoms), shares, atoms)
    costs = [
        sum(float(share) * plan.cost for share, plan in zip(shares, plans(atoms.lerp(aim, theta)), strict=True))
        for theta in np.linspace(0, 1, 9)
    ]
    assert all(after < before for before, after in pairwise(costs))


def test_a_newton_step_is_the_mean_of_what_an_atom_gets_and_leaves_an_atom_without_mass():
    points = torch.tensor([[0.0], [4.0], [10.0]], dtype=torch.float64)
    plan = torch.tensor([[0.3, 0.1, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.6]], dtype=torch.float64)
    atoms = torch.tensor([[1.0], [7.0], [2.0]], dtype=torch.float64)
    moved = newton_step([points], [Transport(plan, 0.0, atoms[:, 0], points[:, 0])], ONE, atoms)
    assert moved[:, 0].tolist() == pytest.approx([1.0, 7.0, 10.0])


@given(SEEDS)
@few
def test_uniform_weights_agree_with_pot_from_the_same_start(seed):
    points, start, shares = [cloud(20, 3, seed), cloud(14, 3, seed + 1) - 1], cloud(4, 3, seed + 2), [0.3, 0.7]
    ours = alternate(points, [equal(20), equal(14)], torch.tensor(shares).double(), start, False, 200, 0.0)
    theirs = torch.from_numpy(
        ot.lp.free_support_barycenter(
            [x.numpy() for x in points], [np.full(20, 1 / 20), np.full(14, 1 / 14)], start.numpy(), weights=shares
        )
    )
    torch.testing.assert_close(ours.atoms, theirs, rtol=0, atol=1e-3)
    again = [exact(equal(4), equal(len(x)), squared_distances(theirs, x)).cost for x in points]
    assert ours.cost == pytest.approx(0.3 * again[0] + 0.7 * again[1], rel=1e-6)


@BOTH
def test_the_generator_decides_and_the_type_of_the_points_is_kept(weights):
    points = cloud(30).float()
    one, other = (cuturi_doucet(points.numpy(), 4, draws(5), weights) for _ in range(2))
    assert one.atoms.dtype == one.weights.dtype == torch.float32
    torch.testing.assert_close(one.atoms, other.atoms, rtol=0, atol=0)
    assert one.seconds > 0


def test_what_cannot_be_used_is_refused():
    points = cloud(6)
    broken = points.clone()
    broken[4, 1] = torch.nan
    for call, message in [
        (lambda: cuturi_doucet(broken, 2, draws()), "NaN or infinity, first in point 4"),
        (lambda: cuturi_doucet(points, 0, draws()), "at least one atom"),
        (lambda: cuturi_doucet(points, 2, draws(), "learned"), "free or uniform, not learned"),
        (lambda: cuturi_doucet(points, 2, draws(), rounds=0), "at least 1"),
        (lambda: released(broken, 2, draws()), "NaN or infinity, first in point 4"),
        (lambda: released(points, 0, draws()), "at least one atom"),
        (lambda: released(points, 2, draws(), "learned"), "free or uniform, not learned"),
    ]:
        with pytest.raises(WmddError, match=message):
            call()


# ---- the released recipe


def noise(k: int, dimensions: int, seed: int = 0) -> Tensor:
    return torch.randn(k, dimensions, generator=draws(seed), dtype=torch.float64)


def test_released_keeps_a_tenth_of_the_noise_where_the_points_have_none():
    # The points are in a plane, so out of it the atoms are only what is left of the noise.
    points = torch.cat([2 * cloud(60) + 1, torch.zeros(60, 3, dtype=torch.float64)], 1)
    found = released(points, 6, draws(1))
    torch.testing.assert_close(found.atoms[:, 2:], 0.8**10 * noise(6, 5, 1)[:, 2:])
    assert len(found.trace) == 10
    assert found.cost == found.trace[-1]
    again = exact(found.weights, equal(60), squared_distances(found.atoms, points)).cost
    assert found.cost == pytest.approx(again, rel=1e-9)


def test_released_stops_after_one_round_at_one_atom():
    points = cloud(40, 4) + 3
    found = released(points, 1, draws(2))
    torch.testing.assert_close(found.atoms, 0.8 * noise(1, 4, 2) + 0.2 * points.mean(0))
    assert len(found.trace) == 1
    assert found.weights.tolist() == [1.0]
    assert found.cost > variance(points)


def test_released_refuses_a_weight_that_vanishes():
    with pytest.raises(WmddError, match=r"the weight of atom \d+ fell to 0.*cuturi-doucet"):
        released(0.03 * cloud(30), 30, draws())


def test_released_uniform_is_pots_barycenter_from_noise():
    points = cloud(50, 3).float()
    found = released(points, 7, draws(4), "uniform")
    theirs = ot.lp.free_support_barycenter([points.double().numpy()], [ot.unif(50)], noise(7, 3, 4).numpy())
    torch.testing.assert_close(found.atoms, torch.from_numpy(theirs).float())
    assert found.atoms.dtype == torch.float32
    assert found.weights.tolist() == pytest.approx([1 / 7] * 7)
    assert found.trace == [found.cost]
