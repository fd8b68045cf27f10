"""The command that writes the report as one page, and what it reads for it."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wmdd.artifacts import atomic_files, hdf5
from wmdd.artifacts.atomic_files import read_json, sha256_of
from wmdd.base import units
from wmdd.base.errors import WmddError
from wmdd.cli.arguments import Paths, command
from wmdd.cli.readers import images_per_epoch, read_meta, read_nearest, read_quality
from wmdd.jobs.job import cost_path
from wmdd.report import distances as measured
from wmdd.report import markdown, overview, results, thumbnails
from wmdd.report import page as pages
from wmdd.report import published as numbers
from wmdd.report.by_class import by_class
from wmdd.report.page.chart_sections import Figure
from wmdd.report.tables import Price
from wmdd.workflow.layout import CELL, Cell, cell_of
from wmdd.workflow.stages import ATOMS, STAGES, WHOLE


@command
def page(
    *,
    students: Paths,
    costs: Paths,
    datasets: Paths,
    teachers: Paths,
    images: Paths,
    published: Path,
    output: Path,
    figures: Path,
    experiment: str = "wmdd",
    barycenters: Paths | None = None,
    distances: Paths | None = None,
    atoms: Paths | None = None,
    decays: Paths | None = None,
    embeddings: Paths | None = None,
    links: Paths | None = None,
    command: str = "",
    price_per_gpu_hour: float | None = None,
    currency: str = "USD",
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
        command: that makes the results again.
        price_per_gpu_hour: what an hour of a GPU costs, for a column of money.
        currency: of that price.
    """
    material = pages.Material(
        experiment=experiment,
        **_runs(students, costs, images),
        **_measures(barycenters or [], distances or [], atoms or [], decays or [], embeddings or []),
        **_settings(images),
        datasets=[(path.stem, hdf5.load_meta(path)) for path in datasets],
        teachers={str(path): read_meta(path) for path in teachers},
        strips=_strips(images, distances or [], {path.stem: path for path in datasets}),
        overviews=overview.overviews(_thumbnails(images)),
        published=numbers.read(published),
        links=[(path.as_posix(), os.path.relpath(path, output.parent)) for path in links or []],
        command=command,
        price=Price(price_per_gpu_hour, currency),
    )
    built = pages.build(material)
    _write_figures(built.figures, figures)
    atomic_files.write_text(output, built.html)
    print(f"{output}: {units.size(output.stat().st_size)}; open it in a browser")


def _runs(students: list[Path], costs: list[Path], images: list[Path]) -> dict[str, Any]:
    """Read the scores and the histories of students, the costs of all jobs, and what each file says of itself."""
    contents = [(path, read_json(path)) for path in students]
    cells = results.rows(contents, results.families_of(images))
    joined = [cost_path(path) for path in images]  # joining the blocks of a set has a cost too
    costs = list(dict.fromkeys([*costs, *filter(Path.is_file, joined)]))
    outputs = {cost: _outputs(cost) for cost in costs}
    paths = dict.fromkeys([*(path for several in outputs.values() for path in several), *students])
    sizes = {cost: sum(path.stat().st_size for path in several) for cost, several in outputs.items()}
    return {
        "cells": cells,
        "students": by_class([content for _, content in contents], cells),
        "histories": _histories(contents, cells),
        "costs": results.jobs([(path, read_json(path) | {"bytes": sizes[path]}) for path in costs]),
        "files": [(str(path), meta) for path in paths if (meta := _provenance(path)) is not None],
    }


def _outputs(cost: Path) -> list[Path]:
    """Return the files that lie beside a cost: the output of the job, and the statistics beside features."""
    stem = cost.name.removesuffix(".cost.json")
    names = [f"{stem}{suffix}" for suffix in (".h5", ".safetensors", ".json")]
    names += ["statistics.h5"] if stem == "features" else []
    return [path for name in names if (path := cost.with_name(name)).is_file()]


def _provenance(path: Path) -> dict[str, Any] | None:
    """Read what a file says of itself, or None where it does not say which stage made it."""
    meta = read_json(path) if path.suffix == ".json" else read_meta(path)
    return meta if isinstance(meta, dict) and "stage" in meta else None


def _histories(contents: results.Results, cells: pd.DataFrame) -> pd.DataFrame:
    """Read the histories of students, given what their results hold: a row an epoch."""
    parts = []
    for (path, content), cell in zip(contents, cells.to_dict("records"), strict=True):
        try:
            digest = content.get("history")  # none in results of earlier versions
            if digest not in (None, sha256_of(path.with_suffix(".csv"))):
                raise WmddError(
                    f"the history beside {path} has changed since it was written; delete both and run again"
                )
            history = pd.read_csv(path.with_suffix(".csv"))
        except (OSError, ValueError):
            raise WmddError(f"{path.with_suffix('.csv')} is missing or damaged; delete {path} and run again") from None
        identity = {str(name): cell[name] for name in (*CELL, "labels")}
        parts.append(history.assign(top1=100 * history["top1"], **identity))
    return pd.concat(parts, ignore_index=True)


def _measures(
    barycenters: list[Path], distances: list[Path], atoms: list[Path], decays: list[Path], embeddings: list[Path]
) -> dict[str, Any]:
    """Read how good barycenters and atoms are, the distances to the real data, and the maps."""
    maps = {cell_of(path): pd.DataFrame(read_json(path)) for path in embeddings}
    quality = [(path, read_quality(path)[0]) for path in atoms]
    return {
        "barycenters": markdown.barycenter_summary([(path, *read_quality(path)) for path in barycenters]),
        "distances": measured.summary([(path, read_json(path)) for path in distances], quality),
        "decays": measured.decays([(path, read_json(path)) for path in decays]),
        "maps": {(str(cell.dataset), str(cell.teacher)): points for cell, points in maps.items()},
    }


def _strips(images: list[Path], distances: list[Path], datasets: dict[str, Path]) -> list[thumbnails.Strip]:
    """Read images and put those of a class side by side, by dataset, teacher, class and method, real ones first."""
    strips = []
    measured_sets = {cell_of(path): path for path in distances}
    for cell, path in _first_seeds(images).items():
        with hdf5.reading(path, "images") as file:
            names, count = file.meta["names"], images_per_epoch(file.meta, file["images"].shape[1])
            kind, shown = results.kind_of(results.family_of(file.meta)), min(count, thumbnails.SHOWN)
            classes = thumbnails.chosen(len(names))
            pixels = [file["images"][label, :shown] for label in classes]
            nearest = [""] * len(classes)
            if kind != "real" and cell_of(path) in measured_sets:
                if (data := datasets.get(str(cell.dataset))) is None:
                    remedy = f"give {cell.dataset}.h5 among --datasets, or leave out its distances"
                    raise WmddError(f"{path} is of {cell.dataset}, whose pictures are not there; {remedy}")
                rows = read_nearest(measured_sets[cell_of(path)], file.meta, hdf5.load_meta(data))
                nearest = _nearest([rows[label][:shown] for label in classes], data)
        place = cell.dataset, cell.teacher, cell.method, kind, cell.ipc
        for label, pictures, real in zip(classes, pixels, nearest, strict=True):
            source, side = thumbnails.strip(pictures)
            strips.append((label, thumbnails.Strip(*place, names[label], shown, side, source, real)))
    strips.sort(key=lambda p: (p[1].dataset, p[1].teacher, p[0], p[1].kind != "real", p[1].method, p[1].ipc))
    return [strip for _, strip in strips]


def _nearest(rows: list[list[int]], data: Path) -> list[str]:
    """Return the training pictures at some rows, a strip for each list of them, as data URIs."""
    import torch

    from wmdd.datasets.loader import opened, read  # needs torch, which most pages do without

    with opened(data, "train", once=True) as (pictures, _):
        return [thumbnails.strip(read(pictures, torch.tensor(several)).numpy())[0] for several in rows]


def _first_seeds(images: list[Path]) -> dict[Cell, Path]:
    """Return the set of the first seed of each method and number of images per class."""
    first_seeds: dict[Cell, Path] = {}
    for path in sorted(images, key=cell_of):
        first_seeds.setdefault(cell_of(path).having(seed=None), path)
    return first_seeds


def _thumbnails(images: list[Path]) -> Iterator[overview.Thumbnails]:
    """Read the first image of each class, of the smallest set of each method but the whole training set, which is large."""
    smallest: dict[Cell, tuple[int, Path]] = {}
    for cell, path in _first_seeds([path for path in images if cell_of(path).method != WHOLE]).items():
        smallest.setdefault(cell.having(ipc=None), (cell.ipc, path))
    for cell, (ipc, path) in smallest.items():
        with hdf5.reading(path, "images") as file:
            pixels = np.stack([overview.thumbnail(file["images"][c, 0]) for c in range(len(file.meta["names"]))])
            kind = results.kind_of(results.family_of(file.meta))
            yield overview.Thumbnails(cell.dataset, cell.teacher, cell.method, kind, ipc, file.meta["names"], pixels)


def _settings(images: list[Path]) -> dict[str, Any]:
    """Read the settings of each method on a dataset, by stage, and where images are recovered the weight of the statistics."""
    settings: dict[str, dict[str, Any]] = {}
    weights: dict[tuple[str, str], tuple[str, float]] = {}
    several = len({cell_of(path).dataset for path in images}) > 1
    for path in images:
        cell = cell_of(path)
        dataset, method = str(cell.dataset), str(cell.method)
        name = f"{method} on {dataset}" if several else method
        stages = _stage_settings(path)
        settings[name] = {f"{stage}: {key}": value for stage, values in stages.items() for key, value in values.items()}
        if "recover" in stages:
            rest = {key: value for key, value in settings[name].items() if key != "recover: regularisation"}
            weights[dataset, method] = json.dumps(rest, sort_keys=True), float(stages["recover"]["regularisation"])
    return {"settings": settings, "regularisations": weights}


def _stage_settings(images: Path) -> dict[str, dict[str, Any]]:
    """Read the settings of the stages that made a distilled set."""
    meta = hdf5.load_meta(images)
    stages = {stage: meta[stage]["settings"] for stage in STAGES if stage in meta} or {"select": meta["settings"]}
    for folder in ATOMS:
        for block in sorted(images.parent.glob(f"{folder}/*.h5"))[:1]:
            stages[folder] = hdf5.load_meta(block)["settings"]
    return stages


def _write_figures(figures: list[Figure], folder: Path) -> None:
    """Write each chart as SVG, and as Vega-Lite for who wants to change it; charts of an earlier report go."""
    folder.mkdir(parents=True, exist_ok=True)
    charts = {f"{figure.name}{suffix}": figure.chart for figure in figures for suffix in (".svg", ".vl.json")}
    for old in [*folder.glob("*.svg"), *folder.glob("*.vl.json")]:
        if old.name not in charts:
            with suppress(FileNotFoundError):
                old.unlink()
    for name, chart in charts.items():
        if name.endswith(".svg"):
            with atomic_files.atomic(folder / name) as part:
                chart.properties(background="white").save(str(part), format="svg")
        else:
            atomic_files.write_text(folder / name, chart.to_json(indent=None))
