"""Charts of a report, as Vega-Lite: each takes a table and returns a chart, or None where there is nothing to show.

Colours are those of Okabe and Ito (2008), which colour-blind people can tell apart; the shape of the points says the same. Text
and lines have no colour of their own: the page gives them one, light or dark.
"""

import itertools
from collections.abc import Collection, Iterable
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pandas as pd

from wmdd.report.intervals import interval_text
from wmdd.report.results import over_seeds

if TYPE_CHECKING:
    import altair as alt

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#B8A100", "#8C6BB1"]
GREYS = ["#8A8A8A", "#5F7A8A", "#B5ADA0", "#55606B", "#A7B8C2", "#6E665C"]  # real images
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left"]
HEIGHT = 280  # px
POINT = 70  # square px
LONG = 18  # letters of a name, of which only two fit side by side


class Palette:
    """A colour and a shape for each method, the same in every chart."""

    def __init__(self, methods: Iterable[str], real: Collection[str] = ()) -> None:
        """Take all methods, and which of them have real images: these are grey."""
        self.methods = sorted(methods, key=lambda method: (method in real, method))
        greys, colours = itertools.cycle(GREYS), itertools.cycle(COLOURS)
        self.colours = [next(greys if method in real else colours) for method in self.methods]
        # where colours come again, shapes have moved on by one
        self.shapes = [SHAPES[(place + place // len(SHAPES)) % len(SHAPES)] for place in range(len(self.methods))]

    def encodings(self, methods: set[str]) -> dict[str, Any]:
        """Return colour and shape by method, with one legend of the methods that are shown."""
        import altair as alt

        shown = [place for place, method in enumerate(self.methods) if method in methods]
        columns = 3 if max(map(len, methods)) <= LONG else 2
        domain = [self.methods[place] for place in shown]
        legend = alt.Legend(
            title=None, orient="bottom", columns=columns, symbolSize=POINT, symbolOpacity=1, labelLimit=180
        )
        return {
            "color": alt.Color("method:N", legend=legend).scale(domain=domain, range=[self.colours[i] for i in shown]),
            "shape": alt.Shape("method:N", legend=legend).scale(domain=domain, range=[self.shapes[i] for i in shown]),
        }


def _chart(table: pd.DataFrame, description: str, height: int = HEIGHT) -> "alt.Chart":
    import altair as alt

    # ten digits are more than anyone reads, and a fifth of the bytes
    numbers = table.select_dtypes("float").columns
    rounded = table.assign(**{name: table[name].map(lambda value: float(f"{value:.5g}")) for name in numbers})
    return alt.Chart(rounded, width="container", height=height, description=description)


def _lines(
    table: pd.DataFrame,
    x: Any,
    y: Any,
    palette: Palette,
    description: str,
    band: bool = False,
    tooltip: Any = (),
    dots: bool = True,
) -> Any:
    """Draw a line for each method, with points unless there are too many, and a band from `low` to `high` around it."""
    import altair as alt

    base = _chart(table, description)
    of = palette.encodings(set(table["method"]))
    picked = alt.selection_point(fields=["method"], bind="legend")
    opacity = alt.when(picked).then(alt.value(1)).otherwise(alt.value(0.15))
    layers = [base.mark_line(strokeWidth=2).encode(x, y, color=of["color"], opacity=opacity)]
    if band:
        faint = alt.when(picked).then(alt.value(0.16)).otherwise(alt.value(0.02))
        layers.insert(0, base.mark_area().encode(x, alt.Y("low:Q"), y2="high:Q", color=of["color"], opacity=faint))
    if dots:
        layers.append(
            base.mark_point(filled=True, size=POINT).encode(x, y, **of, opacity=opacity, tooltip=list(tooltip))
        )
    return alt.layer(*layers[:-1], layers[-1].add_params(picked))


def _ipc(table: pd.DataFrame) -> "alt.X":
    import altair as alt

    values = sorted(int(ipc) for ipc in table["ipc"].unique())
    return (
        alt.X("ipc:Q", title="images per class")
        .scale(type="log", nice=False, padding=20)
        .axis(values=values, grid=False)
    )


def _accuracy(name: str = "mean") -> "alt.Y":
    import altair as alt

    return alt.Y(f"{name}:Q", title="top-1 accuracy, %").scale(zero=False)


SPREAD = ("mean:Q", "std:Q", "n:Q", "interval:N")


def _banded(summary: pd.DataFrame, across: str) -> pd.DataFrame:
    """Return what is drawn of a summary: a band of one standard deviation as low and high, the 95 % interval in words."""
    intervals = [interval_text(low, high) for low, high in zip(summary["low"], summary["high"], strict=True)]
    spread = summary["std"].fillna(0)
    table = summary.assign(low=summary["mean"] - spread, high=summary["mean"] + spread, interval=intervals)
    return table[["method", across, "mean", "std", "n", "low", "high", "interval"]]


def accuracy(summary: pd.DataFrame, palette: Palette) -> Any | None:
    """Draw accuracy against images per class: mean over seeds and a band of one standard deviation."""
    if summary["ipc"].nunique() < 2:
        return None
    tooltip = ["method:N", "ipc:Q", *SPREAD]
    return _lines(
        _banded(summary, "ipc"),
        _ipc(summary),
        _accuracy(),
        palette,
        "Accuracy against images per class, by method",
        band=True,
        tooltip=tooltip,
    )


def curves(histories: pd.DataFrame, palette: Palette) -> Any | None:
    """Draw accuracy on the validation set against the epoch, the mean over seeds.

    Args:
        histories: columns method, seed, epoch, top1 (%).
        palette: of the methods.
    """
    import altair as alt

    table = over_seeds(histories, ["method", "epoch"], "top1")
    if table.empty or table["epoch"].nunique() < 2:
        return None
    x = alt.X("epoch:Q", title="epoch").axis(grid=False)
    tooltip = ["method:N", "epoch:Q", "mean:Q", "std:Q"]
    return _lines(table, x, _accuracy(), palette, "Accuracy of students against the epoch, by method", tooltip=tooltip)


def losses(histories: pd.DataFrame, palette: Palette) -> Any | None:
    """Draw the training loss of students against the epoch, the mean over seeds; at most 60 points a line."""
    import altair as alt

    table = over_seeds(histories, ["method", "epoch"], "loss")
    if table.empty:
        return None
    step = max(1, int(table["epoch"].max() // 60))
    table = table[(table["epoch"] % step == 0) | (table["epoch"] == table["epoch"].max())]
    x, y = alt.X("epoch:Q", title="epoch").axis(grid=False), alt.Y("mean:Q", title="training loss")
    return _lines(table, x, y, palette, "Training loss of students against the epoch", dots=False)


def price(table: pd.DataFrame, what: str, palette: Palette) -> Any | None:
    """Draw accuracy against what it takes: seconds or bytes; a point for each method and number of images per class.

    Args:
        table: columns method, ipc, mean, and `what`: seconds, bytes.
        what: is on the axis.
        palette: of the methods.
    """
    import altair as alt

    table = table.loc[table[what] > 0, ["method", "ipc", "mean", what]]
    if table.empty:
        return None
    title = {"seconds": "seconds to make the set, its teacher included", "bytes": "bytes of images and soft labels"}[
        what
    ]
    values = f"{what}:Q"
    axis = (
        alt.X(values, title=title)
        .scale(type="log")
        .axis(format="~s" if what == "bytes" else ",", grid=False, tickCount=5)
    )
    tooltip = ["method:N", "ipc:Q", "mean:Q", alt.Tooltip(values, format="~s" if what == "bytes" else ",.0f")]
    of = palette.encodings(set(table["method"]))
    base = _chart(table, f"Accuracy against {what}, by method")
    points = base.mark_point(filled=True, opacity=1, size=1.5 * POINT).encode(axis, _accuracy(), **of, tooltip=tooltip)
    words = base.mark_text(dx=9, align="left", fontSize=10).encode(axis, _accuracy(), text="ipc:Q")
    return alt.layer(points, words)


def sensitivity(table: pd.DataFrame, palette: Palette) -> Any | None:
    """Draw accuracy against the regularisation of the statistics.

    Args:
        table: columns method (of which the others are variants), regularisation, mean, std, n, low, high.
        palette: of the methods.
    """
    import altair as alt

    table = table[table["regularisation"] > 0]
    if table.empty:
        return None
    table = _banded(table, "regularisation")
    x = (
        alt.X("regularisation:Q", title="weight λ of the BatchNorm statistics")
        .scale(type="log")
        .axis(grid=False, tickCount=5)
    )
    tooltip = ["method:N", "regularisation:Q", *SPREAD]
    return _lines(
        table, x, _accuracy(), palette, "Accuracy against the weight of the statistics", band=True, tooltip=tooltip
    )


def quality(table: pd.DataFrame, what: str, palette: Palette) -> Any | None:
    """Draw W2^2 of barycenters or latents' atoms against the number of atoms, the mean over classes and seeds.

    Args:
        table: columns method, ipc, cost.
        what: they are of: barycenters, latents.
        palette: of the methods.
    """
    import altair as alt

    if table.empty or table["ipc"].nunique() < 2:
        return None
    y = alt.Y("cost:Q", title={"barycenters": "W₂² to the features", "latents": "W₂² to the latents"}[what]).scale(
        zero=False
    )
    return _lines(
        table,
        _ipc(table),
        y,
        palette,
        "W2 squared against the number of atoms",
        tooltip=["method:N", "ipc:Q", "cost:Q"],
    )


def decay(table: pd.DataFrame) -> Any | None:
    """Draw W2 of latents against the number of atoms, both logarithmic, with the line of its fitted rate.

    Args:
        table: columns generator, atoms, distance, fit.
    """
    import altair as alt

    if table.empty:
        return None
    base = _chart(table, "W2 of latents against the number of atoms")
    x = alt.X("atoms:Q", title="atoms K").scale(type="log").axis(grid=False, tickCount=6)
    y = alt.Y("distance:Q", title="W₂").scale(type="log", nice=False)
    colour = alt.Color("generator:N", legend=alt.Legend(title=None, orient="bottom")).scale(range=COLOURS)
    points = base.mark_point(filled=True, size=POINT).encode(
        x, y, colour, tooltip=["generator:N", "atoms:Q", "distance:Q"]
    )
    line = base.mark_line(strokeDash=[4, 3]).encode(x, alt.Y("fit:Q").scale(type="log"), colour)
    return alt.layer(line, points)


def embedding(points: pd.DataFrame) -> Any | None:
    """Draw the map of real and distilled images; a list chooses the method.

    Args:
        points: columns x, y, name (of the class), method ("" for real images).
    """
    import altair as alt

    real, made = points[points["method"] == ""], points[points["method"] != ""]
    if made.empty:
        return None
    methods = sorted(made["method"].unique())
    chosen = alt.param(name="method", value=methods[0], bind=alt.binding_select(options=methods, name="Distilled by "))
    names = list(dict.fromkeys(points["name"]))
    colours = [*COLOURS, "#555555", "#000080", "#7F3C00", "#A0A000"]
    colour = alt.Color("name:N", legend=alt.Legend(title=None, orient="bottom", columns=5, symbolOpacity=1)).scale(
        domain=names, range=[colours[i % len(colours)] for i in range(len(names))]
    )
    bare: Any = {"axis": None}
    x, y = alt.X("x:Q", **bare).scale(zero=False), alt.Y("y:Q", **bare).scale(zero=False)
    behind = _chart(real, "Map of real images", 420).mark_point(filled=True, size=18, opacity=0.45)
    front = _chart(made, "Map of distilled images", 420).mark_point(
        filled=True, size=120, shape="diamond", stroke="#ffffff", strokeWidth=0.8
    )
    layers = behind.encode(x, y, colour, tooltip=["name:N"]), front.encode(x, y, colour, tooltip=["name:N", "method:N"])
    return alt.layer(layers[0], layers[1].transform_filter("datum.method === method")).add_params(chosen)


def stages(nodes: dict[str, int], edges: dict[tuple[str, str], int]) -> Any | None:
    """Draw the stages that made the results, each with its number of files, from left to right in the order of their use."""
    import altair as alt

    if not edges:
        return None
    layers = _layers(edges)
    places = {
        name: (float(x), y - (len(names) - 1) / 2) for x, names in enumerate(layers) for y, name in enumerate(names)
    }
    boxes = pd.DataFrame(
        [{"stage": name, "files": nodes.get(name, 0), "x": x, "y": y} for name, (x, y) in places.items()]
    )
    ends = [(*places[a], *places[b], a, b) for a, b in edges]
    lines = pd.DataFrame(ends, columns=["x", "y", "x2", "y2", "from", "to"])
    bare: Any = {"axis": None}
    x, y = (
        alt.X("x:Q", **bare).scale(nice=False, padding=45),
        alt.Y("y:Q", **bare).scale(nice=False, zero=False, padding=25),
    )
    height = 70 + 60 * max(map(len, layers))
    rules = (
        _chart(lines, "What was made from what", height)
        .mark_rule(color="#999999")
        .encode(x, y, x2="x2", y2="y2", tooltip=["from", "to"])
    )
    dots = (
        _chart(boxes, "Stages", height)
        .mark_point(filled=True, size=160, opacity=1, color=COLOURS[0])
        .encode(x, y, tooltip=["stage", "files"])
    )
    words = _chart(boxes, "Names of stages", height).mark_text(dy=-14, fontSize=11).encode(x, y, text="stage:N")
    return alt.layer(rules, dots, words)


def _layers(edges: dict[tuple[str, str], int]) -> list[list[str]]:
    """Return the stages in layers: each stage stands behind all that it uses.

    Images that recover begins with make stages go in a circle; its rarest edge does not count.
    """
    forward = dict(edges)
    while True:
        uses: dict[str, list[str]] = {name: [] for edge in edges for name in edge}
        for before, after in forward:
            uses[after].append(before)
        order = TopologicalSorter(uses)
        try:
            order.prepare()
        except CycleError as error:
            del forward[min(pairwise(error.args[1]), key=lambda edge: (forward[edge], edge))]
            continue
        layers = []
        while names := order.get_ready():
            layers.append(list(names))
            order.done(*names)
        return layers
