"""The barycenter of several measures, against closed forms, brute force, linear programs and symmetries."""

import itertools
import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wmdd.base.errors import WmddError
from wmdd.transport.measure import Barycenter
from wmdd.transport.several import barycenter

from .samples import SEEDS, by_rows, cloud, draws

BOTH = pytest.mark.parametrize("weights", ["free", "uniform"])
few = settings(max_examples=15, deadline=None)


def same_points(one: Tensor, other: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(by_rows(one), by_rows(other), rtol=0, atol=tolerance)


def w2(one: Tensor, a: np.ndarray, other: Tensor, b: np.ndarray) -> float:
    """W2^2 between two measures, straight from POT."""
    return float(ot.emd2(a / a.sum(), b / b.sum(), ot.dist(one.numpy(), other.numpy()), numItermax=10**6))


def circle(radius: float, count: int = 40, centre: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    angle = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    return radius * torch.stack([angle.cos(), angle.sin()], 1) + torch.tensor(centre, dtype=torch.float64)


# ---- closed forms


@given(SEEDS, st.integers(1, 9), st.lists(st.floats(0.1, 1), min_size=2, max_size=4))
@few
def test_copies_of_one_measure_have_a_copy_of_it_in_their_middle(seed, count, shares):
    points, shifts = cloud(count, 3, seed), 10 * cloud(len(shares), 3, seed + 1)
    found = barycenter([points + shift for shift in shifts], shares, generator=draws(seed))
    lambdas = torch.tensor(shares, dtype=torch.float64) / sum(shares)
    middle = lambdas @ shifts
    same_points(found.atoms, points + middle, 1e-7)
    assert found.cost == pytest.approx(float(lambdas @ (shifts - middle).square().sum(1)))
    assert found.weights.tolist() == pytest.approx([1 / count] * count)


@given(SEEDS, st.sampled_from([(5, 5, 5), (4, 6, 12), (1, 3, 2)]))
@few
def test_on_a_line_the_quantile_functions_are_averaged(seed, sizes):
    measures, lambdas = [3 * cloud(n, 1, seed + n) for n in sizes], [0.2, 0.3, 0.5]
    k = math.lcm(*sizes)
    found = barycenter(measures, lambdas, k, generator=draws(seed), tolerance=0)
    quantiles = [x.sort(0).values.repeat_interleave(k // len(x), 0) for x in measures]
    mean = sum(share * one for share, one in zip(lambdas, quantiles, strict=True))
    torch.testing.assert_close(found.atoms.sort(0).values, mean, rtol=0, atol=1e-8)
    cost = sum(share * float((one - mean).square().mean()) for share, one in zip(lambdas, quantiles, strict=True))
    assert found.cost == pytest.approx(cost, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
@BOTH
def test_between_two_diracs_lies_one(share, weights):
    ends = torch.tensor([[1.0, 5.0]]), torch.tensor([[3.0, -1.0]])
    found = barycenter(ends, [1 - share, share], 3, weights=weights)
    assert found.atoms.dtype == torch.float32
    torch.testing.assert_close(found.atoms, torch.lerp(*ends, share).expand(3, 2))
    assert found.cost == pytest.approx(share * (1 - share) * 40)


def test_circles_apart_have_a_circle_in_the_middle():
    found = barycenter([circle(1.0, centre=(-4.0, 1.0)), circle(3.0, centre=(2.0, 1.0))], k=40)
    same_points(found.atoms, circle(2.0, centre=(-1.0, 1.0)))
    found = barycenter([circle(1.0), circle(2.0), circle(6.0)], [0.5, 0.25, 0.25])
    same_points(found.atoms, circle(2.5))


@given(SEEDS)
@few
def test_linear_images_of_one_measure_like_gaussians_of_commuting_covariances(seed):
    # x -> A x is optimal for symmetric positive A, so the barycenter is the image under the mean of the A.
    points, turn = cloud(12, 3, seed), torch.linalg.qr(cloud(3, 3, seed + 1))[0]
    images = [turn @ torch.diag(0.2 + cloud(3, 1, seed + m)[:, 0].abs()) @ turn.T for m in (2, 3)]
    found = barycenter([points, *(points @ image for image in images)], [0.5, 0.3, 0.2], generator=draws(seed))
    mean = 0.5 * torch.eye(3, dtype=torch.float64) + 0.3 * images[0] + 0.2 * images[1]
    lambdas, all_images = [0.5, 0.3, 0.2], [torch.eye(3, dtype=torch.float64), *images]
    least = sum(
        share * float((points @ image - points @ mean).square().sum(1).mean())
        for share, image in zip(lambdas, all_images, strict=True)
    )
    assert found.cost >= least - 1e-9
    best = barycenter([points, *(points @ image for image in images)], lambdas, generator=draws(seed), restarts=8)
    assert best.cost <= least * 1.05


def test_free_weights_find_the_masses_that_all_measures_share():
    places = torch.tensor([[0.0, 0.0], [40.0, 0.0]], dtype=torch.float64)
    first = torch.cat([places[:1].expand(7, 2), places[1:].expand(3, 2)])
    measures = [first, first + torch.tensor([4.0, 100.0])]
    found = min(
        (barycenter(measures, k=2, weights="free", generator=draws(seed)) for seed in range(4)), key=lambda b: b.cost
    )
    same_points(found.atoms, places + torch.tensor([2.0, 50.0]), 0.02)
    assert sorted(found.weights.tolist()) == pytest.approx([0.3, 0.7], abs=1e-4)
    assert found.cost == pytest.approx(4 + 2500, rel=1e-3)


# ---- one measure is quantization


@BOTH
def test_one_atom_of_one_measure_is_the_mean(weights):
    points = cloud(17, 4)
    found = barycenter([points], k=1, weights=weights)
    torch.testing.assert_close(found.atoms[0], points.mean(0))
    assert found.cost == pytest.approx(float((points - points.mean(0)).square().sum(1).mean()))


def test_a_measure_with_all_the_weight_is_the_barycenter():
    points = cloud(9)
    found = barycenter([points, cloud(5, seed=1) + 7], [1, 0], 9)
    same_points(found.atoms, points)
    assert found.cost == pytest.approx(0, abs=1e-12)


# ---- bounds, symmetries, masses


@given(SEEDS, st.floats(0.05, 0.95), st.sampled_from(["free", "uniform"]))
@few
def test_the_cost_is_exact_never_rises_and_keeps_its_lower_bound(seed, share, weights):
    one, other = cloud(8, 2, seed), cloud(11, 2, seed + 1) + 1
    found = barycenter([one, other], [1 - share, share], 6, weights=weights, generator=draws(seed))
    parts = [w2(found.atoms, found.weights.numpy(), x, np.ones(len(x))) for x in (one, other)]
    assert found.cost == pytest.approx((1 - share) * parts[0] + share * parts[1], rel=1e-9)
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(found.trace))
    # No measure at all is closer to both than those on the geodesic between them.
    assert found.cost >= share * (1 - share) * w2(one, np.ones(8), other, np.ones(11)) - 1e-9


@given(SEEDS)
@few
def test_two_measures_of_equal_size_have_their_geodesic(seed):
    one, other = cloud(10, 2, seed), cloud(10, 2, seed + 1) + 1
    found = barycenter([one, other], [0.3, 0.7], generator=draws(seed))
    assert found.cost == pytest.approx(0.21 * w2(one, np.ones(10), other, np.ones(10)), rel=1e-9)


@given(st.permutations(range(3)))
@few
def test_the_order_of_the_measures_changes_nothing(order):
    measures, lambdas = [cloud(6, 1, seed) for seed in range(3)], [0.5, 0.3, 0.2]
    one = barycenter(measures, lambdas, 6)
    other = barycenter([measures[m] for m in order], [lambdas[m] for m in order], 6)
    same_points(one.atoms, other.atoms)
    assert one.cost == pytest.approx(other.cost)


@given(SEEDS, st.sampled_from([2.0**-10, 16.0]), st.sampled_from(["free", "uniform"]))
@few
def test_scaling_the_points_scales_the_atoms(seed, scale, weights):
    measures = [cloud(8, 2, seed), cloud(12, 2, seed + 1)]
    one = barycenter(measures, k=4, weights=weights, generator=draws(seed))
    other = barycenter([scale * x for x in measures], k=4, weights=weights, generator=draws(seed))
    torch.testing.assert_close(other.atoms, scale * one.atoms, rtol=1e-9, atol=0)
    assert other.cost == pytest.approx(scale**2 * one.cost, rel=1e-9)


def test_restarts_keep_the_cheapest_and_the_generator_decides():
    measures = [cloud(30, 2, seed) for seed in range(3)]

    def run(restarts: int) -> Barycenter:
        return barycenter(measures, k=8, generator=draws(0), restarts=restarts)

    assert run(1).cost == run(1).cost
    costs = [run(restarts).cost for restarts in (1, 2, 6)]
    assert costs == sorted(costs, reverse=True)
    assert costs[2] < costs[0]


# ---- what is refused


def broken() -> Tensor:
    points = cloud(5)
    points[3] = torch.inf
    return points


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: barycenter([x, broken()]), "measure 1 holds NaN or infinity, first in point 3"),
        (lambda x: barycenter([x, x[:0]]), "measure 1 needs points"),
        (lambda x: barycenter([x, x, cloud(4, 3)]), "measure 2 has points of 3 dimensions, measure 0 of 2"),
        (lambda x: barycenter([]), "at least one measure"),
        (lambda x: barycenter([x, x], [1.0]), "weights_of_measures: 2 numbers are needed"),
        (lambda x: barycenter([x, x], [1.5, -0.5]), "weights_of_measures: none may be negative"),
        (lambda x: barycenter([x, x], [0.0, 0.0]), "weights_of_measures: .* the sum must be positive"),
        (lambda x: barycenter([x, x], [1.0, math.nan]), "weights_of_measures: .*nan"),
        (lambda x: barycenter([x], k=0), "at least one atom"),
        (lambda x: barycenter([x], weights="learned"), "free or uniform, not learned"),
        (lambda x: barycenter([x], max_iterations=0), "at least 1"),
        (lambda x: barycenter([x], restarts=0), "at least 1"),
    ],
)
def test_a_mistake_is_named(call, message):
    with pytest.raises(WmddError, match=message):
        call(cloud(4))
