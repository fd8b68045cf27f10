"""One pass of mini-batch k-means: closed forms, scikit-learn's steps on the same batches, exact transport, symmetries."""

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from wmdd.base.errors import WmddError
from wmdd.transport import Barycenter, minibatch, quantize
from wmdd.transport.minibatch import _start

from .samples import SEEDS, by_rows, cloud, draws, grid

BOTH = pytest.mark.parametrize("weights", ["uniform", "free"])
quick = settings(max_examples=30, deadline=None, derandomize=True)


def mixture(count: int, dimensions: int, parts: int, seed: int = 0) -> Tensor:
    places = 3 * cloud(parts, dimensions, seed)
    return places[torch.randint(parts, (count,), generator=draws(seed))] + cloud(count, dimensions, seed + 1)


def given_start(atoms: Tensor):
    """A start, which is told the points about their centre, that returns some atoms about it."""
    return lambda batch, k, draws: atoms


def squared(found: Barycenter, points: Tensor) -> Tensor:
    return (found.atoms.double()[:, None] - points.double()).square().sum(2)


def exact_cost(found: Barycenter, points: Tensor) -> float:
    w, a = found.weights.double().numpy(), np.full(len(points), 1 / len(points))
    return float(ot.emd2(w / w.sum(), a, squared(found, points).numpy(), numItermax=10**7))


# ---- closed forms


@BOTH
@pytest.mark.parametrize("count", [7, 30, 101])
def test_one_atom_is_the_mean_and_costs_the_variance(weights, count):
    points = 5 + cloud(count, 3)
    found = minibatch(points, 1, generator=draws(1), weights=weights)
    torch.testing.assert_close(found.atoms[0], points.mean(0))
    assert found.weights.tolist() == [1.0]
    assert found.cost == pytest.approx(float(points.var(0, correction=0).sum()), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_separated_clusters_are_found_with_their_means_and_shares(seed):
    part = torch.arange(5).repeat_interleave(torch.tensor([60, 80, 100, 120, 140]))
    points = 100 * torch.eye(5, dtype=torch.float64)[part] + cloud(500, 5, seed)
    found = minibatch(points, 5, generator=draws(seed), weights="free")
    order = found.atoms.argmax(1).argsort()
    torch.testing.assert_close(found.atoms[order], torch.stack([points[part == c].mean(0) for c in range(5)]))
    assert found.weights[order].tolist() == pytest.approx([0.12, 0.16, 0.2, 0.24, 0.28])


@BOTH
@pytest.mark.parametrize("k", [6, 9])
def test_no_fewer_atoms_than_points_give_what_quantize_gives(weights, k):
    points = cloud(6, 2)
    found, expected = (solve(points, k, weights=weights, generator=draws()) for solve in (minibatch, quantize))
    assert torch.equal(found.atoms, expected.atoms)
    assert torch.equal(found.weights, expected.weights)
    assert found.cost == expected.cost


@BOTH
def test_constant_points(weights):
    found = minibatch(torch.full((50, 3), 2.5), 4, weights=weights)
    torch.testing.assert_close(found.atoms, torch.full((4, 3), 2.5))
    assert float(found.weights.sum()) == pytest.approx(1)
    assert found.cost == pytest.approx(0, abs=1e-10)


# ---- scikit-learn's steps


class SameDraws(np.random.RandomState):
    """Draws points to reassign atoms to as ours are drawn."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__(0)
        self.ours = generator

    def choice(self, count, replace, size):
        assert not replace
        return torch.randperm(count, generator=self.ours)[:size].numpy()


def partial_fits(points: Tensor, start: Tensor, expand: int, reassign: float, seed: int) -> np.ndarray:
    """The centres of scikit-learn after the same batches from the same centres."""
    k, g = len(start), draws(seed)
    batches = points[torch.randperm(len(points), generator=g)].split(expand * k)
    peer = MiniBatchKMeans(
        k, init=(start + batches[0].mean(0)).numpy(), n_init=1, batch_size=expand * k, reassignment_ratio=reassign,
        random_state=SameDraws(g),
    )  # fmt: skip
    for batch in batches:
        peer.partial_fit(batch.numpy())
    return peer.cluster_centers_


@pytest.mark.parametrize(("count", "k", "expand"), [(300, 5, 10), (230, 10, 3), (517, 7, 10), (90, 4, 1), (60, 10, 10)])
def test_steps_without_reassignment_are_those_of_scikit_learn(count, k, expand):
    points, start = mixture(count, 6, k), cloud(k, 6, 9)
    found = minibatch(points, k, generator=draws(3), expand=expand, reassign=0, start=given_start(start))
    np.testing.assert_allclose(found.atoms.numpy(), partial_fits(points, start, expand, 0.0, 3), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("expand", [1, 4, 10])
@pytest.mark.parametrize("seed", range(3))
def test_reassignments_are_those_of_scikit_learn(expand, seed):
    points, start = mixture(400, 6, 8, seed), cloud(8, 6, seed + 9)
    start[2], start[5] = 1e3, -1e3  # which win nothing
    ours, peers = (
        (
            minibatch(
                points, 8, generator=draws(3), expand=expand, reassign=share, start=given_start(start)
            ).atoms.numpy(),
            partial_fits(points, start, expand, share, 3),
        )
        for share in (0.2, 0.0)
    )
    np.testing.assert_allclose(*ours, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(*peers, rtol=1e-9, atol=1e-11)
    assert abs(peers[0]).max() > 900 > 30 > abs(ours[0]).max()


def test_no_more_atoms_are_reassigned_than_half_a_batch():
    points, start = cloud(60, 2), torch.full((10, 2), 1e3, dtype=torch.float64)
    start += torch.arange(10.0)[:, None]
    start[0] = 0
    found = minibatch(points[:11], 10, generator=draws(), expand=1, start=given_start(start), reassign=0.5)
    # One atom wins all of the first batch, of 10; of the other nine, five are put on points. The second is of one point.
    assert int((found.atoms.abs() > 900).any(1).sum()) == 4


# ---- the start


@pytest.mark.parametrize("dimensions", [3, 40])
def test_the_start_is_of_distinct_points_of_the_batch(dimensions):
    batch = cloud(20, dimensions)
    assert torch.equal(by_rows(_start(batch, 20, draws())), by_rows(batch))
    chosen = _start(batch, 6, draws())
    assert int((torch.cdist(chosen, batch) < 1e-7).sum()) == 6


@pytest.mark.parametrize("dimensions", [3, 40])
@pytest.mark.parametrize("seed", range(3))
def test_the_start_does_not_miss_what_is_far(dimensions, seed):
    places = 100 * cloud(6, dimensions, seed)
    batch = places[torch.tensor([0] * 15 + [1, 2, 3, 4, 5])] + cloud(20, dimensions, seed + 1)
    near = torch.cdist(_start(batch, 6, draws(seed)), places).argmin(1)
    assert sorted(near.tolist()) == [0, 1, 2, 3, 4, 5]


# ---- what is returned


@quick
@given(SEEDS, st.integers(1, 9), st.integers(1, 10), st.sampled_from(["uniform", "free"]), st.booleans())
def test_weights_and_cost_are_those_of_exact_transport(seed, k, expand, weights, whole):
    points = grid(40, 3, seed) if whole else cloud(40, 3, seed)
    found = minibatch(points, k, generator=draws(seed), weights=weights, expand=expand)
    assert found.atoms.shape == (k, 3)
    assert float(found.weights.sum()) == pytest.approx(1, abs=1e-12)
    assert found.trace == [found.cost]
    assert found.cost == pytest.approx(exact_cost(found, points), rel=1e-9, abs=1e-9)
    if weights == "uniform":
        assert found.weights.tolist() == [1 / k] * k
    else:
        assert found.cost == pytest.approx(float(squared(found, points).amin(0).mean()), rel=1e-9, abs=1e-9)


def test_free_weights_are_the_masses_of_the_cells():
    points = mixture(200, 4, 6)
    found = minibatch(points, 6, generator=draws(), weights="free")
    masses = torch.bincount(squared(found, points).argmin(0), minlength=6) / 200
    torch.testing.assert_close(found.weights, masses.double(), check_dtype=False)


@pytest.mark.parametrize("seed", range(5))
def test_the_same_atoms_cost_more_with_uniform_weights(seed):
    points = mixture(200, 4, 6, seed)
    uniform, free = (minibatch(points, 6, generator=draws(seed), weights=w) for w in ("uniform", "free"))
    assert torch.equal(uniform.atoms, free.atoms)
    assert uniform.cost > 1.01 * free.cost


@BOTH
@pytest.mark.parametrize("seed", range(5))
def test_one_pass_is_dearer_than_the_optimum(weights, seed):
    points = mixture(300, 8, 12, seed)
    one_pass = minibatch(points, 12, generator=draws(seed), weights=weights).cost
    assert one_pass > 1.001 * quantize(points, 12, generator=draws(seed), weights=weights).cost


def test_each_point_is_learned_from_once():
    seen = []

    def progress(batches, what, total, unit):
        assert (what, total, unit) == ("learn", 4, "batch")
        for batch in batches:
            seen.append(batch)
            yield batch

    minibatch(cloud(103, 2), 3, progress=progress)
    assert [len(batch) for batch in seen] == [30, 30, 30, 13]
    assert sorted(torch.cat(seen).tolist()) == list(range(103))


# ---- symmetries


@BOTH
@pytest.mark.parametrize("dimensions", [3, 80])
def test_translation_rotation_and_scaling(weights, dimensions):
    points = mixture(150, dimensions, 5)
    turn, shift = torch.linalg.qr(cloud(dimensions, dimensions, 1)).Q, 100 * cloud(1, dimensions, 2)
    one, two = (minibatch(p, 5, generator=draws(), weights=weights) for p in (points, 0.3 * points @ turn + shift))
    torch.testing.assert_close(two.atoms, 0.3 * one.atoms @ turn + shift)
    torch.testing.assert_close(two.weights, one.weights)
    assert two.cost == pytest.approx(0.09 * one.cost, rel=1e-9)


@BOTH
def test_the_same_generator_gives_the_same_bits(weights):
    points = mixture(200, 5, 8).float()
    one, two, other = (minibatch(points, 8, weights=weights, generator=draws(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.atoms, two.atoms)
    assert torch.equal(one.weights, two.weights)
    assert one.cost == two.cost
    assert not torch.equal(one.atoms, other.atoms)
    assert torch.equal(minibatch(points, 8).atoms, minibatch(points, 8, generator=draws(0)).atoms)


# ---- types and errors


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("dimensions", [4, 60])
def test_shorter_floats_are_computed_in_single_precision(weights, dtype, dimensions):
    points = (20 + mixture(150, dimensions, 5)).to(dtype)
    found = minibatch(points, 5, generator=draws(), weights=weights)
    reference = minibatch(points.double(), 5, generator=draws(), weights=weights)
    assert found.atoms.dtype == found.weights.dtype == dtype
    assert found.cost == pytest.approx(reference.cost, rel=1e-4)
    torch.testing.assert_close(found.atoms, reference.atoms.to(dtype), rtol=0, atol=40 * torch.finfo(dtype).eps)


def test_what_may_be_passed_as_points():
    points = (10 * mixture(80, 3, 4)).round()
    assert minibatch(points.int().numpy(), 4).cost == minibatch(points, 4).cost
    assert minibatch(points.T.contiguous().T, 4).cost == pytest.approx(minibatch(points, 4).cost, rel=1e-12)
    kept = points.clone()
    found = minibatch(points.requires_grad_(), 4)
    assert torch.equal(points, kept)
    assert not found.atoms.requires_grad
    assert found.seconds > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"k": 0}, "at least one atom, not 0"),
        ({"weights": "both"}, "free or uniform, not both"),
        ({"expand": 0}, "expand must be at least 1"),
        ({"reassign": 1.0}, "reassign at least 0 and below 1"),
        ({"reassign": -0.1}, "reassign at least 0 and below 1"),
        ({"points": torch.zeros(4)}, r"needs points \[N, D\]"),
        ({"points": torch.tensor([[0.0], [float("nan")], [1.0]])}, "NaN or infinity, first in point 1"),
        ({"points": 1e25 * torch.ones(9, 1) * torch.arange(9)[:, None]}, "squared distances of the points overflow"),
    ],
)
@BOTH
def test_what_cannot_be_used_is_refused(weights, wrong, message):
    with pytest.raises(WmddError, match=message):
        minibatch(**{"points": cloud(30, 2), "k": 2, "weights": weights} | wrong)
