"""Stores of soft labels: their size, their speed, and students that learn from them; see `benchmarks.stages`."""

import argparse
import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import published_students
from benchmarks.machine import engine_of, seconds, settings
from benchmarks.rows import Row, report, spread
from benchmarks.school import Lesson, Run, accuracy, school_of
from wmdd.artifacts import hdf5_writer
from wmdd.base.rng import generator
from wmdd.stages import labels, relabel

LABELS = {10: 300, 1000: 8}  # classes, and epochs whose labels are written
FILES = "files of batches"  # the published store of labels


def written(path: Path, made: Any, logits: Iterable[Tensor], seed: int, classes: int) -> None:
    """Write labels as the relabel stage does with settings `made`."""
    with hdf5_writer.writing(path) as writer:
        writer.meta = {"classes": [str(c) for c in range(classes)], "settings": {"epochs": made.epochs}}
        for part in logits:
            labels.append(writer, labels.rows_of(part, made))
        writer.put("seeds", np.array(relabel.seeds_of(seed, made.labelled)))


def read_all(path: Path, epochs: int) -> None:
    """Read the labels of every epoch, as a student does."""
    with labels.opened(path) as (found, _):
        for epoch in range(epochs):
            found.logits(epoch)


def write_batches(folder: Path, logits: Sequence[Tensor], size: int = 100) -> None:
    """Write labels in a file for each batch, the published way."""
    for epoch, whole in enumerate(logits):
        for batch, index in enumerate(published_students.batches_in(len(whole), size, 0, epoch)):
            mix = published_students.drawn(len(index), 32, generator("published", "mix", 0, epoch, batch))
            crop, flip = torch.rand(len(index), 4), torch.rand(len(index)) < 0.5
            published_students.write_labels(
                published_students.file_of(folder, epoch, batch), crop, flip, mix, whole[index]
            )


def read_batches(folder: Path) -> None:
    """Read what `write_batches` wrote."""
    for file in sorted(folder.glob("*/*")):
        published_students.read_labels(file)


def made_up(images: int, classes: int, epochs: int) -> list[Tensor]:
    """Draw logits [N, C] of the size of a trained network's for each epoch: normal of sd 3, and a peak at one class."""
    draws = torch.Generator().manual_seed(0)
    found = []
    for _ in range(epochs):
        logits = 3 * torch.randn(images, classes, generator=draws)
        peak = 8 + 4 * torch.randn(images, 1, generator=draws)
        found.append(logits.scatter_add_(1, torch.randint(classes, (images, 1), generator=draws), peak).half())
    return found


def time_stores(classes: int, ipc: int, epochs: int, repeats: int) -> list[Row]:
    """Write and read the labels of made-up logits in every store."""
    logits = made_up(classes * ipc, classes, epochs)

    def once(store: str, path: Path) -> tuple[float, float]:
        if store == FILES:
            return seconds(lambda: write_batches(path, logits)), seconds(lambda: read_batches(path))
        made = settings("RelabelSettings", store=store, epochs=epochs)
        write = seconds(lambda: written(path, made, logits[: made.labelled], 0, classes))
        return write, seconds(lambda: read_all(path, epochs))

    spent: dict[str, list[tuple[float, float]]] = {FILES: [], "stored": [], "pruned": []}
    size = dict.fromkeys([*spent, "online"], 0)
    for turn in range(repeats + 1):
        for store, times in spent.items():
            with TemporaryDirectory() as name:
                pair = once(store, Path(name) / "labels")
                size[store] = sum(file.stat().st_size for file in Path(name).rglob("*") if file.is_file())
            if turn:  # the first one warms up
                times.append(pair)
    rows: list[Row] = []
    for store, bytes_in_all in size.items():
        row = {"way": store, "classes": classes, "ipc": ipc}
        row["bytes an image and epoch"] = float(f"{bytes_in_all / (len(logits[0]) * epochs):.4g}")
        if pairs := spent.get(store):
            write, read = zip(*pairs, strict=True)
            row |= {"write ms an epoch": spread(write, 1e3 / epochs), "read ms an epoch": spread(read, 1e3 / epochs)}
            row |= {"n": repeats, "epochs": epochs}
        rows.append(row)
    return rows


def time_labels(options: argparse.Namespace, _: dict[str, float]) -> list[Row]:
    """Compare the stores, and where there is data the students that learn from them."""
    rows = [row for classes, epochs in LABELS.items() for row in time_stores(classes, 10, epochs, options.repeats)]
    report(rows)
    if options.data:
        students = label_students(options)
        report(students)
        rows += students
    else:
        print("no --data: no students, so no accuracy")
    return rows


def label_students(options: argparse.Namespace) -> list[Row]:
    """Train students of ours on the labels of every store."""
    tree, taught = school_of(options)
    ipc, engine, classes = min(options.ipc), engine_of(options), len(tree.train)
    runs: dict[str, list[Run]] = {"stored": [], "pruned": [], "online": []}
    for seed in range(options.seeds):
        lesson = Lesson.of(options, tree, taught, ipc, seed, options.epochs)
        for store, found in runs.items():
            if store == "online":
                found += lesson.ours(engine, labels.online(seed, copy.deepcopy(taught.network)))
                continue
            with TemporaryDirectory() as name:
                made = settings("RelabelSettings", store=store, epochs=lesson.epochs)
                path, some = Path(name) / "labels.h5", replace(lesson, epochs=made.labelled)
                written(path, made, some.logits(engine), seed, classes)
                with labels.opened(path) as (mine, _):
                    found += lesson.ours(engine, mine)
    return [
        {
            "way": f"student, {store}", "resolution": tree.resolution, "width": options.student_width, "ipc": ipc,
            "classes": classes, "train seconds": spread([run.train for run in found]), **accuracy(found),
            "n": len(found), "epochs": options.epochs,
        }
        for store, found in runs.items()
    ]  # fmt: skip
