"""Laws: what a job of each stage has to do, from the settings of its cell and the shapes of dataset and networks.

The formulas are those of docs/use/cost.md. A law knows of no other job. What is not known is NaN and stays NaN; of a
stage without a law nothing is known.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from wmdd.cost import latent_laws, match_laws, rates
from wmdd.cost.dataset import NAN
from wmdd.cost.flop import NOTHING, recovering
from wmdd.cost.scene import AT_ONCE, EVALUATED, SHARD, Scene, Shapes, Work, batches, evaluations
from wmdd.settings.barycenter import BarycenterSettings
from wmdd.settings.student import RelabelSettings
from wmdd.workflow.layout import Cell
from wmdd.workflow.stages import STAGES, Stage

# Of the stages, whose modules import torch; a test compares them.
CACHED = 2**19  # wmdd.stages.features
LARGEST = 400  # images of 224 px at once on a GPU: wmdd.stages.recover
MAPPED = (10, 10, 60)  # classes, distilled and real images of each: wmdd.stages.embedding
MAPPING = (0.01, 5e10)  # seconds a point, FLOP/s of a core that makes a map

Law = Callable[[Scene], Work]
UNKNOWN = Work(flop=NAN, moved=NAN, disk=NAN, memory=NAN, passed=NAN, seconds=NAN)


def work(shapes: Shapes, stage: str, cell: Cell, inputs: int = 0) -> Work:
    """Return the work of a job.

    Args:
        shapes: of its experiment.
        stage: of the job.
        cell: its place in the experiment.
        inputs: how many files it reads, for those that collect what others made.

    Raises:
        WmddError: a name of the cell is not known, or a network does not take the images.
    """
    row, scene = STAGES.get(stage, Stage(stage)), Scene(shapes, cell, inputs)
    law = LAWS.get(stage) or LAWS.get(row.section)
    job = law(scene) if law else UNKNOWN
    rated = row.network and job.passed != 0  # some strategies of select ask no network
    return replace(job, rated=row.section or stage, resolution=scene.side) if rated else job


def data(s: Scene) -> Work:
    """Return the work of reading, checking and writing all images, by pieces, but for CIFAR's few files."""
    count, disk = s.train + s.val, s.pictures.disk
    seconds = count / rates.nearest(rates.table()["cpu"]["data"], s.side)
    return Work(seconds=seconds, moved=2 * disk, disk=disk, memory=2.5 * min(count * s.pixels, 2**28))


def teacher(s: Scene) -> Work:
    """Return the work of a training, or of a look at weights that are taken from elsewhere."""
    settings = s.network
    trained = s.training(settings, s.teacher, adopted=bool(settings.weights))
    if settings.weights:
        return trained
    if settings.progressive_from < 1 and s.side and not s.shapes.assume:
        from wmdd.stages.teacher import side_of

        flop = sum(s.counts(settings, side_of(settings, s.side, epoch)).flop for epoch in range(settings.epochs))
        trained = replace(trained, flop=3 * s.train * flop + evaluations(settings) * s.val * s.teacher.flop)
    return replace(trained, gpus=s.experiment.gpus(str(s.cell.teacher)))


def features(s: Scene) -> Work:
    """Return the work of a pass over the training images of some classes, or of all."""
    share, disk, moments = s.mine / s.classes, *_features(s)
    size = s.settings("features").batch_size
    at_once = min(size, max(1, CACHED // max(1, s.side) ** 2))
    return replace(
        s.forward(share * s.train, s.teacher, at_once),
        moved=share * (s.train * s.pixels + disk), disk=share * disk, decoded=share * s.pictures.decoded(1, 0),
        memory=5 * SHARD + 3 * moments + 16 * s.train + 16 * size * s.pixels + s.teacher.bytes,
    )  # fmt: skip


def gather(s: Scene) -> Work:
    """Return the work of joining what the jobs of a features pass have made."""
    disk, moments = _features(s)
    return Work(moved=2 * disk, disk=disk, memory=5 * SHARD + 3 * moments + 16 * s.train)


def _features(s: Scene) -> tuple[float, float]:
    """Return the bytes of a dataset's features and statistics, and of the latter."""
    moments = 16 * s.classes * s.teacher.channels
    return s.train * (4 * s.teacher.features + 8) + moments, moments


def barycenter(s: Scene) -> Work:
    """Return the work of a barycenter of each class's features."""
    return s.barycenters(s.settings("barycenter"), s.teacher.features, 4)


def recover(s: Scene) -> Work:
    """Return the work of recovering the images of a block."""
    settings, area = s.settings("recover"), s.pixels / 3
    flop, moved = recovering(settings, s.images, s.teacher.flop, s.side)
    few, many = min(AT_ONCE[0], AT_ONCE[1] / area), LARGEST * 224**2 / area
    at_once = settings.batch_size if settings.coupled else max(s.ipc, few)
    return Work(
        images=settings.iterations * s.images, steps=settings.iterations * _recover_batches(s, settings),
        flop=flop, moved=moved, disk=s.bytes, passed=s.step_bytes(min(s.images, at_once), s.teacher),
        # four copies of the block as float32 in the end, three of the images at once in a checkpoint; statistics, atoms
        memory=4 * s.pixels * (4 * s.images + 3 * min(s.images, many)) + 2 * s.teacher.bytes
        + s.mine * (32 * s.teacher.channels + 8 * s.ipc * s.teacher.features),
        width=s.teacher.width,
    )  # fmt: skip


def _recover_batches(s: Scene, settings: Any) -> int:
    """Return the batches of `batch_size` images of a block; the engine may cut those of decoupled losses otherwise."""
    if settings.coupled and settings.composition == "across":
        return math.ceil(s.ipc / max(1, settings.batch_size // s.mine))
    return math.ceil(s.mine / max(1, settings.batch_size // s.ipc))


def join(s: Scene) -> Work:
    """Return the work of joining blocks."""
    blocks = s.shapes.blocks.names(s.cell)
    largest = max(len(s.cell.having(block=block).classes) for block in blocks) * s.ipc
    return Work(moved=2 * s.bytes, disk=s.bytes, memory=3 * largest * s.pixels)


def images(s: Scene) -> Work:
    """Return the work of taking a set that others made, at which the teacher looks once."""
    return replace(
        s.forward(s.images, s.teacher, 128), moved=5 * s.bytes, disk=s.bytes, memory=16 * s.bytes + s.teacher.bytes
    )


def select(s: Scene) -> Work:
    """Return the work of choosing images: without looking, by the teacher, or as near the atoms of a barycenter."""
    settings, disk = s.settings("select"), s.bytes
    if settings.drawn:
        return Work(moved=2 * disk, disk=disk, memory=2 * disk)
    if settings.strategy == "patches":
        crops = s.classes * min(settings.candidates, s.points) * settings.crops
        scored = s.forward(crops, s.teacher, 128)
        return replace(scored, moved=2 * disk, disk=disk, memory=2 * disk)
    solver = BarycenterSettings(weights="free", restarts=s.settings("barycenter").restarts)
    solved = s.barycenters(solver, s.teacher.features, 4, round(s.held * settings.tiles**2))
    moved = 4 * s.train * s.teacher.features + 2 * disk
    memory = 2 * disk + s.solver_bytes(round(s.held * settings.tiles**2), s.teacher.features)
    return replace(solved, moved=moved, disk=disk, memory=memory)


def distance(s: Scene) -> Work:
    """Return the work of one barycenter of each class in features."""
    return replace(
        s.forward(s.mine * s.held, s.teacher, 128),
        moved=s.bytes + 4 * s.train * s.teacher.features,
        memory=2 * s.bytes + s.solver_bytes(round(s.held), s.teacher.features) + 2 * s.teacher.bytes,
    )


def relabel(s: Scene) -> Work:
    """Return the work of a look of every teacher of the labels at every view whose labels are kept."""
    settings, teachers = s.settings("relabel"), s.teachers_of_labels()
    seen, label = settings.labelled * s.images, bytes_of_view(settings, s.classes)
    size = settings.statistics_batch if settings.statistics == "batch" else settings.batch_size
    labelled = [s.forward(seen, teacher, min(s.images, size)) for teacher in teachers]
    memory = 1.25 * s.bytes + 16 * s.images * s.classes + 2 * sum(teacher.bytes for teacher in teachers)
    moved = seen * (4 * s.pixels + label)
    return replace(
        labelled[0], images=sum(work.images for work in labelled), flop=sum(work.flop for work in labelled), moved=moved,
        disk=seen * label, memory=memory, passed=2 * max(work.passed for work in labelled),
    )  # fmt: skip


def student(s: Scene) -> Work:
    """Return the work of training the students of a job side by side."""
    settings, labels, together = s.settings("student"), s.settings("relabel"), s.experiment.file.runs_per_job
    source = labels.store if settings.labels == "soft" else "hard"
    teachers = s.teachers_of_labels() if source == "online" else [NOTHING]
    label = bytes_of_view(labels, s.classes) if source not in ("online", "hard") else 0
    network, looks, size = s.counts(settings), evaluations(settings), min(s.images, settings.batch_size)
    seen, evaluated = settings.epochs * s.images, looks * s.val
    step = s.step_bytes(size, network)
    step += max(s.forward_bytes(size, teacher) for teacher in teachers) if source == "online" else 0
    memory, seconds = s.whitening(settings.whiten)
    return Work(
        images=together * (seen + evaluated), steps=together * settings.epochs * batches(s.images, settings.batch_size),
        flop=together * (seen * (3 * network.flop + sum(t.flop for t in teachers)) + evaluated * network.flop),
        moved=together * (seen * (4 * s.pixels + label) + evaluated * s.pixels),
        memory=memory + 1.25 * s.bytes + s.pictures.held(s.val) + 16 * EVALUATED * s.pixels
        + 6 * together * network.bytes + 8 * s.images * s.classes,
        passed=together * max(step, s.forward_bytes(EVALUATED, network)), seconds=seconds,
        decoded=together * s.pictures.decoded(0, looks), width=network.width,
    )  # fmt: skip


def embedding(s: Scene) -> Work:
    """Return the work of a map of real images and of each method's with most images per class."""
    runs = [r for r in s.experiment.runs() if (r.dataset, r.teacher) == (s.cell.dataset, s.cell.teacher)]
    most, classes = max((r.ipc for r in runs), default=1), min(MAPPED[0], s.classes)
    count = classes * min(MAPPED[1], most) * len({r.method for r in runs if r.ipc == most})
    points, flop = count + classes * MAPPED[2], count * s.teacher.flop
    memory = 2**28 + 32 * points * s.teacher.features + 16 * count * s.pixels
    return Work(flop=flop, moved=count * s.pixels, seconds=MAPPING[0] * points + flop / MAPPING[1], memory=memory)


def bytes_of_view(settings: RelabelSettings, classes: int) -> float:
    """Return the bytes of one view's labels in the file (`wmdd.stages.labels`), before compression."""
    if settings.store == "pruned":
        k = min(settings.top_k, classes) or classes
        return classes + 4 if k == classes else k * (2 if classes <= 256 else 3) + 6
    return 2 * classes


LAWS: dict[str, Law] = {
    "grid": lambda s: Work(memory=2**28),
    "page": lambda s: Work(memory=2**29 + 2**18 * s.inputs),  # the JSON of each input, and the pictures
    **dict.fromkeys(("report", "distances", "table", "scoreboard"), lambda s: Work(memory=2**27 + 2**18 * s.inputs)),
    **{law.__name__: law for law in (data, teacher, features, gather, barycenter, recover, join, images, select)},
    **{law.__name__: law for law in (distance, relabel, student, embedding, *match_laws.LAWS, *latent_laws.LAWS)},
}
