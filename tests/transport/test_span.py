"""Points in their span: distances are kept, atoms come back, and the solver finds what it finds in all dimensions."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wmdd.transport import quantization, quantize, span
from wmdd.transport.measure import squared_distances, transport_cost
from wmdd.transport.span import Span, wide

from .samples import SEEDS, by_rows, cloud, draws, mixture

BOTH = pytest.mark.parametrize("weights", ["uniform", "free"])
KINDS = pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
quick = settings(max_examples=30, deadline=None, derandomize=True)


@pytest.fixture
def always(monkeypatch):
    """Have every measure of more dimensions than points solved in its span, read in several blocks."""
    monkeypatch.setattr(quantization, "wide", lambda points: points.shape[1] > points.shape[0])
    monkeypatch.setattr(span, "BLOCK", 400)


def error(dtype: torch.dtype) -> float:
    return 1e-4 if dtype != torch.float64 else 1e-10


# ---- the coordinates


@KINDS
@pytest.mark.parametrize(("count", "dimensions"), [(2, 5), (9, 9), (13, 200), (40, 41)])
def test_distances_are_kept(dtype, count, dimensions, monkeypatch):
    monkeypatch.setattr(span, "BLOCK", 400)
    points = (7 + cloud(count, dimensions)).to(dtype)
    found = Span.of(points).coordinates.double()
    expected = torch.cdist(points.double(), points.double()).square()
    torch.testing.assert_close(torch.cdist(found, found).square(), expected, rtol=10 * error(dtype), atol=1e-8)


@KINDS
@pytest.mark.parametrize("rank", [1, 3, 30])
def test_means_come_back_whatever_the_rank(dtype, rank, monkeypatch):
    monkeypatch.setattr(span, "BLOCK", 400)
    points = (cloud(30, rank) @ cloud(rank, 150, 1) + 2).to(dtype)
    made = Span.of(points)
    share = torch.rand(4, 30, generator=draws(), dtype=torch.float64)
    share /= share.sum(1, keepdim=True)
    atoms = made.back(share.to(made.coordinates) @ made.coordinates)
    expected = share @ points.double()
    scale = float(points.double().std())
    torch.testing.assert_close(atoms.double() + made.centre, expected, rtol=0, atol=error(dtype) * scale)
    costs = squared_distances(expected, points.double())
    torch.testing.assert_close(made.distances(atoms), costs, rtol=error(dtype), atol=error(dtype) * scale**2)


@quick
@given(SEEDS, st.integers(2, 12), st.integers(1, 5))
def test_all_partitions_cost_the_same_more(seed, count, k):
    points = cloud(count, 20, seed).float()
    coordinates = Span.of(points).coordinates.double()
    label = torch.randint(k, (count,), generator=draws(seed))

    def cost(x: Tensor) -> float:
        cells = [x[label == cell] for cell in label.unique()]
        return float(sum((cell - cell.mean(0)).square().sum() for cell in cells))

    ridge = float(coordinates[-1].square().sum() - (points.double()[-1] - points.double().mean(0)).square().sum())
    more = ridge * (count - len(label.unique()))
    assert cost(coordinates) == pytest.approx(cost(points.double()) + more, rel=1e-6, abs=1e-6)
    assert 0 < ridge < 1e-3


def test_only_many_dimensions_of_few_points_on_the_cpu_are_worth_it():
    assert wide(torch.empty(1300, 16384, dtype=torch.float16))
    assert not wide(torch.empty(1300, 512))
    assert not wide(torch.empty(10, 1000))
    assert not wide(torch.empty(5000, 16384, device="meta"))
    assert not wide(torch.empty(1300, 16384, device="meta"))


# ---- the solver


@BOTH
@KINDS
@pytest.mark.parametrize("k", [1, 2, 7])
def test_the_same_is_found_as_in_all_dimensions(always, monkeypatch, weights, dtype, k):
    points = (mixture(60, 100, 7, apart=1) + 3).to(dtype)
    found = quantize(points, k, weights=weights, generator=draws())
    monkeypatch.setattr(quantization, "wide", lambda points: False)
    expected = quantize(points, k, weights=weights, generator=draws())
    assert found.atoms.dtype == found.weights.dtype == dtype
    assert found.cost == pytest.approx(expected.cost, rel=error(dtype))
    torch.testing.assert_close(found.weights, expected.weights)
    torch.testing.assert_close(found.atoms, expected.atoms, rtol=0, atol=max(1e-9, 40 * torch.finfo(dtype).eps))
    assert len(found.trace) == len(expected.trace)
    assert found.trace == pytest.approx(expected.trace, rel=error(dtype))


@BOTH
@quick
@given(seed=SEEDS, k=st.integers(1, 14), whole=st.booleans())
def test_every_result_is_consistent(weights, seed, k, whole):
    points = mixture(12, 30, 4, seed, apart=1)
    points = points.round() if whole else points
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization, "wide", lambda points: points.shape[1] > points.shape[0])
        found = quantize(points, k, weights=weights, generator=draws(seed))
    assert float(found.weights.sum()) == pytest.approx(1, abs=1e-12)
    assert all(b <= a + 1e-12 for a, b in pairwise(found.trace))
    assert found.trace[-1] == found.cost
    assert found.cost == pytest.approx(transport_cost(found.atoms, found.weights, points), rel=1e-9, abs=1e-9)
    assert found.gap < 1e-9


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.1, -3e4, 1e-20])
def test_constant_points(always, weights, dtype, value):
    points = torch.full((9, 50), value, dtype=dtype)
    found = quantize(points, 4, weights=weights)
    torch.testing.assert_close(found.atoms, points[:4], rtol=1e-12, atol=0)
    assert found.cost == pytest.approx(0, abs=1e-24 * value**2)


@BOTH
def test_points_as_large_as_latents(weights):
    # 300 x 4,096 as float16: the sum of the squares is far above what float16 can hold.
    points = (3 * mixture(300, 4096, 5, apart=1)).half()
    assert wide(points)
    found = quantize(points, 5, weights=weights, generator=draws())
    means = torch.stack([points.double()[torch.randint(5, (300,), generator=draws()) == c].mean(0) for c in range(5)])
    if weights == "free":
        order = torch.cdist(means, found.atoms.double()).argmin(1)
        torch.testing.assert_close(found.atoms[order].double(), means, rtol=0, atol=1e-2)
    assert found.cost == pytest.approx(transport_cost(found.atoms, found.weights, points), rel=1e-3)  # of rounded atoms


def test_the_layout_of_the_points_is_of_no_account(always):
    points = mixture(20, 60, 3, apart=1)
    one, two = (quantize(p, 3, generator=draws()) for p in (points, points.T.contiguous().T))
    assert torch.equal(by_rows(one.atoms), by_rows(two.atoms))
