"""The data frame of students and jobs, and its summary: nothing is pooled or lost."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmdd.artifacts import hdf5_writer
from wmdd.base.errors import WmddError
from wmdd.report import accuracy_tables as scores
from wmdd.report import results as frames
from wmdd.report.render import render
from wmdd.report.results import Measure, families_beside, family_of, kind_of, rows, summary
from wmdd.workflow.layout import CELL, Cell, cost_of, path_of

PLACE = {"dataset": "digits", "teacher": "t-w8", "student": "s-w8"}


def result(top1, protocol="paper", seed=0, run=0, labels="soft", method="wmdd", ipc=10, images="", steps=None, **cell):
    """A student's file and content; without steps as earlier versions wrote it."""
    place = PLACE | {"protocol": protocol, "seed": seed, "run": run, "method": method, "ipc": ipc} | cell
    scores = {"top1": top1, "top5": 0.9, "best_top1": top1 + 0.01, "best_epoch": 3}
    scores |= {} if steps is None else {"steps": steps, "images_seen": 100 * steps}
    return Path(path_of("student", Cell(**place))), {
        "settings": {"labels": labels}, "result": scores, "inputs": {"images": images}
    }  # fmt: skip


def test_a_row_says_where_it_belongs_and_what_it_scored():
    found = [result(0.25, seed=3, run=2, ipc=50, method="a-lr0.1", dataset="my.data", steps=1500)]
    family = {Cell("my.data", "t-w8", "a-lr0.1", 50, 3): "latent"}
    (row,) = rows(found, family).to_dict("records")
    assert row == dict.fromkeys(CELL, "") | {
        "dataset": "my.data",
        "teacher": "t-w8",
        "method": "a-lr0.1",
        "ipc": 50,
        "seed": 3,
        "student": "s-w8",
        "protocol": "paper",
        "run": 2,
        "labels": "soft",
        "set": "",
        "family": "latent",
        "top1": 25.0,
        "top5": 90.0,
        "best_top1": pytest.approx(26.0),
        "steps": 1500,
        "images_seen": 150_000,
        "images_held": pytest.approx(float("nan"), nan_ok=True),
    }


def test_what_is_no_result_of_a_student_is_refused():
    path, content = result(0.5)
    for misplaced in "x/run0.json", "results/d/t/m/ipc1/seed0/images.h5":
        with pytest.raises(WmddError, match=r"is not where"):
            rows([(Path(misplaced), content)])
    for other in [], {"settings": {}}:
        with pytest.raises(WmddError, match="is not the result of a student"):
            rows([(path, other)])
    for score in float("nan"), 1e9, -3, "0.9", None, True, [0.5]:
        path, content = result(0.5)
        content["result"]["top1"] = score
        with pytest.raises(
            WmddError, match=r"top1 of results/.*run0\.json is .*, not a number from 0 to 1; delete the file"
        ):
            rows([(path, content)])


# Summary


def test_students_of_a_seed_are_averaged_and_nothing_else_is_pooled():
    pooled = [result(0.1, seed=0, run=0), result(0.2, seed=0, run=1), result(0.35, seed=1, run=0)]
    parts = ("method", "protocol", "dataset", "teacher", "student", "labels")
    apart = [result(0.5, ipc=1), *(result(0.5, **{part: "other"}) for part in parts)]
    found = summary(rows(pooled + apart))
    assert sorted(found["n"]) == [1] * 7 + [2]
    (both,) = found[found["n"] == 2].to_dict("records")
    assert (both["mean"], both["students"]) == (pytest.approx(25), 3)
    assert both["std"] == pytest.approx(np.std([15, 35], ddof=1))
    assert both["top5"] == pytest.approx(90)
    assert both["spread"] == pytest.approx(np.std([10, 20], ddof=1))
    assert summary(rows(list(reversed(pooled + apart)))).equals(found)


@settings(max_examples=30)
@given(st.lists(st.tuples(*(st.sampled_from("ab") for _ in range(5)), st.integers(0, 2)), unique=True, min_size=1))
def test_every_group_is_a_row_and_every_student_counts_once(cells):
    names = ("dataset", "teacher", "method", "student", "protocol")
    found = [result(0.5, seed=seed, **dict(zip(names, parts, strict=True))) for *parts, seed in cells]
    table = summary(rows(found))
    assert len(table) == len({tuple(parts) for *parts, _ in cells})
    assert table["students"].sum() == len(cells)


def test_a_part_that_is_not_there_drops_no_group():
    for missing in None, float("nan"), "":
        cells = rows([result(0.1, method="a"), result(0.9, method="b")]).assign(teacher=missing, student=missing)
        assert summary(cells)[["method", "mean"]].values.tolist() == [["a", 10.0], ["b", 90.0]]


def test_the_gain_is_over_random_images_of_the_same_setting():
    found = [result(0.4 + s / 100, method="random", seed=s) for s in range(3)]
    found += [result(0.5 + s / 50, method="wmdd", seed=s) for s in range(3)]
    found += [result(0.9, method="random", teacher="u"), result(0.7, method="wmdd", student="u")]
    table = summary(rows(found)).set_index(["teacher", "student", "method"])
    wmdd = table.loc["t-w8", "s-w8", "wmdd"]
    assert (wmdd["gain"], wmdd["gain_n"]) == (pytest.approx(11), 3)
    assert (wmdd["gain_low"], wmdd["gain_high"]) == pytest.approx((11 - 4.302653 / 3**0.5, 11 + 4.302653 / 3**0.5))
    assert np.isnan(table.loc["t-w8", "u", "wmdd"]["gain"])
    assert table.loc[:, :, "random"]["gain"].isna().all()


def test_the_share_of_the_gap_is_that_to_the_whole_training_set_of_the_same_setting():
    scores_of = {"random": (0.5, 0.51, 0.5), "whole": (0.6, 0.62, 0.605), "wmdd": (0.55, 0.57, 0.56)}
    found = [result(x, method=m, seed=s) for m, values in scores_of.items() for s, x in enumerate(values)]
    found += [result(0.5 + s / 100, method=m, seed=s, protocol="no-gap") for m in scores_of for s in range(3)]
    table = summary(rows(found))
    closed = table.set_index(["protocol", "method"])["closed"]
    assert closed["paper", "wmdd"] == pytest.approx(17 / 31.5)
    assert closed.notna().sum() == 1, "neither of the controls, nor where there is no gap"
    shown = render(scores.results(table), "markdown")
    assert "| 0.54 (0.44 to 0.62) |" in shown
    assert "gap closed: (method" in shown
    assert "gap closed" not in render(scores.results(summary(rows(found[:3] + found[6:9]))), "markdown")


def test_numbers_in_csv_are_whole_where_they_count():
    students = [
        result(x, seed=s, method=m, images=f"{m}{s}", steps=n)
        for m, x, n in (("random", 0.1, None), ("b", 0.3, 1500)) for s in (0, 1)
    ]  # fmt: skip
    lines = render(scores.results(summary(rows(students))), "csv").splitlines()
    b, random = (dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:])
    assert [b[name] for name in ("n", "sets", "students", "gain", "gain_n")] == ["2", "2", "2", "20.0", "2"]
    assert (b["steps"], b["images_seen"]) == ("1500", "150000")
    assert [random[name] for name in ("gain", "gain_n", "steps")] == ["", "", ""]


# Families


def test_a_family_follows_from_what_made_the_images():
    for meta, family, kind in (
        ({"stage": "select"}, "select", "real"),
        ({"stage": "join", "recover": {}}, "recover", "distilled"),
        ({"stage": "join", "decode": {}}, "latent", "distilled"),
        ({"stage": "join", "match": {}}, "match", "distilled"),
        ({"stage": "import"}, "", ""),
    ):
        assert (family_of(meta), kind_of(family)) == (family, kind)


def test_the_set_beside_a_student_says_its_family(tmp_path):
    students = [tmp_path / result(0.5, method=method)[0] for method in ("wmdd-plus", "wmdd", "theirs")]
    for student, meta in zip(students, ({"stage": "select"}, {"stage": "join", "recover": {}}), strict=False):
        hdf5_writer.save(student.parents[3] / "images.h5", {"x": np.zeros(1)}, meta)
    found = {cell.method: family for cell, family in families_beside(students).items()}
    assert found == {"wmdd-plus": "select", "wmdd": "recover"}


# What is kept with a study


def test_rows_come_back_from_what_is_kept_with_a_study():
    students = [
        result(0.25, seed=s, method=m, teacher=t, steps=None if t == "A" else 300)
        for s in (0, 1) for m in ("wmdd-plus", "wmdd") for t in "AB"
    ]  # fmt: skip
    sets = [frames.set_of(frames.cell_of(path)) for path, _ in students]
    families = {cell: "select" if cell.method == "wmdd-plus" else "recover" for cell in sets}
    costs = [(Path(cost_of(path_of("images", cell))), {"stage": of, "seconds": 1}) for cell, of in families.items()]
    content = json.loads(json.dumps(frames.raw(students, families, {}, costs), allow_nan=False))
    assert frames.of_raw(content).equals(rows(students, families).round(4))
    for run in content["runs"]:
        del run["family"]  # as the first studies are
    assert frames.of_raw(content)["family"].tolist() == rows(students, families)["family"].tolist()


def test_seeds_that_have_the_same_images_are_told():
    """A deterministic method, as kmeans-medoid, gives every seed the same set."""
    for digests, sets, shown in (
        ("aaa", 1, "20.0 ± 10.0 (3, 1 set)"),
        ("aba", 2, "20.0 ± 10.0 (3, 2 sets)"),
        ("abc", 3, "20.0 ± 10.0 (3)"),
        (("a", "", "a"), 0, "20.0 ± 10.0 (3)"),  # not known of one
    ):
        table = summary(rows([result(0.1 * (n + 1), seed=n, images=digest) for n, digest in enumerate(digests)]))
        assert [*table["sets"].fillna(0)] == [sets]
        assert shown in [value.text for value in scores.results(table).rows[0]]
        assert shown.replace("±", r"$\pm$") in render(scores.results(table), "latex")


def test_a_column_is_added_in_one_place(monkeypatch):
    joules = Measure("joules", lambda content: content["result"]["joules"], title="joules")
    monkeypatch.setattr(frames, "MEASURES", (*frames.MEASURES, joules))
    found = [result(0.1 * seed, seed=seed) for seed in (1, 2)]
    for _, content in found:
        content["result"]["joules"] = 1500
    table = scores.results(summary(rows(found)))
    for form in "markdown", "csv", "latex", "html":
        assert "joules" in render(table, form)
        assert "1500" in render(table, form)
