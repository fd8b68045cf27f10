"""The commands that write tables of results."""

from pathlib import Path

import pandas as pd

from wmdd.artifacts import atomic_files, hdf5
from wmdd.artifacts.atomic_files import read_json
from wmdd.cli.arguments import Paths, Threads, command
from wmdd.cli.readers import read_meta, read_quality
from wmdd.report import accuracy_tables, markdown, results
from wmdd.report import distances as measured
from wmdd.report import published as numbers
from wmdd.report.render import Form, render


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
    cells = results.rows(contents, families)
    solved = markdown.barycenter_summary([(path, *read_quality(path)) for path in barycenters or []])
    atomic_files.write_text(csv, render(accuracy_tables.results(results.summary(cells)), "csv"))
    atomic_files.write_text(cost_table, markdown.cost_markdown(results.jobs(cost_contents)))
    atomic_files.write_text(barycenter_csv, solved.to_csv(index=False))
    atomic_files.write_text(barycenter_table, markdown.barycenter_markdown(solved))
    data_metas = [(path.stem, hdf5.load_meta(path)) for path in datasets]
    atomic_files.write_text(dataset_table, markdown.dataset_markdown(data_metas))
    atomic_files.write_json(runs, results.raw(contents, families, teacher_metas, cost_contents))
    held_out = [name for name, meta in data_metas if meta.get("settings", {}).get("held_out")]
    text = markdown.markdown(cells, teacher_metas, held_out)
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
    write_table(cells, published, table, csv, latex)


def write_table(cells: pd.DataFrame, published: Path, table: Path | None, csv: Path | None, latex: Path | None) -> None:
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
