"""The barycenter command on points of anybody: arrays, HDF5 files, with classes or without."""

import hashlib
import json
import re

import h5py
import numpy as np
import pytest

from tests.cli.artifacts import write_barycenter
from wmdd.artifacts.hdf5 import load


def rows_of(table):
    """The rows of a Markdown table by their first cell."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {row[0]: dict(zip(cells[0], row, strict=True)) for row in cells[2:]}


@pytest.fixture
def points(tmp_path, monkeypatch):
    """A folder with eight points of two classes, as an array and as an HDF5 file of somebody else."""
    monkeypatch.chdir(tmp_path)
    values = np.array([[x, y] for x in (0.0, 1.0, 10.0, 11.0) for y in (0.0, 100.0)], np.float32)
    np.save("p.npy", values)
    with h5py.File("p.h5", "w") as file:
        file["x"], file["y"] = values, values
        file["of"] = np.array([b"low", b"high"] * 4)
    return tmp_path


def test_an_array_needs_no_more_than_k_and_writes_nothing(points, run):
    before = set(points.rglob("*"))
    code, out, err = run("barycenter --features p.npy --k 4 --weights free --restarts 5")
    assert code == 0, err
    (row,) = rows_of(out).values()
    assert (row["class"], row["points"], row["W2^2"], row["effective atoms"]) == ("p.npy", "8", "0.25", "4")
    assert "restarts gap" not in row
    assert set(points.rglob("*")) == before


@pytest.mark.parametrize("solver", ["quantize", "cuturi-doucet", "stream", "released"])
def test_classes_of_any_file_by_every_solver(points, run, solver):
    weights = "uniform" if solver == "released" else "free"
    line = (
        f"barycenter --features p.h5 --dataset x --labels of --k 2 --solver {solver} --weights {weights} --restarts 4"
    )
    code, out, err = run(f"{line} --output o/b.h5 --compare-restarts 3")
    assert code == 0, err
    assert list(rows := rows_of(out)) == ["high", "low", "mean"]
    assert all(float(row["restarts gap"]) >= 0 for row in rows.values())
    arrays, meta = load(points / "o/b.h5")
    if solver != "released":
        np.testing.assert_allclose(sorted(arrays["atoms"][1].tolist()), [[0.5, 0], [10.5, 0]], atol=0.01)
        assert arrays["quality/cost"] == pytest.approx([0.25, 0.25], rel=0.02)
    assert arrays["quality/points"].tolist() == [4, 4]
    assert (meta["classes"], meta["names"], meta["file"]) == (["high", "low"], ["high", "low"], "p.h5")
    assert meta["inputs"]["features"] == hashlib.sha256((points / "p.h5").read_bytes()).hexdigest()
    assert meta["identity"] == {"block": "classes0-1", "k": 2, "seed": 0}
    assert len(json.loads((points / "o/b.cost.json").read_text())["seconds_per_class"]) == 2


def test_a_block_of_the_classes_of_a_file(points, run):
    code, out, err = run("barycenter --features p.h5 --dataset x --labels of --k 20 --block classes1-1")
    assert code == 0, err
    (row,) = rows_of(out).values()
    assert (row["class"], float(row["W2^2"]), float(row["max mass"])) == ("low", 0, 0.05)


def test_a_number_that_is_none_names_its_class(points, mistake):
    with h5py.File("p.h5", "r+") as file:
        file["x"][3, 1] = np.nan
    line = "barycenter --features p.h5 --dataset x --k 2"
    says = "p.h5: the measure holds NaN or infinity, first in point 3; check where the points come from"
    assert mistake(line) == says
    for solver in ("quantize", "stream", "cuturi-doucet", "released"):
        message = mistake(f"{line} --labels of --solver {solver} --weights free", begun=True)
        assert re.match(r"class 0 \('high'\): .* holds NaN or infinity, first in ", message)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--features p.h5", "p.h5 has several 2-D datasets: x, y; choose one with --dataset NAME"),
        ("--features p.npy --dataset x", "p.npy is a .npy file and has one array"),
        ("--features p.npy --solver stream", "the solver stream has free weights only"),
        ("--features p.npy --block classes0-1", "there is no block 'classes0-1'; name the classes as in classes0-0"),
        ("--features none.npy", "none.npy does not exist"),
        ("--features barycenter.h5", "barycenter.h5 lacks features"),
        ("--features p.h5 --dataset x --labels y", "labels y of p.h5 are float32 of shape"),
    ],
)
def test_points_that_are_not_there(points, mistake, line, says):
    write_barycenter(points / "barycenter.h5")
    assert mistake(f"barycenter {line} --k 2").startswith(says)
