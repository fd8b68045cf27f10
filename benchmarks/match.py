"""Match: seconds and memory of an iteration of DM, DataDAM and MTT, against images per class, classes and a student's steps.

MTT is measured beside the published way, which keeps the graph of all steps of the student; that both give the same gradient is
checked in each pair. Every row is a process of its own, because memory is the highest that it had, less what it had before its
first iteration; seconds are the median iteration, the first left out. ConvNet-3 at 32 px on noise.

    python -m benchmarks.match [--device cuda] [--width 128] [--threads 2] [--steps 5 10 20 40]
"""

import argparse
import itertools
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.machine import engine_of, named, seconds
from wmdd.base.rng import generator
from wmdd.datasets.loader import Resident
from wmdd.networks.context import quiet
from wmdd.networks.models import build
from wmdd.networks.normalisation import Normalisation
from wmdd.settings.match import ExpertSettings, MatchSettings
from wmdd.stages.expert import flat
from wmdd.stages.match import real
from wmdd.stages.match.distributions import match
from wmdd.stages.match.unrolling import Step, gradient_of, unrolled

SIDE, TIMED = 32, 4
NORMALISATION = Normalisation([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])
Row = dict[str, Any]


def peak(device: str) -> float:
    """Return the highest memory so far in MB, of the GPU or of the process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def time_pixels(options: argparse.Namespace, objective: str, k: int, classes: int) -> Row:
    """Measure iterations of DM or DataDAM as the stage runs them, real images and augmentation included."""
    engine = engine_of(options)
    labels = torch.arange(classes).repeat_interleave(max(k, options.real))
    images = torch.randint(0, 256, (len(labels), 3, SIDE, SIDE), dtype=torch.uint8, generator=generator("bench"))
    found = real(Resident(images.to(engine.device), labels), list(range(classes)), [""] * classes, options.real)
    settings = MatchSettings(
        objective=objective,
        width=options.width,
        iterations=TIMED + 1,
        real_batch=options.real,  # type: ignore[arg-type]
    )
    before, marks = peak(options.device), [time.perf_counter()]
    context = quiet(engine)

    def progress(items: Any, *_: Any, **__: Any) -> Any:
        for item in items:
            yield item
            if engine.device.type == "cuda":
                torch.cuda.synchronize()
            marks.append(time.perf_counter())

    match(found, classes, k, NORMALISATION, settings, 0, type(context)(engine, context.keeper, context.log, progress))
    spans = [b - a for a, b in itertools.pairwise(marks[1:])]
    return {
        "objective": objective, "ipc": k, "classes": classes,
        "seconds": statistics.median(spans), "memory_mb": peak(options.device) - before,
    }  # fmt: skip


def published(
    gradient: Any, begin: Tensor, target: Tensor, step_of: Callable[[int], Step], steps: int, rate: Tensor
) -> Tensor:
    """Return L with the graph of all steps, as the published code has it."""
    theta = begin
    for i in range(steps):
        theta = theta - rate * gradient(theta, *step_of(i))
    return (theta - target).square().sum() / (begin - target).square().sum()


def time_trajectories(options: argparse.Namespace, way: str, steps: int) -> Row:
    """Measure the gradient of MTT, ours or the published way, for `options.images` images."""
    device = engine_of(options).device
    classes, settings = 10, ExpertSettings(width=options.width)
    network = build(settings, classes, SIDE, generator("bench")).to(device)
    gradient, begin = gradient_of(network), flat(network).to(device)
    target = begin + 0.01 * torch.randn(begin.shape, generator=generator("bench", "target")).to(device)
    x = torch.randn(options.images, 3, SIDE, SIDE, generator=generator("bench", "x")).to(device).requires_grad_()
    labels = F.one_hot(torch.arange(options.images) % classes, classes).float().to(device)
    rate = torch.tensor(0.01, device=device, requires_grad=True)
    before, spans = peak(options.device), []
    for _ in range(TIMED + 1 if steps < 20 else 2):
        x.grad = rate.grad = None

        def act() -> None:
            if way == "ours":
                unrolled(gradient, begin, target, lambda _: Step(x, labels), steps, rate.item())
            else:
                published(gradient, begin, target, lambda _: Step(x, labels), steps, rate).backward()

        spans.append(seconds(act))
    assert x.grad is not None
    norm = x.grad.norm().item()
    return {
        "way": way, "steps": steps, "images": options.images, "gradient_norm": norm,
        "seconds": statistics.median(spans[1:]), "memory_mb": peak(options.device) - before,
    }  # fmt: skip


def alone(act: Callable[..., Row], options: argparse.Namespace, *arguments: Any) -> Row:
    """Return what a function does in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        row = pool.apply(act, (options, *arguments))
    print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", default="fp32")
    for name, default, help in (
        ("threads", 2, "of the CPU"),
        ("width", 128, "of the ConvNet"),
        ("real", 64, "real images of a class a step"),
        ("images", 10, "of MTT's student, all in each step"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{help} ({default})")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 40], help="of MTT's student")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    pixels = [
        alone(time_pixels, options, objective, k, classes)
        for objective in ("dm", "datadam")
        for k, classes in ((1, 10), (10, 10), (50, 10), (10, 5), (10, 20))
    ]
    trajectories: list[Row] = []
    for steps in options.steps:
        ours, theirs = (alone(time_trajectories, options, way, steps) for way in ("ours", "published"))
        if abs(ours["gradient_norm"] / theirs["gradient_norm"] - 1) > 1e-3:
            raise SystemExit(f"the gradients differ: {ours['gradient_norm']} and {theirs['gradient_norm']}")
        more = {
            "seconds_ratio": ours["seconds"] / theirs["seconds"],
            "memory_ratio": ours["memory_mb"] / theirs["memory_mb"],
        }
        trajectories += [ours | more, theirs]
    path = options.output or Path(__file__).parent / "results" / f"match-{options.device}.json"
    kept = {"machine": named(options), "torch": torch.__version__, "threads": options.threads, "width": options.width}
    path.write_text(json.dumps(kept | {"pixels": pixels, "trajectories": trajectories}, indent=2) + "\n")
    print(f"kept in {path}", flush=True)


if __name__ == "__main__":
    main()
