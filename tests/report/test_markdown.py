"""The report in words."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.report.test_results import result
from wmdd.base.errors import WmddError
from wmdd.report import results as frames
from wmdd.report.accuracy_tables import across
from wmdd.report.markdown import (
    QUALITY,
    barycenter_markdown,
    barycenter_summary,
    cost_markdown,
    dataset_markdown,
    markdown,
)
from wmdd.report.render import render
from wmdd.workflow.layout import FILES, REPORT, Cell, cost_of, path_of
from wmdd.workflow.stages import STAGES

ROOT = Path(__file__).parents[2]


def table(results, teachers=None, **more):
    return markdown(frames.rows(results), teachers or {}, **more)


def lines(text):
    """The cells of a Markdown table, a dict a row."""
    found = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return [dict(zip(found[0], row, strict=True)) for row in found[2:]]


# The table


def test_what_all_rows_share_is_said_once_and_what_they_do_not_is_a_column():
    same = table([result(0.5), result(0.4, method="b")])
    assert (
        "In all rows: dataset digits, images per class 10, teacher t-w8, student s-w8, protocol paper, labels soft."
        in same
    )
    assert "teacher" not in lines(same)[0]
    other = table([result(0.5), result(0.4, method="b", teacher="u")])
    assert [row["teacher"] for row in lines(other)] == ["u", "t-w8"]
    assert "In all rows: dataset digits, images per class 10, student s-w8, protocol paper, labels soft." in other


def test_under_the_table_stand_what_is_held_out_and_the_teachers():
    teachers = {
        "results/b/model.safetensors": {"accuracy": {"top1": 0.98765}},
        "results/a/model.safetensors": {"accuracy": {"top1": 0.5}, "origin": "w.pt (sha256 0123)"},
    }
    held_out = table([result(0.5)], teachers, held_out=["cifar10-search", "d"])
    assert "Of cifar10-search, d what validates is a part of the training set, held out." in held_out
    assert "held out" not in table([result(0.5)])
    assert held_out.endswith(
        "- teacher `results/a/model.safetensors`: 50.00 %, weights from w.pt (sha256 0123)\n"
        "- teacher `results/b/model.safetensors`: 98.77 %\n"
    )


# Tables of their own


def wide(results):
    return across("table", frames.summary(frames.rows(results)), ["dataset", "ipc"])


@pytest.mark.parametrize("part", ["teacher", "method", "labels"])
def test_no_part_of_a_cell_is_dropped_or_pooled(part):
    found = wide([result(0.1, **{part: "a"}), result(0.9, **{part: "b"})])
    shown = {(row[part], row["digits, 10 per class"]) for row in lines(render(found, "markdown"))}
    assert shown == {("a", "10.0 (1)"), ("b", "90.0 (1)")}
    numbers = pd.read_csv(io.StringIO(render(found, "csv")))
    assert dict(zip(numbers[part], numbers["mean"], strict=True)) == {"a": 10, "b": 90}
    assert r"90.0 (1)" in render(found, "latex")


def test_a_column_for_each_dataset_and_number_of_images():
    (row,) = lines(render(wide([result(0.1, ipc=10), result(0.2, ipc=2), result(0.3, dataset="z")]), "markdown"))
    assert row == {
        "method": "wmdd", "digits, 2 per class": "20.0 (1)", "digits, 10 per class": "10.0 (1)", "z, 10 per class": "30.0 (1)"
    }  # fmt: skip


def test_two_groups_in_one_cell_are_refused():
    summary = frames.summary(frames.rows([result(0.1)]))
    with pytest.raises(ValueError, match="two results for"):
        across("table", pd.concat([summary, summary]), ["dataset", "ipc"])


RUNS = f"--runs {ROOT}/docs/results/imagenette/runs.json"
EXPLAIN = f"--configfile {ROOT}/config/studies/imagenette.yaml --name explain"
WRITTEN = f"--published {ROOT}/config/published.yaml --table t.md --csv t.csv --latex t.tex"


def test_a_table_of_a_study_from_its_kept_runs(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(f"study-table {RUNS} {EXPLAIN} {WRITTEN}")
    assert (code, err) == (0, "")
    rows = {(row["method"], row["teacher"], row["protocol"]): row for row in lines(Path("t.md").read_text())}
    assert rows["wmdd", "nette-w8", "paper-online"]["nette, 10 per class"] == "33.6 ± 2.4 (3)"
    assert rows["wmdd", "nette-w8-short", "paper-online"]["nette, 10 per class"] == "39.8 ± 1.2 (3)"
    numbers = pd.read_csv("t.csv")
    assert set(numbers.loc[numbers["method"] == "random", "family"]) == {"select"}
    assert set(numbers.loc[numbers["method"].str.startswith("wmdd"), "family"]) == {"recover"}
    content = json.loads((ROOT / "docs/results/imagenette/runs.json").read_text())
    kept = [line for line in content["runs"] if not (line["method"] == "wmdd" and line["seed"] == 0)]
    Path("runs.json").write_text(json.dumps(content | {"runs": kept}))
    code, _, err = run(f"study-table --runs runs.json {EXPLAIN} {WRITTEN}")
    assert code == 0
    assert re.fullmatch(r"runs.json lacks \d+ of the \d+ runs of explain: the table is without them\n", err)


def test_a_table_of_what_is_not_there_is_one_line(tmp_path, monkeypatch, mistake):
    monkeypatch.chdir(tmp_path)
    Path("list.json").write_text("[]")
    for flags, said in (
        (f"--runs {ROOT}/docs/results/cifar10/results.json", "results.json does not hold the runs of a report"),
        ("--runs .", ". is a folder; name a file"),
        ("--runs list.json", "list.json does not hold the runs of a report"),
        (f"{RUNS} --name explain", "give its --configfile"),
        (f"{RUNS} {EXPLAIN.replace('explain', 'explian')}", "has the name explian; those that it has: reproduce, "),
    ):
        assert said in mistake(f"study-table {flags} {WRITTEN}")


# Cost

PARTS = {
    "dataset": "my.data",
    "teacher": "resnet18-w8",
    "generator": "small-vae",
    "expert": "wide",
    "method": "mine-lr0.1",
    "ipc": "10",
    "seed": "3",
    "block": "classes0-9",
    "student": "convnet3",
    "protocol": "paper.v2",
    "run": "1",
}
MADE = [stage.name for stage in STAGES.values() if stage.file and not stage.output.startswith(REPORT)]


def spent(stage, seconds=1.0, memory=100, **parts):
    cell = Cell.of(PARTS | parts)
    path = Path(cost_of(path_of(STAGES[stage].file, cell)))
    return path, {"stage": stage, "seconds": seconds, "peak_memory_mb": memory}


def costs(*jobs):
    return lines(cost_markdown(frames.jobs(list(jobs))))


def test_the_cost_of_a_stage_is_of_all_parts_of_its_cell():
    for stage in MADE:
        row = costs(spent(stage), spent("data", dataset="another"))[0]
        assert (row["stage"], row["jobs"], row["seconds"]) == (stage, "1", "1")
        parts = [name for name in STAGES[stage].wildcards if name not in ("seed", "run", "block")]
        titles = {"ipc": "images per class"}
        assert {name: row[titles.get(name, name)] for name in parts} == {name: PARTS[name] for name in parts}
        assert not {*row} & {*PARTS} - {*parts}


def test_jobs_of_a_stage_are_gathered():
    times = zip((1, 2, 6), (50, 70, 60), strict=True)
    (row,) = costs(*(spent("recover", s, m, block=f"classes{i}-{i}") for i, (s, m) in enumerate(times)))
    assert (row["jobs"], row["seconds"], row["seconds a job"], row["peak memory, MB"]) == ("3", "9", "2.0", "70")


def test_datasets():
    meta = {
        "variant": "test", "classes": ["a", "b"], "counts": {"train": [900, 900], "val": [50, 50]}, "resolution": 64,
        "mean": [0.5, 0.25, 0.1], "std": [1.0, 1.0, 1.0], "duplicates": {"val in train": 2}, "skipped": ["a.jpg"],
        "enlarged": {"count": 7},
    }  # fmt: skip
    (row,) = lines(dataset_markdown([("digits", meta)]))
    assert (row["dataset"], row["classes"], row["training pictures"], row["mean"], row["left out"], row["enlarged"]) == (
        "digits", "2", "1,800", "0.500 0.250 0.100", "1", "7"
    )  # fmt: skip


# Barycenters


def block(classes=2, method="wmdd", ipc=10, seed=0, block="classes0-1", seconds=0.5, **quality):
    """A block as the stage writes it, every column 1 but for those given."""
    where = PARTS | {"method": method, "ipc": ipc, "seed": seed, "block": block}
    known = {name: np.ones(classes) for name in QUALITY if name != "restarts_gap"} | {"points": np.full(classes, 9)}
    given = {name: np.asarray(values) for name, values in quality.items()}
    return Path(FILES["barycenter"].format(**where)), known | given, np.broadcast_to(seconds, classes).tolist()


def test_barycenters_are_the_mean_over_classes_and_seeds_and_the_largest_gap():
    blocks = [
        block(cost=[1.0, 3.0], gap=[0.0, 0.1], iterations=[10, 20], seconds=1.0),
        block(1, block="classes2-2", cost=[5.0], gap=[0.3], iterations=[30], seconds=3.0),
        block(1, seed=1, cost=[7.0], gap=[0.0], iterations=[40], seconds=3.0),
    ]
    for order in (blocks, blocks[::-1]):
        (row,) = barycenter_summary(order).to_dict("records")
        assert (row["dataset"], row["teacher"], row["method"], row["ipc"]) == ("my.data", "resnet18-w8", "wmdd", 10)
        assert (row["solved"], row["cost"], row["gap"], row["iterations"], row["seconds"]) == (4, 4, 0.3, 25, 2)
        assert (row["explained"], row["min_mass"], row["max_mass"], row["effective_atoms"]) == (1, 1, 1, 1)


def test_the_table_of_barycenters():
    """Sorted as numbers; with the gap to other starts where there were some."""
    table = barycenter_summary([block(ipc=i, method=m) for m in "ba" for i in (100, 2)])
    assert list(zip(table["method"], table["ipc"], strict=True)) == [("a", 2), ("a", 100), ("b", 2), ("b", 100)]
    text = barycenter_markdown(table)
    assert [row["ipc"] for row in lines(text)] == ["2", "100", "2", "100"]
    assert ("restarts gap" in lines(text)[0], "nan" in text) == (False, False)
    (row,) = lines(barycenter_markdown(barycenter_summary([block(restarts_gap=[0.01, 0.02])])))
    assert (row["restarts gap"], row["effective atoms"]) == ("0.02", "1")


def test_no_barycenters_and_barycenters_in_another_place():
    empty = barycenter_summary([])
    assert "The matrix has no method with barycenters." in barycenter_markdown(empty)
    assert list(empty.columns) == list(barycenter_summary([block()]).columns)
    with pytest.raises(WmddError, match=r"x\.h5 is not where"):
        barycenter_summary([(Path("x.h5"), *block()[1:])])
