"""Figures of the page: which charts there are, by section, and the distilled images."""

import itertools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from wmdd import charts, lineage, report
from wmdd.charts import Palette
from wmdd.gallery import Strip
from wmdd.lineage import Meta

if TYPE_CHECKING:
    from wmdd.page import Material

SHARED = ("data", "teacher", "features", "features_part", "gather")  # by all sets of a dataset
GENERATOR = ("autoencoder", "encode", "diffusion")  # by those of the family latent
AFTER = ("student", "relabel", "distance", "decay")  # the making of a set


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


OF = ["dataset", "teacher", "student", "protocol", "labels"]  # what a chart of accuracy is of
Draw = Callable[[pd.DataFrame], Any]
Experts = dict[tuple[str, str], set[tuple[str, str, str]]]  # dataset, method -> dataset, name, seed of each


def sections(material: "Material") -> list[Section]:
    """Return the charts by section; sections with nothing to draw are left out."""
    palette = Palette(sorted(set(material.cells["method"])))
    summary = report.summary(material.cells)
    made = price(material.costs, summary, experts(material.files))
    chain = lineage.graph(material.files)

    def each(table: pd.DataFrame, keys: list[str], draw: Any, name: str, *more: Any) -> list[Figure]:
        return _each(table, keys, lambda rows: draw(rows, *more, palette), name)

    found = [
        Section(
            "Accuracy against images per class",
            "Mean over students, with a band of one standard deviation. Real images are grey. Select a name in a legend to see "
            "a method alone.",
            each(summary, OF, charts.accuracy, "accuracy"),
        ),
        Section(
            "What it takes",
            "Seconds to make a set, with those of its teacher and features (and of its autoencoder and diffusion model, or its "
            "experts), which all sets of a dataset share; bytes of its images and soft labels. The numbers are images per "
            "class.",
            [*each(made, OF, charts.price, "seconds", "seconds"), *each(made, OF, charts.price, "bytes", "bytes")],
        ),
        Section(
            "How students learn",
            "Accuracy where it was measured, and the training loss; the mean over students.",
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
    for place, (of, rows) in enumerate(table.groupby(keys)):
        words = dict(zip(keys, map(str, of), strict=True))
        title = ", ".join(_said(key, words[key]) for key in keys if key in varying or key == "dataset")
        if (chart := draw(rows)) is not None:
            found.append(Figure(f"{name}-{place}", title, chart))
    return found


def _said(key: str, value: str) -> str:
    return {"ipc": f"{value} per class", "labels": f"{value} labels"}.get(key, value)


def experts(files: Iterable[tuple[str, Meta]]) -> Experts:
    """Return the experts that the images of each method follow, by the digests that these carry (MTT)."""
    found = list(files)
    trained = {meta["digest"]: report.place(Path(path)) for path, meta in found if meta["stage"] == "expert"}
    used: Experts = {}
    for path, meta in found:
        if meta["stage"] == "match":
            of = report.place(Path(path))
            mine = [trained[digest] for digest in meta["inputs"].values() if digest in trained]
            used.setdefault((of["dataset"], of["method"]), set()).update(
                (each["dataset"], each["method"], each["seed"]) for each in mine
            )
    return used


def price(costs: pd.DataFrame, summary: pd.DataFrame, used: Experts | None = None) -> pd.DataFrame:
    """Return a summary with the seconds that a set takes to make and the bytes of its images and soft labels.

    Seconds are those of its own jobs (the sum over blocks, the mean over seeds), and of what all sets of its dataset share.

    Args:
        costs: a row a job: dataset, method (or name of the experts), ipc, seed, stage, seconds, bytes.
        summary: `report.summary`.
        used: the experts of each method.
    """
    keys = ["dataset", "method", "ipc"]
    own = costs[(costs["ipc"] != "") & ~costs["stage"].isin(AFTER)]
    seconds = own.groupby([*keys, "seed"])["seconds"].sum().groupby(keys).mean()
    shared, networks = (
        costs[costs["stage"].isin(names)].groupby("dataset")["seconds"].sum() for names in (SHARED, GENERATOR)
    )
    trained = costs[costs["stage"] == "expert"].groupby(["dataset", "method", "seed"])["seconds"].sum()
    latent = set(costs.loc[costs["stage"] == "quantize", "method"])
    images, labels = (
        costs[costs["stage"].isin(names)].groupby(keys)["bytes"].mean()
        for names in (("images", "select"), ("relabel",))
    )
    found = []
    for row in summary.to_dict("records"):
        of = row["dataset"], row["method"], str(row["ipc"])
        spent = (
            seconds.get(of, math.nan)
            + shared.get(of[0], 0.0)
            + (networks.get(of[0], 0.0) if of[1] in latent else 0.0)
            + sum(trained.get(each, 0.0) for each in (used or {}).get(of[:2], ()))
        )
        size = images.get(of, math.nan) + (labels.get(of, 0.0) if row["labels"] == "soft" else 0.0)
        found.append({"seconds": spent, "bytes": size})
    return summary.join(pd.DataFrame(found, index=summary.index))


def sweeps(weights: dict[tuple[str, str], tuple[str, float]], summary: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of methods that differ from others in the weight of the statistics alone, under the shortest name.

    Args:
        weights: of datasets and methods, what else they depend on and the weight.
        summary: `report.summary`.
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
