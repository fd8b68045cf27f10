"""One iteration of recover on 100 images, every way: see `benchmarks.stages`."""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from benchmarks import published
from benchmarks.machine import as_installed, engine_of, settings, synchronise
from benchmarks.rows import Row, Times, ratios, report, spread
from wmdd.networks import models
from wmdd.networks.batchnorm import Statistics, layers
from wmdd.networks.context import quiet
from wmdd.networks.engine import flop
from wmdd.networks.normalisation import Normalisation
from wmdd.stages import recover

CLASSES, PER_CLASS = 10, 10  # of a batch


class Clock:
    """Wraps the iterations of each batch of a stage: times `count` of them after the first `warm`, and then ends the batch.

    What comes before an iteration is counted by its share of all iterations that the stage would take.

    Attributes:
        each: seconds of an iteration of all batches.
        start: seconds until the timed iterations, of all batches.
    """

    def __init__(self, warm: int, count: int) -> None:
        self.warm, self.count, self.each, self.start = warm, count, 0.0, 0.0
        self._since = time.perf_counter()

    def __call__(self, items: Sequence[int], *_: Any, **__: Any) -> Iterator[int]:
        """Yield the items as a progress bar does."""
        first = time.perf_counter()
        self.each += (first - self._since) / len(items)
        for position, item in enumerate(islice(items, self.warm + self.count)):
            if position == self.warm:
                synchronise()
                first = time.perf_counter()
                self.start += first - self._since
            yield item
        synchronise()
        self._since = time.perf_counter()
        self.each += (self._since - first) / self.count


@dataclass(frozen=True)
class Problem:
    """What to recover: a network with fresh weights, random atoms, and random statistics for each class."""

    network: models.Network
    atoms: Tensor
    statistics: Statistics
    resolution: int

    @classmethod
    def of(cls, resolution: int, width: int, classes: int = CLASSES, k: int = PER_CLASS) -> "Problem":
        """Draw it."""
        draws = torch.Generator().manual_seed(0)
        network = models.build(settings("NetworkSettings", width=width), classes, resolution, draws).eval()
        shapes = {name: (classes, layer.num_features) for name, layer in layers(network).items()}
        mean = {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}
        variance = {name: torch.rand(shape, generator=draws) for name, shape in shapes.items()}
        atoms = torch.randn(classes, k, network.head.in_features, generator=draws).abs()
        return cls(network, atoms, Statistics(mean, variance), resolution)

    def published(self, options: argparse.Namespace, clock: Any, tf32: bool = False, **changes: Any) -> list[float]:
        """Recover the published way; return the losses."""
        as_installed(options, tf32)
        return published.recover(
            copy.deepcopy(self.network), torch.arange(len(self.atoms)), self.atoms, self.statistics, self.resolution,
            published.MEAN, published.STD, settings("RecoverSettings", feature_loss="squared", **changes), 0,
            torch.device(options.device), clock,
        )[1]  # fmt: skip

    def ours(self, options: argparse.Namespace, clock: Any, way: dict[str, str], **changes: Any) -> list[float]:
        """Recover our way; return the losses that are logged."""
        losses: list[float] = []
        engine = engine_of(options, **way)
        context = replace(quiet(engine), progress=clock, log=lambda values, _: losses.append(values["loss"]))
        recover.recover(
            copy.deepcopy(self.network), torch.arange(len(self.atoms)), self.atoms,
            torch.full(self.atoms.shape[:2], 1 / self.atoms.shape[1]), self.statistics, self.resolution,
            Normalisation(published.MEAN, published.STD),
            settings("RecoverSettings", feature_loss="squared", **changes), 0, context,
        )  # fmt: skip
        return losses


def every(items: Sequence[int], *_: Any, **__: Any) -> Iterator[int]:
    """Yield all iterations, untimed."""
    return iter(items)


def recover_ways(options: argparse.Namespace) -> dict[str, dict[str, str]]:
    """Return the engines of ours that are timed."""
    found = {
        "wmdd, plain": {"precision": "fp32", "mode": "plain"},
        "wmdd, fp32": {"precision": "fp32", "mode": "eager"},
        "wmdd, bf16": {"precision": "bf16", "mode": "eager"},
    }
    if options.device == "cuda":
        found["wmdd, tf32"] = {"precision": "tf32", "mode": "eager"}
    if options.compile:
        found["wmdd, bf16, compiled"] = {"precision": "bf16", "mode": "compile"}
    return found


def check_traces(options: argparse.Namespace, iterations: int = 20) -> float:
    """Return the largest relative difference between both ways' losses on a small problem; refuse to time ways that differ."""
    problem = Problem.of(16, 8, 3, 2)
    reference = problem.published(options, every, iterations=iterations)
    worst = 0.0
    for way in ("wmdd, plain", "wmdd, fp32"):
        found = problem.ours(options, every, recover_ways(options)[way], iterations=iterations)
        off = max(abs(a - b) / abs(a) for a, b in zip(reference, found, strict=True))
        assert off < 1e-4, f"{way}: {off:.1e}"
        worst = max(worst, off)
    return worst


def ways_of(problem: Problem, options: argparse.Namespace) -> dict[str, Callable[[Clock], Any]]:
    """Return what runs a problem, by way."""
    ways: dict[str, Callable[[Clock], Any]] = {"published, fp32": partial(problem.published, options)}
    if options.device == "cuda":
        ways["published, tf32"] = partial(problem.published, options, tf32=True)
    return ways | {name: partial(problem.ours, options, way=way) for name, way in recover_ways(options).items()}


def time_recover(options: argparse.Namespace, matrices: dict[str, float]) -> list[Row]:
    """Time an iteration of every way at every resolution."""
    print(f"traces of losses agree to {check_traces(options):.1e}", flush=True)
    rows: list[Row] = []
    for resolution in options.resolutions:
        problem = Problem.of(resolution, options.width)
        ways = ways_of(problem, options)
        times: Times = {name: [] for name in ways}
        starts: Times = {name: [] for name in ways}
        for _ in range(options.repeats):
            for name, way in ways.items():
                clock = Clock(options.warm, options.iterations)
                way(clock)
                times[name].append(clock.each)
                starts[name].append(clock.start)
        work = 2 * flop(problem.network, resolution) * CLASSES * PER_CLASS  # forward, and backward to the pixels
        size = {"resolution": resolution, "width": options.width, "iterations": options.iterations}
        mine = [{"way": name} | size | row_of(name, times, starts[name], work, matrices) for name in ways]
        report(mine)
        rows += mine
    return rows


def row_of(name: str, times: Times, starts: list[float], work: float, matrices: dict[str, float]) -> Row:
    """Return the row of a way: milliseconds of an iteration, ratios, FLOP/s, seconds until the timed iterations."""
    values = times[name]
    rate = work / statistics.median(values)
    kind = next((kind for kind in matrices if kind in name), "fp32")
    row: Row = {"ms": spread(values, 1e3), "times published": ratios(times["published, fp32"], values)}
    if "published, tf32" in times:
        row["times published, tf32"] = ratios(times["published, tf32"], values)
    return row | {
        "flops": float(f"{rate:.4g}"),
        "share of matrix rate": round(rate / matrices[kind], 3),
        "start seconds": float(f"{statistics.median(starts):.3g}"),
        "n": len(values),
    }
