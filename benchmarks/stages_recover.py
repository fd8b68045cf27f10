"""One iteration of recover on 100 images, every way: see `benchmarks.stages`."""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from benchmarks import published
from benchmarks.machine import CLOCKS, as_installed, engine_of, settings, synchronise
from benchmarks.published_students import MEAN, STD
from benchmarks.rows import Row, Times, ratios, report, spread
from wmdd.networks import models
from wmdd.networks.batchnorm import Statistics, layers
from wmdd.networks.context import quiet
from wmdd.networks.engine import flop
from wmdd.networks.normalisation import Normalisation
from wmdd.stages import recover

CLASSES, PER_CLASS = 10, 10  # of a batch
RELEASED: dict[str, Any] = {"feature_loss": "norm", "cross_entropy": 1.0}
SRE2L: dict[str, Any] = {
    "feature_weight": 0.0, "cross_entropy": 1.0, "statistics": "global", "regularisation": 0.01, "first_layer_weight": 10.0,
    "composition": "across",
}  # fmt: skip
# The settings of ours that have the loss of a published loop.
SAME_LOSS = {"wmdd": RELEASED, "wmdd weighted": RELEASED, "sre2l": SRE2L, "sre2l without priors": SRE2L}


class Clock:
    """Wraps the iterations of each batch of a stage: times `count` of them after the first `warm`, and then ends the batch.

    What comes before an iteration is counted by its share of all iterations that the stage would take.

    Attributes:
        each: seconds of an iteration of all batches.
        start: seconds until the timed iterations, of all batches.
    """

    def __init__(self, warm: int, count: int, now: Callable[[], float] = time.perf_counter) -> None:
        self.warm, self.count, self.each, self.start = warm, count, 0.0, 0.0
        self._now = now
        self._since = now()

    def __call__(self, items: Sequence[int], *_: Any, **__: Any) -> Iterator[int]:
        """Yield the items as a progress bar does."""
        first = self._now()
        self.each += (first - self._since) / len(items)
        for position, item in enumerate(islice(items, self.warm + self.count)):
            if position == self.warm:
                synchronise()
                first = self._now()
                self.start += first - self._since
            yield item
        synchronise()
        self._since = self._now()
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

    def published(
        self, options: argparse.Namespace, clock: Any, loop: str, tf32: bool = False, **changes: Any
    ) -> list[float]:
        """Recover by a published loop (of `SAME_LOSS`); return the losses, times C, as ours sum over classes."""
        as_installed(options, tf32)
        classes, k = self.atoms.shape[:2]
        network, labels, device = copy.deepcopy(self.network), torch.arange(classes), torch.device(options.device)
        common = (
            self.resolution, MEAN, STD, settings("RecoverSettings", **SAME_LOSS[loop] | changes), 0, device, clock,
        )  # fmt: skip
        if loop.startswith("sre2l"):
            losses = published.sre2l(network, labels, k, *common, with_priors=loop == "sre2l")[1]
        else:
            weights = torch.full((classes, k), 1 / k, dtype=torch.float64) if loop == "wmdd weighted" else None
            losses = published.wmdd(network, labels, self.atoms, self.statistics, *common, weights=weights)[1]
        return [classes * loss for loss in losses]

    def ours(self, options: argparse.Namespace, clock: Any, way: dict[str, str], **changes: Any) -> list[float]:
        """Recover our way; return the losses that are logged."""
        losses: list[float] = []
        context = replace(
            quiet(engine_of(options, **way)), progress=clock, log=lambda values, _: losses.append(values["loss"])
        )
        recover.recover(
            copy.deepcopy(self.network), torch.arange(len(self.atoms)), self.atoms,
            torch.full(self.atoms.shape[:2], 1 / self.atoms.shape[1]), self.statistics, self.resolution,
            Normalisation(MEAN, STD), settings("RecoverSettings", **changes), 0, context,
        )  # fmt: skip
        return losses


def every(items: Sequence[int], *_: Any, **__: Any) -> Iterator[int]:
    """Yield all iterations, untimed."""
    return iter(items)


@dataclass(frozen=True)
class Way:
    """How we recover: the engine, the settings, and which published loop has the same loss."""

    engine: dict[str, str]
    settings: dict[str, Any] = field(default_factory=dict)
    loop: str = "wmdd"


def our_ways(options: argparse.Namespace) -> dict[str, Way]:
    """Return the ways of ours that are timed: the losses of the published loops, and the loss of `wmdd`."""
    plain, fp32, bf16 = (
        {"precision": precision, "mode": mode}
        for precision, mode in (("fp32", "plain"), ("fp32", "eager"), ("bf16", "eager"))
    )
    ways = {
        "wmdd-released, plain": Way(plain, SAME_LOSS["wmdd"]),
        "wmdd-released, fp32": Way(fp32, SAME_LOSS["wmdd"]),
        "sre2l, fp32": Way(fp32, SAME_LOSS["sre2l"], "sre2l"),
        "wmdd, fp32": Way(fp32),
        "wmdd, bf16": Way(bf16),
    }
    if options.device == "cuda":
        ways["wmdd, tf32"] = Way({"precision": "tf32", "mode": "eager"})
    if options.compile:
        ways["wmdd, bf16, compiled"] = Way({"precision": "bf16", "mode": "compile"})
    return ways


def check_traces(options: argparse.Namespace, iterations: int = 20) -> float:
    """Return the largest relative difference of losses on a small problem; refuse to time ways whose losses differ."""
    problem = Problem.of(16, 8, 3, 2)
    worst = 0.0
    for name, way in our_ways(options).items():
        loops = {"wmdd": ("wmdd", "wmdd weighted"), "sre2l": ("sre2l without priors",)}[way.loop]
        for loop in loops if way.settings else ():
            expected = problem.published(options, every, loop, iterations=iterations)
            losses = problem.ours(options, every, way.engine, **way.settings, iterations=iterations)
            off = max(abs(a - b) / abs(a) for a, b in zip(expected, losses, strict=True))
            assert off < 1e-4, f"{name}: {off:.1e}"
            worst = max(worst, off)
    return worst


def ways_of(problem: Problem, options: argparse.Namespace) -> dict[str, Callable[[Clock], Any]]:
    """Return what runs a problem, by way."""
    loops = ["wmdd", "wmdd weighted", "sre2l"]
    ways: dict[str, Callable[[Clock], Any]] = {
        f"published {loop}, fp32": partial(problem.published, options, loop=loop) for loop in loops
    }
    if options.device == "cuda":
        ways["published wmdd, tf32"] = partial(problem.published, options, loop="wmdd", tf32=True)
    ours = our_ways(options).items()
    ways |= {name: partial(problem.ours, options, way=way.engine, **way.settings) for name, way in ours}
    return {name: way for name, way in ways.items() if not options.ways or name in options.ways}


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
                clock = Clock(options.warm, options.iterations, CLOCKS[options.clock])
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
    row: Row = {"ms": spread(values, 1e3)}
    for base in times:
        if base.startswith("published"):
            row[f"times {base.removesuffix(', fp32')}"] = ratios(times[base], values)
    return row | {
        "flops": float(f"{rate:.4g}"),
        "share of matrix rate": round(rate / matrices[kind], 3),
        "start seconds": float(f"{statistics.median(starts):.3g}"),
        "n": len(values),
    }
