"""What stands in the tables of the page."""

import math

import numpy as np
import pandas as pd
import pytest

from wmdd import report
from wmdd.page import tables

from .material import METHODS, costs, files, material, results


@pytest.fixture(scope="module")
def all_of_it():
    return material()


def column(table, name):
    return [row[table.columns.index(name)] for row in table.rows]


def row(table, **of):
    """The one row with these texts, as a dict."""
    found = [dict(zip(table.columns, cells, strict=True)) for cells in table.rows]
    (one,) = [cells for cells in found if all(cells[name.replace("_", " ")].text == text for name, text in of.items())]
    return one


def test_the_main_table_has_every_cell_of_the_matrix(all_of_it):
    table = tables.main(all_of_it.cells, all_of_it.published)
    assert len(table.rows) == len(METHODS) * 2 * 2
    assert all(len(cells) == len(table.columns) for cells in table.rows)
    wmdd = row(table, method="wmdd", images_per_class="10", student="resnet18")
    assert wmdd["soft labels"].text == "47.1 ± 0.7 (2)"
    assert wmdd["hard labels"].text == "42.1 ± 0.7 (2)"


def test_the_difference_to_random_images_has_welchs_standard_error(all_of_it):
    table = tables.main(all_of_it.cells, all_of_it.published)
    wmdd = row(table, method="wmdd", images_per_class="10", student="resnet18")
    spread = np.std([0, 1], ddof=1)  # percent
    error = math.sqrt(2 * spread**2 / 2)
    assert wmdd["soft − random"].text == f"+12.0 ± {error:.1f}"
    assert row(table, method="random", images_per_class="10", student="resnet18")["soft − random"].text == ""


def test_a_difference_of_single_students_has_no_error():
    table = tables.main(
        report.rows(results())[lambda cells: cells["seed"] == 0], pd.DataFrame(columns=[*tables.SAME, "labels"])
    )
    assert row(table, method="wmdd", images_per_class="10", student="resnet18")["soft − random"].text == "+12.0"


def test_published_numbers_stand_beside_the_same_network_alone(all_of_it):
    table = tables.main(all_of_it.cells, all_of_it.published)
    wmdd = row(table, method="wmdd", images_per_class="10", student="resnet18")["published"]
    assert (wmdd.text, wmdd.quiet) == ("64.8", True)
    assert "Wasserstein" in wmdd.note
    assert wmdd.url.startswith("https://arxiv.org/")
    assert row(table, method="wmdd", images_per_class="10", student="convnet3")["published"].text == ""
    assert row(table, method="random", images_per_class="10", student="resnet18")["published"].text == "", (
        "another protocol"
    )


def test_numbers_are_sorted_as_numbers(all_of_it):
    table = tables.main(all_of_it.cells, all_of_it.published)
    assert {value.order for value in column(table, "images per class")} == {1, 10}
    assert all(
        math.isclose(value.order, float(value.text.split()[0]), abs_tol=0.051) for value in column(table, "soft labels")
    )
    assert row(table, method="random", images_per_class="1", student="resnet18")["published"].order == -math.inf


def test_a_glance_names_the_best_set_and_the_real_images(all_of_it):
    lines = tables.glance(all_of_it.cells)
    assert len(lines) == 2 * 2 * 2
    (soft,) = [line for line in lines if "10 per class, soft labels (resnet18" in line]
    assert soft == (
        "imagenette, 10 per class, soft labels (resnet18, paper): wmdd 47.1 ± 0.7 %; real images: random 35.1 ± 0.7 %, "
        "kmeans-medoid 38.1 ± 0.7 %"
    )


def test_a_glance_says_when_nothing_was_gained(all_of_it):
    cells = all_of_it.cells
    worse = cells.assign(top1=cells["top1"].where(cells["method"] != "kmeans-medoid", 90.0))
    assert all(line.endswith("so distilling gained nothing here") for line in tables.glance(worse))
    assert tables.glance(cells[cells["method"] == "random"]) == []


def test_the_ablation_says_what_a_loss_has(all_of_it):
    table = tables.ablation(all_of_it.cells, all_of_it.published)
    found = [[cell.text for cell in cells] for cells in table.rows if cells[0].text == "10"]
    assert ["10", "wmdd", "no", "yes", "yes", "47.1 ± 0.7 (2)", "64.8"] in found
    assert ["10", "sre2l", "yes", "no", "no", "30.1 ± 0.7 (2)", "54.2"] in found
    assert tables.ablation(all_of_it.cells[all_of_it.cells["method"] != "sre2l"], all_of_it.published) is None


def test_other_architectures_have_a_column_each(all_of_it):
    table = tables.architectures(all_of_it.cells, all_of_it.published)
    assert table.columns[-2:] == ["convnet3", "resnet18"]
    assert row(table, method="wmdd", images_per_class="10")["resnet18"].note == "published: 64.8"
    assert tables.architectures(all_of_it.cells[all_of_it.cells["student"] == "resnet18"], all_of_it.published) is None


def test_all_published_numbers_of_the_dataset_and_of_no_other(all_of_it):
    table = tables.published(all_of_it.published, {"imagenette"})
    assert {value.text for value in column(table, "dataset")} == {"imagenette"}
    assert {"mtt", "wmdd", "random"} <= {value.text for value in column(table, "method")}
    assert tables.published(all_of_it.published, {"digits"}) is None


def test_the_cost_counts_gpu_hours_of_gpus_alone():
    table = tables.cost(costs(report.rows(results())))
    student = row(table, method="wmdd", images_per_class="10", stage="student")
    assert (student["jobs"].text, student["seconds"].text, student["GPU-hours"].text) == (
        "2",
        "140",
        f"{140 / 3600:.3f}",
    )
    assert student["on disk"].text == "140 kB"
    recover = row(table, method="wmdd", images_per_class="10", stage="recover")
    assert (recover["GPU-hours"].text, recover["peak GPU memory, MB"].text) == ("", "")


def test_settings_in_which_methods_differ(all_of_it):
    table = tables.differing(all_of_it.settings)
    assert [[cell.text for cell in cells] for cells in table.rows] == [["recover: regularisation", "", "0.01", "10.0"]]
    assert tables.differing({"wmdd": {"recover: lr": 0.1}}) is None


def test_more_than_one_version_is_seen():
    found = tables.machines([meta for _, meta in files()], costs(report.rows(results())))
    assert found["torch"] == ["2.12", "2.13.0"]
    assert found["machine"] == ["A processor"]
    assert found["device"] == ["cpu, float32"]
    assert tables.machines([], pd.DataFrame({"seconds": [1]}))["machine"] == ["not recorded"]


def test_empty_columns_are_left_out():
    table = tables.plain("x", pd.DataFrame({"method": ["a", "b"], "cost": [1.23456, math.nan], "gap": [math.nan] * 2}))
    assert table.columns == ["method", "cost"]
    assert [cell.text for cell in table.rows[0]] == ["a", "1.235"]
    assert [cell.text for cell in table.rows[1]] == ["b", ""]
    assert tables.plain("x", pd.DataFrame()) is None
