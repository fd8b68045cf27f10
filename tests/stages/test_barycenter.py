"""The barycenter stage: each class by the chosen solver, and how good the result is."""

import math

import numpy as np
import pytest
import torch

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.settings.barycenter import BarycenterSettings
from wmdd.stages.barycenter import Quality, barycenters, columns, explained, quality, table
from wmdd.stages.point_clouds import Cloud
from wmdd.transport import Barycenter, cuturi_doucet, quantize, released, stream

CLASSES = 4
POINTS = torch.randn(80, 5, generator=generator("barycenter test"))
MIXED = torch.arange(80) % CLASSES
FREE = {"quantize": "free", "stream": "free", "cuturi-doucet": "free", "released": "uniform"}
ALL = pytest.mark.parametrize(("solver", "weights"), [*FREE.items(), ("quantize", "uniform")])


def solved(wanted=range(CLASSES), k=3, seed=7, labels=MIXED, points=POINTS, names=None, progress=None, **settings):
    more = {} if progress is None else {"progress": progress}
    return barycenters(Cloud(points, labels, names), wanted, k, BarycenterSettings(**settings), seed, **more)


def atoms(found):
    return [b.atoms for b, _ in found]


@ALL
def test_a_class_has_the_same_barycenter_in_every_block_and_however_its_points_are_stored(solver, weights):
    whole = atoms(solved(solver=solver, weights=weights))
    block = atoms(solved(range(2, 4), solver=solver, weights=weights))
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], block, strict=True))
    order = MIXED.argsort(stable=True)
    together = atoms(solved(solver=solver, weights=weights, labels=MIXED[order], points=POINTS[order]))
    assert all(torch.equal(a, b) for a, b in zip(whole, together, strict=True))


def test_each_solver_is_the_one_of_its_name():
    points, draws = POINTS[MIXED == 1], lambda: generator("barycenter", 7, 1)
    expected = {
        "quantize": quantize(points, 3, generator=draws(), tolerance=1e-6, exchanges=10),
        "stream": stream(points, 3, generator=draws(), tolerance=1e-6),
        "cuturi-doucet": cuturi_doucet(points, 3, draws()),
        "released": released(points, 3, draws(), "uniform"),
    }
    for solver, weights in FREE.items():
        ((found, _),) = solved(range(1, 2), solver=solver, weights=weights)
        assert torch.equal(found.atoms, expected[solver].atoms), solver


@ALL
def test_settings_reach_the_solver(solver, weights):
    def costs(**settings):
        return [b.cost for b, _ in solved(k=5, solver=solver, weights=weights, **settings)]

    usual = costs(exchanges=0)
    assert all(a <= b + 1e-9 for a, b in zip(costs(exchanges=0, restarts=3), usual, strict=True))
    assert sum(costs(exchanges=0, restarts=3)) < sum(usual)
    if solver != "released":  # which has numbers of its own
        assert max(len(b.trace) for b, _ in solved(k=5, solver=solver, weights=weights, max_iterations=2)) <= 3
        assert sum(costs(exchanges=0, max_iterations=1)) > sum(usual) - 1e-9


@ALL
def test_a_number_that_is_none_names_the_class(solver, weights):
    points = POINTS.clone()
    points[6, 2] = math.nan  # of class 2
    with pytest.raises(WmddError, match=r"^class 2 \('dog'\): .*NaN or infinity"):
        solved(solver=solver, weights=weights, points=points, names=["ant", "bee", "dog", "eel"])
    assert len(solved(range(2), solver=solver, weights=weights, points=points)) == 2


def test_what_cannot_be_solved_is_refused():
    with pytest.raises(WmddError, match=r"^the solver stream has free weights only"):
        solved(solver="stream")
    with pytest.raises(WmddError, match=r"^class 4 has no features"):
        solved(range(3, 5))


def test_progress_is_of_classes_or_of_passes():
    said = []

    def progress(items, what, total, unit=""):
        said.append((what, total))
        return iter(items)

    solved(progress=progress, solver="stream", weights="free")
    assert said == [("barycenters", CLASSES)]
    said.clear()
    solved(range(1), progress=progress, solver="stream", weights="free")
    assert said == []  # one class, one chunk


# Quality


@ALL
def test_quality_says_what_the_barycenter_is(solver, weights):
    for label, (found, q) in enumerate(solved(solver=solver, weights=weights)):
        points = POINTS[label == MIXED].double()
        cost = float(torch.cdist(points, found.atoms.double()).square().min(1).values.mean())
        assert (q.cost, q.gap, q.iterations, q.seconds) == (found.cost, found.gap, len(found.trace), found.seconds)
        assert q.points == 20
        assert q.cost >= cost - 1e-5
        assert q.explained == pytest.approx(1 - q.cost / float(points.var(0, correction=0).sum()))
        assert (q.min_mass, q.max_mass) == pytest.approx((float(found.weights.min()), float(found.weights.max())))
        assert 1 <= q.effective_atoms <= 3 + 1e-6
        assert q.seconds > 0
        if weights == "free":
            assert q.cost == pytest.approx(cost, rel=0.02)
        else:
            assert q.effective_atoms == pytest.approx(3)


def test_explained_share_of_the_variance():
    assert explained(2.0, Barycenter(POINTS, POINTS, 0.5)) == 0.75
    assert explained(2.0, Barycenter(POINTS, POINTS, 3.0)) == -0.5
    assert explained(0.0, Barycenter(POINTS, POINTS, 0.0)) == 1
    for k, share in ((1, 0), (20, 1)):
        assert [q.explained for _, q in solved(k=k, weights="free")] == pytest.approx([share] * CLASSES, abs=1e-6)


@ALL
def test_other_starts_change_no_atoms_and_give_a_gap(solver, weights):
    plain = solved(k=6, solver=solver, weights=weights, exchanges=0)
    compared = solved(k=6, solver=solver, weights=weights, exchanges=0, compare_restarts=3)
    assert all(torch.equal(a, b) for a, b in zip(atoms(plain), atoms(compared), strict=True))
    assert {q.restarts_gap for _, q in plain} == {None}
    assert all(q.restarts_gap >= 0 for _, q in compared)
    assert solver == "stream" or any(
        q.restarts_gap > 0 for _, q in compared
    )  # stream finds one optimum from all starts


@pytest.mark.parametrize(
    ("cost", "others", "gap"),
    [(1.0, [], None), (1.0, [2.0, 3.0], 0), (3.0, [4.0, 2.0], 0.5), (0.0, [0.0], 0), (1.0, [0.0], math.inf)],
)
def test_the_gap_to_the_best_of_several_starts(cost, others, gap):
    found = quality(Barycenter(torch.zeros(2, 1), torch.tensor([0.25, 0.75]), cost, [cost]), 9, 4.0, others)
    assert found.restarts_gap == gap
    assert found.effective_atoms == pytest.approx(1.6)


def made(**changes):
    plain = dict.fromkeys(Quality.__dataclass_fields__, 1.0) | {"restarts_gap": None, "seconds": 0.123}
    return Quality(**(plain | changes))


def test_columns_are_arrays_without_seconds_and_without_what_is_not_known():
    found = columns([made(cost=2.0, points=3), made(cost=4.0, points=5)])
    assert found["cost"].tolist() == [2, 4]
    assert found["points"].dtype == np.int64
    assert not {"seconds", "restarts_gap"} & set(found)
    assert columns([made(restarts_gap=0.5)])["restarts_gap"].tolist() == [0.5]


def test_a_table_has_a_row_a_class_and_their_mean():
    lines = table(["ant", "bee"], [made(cost=2.0), made(cost=4.0)]).splitlines()
    assert "W2^2" in lines[0]
    assert "seconds" in lines[0]
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["ant", "bee", "mean"]
    assert [float(line.split("|")[3]) for line in lines[2:]] == [2, 4, 3]
    assert len(table(["x.npy"], [made()]).splitlines()) == 3
