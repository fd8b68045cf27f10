"""Report: the tables of an experiment in Markdown, as the stage report writes them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wmdd.report import accuracy_tables, dd_ranking, tables
from wmdd.report.render import render
from wmdd.report.results import summary, with_cells
from wmdd.workflow.layout import wildcards_of

SOLVED = [name for name in wildcards_of("barycenter") if name not in ("seed", "block")]
QUALITY = {  # of the barycenter stage, and which statistic stands for many classes
    "cost": "mean",
    "explained": "mean",
    "min_mass": "mean",
    "max_mass": "mean",
    "effective_atoms": "mean",
    "iterations": "mean",
    "gap": "max",
    "restarts_gap": "max",
}


def markdown(cells: pd.DataFrame, teachers: Mapping[str, Mapping[str, Any]], held_out: Sequence[str] = ()) -> str:
    """Return the main table in Markdown, DD-Ranking's measures if there are any, and what the teachers say of themselves.

    Args:
        cells: `results.rows`.
        teachers: meta data of each, by its file.
        held_out: the datasets that are validated on a part of their training set.
    """
    lines = ["# Results", "", render(accuracy_tables.results(summary(cells)), "markdown")]
    if measures := dd_ranking.measures(cells):
        lines += ["## DD-Ranking's measures", "", render(measures, "markdown")]
    if held_out:
        lines += [f"Of {', '.join(held_out)} what validates is a part of the training set, held out.", ""]
    lines += [_teacher(path, about) for path, about in sorted(teachers.items())]
    return "\n".join(lines) + "\n"


def _teacher(path: str, about: Mapping[str, Any]) -> str:
    origin = f", weights from {about['origin']}" if "origin" in about else ""
    return f"- teacher `{path}`: {100 * about['accuracy']['top1']:.2f} %{origin}"


def cost_markdown(costs: pd.DataFrame) -> str:
    """Return seconds and peak memory by stage (`results.jobs`)."""
    return f"# Cost\n\n{render(tables.cost(costs), 'markdown')}"


def dataset_markdown(datasets: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Return which data were used: name and meta data of each."""
    return f"# Datasets\n\n{render(tables.datasets(datasets), 'markdown')}"


def barycenter_summary(blocks: list[tuple[Path, dict[str, np.ndarray], list[float]]]) -> pd.DataFrame:
    """Return how good the barycenters of each dataset, teacher, method and IPC are.

    All is the mean over classes and seeds, but for the gaps, of which the largest counts.

    Args:
        blocks: the file, the quality of its classes by name, and the seconds of each class.
    """
    frames = [
        (
            path,
            pd.DataFrame(quality)
            .reindex(columns=[*QUALITY])
            .assign(seconds=np.broadcast_to(seconds, len(quality["cost"]))),
        )
        for path, quality, seconds in blocks
    ]
    groups = with_cells(frames, [*QUALITY, "seconds"]).groupby(SOLVED, sort=True)
    means = {name: (name, statistic) for name, statistic in (QUALITY | {"seconds": "mean"}).items()}
    return groups.agg(solved=("cost", "size"), **means).reset_index()


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
    shown = tables.numbers("barycenters", table.assign(explained=table["explained"].round(6) + 0.0))
    lines += ["The matrix has no method with barycenters." if shown is None else render(shown, "markdown").rstrip()]
    return "\n".join(lines) + "\n"
