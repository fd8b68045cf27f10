"""Charts: valid Vega-Lite of what they are given, nothing where there is nothing."""

import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from wmdd.report import charts
from wmdd.report.charts import GREYS, SHAPES, Palette
from wmdd.report.page import chart_sections as figures
from wmdd.report.results import rows, summary

from .material import METHODS, material, results

ROOT = str(Path(__file__).parents[3])


@pytest.fixture(scope="module")
def all_of_it():
    return material()


@pytest.fixture(scope="module")
def sections(all_of_it):
    return {section.title: section for section in figures.sections(all_of_it)}


def values(chart):
    """All rows of data of a chart."""
    return [row for rows in chart.to_dict()["datasets"].values() for row in rows]


def test_every_section_is_there(sections):
    assert list(sections) == [
        "Accuracy against images per class", "What it takes", "How students learn", "Weight of the statistics",
        "Where the images are", "W₂ against the number of atoms", "What was made from what",
    ]  # fmt: skip


def test_names_are_those_of_one_chart_each(sections):
    names = [figure.name for section in sections.values() for figure in section.figures]
    assert len(names) == len(set(names)) > 20


def test_every_chart_is_drawn_without_a_browser(sections):
    import vl_convert

    for section in sections.values():
        for figure in section.figures[:2]:
            assert "<svg" in vl_convert.vegalite_to_svg(figure.chart.to_dict()), figure.name


def test_a_title_names_what_tells_charts_apart(sections):
    titles = {figure.title for figure in sections["How students learn"].figures}
    assert "imagenette, resnet18, paper, soft labels, 10 per class" in titles
    assert len(titles) == 2 * 2 * 2


def test_nothing_to_draw_is_no_section(all_of_it):
    bare = all_of_it.cells[all_of_it.cells["ipc"] == 10]
    plain = material()
    plain.cells, plain.maps, plain.regularisations = bare, {}, {}
    titles = [section.title for section in figures.sections(plain)]
    assert "Accuracy against images per class" not in titles
    assert not {"Where the images are", "Weight of the statistics"} & set(titles)


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


def test_stages_may_go_in_a_circle():
    """As where recover begins with another method's images."""
    edges = {("decode", "images"): 9, ("images", "recover"): 1, ("recover", "images"): 5, ("images", "student"): 9}
    rows = values(charts.stages({"images": 3}, edges))
    assert {(row["from"], row["to"]) for row in rows if "from" in row} == set(edges)
    across = {row["stage"]: row["x"] for row in rows if "stage" in row}
    assert across["recover"] < across["images"] < across["student"], "the rarest edge goes back"


def test_stages_stand_behind_what_they_use():
    """Each in the first layer that allows it; the layers share a middle; a stage that uses itself, and two circles."""
    edges = {("a", "b"): 2, ("a", "c"): 2, ("b", "d"): 2, ("a", "d"): 2, ("d", "d"): 1, ("d", "b"): 1, ("c", "a"): 1}
    rows = [row for row in values(charts.stages({}, edges)) if "stage" in row]
    assert {row["stage"]: row["x"] for row in rows} == {"a": 0, "b": 1, "c": 1, "d": 2}
    places = {row["stage"]: row["y"] for row in rows}
    assert places["a"] == places["d"] == (places["b"] + places["c"]) / 2
    assert abs(places["b"] - places["c"]) == 1


def test_stages_lie_the_same_in_every_process():
    edges = {(f"s{i}", f"s{i + j}"): 1 for i in range(20) for j in (1, 2, 5)}
    source = f"from wmdd.report.lineage import layers; print(layers({edges}))"
    layers = {
        subprocess.run(
            [sys.executable, "-c", source],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ROOT},
            check=True,
            capture_output=True,
        ).stdout
        for seed in "12"
    }
    assert len(layers) == 1


def test_nothing_made_of_nothing_is_no_chart():
    assert charts.stages({"data": 1}, {}) is None


def test_a_map_without_distilled_images_is_none():
    assert charts.embedding(pd.DataFrame({"x": [0.0], "y": [0.0], "name": ["a"], "method": [""]})) is None


def test_numbers_are_short():
    palette = Palette(["a"])
    table = pd.DataFrame({"method": ["a"] * 2, "ipc": [1, 10], "cost": [1 / 3, 2 / 3]})
    assert {row["cost"] for row in values(charts.quality(table, "latents", palette))} == {0.33333, 0.66667}
