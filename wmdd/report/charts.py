"""Charts of the page, as Vega-Lite: each takes a table and returns a chart, or None where there is nothing to show.

Colours are those of Okabe and Ito (2008), which colour-blind people can tell apart; the shape of the points says the same. Text
and lines have no colour of their own: the page gives them one, light or dark.
"""

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from wmdd.report.intervals import interval_text
from wmdd.report.results import over_seeds

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#B8A100", "#8C6BB1"]
MORE_COLOURS = ["#555555", "#000080", "#7F3C00", "#A0A000"]  # of classes on a map
GREYS = ["#8A8A8A", "#5F7A8A", "#B5ADA0", "#55606B", "#A7B8C2", "#6E665C"]  # real images
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left"]
HEIGHT = 280  # px
POINT = 70  # square px
LONG = 18  # letters of a name, of which only two fit side by side
LOSSES = 60  # points of a loss curve at most

ROW = 30  # px of a method in the chart of gains
FAR = 1.5  # times the length of that chart: what is farther from it is not drawn
MUTED = "#7d868f"  # of lines that are no method, on light and dark paper

SPREAD = ("mean:Q", "std:Q", "n:Q", "interval:N")  # of `_banded`
PRICES = {  # what a set takes: title and format of the axis, format of a value
    "seconds": ("seconds to make the set, its teacher included", ",", ",.0f"),
    "bytes": ("bytes of images and soft labels", "~s", "~s"),
}
SPACES = {"barycenters": "W₂² to the features", "latents": "W₂² to the latents"}
ACCURACY = alt.Y("mean:Q", title="top-1 accuracy, %").scale(zero=False)
EPOCH = alt.X("epoch:Q", title="epoch").axis(grid=False)
HIDDEN: dict[str, Any] = {"axis": None}
Chart = alt.LayerChart | alt.FacetChart


class Palette:
    """A colour and a shape for each method, the same in every chart."""

    def __init__(self, methods: Iterable[str], real: Collection[str] = ()) -> None:
        """Take all methods, and which of them have real images: these are grey."""
        self.methods = sorted(methods, key=lambda method: (method in real, method))
        greys, colours = itertools.cycle(GREYS), itertools.cycle(COLOURS)
        self.colours = [next(greys if method in real else colours) for method in self.methods]
        # where colours come again, shapes have moved on by one
        self.shapes = [SHAPES[(place + place // len(SHAPES)) % len(SHAPES)] for place in range(len(self.methods))]

    def encodings(self, methods: set[str], legend: bool = True) -> dict[str, Any]:
        """Return colour and shape by method, with one legend of the methods that are shown, or without."""
        shown = [place for place, method in enumerate(self.methods) if method in methods]
        columns = 3 if max(map(len, methods)) <= LONG else 2
        domain = [self.methods[place] for place in shown]
        below = alt.Legend(
            title=None, orient="bottom", columns=columns, symbolSize=POINT, symbolOpacity=1, labelLimit=180
        )
        by, colours, shapes = below if legend else None, self.colours, self.shapes
        return {
            "color": alt.Color("method:N", legend=by).scale(domain=domain, range=[colours[i] for i in shown]),
            "shape": alt.Shape("method:N", legend=by).scale(domain=domain, range=[shapes[i] for i in shown]),
        }


def _chart(table: pd.DataFrame, description: str, height: int = HEIGHT) -> alt.Chart:
    # ten digits are more than anyone reads, and a fifth of the bytes
    numbers = table.select_dtypes("float").columns
    rounded = table.assign(**{name: table[name].map(lambda value: float(f"{value:.5g}")) for name in numbers})
    return alt.Chart(rounded, width="container", height=height, description=description)


def _lines(
    table: pd.DataFrame,
    x: alt.X,
    y: alt.Y,
    palette: Palette,
    description: str,
    tooltip: Sequence[str] = (),
    band: bool = False,
) -> Chart:
    """Draw a line for each method; points, where a tooltip says something of them; a band from `low` to `high`, if asked."""
    base, by_method = _chart(table, description), palette.encodings(set(table["method"]))
    picked = alt.selection_point(fields=["method"], bind="legend")
    opacity = alt.when(picked).then(alt.value(1)).otherwise(alt.value(0.15))
    marks = [base.mark_line(strokeWidth=2).encode(x, y, color=by_method["color"], opacity=opacity)]
    if band:
        faint = alt.when(picked).then(alt.value(0.16)).otherwise(alt.value(0.02))
        area = base.mark_area().encode(x, alt.Y("low:Q"), y2="high:Q", color=by_method["color"], opacity=faint)
        marks.insert(0, area)
    if tooltip:
        points = base.mark_point(filled=True, size=POINT)
        marks.append(points.encode(x, y, **by_method, opacity=opacity, tooltip=["method:N", *tooltip]))
    return alt.layer(*marks[:-1], marks[-1].add_params(picked))


def _log(name: str, title: str, **axis: Any) -> alt.X:
    return alt.X(f"{name}:Q", title=title).scale(type="log").axis(grid=False, **axis)


def _ipc(table: pd.DataFrame) -> alt.X:
    values = sorted(int(ipc) for ipc in table["ipc"].unique())
    return _log("ipc", "images per class", values=values).scale(type="log", nice=False, padding=20)


def _banded(summary: pd.DataFrame, across: str) -> pd.DataFrame:
    """Return what is drawn of a summary: a band of one standard deviation as low and high, the 95 % interval in words."""
    intervals = [interval_text(low, high) for low, high in zip(summary["low"], summary["high"], strict=True)]
    spread = summary["std"].fillna(0)
    table = summary.assign(low=summary["mean"] - spread, high=summary["mean"] + spread, interval=intervals)
    return table[["method", across, "mean", "std", "n", "low", "high", "interval"]]


def accuracy(summary: pd.DataFrame, palette: Palette) -> Chart | None:
    """Draw accuracy against images per class: mean over seeds and a band of one standard deviation."""
    if summary["ipc"].nunique() < 2:
        return None
    title = "Accuracy against images per class, by method"
    return _lines(_banded(summary, "ipc"), _ipc(summary), ACCURACY, palette, title, ("ipc:Q", *SPREAD), band=True)


def gains(points: pd.DataFrame, references: Mapping[str, float], palette: Palette) -> Chart | None:
    """Draw the gain of each method over random images: seeds as rings, the mean as a point with its 95 % interval.

    Args:
        points: `glance.Answer.points`.
        references: gains that are drawn as lines where they are not too far off to leave the methods room.
        palette: of the methods.
    """
    if points.empty:
        return None
    means, seeds = points[points["seed"].isna()], points[points["seed"].notna()]
    ends = points[["gain", "low", "high"]]
    first, last = min(0.0, ends.min().min()), max(0.0, ends.max().max())
    reach = last + FAR * (last - first)
    lines = {"random": 0.0} | {name: gain for name, gain in references.items() if gain <= reach}
    order = list(means["method"])
    rows = alt.Y("method:N", sort=order, title=None).axis(domain=False, ticks=False, grid=False, labelLimit=150)
    x = alt.X("gain:Q", title="points of top-1 over random real images").axis(tickCount=6).scale(padding=10)
    by_method = palette.encodings(set(order), legend=False)
    height = ROW * len(order)
    frame = pd.DataFrame({"line": lines.keys(), "gain": lines.values()})
    base = _chart(frame, "Lines", height)
    shown = [base.mark_rule(color=MUTED, strokeDash=[4, 3], strokeWidth=1.5).encode(x, tooltip=["line:N", "gain:Q"])]
    for place, name in enumerate(lines):
        words = base.transform_filter(alt.datum.line == name).mark_text(
            align="right" if place else "center", dx=4 if place else 0, dy=-7 - 13 * place, fontSize=11
        )
        shown.append(words.encode(x, alt.YValue(0), text="line:N"))
    title = "Gain over random real images, by method: seeds, mean and 95 % interval"
    of_means, of_seeds = _chart(means, title, height), _chart(seeds, "Seeds", height)
    if (known := means.dropna(subset=["low", "high"])).size:
        bar = _chart(known, "Intervals", height).mark_rule(strokeWidth=3, opacity=0.75)
        shown.append(bar.encode(alt.X("low:Q"), rows, x2="high:Q", color=by_method["color"]))
    rings = of_seeds.mark_point(shape="circle", size=24, filled=False, strokeWidth=1.3, opacity=0.85, yOffset=9)
    dots = of_means.mark_point(filled=True, size=1.5 * POINT, opacity=1)
    rings = rings.encode(x, rows, color=by_method["color"], tooltip=["method:N", "seed:Q", "gain:Q"])
    return alt.layer(*shown, rings, dots.encode(x, rows, **by_method, tooltip=["method:N", "said:N"]))


def confusion() -> alt.Chart:
    """Return the chart of what students take classes for, without data: the page's scripts fill in name, guess and share."""
    axis: dict[str, Any] = {"labelOverlap": True, "labelLimit": 110}
    share = alt.Color("share:Q", title="share of the class, %").scale(scheme="blues", domain=[0, 100])
    cells = alt.Chart(alt.NamedData("mistakes"), width="container", description="What students take classes for")
    return cells.mark_rect().encode(
        alt.X("guess:N", sort=None, title="taken for").axis(**axis),
        alt.Y("name:N", sort=None, title="class").axis(**axis),
        share.legend(orient="bottom", gradientThickness=10),
        tooltip=["name:N", "guess:N", "share:Q"],
    )


def curves(histories: pd.DataFrame, palette: Palette) -> Chart | None:
    """Draw accuracy on the validation set against the epoch, the mean over seeds.

    Args:
        histories: columns method, seed, epoch, top1 (%).
        palette: of the methods.
    """
    table = over_seeds(histories, ["method", "epoch"], "top1")
    if table.empty or table["epoch"].nunique() < 2:
        return None
    title = "Accuracy of students against the epoch, by method"
    return _lines(table, EPOCH, ACCURACY, palette, title, ("epoch:Q", "mean:Q", "std:Q"))


def losses(histories: pd.DataFrame, palette: Palette) -> Chart | None:
    """Draw the training loss of students against the epoch, the mean over seeds; at most `LOSSES` points a line."""
    table = over_seeds(histories, ["method", "epoch"], "loss")
    if table.empty:
        return None
    step = max(1, int(table["epoch"].max() // LOSSES))
    table = table[(table["epoch"] % step == 0) | (table["epoch"] == table["epoch"].max())]
    y = alt.Y("mean:Q", title="training loss")
    return _lines(table, EPOCH, y, palette, "Training loss of students against the epoch")


def price(table: pd.DataFrame, what: str, palette: Palette) -> Chart | None:
    """Draw accuracy against what it takes: a point for each method and number of images per class.

    Args:
        table: columns method, ipc, mean, and `what`.
        what: one of `PRICES`.
        palette: of the methods.
    """
    table = table.loc[table[what] > 0, ["method", "ipc", "mean", what]]
    if table.empty:
        return None
    title, ticks, precise = PRICES[what]
    x, base = _log(what, title, format=ticks, tickCount=5), _chart(table, f"Accuracy against {what}, by method")
    tooltip = ["method:N", "ipc:Q", "mean:Q", alt.Tooltip(f"{what}:Q", format=precise)]
    points = base.mark_point(filled=True, opacity=1, size=1.5 * POINT)
    points = points.encode(x, ACCURACY, **palette.encodings(set(table["method"])), tooltip=tooltip)
    words = base.mark_text(dx=9, align="left", fontSize=10).encode(x, ACCURACY, text="ipc:Q")
    return alt.layer(points, words)


def sensitivity(table: pd.DataFrame, palette: Palette) -> Chart | None:
    """Draw accuracy against the regularisation of the statistics.

    Args:
        table: columns method (of which the others are variants), regularisation, mean, std, n, low, high.
        palette: of the methods.
    """
    table = table[table["regularisation"] > 0]
    if table.empty:
        return None
    x = _log("regularisation", "weight λ of the BatchNorm statistics", tickCount=5)
    title, tooltip = "Accuracy against the weight of the statistics", ("regularisation:Q", *SPREAD)
    return _lines(_banded(table, "regularisation"), x, ACCURACY, palette, title, tooltip, band=True)


def quality(table: pd.DataFrame, what: str, palette: Palette) -> Chart | None:
    """Draw W2^2 of barycenters or latents' atoms against the number of atoms, the mean over classes and seeds.

    Args:
        table: columns method, ipc, cost.
        what: one of `SPACES`.
        palette: of the methods.
    """
    if table.empty or table["ipc"].nunique() < 2:
        return None
    y = alt.Y("cost:Q", title=SPACES[what]).scale(zero=False)
    title = "W2 squared against the number of atoms"
    return _lines(table, _ipc(table), y, palette, title, ("ipc:Q", "cost:Q"))


def decay(table: pd.DataFrame) -> Chart | None:
    """Draw W2 of latents against the number of atoms, both logarithmic, with the line of its fitted rate.

    Args:
        table: columns generator, atoms, distance, fit.
    """
    if table.empty:
        return None
    base, x = _chart(table, "W2 of latents against the number of atoms"), _log("atoms", "atoms K", tickCount=6)
    y = alt.Y("distance:Q", title="W₂").scale(type="log", nice=False)
    colour = alt.Color("generator:N", legend=alt.Legend(title=None, orient="bottom")).scale(range=COLOURS)
    tooltip = ["generator:N", "atoms:Q", "distance:Q"]
    points = base.mark_point(filled=True, size=POINT).encode(x, y, colour, tooltip=tooltip)
    line = base.mark_line(strokeDash=[4, 3]).encode(x, alt.Y("fit:Q").scale(type="log"), colour)
    return alt.layer(line, points)


def embedding(points: pd.DataFrame) -> Chart | None:
    """Draw the map of real and distilled images; a list chooses the method.

    Args:
        points: columns x, y, name (of the class), method ("" for real images).
    """
    real, distilled = points[points["method"] == ""], points[points["method"] != ""]
    if distilled.empty:
        return None
    methods, names = sorted(distilled["method"].unique()), list(dict.fromkeys(points["name"]))
    chosen = alt.param(name="method", value=methods[0], bind=alt.binding_select(options=methods, name="Distilled by "))
    colours = list(itertools.islice(itertools.cycle(COLOURS + MORE_COLOURS), len(names)))
    legend = alt.Legend(title=None, orient="bottom", columns=5, symbolOpacity=1)
    colour = alt.Color("name:N", legend=legend).scale(domain=names, range=colours)
    x, y = alt.X("x:Q", **HIDDEN).scale(zero=False), alt.Y("y:Q", **HIDDEN).scale(zero=False)
    dots = _chart(real, "Map of real images", 420).mark_point(filled=True, size=18, opacity=0.45)
    diamonds = _chart(distilled, "Map of distilled images", 420).mark_point(
        filled=True, size=120, shape="diamond", stroke="#ffffff", strokeWidth=0.8
    )
    behind = dots.encode(x, y, colour, tooltip=["name:N"])
    front = diamonds.encode(x, y, colour, tooltip=["name:N", "method:N"])
    return alt.layer(behind, front.transform_filter("datum.method === method")).add_params(chosen)
