"""The match family in the real workflow: DM and MTT end in images that students learn from; a change reruns what it must."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from wmdd.artifacts import load, load_meta

from .conftest import TINY, Workspace, workspace

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

CELL = "results/digits/nano/{}/ipc2/seed0"
EXPERTS = "results/digits/expert/convnet3/seed*/trajectory.h5"
CONFIG = TINY | {
    "matrix": [TINY["matrix"][0] | {"methods": ["dm", "mtt"], "protocols": ["short-dsa"]}],
    "match": {"architecture": "convnet2", "width": 4, "iterations": 4, "real_batch": 4},
    "experts": {"convnet3": {"architecture": "convnet2", "width": 4, "epochs": 3, "batch_size": 24}},
    "methods": {
        "mtt": {
            "match": {
                "trajectories": 2, "start_epochs": 2, "expert_epochs": 1, "student_steps": 3, "labels": "learned", "lr": 10,
            }
        }
    },
    "protocols": {"short-dsa": {"base": "dsa", "student": {"epochs": 4, "evaluate_every": 2}}},
}  # fmt: skip
AFTER = {"images": 1, "student": 1, "grid": 1, "report": 1, "page": 1, "all": 1}  # what follows from a method's images


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The tiny workflow of the match family, run to the end. Never to be changed: use `run`."""
    there = workspace(tmp_path_factory.mktemp("match") / "made", CONFIG)
    there.snakemake()
    return there


@pytest.fixture
def run(made: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(made.root, tmp_path / "run", symlinks=True)
    return Workspace(tmp_path / "run")


def changed(run: Workspace, *keys: str, value: object) -> dict[str, int]:
    """What would run with another value of a setting."""
    config = run.config
    place = config
    for key in keys[:-1]:
        place = place.setdefault(key, {})
    place[keys[-1]] = value
    run.config = config
    return run.pending()


def test_experts_have_numbers_and_matched_images_say_whom_they_follow(made: Workspace) -> None:
    experts = [load_meta(path) for path in sorted(made.root.glob(EXPERTS))]
    assert [meta["identity"]["seed"] for meta in experts] == [0, 1]
    blocks = sorted((made.root / CELL.format("dm") / "match").glob("*.h5"))
    assert [path.stem for path in blocks] == ["classes0-4", "classes5-9"]
    assert {*load_meta(blocks[0])["inputs"]} == {"data"}
    (block,) = (made.root / CELL.format("mtt") / "match").glob("*.h5")
    assert block.stem == "classes0-9"
    inputs = load_meta(block)["inputs"]
    assert [inputs[f"expert{n}"] for n in (0, 1)] == [meta["digest"] for meta in experts]


def test_what_was_learned_reaches_the_students(made: Workspace) -> None:
    results = {}
    for method in "dm", "mtt":
        arrays, meta = load(made.root / CELL.format(method) / "images.h5")
        assert arrays["images"].shape == (10, 2, 3, 16, 16)
        assert (arrays["weights"] == 0.5).all()
        assert ("labels_learned" in arrays) == ("student_lr" in meta) == (method == "mtt")
        (path,) = (made.root / CELL.format(method)).glob("student/nano/short-dsa/run0.json")
        results[method] = json.loads(path.read_text())["settings"]["lr"]
    assert results == {"dm": 0.01, "mtt": meta["student_lr"]}
    assert np.argmax(arrays["labels_learned"], 2).tolist() == [[c] * 2 for c in range(10)]


def test_the_report_has_matched_sets_and_their_experts(made: Workspace) -> None:
    costs = (made.root / "results/report/cost.md").read_text()
    rows = {tuple(cell.strip() for cell in line.split("|")[1:5]) for line in costs.splitlines() if "|" in line}
    assert ("digits", "convnet3", "", "expert") in rows
    assert {("digits", method, "2", "match") for method in ("dm", "mtt")} <= rows
    assert "match: objective" in (made.root / "results/report/index.html").read_text(), "in which the methods differ"
    chart = json.loads((made.root / "results/report/figures/stages-0.vl.json").read_text())
    drawn = [row for table in chart["datasets"].values() for row in table if "from" in row]
    edges = [(row["from"], row["to"]) for row in drawn]
    assert edges.count(("expert", "match")) == 1
    assert {("data", "expert"), ("data", "match"), ("match", "images"), ("images", "student")} <= set(edges)


def test_a_finished_run_has_nothing_to_do(run: Workspace) -> None:
    assert run.pending() == {}


def test_other_experts_rerun_those_and_what_follows_them(run: Workspace) -> None:
    assert changed(run, "experts", "convnet3", "lr", value=0.02) == AFTER | {"expert": 2, "match": 1}


def test_one_expert_more_is_trained_alone(run: Workspace) -> None:
    assert changed(run, "methods", "mtt", "match", "trajectories", value=3) == AFTER | {"expert": 1, "match": 1}


def test_real_batches_are_of_untrained_networks_alone(run: Workspace) -> None:
    assert changed(run, "match", "real_batch", value=5) == AFTER | {"match": 2}


def test_no_teacher_takes_part(run: Workspace) -> None:
    pending = changed(run, "teachers", "nano", "epochs", value=13)
    assert pending == {"teacher": 1, "features": 1, "report": 1, "page": 1, "all": 1}


def test_the_rate_that_was_learned_can_be_left_aside(run: Workspace) -> None:
    pending = changed(
        run, "protocols", "short-dsa", "student", value={"epochs": 4, "evaluate_every": 2, "learned_lr": False}
    )
    assert pending == {"student": 2, "report": 1, "page": 1, "all": 1}


def test_experts_that_are_too_short_stop_everything_before_it_begins(run: Workspace) -> None:
    config = run.config
    config["methods"]["mtt"]["match"]["start_epochs"] = 20
    run.config = config
    failed = run.snakemake("--dry-run", check=False)
    said = failed.stdout + failed.stderr
    assert failed.returncode
    assert "method mtt on digits: match begins at up to 19 epochs of an expert and goes on for 1" in said
    assert "the experts convnet3 have 3; raise their epochs to 20" in said
    assert "Traceback" not in said
