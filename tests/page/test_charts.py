"""Charts: valid Vega-Lite of what they are given, nothing where there is nothing."""

import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from wmdd import charts, report
from wmdd.charts import CONTROLS, SHAPES, Palette
from wmdd.page import figures

from .material import METHODS, costs, material, results

ROOT = str(Path(__file__).parents[2])


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
    assert "imagenette, resnet18, paper, soft labels, 10 per class".replace("paper, ", "") in titles
    assert len(titles) == 2 * 2 * 2


def test_nothing_to_draw_is_no_section(all_of_it):
    bare = all_of_it.cells[all_of_it.cells["ipc"] == 10]
    plain = material()
    plain.cells, plain.maps, plain.regularisations = bare, {}, {}
    titles = [section.title for section in figures.sections(plain)]
    assert "Accuracy against images per class" not in titles
    assert not {"Where the images are", "Weight of the statistics"} & set(titles)


def test_the_band_is_one_standard_deviation():
    summary = report.summary(report.rows(results()))
    chosen = summary[(summary["labels"] == "soft") & (summary["student"] == "resnet18")]
    for row in values(charts.accuracy(chosen, Palette(list(METHODS)))):
        assert (row["high"] - row["low"]) / 2 == pytest.approx(row["std"], abs=1e-3)


def test_a_method_has_one_colour_and_shape_in_every_chart():
    names = [f"m{number}" for number in range(20)]
    palette = Palette([*names, "random"])
    pairs = list(zip(palette.colours, palette.shapes, strict=True))
    assert len(set(pairs)) == len(pairs), "two methods look the same"
    assert palette.colours[palette.methods.index("random")] == CONTROLS["random"]
    part = palette.encodings({"m3", "random"})["color"].to_dict()["scale"]
    assert part["domain"] == ["m3", "random"]
    assert part["range"][0] == palette.colours[palette.methods.index("m3")]
    assert len(SHAPES) == len(set(SHAPES))


def test_the_seconds_of_a_set_are_its_own_and_what_all_share():
    cells = report.rows(results())
    found = figures.price(costs(cells), report.summary(cells))
    of = found.set_index(["method", "ipc", "labels", "student"])
    shared = 5 + 100 + 10
    assert of.loc[("random", 10, "soft", "resnet18"), "seconds"] == shared + 70
    assert of.loc[("wmdd", 10, "soft", "resnet18"), "seconds"] == shared + 3 * 70  # barycenter, recover, images
    assert of.loc[("ddoq", 1, "soft", "resnet18"), "seconds"] == shared + 2 * 50 + 300 + 3 * 7
    assert of.loc[("wmdd", 10, "soft", "resnet18"), "bytes"] == 70_000 + 70_000, "images and labels"
    assert of.loc[("wmdd", 10, "hard", "resnet18"), "bytes"] == 70_000


def test_a_method_pays_for_the_experts_that_it_follows_and_for_no_others():
    place = "results/imagenette/expert/{}/seed{}/trajectory.h5"
    names = [("small", 0), ("small", 1), ("large", 0)]
    files = [(place.format(*of), {"stage": "expert", "digest": f"{of}", "inputs": {"data": "d"}}) for of in names]
    for method, inputs in ("wmdd", {"expert0": "('small', 0)", "expert1": "('small', 1)"}), ("sre2l", {"data": "d"}):
        path = f"results/imagenette/resnet18/{method}/ipc10/seed0/match/classes0-9.h5"
        files.append((path, {"stage": "match", "digest": method, "inputs": inputs}))
    cells = report.rows(results())
    before = costs(cells)
    rows = [("imagenette", name, "", str(seed), "expert", 1000.0 * (1 + seed)) for name, seed in names]
    more = pd.DataFrame(rows, columns=["dataset", "method", "ipc", "seed", "stage", "seconds"])
    with_them, without = (
        figures.price(table, report.summary(cells), figures.experts(files)).set_index("method")["seconds"]
        for table in (pd.concat([before, more]), before)
    )
    paid = (with_them - without).groupby("method").agg(["min", "max"])
    assert paid.loc["wmdd"].tolist() == [3000, 3000]
    assert (paid.drop("wmdd") == 0).all().all()


def test_a_sweep_joins_what_differs_in_the_weight_alone(all_of_it):
    table = figures.sweeps(all_of_it.regularisations, report.summary(all_of_it.cells))
    assert set(table["method"]) == {"wmdd"}
    assert set(table["regularisation"]) == {1.0, 10.0}


def test_the_line_of_a_decay_has_its_slope(all_of_it):
    rows = figures._falling(all_of_it.decays)
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
    source = f"from wmdd.charts import _layers; print(_layers({edges}))"
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
