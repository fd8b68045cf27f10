"""Chart sections: which charts the page has, under which headings, and what each of them is drawn of."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from wmdd.report import charts, glance, results
from wmdd.report.page.material import Material

CHART = [name for name in results.SETTING if name != "ipc"]  # what a chart of accuracy is of
FEATURES = ["dataset", "teacher"]
TEXTS = {  # under each heading
    "Accuracy against images per class": "Mean over seeds of the distillation, with a band of one standard deviation; point at "
    "a value for its 95 % interval. Real images are grey. Select a name in a legend to see a method alone.",
    "What it takes": "Seconds to make a set, with those of all that it was made from: its own teacher and features (and its "
    "autoencoder and diffusion model, or its experts); bytes of its images and soft labels. The numbers are images per class.",
    "How students learn": "Accuracy where it was measured, and the training loss; the mean over seeds of the distillation.",
    "Weight of the statistics": "Methods that differ in λ alone.",
    "Where the images are": "A map of the teacher's features (t-SNE): dots are real images, diamonds distilled ones. What is "
    "near on the map is near in the features; distances on it mean nothing.",
    "W₂ against the number of atoms": "Squared Wasserstein distance of barycenters to the features they stand for, and of "
    "latents' atoms to the latents: two spaces, not to be compared. W₂ of latents falls as K^(−1/d) (dashed).",
}


class Figure(NamedTuple):
    """A chart of the page."""

    name: str
    title: str
    chart: Any


class Section(NamedTuple):
    """Charts that belong together."""

    title: str
    text: str
    figures: list[Figure]


def sections(material: Material) -> list[Section]:
    """Return the charts by section; sections with nothing to draw are left out."""
    summary = material.summary
    palette = _palette(summary)

    def each(table: pd.DataFrame, keys: list[str], draw: Any, name: str, *more: Any) -> list[Figure]:
        return _each(table, keys, lambda rows: draw(rows, *more, palette), name)

    maps = {f"{dataset}, teacher {teacher}": charts.embedding(m) for (dataset, teacher), m in material.maps.items()}
    figures = {
        "Accuracy against images per class": each(summary, CHART, charts.accuracy, "accuracy"),
        "What it takes": [
            *each(summary, CHART, charts.price, "seconds", "seconds"),
            *each(summary, CHART, charts.price, "bytes", "bytes"),
        ],
        "How students learn": [
            *each(material.histories, [*CHART, "ipc"], charts.curves, "curves"),
            *each(material.histories, [*CHART, "ipc"], charts.losses, "losses"),
        ],
        "Weight of the statistics": each(
            sweeps(material.regularisations, summary), [*CHART, "ipc"], charts.sensitivity, "sensitivity"
        ),
        "Where the images are": _titled("map", maps),
        "W₂ against the number of atoms": [
            *each(material.barycenters, FEATURES, charts.quality, "barycenters", "barycenters"),
            *each(_latents(material.distances), FEATURES, charts.quality, "latents", "latents"),
            *_each(with_fit(material.decays), ["dataset"], charts.decay, "decay"),
        ],
    }
    return [Section(title, TEXTS[title], several) for title, several in figures.items() if several]


def answers(material: Material) -> list[tuple[glance.Answer, Figure | None]]:
    """Return what each setting says, with its chart where it has random images."""
    palette = _palette(material.summary)
    found = []
    for place, answer in enumerate(glance.answers(material.cells, material.accuracies)):
        chart = charts.gains(answer.points, answer.references, palette)
        found.append((answer, None if chart is None else Figure(f"gains-{place}", answer.title, chart)))
    return found


def _palette(summary: pd.DataFrame) -> charts.Palette:
    real = summary.loc[summary["family"].map(results.kind_of) == "real", "method"]
    return charts.Palette(sorted(set(summary["method"])), set(real))


def _titled(name: str, drawn: dict[str, Any]) -> list[Figure]:
    """Return the charts that are there, under their titles."""
    return [Figure(f"{name}-{i}", title, chart) for i, (title, chart) in enumerate(drawn.items()) if chart is not None]


def _each(table: pd.DataFrame, keys: list[str], draw: Callable[[pd.DataFrame], Any], name: str) -> list[Figure]:
    """Draw a chart for each group of a table; its title names what not all of them share."""
    if table.empty:
        return []
    named = [key for key in keys if key == "dataset" or table[key].nunique() > 1]
    words = {"ipc": "{} per class", "labels": "{} labels"}
    figures = []
    for place, (group, rows) in enumerate(table.groupby(keys, dropna=False)):
        values = dict(zip(keys, group, strict=True))
        title = ", ".join(words.get(key, "{}").format(values[key]) for key in named)
        if (chart := draw(rows)) is not None:
            figures.append(Figure(f"{name}-{place}", title, chart))
    return figures


def sweeps(weights: dict[tuple[str, str], tuple[str, float]], summary: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of methods that differ from others in the weight of the statistics alone, under the shortest name.

    Args:
        weights: of datasets and methods, what else they depend on and the weight.
        summary: `results.summary`.
    """
    columns = ["dataset", "method", "rest", "regularisation"]
    weighted = pd.DataFrame([(*key, *value) for key, value in weights.items()], columns=columns)
    table = summary.merge(weighted, on=["dataset", "method"])
    if table.empty:
        return table
    keys = [*CHART, "ipc", "rest"]
    table = table[table.groupby(keys)["regularisation"].transform("nunique") > 1]
    table = table.drop_duplicates([*keys, "regularisation"])
    return table.assign(method=table.groupby("rest")["method"].transform(lambda names: min(names, key=len)))


def _latents(distances: pd.DataFrame) -> pd.DataFrame:
    if "latents W2^2" not in distances:
        return distances.head(0)
    return distances.dropna(subset=["latents W2^2"]).rename(columns={"latents W2^2": "cost"})


def with_fit(decays: pd.DataFrame) -> pd.DataFrame:
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
