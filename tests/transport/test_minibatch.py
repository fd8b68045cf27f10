"""One pass of mini-batch k-means: closed forms, what D4M's code calls, exact transport, symmetries."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import MiniBatchKMeans

from wmdd.base.errors import WmddError
from wmdd.transport import minibatch, quantize, transport_cost

from .samples import SEEDS, cloud, draws, grid, mixture

BOTH = pytest.mark.parametrize("weights", ["uniform", "free"])


@BOTH
def test_one_atom_is_the_mean_and_costs_the_variance(weights):
    for count in (7, 30, 101):
        points = 5 + cloud(count, 3)
        solved = minibatch(points, 1, generator=draws(1), weights=weights)
        torch.testing.assert_close(solved.atoms[0], points.mean(0))
        assert solved.weights.tolist() == [1.0]
        assert solved.cost == pytest.approx(float(points.var(0, correction=0).sum()), rel=1e-12)


def test_separated_clusters_are_found_with_their_means_and_shares():
    part = torch.arange(5).repeat_interleave(torch.tensor([60, 80, 100, 120, 140]))
    points = 100 * torch.eye(5, dtype=torch.float64)[part] + cloud(500, 5)
    solved = minibatch(points, 5, generator=draws(), weights="free")
    order = solved.atoms.argmax(1).argsort()
    torch.testing.assert_close(solved.atoms[order], torch.stack([points[part == c].mean(0) for c in range(5)]))
    assert solved.weights[order].tolist() == pytest.approx([0.12, 0.16, 0.2, 0.24, 0.28])


@BOTH
def test_no_fewer_atoms_than_points_give_what_quantize_gives(weights):
    for k in (6, 9):
        one, other = (solve(cloud(6, 2), k, weights=weights, generator=draws()) for solve in (minibatch, quantize))
        assert torch.equal(one.atoms, other.atoms)
        assert torch.equal(one.weights, other.weights)
        assert one.cost == other.cost


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_atoms_are_those_of_what_the_released_code_calls(dtype):
    points = mixture(517, 6, 7).to(dtype)
    order, seeds = torch.randperm(517, generator=(g := draws(3))), torch.randint(2**31, (), generator=g)
    peer = MiniBatchKMeans(7, batch_size=28, random_state=int(seeds), n_init="auto")
    for rows in order.split(28):
        peer.partial_fit(points[rows].to(torch.promote_types(dtype, torch.float32)).numpy())
    solved = minibatch(points, 7, generator=draws(3), expand=4)
    assert solved.atoms.dtype == solved.weights.dtype == dtype
    np.testing.assert_array_equal(solved.atoms, torch.from_numpy(peer.cluster_centers_).to(dtype))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(SEEDS, st.integers(1, 9), st.integers(1, 10), st.sampled_from(["uniform", "free"]), st.booleans())
def test_weights_and_cost_are_those_of_exact_transport(seed, k, expand, weights, whole):
    points = grid(40, 3, seed) if whole else cloud(40, 3, seed)
    solved = minibatch(points, k, generator=draws(seed), weights=weights, expand=expand)
    costs = (solved.atoms[:, None] - points).square().sum(2)
    assert solved.trace == [solved.cost]
    assert solved.cost == pytest.approx(transport_cost(solved.atoms, solved.weights, points), rel=1e-9, abs=1e-9)
    if weights == "uniform":
        assert solved.weights.tolist() == [1 / k] * k
    else:
        assert solved.cost == pytest.approx(float(costs.amin(0).mean()), rel=1e-9, abs=1e-9)
        assert float(solved.weights.sum()) == pytest.approx(1)


@BOTH
def test_one_pass_is_dearer_than_the_optimum_and_uniform_weights_than_free_ones(weights):
    points = mixture(300, 8, 12)
    solved, free = (minibatch(points, 12, generator=draws(), weights=w) for w in (weights, "free"))
    assert torch.equal(solved.atoms, free.atoms)
    assert solved.cost >= free.cost
    assert solved.cost > 1.001 * quantize(points, 12, generator=draws(), weights=weights).cost


@BOTH
def test_translation_and_scaling(weights):
    points = mixture(150, 80, 5)
    one, two = (minibatch(p, 5, generator=draws(), weights=weights) for p in (points, 0.3 * points + 7))
    torch.testing.assert_close(two.atoms, 0.3 * one.atoms + 7)
    torch.testing.assert_close(two.weights, one.weights)
    assert two.cost == pytest.approx(0.09 * one.cost, rel=1e-9)


@BOTH
def test_the_same_generator_gives_the_same_bits(weights):
    points = mixture(200, 5, 8).float()
    one, two, other = (minibatch(points, 8, weights=weights, generator=draws(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.atoms, two.atoms)
    assert (one.cost, one.weights.tolist()) == (two.cost, two.weights.tolist())
    assert not torch.equal(one.atoms, other.atoms)
    assert torch.equal(minibatch(points, 8).atoms, minibatch(points.numpy(), 8, generator=draws(0)).atoms)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"k": 0}, "at least one atom, not 0"),
        ({"weights": "both"}, "free or uniform, not both"),
        ({"expand": 0}, "expand must be at least 1"),
        ({"points": torch.zeros(4)}, r"needs points \[N, D\]"),
        ({"points": torch.tensor([[0.0], [float("nan")], [1.0]])}, "NaN or infinity, first in point 1"),
        ({"points": 1e25 * torch.ones(9, 1) * torch.arange(9)[:, None]}, "squared distances of the measure overflow"),
    ],
)
def test_what_cannot_be_used_is_refused(wrong, message):
    with pytest.raises(WmddError, match=message):
        minibatch(**{"points": cloud(30, 2), "k": 2} | wrong)
