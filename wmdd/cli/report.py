"""The commands that show results: a map of images, tables, the page. They read artifacts; what is shown is made elsewhere."""

import json
import os
import sys
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from wmdd.artifacts import atomic_files, hdf5
from wmdd.artifacts.atomic_files import read_json
from wmdd.artifacts.hdf5 import check_classes
from wmdd.artifacts.model_files import load_model
from wmdd.base import units
from wmdd.base.errors import WmddError
from wmdd.cli.stages import Several, _quality, _teacher, app
from wmdd.jobs.job import cost_path
from wmdd.workflow.layout import CELL, Cell, cell_of, wildcards_of
from wmdd.workflow.stages import ATOMS, STAGES


@app.command
def embedding(*, images: Several, teacher: Path, features: Path, output: Path, threads: int = 1) -> None:
    """Put real and distilled images into one map, near where the teacher's features are near.

    Args:
        images: distilled sets of one dataset and teacher.
        teacher: of the teacher stage.
        features: of the features stage.
        output: JSON: x, y, class and method ("" for real images) of each point.
        threads: of the CPU, on which this runs.
    """
    from wmdd.networks.context import quiet
    from wmdd.networks.engine import plain
    from wmdd.stages import embedding as stage
    from wmdd.stages.distance import features as embed

    torch.set_num_threads(threads)
    network, known = _teacher(teacher)
    with hdf5.reading(features, "features", "labels") as file:
        about = hdf5.meta_of(file)
        if about["inputs"]["teacher"] != known["digest"]:
            raise WmddError(f"{features} is of another teacher than {teacher}; run the features stage again")
        names, labels = about["names"], file["labels"][()]
        wanted = stage.chosen(len(names))
        rows = [stage.sample(np.flatnonzero(labels == label), f"{label}") for label in wanted]
        parts = [torch.from_numpy(file["features"][of]).float() for of in rows]
    points = [{"name": names[label], "method": ""} for label, of in zip(wanted, rows, strict=True) for _ in of]
    for path in images:
        with hdf5.reading(path, "images") as file:
            check_classes(known["classes"], hdf5.meta_of(file)["classes"], str(teacher), str(path))
            pictures = torch.from_numpy(file["images"][wanted, : stage.MADE])
        parts.append(embed(network, pictures.flatten(0, 1), known["mean"], known["std"], quiet(plain())))
        method = cell_of(path).method
        points += [{"name": names[label], "method": method} for label in wanted for _ in range(pictures.shape[1])]
    places = stage.plane(torch.cat(parts)).round(3).tolist()
    atomic_files.write_json(output, [of | {"x": x, "y": y} for of, (x, y) in zip(points, places, strict=True)])


@app.command
def table(*, students: Several, published: Path, table: Path, csv: Path, latex: Path) -> None:
    """Write some results as a table, a row a method and a column a dataset and number of images per class.

    Args:
        students: of the student stage.
        published: config/published.yaml, whose numbers stand in rows of their own.
        table: Markdown.
        csv: the same as numbers, a row a mean.
        latex: the same for a paper, with booktabs.
    """
    from wmdd.report.results import families_beside, rows

    cells = rows([(path, read_json(path)) for path in students], families_beside(students))
    _write_table(cells, published, table, csv, latex)


@app.command
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
    _write_table(_kept(runs, configfile, name), published, table, csv, latex)


def _write_table(
    cells: pd.DataFrame, published: Path, table: Path | None, csv: Path | None, latex: Path | None
) -> None:
    from wmdd.report import published as known
    from wmdd.report.accuracy_tables import across
    from wmdd.report.render import Form, render
    from wmdd.report.results import summary

    wide = across("table", known.beside(summary(cells), known.read(published)), ["dataset", "ipc"])
    files: dict[Form, Path | None] = {"csv": csv, "latex": latex, "markdown": table}
    for form, path in files.items():
        if path is not None:
            atomic_files.write_text(path, render(wide, form))
    print(render(wide, "markdown"))


def _kept(runs: Path, configfile: Path | None, name: str | None) -> pd.DataFrame:
    """Return the students of a report that are kept in its runs.json: all, or those of a named entry of a matrix."""
    from wmdd.report.results import of_raw
    from wmdd.workflow.experiment import Experiment

    try:
        cells = of_raw(read_json(runs))
    except (AttributeError, KeyError, TypeError):
        raise WmddError(f"{runs} does not hold the runs of a report; give its runs.json") from None
    if name is None:
        return cells
    if configfile is None:
        raise WmddError(f"--name {name} is of an experiment; give its --configfile")
    named = Experiment.read(configfile).named()
    if name not in named:
        raise WmddError(
            f"no entry of the matrix of {configfile} has the name {name}; those that it has: {', '.join(named)}"
        )
    parts = list(wildcards_of("student"))
    wanted = {tuple(getattr(student, part) for part in parts) for student in named[name]}
    chosen = cells[[place in wanted for place in cells[parts].itertuples(index=False, name=None)]]
    if chosen.empty:
        raise WmddError(f"{runs} has no run of {name} of {configfile}")
    if missing := len(wanted) - len(chosen):
        print(f"{runs} lacks {missing} of the {len(wanted)} runs of {name}: the table is without them", file=sys.stderr)
    return chosen


@app.command
def page(
    *,
    students: Several,
    costs: Several,
    datasets: Several,
    teachers: Several,
    images: Several,
    published: Path,
    output: Path,
    figures: Path,
    experiment: str = "wmdd",
    barycenters: Several | None = None,
    distances: Several | None = None,
    atoms: Several | None = None,
    decays: Several | None = None,
    embeddings: Several | None = None,
    links: Several | None = None,
    circles: Path | None = None,
) -> None:
    """Write the report as one HTML file that opens without a network, and its charts as files of their own.

    Args:
        students: of the student stage, all of the matrix.
        costs: of every job; beside each lies the file that the job made.
        datasets: of the data stage.
        teachers: of the teacher stage.
        images: all distilled sets; the first of each method and number of images per class is shown.
        published: config/published.yaml.
        output: HTML.
        figures: the folder of the charts, as SVG and Vega-Lite.
        experiment: its name.
        barycenters: of the barycenter stage.
        distances: of the distance stage.
        atoms: of the quantize stage.
        decays: of the decay stage.
        embeddings: of the embedding stage.
        links: files that the page leads to.
        circles: a picture of circles and their means.
    """
    from wmdd.report import distances as measured
    from wmdd.report import page as build
    from wmdd.report import published as known
    from wmdd.report import report, results

    scores = {path: read_json(path) for path in students}
    cells = results.rows([*scores.items()], results.families_of(images))
    joined = [cost_path(path) for path in images]  # whose joining has a cost too
    costs = list(dict.fromkeys([*costs, *filter(Path.is_file, joined)]))
    paths = _made(costs)
    about = [(path.stem, hdf5.load_meta(path)) for path in datasets]
    material = build.Material(
        experiment=experiment,
        cells=cells,
        histories=_histories(students, cells),
        costs=_costs(costs, paths),
        files=[(str(path), meta) for path in dict.fromkeys([*paths, *students]) if (meta := _meta(path)) is not None],
        datasets=about,
        teachers={str(path): load_model(path)[1] for path in teachers},
        barycenters=report.barycenter_summary([(path, *_quality(path)) for path in barycenters or []]),
        distances=measured.summary(
            [(path, read_json(path)) for path in distances or []], [(path, _quality(path)[0]) for path in atoms or []]
        ),
        decays=measured.decays([(path, read_json(path)) for path in decays or []]),
        maps={_teacher_of(path): pd.DataFrame(read_json(path)) for path in embeddings or []},
        strips=_strips(images),
        published=known.read(published),
        links=[(path.as_posix(), os.path.relpath(path, output.parent)) for path in links or []],
        circles=_picture(circles) if circles else "",
        **_settings(images),
    )
    _write_figures(list(build.drawn(material)), figures)
    atomic_files.write_text(output, build.build(material))
    print(f"{output}: {units.size(output.stat().st_size)}; open it in a browser")


def _teacher_of(path: Path) -> tuple[str, str]:
    cell = cell_of(path)
    return str(cell.dataset), str(cell.teacher)


def _made(costs: list[Path]) -> list[Path]:
    """Return the files that lie beside costs, and the statistics beside features."""
    found: list[Path] = []
    for path in costs:
        stem = path.name.removesuffix(".cost.json")
        names = [f"{stem}{end}" for end in (".h5", ".safetensors", ".json")]
        names += ["statistics.h5"] if stem == "features" else []
        found += [path.with_name(name) for name in names if path.with_name(name).is_file()]
    return found


def _meta(path: Path) -> dict[str, Any] | None:
    """Read what a file says of itself, or None where it does not say which stage made it."""
    if path.suffix == ".json":
        meta = read_json(path)
    else:
        meta = load_model(path)[1] if path.suffix == ".safetensors" else hdf5.load_meta(path)
    return meta if isinstance(meta, dict) and "stage" in meta else None


def _costs(costs: list[Path], paths: list[Path]) -> pd.DataFrame:
    """Return a row a job: its place, what its cost file says, and the bytes of the files that it made."""
    from wmdd.report.results import jobs

    sizes: dict[Path, int] = defaultdict(int)
    for path in paths:
        name = "features" if path.name == "statistics.h5" else path.stem
        sizes[path.with_name(f"{name}.cost.json")] += path.stat().st_size
    return jobs([(path, read_json(path) | {"bytes": sizes[path]}) for path in costs])


def _histories(students: list[Path], cells: pd.DataFrame) -> pd.DataFrame:
    """Read the histories of students: a row an epoch."""
    parts = []
    for path, cell in zip(students, cells.to_dict("records"), strict=True):
        try:
            history = pd.read_csv(path.with_suffix(".csv"))
        except (OSError, ValueError):
            raise WmddError(f"{path.with_suffix('.csv')} is missing or damaged; delete {path} and run again") from None
        keep = {str(name): cell[name] for name in (*CELL, "labels")}
        parts.append(history.assign(top1=100 * history["top1"], **keep))
    return pd.concat(parts, ignore_index=True)


def _strips(images: list[Path]) -> Any:
    """Read distilled images and put those of a class side by side, by dataset, teacher, class and method."""
    from wmdd.report import thumbnails

    found = []
    first: dict[Cell, Path] = {}  # seed of each
    for path in sorted(images):
        first.setdefault(cell_of(path).having(seed=None), path)
    for cell, path in first.items():
        of = str(cell.dataset), str(cell.teacher), str(cell.method), int(cell.ipc or 0)
        with hdf5.reading(path, "images") as file:
            names = hdf5.meta_of(file)["names"]
            for label in thumbnails.chosen(len(names)):
                shown = file["images"][label, : thumbnails.SHOWN]
                source, side = thumbnails.strip(shown)
                found.append((label, thumbnails.Strip(*of, names[label], len(shown), side, source)))
    found.sort(key=lambda pair: (pair[1].dataset, pair[1].teacher, pair[0], pair[1].method, pair[1].ipc))
    return [strip for _, strip in found]


def _settings(images: list[Path]) -> dict[str, Any]:
    """Read the settings of each method on a dataset, by stage, and where images are recovered the weight of the statistics."""
    settings: dict[str, dict[str, Any]] = {}
    weights: dict[tuple[str, str], tuple[str, float]] = {}
    several = len({cell_of(path).dataset for path in images}) > 1
    for path in images:
        cell, meta = cell_of(path), hdf5.load_meta(path)
        dataset, method = str(cell.dataset), str(cell.method)
        name = f"{method} on {dataset}" if several else method
        made = [stage for stage in STAGES if stage in meta]
        stages: dict[str, Any] = {stage: meta[stage]["settings"] for stage in made}
        stages |= {} if made else {"select": meta["settings"]}
        for part in (part for name in ATOMS for part in sorted(path.parent.glob(f"{name}/*.h5"))[:1]):
            stages[part.parent.name] = hdf5.load_meta(part)["settings"]
        settings[name] = {f"{stage}: {key}": value for stage, found in stages.items() for key, value in found.items()}
        if "recover" in stages:
            rest = {key: value for key, value in settings[name].items() if key != "recover: regularisation"}
            weights[dataset, method] = json.dumps(rest, sort_keys=True), float(stages["recover"]["regularisation"])
    return {"settings": settings, "regularisations": weights}


def _picture(path: Path) -> str:
    import base64

    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _write_figures(figures: list[Any], folder: Path) -> None:
    """Write each chart as SVG, and as Vega-Lite for who wants to change it; charts of an earlier report go."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {f"{figure.name}{end}": figure.chart for figure in figures for end in (".svg", ".vl.json")}
    for old in [*folder.glob("*.svg"), *folder.glob("*.vl.json")]:
        if old.name not in wanted:
            with suppress(FileNotFoundError):
                old.unlink()
    for name, chart in wanted.items():
        if name.endswith(".svg"):
            with atomic_files.atomic(folder / name) as part:
                chart.properties(background="white").save(str(part), format="svg")
        else:
            atomic_files.write_text(folder / name, chart.to_json(indent=None))
