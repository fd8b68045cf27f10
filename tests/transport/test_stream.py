"""Quantization of a file, against closed forms, exact transport, the symmetries of W2 and a limit on memory."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from wmdd.base.errors import WmddError
from wmdd.transport.measure import Barycenter, exact, squared_distances
from wmdd.transport.stream import stream

from .samples import cloud, draws

MODULE = sys.modules["wmdd.transport.stream"]  # whose name in the package is that of the function
quick = settings(max_examples=60, deadline=None, derandomize=True)

# Whole numbers: many coincide, and sums of them are exact.
clouds = st.tuples(st.integers(1, 24), st.integers(1, 3)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(-6, 6).map(float)).map(torch.from_numpy)
)


def mixture(count: int, dimensions: int, parts: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Gaussians about `parts` centres, and which centre each point belongs to."""
    g = draws(seed)
    centres = 2 * torch.randn(parts, dimensions, generator=g, dtype=torch.float64)
    part = torch.randint(parts, (count,), generator=g)
    return centres[part] + torch.randn(count, dimensions, generator=g, dtype=torch.float64), part


def converged(points: Tensor, k: int, **options) -> Barycenter:
    return stream(points, k, refinements=500, tolerance=0, **options)


def chunk_of(rows: int, points: Tensor) -> int:
    return rows * points.shape[1] * points.element_size()


def brute(points: Tensor, atoms: Tensor) -> tuple[float, Tensor]:
    """The mean squared distance to the nearest atom and the masses of the cells, in float64."""
    near, cell = (points.double()[:, None] - atoms.double()).square().sum(2).min(1)
    return float(near.mean()), torch.bincount(cell, minlength=len(atoms)) / len(points)


def same(one: Barycenter, other: Barycenter) -> bool:
    return torch.equal(one.atoms, other.atoms) and torch.equal(one.weights, other.weights) and one.trace == other.trace


class Spy:
    """A source that notes the rows that are read."""

    def __init__(self, points: Tensor) -> None:
        self.points, self.shape, self.read = points, tuple(points.shape), []

    def __getitem__(self, rows: slice) -> Tensor:
        self.read.append(range(*rows.indices(len(self.points))))
        return self.points[rows]


# Closed forms


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_atom_is_the_mean_and_costs_the_variance(dtype):
    points = (3 + cloud(1000, 4)).to(dtype)
    found = stream(points, 1, chunk_bytes=chunk_of(77, points))
    assert torch.allclose(found.atoms[0].double(), points.double().mean(0), atol=1e-6)
    assert found.cost == pytest.approx(float(points.double().var(0, correction=0).sum()), rel=1e-6)
    assert found.weights.tolist() == [1.0]


def test_no_fewer_atoms_than_points_are_the_points_and_share_their_mass():
    points = cloud(3, 2)
    for k, weights in ((3, [1 / 3] * 3), (8, [1 / 9, 1 / 9, 1 / 6] * 2 + [1 / 9, 1 / 9])):
        found = stream(points, k, chunk_bytes=chunk_of(2, points))
        assert torch.equal(found.atoms, points[torch.arange(k) % 3])
        assert found.weights.tolist() == pytest.approx(weights)
        assert (found.cost, found.trace) == (0.0, [0.0])


def test_no_more_distinct_points_than_atoms_cost_nothing():
    for seed, places in ((0, 5), (1, 2), (2, 1)):
        points = torch.arange(places)[torch.randint(places, (200,), generator=draws(seed)), None].double()
        found = stream(points, 8, generator=draws(seed), chunk_bytes=chunk_of(16, points))
        assert found.cost < 1e-12
        assert float(found.weights.sum()) == pytest.approx(1)


@pytest.mark.parametrize("sort", [False, True])
def test_separated_clusters_are_found_with_their_means_and_shares(sort):
    shares = torch.tensor([0.05, 0.1, 0.15, 0.3, 0.4])
    part = torch.repeat_interleave((10_000 * shares).round().long())
    part = part if sort else part[torch.randperm(10_000, generator=draws())]
    points = 100 * torch.eye(5, dtype=torch.float64)[part] + cloud(10_000, 5)
    found = converged(points, 5, chunk_bytes=chunk_of(512, points))
    order = found.atoms.argmax(1).argsort()
    means = torch.stack([points[part == label].mean(0) for label in range(5)])
    assert torch.allclose(found.atoms[order], means, atol=1e-9)
    assert found.weights[order].tolist() == pytest.approx(shares.tolist())


# What is returned is what it says


@quick
@given(clouds, st.integers(1, 30), st.integers(1, 30), st.booleans(), st.integers(0, 5))
def test_cost_and_weights_are_those_of_exact_transport(points, k, rows, single, refinements):
    points = points.float() if single else points
    found = stream(points, k, chunk_bytes=chunk_of(rows, points), refinements=refinements)
    plan = exact(found.weights, torch.full((len(points),), 1 / len(points)), squared_distances(found.atoms, points))
    close = 1e-5 if single else 1e-9
    assert found.atoms.shape == (k, points.shape[1])
    assert found.atoms.dtype == found.weights.dtype == points.dtype
    assert float(found.weights.min()) >= 0
    assert float(found.weights.double().sum()) == pytest.approx(1, abs=close)
    assert found.cost == pytest.approx(plan.cost, abs=close)
    assert found.cost == pytest.approx(brute(points, found.atoms)[0], abs=close)
    assert found.cost == found.trace[-1]
    assert found.trace == sorted(found.trace, reverse=True)
    assert len(found.trace) <= refinements + 1


# The three steps


@pytest.fixture
def begun(monkeypatch):
    """Begin at some atoms, which the solver is given about the points' mean."""
    return lambda atoms: monkeypatch.setattr(MODULE, "quantize", lambda *_, **__: Barycenter(atoms, atoms[:, 0], 0.0))


def test_one_refinement_is_one_step_of_lloyd_and_none_measures_the_start(begun):
    points, atoms = cloud(300, 2), cloud(4, 2, seed=1)
    begun(atoms - points.mean(0))
    still, moved = (stream(points, 4, refinements=n, tolerance=0) for n in (0, 1))
    cost, masses = brute(points, atoms)
    torch.testing.assert_close(still.atoms, atoms)
    torch.testing.assert_close(still.weights, masses.double())
    assert still.trace == [pytest.approx(cost)]
    cell = (points[:, None] - atoms).square().sum(2).argmin(1)
    torch.testing.assert_close(moved.atoms, torch.stack([points[cell == k].mean(0) for k in range(4)]))


def test_dead_atoms_are_drawn_anew(begun):
    points = mixture(2000, 3, 6)[0]
    begun(torch.cat([torch.zeros(1, 3), 1e4 + torch.arange(15.0).view(5, 3)]).double())
    found = stream(points, 6, refinements=10)
    assert float(found.weights.min()) > 0
    assert found.cost < 0.5 * float(points.var(0, correction=0).sum())


def test_the_start_sees_a_sample_of_all_parts_of_the_data(monkeypatch):
    samples = []
    solve = MODULE.quantize
    monkeypatch.setattr(MODULE, "quantize", lambda sample, *a, **b: samples.append(sample) or solve(sample, *a, **b))
    monkeypatch.setattr(MODULE, "SAMPLE", 1000)
    points = torch.arange(100_000.0)[:, None]
    stream(points, 2, chunk_bytes=4000, refinements=0)
    rows = (samples[0][:, 0] + points.mean()).round()
    assert torch.equal((rows / 100).long(), torch.arange(1000))  # one of each run of 100
    assert len((rows % 100).unique()) > 90


def test_refinement_stops_at_the_tolerance(begun):
    points = mixture(3000, 4, 10)[0]
    begun(points[:10] - points.mean(0))
    trace = stream(points, 10, refinements=200, tolerance=1e-3).trace
    falls = [1 - after / before for before, after in pairwise(trace)]
    assert 2 < len(trace) < 100
    assert falls[-1] <= 1e-3 < min(falls[:-1])


@pytest.mark.parametrize("rows", [1, 16, 333, 1000])
def test_each_pass_reads_each_row_once_and_never_more_than_a_chunk(rows):
    points = cloud(1000, 2)
    spy, chunks, passes = Spy(points), [], []

    def progress(items, what, total, unit):
        assert unit == "chunk"
        chunks.append(total)
        passes.append(what)
        return iter(items)

    found = stream(spy, 5, chunk_bytes=chunk_of(rows, points), refinements=3, progress=progress)
    assert min(chunks) * rows >= 1000
    assert passes[:2] == ["survey", "refine 0/3"]
    assert spy.read[0] == range(1)
    read = spy.read[1:]
    assert max(len(part) for part in read) <= rows
    count = torch.zeros(1000)
    for part in read:
        count[part.start : part.stop] += 1
    assert count.unique().tolist() == [len(passes)]
    assert len(found.trace) <= len(passes) - 1 <= 4


# Symmetries


@pytest.mark.parametrize(("spread", "offset"), [(1.0, 0.0), (0.01, 1e4)])  # in the second, neighbours are 0.001 apart
def test_atoms_are_measured_as_single_precision_rounds_them(spread, offset):
    for seed in range(5):
        points = (spread * cloud(500, 2, seed) + offset).float()
        found = converged(points, 8)
        assert found.cost == pytest.approx(brute(points, found.atoms)[0], rel=1e-6)
        assert found.trace == sorted(found.trace, reverse=True)


@quick
@given(
    st.integers(0, 10**6),
    st.integers(1, 5),
    st.sampled_from([-1000.0, 0.5, 64.0]),
    st.sampled_from([0.25, 2.0, 1024.0]),
)
def test_translation_and_scale(seed, k, offset, scale):
    points = cloud(40, 3, seed)  # no two distances are the same, so rounding decides nothing
    here, there = stream(points, k), stream(points * scale + offset, k)
    assert there.cost == pytest.approx(here.cost * scale**2, rel=1e-6, abs=1e-9)
    assert torch.allclose(there.atoms, here.atoms * scale + offset, atol=1e-6)
    assert torch.allclose(there.weights, here.weights)


@pytest.mark.parametrize("k", [1, 7, 40])
def test_the_size_of_a_chunk_does_not_matter(k):
    points = mixture(3000, 4, 30)[0]
    one, *others = (stream(points, k, chunk_bytes=chunk_of(rows, points)) for rows in (3000, 1, 77, 1000))
    for other in others:
        torch.testing.assert_close(other.atoms, one.atoms, rtol=0, atol=1e-9)
        assert torch.equal(other.weights, one.weights)
        assert other.trace == pytest.approx(one.trace, rel=1e-12)


def test_sorted_points_cost_as_much_as_shuffled_ones(monkeypatch):
    monkeypatch.setattr(MODULE, "SAMPLE", 1000)
    points, part = mixture(20_000, 8, 60)
    orders = (torch.arange(20_000), part.argsort(stable=True), points[:, 0].argsort())
    costs = [np.mean([stream(points[o], 20, generator=draws(s), refinements=0).cost for s in range(4)]) for o in orders]
    assert max(costs) <= 1.04 * min(costs)


@pytest.mark.parametrize("k", [5, 40])
def test_it_is_about_as_good_as_k_means_in_memory(k):
    from sklearn.cluster import KMeans

    points = mixture(20_000, 8, 40)[0]
    reference = min(
        KMeans(k, n_init=1, random_state=seed).fit(points.numpy()).inertia_ / len(points) for seed in range(3)
    )
    costs = [stream(points, k, generator=draws(seed), chunk_bytes=chunk_of(2048, points)).cost for seed in range(3)]
    assert max(costs) <= 1.01 * reference


# Sources


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8", "int64"])
def test_kinds_of_source_give_the_same_bits(tmp_path, dtype):
    points = (10 + 3 * cloud(700, 5)).abs().numpy().astype(dtype)
    np.save(tmp_path / "points.npy", points)
    with h5py.File(tmp_path / "points.h5", "w") as file:
        file["points"] = points
        file.create_dataset("packed", data=points, chunks=(13, 5), compression="gzip")
        file["big end"] = points.astype(np.dtype(dtype).newbyteorder(">"))
    kept = points.copy()
    options = {"k": 6, "chunk_bytes": 1500}
    expected = stream(torch.from_numpy(points), **options)
    assert expected.atoms.dtype == (torch.float32 if dtype in ("float32", "float16") else torch.float64)
    with h5py.File(tmp_path / "points.h5") as file:
        found = [stream(file[name], **options) for name in ("points", "packed", "big end")]
    found.append(stream(points, **options))
    found.append(stream(np.asfortranarray(points), **options))
    found.append(stream(np.load(tmp_path / "points.npy", mmap_mode="r"), **options))
    assert all(same(expected, other) for other in found)
    assert np.array_equal(points, kept)


def test_same_seed_same_bits_and_another_seed_another_result():
    points = mixture(3000, 4, 30)[0]
    one, two, other = (stream(points, 20, generator=draws(seed), chunk_bytes=9000) for seed in (3, 3, 4))
    assert same(one, two)
    assert not torch.equal(one.atoms, other.atoms)
    assert same(stream(points, 20), stream(points, 20))


@pytest.mark.parametrize(
    "rows", [slice(None), slice(10, 60), slice(-50, None), slice(5, 90, 7), range(20, 70), range(3, 100, 5)]
)
def test_rows_choose_the_measure(rows):
    points = cloud(100, 3)
    chosen = points[torch.arange(100)[rows]] if isinstance(rows, slice) else points[torch.tensor(list(rows))]
    assert same(stream(points, 3, rows=rows, chunk_bytes=200), stream(chosen, 3, chunk_bytes=200))


MEMORY = """
import sys
import h5py, torch
from wmdd.transport.stream import stream

torch.set_num_threads(1)

def peak():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

stream(torch.randn(5000, 16), 10)  # loads the libraries
with h5py.File(sys.argv[1]) as file:
    before = peak()
    found = stream(file["points"], 10, chunk_bytes=2**22, refinements=2, tolerance=0)
    streamed = peak()
    whole = torch.from_numpy(file["points"][:])
    print(streamed - before, peak() - before, found.cost, len(found.trace))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_a_million_points_are_streamed_in_little_memory(tmp_path):
    with h5py.File(tmp_path / "points.h5", "w") as file:
        points = file.create_dataset("points", (1_000_000, 16), "float32")
        for at in range(0, len(points), 100_000):
            points[at : at + 100_000] = mixture(100_000, 16, 10)[0].float().numpy()
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "points.h5")]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",  # so that the peak shows what is held, not the gaps in the heap
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    streamed, loaded, cost, passes = map(float, answer.stdout.split())
    assert streamed < 32  # MiB; the file has 61
    assert loaded > 55  # so the measure sees what it should
    assert passes == 3
    assert cost == pytest.approx(16, rel=0.1)  # the variance within the parts


# Mistakes


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_what_is_no_number_is_named_by_its_row(value):
    points = cloud(400, 3)
    points[[399, 123], [0, 2]] = value
    for k in (2, 1000):
        for rows, first in ((None, 123), (slice(130, None), 399)):
            with pytest.raises(WmddError, match=f"first in row {first};"):
                stream(points, k, rows=rows, chunk_bytes=chunk_of(50, points))
    assert stream(points, 2, rows=slice(0, 123)).cost > 0


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (torch.zeros(5, 2), {"k": 0}, "at least one atom"),
        (torch.zeros(5), {"k": 1}, r"points \[N, D\].*\(5,\)"),
        (torch.zeros(5, 2, 2), {"k": 1}, r"points \[N, D\]"),
        (torch.zeros(0, 2), {"k": 1}, r"points \[N, D\]"),
        (torch.zeros(5, 0), {"k": 1}, r"points \[N, D\]"),
        (torch.zeros(5, 2), {"k": 1, "refinements": -1}, "negative"),
        (torch.zeros(5, 2), {"k": 1, "rows": range(3, 6)}, r"rows range\(3, 6\) of 5"),
        (torch.zeros(5, 2), {"k": 1, "rows": range(-1, 3)}, "rising order"),
        (torch.zeros(5, 2), {"k": 1, "rows": slice(None, None, -1)}, "rising order"),
        (torch.zeros(5, 2), {"k": 1, "rows": slice(4, 2)}, "at least one"),
        (np.array([["a", "b"]]), {"k": 1}, "not numbers"),
        (np.zeros((5, 2), complex), {"k": 1}, "complex"),
        (torch.randn(50, 2, generator=draws()) * 1e25, {"k": 3}, "squared distances of the measure overflow"),
    ],
)
def test_mistakes_are_refused(source, options, message):
    with pytest.raises(WmddError, match=message) as caught:
        stream(source, **options)
    assert "\n" not in str(caught.value)
