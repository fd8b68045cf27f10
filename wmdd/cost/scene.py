"""What laws are made of: the work of a job, what a law sees of it, and the kinds of work that stages share."""

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

from wmdd.cost import flop, rates
from wmdd.cost.blocks import Blocks
from wmdd.cost.dataset import NAN, Pictures, pictures
from wmdd.cost.flop import NOTHING, UNKNOWN, Counts
from wmdd.settings.barycenter import TransportSettings
from wmdd.settings.network import NetworkSettings, OptimisationSettings
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.layout import Cell

# Of modules that import torch; a test compares them.
EVALUATED = 500  # images that are evaluated at once: wmdd.networks.training
AT_ONCE = (128, 2**21)  # images and pixels of a pass on CPU: wmdd.networks.engine
SHARD = 2**24  # wmdd.stages.features


@dataclass(frozen=True)
class Work:
    """What a job has to do."""

    images: float = 0  # that pass through a network, each as often as it does
    steps: float = 0  # of the optimiser
    flop: float = 0  # of all passes
    moved: float = 0  # bytes that go through memory at least: inputs, outputs, and what every step changes
    disk: float = 0  # bytes of its outputs, before compression
    memory: float = 0  # bytes of the arrays that it holds in the memory of the CPU
    passed: float = 0  # bytes of its largest pass through a network, on the GPU if there is one; 0: it runs none
    seconds: float = 0  # of a core without a network; of a job that runs one, what the host needs at least
    decoded: float = 0  # pictures that are decoded beside it
    resolution: int = 0  # side of the images
    width: int = 0  # of the network, by which its rate is scaled; 0 where it has none
    gpus: int = 1  # that share it
    rated: str = ""  # the stage at whose rate it runs; empty: it runs no network


class Shapes:
    """What the jobs of an experiment share: its settings, and what is known of its datasets.

    With `assume` what they don't tell is assumed, as the workflow does: no file is looked at and no network built.
    """

    def __init__(self, experiment: Experiment, assume: bool = False) -> None:
        self.experiment, self.assume = experiment, assume
        self.blocks = Blocks(experiment)
        self.notes: dict[str, None] = {}  # what is to be said about what is not known, each once
        self.pictures = cache(self._pictures)

    def _pictures(self, dataset: str) -> Pictures:
        settings = self.experiment.resolve("data", dataset=dataset)
        return pictures(dataset, settings, None if self.assume else self.note)

    def note(self, line: str) -> None:
        """Say something, once."""
        self.notes[line] = None


class Coder(NamedTuple):
    """A generator: how many numbers its latents have, and its networks, as far as they are known."""

    size: float
    bytes: float  # of its weights in memory
    encoder: Counts = UNKNOWN
    decoder: Counts = UNKNOWN
    unet: Counts = NOTHING

    @property
    def both(self) -> Counts:
        """Encoder and decoder as one network."""
        flop, size, channels, stored, outputs = map(sum, zip(self.encoder[:5], self.decoder[:5], strict=True))
        return Counts(flop, size, channels, stored, outputs)


class Scene:
    """What a law sees: the settings of any stage for a cell, and the shapes of its dataset and networks.

    Attributes:
        train, val: images of the dataset; `side` in pixels, `pixels` bytes of one; `points` of a class.
        classes: of the dataset; `mine` of the job; `images` that an epoch shows, `ipc` of each of the job's classes; of each
            class the set has `held`, which are more if it is the whole training set, or coded; `bytes` of all of these.
        inputs: files that the job reads.
    """

    def __init__(self, shapes: Shapes, cell: Cell, inputs: int = 0) -> None:
        self.experiment, self.shapes, self.cell, self.inputs = shapes.experiment, shapes, cell, inputs
        self.ipc = cell.ipc or 0
        if cell.dataset is not None:
            self.classes: int = self.settings("data").classes
            self.mine = len(cell.classes) if cell.block else self.classes
            self.images = self.mine * self.ipc
            self.pictures = shapes.pictures(cell.dataset)
            self.train, self.val, self.side = self.pictures.train, self.pictures.val, self.pictures.resolution
            self.points, self.pixels = self.train / self.classes, 3 * self.side**2 or NAN
            self.held = self._held(cell)
            self.bytes = self.mine * self.held * self.pixels

    def _held(self, cell: Cell) -> float:
        """Return how many images of a class the set of a cell holds.

        Raw images have 24 bits a pixel, WebP files of quality q some 0.7 + 0.026 q at 32 px (CIFAR-10), and fewer above 64 px.
        """
        if cell.method is None or self.experiment.family(cell.method) != "select":
            return self.ipc
        settings = self.settings("select")
        if settings.strategy == "whole":
            return self.points
        if settings.codec == "none":
            return self.ipc
        fitting = 24 / (0.7 + 0.026 * settings.quality) * (1 if self.side <= 64 else 3)
        return max(self.ipc, min(self.points, self.ipc * fitting))

    def settings(self, stage: str, **other: str) -> Any:
        """Return the settings of a stage for the cell, or for others in place of its parts."""
        return self.experiment.settings(stage, self.cell.having(**other))

    def counts(self, network: NetworkSettings, side: int | None = None) -> Counts:
        """Return the counts of a network on the images, or on those of another side."""
        return flop.counts(network, self.classes, side or self.side, self.shapes.assume)

    @cached_property
    def network(self) -> Any:
        """The teacher's settings."""
        return self.settings("teacher")

    @cached_property
    def teacher(self) -> Counts:
        """The teacher's counts."""
        return self.counts(self.network)

    def teachers_of_labels(self) -> list[Counts]:
        """Return the counts of the teachers of the labels, the distillation's own first."""
        names = self.settings("relabel").teachers
        return [self.teacher, *(self.counts(self.settings("teacher", teacher=name)) for name in names)]

    @cached_property
    def coder(self) -> Coder:
        """The generator of the cell, or of its method, with what encodes for it."""
        name = self.cell.generator or self.experiment.generator(str(self.cell.method))
        kind = self.settings("generator", generator=name)
        if kind.kind == "ldm":
            held = float(rates.table()["asked"]["memory"]["ldm"]) * 2**20
            return Coder(4 * ((kind.size or self.side) // 8) ** 2, held, unet=UNKNOWN)
        if not self.side:
            return Coder(NAN, 0, unet=UNKNOWN)
        trained = self.settings("autoencoder", generator=self.experiment.encoder(name, str(self.cell.dataset)))
        encoder, decoder = flop.autoencoder(trained, self.side)
        unet = NOTHING
        if kind.kind == "latent-diffusion":
            model = self.settings("diffusion", generator=name)
            unet = flop.denoiser(model, trained.channels, self.side // trained.factor, self.classes)
        held = 2 * (encoder.bytes + decoder.bytes + unet.bytes)
        return Coder(encoder.features, held, encoder, decoder, unet)

    def step_bytes(self, images: float, network: Counts) -> float:
        """Return the bytes of a step: images and the copies that views make, and the layers' outputs with normalised ones."""
        return images * (24 * self.pixels + 8 * network.outputs)

    def forward_bytes(self, images: float, network: Counts) -> float:
        """Return the bytes of a pass without a gradient, in which outputs are soon forgotten."""
        return images * (12 * self.pixels + 4 * network.outputs)

    def whitening(self, whiten: bool) -> tuple[float, float]:
        """Return the bytes and seconds of whitening the images, where a network sees them so."""
        size = 3 * self.side**2 if whiten else 0
        return 56 * size**2, 5e-10 * size**3  # measured at 32 px

    def forward(self, count: float, network: Counts, batch: float) -> Work:
        """Return the work of a pass of some images through a network, so many at once."""
        passed = self.forward_bytes(min(count, batch), network)
        return Work(images=count, flop=count * network.flop, passed=passed, width=network.width)

    def training(self, settings: Any, network: Counts, adopted: bool = False) -> Work:
        """Return the work of training a network on the dataset, or only of a look at the validation images if it is adopted."""
        epochs, looks = (0, 1) if adopted else (settings.epochs, evaluations(settings))
        seen, evaluated, held = epochs * self.train, looks * self.val, self.pictures.held
        step = 0 if adopted else self.step_bytes(settings.batch_size / getattr(settings, "accumulate", 1), network)
        return Work(
            images=seen + evaluated, steps=epochs * batches(self.train, settings.batch_size),
            flop=(3 * seen + evaluated) * network.flop, moved=(seen + evaluated) * self.pixels, disk=network.bytes,
            memory=(0 if adopted else held(self.train)) + held(self.val) + 6 * network.bytes + 16 * EVALUATED * self.pixels,
            passed=max(step, self.forward_bytes(EVALUATED, network)), decoded=self.pictures.decoded(epochs, looks),
            width=network.width,
        )  # fmt: skip

    def barycenters(self, solver: TransportSettings, features: float, width: int, atoms: int = 0) -> Work:
        """Return the work of a barycenter of each class, at least one look of every point at every atom.

        Args:
            solver: of the barycenter.
            features: numbers of a point.
            width: bytes of a number.
            atoms: of a class; images per class unless given.
        """
        atoms, numbers = atoms or self.ipc, self.mine * self.points * features
        disk = 4 * self.mine * atoms * (features + 1)
        return Work(
            seconds=self.mine * self.solver_seconds(solver, atoms, features), flop=2 * numbers * atoms, disk=disk,
            moved=width * numbers + disk, memory=2 * disk + self.solver_bytes(atoms, features),
        )  # fmt: skip

    def solver_bytes(self, atoms: int, features: float) -> float:
        """Return the bytes of a class's points and some copies, plans; and the labels of all."""
        return self.points * 16 * (features + atoms) + 24 * self.train

    def solver_seconds(self, solver: TransportSettings, atoms: int, features: float) -> float:
        """Return the seconds of a class by the law fitted to measurements of its solver."""
        names = {"quantize": solver.weights, "stream": "free", "d4m": "free", "released": f"released-{solver.weights}"}
        law = rates.table()["cpu"]["barycenter"].get(names.get(solver.solver))
        if law is None:
            self.shapes.note(f"barycenter: nothing was measured of solver {solver.solver}, weights {solver.weights}")
            return NAN
        size = self.points ** law["points"] * features ** law["features"] * atoms ** law["atoms"]
        return float((solver.restarts + solver.compare_restarts) * law["scale"] * size)


def evaluations(settings: OptimisationSettings) -> int:
    """Return how often a training looks at the validation set."""
    return math.ceil(settings.epochs / settings.evaluate_every)


def batches(count: float, size: int) -> float:
    """Return in how many batches some images pass."""
    return NAN if math.isnan(count) else math.ceil(count / size)
