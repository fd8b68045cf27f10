"""Distances: how far distilled sets are from the real data, in tables and a picture (stages distance, quantize, decay)."""

from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from wmdd.report.charts import COLOURS, POINT, Palette
from wmdd.report.render import render
from wmdd.report.results import with_cells
from wmdd.report.tables import numbers
from wmdd.workflow.layout import wildcards_of

GROUP = [name for name in wildcards_of("distance") if name != "seed"]
GENERATOR = [name for name in wildcards_of("decay") if name != "seed"]
# name in the table -> array of the quantize stage, or list of the distance stage
LATENTS = {"latents W2^2": "cost", "latents W2^2, equal": "uniform_cost", "dimension": "dimension"}
FEATURES = {"features W2^2": "cost", "features W2^2, equal": "uniform_cost", "features variance": "variance"}
DECAY = ["cost", "fitted", "twonn", "mle"]
RATES = {"fitted": [6, 3], "twonn": [2, 2]}  # a dimension whose rate is drawn, and the dashes of its line
WIDTH, HEIGHT = 340, 280  # px of a panel


def _means(files: list[tuple[Path, dict[str, Any]]], columns: dict[str, str]) -> pd.DataFrame:
    """Return the mean over classes and seeds of each cell, by `GROUP`."""
    frames = [(path, pd.DataFrame({name: content[key] for name, key in columns.items()})) for path, content in files]
    return with_cells(frames, columns).groupby(GROUP)[list(columns)].mean()


def summary(
    distances: list[tuple[Path, dict[str, Any]]], atoms: list[tuple[Path, dict[str, np.ndarray]]]
) -> pd.DataFrame:
    """Return a row a method and number of images per class: W2^2 of latents and of features, with its weights and equal ones.

    Args:
        distances: of the distance stage, the file and its lists.
        atoms: of the quantize stage, the file and its quality by name.
    """
    table = _means([(path, content["distance"]) for path, content in distances], FEATURES)
    table = table.join(_means(atoms, LATENTS), how="outer")
    table["saved"] = 100 * (1 - table["latents W2^2"] / table["latents W2^2, equal"])
    table["explained"] = 1 - table["features W2^2"] / table["features variance"]
    order = [*LATENTS, "saved", "features W2^2", "features W2^2, equal", "explained"]
    return table[order].reset_index()


def decays(files: list[tuple[Path, dict[str, Any]]]) -> pd.DataFrame:
    """Return a row a dataset, generator and number of atoms: W2^2 and dimensions, the mean over classes and seeds."""
    columns = ["atoms", *DECAY]
    frames = [(path, pd.DataFrame({n: row[n] for n in columns})) for path, content in files for row in content["decay"]]
    return with_cells(frames, columns).groupby([*GENERATOR, "atoms"])[DECAY].mean().reset_index()


def markdown(table: pd.DataFrame, falling: pd.DataFrame) -> str:
    """Return the tables in words."""
    lines = [
        "# Distances",
        "",
        "Squared Wasserstein distance of distilled sets to the real data, by exact transport, mean over classes and seeds.",
        "",
        "- latents: of the atoms of the family latent, before they are decoded; equal: the same atoms with weights 1/K each",
        "- saved: share in % by which the masses of the cells lower it; DDOQ reports 15.7 % (IPC 10) and 16.1 % (IPC 50) of W2",
        "- dimension: intrinsic, of the latents of a class (TwoNN)",
        "- features: of the images, in the space of the teacher's features; explained: 1 - W2^2 / total variance",
        "",
        _markdown("distances", table),
    ]
    if not falling.empty:
        wide = falling.pivot(index=GENERATOR, columns="atoms", values="cost")
        wide.columns = pd.Index([f"K = {k}" for k in wide.columns])
        dimensions = falling.groupby(GENERATOR)[DECAY[1:]].first()
        lines += [
            "## Decay",
            "",
            "W2^2 of K optimal atoms of the latents of a class. It should fall as K^(-2/d): d as fitted to these numbers from",
            "two atoms on, and the intrinsic dimension as measured (TwoNN; maximum likelihood of 20 neighbours).",
            "",
            _markdown("decay", wide.join(dimensions).reset_index()),
        ]
    return "\n".join(lines)


def _markdown(name: str, frame: pd.DataFrame) -> str:
    table = numbers(name, frame)
    return render(table, "markdown") if table else ""


def draw(table: pd.DataFrame, falling: pd.DataFrame, output: Path) -> None:
    """Write `figure` as PNG."""
    figure(table, falling).save(str(output), format="png", scale_factor=2)


def figure(table: pd.DataFrame, falling: pd.DataFrame) -> Any:
    """Draw W2 of the features by images per class; of latents its decay too, and the features' W2 against theirs.

    Args:
        table: `summary`; each dataset, teacher and method has a line.
        falling: `decays`.
    """
    varying = [key for key in ("dataset", "teacher") if table[key].nunique() > 1]
    table = table.assign(
        method=table[[*varying, "method"]].agg(" ".join, axis=1),
        features=table["features W2^2"] ** 0.5,
        latents=table["latents W2^2"].astype(float) ** 0.5,
    )[["method", "ipc", "features", "latents"]]
    palette = Palette(set(table["method"]))
    ipc = sorted(set(table["ipc"].tolist()))
    x = alt.X("ipc:Q", title="images per class").axis(values=ipc)
    x = x.scale(type="log", domain=[ipc[0] / 1.3, ipc[-1] * 1.3], nice=False)
    panels = [_lines(table, x, "W2 to the real features", palette, "Distilled sets")]
    latent = table.dropna(subset=["latents"])
    if not falling.empty and not latent.empty:
        x = alt.X("latents:Q", title="W2 of the latents").scale(zero=False, nice=False, padding=20).axis(tickCount=6)
        panels.append(_decay(falling))
        panels.append(_lines(latent, x, "W2 of the decoded images' features", palette, "Push-forward"))
    apart: Any = dict.fromkeys(("color", "shape", "strokeDash"), "independent")
    return alt.hconcat(*panels, spacing=40, background="white").resolve_scale(**apart)


def _lines(table: pd.DataFrame, x: alt.X, title: str, palette: Palette, name: str) -> Any:
    """Draw W2 of the features, a line a method; its points are hollow, as some lie on others."""
    by_method = palette.encodings(set(table["method"]))
    y = alt.Y("features:Q", title=title).scale(zero=False, nice=False, padding=15)
    base = alt.Chart(table, width=WIDTH, height=HEIGHT, title=name)
    points = base.mark_point(size=1.5 * POINT, strokeWidth=2, opacity=1).encode(x, y, **by_method)
    return base.mark_line(strokeWidth=2).encode(x, y, color=by_method["color"], order="ipc:Q") + points


def _decay(falling: pd.DataFrame) -> Any:
    """Draw W2 against the number of atoms, and the rates of the dimensions from the middle on both sides."""
    groups = {", ".join(map(str, names)): rows for names, rows in falling.groupby(GENERATOR)}
    parts: list[pd.DataFrame] = []
    colours: dict[str, str] = {}  # by the name of a line, as these
    dashes: dict[str, list[int]] = {}
    for place, (name, rows) in enumerate(groups.items()):
        k, w, middle = rows["atoms"].to_numpy(float), rows["cost"].to_numpy(float) ** 0.5, len(rows) // 2
        lines, dashes[name] = {name: w}, [1, 0]
        for dimension, dash in RATES.items():
            if np.isfinite(d := float(rows[dimension].iloc[0])):
                rate = f"K^(-1/{d:.0f}), {dimension}" + (f", {name}" if len(groups) > 1 else "")
                lines[rate], dashes[rate] = w[middle] * (k / k[middle]) ** (-1 / d), dash
        colours |= dict.fromkeys(lines, COLOURS[place % len(COLOURS)])
        parts += [pd.DataFrame({"line": line, "atoms": k, "distance": values}) for line, values in lines.items()]
    x = alt.X("atoms:Q", title="atoms K").scale(type="log", nice=False, padding=15)
    x = x.axis(values=sorted(falling["atoms"].unique().tolist()))
    y = alt.Y("distance:Q", title="W2 to the latents").scale(type="log", nice=False, padding=15).axis(format="~g")
    columns = 3 if len(groups) == 1 else 1
    legend = alt.Legend(title=None, orient="bottom", columns=columns, symbolType="stroke", labelLimit=0)
    colour = alt.Color("line:N", legend=legend).scale(domain=list(colours), range=list(colours.values()))
    style = alt.StrokeDash("line:N", legend=legend).scale(domain=list(dashes), range=list(dashes.values()))
    base = alt.Chart(pd.concat(parts), width=WIDTH, height=HEIGHT, title="Decay")
    points = base.transform_filter(alt.FieldOneOfPredicate("line", list(groups)))
    points = points.mark_point(filled=True, size=POINT / 2, opacity=1)
    return base.mark_line(strokeWidth=1.5).encode(x, y, colour, style) + points.encode(x, y, colour)
