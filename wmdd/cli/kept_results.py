"""The commands that read results of earlier runs: the table of a study, the comparison of some students."""

import json as serial
import sys
from pathlib import Path

import pandas as pd

from wmdd.artifacts.atomic_files import read_json
from wmdd.base.errors import WmddError
from wmdd.cli.arguments import Flag, command
from wmdd.cli.tables import write_table
from wmdd.report import compare as comparison
from wmdd.report import results
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.layout import wildcards_of


@command
def study_table(
    *,
    runs: Path,
    configfile: Path | None = None,
    name: str | None = None,
    published: Path = Path("config/published.yaml"),
    table: Path | None = None,
    csv: Path | None = None,
    latex: Path | None = None,
) -> None:
    """Print the same table from the runs that a study keeps, without running anything.

    Args:
        runs: results/report/runs.json of a report.
        configfile: the experiment file that has the name.
        name: of entries of its matrix, whose runs the table has, as far as they are there; all runs by default.
        published: numbers that stand in rows of their own.
        table: Markdown.
        csv: the same as numbers, a row a mean.
        latex: the same for a paper, with booktabs.
    """
    try:
        cells = results.of_raw(read_json(runs))
    except (AttributeError, KeyError, TypeError):
        raise WmddError(f"{runs} does not hold the runs of a report; give its runs.json") from None
    if name is not None:
        cells = _named(cells, runs, configfile, name)
    write_table(cells, published, table, csv, latex)


def _named(cells: pd.DataFrame, runs: Path, configfile: Path | None, name: str) -> pd.DataFrame:
    """Return the students of a named entry of a matrix."""
    if configfile is None:
        raise WmddError(f"--name {name} is of an experiment; give its --configfile")
    entries = Experiment.read(configfile).named()
    if name not in entries:
        raise WmddError(
            f"no entry of the matrix of {configfile} has the name {name}; those that it has: {', '.join(entries)}"
        )
    parts = list(wildcards_of("student"))
    places = {tuple(getattr(student, part) for part in parts) for student in entries[name]}
    chosen = cells[[place in places for place in cells[parts].itertuples(index=False, name=None)]]
    if chosen.empty:
        raise WmddError(f"{runs} has no run of {name} of {configfile}")
    if missing := len(places) - len(chosen):
        print(f"{runs} lacks {missing} of the {len(places)} runs of {name}: the table is without them", file=sys.stderr)
    return chosen


@command
def compare(*results: Path, json: Flag = False) -> None:
    """Print how students differ in settings and accuracy: mean, standard deviation, difference to the first with its interval.

    Args:
        results: two or more; each a result file of a student or a folder of them, as results/digits/resnet18-w8/wmdd/ipc10.
        json: for programs.
    """
    if len(results) < 2:
        raise WmddError("compare takes two results or more; name folders or run*.json of students")
    sides = [comparison.Side.read(path) for path in results]
    print(serial.dumps(comparison.facts(sides), indent=1) if json else comparison.render(sides))
