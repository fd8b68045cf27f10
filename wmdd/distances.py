"""Distances: how far distilled sets are from the real data, in tables and a picture (`wmdd.distance`, `quantize`, `decay`)."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

CELL = re.compile(
    r"(?P<dataset>[^/]+)/(?P<teacher>[^/]+)/(?P<method>[^/]+)/ipc(?P<ipc>\d+)/seed(?P<seed>\d+)/(distance\.json|quantize/[^/]+\.h5)$"
)
GENERATOR = re.compile(r"(?P<dataset>[^/]+)/latent/(?P<generator>[^/]+)/seed(?P<seed>\d+)/decay\.json$")
GROUP = ["dataset", "teacher", "method", "ipc"]
# name in the table -> array of the quantize stage, or list of the distance stage
LATENTS = {"latents W2^2": "cost", "latents W2^2, equal": "uniform_cost", "dimension": "dimension"}
FEATURES = {"features W2^2": "cost", "features W2^2, equal": "uniform_cost", "features variance": "variance"}
MARKERS = "osD^vP*"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito 2008


def _rows(found: list[tuple[Path, dict[str, Any]]], columns: dict[str, str]) -> pd.DataFrame:
    """Return the mean over classes and seeds of each cell."""
    parts = []
    for path, content in found:
        match = CELL.search(path.as_posix())
        if match is None:
            raise ValueError(f"{path} is not where a distance belongs")
        of = {name: match[name] for name in (*GROUP, "seed")} | {"ipc": int(match["ipc"])}
        parts.append(pd.DataFrame({name: content[key] for name, key in columns.items()}).assign(**of))
    if not parts:
        return pd.DataFrame(columns=[*GROUP, *columns]).set_index(GROUP)
    return pd.concat(parts).groupby(GROUP)[list(columns)].mean()


def summary(
    distances: list[tuple[Path, dict[str, Any]]], atoms: list[tuple[Path, dict[str, np.ndarray]]]
) -> pd.DataFrame:
    """Return a row a method and number of images per class: W2^2 of latents and of features, with its weights and equal ones.

    Args:
        distances: of the distance stage, the file and its lists.
        atoms: of the quantize stage, the file and its quality by name.
    """
    table = _rows([(path, content["distance"]) for path, content in distances], FEATURES)
    table = table.join(_rows(list(atoms), LATENTS), how="outer")
    table["saved"] = 100 * (1 - table["latents W2^2"] / table["latents W2^2, equal"])
    table["explained"] = 1 - table["features W2^2"] / table["features variance"]
    order = [*LATENTS, "saved", "features W2^2", "features W2^2, equal", "explained"]
    return table[order].reset_index()


def decays(found: list[tuple[Path, dict[str, Any]]]) -> pd.DataFrame:
    """Return a row a dataset, generator and number of atoms: W2^2 and dimensions, the mean over classes and seeds."""
    parts = []
    for path, content in found:
        match = GENERATOR.search(path.as_posix())
        if match is None:
            raise ValueError(f"{path} is not where a decay belongs")
        for row in content["decay"]:
            one = pd.DataFrame({"atoms": row["atoms"], "cost": row["cost"]})
            dimensions = {name: row[name] for name in ("fitted", "twonn", "mle")}
            parts.append(one.assign(dataset=match["dataset"], generator=match["generator"], **dimensions))
    columns = ["cost", "fitted", "twonn", "mle"]
    if not parts:
        return pd.DataFrame(columns=["dataset", "generator", "atoms", *columns])
    return pd.concat(parts).groupby(["dataset", "generator", "atoms"])[columns].mean().reset_index()


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
        str(table.dropna(axis=1, how="all").to_markdown(index=False, floatfmt=".4g")),
        "",
    ]
    if not falling.empty:
        wide = falling.pivot(index=["dataset", "generator"], columns="atoms", values="cost")
        wide.columns = pd.Index([f"K = {k}" for k in wide.columns])
        dimensions = falling.groupby(["dataset", "generator"])[["fitted", "twonn", "mle"]].first()
        lines += [
            "## Decay",
            "",
            "W2^2 of K optimal atoms of the latents of a class. It should fall as K^(-2/d): d as fitted to these numbers from",
            "two atoms on, and the intrinsic dimension as measured (TwoNN; maximum likelihood of 20 neighbours).",
            "",
            str(wide.join(dimensions).reset_index().to_markdown(index=False, floatfmt=".4g")),
            "",
        ]
    return "\n".join(lines)


def draw(table: pd.DataFrame, falling: pd.DataFrame, output: Path) -> None:
    """Draw W2 of the features by images per class; of latents its decay too, and the features' W2 against theirs."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    latent = table.dropna(subset=["latents W2^2"])
    count = 1 + 2 * (not falling.empty and not latent.empty)
    figure, axes = plt.subplots(1, count, figsize=(4.6 * count, 3.6), squeeze=False, layout="constrained")
    _lines(axes[0, 0], table, "ipc", "features W2^2")
    axes[0, 0].set(xlabel="images per class", ylabel="W2 to the real features", xscale="log", title="Distilled sets")
    _plain(axes[0, 0].xaxis, sorted(table["ipc"].unique()))
    if count > 1:
        _decay(axes[0, 1], falling)
        _lines(axes[0, 2], latent, "latents W2^2", "features W2^2")
        axes[0, 2].set(xlabel="W2 of the latents", ylabel="W2 of the decoded images' features", title="Push-forward")
    for axis in axes[0]:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.savefig(output, dpi=150, format="png", metadata={"Software": None})
    plt.close(figure)


def _lines(axis: Any, table: pd.DataFrame, x: str, y: str) -> None:
    """Draw a line a dataset and method."""
    several = table["dataset"].nunique() > 1
    for number, ((dataset, method), rows) in enumerate(table.groupby(["dataset", "method"])):
        rows = rows.sort_values("ipc")
        across = rows[x] ** 0.5 if x != "ipc" else rows[x]
        label = f"{dataset} {method}" if several else str(method)
        style = {
            "color": COLORS[number % len(COLORS)],
            "marker": MARKERS[number % len(MARKERS)],
            "markerfacecolor": "none",
        }
        axis.plot(across, rows[y] ** 0.5, "-", label=label, markersize=7, **style)  # hollow, as some lie on others


def _decay(axis: Any, falling: pd.DataFrame) -> None:
    """Draw W2 against the number of atoms, and the rates of the dimensions from the middle on both sides."""
    for number, ((dataset, generator), rows) in enumerate(falling.groupby(["dataset", "generator"])):
        color, k, w = COLORS[number % len(COLORS)], rows["atoms"].to_numpy(float), rows["cost"].to_numpy(float) ** 0.5
        axis.loglog(k, w, "o-", color=color, label=f"{dataset}, {generator}", markersize=4)
        middle = len(k) // 2
        for name, style in ("fitted", "--"), ("twonn", ":"):
            d = float(rows[name].iloc[0])
            if np.isfinite(d):
                rate = w[middle] * (k / k[middle]) ** (-1 / d)
                axis.loglog(k, rate, style, color=color, label=f"K^(-1/{d:.0f}), {name}", linewidth=1)
    axis.set(xlabel="atoms K", ylabel="W2 to the latents", title="Decay")
    _plain(axis.xaxis, sorted(falling["atoms"].unique()))
    low, high = axis.get_ylim()
    _plain(axis.yaxis, np.linspace(low, high, 6).round(2).tolist())


def _plain(axis: Any, ticks: Sequence[float]) -> None:
    """Write numbers at a logarithmic axis as they are."""
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)
