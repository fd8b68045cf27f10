"""A user's mistake ends in exit code 1 and one line that names thing and remedy; the commands fit each other's files."""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import wmdd
from wmdd.artifacts.hdf5 import load, load_meta
from wmdd.artifacts.hdf5_writer import digest_of, save
from wmdd.artifacts.model_files import load_model, save_model
from wmdd.base.rng import generator
from wmdd.networks.models import build
from wmdd.settings.network import NetworkSettings
from wmdd.settings.student import RelabelSettings
from wmdd.workflow.experiment_file import schema

ROOT = Path(__file__).parents[2]
SIDE, IPC = 8, 2
NAMES = ["ant", "bee", "cat"]
NETWORK = NetworkSettings(architecture="resnet18", width=4)
TRAINING = "--architecture resnet18 --width 4 --epochs 2 --batch-size 8 --evaluate-every 1"
CPU = "--device cpu --precision fp32"


def manifest(names=NAMES):
    return {
        "classes": names,
        "names": [name.title() for name in names],
        "resolution": SIDE,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
    }


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def write_data(path, names=NAMES, seed=0):
    labels = np.repeat(np.arange(len(names)), 4)
    splits = {s: pixels(len(labels), 3, SIDE, SIDE, seed=seed + i) for i, s in enumerate(("train", "val"))}
    arrays = {f"{s}/images": images for s, images in splits.items()} | {f"{s}/labels": labels for s in splits}
    noticed = {
        "variant": "drawn",
        "counts": {s: [4] * len(names) for s in splits},
        "duplicates": {"train": 0, "val": 0, "val in train": 0},
        "skipped": [],
        "enlarged": {"count": 0, "smallest": None},
    }
    save(path, arrays, manifest(names) | noticed | {"inputs": {}})


def write_teacher(path, names=NAMES, width=4, seed=0):
    settings = NETWORK.model_copy(update={"width": width})
    network = build(settings, len(names), SIDE, generator("teacher of the test", seed))
    meta = manifest(names) | {"settings": settings.model_dump(), "accuracy": {"top1": 0.5, "top5": 1.0}}
    save_model(path, network.state_dict(), meta)


def write_features(path, statistics, teacher, data, names=NAMES):
    """What the features stage makes of any teacher, with made-up numbers."""
    state, meta = load_model(teacher)
    layers = [name.removesuffix(".running_mean") for name in state if name.endswith(".running_mean")]
    widths = {layer: len(state[f"{layer}.running_mean"]) for layer in layers}
    inputs = {"inputs": {"teacher": meta["digest"], "data": load_meta(data)["digest"]}}
    moments = {f"{kind}/{n}": np.ones((len(names), w)) for kind in ("mean", "variance") for n, w in widths.items()}
    save(statistics, moments, manifest(names) | inputs | {"layers": layers})
    labels = np.repeat(np.arange(len(names)), 4)
    values = np.random.default_rng(0).random((len(labels), state["head.weight"].shape[1]), dtype=np.float32)
    save(path, {"features": values, "labels": labels}, manifest(names) | inputs)


def write_barycenter(path, labels=(0, 1, 2), ipc=IPC, width=32, names=NAMES):
    shape = (len(labels), ipc)
    arrays = {"labels": np.array(labels), "atoms": np.ones((*shape, width), np.float32)}
    save(path, arrays | {"weights": np.full(shape, 1 / ipc, np.float32)}, manifest(names) | {"inputs": {}})


def write_images(path, labels=None, names=NAMES, seed=0):
    labels = list(range(len(names))) if labels is None else labels
    arrays = {"images": pixels(len(labels), IPC, 3, SIDE, SIDE, seed=seed), "labels": np.array(labels)}
    weights = np.full((len(labels), IPC), 1 / IPC, np.float32)
    meta = manifest(names) | {"stage": "recover", "inputs": {}, "settings": {}, "identity": {}, "code": ""}
    save(path, arrays | {"weights": weights}, meta, chunked=("images",))


def write_labels(path, images, epochs=2):
    settings = RelabelSettings(epochs=epochs).model_dump(mode="json")
    arrays = {"logits": np.zeros((epochs, len(NAMES) * IPC, len(NAMES)), np.float16), "seeds": np.arange(epochs)}
    save(path, arrays, manifest() | {"settings": settings, "inputs": {"images": load_meta(images)["digest"]}})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One artifact of each kind, all of which belong together."""
    folder = tmp_path_factory.mktemp("made")
    write_data(folder / "data.h5")
    write_teacher(folder / "model.safetensors")
    write_features(folder / "features.h5", folder / "statistics.h5", folder / "model.safetensors", folder / "data.h5")
    write_barycenter(folder / "barycenter.h5")
    write_images(folder / "images.h5")
    write_labels(folder / "labels.h5", folder / "images.h5")
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A folder with a copy of the artifacts, to work in."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


DATA = "--data data.h5"
TEACHER = "--teacher model.safetensors"
COMMANDS = {
    "teacher": f"teacher {DATA} --output o/model.safetensors --seed 0 {TRAINING} {CPU}",
    "features": f"features {DATA} {TEACHER} --output o/features.h5 --statistics o/statistics.h5 {CPU}",
    "barycenter": f"barycenter --features features.h5 --output o/b.h5 --block classes0-2 --k {IPC} --seed 0",
    "recover": (
        f"recover {TEACHER} --class-statistics statistics.h5 --barycenter barycenter.h5 --output o/r.h5"
        f" --block classes0-2 --ipc {IPC} --seed 0 --iterations 2 {CPU}"
    ),
    "images": "images --blocks images.h5 --output o/images.h5",
    "select": (
        f"select {DATA} --features features.h5 --output o/images.h5 --ipc {IPC} --seed 0 --strategy kmeans-medoid"
    ),
    "relabel": f"relabel --images images.h5 {TEACHER} --output o/labels.h5 --seed 0 --epochs 2 {CPU}",
    "student": (
        f"student --images images.h5 {DATA} --soft-labels labels.h5 --output o/run0.json --seed 0 --run 0 {TRAINING} {CPU}"
    ),
    "grid": "grid --images images.h5 --output o/x.png",
}
ASKING = COMMANDS["student"].replace("--soft-labels labels.h5", f"{TEACHER} --store online")
INPUTS = [
    (stage, name)
    for stage, line in COMMANDS.items()
    for name in re.findall(r"(?<= )(?!o/)\S+\.(?:h5|safetensors)", line)
]


# The commands fit each other's files


@pytest.mark.parametrize("stage", COMMANDS)
def test_the_artifacts_made_by_hand_are_good_enough_to_run(here, run, stage):
    """So that the mistakes below are the only ones."""
    code, _, err = run(COMMANDS[stage])
    assert code == 0, err
    assert list((here / "o").iterdir())


def test_the_whole_chain_and_what_each_file_says_of_itself(here, run):
    for name in ("model.safetensors", "features.h5", "statistics.h5", "barycenter.h5", "images.h5", "labels.h5"):
        (here / name).unlink()
    place = "results/d/t/wmdd/ipc2/seed0"
    chain = [
        COMMANDS["teacher"].replace("o/model", "model"),
        COMMANDS["features"].replace("o/", ""),
        *(
            command.replace("classes0-2", f"classes{a}-{b}").replace(old, new)
            for a, b in ((0, 1), (2, 2))
            for command, old, new in (
                (COMMANDS["barycenter"], "o/b.h5", f"{place}/barycenter/classes{a}-{b}.h5"),
                (
                    COMMANDS["recover"].replace("barycenter.h5", f"{place}/barycenter/classes{a}-{b}.h5"),
                    "o/r.h5",
                    f"{place}/recover/classes{a}-{b}.h5",
                ),
            )
        ),
        f"images --blocks {place}/recover/classes0-1.h5 {place}/recover/classes2-2.h5 --output images.h5",
        COMMANDS["relabel"].replace("o/", ""),
        COMMANDS["student"].replace("o/", f"{place}/student/s/paper/"),
        COMMANDS["student"].replace("o/", f"{place}/student/s/paper-hard/") + " --labels hard",
        f"report --students {place}/student/s/paper/run0.json {place}/student/s/paper-hard/run0.json"
        f" --teachers model.safetensors --costs {place}/recover/classes0-1.cost.json"
        f" --barycenters {place}/barycenter/classes0-1.h5"
        " --table table.md --csv table.csv --cost-table cost.md --barycenter-table b.md --barycenter-csv b.csv"
        " --datasets data.h5 --dataset-table d.md --runs runs.json",
    ]
    for line in chain:
        code, _, err = run(line)
        assert code == 0, f"{line}\n{err}"

    arrays, meta = load(here / "images.h5")
    assert arrays["images"].shape == (3, IPC, 3, SIDE, SIDE)
    assert arrays["labels"].tolist() == [0, 1, 2]
    assert (meta["classes"], meta["names"]) == (NAMES, ["Ant", "Bee", "Cat"])
    assert meta["recover"]["settings"]["iterations"] == 2
    assert meta["inputs"] == {
        str(i): load_meta(here / place / f"recover/classes{b}.h5")["digest"] for i, b in enumerate(("0-1", "2-2"))
    }
    result = json.loads((here / place / "student/s/paper/run0.json").read_text())
    assert result["inputs"] == {
        "images": digest_of(arrays),
        "data": load_meta(here / "data.h5")["digest"],
        "labels": load_meta(here / "labels.h5")["digest"],
    }
    assert result["settings"]["labels"] == "soft"
    assert 0 <= result["result"]["top1"] <= result["result"]["best_top1"] <= 1
    assert {"versions", "revision", "code", "identity", "engine", "stage"} <= set(result)
    table = (here / "table.md").read_text()
    assert "| hard " in table
    assert "- teacher `model.safetensors`: " in table
    arrays, meta = load(here / place / "barycenter/classes0-1.h5")
    assert arrays["atoms"].shape == (2, IPC, 32)
    assert arrays["quality/explained"].shape == (2,)
    assert meta["identity"] == {"block": "classes0-1", "k": IPC, "seed": 0}
    (solved,) = pd.read_csv(here / "b.csv").to_dict("records")
    assert (solved["method"], solved["ipc"], solved["solved"]) == ("wmdd", IPC, 2)
    assert solved["cost"] == pytest.approx(arrays["quality/cost"].mean())
    assert solved["seconds"] > 0
    assert "| wmdd" in (here / "b.md").read_text()
    everything = json.loads((here / "runs.json").read_text())
    student = next(each for each in everything["runs"] if each["labels"] == "soft")
    assert (student["method"], student["ipc"], student["seed"], student["labels"]) == ("wmdd", IPC, 0, "soft")
    assert student["top1"] == pytest.approx(100 * result["result"]["top1"], abs=1e-4)
    assert everything["teachers"]["model.safetensors"]["top5"] == 100.0
    assert {"file", "stage", "seconds", "machine"} <= set(everything["costs"][0])
    assert everything["versions"] == [result["versions"] | {"revision": result["revision"]}]
    assert not list(here.rglob("*.part"))
    assert not list(here.rglob("*.checkpoint"))


# Stores of labels


@pytest.mark.parametrize(
    ("flags", "arrays"),
    [
        ("", {"logits": (8, 6, 3)}),
        ("--store pruned", {"values": (2, 6, 3), "low": (2, 6), "high": (2, 6)}),
        (
            "--store pruned --top-k 2 --keep-epochs 0.5",
            {"values": (4, 6, 2), "low": (4, 6), "high": (4, 6), "classes": (4, 6, 2), "rest": (4, 6)},
        ),
    ],
)
def test_labels_of_a_store_and_what_they_cost(here, run, flags, arrays):
    line = COMMANDS["relabel"].replace("--epochs 2", "--epochs 8").replace("o/", "")
    code, _, err = run(f"{line} {flags}")
    assert code == 0, err
    found, meta = load(here / "labels.h5")
    seeds = found.pop("seeds")
    assert {name: array.shape for name, array in found.items()} == arrays
    assert len(set(seeds)) == len(seeds) == len(next(iter(found.values())))
    assert meta["teacher_accuracy"] == {"top1": 0.5, "top5": 1.0}
    cost = json.loads((here / "labels.cost.json").read_text())
    size = (here / "labels.h5").stat().st_size
    assert cost["bytes_per_image"] == pytest.approx(size / 6, abs=0.5)
    assert cost["bytes_per_image_and_epoch"] == pytest.approx(size / 6 / 8, abs=0.005)
    store = flags.split("--top-k")[0]
    code, _, err = run(COMMANDS["student"].replace("--epochs 2", "--epochs 5") + f" {store}")
    assert code == 0, err
    result = json.loads((here / "o/run0.json").read_text())
    assert result["inputs"]["labels"] == meta["digest"]
    assert result["settings"]["store"] == meta["settings"]["store"]


def history(here):
    return pd.read_csv(here / "o/run0.csv")["loss"].tolist()


def test_a_student_that_asks_is_the_one_of_stored_labels(here, run):
    """Of the teacher's own normalisation too, when it is not that of the data."""
    for mean in (0.5, 0.3):
        state, meta = load_model(here / "model.safetensors")
        save_model(here / "model.safetensors", state, meta | {"mean": [mean] * 3})
        assert run(COMMANDS["relabel"].replace("o/", ""))[0] == 0
        losses = []
        for line in COMMANDS["student"], ASKING:
            code, _, err = run(line)
            assert code == 0, err
            losses.append(history(here))
        assert losses[0] == pytest.approx(losses[1], rel=2e-3)
        inputs = json.loads((here / "o/run0.json").read_text())["inputs"]
        assert inputs["teacher"] == load_model(here / "model.safetensors")[1]["digest"]
        assert "labels" not in inputs


def test_hard_labels_need_neither_file_nor_teacher(here, run):
    line = COMMANDS["student"].replace("--soft-labels labels.h5", "--labels hard")
    assert run(line)[0] == 0
    before = history(here)
    (here / "labels.h5").unlink()
    assert run(f"{line} --store online")[0] == 0
    assert history(here) == before


@pytest.mark.parametrize(("stage", "output"), [("recover", "o/r.h5"), ("barycenter", "o/b.h5")])
def test_equal_commands_give_equal_bytes(here, run, monkeypatch, stage, output):
    monkeypatch.setenv("WMDD_REVISION", "fixed")
    made = []
    for _ in range(2):
        assert run(COMMANDS[stage])[0] == 0
        made.append((here / output).read_bytes())
    assert made[0] == made[1]


# The solver on its own


def rows_of(table):
    """The rows of a Markdown table by their first cell."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {row[0]: dict(zip(cells[0], row, strict=True)) for row in cells[2:]}


def write_points(here):
    """Eight points of two classes, as an array and as an HDF5 file of somebody else."""
    values = np.array([[x, y] for x in (0.0, 1.0, 10.0, 11.0) for y in (0.0, 100.0)], np.float32)
    np.save(here / "p.npy", values)
    with h5py.File(here / "p.h5", "w") as file:
        file["x"], file["y"] = values, values
        file["of"] = np.array([b"low", b"high"] * 4)


def test_an_array_needs_no_more_than_k_and_writes_nothing(here, run):
    write_points(here)
    before = set(here.rglob("*"))
    code, out, err = run("barycenter --features p.npy --k 4 --weights free --restarts 5")
    assert code == 0, err
    (row,) = rows_of(out).values()
    assert (row["class"], row["points"], row["W2^2"], row["effective atoms"]) == ("p.npy", "8", "0.25", "4")
    assert "restarts gap" not in row
    assert set(here.rglob("*")) == before


@pytest.mark.parametrize("solver", ["quantize", "cuturi-doucet", "stream", "released"])
def test_classes_of_any_file_by_every_solver(here, run, solver):
    write_points(here)
    weights = "uniform" if solver == "released" else "free"
    line = (
        f"barycenter --features p.h5 --dataset x --labels of --k 2 --solver {solver} --weights {weights} --restarts 4"
    )
    code, out, err = run(f"{line} --output o/b.h5 --compare-restarts 3")
    assert code == 0, err
    assert list(rows := rows_of(out)) == ["high", "low", "mean"]
    assert all(float(row["restarts gap"]) >= 0 for row in rows.values())
    arrays, meta = load(here / "o/b.h5")
    atoms = sorted(arrays["atoms"][1].tolist())
    if solver != "released":
        np.testing.assert_allclose(atoms, [[0.5, 0], [10.5, 0]], atol=0.01)
        assert arrays["quality/cost"] == pytest.approx([0.25, 0.25], rel=0.02)
    assert arrays["quality/points"].tolist() == [4, 4]
    assert (meta["classes"], meta["names"], meta["file"]) == (["high", "low"], ["high", "low"], "p.h5")
    assert meta["inputs"]["features"] == hashlib.sha256((here / "p.h5").read_bytes()).hexdigest()
    assert meta["identity"] == {"block": "classes0-1", "k": 2, "seed": 0}
    assert len(json.loads((here / "o/b.cost.json").read_text())["seconds_per_class"]) == 2


def test_a_block_of_the_classes_of_a_file(here, run):
    write_points(here)
    code, out, err = run("barycenter --features p.h5 --dataset x --labels of --k 20 --block classes1-1")
    assert code == 0, err
    (row,) = rows_of(out).values()
    assert (row["class"], float(row["W2^2"]), float(row["max mass"])) == ("low", 0, 0.05)


def test_a_number_that_is_none_names_its_class(here, mistake):
    write_points(here)
    with h5py.File(here / "p.h5", "r+") as file:
        file["x"][3, 1] = np.nan
    line = "barycenter --features p.h5 --dataset x --k 2"
    assert mistake(line) == (
        "p.h5: the measure holds NaN or infinity, first in point 3; check where the points come from"
    )
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
def test_points_that_are_not_there(here, mistake, line, says):
    write_points(here)
    assert mistake(f"barycenter {line} --k 2").startswith(says)


def test_barycenters_of_an_older_version_are_named_in_the_report(here, mistake):
    result = Path("d/t/wmdd/ipc2/seed0/student/s/paper/run0.json")
    result.parent.mkdir(parents=True)
    scores = {"top1": 0.5, "top5": 0.5, "best_top1": 0.5}
    result.write_text(json.dumps({"settings": {"labels": "soft"}, "result": scores}))
    line = f"report --students {result} --teachers model.safetensors --costs {result} --barycenters barycenter.h5"
    line += " --datasets data.h5 --dataset-table e --runs f"
    assert mistake(f"{line} --table t --csv c --cost-table k --barycenter-table b --barycenter-csv d") == (
        "barycenter.h5 lacks the quality of its barycenters; delete it and run again to rebuild it"
    )


# Files that are missing, cut short or of another kind


@pytest.mark.parametrize(("stage", "name"), INPUTS)
def test_a_missing_input_is_named(here, mistake, stage, name):
    (here / name).unlink()
    assert re.match(
        rf"{name} does not exist; (run the stage that makes it|train the teacher) first", mistake(COMMANDS[stage])
    )
    assert not (here / "o").exists()


@pytest.mark.parametrize(("stage", "name"), INPUTS)
def test_a_truncated_input_is_named(here, mistake, stage, name):
    whole = (here / name).read_bytes()
    (here / name).write_bytes(whole[: len(whole) // 2])
    assert re.match(rf"{name} is not a whole .* delete it and run again", mistake(COMMANDS[stage]))
    assert not (here / "o").exists()


@pytest.mark.parametrize(("stage", "name"), INPUTS)
def test_an_input_of_another_kind_is_named(here, mistake, stage, name):
    other = (
        "features.h5" if name in ("data.h5", "images.h5", "labels.h5", "statistics.h5", "barycenter.h5") else "data.h5"
    )
    shutil.copy(here / other, here / name)
    message = mistake(COMMANDS[stage], begun=True)
    assert message.startswith(name)


def test_a_missing_result_of_a_student(here, mistake):
    line = "report --students run0.json --teachers model.safetensors --costs c.json --table t --csv c --cost-table k"
    line += " --barycenter-table b --barycenter-csv d --datasets data.h5 --dataset-table e --runs f"
    assert mistake(line).startswith("run0.json does not exist")
    (here / "run0.json").write_text('{"result": ')
    assert "run0.json is not a whole JSON file" in mistake(line)


def test_missing_pictures(here, mistake):
    line = "data --name x --output data/x.h5 --source imagefolder --root nowhere --classes 3"
    assert "nowhere" in mistake(line, begun=True)
    assert not (here / "data/x.h5").exists()


# Files that do not belong together


@pytest.mark.parametrize(("labels", "ipc"), [([0, 1], IPC), ([0, 1, 2], IPC + 1), ([0, 2, 1], IPC)])
def test_a_barycenter_of_another_block(here, mistake, labels, ipc):
    write_barycenter(here / "barycenter.h5", labels, ipc)
    assert mistake(COMMANDS["recover"]) == (
        f"barycenter.h5 is of other classes or images per class than classes0-2 at ipc {IPC}; rebuild it"
    )


def test_a_barycenter_of_another_teacher(here, mistake):
    write_barycenter(here / "barycenter.h5", width=16)
    assert "barycenter.h5 is of the features of another teacher than model.safetensors" in mistake(COMMANDS["recover"])


def test_statistics_of_another_teacher(here, mistake):
    write_teacher(here / "model.safetensors", seed=1)
    assert "statistics.h5 is of another teacher than model.safetensors" in mistake(COMMANDS["recover"])


@pytest.mark.parametrize(
    ("stage", "other"),
    [("features", "data.h5"), ("relabel", "images.h5"), ("recover", "statistics.h5"), ("recover", "barycenter.h5")],
)
@pytest.mark.parametrize(
    ("names", "says"),
    [([*NAMES, "dog"], "has 3 classes but|has 4 classes but"), (["ant", "cat", "bee"], "class 1 is 'b")],
)
def test_a_teacher_of_other_classes(here, mistake, stage, other, names, says):
    if other == "data.h5":
        write_data(here / other, names)
    elif other == "images.h5":
        write_images(here / other, names=names)
    elif other == "barycenter.h5":
        write_barycenter(here / other, names=names)
    else:
        write_features(here / "f.h5", here / other, here / "model.safetensors", here / "data.h5", names)
    message = mistake(COMMANDS[stage])
    assert re.search(says, message)
    assert other in message
    assert "model.safetensors" in message


def test_a_teacher_whose_weights_do_not_fit_its_own_classes(here, mistake):
    state, meta = load_model(here / "model.safetensors")
    state["head.weight"] = torch.zeros(4, 32)
    save_model(here / "model.safetensors", state, {k: v for k, v in meta.items() if k != "digest"})
    assert "model.safetensors has 4 classes but the data have 3" in mistake(COMMANDS["relabel"])


def test_images_of_other_classes_than_the_data(here, mistake):
    write_images(here / "images.h5", names=["ant", "bee", "cow"])
    write_labels(here / "labels.h5", here / "images.h5")
    assert mistake(COMMANDS["student"]).startswith("class 2 is 'cat' in data.h5 but 'cow' in images.h5")


def test_features_of_other_data(here, mistake):
    write_data(here / "data.h5", seed=5)
    assert "features.h5 is of other data than data.h5" in mistake(COMMANDS["select"])


@pytest.mark.parametrize("runs", ["0 1", "0 0 --output o/run1.json"])
def test_runs_need_a_file_each(here, mistake, runs):
    line = COMMANDS["student"].replace("--run 0", f"--run {runs}")
    assert "need one --output each, and none twice" in mistake(line)


def test_labels_of_other_images(here, mistake):
    write_images(here / "images.h5", seed=5)
    assert mistake(COMMANDS["student"]) == (
        "labels.h5 labels other images than those given; run the relabel stage again"
    )


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--crop-scale 0.5 1", r"crop_scale \[0.08, 1.0\], the student asks for \[0.5, 1.0\]"),
        ("--no-flip", "flip True, the student asks for False"),
        ("--mix none", "mix cutmix, the student asks for none"),
        ("--store pruned", "store stored, the student asks for pruned"),
    ],
)
def test_labels_of_other_views(here, mistake, flag, says):
    assert re.search(f"labels.h5 was made with {says}; make them agree", mistake(f"{COMMANDS['student']} {flag}"))


def test_soft_labels_are_missing(here, mistake):
    line = COMMANDS["student"].replace("--soft-labels labels.h5", "")
    assert mistake(line) == (
        "a student with soft labels needs --soft-labels; run the relabel stage, or set --labels hard"
    )


def test_labels_of_a_file_that_is_older_than_the_stores(here, mistake):
    arrays, meta = load(here / "labels.h5")
    meta["settings"].pop("store")
    save(here / "labels.h5", arrays, meta)
    assert "labels.h5 was made with store None, the student asks for stored" in mistake(COMMANDS["student"])


def test_labels_that_are_pruned_for_another_temperature(here, run, mistake):
    assert run(COMMANDS["relabel"].replace("o/labels", "labels") + " --store pruned --temperature 4")[0] == 0
    line = COMMANDS["student"] + " --store pruned"
    assert mistake(line) == ("labels.h5 was made with temperature 4.0, the student asks for 20.0; make them agree")
    assert run(f"{line} --temperature 4")[0] == 0


def test_there_are_no_labels_where_the_teacher_is_asked(here, mistake):
    assert mistake(f"{COMMANDS['relabel']} --store online") == (
        "the store online keeps no labels; give the teacher to the student, or set --store stored"
    )
    assert mistake(f"{COMMANDS['student']} {TEACHER} --store online") == (
        "the store online takes no labels but labels.h5 is given; drop it, or set --store to its store"
    )


def test_a_teacher_to_ask_is_missing(here, mistake):
    line = ASKING.replace(TEACHER, "")
    assert mistake(line) == "a student with the store online needs --teacher; give it, or set --store or --labels hard"
    (here / "model.safetensors").unlink()
    assert mistake(ASKING).startswith("model.safetensors does not exist")


def test_a_teacher_to_ask_is_of_other_classes(here, mistake):
    write_teacher(here / "model.safetensors", [*NAMES, "dog"])
    assert "model.safetensors has 4 classes but the distilled set has 3" in mistake(ASKING)
    write_teacher(here / "model.safetensors", ["ant", "cat", "bee"])
    assert "class 1 is 'bee' in the distilled set but 'cat' in model.safetensors" in mistake(ASKING)


def test_fewer_labels_than_epochs(here, mistake):
    write_labels(here / "labels.h5", here / "images.h5", epochs=1)
    assert "labels for 1 epochs but the student trains 2" in mistake(COMMANDS["student"], begun=True)


def test_features_are_missing(here, mistake):
    line = COMMANDS["select"].replace("--features features.h5", "")
    assert mistake(line, begun=True) == "select with strategy kmeans-medoid needs --features"


def test_where_only_confident_images_count_the_teacher_says_which(here, run, mistake):
    line = f"{COMMANDS['barycenter'].replace(f'--k {IPC}', '--k 1')} --confident 0.25"  # one of the four of a class
    assert mistake(line, begun=True).startswith("with confident 0.25 give the --teacher whose features features.h5 has")
    code, _, err = run(f"{line} --teacher model.safetensors")
    assert code == 0, err
    arrays, meta = load(here / "o/b.h5")
    state, known = load_model(here / "model.safetensors")
    assert meta["inputs"]["teacher"] == known["digest"]
    found, _ = load(here / "features.h5", "features", "labels")
    features, labels = torch.from_numpy(found["features"]), torch.from_numpy(found["labels"])
    losses = torch.nn.functional.cross_entropy(
        torch.nn.functional.linear(features, state["head.weight"], state["head.bias"]), labels, reduction="none"
    )
    for label in range(3):
        surest = min((i for i in range(len(labels)) if labels[i] == label), key=lambda i: float(losses[i]))
        np.testing.assert_allclose(arrays["atoms"][label, 0], found["features"][surest], rtol=1e-6)

    line = COMMANDS["select"].replace(f"--ipc {IPC}", "--ipc 1") + " --confident 0.25"
    assert mistake(line, begun=True) == "select with strategy kmeans-medoid and confident 0.25 needs --teacher"
    code, _, err = run(f"{line} --teacher model.safetensors")
    assert code == 0, err
    state["head.bias"] += 1
    save_model(here / "other.safetensors", state, {k: v for k, v in known.items() if k != "digest"})
    says = "features.h5 has no features of other.safetensors; run the features stage again"
    assert mistake(f"{line} --teacher other.safetensors", begun=True) == says


def test_patches_are_selected_by_the_teacher(here, run, mistake):
    line = COMMANDS["select"].replace(" --features features.h5", "").replace("kmeans-medoid", "patches")
    line = line.replace(f"--ipc {IPC}", "--ipc 1") + " --tiles 2 --crops 3 --crop-scale 0.5 1"
    assert mistake(line, begun=True) == "select with strategy patches needs --teacher"
    code, _, err = run(f"{line} --teacher model.safetensors")
    assert code == 0, err
    arrays, meta = load(here / "o/images.h5")
    assert arrays["images"].shape == (3, 1, 3, SIDE, SIDE)
    assert arrays["weights"].tolist() == [[1.0]] * 3
    assert [sorted(mine) for mine in meta["positions"]] == [[4 * c, 4 * c + 1, 4 * c + 2, 4 * c + 3] for c in range(3)]
    assert np.array(meta["boxes"]).shape == (3, 4, 4)


def test_more_images_than_a_class_has(here, mistake):
    line = COMMANDS["select"].replace(f"--ipc {IPC}", "--ipc 5")
    assert "class 'ant' has 4 training images, fewer than the 5 images per class" in mistake(line, begun=True)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([[0, 1]], r"hold the classes \[0, 1\], not each class once in order"),
        ([[0, 1], [1, 2]], r"hold the classes \[0, 1, 1, 2\]"),
        ([[2], [0, 1]], r"hold the classes \[2, 0, 1\]"),
    ],
)
def test_blocks_that_do_not_make_a_whole(here, mistake, parts, says):
    names = [f"part{i}.h5" for i in range(len(parts))]
    for name, labels in zip(names, parts, strict=True):
        write_images(here / name, labels)
    assert re.search(says, mistake(f"images --blocks {' '.join(names)} --output o/images.h5", begun=True))


def test_blocks_of_other_classes(here, mistake):
    write_images(here / "a.h5", [0])
    write_images(here / "b.h5", [1, 2], names=["ant", "bee", "dog"])
    message = mistake("images --blocks a.h5 b.h5 --output o/images.h5", begun=True)
    assert message.startswith("class 2 is 'cat' in a.h5 but 'dog' in b.h5")


@pytest.mark.parametrize("block", ["0-2", "classes2", "classes1-0", "classes0-3", "classes-1-0", "all"])
@pytest.mark.parametrize("stage", ["barycenter", "recover"])
def test_a_block_that_there_is_not(here, mistake, stage, block):
    message = mistake(COMMANDS[stage].replace("classes0-2", block))
    assert message == f"there is no block {block!r}; name the classes as in classes0-2"


# Faults of the place and of the machine


def test_an_output_that_can_not_be_written(here, mistake):
    (here / "o").write_text("a file")
    assert "o/r.h5: a file stands where a folder is needed" in mistake(COMMANDS["recover"])  # before it begins


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_there_is_not(here, mistake):
    message = mistake(COMMANDS["recover"].replace("--device cpu", "--device cuda"))
    assert "no GPU is visible; run on a GPU node or set engine.device: auto" in message


def test_a_teacher_below_the_gate_leaves_no_network(here, mistake):
    message = mistake(f"{COMMANDS['teacher']} --min-accuracy 1", begun=True)
    assert "below min_accuracy 100.0%" in message
    (left,) = (here / "o").glob("*")
    assert left.name.endswith(".checkpoint"), "the training is kept, for a lower gate"


def test_an_unknown_architecture(here, mistake):
    line = COMMANDS["teacher"].replace("--architecture resnet18", "--architecture resnet19")
    assert "unknown architecture 'resnet19'; known: resnet18" in mistake(line, begun=True)


def test_a_bug_keeps_its_trace(here, run, monkeypatch):
    monkeypatch.setattr("wmdd.stages.recover.recover", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(COMMANDS["recover"])


def test_an_interrupt_is_no_mistake(here, run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("wmdd.stages.recover.recover", interrupt)
    code, _, err = run(COMMANDS["recover"])
    assert code == 130
    assert "Traceback" not in err


# The command line itself


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (COMMANDS["recover"].replace("--iterations", "--iteration"), "--iterations"),
        (COMMANDS["student"] + " --temprature 3", "--temperature"),
        (COMMANDS["barycenter"].replace("--features", "--feature"), "--features"),
        ("recove --seed 0", '"recover"'),
        (COMMANDS["recover"] + " --statistics globl", "global"),
        (COMMANDS["recover"].replace(f"--ipc {IPC}", "--ipc 0"), "Must be >= 1"),
        (COMMANDS["recover"].replace("--seed 0", ""), "--seed"),
        (COMMANDS["barycenter"].replace(f"--k {IPC}", ""), "--k"),
        (COMMANDS["barycenter"].replace(f"--k {IPC}", "--k 0"), "Must be >= 1"),
    ],
)
def test_a_misspelt_command_line_exits_with_2_and_names_the_near_flag(here, run, line, says):
    code, out, err = run(line)
    assert (code, out) == (2, "")
    assert says in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert not (here / "o").exists()


def test_version_and_help(run):
    assert run("--version")[:2] == (0, f"{wmdd.__version__}\n")
    code, out, _ = run("recover --help")
    assert code == 0
    assert "--regularisation" in out


# config and schema

EXPERIMENT = """
experiment: tiny
matrix: [{datasets: [digits], teachers: [resnet18-w8], methods: [mine, random], ipc: [1]}]
methods:
  mine: {base: wmdd, recover: {lr: [0.1, 0.2]}}
"""


def test_config_prints_the_resolved_settings(here, run):
    (here / "mine.yaml").write_text(EXPERIMENT)
    code, out, err = run("config mine.yaml")
    assert (code, err) == (0, "")
    found = yaml.safe_load(out)
    assert {name: entry["lr"] for name, entry in found["recover"].items()} == {
        "digits mine-lr0.1": 0.1,
        "digits mine-lr0.2": 0.2,
    }
    assert (found["experiment"], found["runs"]) == ("tiny", 3)


def test_config_of_one_stage(here, run, mistake):
    (here / "mine.yaml").write_text(EXPERIMENT)
    assert set(yaml.safe_load(run("config mine.yaml --stage recover")[1])) == {
        "experiment",
        "engine",
        "recover",
        "runs",
    }
    assert mistake("config mine.yaml --stage recovery").startswith("unknown stage 'recovery'; one of data, teacher")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("recover: {iteration: 3}", "mine.yaml: unknown key recover.iteration; did you mean 'iterations'?"),
        ("matrix: [{datasets: [digts], methods: [wmdd]}]", "unknown name 'digts' in datasets; did you mean 'digits'?"),
        ("a: [", "mine.yaml is not valid YAML"),
        (None, "cannot read the experiment file mine.yaml: No such file or directory"),
    ],
)
def test_config_of_a_wrong_file(here, mistake, content, says):
    if content is not None:
        (here / "mine.yaml").write_text(content)
    assert mistake("config mine.yaml").startswith(says)


def test_schema_prints_json(run):
    code, out, err = run("schema")
    assert (code, err) == (0, "")
    assert json.loads(out) == schema()


# As a process


def process(*arguments, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "wmdd", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **options)


def test_a_mistake_in_a_real_process(here):
    (here / "statistics.h5").unlink()
    done = process(*shlex.split(COMMANDS["recover"]))
    expected = "wmdd recover: error: statistics.h5 does not exist; run the stage that makes it first\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)


def test_config_in_a_real_process(here):
    (here / "mine.yaml").write_text(EXPERIMENT)
    done = process("config", "mine.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    assert yaml.safe_load(done.stdout)["runs"] == 3
