"""Whether every way in which the engine computes gives what the reference gives: see `benchmarks.gpu`.

The reference is mode `plain` in float32 on the same device, and that is compared with the CPU. A check is right if the largest
relative difference of what two ways compute is within its tolerance: rounding in float32 grows over a few steps, and bf16 has
three digits.
"""

import argparse
import copy
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.machine import engine_of, settings
from benchmarks.published_students import MEAN, STD
from benchmarks.stages_recover import Problem, every
from wmdd.base.rng import generator
from wmdd.datasets.loader import Resident
from wmdd.networks import models
from wmdd.networks.context import quiet
from wmdd.networks.engine import Engine
from wmdd.networks.normalisation import Normalisation
from wmdd.stages import features, labels, recover, relabel, student

if TYPE_CHECKING:
    from benchmarks.gpu import Report

FP32, BF16 = 2e-3, 5e-2  # tolerances, relative to the largest value
NORMALISATION = Normalisation(MEAN, STD)
CLASSES, PER_CLASS = 10, 4


@dataclass(frozen=True)
class Way:
    """How the engine computes, and how far the results may be off."""

    name: str
    engine: dict[str, Any]
    tolerance: float


def ways(options: argparse.Namespace) -> list[Way]:
    """Return the ways that are compared with `plain` in float32."""
    exact = [Way(f"{mode}, fp32", {"mode": mode, "precision": "fp32"}, FP32) for mode in options.modes]
    return [*exact, Way(f"{options.modes[0]}, bf16", {"mode": options.modes[0], "precision": "bf16"}, BF16)]


def off(values: Tensor, reference: Tensor) -> float:
    """Return the largest difference relative to the largest value of the reference."""
    values, reference = values.double().cpu(), reference.double().cpu()
    return float((values - reference).abs().max() / reference.abs().max().clamp_min(1e-12))


@dataclass(frozen=True)
class School:
    """A small set of noise, a teacher with fresh weights, and what is computed of them."""

    side: int
    width: int
    steps: int

    @property
    def images(self) -> Tensor:
        """Return uint8 pictures [N, 3, R, R]."""
        shape = (CLASSES * PER_CLASS, 3, self.side, self.side)
        return torch.randint(256, shape, generator=generator("pictures"), dtype=torch.uint8)

    @property
    def own(self) -> Tensor:
        """Return their classes [N]."""
        return torch.arange(CLASSES).repeat_interleave(PER_CLASS)

    def teacher(self) -> models.Network:
        """Return the teacher, whose BatchNorm has seen the pictures."""
        network = models.build(settings("NetworkSettings", width=self.width), CLASSES, self.side, generator("teacher"))
        with torch.no_grad():
            network.train()(models.normalise(self.images, NORMALISATION))
        return network.eval()

    def losses_of_recover(self, engine: Engine) -> Tensor:
        """Return the loss of each iteration of recover."""
        problem, losses = Problem.of(self.side, self.width, 3, PER_CLASS), list[float]()
        context = replace(quiet(engine), progress=every, log=lambda values, _: losses.append(values["loss"]))
        recover.recover(
            copy.deepcopy(problem.network), torch.arange(3), problem.atoms, torch.full((3, PER_CLASS), 1 / PER_CLASS),
            problem.statistics, self.side, NORMALISATION, settings("RecoverSettings", iterations=self.steps), 0, context,
        )  # fmt: skip
        return torch.tensor(losses)

    def recovered(self, engine: Engine) -> Tensor:
        """Return the images of recover after a few iterations, in [0, 1]."""
        problem = Problem.of(self.side, self.width, 3, PER_CLASS)
        images = recover.recover(
            copy.deepcopy(problem.network), torch.arange(3), problem.atoms, torch.full((3, PER_CLASS), 1 / PER_CLASS),
            problem.statistics, self.side, NORMALISATION, settings("RecoverSettings", iterations=5), 0, quiet(engine),
        )  # fmt: skip
        return images / 255

    def losses_of_students(self, engine: Engine, runs: tuple[int, ...] = (0,), optimizer: str = "adamw") -> Tensor:
        """Return the loss of each epoch of the first of some students."""
        trained = student.train(
            self.images, self.own, torch.ones(len(self.own)), labels.online(0, self.teacher()), Resident(self.images, self.own),
            CLASSES, NORMALISATION, settings("StudentSettings", width=self.width, epochs=self.steps, batch_size=16,
            optimizer=optimizer, evaluate_every=self.steps), settings("AugmentationSettings"), 0, runs, quiet(engine),
        )  # fmt: skip
        return torch.tensor([epoch["loss"] for epoch in trained[0].history])

    def answers(self, engine: Engine) -> Tensor:
        """Return the teacher's logits of the views of two epochs."""
        parts = relabel.relabel(
            self.teacher(), self.images, NORMALISATION, relabel.seeds_of(0, 2), settings("AugmentationSettings"), 16,
            quiet(engine),
        )  # fmt: skip
        return torch.cat([part.cpu() for part in parts])

    def embedded(self, engine: Engine) -> Tensor:
        """Return the features of the pictures."""
        network = engine.place(self.teacher())
        wanted = settings("FeaturesSettings")
        shards = features.extract(network, Resident(self.images, self.own), NORMALISATION, wanted, engine)
        return torch.cat([shard.features for shard in shards])


def compared(school: School, options: argparse.Namespace) -> Iterator[tuple[str, float, Callable[[], float]]]:
    """Yield the name of each check, its tolerance, and what computes the difference."""
    plain = {"mode": "plain", "precision": "fp32"}
    parts = {
        "recover": school.losses_of_recover, "student": school.losses_of_students, "labels": school.answers,
        "features": school.embedded,
    }  # fmt: skip

    cpu = argparse.Namespace(**vars(options) | {"device": "cpu"})

    def against_cpu(part: str) -> float:
        reference = parts[part](engine_of(cpu, **plain))
        return off(parts[part](engine_of(options, **plain)), reference)

    def against_plain(part: str, way: Way) -> float:
        reference = parts[part](engine_of(options, **plain))
        return off(parts[part](engine_of(options, **way.engine)), reference)

    for part in parts:
        yield f"{part}: plain, {options.device} against CPU", FP32, partial(against_cpu, part)
        for way in ways(options):
            yield f"{part}: {way.name} against plain", way.tolerance, partial(against_plain, part, way)
    fast = {"mode": options.modes[0], "precision": "fp32"}
    yield "three students side by side against one", FP32, lambda: off(
        school.losses_of_students(engine_of(options, **fast), (0, 1, 2)), school.losses_of_students(engine_of(options, **fast))
    )  # fmt: skip
    yield (
        "student with Muon: fast against plain",
        FP32,
        lambda: off(
            school.losses_of_students(engine_of(options, **fast), optimizer="muon"),
            school.losses_of_students(engine_of(options, **plain), optimizer="muon"),
        ),
    )
    yield "recovered images: 4 at once against as memory allows", 1.5 / 255, lambda: off(
        school.recovered(engine_of(options, **fast, images_at_once=PER_CLASS)), school.recovered(engine_of(options, **fast))
    )  # fmt: skip


def run(options: argparse.Namespace, report: "Report") -> None:
    """Make every check that there is time for; one that fails to run is wrong, and says why."""
    school = School(8, 4, 4) if options.toy else School(32, 16, 20)
    for name, tolerance, difference in compared(school, options):
        if not report.room(name, 10):
            continue
        row: dict[str, Any] = {"check": name, "tolerance": tolerance}
        try:
            value = difference()
            row |= {"difference": float(f"{value:.3g}"), "right": value <= tolerance}
        except Exception as error:  # a driver or a compiler may refuse anything; the other checks still tell something
            row |= {"right": False, "error": "".join(traceback.format_exception_only(error)).strip()[:500]}
        report.add("checks", row)
