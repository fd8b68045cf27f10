"""All students of an experiment become one wandb table, offline too, with the sources where a setting asks for them."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.artifacts import SIDE, write_images
from tests.tracking.test_tracker import ROOT, python, runs_of
from wmdd.artifacts.atomic_files import read_json, write_json
from wmdd.workflow.experiment_file import parse

COMMAND = "import sys; from wmdd.__main__ import main; sys.argv = ['wmdd', *{words}]; main()"


@pytest.fixture
def students(tmp_path):
    """The results of two methods' students; one of the methods has two."""
    paths = []
    for method, run, top1 in (("random", 0, 0.25), ("random", 1, 0.5), ("wmdd", 0, 0.75)):
        folder = tmp_path / f"results/digits/nano/{method}/ipc2/seed0"
        write_images(folder / "images.h5", seed=len(method))
        paths.append(folder / f"student/nano/short/run{run}.json")
        result = {"top1": top1, "top5": 1.0, "best_top1": top1, "best_epoch": 1, "steps": 10, "images_seen": 20}
        write_json(paths[-1], {"settings": {"labels": "soft"}, "inputs": {"images": "d" * 64}, "result": result})
    return [str(path.relative_to(tmp_path)) for path in paths]


def scoreboard(folder, students, variables):
    words = ["scoreboard", "--students", *students, "--output", "results/report/scoreboard.json"]
    done = python(COMMAND.format(words=words), folder, **variables)
    assert (done.returncode, "wandb can't" in done.stderr) == (0, False), done.stderr
    return runs_of(folder)


def test_scores_stand_beside_what_the_students_learned_from(tmp_path, students):
    (run,) = scoreboard(tmp_path, students, {"WANDB_MODE": "offline"})
    (item,) = [record["item"] for record in run["history"]]
    assert (item["scoreboard._type"], item["scoreboard.nrows"]) == ("table-file", 3)
    (artifact,) = run["artifact"]
    files = {entry["path"]: Path(entry["local_path"]) for entry in artifact["manifest"]["contents"]}
    table = json.loads(files["scoreboard.table.json"].read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(row["method"], row["run"], row["top1"], row["ipc"]) for row in rows] == [
        ("random", 0, 25, 2), ("random", 1, 50, 2), ("wmdd", 0, 75, 2),
    ]  # fmt: skip
    pictures = [row["images"] for row in rows]
    assert pictures[0] == pictures[1] != pictures[2]
    assert Image.open(files[pictures[0]["path"]]).size == (3 * SIDE, SIDE), "an image of each class"
    assert all(path.is_relative_to(tmp_path / "wandb") for path in files.values()), "the folder of runs has all of them"
    assert "generator" not in rows[0], "what no student has is no column"
    saved = read_json(tmp_path / "results/report/scoreboard.json")
    assert [dict(zip(saved["columns"], row, strict=True)) for row in saved["rows"]] == [
        {name: value for name, value in row.items() if name != "images"} for row in rows
    ]


def test_the_sources_go_along_where_a_setting_asks_for_them(tmp_path, students):
    settings = parse({"tracking": {"code": True, "tags": ["a", "b c"], "notes": "why", "entity": "team"}}).tracking
    (run,) = scoreboard(tmp_path, students, settings.environment())
    (record,) = run["run"]
    assert (record["entity"], record["tags"], record["notes"]) == ("team", ["a", "b c"], "why")
    (code,) = [artifact for artifact in run["artifact"] if artifact["type"] == "code"]
    files = {entry["path"]: Path(entry["local_path"]) for entry in code["manifest"]["contents"]}
    assert {"Snakefile", "rules/tracking.smk", "wmdd/tracking/tracker.py", "wmdd/workflow/presets.yaml"} <= set(files)
    assert files["Snakefile"].read_text() == (ROOT / "Snakefile").read_text()
