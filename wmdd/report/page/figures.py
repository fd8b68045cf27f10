"""Figures of the page: which charts there are, by section, and the distilled images."""

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from wmdd.report import charts, lineage, results
from wmdd.report.charts import Palette
from wmdd.report.thumbnails import Strip

if TYPE_CHECKING:
    from wmdd.report.page import Material


class Figure(NamedTuple):
    """A chart of the page; no chart where there was nothing to draw."""

    name: str
    title: str
    chart: Any


class Section(NamedTuple):
    """Charts that belong together."""

    title: str
    text: str
    figures: list[Figure]


OF = [name for name in results.SETTING if name != "ipc"]  # what a chart of accuracy is of
Draw = Callable[[pd.DataFrame], Any]


def sections(material: "Material") -> list[Section]:
    """Return the charts by section; sections with nothing to draw are left out."""
    summary = material.summary
    real = summary.loc[summary["family"].map(results.kind_of) == "real", "method"]
    palette = Palette(sorted(set(summary["method"])), set(real))
    chain = lineage.graph(material.files)

    def each(table: pd.DataFrame, keys: list[str], draw: Any, name: str, *more: Any) -> list[Figure]:
        return _each(table, keys, lambda rows: draw(rows, *more, palette), name)

    found = [
        Section(
            "Accuracy against images per class",
            "Mean over seeds of the distillation, with a band of one standard deviation; point at a value for its 95 % "
            "interval. Real images are grey. Select a name in a legend to see a method alone.",
            each(summary, OF, charts.accuracy, "accuracy"),
        ),
        Section(
            "What it takes",
            "Seconds to make a set, with those of all that it was made from: its own teacher and features (and its autoencoder "
            "and diffusion model, or its experts); bytes of its images and soft labels. The numbers are images per class.",
            [
                *each(summary, OF, charts.price, "seconds", "seconds"),
                *each(summary, OF, charts.price, "bytes", "bytes"),
            ],
        ),
        Section(
            "How students learn",
            "Accuracy where it was measured, and the training loss; the mean over seeds of the distillation.",
            [
                *each(material.histories, [*OF, "ipc"], charts.curves, "curves"),
                *each(material.histories, [*OF, "ipc"], charts.losses, "losses"),
            ],
        ),
        Section(
            "Weight of the statistics",
            "Methods that differ in λ alone.",
            each(sweeps(material.regularisations, summary), [*OF, "ipc"], charts.sensitivity, "sensitivity"),
        ),
        Section(
            "Where the images are",
            "A map of the teacher's features (t-SNE): dots are real images, diamonds distilled ones. What is near on the map "
            "is near in the features; distances on it mean nothing.",
            _named(
                {
                    f"{dataset}, teacher {teacher}": charts.embedding(points)
                    for (dataset, teacher), points in material.maps.items()
                }
            ),
        ),
        Section(
            "W₂ against the number of atoms",
            "Squared Wasserstein distance of barycenters to the features they stand for, and of latents' atoms to the latents: "
            "two spaces, not to be compared. W₂ of latents falls as K^(−1/d) (dashed).",
            [
                *each(material.barycenters, ["dataset", "teacher"], charts.quality, "barycenters", "barycenters"),
                *each(_latents(material.distances), ["dataset", "teacher"], charts.quality, "latents", "latents"),
                *_each(_falling(material.decays), ["dataset"], charts.decay, "decay"),
            ],
        ),
        Section(
            "What was made from what",
            "The stages that the files of this experiment went through, by the digests that each file carries.",
            _named({"": charts.stages(chain.nodes, chain.edges)}, "stages"),
        ),
    ]
    return [section for section in found if section.figures]


def _named(found: dict[str, Any], name: str = "map") -> list[Figure]:
    """Return the charts that are there, under their titles."""
    return [Figure(f"{name}-{i}", title, chart) for i, (title, chart) in enumerate(found.items()) if chart is not None]


def _each(table: pd.DataFrame, keys: list[str], draw: Draw, name: str) -> list[Figure]:
    """Draw a chart for each group of a table; its title names what not all of them share."""
    if table.empty:
        return []
    varying = [key for key in keys if table[key].nunique() > 1]
    found = []
    for place, (of, rows) in enumerate(table.groupby(keys, dropna=False)):
        words = dict(zip(keys, map(str, of), strict=True))
        title = ", ".join(_said(key, words[key]) for key in keys if key in varying or key == "dataset")
        if (chart := draw(rows)) is not None:
            found.append(Figure(f"{name}-{place}", title, chart))
    return found


def _said(key: str, value: str) -> str:
    return {"ipc": f"{value} per class", "labels": f"{value} labels"}.get(key, value)


def sweeps(weights: dict[tuple[str, str], tuple[str, float]], summary: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of methods that differ from others in the weight of the statistics alone, under the shortest name.

    Args:
        weights: of datasets and methods, what else they depend on and the weight.
        summary: `results.summary`.
    """
    columns = ["dataset", "method", "rest", "regularisation"]
    known = pd.DataFrame([(*key, *of) for key, of in weights.items()], columns=columns)
    table = summary.merge(known, on=["dataset", "method"])
    if table.empty:
        return table
    keys = [*OF, "ipc", "rest"]
    table = table[table.groupby(keys)["regularisation"].transform("nunique") > 1]
    table = table.drop_duplicates([*keys, "regularisation"])
    return table.assign(method=table.groupby("rest")["method"].transform(lambda names: min(names, key=len)))


def _latents(distances: pd.DataFrame) -> pd.DataFrame:
    if "latents W2^2" not in distances:
        return distances.head(0)
    return distances.dropna(subset=["latents W2^2"]).rename(columns={"latents W2^2": "cost"})


def _falling(decays: pd.DataFrame) -> pd.DataFrame:
    """Return W2 by number of atoms and the line K^(-1/d) of the fitted dimension, through the middle of the logarithms."""
    if decays.empty:
        return decays
    parts = []
    for _, rows in decays.groupby(["dataset", "generator"]):
        rows = rows.sort_values("atoms").assign(distance=lambda table: table["cost"] ** 0.5)
        later = rows[rows["atoms"] > 1]
        if len(later) and math.isfinite(float(rows["fitted"].iloc[0])):
            slope = -1 / float(rows["fitted"].iloc[0])
            start = float((np.log(later["distance"]) - slope * np.log(later["atoms"])).mean())
            rows = rows.assign(fit=np.exp(start + slope * np.log(rows["atoms"].astype(float))))
        parts.append(rows)
    return pd.concat(parts)


def galleries(strips: list[Strip]) -> list[dict[str, Any]]:
    """Return the distilled images by dataset and teacher: the choices, and the strips by class."""
    found = []
    for (dataset, teacher), several in itertools.groupby(strips, key=lambda strip: (strip.dataset, strip.teacher)):
        rows = list(several)
        names = list(dict.fromkeys(strip.name for strip in rows))
        found.append(
            {
                "title": f"{dataset}, teacher {teacher}",
                "ipc": sorted({strip.ipc for strip in rows}),
                "classes": [(name, [strip for strip in rows if strip.name == name]) for name in names],
            }
        )
    return found
