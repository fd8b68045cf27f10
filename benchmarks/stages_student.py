"""Students on random real images with soft labels, every way: see `benchmarks.stages`."""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.machine import engine_of, settings
from benchmarks.rows import Row, Times, ratios, report, spread
from benchmarks.school import Lesson, Run, accuracy, school_of
from wmdd.networks import models
from wmdd.networks.engine import Engine, flop
from wmdd.stages import labels

WARM = 500  # pictures that are looked at before anything is timed: one batch


def published_ways(options: argparse.Namespace) -> dict[str, int]:
    """Return how many processes the published loaders have, by way."""
    return {
        f"published, {count or 'no'} worker{'s' * (count != 1)}": count for count in dict.fromkeys((0, options.workers))
    }


def our_ways(options: argparse.Namespace) -> dict[str, tuple[str, int]]:
    """Return the precision of ours, and how many students are trained side by side, by way."""
    alone: dict[str, tuple[str, int]] = {"wmdd, fp32": ("fp32", 1), "wmdd, auto": ("auto", 1)}
    count = options.together
    return alone | ({f"wmdd, auto, {count} together": ("auto", count)} if count > 1 else {})


def turn(lesson: Lesson) -> dict[str, list[Run]]:
    """Label a distilled set both ways and let each way train its students; all of ours learn from the same labels."""
    options, found = lesson.options, {}
    with TemporaryDirectory() as name:
        lesson.write(Path(name))
        for way, workers in published_ways(options).items():
            found[way] = [lesson.published(Path(name), workers)]
    store = in_memory(lesson, engine_of(options))
    for way, (precision, students) in our_ways(options).items():
        found[way] = lesson.ours(engine_of(options, precision=precision), store, range(students))
    return found


def in_memory(lesson: Lesson, engine: Engine) -> labels.Labels:
    """Return our soft labels, whole, in memory."""
    return labels.stored([part.cpu() for part in lesson.logits(engine)], lesson.seeds)


def compared(part: str, times: Times, base: Sequence[str]) -> dict[str, Row]:
    """Return the seconds of a part of each way, and the ratios of pairs against the ways `base`, the faster by median first."""
    faster, *slower = sorted(base, key=lambda way: statistics.median(times[way]))
    return {
        way: {
            f"{part} seconds": spread(values),
            f"{part} times published": ratios(times[faster], values),
            f"{part} against": faster,
            **{f"{part} times the slower": ratios(times[other], values) for other in slower},
        }
        for way, values in times.items()
    }


def rows_of(turns: Sequence[dict[str, list[Run]]], base: Sequence[str], work: float) -> list[Row]:
    """Return the row of each way; `work` is the FLOP of a student's training."""
    parts = [
        compared(part, {way: [getattr(each[way][0], part) for each in turns] for way in turns[0]}, base)
        for part in ("train", "evaluate")
    ]
    rows: list[Row] = []
    for way in turns[0]:
        every = [run for each in turns for run in each[way]]
        rows.append({
            "way": way, **parts[0][way], **parts[1][way], **accuracy(every),
            "flops": spread([work / each[way][0].train for each in turns])[0],
            "n": len(turns), "students": len(every),
        })  # fmt: skip
    return rows


def time_student(options: argparse.Namespace, _: dict[str, float]) -> list[Row]:
    """Time students of every way on distilled sets of every size."""
    tree, taught = school_of(options)
    small = settings("NetworkSettings", width=options.student_width)
    step = 3 * flop(models.build(small, len(tree.train), tree.resolution, torch.Generator()), tree.resolution)
    rows: list[Row] = []
    for ipc in options.ipc:
        lessons = [Lesson.of(options, tree, taught, ipc, seed, options.epochs) for seed in range(options.seeds)]
        turn(replace(lessons[0], tree=tree.first(WARM), epochs=2))
        work = step * ipc * len(tree.train) * options.epochs
        size = {"resolution": tree.resolution, "width": options.student_width, "ipc": ipc, "epochs": options.epochs}
        found = rows_of([turn(lesson) for lesson in lessons], list(published_ways(options)), work)
        mine = [{"way": row["way"]} | size | row for row in found]
        report(mine)
        rows += mine
    return rows
