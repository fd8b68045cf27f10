"""What stands in the tables of accuracy."""

import math

import numpy as np
import pytest
from scipy.stats import t as student_t

from tests.report.test_results import result
from wmdd.report import accuracy_tables as scores
from wmdd.report import published
from wmdd.report.compare import Side, render
from wmdd.report.render import render as rendered
from wmdd.report.results import rows, summary
from wmdd.workflow.layout import cell_of

from .page.material import METHODS, ROOT, cells_of


def row(table, **of):
    """The one row with these texts, as a dict."""
    found = [dict(zip(table.columns, cells, strict=True)) for cells in table.rows]
    (one,) = [cells for cells in found if all(cells[name.replace("_", " ")].text == text for name, text in of.items())]
    return one


WMDD = {"method": "wmdd", "images per class": "10", "student": "resnet18"}


def test_the_main_table_has_every_cell_of_the_matrix(all_of_it):
    table = scores.results(all_of_it.summary)
    assert len(table.rows) == len(METHODS) * 2 * 2 * 2
    assert all(len(cells) == len(table.columns) for cells in table.rows)
    assert row(table, **WMDD, labels="soft")["top-1, %"].text == "47.1 ± 0.7 (2)"
    hard = row(table, **WMDD, labels="hard")
    assert (hard["top-1, %"].text, hard["protocol"].text) == ("42.1 ± 0.7 (2)", "paper-hard")
    assert table.shared == "In all rows: dataset imagenette, teacher resnet18."
    assert table.columns[:3] == ["images per class", "method", "top-1, %"], "what a phone shows"
    kinds = table.text.set_index("method")["images"]
    assert set(kinds[kinds == "real"].index) == {"random", "kmeans-medoid"}
    assert {cells[0].order for cells in table.rows} == {1, 10}, "sorted as numbers"
    accuracies = [cells[table.columns.index("top-1, %")] for cells in table.rows]
    assert all(value.order == pytest.approx(float(value.text.split()[0]), abs=0.051) for value in accuracies)


def test_the_scores_of_seeds_are_there_on_demand():
    students = [result(0.5 + seed / 10 + run / 100, seed=seed, run=run) for seed in (0, 1) for run in (0, 2)]
    table = scores.results(summary(rows(students)), rows(students))
    assert table.text["top-1 by seed, %"].tolist() == ["0: 51.0, 1: 61.0"]
    assert table.on_demand == ("top-1 by seed, %",)
    assert 'class="on-demand"' in rendered(table, "html")
    assert "top-1 by seed, %" not in scores.results(summary(rows(students))).columns


def test_the_difference_to_random_images_is_paired_and_has_an_interval():
    cells = cells_of([result(top1, method=method, seed=seed, ipc=10)
                      for method, values in (("random", (0.30, 0.33, 0.36)), ("wmdd", (0.40, 0.45, 0.47)))
                      for seed, top1 in enumerate(values)])  # fmt: skip
    gains = row(scores.results(summary(cells)), method="wmdd")["− random"]
    half = student_t.ppf(0.975, 2) * np.std([10, 12, 11], ddof=1) / math.sqrt(3)
    assert gains.text == f"+11.0 ({11 - half:+.1f} to {11 + half:+.1f}; 3)"
    assert (gains.order, gains.note) == (pytest.approx(11), "better")
    assert row(scores.results(summary(cells)), method="random")["− random"].text == ""


def test_two_seeds_of_four_students_are_the_same_in_table_page_and_compare(tmp_path):
    from wmdd.artifacts import atomic_files

    found = [result(0.5 + seed / 10 + run / 100, seed=seed, run=run) for seed in (0, 1) for run in range(4)]
    for path, content in found:
        cell = cell_of(path)
        atomic_files.write_json(tmp_path / path, content | {"identity": {"seed": cell.seed, "run": cell.run}})
    (shown,) = scores.results(summary(rows(found))).text["top-1, %"]
    (wide,) = scores.across("x", summary(rows(found)), ["dataset", "ipc"]).text["digits, 10 per class"]
    side = Side.read(tmp_path)
    assert shown == wide == "56.5 ± 7.1 (2)"
    assert shown in render([side, side])


def test_published_numbers_stand_beside_the_same_network_and_labels_alone(all_of_it):
    table = scores.results(all_of_it.summary)
    wmdd = row(table, **WMDD, labels="soft")["published"]
    assert (wmdd.text, wmdd.quiet) == ("64.8", True)
    assert "Wasserstein" in wmdd.note
    assert wmdd.url.startswith("https://arxiv.org/")
    assert row(table, **WMDD, labels="hard")["published"].text == ""
    assert row(table, **WMDD | {"student": "convnet3"}, labels="soft")["published"].text == ""
    random = row(table, **WMDD | {"method": "random"}, labels="soft")["published"]
    assert (random.text, random.order) == ("", -math.inf), "another protocol"


# Steps

FORMS = ("markdown", "csv", "latex", "html")


def test_steps_that_differ_are_a_column_and_others_are_said_once():
    students = [result(0.5, protocol=p, steps=s) for p, s in (("paper", 3000), ("long", 15_600))]
    table = scores.results(summary(rows(students)))
    assert [row(table, protocol=p)["steps"].text for p in ("paper", "long")] == ["3,000", "15,600"]
    assert row(table, protocol="long")["images seen"].text == "1,560,000"
    assert scores.COUNTED in table.caption
    alike = scores.results(summary(rows([result(0.5, method=m, steps=3000) for m in ("a", "b")])))
    assert alike.shared.endswith("steps 3,000, images seen 300,000.")
    for form in FORMS:
        assert "15,600" in rendered(table, form) or "15600" in rendered(table, form)
        assert "3,000" in rendered(alike, form) or "3000" in rendered(alike, form)


def test_a_row_of_several_columns_has_the_steps_of_each():
    students = [
        result(0.5, ipc=i, protocol=p, steps=s * i) for p, s in (("paper", 300), ("long", 900)) for i in (1, 10)
    ]
    students += [result(0.5, ipc=i, protocol="same", steps=7) for i in (1, 10)]
    table = scores.across("x", summary(rows(students)), ["dataset", "ipc"])
    texts = {p: row(table, protocol=p)["steps"].text for p in ("paper", "long", "same")}
    assert texts == {"paper": "300 / 3,000", "long": "900 / 9,000", "same": "7"}


def test_results_of_earlier_versions_still_make_a_table():
    old, new = result(0.5, method="old"), result(0.5, method="new", steps=300)
    table = scores.results(summary(rows([old, new])))
    assert [row(table, method=m)["steps"].text for m in ("old", "new")] == ["", "300"]
    for made in scores.results, lambda frame: scores.across("x", frame, ["dataset", "ipc"]):
        alone = made(summary(rows([old])))
        assert "steps" not in alone.columns
        assert scores.COUNTED not in alone.caption


# A column for each dataset or student


def test_the_ablation_says_what_a_loss_has(all_of_it):
    table = scores.ablation(all_of_it.summary)
    wmdd = row(table, **WMDD)
    assert [wmdd[name].text for name in (*scores.LOSS, "imagenette")] == ["no", "yes", "yes", "47.1 ± 0.7 (2)"]
    sre2l = row(table, **WMDD | {"method": "sre2l"})
    assert [sre2l[name].text for name in (*scores.LOSS, "imagenette")] == ["yes", "no", "no", "30.1 ± 0.7 (2)"]
    assert row(table, **WMDD | {"method": "wmdd (published)"})["imagenette"].text == "64.8"
    assert scores.ablation(all_of_it.summary[all_of_it.summary["method"] != "sre2l"]) is None


def test_other_architectures_have_a_column_each(all_of_it):
    table = scores.architectures(all_of_it.summary)
    assert table.columns[-2:] == ["convnet3", "resnet18"]
    assert row(table, method="wmdd (published)", images_per_class="10")["resnet18"].text == "64.8"
    one = all_of_it.summary[all_of_it.summary["student"] == "resnet18"]
    assert scores.architectures(one) is None


def test_published_numbers_stand_once_below_the_rows_of_two_teachers():
    students = [result(x, teacher=t, dataset="imagenette", student="resnet18") for t, x in (("A", 0.1), ("B", 0.2))]
    numbers = published.read(ROOT / "config/published.yaml")
    table = scores.across("x", published.beside(summary(rows(students)), numbers), ["dataset", "ipc"])
    shown = table.text.set_index(["method", "teacher"])["imagenette, 10 per class"].to_dict()
    assert shown == {("wmdd", "A"): "10.0 (1)", ("wmdd", "B"): "20.0 (1)", ("wmdd (published)", ""): "64.8"}
