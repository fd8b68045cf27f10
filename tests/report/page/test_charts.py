"""Charts: valid Vega-Lite of what they are given, nothing where there is nothing."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import vl_convert

from wmdd.report import charts
from wmdd.report.charts import GREYS, SHAPES, Palette
from wmdd.report.glance import POINTS
from wmdd.report.page import chart_sections as figures
from wmdd.report.results import rows, summary

from .material import METHODS, results


@pytest.fixture(scope="module")
def sections(all_of_it):
    return {section.title: section for section in figures.sections(all_of_it)}


def values(chart):
    """All rows of data of a chart."""
    return [row for rows in chart.to_dict()["datasets"].values() for row in rows]


def test_every_section_is_there_and_is_drawn_without_a_browser(sections):
    assert list(sections) == [
        "Accuracy against images per class", "What it takes", "How students learn", "Weight of the statistics",
        "Where the images are", "W₂ against the number of atoms",
    ]  # fmt: skip
    for section in sections.values():
        for figure in section.figures[:2]:
            assert "<svg" in vl_convert.vegalite_to_svg(figure.chart.to_dict()), figure.name


def test_names_and_titles_tell_charts_apart(sections):
    names = [figure.name for section in sections.values() for figure in section.figures]
    assert len(names) == len(set(names)) > 20
    titles = {figure.title for figure in sections["How students learn"].figures}
    assert "imagenette, resnet18, paper, soft labels, 10 per class" in titles
    assert len(titles) == 2 * 2 * 2


def test_nothing_to_draw_is_no_section(all_of_it):
    bare = all_of_it.cells[all_of_it.cells["ipc"] == 10]
    plain = replace(all_of_it, cells=bare, maps={}, regularisations={})
    titles = [section.title for section in figures.sections(plain)]
    assert "Accuracy against images per class" not in titles
    assert not {"Where the images are", "Weight of the statistics"} & set(titles)
    assert charts.gains(pd.DataFrame(columns=POINTS), {}, Palette([])) is None
    assert charts.embedding(pd.DataFrame({"x": [0.0], "y": [0.0], "name": ["a"], "method": [""]})) is None


def test_the_chart_of_gains_has_seeds_means_intervals_and_lines_that_are_not_too_far(all_of_it):
    answer, figure = figures.answers(all_of_it)[0]
    rows = values(figure.chart)
    means = {row["method"]: row for row in rows if "method" in row and row["seed"] is None}
    assert means["wmdd"]["gain"] == pytest.approx(12)
    assert means["wmdd"]["said"] == "+12.0 (2)"
    assert {row["seed"] for row in rows if row.get("method") == "wmdd"} == {None, 0, 1}
    lines = [row["line"] for row in rows if "line" in row]
    assert lines == ["random"], "the teacher is 59.5 points away, the methods fill 17"
    near = charts.gains(answer.points, {"whole set": 20.0}, Palette(METHODS))
    assert {row.get("line"): row["gain"] for row in values(near) if "line" in row} == {"random": 0, "whole set": 20}
    assert "<svg" in vl_convert.vegalite_to_svg(near.to_dict())


def test_the_band_is_one_standard_deviation_over_seeds_and_the_interval_is_said():
    table = summary(rows(results()))
    chosen = table[(table["labels"] == "soft") & (table["student"] == "resnet18")]
    for row in values(charts.accuracy(chosen, Palette(list(METHODS)))):
        assert (row["high"] - row["low"]) / 2 == pytest.approx(row["std"], abs=1e-3)
        low, high = map(float, row["interval"].split(" to "))
        assert high - low == pytest.approx(2 * 12.7062 * row["std"] / 2**0.5, abs=0.11)


def test_a_learning_curve_averages_the_students_of_a_seed_first():
    lines = [(seed, epoch, 10.0 * epoch + 20 * seed + run) for seed in (0, 1) for epoch in (1, 2) for run in (-1, 0, 1)]
    histories = pd.DataFrame(lines, columns=["seed", "epoch", "top1"]).assign(method="wmdd")
    (first, second) = values(charts.curves(histories, Palette(["wmdd"])))
    assert (first["mean"], second["mean"]) == (20, 30)
    assert (first["n"], first["std"]) == (2, pytest.approx(14.142, abs=1e-3))


def test_a_method_has_one_colour_and_shape_in_every_chart():
    names = [f"m{number}" for number in range(20)]
    palette = Palette([*names, "random", "wmdd-plus"], {"random", "wmdd-plus"})
    pairs = list(zip(palette.colours, palette.shapes, strict=True))
    assert len(set(pairs)) == len(pairs), "two methods look the same"
    assert [palette.colours[palette.methods.index(real)] for real in ("random", "wmdd-plus")] == GREYS[:2]
    assert not {*palette.colours[:-2]} & {*GREYS}
    part = palette.encodings({"m3", "random"})["color"].to_dict()["scale"]
    assert part["domain"] == ["m3", "random"]
    assert part["range"][0] == palette.colours[palette.methods.index("m3")]
    assert len(SHAPES) == len(set(SHAPES))


def test_a_sweep_joins_what_differs_in_the_weight_alone(all_of_it):
    table = figures.sweeps(all_of_it.regularisations, all_of_it.summary)
    assert set(table["method"]) == {"wmdd"}
    assert set(table["regularisation"]) == {1.0, 10.0}


def test_the_line_of_a_decay_has_its_slope(all_of_it):
    rows = figures.with_fit(all_of_it.decays)
    slope = math.log(rows["fit"].iloc[-1] / rows["fit"].iloc[0]) / math.log(8)
    assert slope == pytest.approx(-1 / 12)
