"""The family match in the real workflow: DM, DataDAM and MTT end in images, and a change reruns what it must."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest

from wmdd.artifacts.atomic_files import read_json
from wmdd.artifacts.hdf5 import load, load_meta
from wmdd.artifacts.pixels import as_bytes

from .conftest import ENTRY, TINY, Workspace, run_of

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

CELL = "results/digits/nano/{}/ipc2/seed0"
SMALL = {"architecture": "convnet2", "width": 8}
MATCH = {"match": SMALL | {"iterations": 6, "real_batch": 8}}
MTT = {"trajectories": 2, "iterations": 4, "student_steps": 3, "start_epochs": 1, "labels": "learned", "lr": 50}
CONFIG = TINY | {
    "matrix": [
        ENTRY | {"methods": ["dm", "datadam", "mtt", "random"], "students": ["small"], "protocols": ["own"]},
    ],
    "experts": {"convnet3": SMALL | {"epochs": 3, "batch_size": 40}},
    "methods": {"dm": MATCH, "datadam": deepcopy(MATCH), "mtt": {"match": MTT}},
    "students": {"small": SMALL | {"norm": "instance"}},
    "protocols": {"own": {"base": "dsa", "student": {"epochs": 6, "evaluate_every": 6}}},
}
REPORT = {"report": 1, "page": 1, "all": 1}
AFTER = {"join": 1, "student": 1, "grid": 1, **REPORT}  # what follows from one method's images


@pytest.fixture(scope="module")
def matched(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The tiny workflow of the family match, run to the end. Never to be changed: use `run`."""
    return run_of(CONFIG, tmp_path_factory)


@pytest.fixture
def run(matched: Workspace, tmp_path: Path) -> Workspace:
    return matched.copy(tmp_path / "run")


def test_each_method_has_images_of_its_own(matched: Workspace) -> None:
    sets = {path.parts[-4]: load(path)[0]["images"] for path in matched.root.glob(CELL.format("*") + "/images.h5")}
    assert {images.shape for images in sets.values()} == {(10, 2, 3, 16, 16)}
    begun = sets.pop("random")
    assert set(sets) == {"dm", "datadam", "mtt"}
    for method, images in sets.items():
        assert images.dtype == np.float32, f"the pixels of {method} are free"
        assert 0 < np.abs(as_bytes(images).astype(int) - begun).mean() < 80, f"{method} begins at the images of random"


def test_blocks_where_the_loss_separates_and_one_where_not(matched: Workspace) -> None:
    assert matched.contents("results/**/match/*.h5") == {}, "deleted once they are joined"
    costs = [Path(name).parts[-5] for name in matched.contents("results/**/match/*.cost.json")]
    assert sorted(costs) == ["datadam", "datadam", "dm", "dm", "mtt"]


def test_students_learn_from_what_mtt_learned(matched: Workspace) -> None:
    arrays, meta = load(matched.root / CELL.format("mtt") / "images.h5")
    assert arrays["labels_learned"].shape == (10, 2, 10)
    assert arrays["labels_learned"].argmax(2).tolist() == [[c] * 2 for c in range(10)]
    rates = [
        read_json(matched.root / CELL.format(method) / "student/small/own/run0.json")["settings"]["lr"]
        for method in ("mtt", "dm")
    ]
    assert rates == [meta["student_lr"], 0.01]


def test_experts_are_named_by_the_images_that_follow_them(matched: Workspace) -> None:
    paths = [matched.root / f"results/digits/expert/convnet3/seed{seed}/trajectory.h5" for seed in (0, 1)]
    digests = [load_meta(path)["digest"] for path in paths]
    inputs = load_meta(matched.root / CELL.format("mtt") / "images.h5")["match"]["inputs"]
    assert [inputs["expert0"], inputs["expert1"]] == [[digest] for digest in digests]
    assert digests[0] != digests[1]
    assert load(paths[0])[0]["parameters"].shape[0] == 4


def test_the_report_has_matched_sets_and_their_experts(matched: Workspace) -> None:
    costs = (matched.root / "results/report/cost.md").read_text()
    titles, _, *lines = [[c.strip() for c in line.split("|")[1:-1]] for line in costs.splitlines() if "|" in line]
    rows = [dict(zip(titles, line, strict=True)) for line in lines]
    assert {"convnet3"} == {row["expert"] for row in rows if row["stage"] == "expert"}
    assert {"dm", "datadam", "mtt"} == {row["method"] for row in rows if row["stage"] == "match"}
    assert "match: objective" in (matched.root / "results/report/index.html").read_text(), "in which the methods differ"


CHANGES = [
    ("experiment", "tiny", {}),  # as it was
    ("methods.dm.match.lr", 3, AFTER | {"match": 2}),
    ("methods.dm.match.init", "method:random", AFTER | {"match": 2}),
    ("methods.mtt.match.trajectories", 3, AFTER | {"expert": 1, "match": 1}),
    ("experts.convnet3.epochs", 4, AFTER | {"expert": 2, "match": 1}),
    ("protocols.own.student.epochs", 7, {"student": 4, **REPORT}),
    ("protocols.own.student.learned_lr", False, {"student": 4, **REPORT}),
    ("teachers.nano.epochs", 13, {"teacher": 1, "features": 1, **REPORT}),
]


def test_a_setting_reruns_the_stages_that_use_it(run: Workspace) -> None:
    assert run.pending_after(CHANGES) == [jobs for _, _, jobs in CHANGES]


def test_experts_that_are_too_short_stop_everything_before_it_begins(run: Workspace) -> None:
    run.change("methods.mtt.match.start_epochs", 20)
    said = run.mistake()
    assert "method mtt on digits: match begins at up to 19 epochs of an expert and goes on for 2" in said
    assert "the experts convnet3 have 3; raise their epochs to 21" in said
