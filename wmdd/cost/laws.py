"""Laws: what a job of each stage has to do, from the settings of its cell and the shapes of dataset and networks.

The formulas are those of docs/cost.md. A law knows of no other job. What is not known is NaN, and stays it; of a stage without
a law nothing is known.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from wmdd.cost import rates
from wmdd.cost.dataset import NAN
from wmdd.cost.flop import NOTHING, recovering
from wmdd.cost.scene import LOOKED, Scene, Shapes, Work, batches, evaluations
from wmdd.settings.barycenter import BarycenterSettings
from wmdd.settings.student import RelabelSettings
from wmdd.workflow.layout import Cell
from wmdd.workflow.stages import STAGES, Stage

# Of the stages, whose modules import torch; a test compares them.
SHARD, CACHED = 2**24, 2**19  # wmdd.stages.features
AT_ONCE = (128, 2**21)  # images and pixels of a pass on CPU: wmdd.networks.engine
LARGEST = 400  # images of 224 px at once on a GPU: wmdd.stages.recover
MEASURED = 2000  # points whose intrinsic dimension is measured: wmdd.transport.dimension
MAPPED = (10, 10, 60)  # classes, distilled and real images of each: wmdd.stages.embedding
MAPPING = (0.01, 5e10)  # seconds a point, FLOP/s of a core that makes a map
LAUNCHED = 0.02  # seconds of the host a pass through a network that is too small to keep a GPU busy, assumed


Law = Callable[[Scene], Work]
LAWS: dict[str, Law] = {}  # by the name of the stage
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
    done = law(scene) if law else UNKNOWN
    rated = row.network and done.passed != 0  # some strategies of select ask no network
    return replace(done, rated=row.section or stage, resolution=scene.side) if rated else done


def _law(law: Law) -> Law:
    LAWS[law.__name__] = law
    return law


@_law
def data(s: Scene) -> Work:
    """Return the work of reading, checking and writing all images, by pieces, but for CIFAR's few files."""
    count, disk = s.train + s.val, s.pictures.disk
    seconds = count / rates.nearest(rates.table()["cpu"]["data"], s.side)
    return Work(seconds=seconds, moved=2 * disk, disk=disk, memory=2.5 * min(count * s.pixels, 2**28))


@_law
def teacher(s: Scene) -> Work:
    """Return the work of a training, or of a look at weights that are taken from elsewhere."""
    settings = s.network
    trained = s.training(settings, s.teacher, adopted=bool(settings.weights))
    if settings.weights:
        return trained
    if settings.progressive_from < 1 and s.side and not s.shapes.assume:
        from wmdd.stages.teacher import side_of

        flop = sum(s.figures(settings, side_of(settings, s.side, epoch)).flop for epoch in range(settings.epochs))
        trained = replace(trained, flop=3 * s.train * flop + evaluations(settings) * s.val * s.teacher.flop)
    return replace(trained, gpus=s.experiment.gpus(str(s.cell.teacher)))


@_law
def features(s: Scene) -> Work:
    """Return the work of a pass over the training images of some classes, or of all."""
    share, disk, moments = s.mine / s.classes, *_features(s)
    size = s.settings("features").batch_size
    at_once = min(size, max(1, CACHED // max(1, s.side) ** 2))
    return replace(
        s.looking(share * s.train, s.teacher, at_once),
        moved=share * (s.train * s.pixels + disk), disk=share * disk, decoded=share * s.pictures.decoded(1, 0),
        memory=5 * SHARD + 3 * moments + 16 * s.train + 16 * size * s.pixels + s.teacher.bytes,
    )  # fmt: skip


@_law
def gather(s: Scene) -> Work:
    """Return the work of joining what the jobs of a features pass have made."""
    disk, moments = _features(s)
    return Work(moved=2 * disk, disk=disk, memory=5 * SHARD + 3 * moments + 16 * s.train)


def _features(s: Scene) -> tuple[float, float]:
    """Return the bytes of a dataset's features and statistics, and of the latter."""
    moments = 16 * s.classes * s.teacher.channels
    return s.train * (4 * s.teacher.features + 8) + moments, moments


@_law
def barycenter(s: Scene) -> Work:
    """Return the work of a barycenter of each class's features."""
    return s.solving(s.settings("barycenter"), s.teacher.features, 4)


@_law
def quantize(s: Scene) -> Work:
    """Return the work of a barycenter of each class's latents."""
    solved = s.solving(s.settings("quantize"), s.coder.size, 2)
    return replace(solved, memory=solved.memory + 16 * MEASURED * s.coder.size)


@_law
def recover(s: Scene) -> Work:
    """Return the work of recovering the images of a block."""
    settings, area = s.settings("recover"), s.pixels / 3
    flop, moved = recovering(settings, s.images, s.teacher.flop, s.side)
    few, many = min(AT_ONCE[0], AT_ONCE[1] / area), LARGEST * 224**2 / area
    at_once = settings.batch_size if settings.coupled else max(s.ipc, few)
    return Work(
        images=settings.iterations * s.images, steps=settings.iterations * _recover_batches(s, settings),
        flop=flop, moved=moved, disk=s.bytes, passed=s.step(min(s.images, at_once), s.teacher),
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


@_law
def images(s: Scene) -> Work:
    """Return the work of joining blocks."""
    blocks = s.shapes.blocks.names(s.cell)
    largest = max(len(s.cell.having(block=block).classes) for block in blocks) * s.ipc
    return Work(moved=2 * s.bytes, disk=s.bytes, memory=3 * largest * s.pixels)


@_law
def select(s: Scene) -> Work:
    """Return the work of choosing images: without looking, by the teacher, or as near the atoms of a barycenter."""
    settings, disk = s.settings("select"), s.bytes
    if settings.strategy == "random":
        return Work(moved=2 * disk, disk=disk, memory=2 * disk)
    if settings.strategy == "patches":
        crops = s.classes * min(settings.candidates, s.points) * settings.crops
        looked = s.looking(crops, s.teacher, 128)
        return replace(looked, moved=2 * disk, disk=disk, memory=2 * disk)
    solver = BarycenterSettings(weights="free", restarts=s.settings("barycenter").restarts)
    solved = s.solving(solver, s.teacher.features, 4, s.ipc * settings.tiles**2)
    moved = 4 * s.train * s.teacher.features + 2 * disk
    memory = 2 * disk + s.solver_bytes(s.ipc * settings.tiles**2, s.teacher.features)
    return replace(solved, moved=moved, disk=disk, memory=memory)


@_law
def encode(s: Scene) -> Work:
    """Return the work of a pass of the encoder over the training images of some classes."""
    count, size = s.train * s.mine / s.classes, s.settings("encode").batch_size
    return replace(
        s.looking(count, s.coder.encoder, size),
        moved=count * (s.pixels + 2 * s.coder.size), disk=2 * count * s.coder.size,
        decoded=s.pictures.decoded(1, 0) * s.mine / s.classes,
        memory=5 * SHARD + 16 * count + 16 * size * s.pixels + s.coder.bytes,
    )  # fmt: skip


@_law
def decay(s: Scene) -> Work:
    """Return the work of barycenters of latents with more and more atoms."""
    settings = s.settings("decay")
    each = s.seconds(BarycenterSettings(weights="free"), settings.most, s.coder.size)
    memory = s.solver_bytes(settings.most, s.coder.size) + 16 * MEASURED * s.coder.size
    return Work(seconds=2 * min(settings.classes, s.classes) * each, memory=memory)


@_law
def autoencoder(s: Scene) -> Work:
    """Return the work of training encoder and decoder."""
    settings = s.settings("autoencoder")
    return s.training(settings, s.coder.both._replace(width=settings.width))


@_law
def diffusion(s: Scene) -> Work:
    """Return the work of training on latents, which are held in memory."""
    settings = s.settings("diffusion")
    trained = s.training(settings, s.coder.unet._replace(width=settings.width))
    return replace(trained, decoded=0, memory=trained.memory + 8 * s.train * s.coder.size)


@_law
def decode(s: Scene) -> Work:
    """Return the work of denoising and decoding the atoms of a block."""
    how, coder = s.settings("decode"), s.coder
    steps = math.ceil(how.strength * how.steps) * (1 if how.guidance in (0, 1) else 2)
    passed = s.look(how.batch_size, coder.decoder) + 8 * how.batch_size * coder.unet.outputs
    return Work(
        images=s.images, flop=s.images * (coder.decoder.flop + steps * coder.unet.flop), passed=passed,
        moved=s.images * (s.pixels + 4 * coder.size), disk=s.bytes,
        memory=3 * s.bytes + 8 * s.images * (coder.size + 1) + coder.bytes,
    )  # fmt: skip


@_law
def expert(s: Scene) -> Work:
    """Return the work of a training that keeps the network after each epoch."""
    settings = s.settings("expert")
    network = s.figures(settings)
    kept = network._replace(bytes=(settings.epochs + 1) * network.bytes)
    trained = s.training(settings, kept)
    memory, seconds = s.whitening(settings.whiten)
    return replace(trained, memory=trained.memory + memory, seconds=seconds)


@_law
def match(s: Scene) -> Work:
    """Return the work of matching distributions of features, or trajectories of experts."""
    settings = s.settings("match")
    network = s.settings("expert") if settings.objective == "mtt" else settings
    figures = s.figures(network)
    if settings.objective == "mtt":
        batch, steps = min(s.images, settings.student_batch or s.images), settings.iterations * settings.student_steps
        passes, passed = steps * batch, 3 * s.step(batch, figures)
        flop, moved = 11 * passes * figures.flop, steps * 5 * figures.bytes
        memory, seconds = s.whitening(network.whiten)
        memory += 2 * settings.student_steps * figures.bytes
    else:
        real, steps = s.mine * settings.real_batch, settings.iterations
        passes = steps * (real + s.images)
        flop, moved = steps * (real + 3 * s.images) * figures.flop, passes * s.pixels
        passed = s.step(min(s.images, max(s.ipc, AT_ONCE[0])), figures) + 24 * real * s.pixels
        memory, seconds = s.pictures.held(s.train) + 2 * figures.bytes, 0.0
    return Work(
        images=passes, steps=settings.iterations, flop=flop, moved=moved, disk=s.bytes, passed=passed,
        memory=memory + 32 * s.bytes, seconds=seconds + LAUNCHED * steps,
        width=figures.width,
    )  # fmt: skip


@_law
def distance(s: Scene) -> Work:
    """Return the work of one barycenter of each class in features."""
    return replace(
        s.looking(s.images, s.teacher, 128),
        moved=s.bytes + 4 * s.train * s.teacher.features,
        memory=2 * s.bytes + s.solver_bytes(s.ipc, s.teacher.features) + 2 * s.teacher.bytes,
    )


@_law
def relabel(s: Scene) -> Work:
    """Return the work of a look of the teacher at every view whose labels are kept."""
    settings = s.settings("relabel")
    seen, label = settings.labelled * s.images, bytes_of_view(settings, s.classes)
    looked = s.looking(seen, s.teacher, min(s.images, settings.batch_size))
    memory = s.images * (1.25 * s.pixels + 16 * s.classes) + 2 * s.teacher.bytes
    moved = seen * (4 * s.pixels + label)
    return replace(looked, moved=moved, disk=seen * label, memory=memory, passed=2 * looked.passed)


@_law
def student(s: Scene) -> Work:
    """Return the work of training the students of a job side by side."""
    settings, labels, together = s.settings("student"), s.settings("relabel"), s.experiment.file.runs_per_job
    taught = labels.store if settings.labels == "soft" else "hard"
    asked = s.teacher if taught == "online" else NOTHING
    label = bytes_of_view(labels, s.classes) if taught not in ("online", "hard") else 0
    network, looks, size = s.figures(settings), evaluations(settings), min(s.images, settings.batch_size)
    seen, looked = settings.epochs * s.images, looks * s.val
    step = s.step(size, network) + (s.look(size, asked) if taught == "online" else 0)
    memory, seconds = s.whitening(settings.whiten)
    return Work(
        images=together * (seen + looked), steps=together * settings.epochs * batches(s.images, settings.batch_size),
        flop=together * (seen * (3 * network.flop + asked.flop) + looked * network.flop),
        moved=together * (seen * (4 * s.pixels + label) + looked * s.pixels), decoded=together * s.pictures.decoded(0, looks),
        memory=memory + 1.25 * s.bytes + s.pictures.held(s.val) + 16 * LOOKED * s.pixels
        + 6 * together * network.bytes + 8 * s.images * s.classes,
        passed=together * max(step, s.look(LOOKED, network)), seconds=seconds,
        width=network.width,
    )  # fmt: skip


@_law
def embedding(s: Scene) -> Work:
    """Return the work of a map of real images and of each method's with most images per class."""
    runs = [r for r in s.experiment.runs() if (r.dataset, r.teacher) == (s.cell.dataset, s.cell.teacher)]
    most, classes = max((r.ipc for r in runs), default=1), min(MAPPED[0], s.classes)
    count = classes * min(MAPPED[1], most) * len({r.method for r in runs if r.ipc == most})
    points, flop = count + classes * MAPPED[2], count * s.teacher.flop
    memory = 2**28 + 32 * points * s.teacher.features + 16 * count * s.pixels
    return Work(flop=flop, moved=count * s.pixels, seconds=MAPPING[0] * points + flop / MAPPING[1], memory=memory)


LAWS["grid"] = lambda s: Work(memory=2**28)
LAWS["page"] = lambda s: Work(memory=2**29 + 2**18 * s.inputs)  # the JSON of each, and the pictures
LAWS["report"] = LAWS["distances"] = LAWS["table"] = lambda s: Work(memory=2**27 + 2**18 * s.inputs)


def bytes_of_view(settings: RelabelSettings, classes: int) -> float:
    """Return the bytes of one view's labels in the file (`wmdd.stages.labels`), before compression."""
    if settings.store == "pruned":
        k = min(settings.top_k, classes) or classes
        return classes + 4 if k == classes else k * (2 if classes <= 256 else 3) + 6
    return 2 * classes
