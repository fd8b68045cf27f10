"""What students at full width learn from real and distilled images at equal steps, under the presets: see `benchmarks.gpu`.

One teacher; of each seed `random`, `wmdd-plus` and `wmdd` (its barycenter with free weights, which needs no linear program),
and the whole training set, of which an epoch shows as many images as of the others. A row has the accuracy after the last
epoch, the steps, and the seconds. Its measure is the share of the gap closed, (method - random) / (whole - random).
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.machine import engine_of, settings
from benchmarks.published_students import MEAN, STD
from benchmarks.school import Tree, decoded
from wmdd.base.rng import generator
from wmdd.datasets.loader import Resident
from wmdd.networks.batchnorm import ClassMoments
from wmdd.networks.context import quiet
from wmdd.networks.engine import Engine
from wmdd.networks.normalisation import Normalisation
from wmdd.stages import features, labels, recover, select, student, teacher
from wmdd.stages.point_clouds import Cloud, Confident
from wmdd.stages.shown import Shown
from wmdd.transport import quantize

if TYPE_CHECKING:
    from benchmarks.gpu import Report

METHODS = ("random", "whole", "wmdd-plus", "wmdd")
CELLS = [("bps", 10), ("bps", 50), ("paper", 10), ("fadrm", 10), ("rectified", 50), ("fadrm-1", 50)]
OPTIMIZERS = ("adamw", "muon")
CONFIDENT = 0.2  # of wmdd-plus
NORMALISATION = Normalisation(MEAN, STD)
PRESETS = Path(__file__).parents[1] / "wmdd/workflow/presets.yaml"


@dataclass(frozen=True)
class Size:
    """Of networks and trainings."""

    width: int = 64
    teacher_epochs: int = 15
    iterations: int = 2000
    epochs: int = 0  # of students; 0: as the protocol says
    cells: tuple[tuple[str, int], ...] = tuple(CELLS)


TOY = Size(4, 1, 2, 1, (("bps", 1),))


def protocol(name: str, side: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of the views and of the student of a preset, for images of a side."""
    import yaml

    presets = yaml.safe_load(PRESETS.read_text())["protocols"]
    chain: list[dict[str, Any]] = []
    found = presets[name]
    while found is not None:
        chain.insert(0, found)
        found = presets.get(found.get("base"))
    views: dict[str, Any] = {}
    learning: dict[str, Any] = {}
    for part in chain:
        sections = [
            part,
            *(part[f"up_to_{limit}px"] for limit in (64, 32) if side <= limit and f"up_to_{limit}px" in part),
        ]
        for section in sections:
            views |= section.get("relabel", {})
            learning |= section.get("student", {})
    return views, learning


class Study:
    """The pictures, the teacher, and what it says of them."""

    def __init__(self, options: argparse.Namespace, root: Path, size: Size) -> None:
        self.size = size
        self.engine: Engine = engine_of(options)
        tree = Tree.of(root, options.device)
        files = [(file, label) for label, mine in enumerate(tree.train) for file in mine]
        images = decoded([file for file, _ in files], tree.resolution)
        self.train = Resident(images, torch.tensor([label for _, label in files]))
        self.val, self.classes = tree.val, len(tree.train)
        pictures = Resident(images.to(self.engine.device), self.train.labels)
        wanted = settings("TeacherSettings", width=size.width, epochs=size.teacher_epochs, crop="pad", lr=0.2, optimizer="sgd",
                          batch_size=128, warmup_epochs=min(2, size.teacher_epochs - 1))  # fmt: skip
        start = time.monotonic()
        self.teacher, history = teacher.train(
            pictures, self.val, self.classes, NORMALISATION, wanted, 0, quiet(self.engine)
        )
        self.teacher.eval()
        self.facts = {"width": size.width, "epochs": size.teacher_epochs, "top1": round(100 * history[-1]["top1"], 2),
                      "seconds": round(time.monotonic() - start, 1)}  # fmt: skip
        shards = list(
            features.extract(self.teacher, pictures, NORMALISATION, settings("FeaturesSettings"), self.engine)
        )
        moments = ClassMoments()
        for shard in shards:  # of a class that goes on, the later moments hold the earlier ones
            moments.count |= shard.moments.count
            moments.sums |= shard.moments.sums
            moments.widths = shard.moments.widths
        self.statistics = moments.statistics()
        cloud = Cloud(torch.cat([shard.features for shard in shards]), self.train.labels.numpy())
        head = self.teacher.head
        self.all = cloud
        self.sure = Confident(cloud, head.weight.detach().float().cpu(), head.bias.detach().float().cpu(), CONFIDENT)

    def images(self, method: str, ipc: int, seed: int) -> Tensor:
        """Return the images [C, K, 3, R, R] of a method."""
        if method == "wmdd":
            atoms = [
                quantize(self.all.read(self.all.rows(c)), ipc, generator=generator("barycenter", seed, c)).atoms
                for c in range(self.classes)
            ]
            return recover.recover(
                self.teacher, torch.arange(self.classes), torch.stack(atoms).float(), torch.full((self.classes, ipc), 1 / ipc),
                self.statistics, self.train.resolution, NORMALISATION,
                settings("RecoverSettings", iterations=self.size.iterations), seed, quiet(self.engine),
            )  # fmt: skip
        strategy = "kmeans-medoid" if method == "wmdd-plus" else method
        positions, _ = select.select(
            self.train.labels, [str(c) for c in range(self.classes)], ipc, self.sure if method == "wmdd-plus" else None,
            settings("SelectSettings", strategy=strategy), settings("BarycenterSettings", confident=CONFIDENT), seed,
        )  # fmt: skip
        return self.train.images[positions]

    def student(self, images: Tensor, ipc: int, name: str, optimizer: str, seed: int) -> dict[str, Any]:
        """Train a student under a protocol; return its accuracy in percent, its steps and seconds."""
        views, learning = protocol(name, self.train.resolution)
        view_keys = ("crop_scale", "flip", "mix", "patches")
        augmentation = settings("AugmentationSettings", **{key: views[key] for key in view_keys if key in views})
        learning |= {"optimizer": optimizer, "width": self.size.width}
        learning |= {"epochs": self.size.epochs} if self.size.epochs else {}
        wanted = settings("StudentSettings", **learning | {"evaluate_every": learning["epochs"]})
        shown = Shown(self.classes, images.shape[1], ipc)
        batch = views.get("statistics_batch", 0) if views.get("statistics") == "batch" else 0
        start = time.monotonic()
        trained = student.train(
            images.flatten(0, 1), torch.arange(self.classes).repeat_interleave(images.shape[1]),
            torch.ones(images.shape[0] * images.shape[1]), labels.online(seed, self.teacher, batch), self.val, self.classes,
            NORMALISATION, wanted, augmentation, seed, (0,), quiet(self.engine), shown=shown,
        )  # fmt: skip
        steps = wanted.epochs * shown.steps(wanted.batch_size)
        return {"top1": round(100 * trained[0].history[-1]["top1"], 2), "steps": steps,
                "seconds": round(time.monotonic() - start, 1)}  # fmt: skip


def cells(size: Size, seeds: int) -> Iterator[tuple[str, str, int, int]]:
    """Yield protocol, optimiser, images per class and seed of each comparison; a first seed of all before a second."""
    for optimizer, seed, (name, ipc) in product(OPTIMIZERS, range(seeds), size.cells):
        yield name, optimizer, ipc, seed


def run(options: argparse.Namespace, root: Path, report: "Report") -> None:
    """Train students until the time is over."""
    size = TOY if options.toy else Size()
    if not report.room("study", 60):
        return
    study = Study(options, root, size)
    report.content["teacher"] = study.facts
    sets: dict[tuple[str, int, int], Tensor] = {}
    pace, setting_up, longest = 0.0, 0.0, 0  # seconds a step of the longest training so far; and of the making of a set
    for name, optimizer, ipc, seed in cells(size, options.seeds):
        _, learning = protocol(name, study.train.resolution)
        steps = (size.epochs or learning["epochs"]) * -(-ipc * study.classes // learning["batch_size"])
        for method in METHODS:
            row = {"method": method, "ipc": ipc, "protocol": name, "optimizer": optimizer, "seed": seed}
            missing = (method, ipc, seed) not in sets
            needed = 1.2 * pace * steps + missing * setting_up
            if not report.room(f"{method}, {ipc}, {name}, {optimizer}, seed {seed}", needed):
                continue
            if missing:
                start = time.monotonic()
                sets[method, ipc, seed] = study.images(method, ipc, seed)
                setting_up = max(setting_up, time.monotonic() - start)
            result = study.student(sets[method, ipc, seed], ipc, name, optimizer, seed)
            if result["steps"] >= longest:
                longest, pace = result["steps"], result["seconds"] / result["steps"]
            report.add("study", row | result)
