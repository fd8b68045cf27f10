"""The other tables: published numbers, cost, settings, machines; and HTML."""

import math

import pandas as pd

from wmdd.report import published, tables
from wmdd.report.render import render

from .page.material import ROOT, costs, files


def test_all_published_numbers_of_the_dataset_and_of_no_other():
    numbers = published.read(ROOT / "config/published.yaml")
    table = tables.published(numbers, {"imagenette"}).text
    assert set(table["dataset"]) == {"imagenette"}
    assert {"mtt", "wmdd", "random"} <= set(table["method"])
    assert tables.published(numbers, {"digits"}) is None


def test_the_cost_counts_gpu_hours_of_gpus_alone():
    table = tables.cost(costs()).text
    table = table[(table["method"] == "wmdd") & (table["images per class"] == "10")].set_index("stage")
    shown = table.loc["student", ["jobs", "seconds", "GPU-hours", "on disk"]]
    assert shown.tolist() == ["2", "140", f"{140 / 3600:.3f}", "140 kB"]
    assert table.loc["recover", ["GPU-hours", "peak GPU memory, MB"]].tolist() == ["", ""]


def test_settings_in_which_methods_differ(all_of_it):
    table = tables.differing(all_of_it.settings)
    assert [[cell.text for cell in cells] for cells in table.rows] == [["recover: regularisation", "", "0.01", "10.0"]]
    assert tables.differing({"wmdd": {"recover: lr": 0.1}}) is None
    assert len(tables.differing({"a": {"weights": ""}, "b": {"weights": "w"}, "c": {}}).rows) == 1


def test_more_than_one_version_is_seen():
    origins = tables.machines([meta for _, meta in files()], costs())
    assert origins["torch"] == ["2.12", "2.13.0"]
    assert origins["machine"] == ["A processor"]
    assert origins["device"] == ["cpu, float32"]
    assert tables.machines([], pd.DataFrame({"seconds": [1]}))["machine"] == ["not recorded"]


def test_empty_columns_are_left_out():
    columns = {"method": ["a", "b"], "cost": [1.23456, math.nan], "gap": [math.nan] * 2}
    table = tables.numbers("x", pd.DataFrame(columns))
    assert table.text.to_dict("list") == {"method": ["a", "b"], "cost": ["1.235", ""]}
    assert tables.numbers("x", pd.DataFrame()) is None


def test_negative_numbers_have_one_sign_in_text_another_in_latex_and_csv_has_its_own():
    table = tables.numbers("x", pd.DataFrame({"gap": [-1.5, -1e-7]}))
    assert table.text["gap"].tolist() == ["−1.5", "−1e-07"]
    assert "$-$1.5" in render(table, "latex")
    assert "−" not in render(table._replace(numbers=pd.DataFrame({"gap": [-1.5]})), "csv")


def test_html_escapes_what_names_say():
    html = str(render(tables.numbers("x", pd.DataFrame({"class": ['<b>&"'], "cost": [1.5]})), "html"))
    assert "<b>" not in html
    assert "&lt;b&gt;&amp;" in html
    assert 'data-order="1.5"' in html
