"""Intrinsic dimension and rates of decay, from closed forms and invariances."""

import math

import pytest
import torch
from torch import Tensor

from wmdd.base.errors import WmddError
from wmdd.transport import decay, intrinsic_dimension, quantize
from wmdd.transport.dimension import Decay

from .samples import cloud, draws

METHODS = pytest.mark.parametrize("method", ["twonn", "mle"])


def embedded(points: Tensor, dimensions: int, seed: int = 0) -> Tensor:
    """The points, isometrically in more dimensions and off the origin."""
    axes = torch.linalg.qr(cloud(dimensions, points.shape[1], seed)).Q
    return points @ axes.T + cloud(1, dimensions, seed + 1)


def cube(count: int, dimensions: int, seed: int = 0) -> Tensor:
    return torch.rand(count, dimensions, generator=draws(seed), dtype=torch.float64)


# ---- closed forms


@METHODS
@pytest.mark.parametrize("dimensions", [1, 2, 5])
@pytest.mark.parametrize("draw", [cloud, cube])
def test_lines_planes_and_more_in_many_dimensions(method, dimensions, draw):
    points = embedded(draw(1500, dimensions), 60)
    assert intrinsic_dimension(points, method) == pytest.approx(dimensions, rel=0.13)  # low near an edge


@METHODS
def test_a_curve_has_one_dimension_and_a_sphere_two(method):
    t = 4 * cube(1000, 1)[:, 0]
    helix = torch.stack([t.cos(), t.sin(), 0.3 * t], 1)
    assert intrinsic_dimension(helix, method) == pytest.approx(1, rel=0.05)
    sphere = torch.nn.functional.normalize(cloud(1500, 3), dim=1)
    assert intrinsic_dimension(sphere, method) == pytest.approx(2, rel=0.08)


def test_twonn_of_three_points_by_hand():
    # At 0, 1 and 3: mu is 3, 2 and 3/2, of which the largest is censored at the second, m = 2.
    points = torch.tensor([[0.0], [1.0], [3.0]])
    assert intrinsic_dimension(points) == pytest.approx(1 / (math.log(1.5) + 2 * math.log(2)))


def test_mle_of_three_points_by_hand():
    points = torch.tensor([[0.0], [1.0], [3.0]])
    mean = (math.log(3) + math.log(2) + math.log(1.5)) / 3
    for neighbours in (2, 20):
        assert intrinsic_dimension(points, "mle", neighbours) == pytest.approx(1 / mean)


def test_mle_of_its_neighbours_by_brute_force():
    points = cloud(50, 3)
    near = torch.cdist(points, points).sort(1).values[:, 1:8]
    expected = 1 / float((near[:, 6:] / near[:, :6]).log().mean())
    assert intrinsic_dimension(points, "mle", 7) == pytest.approx(expected, rel=1e-9)


def test_the_tenth_with_the_largest_ratio_has_little_say():
    # A pair far from all else has a mu of a million, 0.2 % of the points.
    points = cube(1000, 2)
    odd = torch.cat([points, torch.tensor([[1e6, 0.0], [1e6, 1.0]], dtype=torch.float64)])
    assert intrinsic_dimension(odd) == pytest.approx(intrinsic_dimension(points), rel=0.02)


# ---- invariances


@METHODS
def test_rotation_translation_scaling_and_order(method):
    points = cloud(300, 4)
    turn, order = torch.linalg.qr(cloud(4, 4, 1)).Q, torch.randperm(300, generator=draws())
    expected = intrinsic_dimension(points, method)
    for changed in (points @ turn, points + 1000, 1e-6 * points, 1e6 * points, points[order], embedded(points, 30)):
        assert intrinsic_dimension(changed, method) == pytest.approx(expected, rel=1e-6)


@METHODS
def test_points_that_coincide_count_once(method):
    points = cloud(200, 3)
    many = points[torch.randint(200, (500,), generator=draws())]
    many = torch.cat([points, many])
    assert intrinsic_dimension(many, method) == pytest.approx(intrinsic_dimension(points, method), rel=1e-9)


@METHODS
def test_few_points_have_none(method):
    for points in (cloud(1, 3), cloud(2, 3), cloud(2, 3).repeat(50, 1), torch.full((9, 2), 3.0)):
        assert math.isnan(intrinsic_dimension(points, method))
    assert not math.isnan(intrinsic_dimension(cloud(3, 3), method))


@METHODS
def test_neighbours_all_as_far(method):
    # The corners of a simplex.
    assert intrinsic_dimension(torch.eye(8, dtype=torch.float64), method) > 1e6


@METHODS
def test_a_seeded_part_is_looked_at(method):
    points = cloud(900, 2)
    options = {"method": method, "most": 300}
    one, two = (intrinsic_dimension(points, generator=draws(seed), **options) for seed in (1, 2))
    assert one == intrinsic_dimension(points, generator=draws(1), **options)
    assert one != two
    assert intrinsic_dimension(points, **options) == intrinsic_dimension(points, generator=draws(0), **options)
    assert intrinsic_dimension(points, method, most=900) == intrinsic_dimension(points, method)


@METHODS
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_shorter_floats_and_arrays(method, dtype):
    points = embedded(cube(200, 3), 2000).to(dtype)
    expected = intrinsic_dimension(points.double(), method)
    assert intrinsic_dimension(points, method) == expected
    assert intrinsic_dimension(points.numpy(), method) == expected
    assert expected == pytest.approx(3, rel=0.25)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "pca"}, "'twonn' or 'mle', not 'pca'"),
        ({"neighbours": 1}, "neighbours must be at least 2"),
        ({"most": 2}, "most at least 3"),
        ({"points": torch.full((5, 2), torch.nan)}, "NaN or infinity"),
        ({"points": torch.zeros(0, 2)}, r"needs points \[N, D\]"),
    ],
)
def test_what_cannot_be_used_is_refused(wrong, message):
    with pytest.raises(WmddError, match=message):
        intrinsic_dimension(**{"points": cloud(9, 2)} | wrong)


# ---- decay


@pytest.mark.parametrize("d", [1.0, 2.0, 7.5])
def test_a_power_law_is_found_without_error(d):
    found = decay({k: 3.0**2 * k ** (-2 / d) for k in (1, 2, 5, 10, 50)})
    assert found.dimension == pytest.approx(d)
    assert found.scale == pytest.approx(3)
    assert found.error == pytest.approx(0, abs=1e-9)


def test_the_standard_error_is_that_of_the_line():
    # log K = 0, 1, 2 and log W = 0, -1, -1: slope -1/2, residuals 1/6, -1/3, 1/6, so its error is sqrt(1/6 / 2).
    pairs = [(math.exp(x), math.exp(2 * y)) for x, y in ((0, 0), (1, -1), (2, -1))]
    found = decay(pairs)
    assert found.dimension == pytest.approx(2)
    assert found.error == pytest.approx(math.sqrt(1 / 12) * 4)
    assert found.scale == pytest.approx(math.exp(-1 / 6))


def test_too_few_numbers_of_atoms_tell_nothing():
    for costs in ({}, {5: 1.0}, {1: 1.0, 2: 0.0}):
        assert all(math.isnan(part) for part in vars(decay(costs)).values())
    two = decay({1: 1.0, 2: 0.5})
    assert two.dimension == pytest.approx(2)
    assert math.isnan(two.error)
    assert math.isnan(decay([(3, 1.0), (3, 2.0)]).dimension)


def test_costs_that_do_not_fall():
    for costs in ({1: 0.3, 2: 0.3, 7: 0.3}, {1: 1.0, 2: 2.0}):
        found = decay(costs)
        assert found.dimension == math.inf
        assert math.isnan(found.error)
    assert isinstance(found, Decay)


@pytest.mark.parametrize(("d", "atoms"), [(1, (2, 4, 8, 16)), (2, (4, 8, 16, 32, 64)), (3, (8, 16, 32, 64))])
def test_the_uniform_measure_of_a_cube_decays_at_its_dimension(d, atoms):
    # Zador: K^(2/d) W2^2 has a limit; for d = 1, W2^2 = 1 / (12 K^2) for every K.
    points = cube(4000, d)
    costs = {k: quantize(points, k, generator=draws(), exchanges=0).cost for k in atoms}
    assert decay(costs).dimension == pytest.approx(d, rel=0.1)
    if d == 1:
        assert costs == pytest.approx({k: 1 / (12 * k**2) for k in atoms}, rel=0.1)
