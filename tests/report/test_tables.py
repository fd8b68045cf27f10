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


def test_money_is_hours_of_gpus_times_their_price():
    price = tables.Price(2.0, "EUR")
    shown = tables.cost(costs(), price).text
    student = shown[(shown["stage"] == "student") & (shown["method"] == "wmdd") & (shown["images per class"] == "10")]
    assert student["EUR"].tolist() == [f"{2 * 140 / 3600:.2f}"]
    assert set(shown.loc[shown["stage"] == "recover", "EUR"]) == {""}, "on CPUs"
    assert "EUR" not in tables.cost(costs()).columns
    on_gpu, everything = (
        costs().loc[rows, "seconds"].sum() / 3600 for rows in (costs()["stage"] == "student", slice(None))
    )
    said = tables.spent(costs(), price)
    assert f"{everything - on_gpu:.2f} hours on CPUs and {on_gpu:.2f} GPU-hours" in said
    assert f"{2 * on_gpu:.2f} EUR at 2 EUR an hour" in said
    assert "price_per_gpu_hour" in tables.spent(costs().drop(columns="peak_gpu_memory_mb"), tables.UNPRICED)


def test_what_was_made_from_what_is_in_the_order_of_the_workflow():
    edges = {("teacher", "features"): 1, ("data", "features"): 1, ("data", "teacher"): 1}
    table = tables.chain({"features": 1, "data": 1, "teacher": 2}, edges)
    assert table.text.to_numpy().tolist() == [
        ["data", "1", ""],
        ["teacher", "2", "data"],
        ["features", "1", "data, teacher"],
    ]
    assert tables.chain({"data": 1}, {}) is None


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
