r"""Recover: images whose features are the barycenter's atoms, under BatchNorm statistics of the class (WMDD, Eq. 5-7).

The loss is that of `wmdd.stages.recover_loss`; Adam descends it in the pixels, which each iteration shows to the teacher in a
random view (`wmdd.stages.recover_views`). Images of grey pictures stay grey: they are one plane, which the teacher sees in all
three channels. Images begin as noise, or as another method's (`init`). Those of each class are then matched to the atoms by the
assignment that is cheapest in all, \sum_j ||f(x_s(j)) - b_j||^2 over permutations s.

With an `anchor` a > 0 each image is drawn back to the one that it began as, x <- (1 - a) x + a x_0, after each of the first m
of m + 1 equal parts of the iterations (m = `anchor_times`), and Adam begins anew: the residuals of FADRM (Cui et al. 2025,
arXiv 2506.24125; its code mixes with alpha = 1 - a = 0.5, four parts of 500 iterations). Its anchors are patches in the order
of their files; here each atom has the image that the assignment above gives it, and no two share one.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.networks.batchnorm import Statistics, layers, running
from wmdd.networks.context import Context
from wmdd.networks.engine import Engine, flop, resume, set_rate
from wmdd.networks.models import Network, bounds_of
from wmdd.networks.normalisation import Normalisation
from wmdd.networks.planes import Planes
from wmdd.stages.recover_loss import Target, loss_terms, loss_weights, observed
from wmdd.stages.recover_views import drawn, sampled, view

if TYPE_CHECKING:
    from wmdd.settings.recover import RecoverSettings

LARGEST = 400  # images of 224 px at once on a GPU; more of them are no faster


def noise(labels: Tensor, k: int, resolution: int, seed: int, planes: int = 3) -> Tensor:
    """Return standard normal start images [C, K, P, R, R], drawn for (seed, class)."""
    shape = (k, planes, resolution, resolution)
    return torch.stack([torch.randn(shape, generator=generator("recover", "noise", seed, int(c))) for c in labels])


@torch.no_grad()
def matched(network: Network, images: Tensor, atoms: Tensor, engine: Engine, planes: Planes) -> Tensor:
    """Return normalised planes [C, K, P, R, R], those of each class in the order that suits its atoms [C, K, D] best."""
    from scipy.optimize import linear_sum_assignment

    ordered = []
    for images_of_class, atoms_of_class in zip(images, atoms, strict=True):
        with engine.autocast():
            parts = [network.embed(engine.arranged(planes.shown(x), network)) for x in images_of_class.split(128)]
        features = torch.cat(parts).float().cpu()
        _, order = linear_sum_assignment(torch.cdist(atoms_of_class.float(), features).square().numpy())
        ordered.append(images_of_class[torch.from_numpy(order)])
    return torch.stack(ordered)


def batches(classes: int, k: int, settings: "RecoverSettings", at_once: int) -> list[tuple[slice, slice]]:
    """Return the batches of a block as (classes, images of each class).

    Whole classes, as many as have `at_once` images; of a coupled loss, whose batches are part of the method, `batch_size`, or
    with `composition: across` as few images as make that up of every class of the block, which `wmdd.cost.blocks` limits.
    """
    if settings.coupled and settings.composition == "across":
        size = max(1, settings.batch_size // classes)
        return [(slice(0, classes), slice(j, min(j + size, k))) for j in range(0, k, size)]
    size = max(1, (settings.batch_size if settings.coupled else at_once) // k)
    return [(slice(a, min(a + size, classes)), slice(0, k)) for a in range(0, classes, size)]


@dataclass(frozen=True)
class _Run:
    """What the batches of a block share; `bounds` are black and white in each plane, normalised."""

    network: Network
    settings: "RecoverSettings"
    seed: int
    context: Context
    planes: Planes
    bounds: list[Tensor]


def recover(
    network: Network,
    labels: Tensor,
    atoms: Tensor | None,
    weights: Tensor,
    statistics: Statistics,
    resolution: int,
    normalisation: Normalisation,
    settings: "RecoverSettings",
    seed: int,
    context: Context,
    start: Tensor | None = None,
    grey: bool = False,
) -> Tensor:
    """Return the images [C, K, 3, R, R] uint8 of the classes `labels` [C].

    They are to match atoms [C, K, D] (None where no term needs them) of weights [C, K], rows of sum 1, and the statistics of
    each class [C, ch] by layer, which `statistics: global` does not use. They begin at the uint8 images `start`
    [C, K, 3, R, R], or (None) as noise. Those of `grey` pictures have three equal channels.

    Raises:
        WmddError: a term of the loss has nothing to match, there is no term, or the loss is not a number.
    """
    _check(network, atoms, settings)
    if settings.anchor and start is None:
        raise WmddError("recover with anchor needs images to begin with: set init: method:NAME, or anchor: 0")
    network.eval().requires_grad_(False)
    engine = context.engine
    engine.place(network)
    shared = settings.statistics == "global"
    target = Target(labels, atoms, weights, running(network) if shared else statistics, shared)
    planes = Planes.of(normalisation, grey)
    state = context.keeper.load()
    if state is None:
        k = weights.shape[1]
        start_planes = len(planes.normalisation.mean)
        images = noise(labels, k, resolution, seed, start_planes) if start is None else planes.taken(start)
        if start is not None and atoms is not None:
            images = matched(network, images, atoms, engine, planes)
        at_once = _at_once(network, target, resolution, settings, engine)
        state = {"part": 0, "images": images, "at_once": at_once}
    bounds = bounds_of(planes.normalisation, engine.device)
    run = _Run(network, settings, seed, context, planes.to(engine.device), bounds)
    images = _optimise_batches(run, target, state)
    return through_jpeg(planes.pixels(images), settings.jpeg)


def _optimise_batches(run: _Run, target: Target, state: dict[str, Any]) -> Tensor:
    """Optimise one batch after the other, from where `state` is, and return the normalised planes [C, K, P, R, R]."""
    settings, images = run.settings, state["images"]
    at_once = int(state["at_once"])  # of the first attempt: how much of a GPU's memory is free may have changed
    classes_of_block, k = target.weights.shape
    parts = batches(classes_of_block, k, settings, at_once)

    def keep(part: int, inner: dict[str, Any]) -> None:
        kept = {"part": part, "images": images, "at_once": at_once, "optimizer": inner}
        done = part * settings.iterations + inner["iteration"]
        run.context.keeper.save(kept, done, len(parts) * settings.iterations, "iteration")

    for part, (classes, members) in list(enumerate(parts))[state["part"] :]:
        resumed = state.get("optimizer") if part == state["part"] else None
        begun = images[classes, members]
        name = f"batch {part + 1} of {len(parts)}"
        optimised = _optimise(
            run, begun.flatten(0, 1), target.part(classes, members), name, resumed, partial(keep, part)
        )
        images[classes, members] = optimised.view(begun.shape)
    return images


def _check(network: Network, atoms: Tensor | None, settings: "RecoverSettings") -> None:
    """Refuse a loss whose terms would silently be left out."""
    if settings.feature_weight > 0 and atoms is None:
        raise WmddError(
            "recover with feature_weight above 0 needs a barycenter; give --barycenter or set feature_weight: 0"
        )
    if settings.regularisation > 0 and not layers(network):
        raise WmddError("the teacher has no BatchNorm layers to match; set regularisation: 0 or choose another teacher")
    if not settings.feature_weight and not settings.regularisation and not settings.cross_entropy:
        raise WmddError("recover has no loss: set feature_weight, regularisation or cross_entropy above 0")


def _at_once(network: Network, target: Target, resolution: int, settings: "RecoverSettings", engine: Engine) -> int:
    """Return how many images of a decoupled loss are optimised at once: what the reference is given, or the device takes."""
    if not engine.fast:
        return settings.batch_size
    if engine.device.type == "cpu":
        return engine.at_once(resolution)
    k = target.weights.shape[1]
    one = target.part(slice(0, 1), slice(0, k)).to(engine.device)
    sample = torch.zeros(k, 3, resolution, resolution, device=engine.device, requires_grad=True)
    before = torch.cuda.memory_allocated(engine.device)
    torch.cuda.reset_peak_memory_stats(engine.device)
    with observed(network, one, settings, engine) as last_moments, engine.autocast():
        terms = loss_terms(network, sample, one, settings, last_moments)
    torch.stack(list(terms.values())).sum().backward()
    needed = torch.cuda.max_memory_allocated(engine.device) - before
    return max(k, min(engine.at_once(resolution, max(1, needed // k)), LARGEST * 224**2 // resolution**2))


def _optimise(
    run: _Run,
    start: Tensor,
    target: Target,
    name: str,
    resumed: dict[str, Any] | None,
    keep: Callable[[dict[str, Any]], None],
) -> Tensor:
    """Run Adam on one batch of normalised planes [B, P, R, R] and return them.

    A batch that was interrupted ends in the same bits: what is kept is the images, Adam's state and the iteration, and of
    the iteration alone follow the views (keyed by seed and iteration) and the learning rate.
    """
    settings, context, engine = run.settings, run.context, run.context.engine
    iterations = settings.iterations
    target = target.to(engine.device)
    x = (resumed["x"] if resumed else start).to(engine.device, copy=True).requires_grad_()
    optimizer = engine.optimizer("adam", [x], settings.lr, betas=settings.betas)
    first = 0
    if resumed:
        resume(optimizer, resumed["adam"])
        first = int(resumed["iteration"])
    k = target.weights.shape[1]
    views = torch.stack([drawn(settings, x.shape[-1], run.seed, i, target.labels, k) for i in range(iterations)])
    views = views.to(engine.device, x.dtype)
    names = list(loss_weights(settings))
    trace = torch.zeros(iterations, len(names), device=engine.device)
    every = max(1, iterations // 100)
    anchors, mixings = start.to(engine.device), _mixings(settings)
    with _stepper(run, x, optimizer, target) as step:
        for i in context.progress(range(first, iterations), name, iterations, first):
            set_rate(optimizer, settings.lr * 0.5 * (1 + math.cos(math.pi * i / iterations)))
            trace[i] = step(views[i])
            if i + 1 in mixings:
                _mix_back(x, anchors, settings.anchor, optimizer)
            if i % every == 0 or i + 1 == iterations:  # nothing else waits for the device
                terms = dict(zip(names, trace[i].tolist(), strict=True))
                context.log({"loss": (value := sum(terms.values()))} | terms, i)
                if not math.isfinite(value):
                    raise WmddError(
                        f"the loss is not a number at iteration {i}; lower lr ({settings.lr}) or use precision fp32"
                    )
            if context.keeper.due():
                keep({"x": x.detach().cpu(), "adam": optimizer.state_dict(), "iteration": i + 1})
    return x.detach().cpu()


def _mixings(settings: "RecoverSettings") -> set[int]:
    """Return after how many iterations the anchors are mixed back."""
    parts = settings.anchor_times + 1
    times = {round(part * settings.iterations / parts) for part in range(1, parts)} if settings.anchor else set()
    return times - {0, settings.iterations}


@torch.no_grad()
def _mix_back(x: Tensor, anchors: Tensor, share: float, optimizer: torch.optim.Optimizer) -> None:
    """Mix anchors into images, and let Adam begin anew, all in place."""
    x.lerp_(anchors, share)
    for state in optimizer.state.values():
        for name, value in state.items():
            state[name] = value.zero_() if isinstance(value, Tensor) else 0


@contextmanager
def _stepper(
    run: _Run, x: Tensor, optimizer: torch.optim.Optimizer, target: Target
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield one iteration: it takes views [B or 1, 7], changes the images x in place, and returns the terms of the loss."""
    network, settings, engine = run.network, run.settings, run.context.engine
    work = 2 * flop(network, x.shape[-1]) * len(x) * settings.iterations if engine.graphs else 0
    with observed(network, target, settings, engine) as last_moments:

        def terms_of(images: Tensor, chosen: Tensor) -> Tensor:
            # float32 outside of autocast: pixels are not rounded before the network sees them
            seen = run.planes.shown(sampled(images, chosen) if engine.fast else view(images, chosen))
            with engine.autocast():
                return torch.stack(list(loss_terms(network, seen, target, settings, last_moments).values()))

        compiled = engine.compiled(terms_of, work)

        def step(chosen: Tensor) -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            terms = compiled(x, chosen)
            terms.sum().backward()
            optimizer.step()
            with torch.no_grad():
                torch.minimum(torch.maximum(x, run.bounds[0], out=x), run.bounds[1], out=x)
            return terms.detach()

        yield engine.captured(step)


def through_jpeg(images: Tensor, quality: int) -> Tensor:
    """Return uint8 images [..., 3, R, R] as they are read from JPEG files (4:2:0) of this quality, or (0) as they are."""
    if not quality:
        return images
    from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

    read = [decode_jpeg(encode_jpeg(image, quality), ImageReadMode.RGB) for image in images.flatten(0, -4)]
    return torch.stack(read).view(images.shape)
