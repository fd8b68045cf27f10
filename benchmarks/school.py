"""A data set of pictures, a teacher, and distilled sets of random real images that students learn from, either way."""

import argparse
import copy
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks import published_students
from benchmarks.machine import as_installed, engine_of, seconds, settings, synchronise, unchecked
from benchmarks.rows import Row
from wmdd.artifacts import model_files
from wmdd.base.rng import generator
from wmdd.datasets.decode import decode
from wmdd.datasets.loader import Resident
from wmdd.networks import models
from wmdd.networks.context import quiet
from wmdd.networks.engine import Engine
from wmdd.networks.normalisation import Normalisation
from wmdd.networks.state_dicts import restore
from wmdd.stages import labels, relabel, student, teacher


@dataclass(frozen=True)
class Tree:
    """A data set of pictures on disk: files by class, and the validation split also in memory."""

    train: list[list[Path]]
    val_files: list[Path]
    val: Resident
    resolution: int

    @classmethod
    def of(cls, root: Path, device: str) -> "Tree":
        """Read it."""
        folders = sorted(folder for folder in (root / "train").iterdir() if folder.is_dir())
        split = root / "test" if (root / "test").is_dir() else root / "val"
        train = [sorted(folder.iterdir()) for folder in folders]
        val = [sorted((split / folder.name).iterdir()) for folder in folders]
        with Image.open(train[0][0]) as first:
            resolution = first.size[0]
        kinds = torch.tensor([c for c, files in enumerate(val) for _ in files])
        files = [file for part in val for file in part]
        return cls(train, files, Resident(decoded(files, resolution).to(device), kinds), resolution)

    def first(self, count: int) -> "Tree":
        """Return it with the first pictures of the validation split only."""
        val = Resident(self.val.images[:count], self.val.labels[:count])
        return replace(self, val_files=self.val_files[:count], val=val)


def decoded(files: Sequence[Path], resolution: int) -> Tensor:
    """Return pictures, uint8 [N, 3, R, R]."""
    with ThreadPoolExecutor() as pool:  # Pillow decodes without Python's lock
        return torch.from_numpy(np.stack([*pool.map(lambda file: decode(file.read_bytes(), resolution).pixels, files)]))


@dataclass(frozen=True)
class Taught:
    """A teacher and the normalisation that it takes."""

    network: models.Network
    mean: list[float]
    std: list[float]

    @classmethod
    def read(cls, path: Path, tree: Tree) -> "Taught":
        """Take a teacher of the teacher stage."""
        state, meta = model_files.load_model(path)
        known = settings("NetworkSettings", **{k: meta["settings"][k] for k in vars(unchecked("NetworkSettings"))})
        network = restore(known, state, len(tree.train), tree.resolution, str(path))
        return cls(network.eval(), meta["mean"], meta["std"])

    @classmethod
    def train(cls, tree: Tree, width: int, epochs: int, engine: Engine) -> "Taught":
        """Train one for a few epochs."""
        made = settings("TeacherSettings", width=width, epochs=epochs, crop="pad")
        kinds = torch.tensor([c for c, files in enumerate(tree.train) for _ in files])
        pictures = Resident(decoded([file for part in tree.train for file in part], tree.resolution), kinds)
        network, history = teacher.train(
            pictures,
            tree.val,
            len(tree.train),
            Normalisation(published_students.MEAN, published_students.STD),
            made,
            0,
            quiet(engine),
        )
        print(f"teacher: trained here for {epochs} epochs, top-1 {history[-1]['top1']:.3f}", flush=True)
        return cls(network.eval().cpu(), published_students.MEAN, published_students.STD)


@cache
def school(data: Path, given: Path | None, width: int, epochs: int, device: str, threads: int) -> tuple[Tree, Taught]:
    """Return pictures and teacher, which are the same for all sections."""
    tree = Tree.of(data, device)
    if given:
        return tree, Taught.read(given, tree)
    return tree, Taught.train(tree, width, epochs, engine_of(argparse.Namespace(device=device, threads=threads)))


def school_of(options: argparse.Namespace) -> tuple[Tree, Taught]:
    """Return pictures and teacher as the options have them."""
    names = ("data", "teacher", "student_width", "teacher_epochs", "device", "threads")
    return school(*(getattr(options, name) for name in names))


class Watched(Resident):
    """Validation pictures that tell when they were first asked for: the end of the training."""

    def __init__(self, of: Resident) -> None:
        super().__init__(of.images, of.labels)
        self.since = 0.0

    def batches(self, positions: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the pictures at each batch of positions."""
        synchronise()
        self.since = self.since or time.perf_counter()
        return super().batches(positions)


@dataclass(frozen=True)
class Run:
    """Seconds of a student's training and of its evaluation, and its accuracy in [0, 1]."""

    train: float
    evaluate: float
    top1: float


@dataclass(frozen=True)
class Lesson:
    """A distilled set of random real images, and how a student learns from it."""

    options: argparse.Namespace
    tree: Tree
    taught: Taught
    files: list[Path]
    seed: int
    epochs: int

    @classmethod
    def of(cls, options: argparse.Namespace, tree: Tree, taught: Taught, ipc: int, seed: int, epochs: int) -> "Lesson":
        """Choose the images, as the select stage does at random."""
        files = []
        for label, mine in enumerate(tree.train):
            order = torch.randperm(len(mine), generator=generator("select", seed, label))
            files += [mine[i] for i in order[:ipc].tolist()]
        return cls(options, tree, taught, files, seed, epochs)

    @property
    def student(self) -> Any:
        """Settings of the student."""
        return settings(
            "StudentSettings", width=self.options.student_width, epochs=self.epochs, evaluate_every=self.epochs
        )

    @property
    def seeds(self) -> list[int]:
        """Seeds of the views of each epoch."""
        return relabel.seeds_of(self.seed, self.epochs)

    def logits(self, engine: Engine) -> Iterator[Tensor]:
        """Relabel our way, an epoch at a time."""
        return relabel.relabel(
            copy.deepcopy(self.taught.network), decoded(self.files, self.tree.resolution),
            Normalisation(self.taught.mean, self.taught.std), self.seeds, settings("AugmentationSettings"), 256, quiet(engine),
        )  # fmt: skip

    def ours(self, engine: Engine, store: labels.Labels, runs: Sequence[int] = (0,)) -> list[Run]:
        """Train and evaluate our way, several students side by side; of each the seconds are its part of them."""
        classes, watched = len(self.tree.train), Watched(self.tree.val)
        own = torch.arange(classes).repeat_interleave(len(self.files) // classes)
        pixels = decoded(self.files, self.tree.resolution)
        synchronise()
        start = time.perf_counter()
        trained = student.train(
            pixels, own, torch.ones(len(own)), store, watched, classes, Normalisation(self.taught.mean, self.taught.std),
            self.student, settings("AugmentationSettings"), self.seed, runs, quiet(engine),
        )  # fmt: skip
        synchronise()
        assert watched.since, "the validation pictures were not asked for"
        train, evaluate = watched.since - start, time.perf_counter() - watched.since
        return [Run(train / len(runs), evaluate / len(runs), history[-1]["top1"]) for _, history, _ in trained]

    def published(self, folder: Path, workers: int) -> Run:
        """Train and evaluate the published way, with so many processes of the loaders."""
        as_installed(self.options, tf32=self.options.device == "cuda")
        device, made = torch.device(self.options.device), self.student
        draws = generator("student", "weights", self.seed, 0)
        network = models.build(made, len(self.tree.train), self.tree.resolution, draws)
        train = seconds(
            lambda: published_students.student(
                network, self.files, folder, made, self.taught.mean, self.taught.std, self.seed, device, workers
            )
        )
        data = published_students.Files(
            self.tree.val_files, self.tree.val.labels.tolist(), self.taught.mean, self.taught.std
        )
        start = time.perf_counter()
        top1 = published_students.evaluate(network, data, device, workers)
        return Run(train, time.perf_counter() - start, top1)

    def write(self, folder: Path) -> None:
        """Relabel the published way."""
        as_installed(self.options)
        published_students.relabel(
            copy.deepcopy(self.taught.network), self.files, folder, self.epochs, self.student.batch_size,
            settings("AugmentationSettings"), self.taught.mean, self.taught.std, self.seed, torch.device(self.options.device),
        )  # fmt: skip


def accuracy(runs: Sequence[Run]) -> Row:
    """Return mean and standard deviation of the accuracy of students."""
    top1 = [run.top1 for run in runs]
    return {
        "top1": round(statistics.mean(top1), 4),
        "top1 sd": round(statistics.stdev(top1), 4) if len(top1) > 1 else None,
    }
