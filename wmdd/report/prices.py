"""Prices: what each distilled set took to make, and how many bytes a student learns from."""

import math
from collections.abc import Iterable

import pandas as pd

from wmdd.report.lineage import Meta, made_from
from wmdd.report.render import records
from wmdd.report.results import set_of
from wmdd.workflow.layout import CELL, Cell, place_of
from wmdd.workflow.stages import STAGES


def priced(cells: pd.DataFrame, costs: pd.DataFrame, files: Iterable[tuple[str, Meta]]) -> pd.DataFrame:
    """Return students with the seconds that their set took to make, and the bytes of its images and soft labels.

    Seconds are those of the set's own jobs and of all that it was made from: its own teacher and features, its generator, its
    experts. Bytes of labels are those of the file that the student learned from. What is not known is NaN.

    Args:
        cells: `results.rows`.
        costs: `results.jobs` with the column bytes.
        files: path and meta data of every artifact, the students' results included.
    """
    artifacts = list(files)
    sources = made_from(artifacts)
    seconds: dict[Cell, float] = {}
    sizes: dict[Cell, float] = {}  # of images by set, of labels by set and protocol
    for cost in records(costs):
        cell, stage = _cell(cost), STAGES.get(str(cost["stage"]))
        if stage is None:
            continue
        if not stage.after:
            seconds[set_of(cell)] = seconds.get(set_of(cell), 0.0) + float(cost["seconds"])
        if stage.file in ("images", "labels"):
            sizes[cell] = float(cost["bytes"])
    places = [(place, meta) for path, meta in artifacts if (place := place_of(path)) is not None]
    # a coded set is its files, whose pixels lie beside them for the workflow
    sizes |= {
        cell: float(meta["coded"]["bytes"]) for (kind, cell), meta in places if kind == "images" and "coded" in meta
    }
    labels = {(set_of(cell), meta["digest"]): cell for (kind, cell), meta in places if kind == "labels"}
    learned = {cell: meta.get("inputs", {}).get("labels") for (kind, cell), meta in places if kind == "student"}
    spent, stored = [], []
    for student in map(_cell, records(cells)):
        own = set_of(student)
        its_labels = labels.get((own, learned.get(student)))
        spent.append(sum(seconds.get(s, 0.0) for s in sources.get(own, {own})) if own in seconds else math.nan)
        stored.append(sizes.get(own, math.nan) + (sizes.get(its_labels, math.nan) if its_labels else 0.0))
    return cells.assign(seconds=spent, bytes=stored)


def _cell(line: dict[str, object]) -> Cell:
    return Cell.of({name: line[name] for name in CELL if line.get(name, "") != ""})
