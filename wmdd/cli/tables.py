"""The commands that write tables of results, and compare some of them."""

import sys
from pathlib import Path

import pandas as pd

from wmdd.artifacts import atomic_files, hdf5
from wmdd.artifacts.atomic_files import read_json
from wmdd.base.errors import WmddError
from wmdd.cli.arguments import Paths, Threads, command
from wmdd.cli.readers import read_meta, read_quality
from wmdd.report import accuracy_tables, markdown, results
from wmdd.report import compare as comparison
from wmdd.report import distances as measured
from wmdd.report import published as numbers
from wmdd.report.render import Form, render
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.layout import wildcards_of


@command
def report(
    *,
    students: Paths,
    teachers: Paths,
    costs: Paths,
    table: Path,
    csv: Path,
    cost_table: Path,
    barycenter_table: Path,
    barycenter_csv: Path,
    dataset_table: Path,
    datasets: Paths,
    runs: Path,
    barycenters: Paths | None = None,
    threads: Threads = 1,
) -> None:
    """Gather all runs into tables: mean, standard deviation and seeds of each cell, and its gain over random real images."""
    contents = [(path, read_json(path)) for path in students]
    families = results.families_beside(students)
    teacher_metas = {str(path): read_meta(path) for path in teachers}
    cost_contents = [(path, read_json(path)) for path in costs]
    summary = results.summary(results.rows(contents, families))
    solved = markdown.barycenter_summary([(path, *read_quality(path)) for path in barycenters or []])
    atomic_files.write_text(csv, render(accuracy_tables.results(summary), "csv"))
    atomic_files.write_text(cost_table, markdown.cost_markdown(results.jobs(cost_contents)))
    atomic_files.write_text(barycenter_csv, solved.to_csv(index=False))
    atomic_files.write_text(barycenter_table, markdown.barycenter_markdown(solved))
    data_metas = [(path.stem, hdf5.load_meta(path)) for path in datasets]
    atomic_files.write_text(dataset_table, markdown.dataset_markdown(data_metas))
    atomic_files.write_json(runs, results.raw(contents, families, teacher_metas, cost_contents))
    held_out = [name for name, meta in data_metas if meta.get("settings", {}).get("held_out")]
    text = markdown.markdown(summary, teacher_metas, held_out)
    atomic_files.write_text(table, text)
    print(text)


@command
def table(*, students: Paths, published: Path, table: Path, csv: Path, latex: Path) -> None:
    """Write some results as a table, a row a method and a column a dataset and number of images per class.

    Args:
        students: of the student stage.
        published: config/published.yaml, whose numbers stand in rows of their own.
        table: Markdown.
        csv: the same as numbers, a row a mean.
        latex: the same for a paper, with booktabs.
    """
    cells = results.rows([(path, read_json(path)) for path in students], results.families_beside(students))
    _write_table(cells, published, table, csv, latex)


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
    _write_table(cells, published, table, csv, latex)


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


def _write_table(
    cells: pd.DataFrame, published: Path, table: Path | None, csv: Path | None, latex: Path | None
) -> None:
    """Print a table of students beside published numbers, and write it in each form that has a path."""
    rows = numbers.beside(results.summary(cells), numbers.read(published))
    wide = accuracy_tables.across("table", rows, ["dataset", "ipc"])
    files: dict[Form, Path | None] = {"csv": csv, "latex": latex, "markdown": table}
    for form, path in files.items():
        if path is not None:
            atomic_files.write_text(path, render(wide, form))
    print(render(wide, "markdown"))


@command
def distances(
    *,
    distances: Paths,
    table: Path,
    csv: Path,
    figure: Path,
    atoms: Paths | None = None,
    decays: Paths | None = None,
) -> None:
    """Gather the distances of all distilled sets of the matrix to the real data: tables and a picture.

    Args:
        distances: of the distance stage.
        table: Markdown.
        csv: the same as numbers.
        figure: PNG.
        atoms: of the quantize stage.
        decays: of the decay stage.
    """
    summary = measured.summary(
        [(path, read_json(path)) for path in distances], [(path, read_quality(path)[0]) for path in atoms or []]
    )
    decay = measured.decays([(path, read_json(path)) for path in decays or []])
    atomic_files.write_text(csv, summary.to_csv(index=False))
    with atomic_files.atomic(figure) as part:
        measured.draw(summary, decay, part)
    text = measured.markdown(summary, decay)
    atomic_files.write_text(table, text)
    print(text)


@command
def compare(*results: Path) -> None:
    """Print how students differ in settings and accuracy: mean, standard deviation, difference to the first with its interval.

    Args:
        results: two or more; each a result file of a student or a folder of them, as results/digits/resnet18-w8/wmdd/ipc10.
    """
    if len(results) < 2:
        raise WmddError("compare takes two results or more; name folders or run*.json of students")
    print(comparison.render([comparison.Side.read(path) for path in results]))
