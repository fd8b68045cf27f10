"""The family match in the real workflow: DM, DataDAM and MTT end in images, and a change reruns what it must."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from wmdd.artifacts.atomic_files import read_json
from wmdd.artifacts.hdf5 import load, load_meta

from .conftest import TINY, Workspace, workspace

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

CELL = "results/digits/nano/{}/ipc2/seed0"
SMALL = {"architecture": "convnet2", "width": 8}
STUDENT = {"student": {"epochs": 6, "evaluate_every": 6}}
CONFIG = TINY | {
    "matrix": [
        TINY["matrix"][0]
        | {"methods": ["dm", "datadam", "mtt", "random"], "students": ["small"], "protocols": ["own", "short-hard"]}
    ],
    "experts": {"convnet3": SMALL | {"epochs": 3, "batch_size": 40}},
    "methods": {
        "dm": {"match": SMALL | {"iterations": 6, "real_batch": 8}},
        "datadam": {"match": SMALL | {"iterations": 6, "real_batch": 8}},
        "mtt": {
            "match": {
                "trajectories": 2,
                "iterations": 4,
                "student_steps": 3,
                "start_epochs": 1,
                "labels": "learned",
                "lr": 50,
            }
        },
    },
    "students": {"small": SMALL | {"norm": "instance"}},
    "protocols": TINY["protocols"] | {"own": {"base": "dsa"} | STUDENT},
}
AFTER = {
    "images": 1,
    "student": 2,
    "grid": 1,
    "report": 1,
    "page": 1,
    "all": 1,
}  # what follows from one method's images


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The tiny workflow of the family match, run to the end. Never to be changed: use `run`."""
    there = workspace(tmp_path_factory.mktemp("match") / "made", CONFIG)
    there.snakemake()
    return there


@pytest.fixture
def run(made: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(made.root, tmp_path / "run", symlinks=True)
    return Workspace(tmp_path / "run")


def test_each_method_has_images_of_its_own(made: Workspace) -> None:
    found = {m: load(made.root / CELL.format(m) / "images.h5")[0]["images"] for m in ("dm", "datadam", "mtt", "random")}
    assert {images.shape for images in found.values()} == {(10, 2, 3, 16, 16)}
    begun = found.pop("random")
    for method, images in found.items():
        assert (images != begun).any(), method
        assert np.abs(images.astype(int) - begun).mean() < 60, f"{method} begins at the images of random"


def test_blocks_where_the_loss_separates_and_one_where_not(made: Workspace) -> None:
    blocks = {m: len(list((made.root / CELL.format(m) / "match").glob("*.h5"))) for m in ("dm", "datadam", "mtt")}
    assert blocks == {"dm": 2, "datadam": 2, "mtt": 1}


def test_students_learn_from_what_mtt_learned(made: Workspace) -> None:
    arrays, meta = load(made.root / CELL.format("mtt") / "images.h5")
    assert arrays["labels_learned"].shape == (10, 2, 10)
    assert arrays["labels_learned"].argmax(2).tolist() == [[c] * 2 for c in range(10)]
    result = read_json(made.root / CELL.format("mtt") / "student/small/own/run0.json")
    assert result["settings"]["lr"] == meta["student_lr"]
    other = read_json(made.root / CELL.format("dm") / "student/small/own/run0.json")
    assert other["settings"]["lr"] == 0.01


def test_experts_are_named_by_the_images_that_follow_them(made: Workspace) -> None:
    paths = [made.root / f"results/digits/expert/convnet3/seed{seed}/trajectory.h5" for seed in (0, 1)]
    metas = [load_meta(path) for path in paths]
    inputs = load_meta(next((made.root / CELL.format("mtt") / "match").glob("*.h5")))["inputs"]
    assert [inputs[f"expert{i}"] for i in (0, 1)] == [meta["digest"] for meta in metas]
    assert metas[0]["digest"] != metas[1]["digest"]
    assert load(paths[0])[0]["parameters"].shape[0] == 4


def test_the_report_has_matched_sets_and_their_experts(made: Workspace) -> None:
    costs = (made.root / "results/report/cost.md").read_text()
    titles, _, *lines = [[c.strip() for c in line.split("|")[1:-1]] for line in costs.splitlines() if "|" in line]
    rows = [dict(zip(titles, line, strict=True)) for line in lines]
    assert {"convnet3"} == {row["expert"] for row in rows if row["stage"] == "expert"}
    assert {"dm", "datadam", "mtt"} == {row["method"] for row in rows if row["stage"] == "match"}
    assert "match: objective" in (made.root / "results/report/index.html").read_text(), "in which the methods differ"
    chart = json.loads((made.root / "results/report/figures/stages-0.vl.json").read_text())
    drawn = [row for table in chart["datasets"].values() for row in table if "from" in row]
    edges = [(row["from"], row["to"]) for row in drawn]
    assert edges.count(("expert", "match")) == 1
    assert {("data", "expert"), ("data", "match"), ("match", "images"), ("images", "student")} <= set(edges)


def test_a_finished_run_has_nothing_to_do(run: Workspace) -> None:
    assert run.pending() == {}


def test_a_setting_of_one_method_reruns_that_method(run: Workspace) -> None:
    assert run.changed("methods", "dm", "match", "lr", value=3) == AFTER | {"match": 2}


def test_more_trajectories_train_more_experts_and_keep_the_others(run: Workspace) -> None:
    assert run.changed("methods", "mtt", "match", "trajectories", value=3) == AFTER | {"expert": 1, "match": 1}


def test_another_training_of_experts_reruns_them_and_no_dm(run: Workspace) -> None:
    assert run.changed("experts", "convnet3", "epochs", value=4) == AFTER | {"expert": 2, "match": 1}


def test_the_views_of_a_protocol_rerun_its_students_alone(run: Workspace) -> None:
    pending = run.changed("protocols", "own", "student", "epochs", value=7)
    assert pending == {"student": 4, "report": 1, "page": 1, "all": 1}


def test_no_teacher_takes_part(run: Workspace) -> None:
    pending = run.changed("teachers", "nano", "epochs", value=13)
    assert pending == {"teacher": 1, "features": 1, "report": 1, "page": 1, "all": 1}


def test_the_rate_that_was_learned_can_be_left_aside(run: Workspace) -> None:
    pending = run.changed("protocols", "own", "student", "learned_lr", value=False)
    assert pending == {"student": 4, "report": 1, "page": 1, "all": 1}


def test_experts_that_are_too_short_stop_everything_before_it_begins(run: Workspace) -> None:
    config = run.config
    config["methods"]["mtt"]["match"]["start_epochs"] = 20
    run.config = config
    failed = run.snakemake("--dry-run", check=False)
    said = failed.stdout + failed.stderr
    assert failed.returncode
    assert "method mtt on digits: match begins at up to 19 epochs of an expert and goes on for 2" in said
    assert "the experts convnet3 have 3; raise their epochs to 21" in said
    assert "Traceback" not in said
