"""Report: tables over all runs."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

CELL = re.compile(
    r"(?P<dataset>[^/]+)/(?P<teacher>[^/]+)/(?P<method>[^/]+)/ipc(?P<ipc>\d+)/seed(?P<seed>\d+)"
    r"/student/(?P<student>[^/]+)/(?P<protocol>[^/]+)/run(?P<run>\d+)\.json$"
)
BLOCK = re.compile(
    r"(?P<dataset>[^/]+)/(?P<teacher>[^/]+)/(?P<method>[^/]+)/ipc(?P<ipc>\d+)/seed(?P<seed>\d+)/barycenter/[^/]+\.h5$"
)
IMAGES = re.compile(
    r"(?P<dataset>[^/]+)/(?P<teacher>[^/]+)/(?P<method>[^/]+)/ipc(?P<ipc>\d+)/seed(?P<seed>\d+)/images\.h5$"
)
SOLVED = ["dataset", "teacher", "method", "ipc"]
QUALITY = {  # of the barycenter stage, and what stands for many classes
    "cost": "mean",
    "explained": "mean",
    "min_mass": "mean",
    "max_mass": "mean",
    "effective_atoms": "mean",
    "iterations": "mean",
    "gap": "max",
    "restarts_gap": "max",
}
SECONDS = {"seconds": "mean"}
GROUP = ["dataset", "ipc", "method", "student", "protocol", "teacher"]


def rows(results: list[tuple[Path, dict[str, Any]]]) -> pd.DataFrame:
    """Return one row a student: where it belongs (from its path) and what it scored, in percent."""
    found = []
    for path, content in results:
        match = CELL.search(path.as_posix())
        if match is None:
            raise ValueError(f"{path} is not where a student's result belongs")
        cell: dict[str, Any] = dict(match.groupdict(), labels=content["settings"]["labels"])
        cell |= {"ipc": int(cell["ipc"]), "seed": int(cell["seed"]), "run": int(cell["run"])}
        cell |= {name: 100 * content["result"][name] for name in ("top1", "top5", "best_top1")}
        # `paper` and `paper-hard` are one protocol with two kinds of labels
        cell["protocol"] = cell["protocol"].removesuffix("-hard") if cell["labels"] == "hard" else cell["protocol"]
        found.append(cell)
    return pd.DataFrame(found)


def raw(
    results: list[tuple[Path, dict[str, Any]]],
    teachers: dict[str, dict[str, Any]],
    costs: list[tuple[Path, dict[str, Any]]],
) -> dict[str, Any]:
    """Return everything that tables are made of, to be kept with a study: each student, teacher and job, and the versions.

    Scores are in percent; a job has its place, seconds, peak memory and machine.
    """
    made = [content.get("versions", {}) | {"revision": content.get("revision", "")} for _, content in results]
    return {
        "runs": rows(results).round(4).to_dict("records"),
        "teachers": {path: {k: 100 * v for k, v in about["accuracy"].items()} for path, about in teachers.items()},
        "costs": [{"file": path.as_posix()} | place(path) | cost for path, cost in costs],
        "versions": [each for number, each in enumerate(made) if each not in made[:number]],
    }


def summary(cells: pd.DataFrame) -> pd.DataFrame:
    """Return mean, standard deviation (n - 1) and n of top-1 and the mean of top-5, for each cell and kind of labels."""
    groups = cells.groupby([*GROUP, "labels"])
    table = groups.agg(mean=("top1", "mean"), std=("top1", "std"), n=("top1", "size"), top5=("top5", "mean"))
    return table.reset_index()


def markdown(table: pd.DataFrame, teachers: dict[str, dict[str, Any]], held_out: Sequence[str] = ()) -> str:
    """Return the main table: soft and hard labels side by side, and under it what the teachers say of themselves.

    Args:
        table: `summary`.
        teachers: meta data of each, by its file.
        held_out: the datasets that are validated on a part of their training set.
    """
    scores = [_score(*row) for row in zip(table["mean"], table["std"], table["n"], strict=True)]
    wide = table.assign(score=scores)
    wide = wide.pivot(index=GROUP, columns="labels", values="score").fillna("")
    wide.columns = pd.Index([f"{name} labels" for name in wide.columns])
    lines = [
        "# Results",
        "",
        "Top-1 accuracy in % of students trained from scratch on the distilled set, scored on the real validation set after",
        "the last epoch: mean ± standard deviation (n). `random` and `kmeans-medoid` are real images under the same labels.",
        "",
        wide.reset_index().to_markdown(index=False),
        "",
        *(
            [f"Of {', '.join(held_out)} what validates is a part of the training set, held out.", ""]
            if held_out
            else []
        ),
        *(_teacher(path, about) for path, about in sorted(teachers.items())),
    ]
    return "\n".join(lines) + "\n"


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row a method, student, protocol and kind of labels, and a column a dataset and number of images per class.

    Under a row of ours that has published numbers stand these, in a row of their own.

    Args:
        table: `summary` with the column published.
    """
    rows = ["method", "student", "protocol", "labels"]
    scores = [_score(*row) for row in zip(table["mean"], table["std"], table["n"], strict=True)]
    known = table["published"].map(lambda value: "" if math.isnan(value) else f"{value:.1f}")
    long = pd.concat([table.assign(who="", score=scores), table.assign(who="published", score=known)])
    long = long[long["score"] != ""]
    found = long.pivot_table(index=[*rows, "who"], columns=["dataset", "ipc"], values="score", aggfunc="first").fillna(
        ""
    )
    found.columns = pd.Index([f"{of[0]}, {of[1]} per class" for of in found.columns])
    found = found.reset_index()
    names = found["method"] + found["who"].map(lambda who: f" ({who})" if who else "")
    return found.assign(method=names).drop(columns="who")


def latex(table: pd.DataFrame) -> str:
    """Return a table of text for LaTeX with booktabs."""
    text = table.to_latex(index=False, escape=True)
    return text.replace("±", r"$\pm$")


def _teacher(path: str, about: dict[str, Any]) -> str:
    origin = f", weights from {about['origin']}" if "origin" in about else ""
    return f"- teacher `{path}`: {100 * about['accuracy']['top1']:.2f} %{origin}"


def _score(mean: float, std: float, n: int) -> str:
    return f"{mean:.1f} ± {std:.1f} ({n})" if n > 1 else f"{mean:.1f} (1)"


def cost_markdown(costs: list[tuple[Path, dict[str, Any]]]) -> str:
    """Return seconds and peak memory by dataset, method, IPC and stage."""
    table = pd.DataFrame([place(path) | cost for path, cost in costs])
    groups = table.groupby(["dataset", "method", "ipc", "stage"], sort=False)
    columns = {
        "jobs": ("seconds", "size"),
        "seconds": ("seconds", "sum"),
        "seconds a job": ("seconds", "median"),
        "peak memory MB": ("peak_memory_mb", "max"),
    }
    return "# Cost\n\n" + groups.agg(**columns).round(1).reset_index().to_markdown(index=False) + "\n"


def dataset_markdown(datasets: list[tuple[str, dict[str, Any]]]) -> str:
    """Return which data were used: source and variant, pictures, what was noticed in them.

    Args:
        datasets: name and meta data of each.
    """
    rows = [
        {
            "dataset": name,
            "variant": meta["variant"],
            "classes": len(meta["classes"]),
            "training": sum(meta["counts"]["train"]),
            "validation": sum(meta["counts"]["val"]),
            "px": meta["resolution"],
            "mean": _numbers(meta["mean"]),
            "std": _numbers(meta["std"]),
            "val in train": meta["duplicates"]["val in train"],
            "left out": len(meta["skipped"]),
            "enlarged": meta["enlarged"]["count"],
        }
        for name, meta in datasets
    ]
    lines = [
        "# Datasets",
        "",
        "What the numbers are of. Mean and std are those of the normalisation; `val in train` counts validation pictures that",
        "stand in the training set too, `left out` unreadable ones, `enlarged` those smaller than the resolution.",
        "",
        str(pd.DataFrame(rows).to_markdown(index=False)),
    ]
    return "\n".join(lines) + "\n"


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def barycenter_summary(blocks: list[tuple[Path, dict[str, np.ndarray], list[float]]]) -> pd.DataFrame:
    """Return how good the barycenters of each dataset, teacher, method and IPC are.

    All is the mean over classes and seeds, but for the gaps, of which the largest counts.

    Args:
        blocks: the file, the quality of its classes by name, and the seconds of each class.
    """
    parts = []
    for path, quality, seconds in blocks:
        match = BLOCK.search(path.as_posix())
        if match is None:
            raise ValueError(f"{path} is not where a barycenter belongs")
        part = pd.DataFrame(quality).reindex(columns=[*QUALITY]).assign(**match.groupdict())
        parts.append(part.assign(ipc=int(match["ipc"]), seconds=np.broadcast_to(seconds, len(part))))
    if not parts:
        return pd.DataFrame(columns=[*SOLVED, "solved", *QUALITY, "seconds"])
    groups = pd.concat(parts).groupby(SOLVED, sort=True)
    found = groups.agg(solved=("cost", "size"), **{name: (name, how) for name, how in (QUALITY | SECONDS).items()})
    return found.reset_index()


def barycenter_markdown(table: pd.DataFrame) -> str:
    """Return the table of the barycenters."""
    lines = [
        "# Barycenters",
        "",
        "How close the atoms are to the features they stand for: mean over classes and seeds; of the gaps, the largest.",
        "",
        "- cost: W2^2 to the features; explained: share of their total variance, 1 - W2^2 / variance",
        "- masses: the lightest and the heaviest atom; effective atoms: 1 / sum of squared masses",
        "- gap: share by which the solver's plan was dearer than the exact one",
        "- restarts gap: cost over the best of other starts, less 1, where the setting compare_restarts asks for them",
        "",
    ]
    if table.empty:
        lines += ["The matrix has no method with barycenters."]
    else:
        shown = table.dropna(axis=1, how="all").rename(columns=lambda name: name.replace("_", " "))
        lines += [shown.assign(explained=shown.explained.round(6) + 0.0).to_markdown(index=False, floatfmt=".4g")]
    return "\n".join(lines) + "\n"


def place(path: Path) -> dict[str, str]:
    """Return dataset, method (or generator, or experts), IPC and seed of a cost file, from its path."""
    parts = path.as_posix().split("/")
    if parts[0] == "data":
        return {"dataset": path.name.removesuffix(".cost.json"), "method": "", "ipc": "", "seed": ""}
    if parts[2] in ("latent", "expert"):  # of a generator, or of experts
        return {"dataset": parts[1], "method": parts[3], "ipc": "", "seed": parts[4].removeprefix("seed")}
    if parts[3] == "teacher":
        return {"dataset": parts[1], "method": "", "ipc": "", "seed": parts[4].removeprefix("seed")}
    of = parts[4].removeprefix("ipc"), parts[5].removeprefix("seed")
    return {"dataset": parts[1], "method": parts[3], "ipc": of[0], "seed": of[1]}
