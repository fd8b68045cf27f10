r"""Recover: images whose features are the barycenter's atoms, under BatchNorm statistics of the class (WMDD, Eq. 5-7).

For the classes c of a block, with K images x_cj and weights w_cj each,

    L = \sum_c [ alpha \sum_j w_cj ||f(x_cj) - b_cj||^2                              (Eq. 5)
               + lambda \sum_l g_l ( ||mu_l(X_c) - mu_lc|| + ||sigma^2_l(X_c) - sigma^2_lc|| )   (Eq. 6, 7)
               + beta / K \sum_j CE(h(x_cj), c) ]

where mu_l(X_c) and sigma^2_l(X_c) are the w-weighted mean and variance of the input of BatchNorm layer l. WMDD writes Eq. 5
without w (`feature_loss: squared`), so that the same lambda counts K times less for each image. The terms are
sums over classes, so the gradient of an image does not depend on the other classes of its batch or block. Two published
variants do not separate (`RecoverSettings.coupled`): with `statistics: global` (SRe2L) the moments are those of the whole
batch against the teacher's running statistics, and with `feature_loss: norm` (WMDD's released code) Eq. 5 is the norm of
the whole batch's residual. For these the batch is part of the method, and a block is cut to fit it.

Images begin as noise, or as another method's (`init`), which of each class are matched to the atoms by the assignment that is
cheapest in all, \sum_j ||f(x_s(j)) - b_j||^2 over permutations s, so that none crosses the way of another.

Every iteration sees one random view (crop, flip, cyclic shift) of all images, drawn for (seed, iteration), or with
`draws: image` one of each, drawn for (seed, iteration, class).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.networks import augment
from wmdd.networks.batchnorm import Statistics, inputs_of, layers, moments, running, watchable, watched
from wmdd.networks.context import Context
from wmdd.networks.engine import Engine, flop, resume, set_rate
from wmdd.networks.models import Network, bounds_of, normalise, to_pixels

if TYPE_CHECKING:
    from wmdd.settings.recover import RecoverSettings

LARGEST = 400  # images of 224 px at once on a GPU; more of them are no faster


@dataclass(frozen=True)
class Target:
    """What the images of a block are to match: labels [C], atoms [C, K, D] (or None), weights [C, K], statistics.

    The statistics are those of each class, [C, ch] a layer, or (`shared`) of all data, [1, ch].
    """

    labels: Tensor
    atoms: Tensor | None
    weights: Tensor
    statistics: Statistics
    shared: bool = False

    def part(self, classes: slice, images: slice) -> "Target":
        """Return the target of some classes and images."""
        atoms = None if self.atoms is None else self.atoms[classes, images]
        weights = self.weights[classes, images].clamp(min=1e-12)  # an empty cell's image may be alone in a batch
        statistics = self.statistics if self.shared else self.statistics.of(torch.arange(len(self.labels))[classes])
        return replace(
            self,
            labels=self.labels[classes],
            atoms=atoms,
            weights=weights / weights.sum(1, keepdim=True),
            statistics=statistics,
        )

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> "Target":
        """Return a copy elsewhere."""
        atoms = None if self.atoms is None else self.atoms.to(device, dtype)
        weights, statistics = self.weights.to(device, dtype), self.statistics.to(device, dtype)
        return replace(self, labels=self.labels.to(device), atoms=atoms, weights=weights, statistics=statistics)


def noise(labels: Tensor, k: int, resolution: int, seed: int) -> Tensor:
    """Return standard normal start images [C, K, 3, R, R], drawn for (seed, class)."""
    shape = (k, 3, resolution, resolution)
    return torch.stack([torch.randn(shape, generator=generator("recover", "noise", seed, int(c))) for c in labels])


@torch.no_grad()
def matched(network: Network, images: Tensor, atoms: Tensor, engine: Engine) -> Tensor:
    """Return normalised images [C, K, 3, R, R], those of each class in the order that suits its atoms [C, K, D] best."""
    placed = []
    for mine, targets in zip(images, atoms, strict=True):
        with engine.autocast():
            found = torch.cat([network.embed(engine.arranged(x, network)) for x in mine.split(128)]).float().cpu()
        _, order = linear_sum_assignment(torch.cdist(targets.float(), found).square().numpy())
        placed.append(mine[torch.from_numpy(order)])
    return torch.stack(placed)


class View(NamedTuple):
    """One random view: the crop box (top, left, height, width) in pixels, mirrored or not, cyclic shift down and right."""

    top: int
    left: int
    height: int
    width: int
    flip: int
    down: int
    right: int


def drawn(settings: "RecoverSettings", side: int, seed: int, iteration: int, labels: Tensor, k: int) -> Tensor:
    """Draw the views [C K, 7] of K images each of some classes that belong to an iteration, or [1, 7], the one of all."""
    if settings.draws == "iteration":
        return torch.tensor([_drawn(settings, side, generator("recover", "view", seed, iteration))])
    draws = [generator("recover", "view", seed, iteration, label) for label in labels.tolist()]
    return torch.tensor([_drawn(settings, side, each) for each in draws for _ in range(k)])


def _drawn(settings: "RecoverSettings", side: int, draws: torch.Generator) -> View:
    """Draw a view of images of a side."""
    box = augment.resized_crop(draws, 1, settings.crop_scale)[0]
    flip = bool(torch.rand((), generator=draws) < 0.5) and settings.flip
    down, right = torch.randint(-settings.jitter, settings.jitter + 1, (2,), generator=draws).tolist()
    if settings.crop_scale[0] >= 1:
        return View(0, 0, side, side, flip, down, right)
    top, left, height, width = (int(v) for v in (box * side).round().tolist())
    top, left = min(top, side - 1), min(left, side - 1)
    return View(top, left, min(max(height, 1), side - top), min(max(width, 1), side - left), flip, down, right)


def view(images: Tensor, chosen: Tensor) -> Tensor:
    """Return the views [B, 7] of images [B, 3, R, R], or the one [1, 7] of all, step by step; the reference for `sampled`."""
    views = [View(*map(int, each)) for each in chosen.tolist()]
    parts = images.split(1) if len(views) > 1 else [images]
    return torch.cat([_view(part, each) for part, each in zip(parts, views, strict=True)])


def _view(images: Tensor, chosen: View) -> Tensor:
    side = images.shape[-1]
    top, left, height, width, flip, *shift = chosen
    if (height, width) != (side, side):
        cut = images[..., top : top + height, left : left + width]
        images = F.interpolate(cut, (side, side), mode="bilinear", align_corners=False)
    images = images.flip(-1) if flip else images
    return images.roll(shift, (2, 3)) if any(shift) else images


def sampled(images: Tensor, chosen: Tensor) -> Tensor:
    r"""Return the views [B, 7] of images [B, 3, R, R], or the one [1, 7] of all, as two products per channel, A x B^T.

    Crop, bilinear resizing, mirroring and cyclic shift each act on rows and columns alone and are linear. Row i of the view
    is row i - down of the resized crop, which samples the image at s_i = top + clamp((i + 1/2) h / R - 1/2, 0, h - 1), so
    A_ip = max(0, 1 - |s_i - p|); B likewise. No shape and no host decision depends on what was drawn, floats.
    """
    side = images.shape[-1]
    top, left, height, width, flip, down, right = chosen[:, :, None].unbind(1)  # [B, 1] or [1, 1]
    pixels = torch.arange(side, device=images.device, dtype=images.dtype)
    across = (pixels - right) % side
    across = torch.where(flip > 0, side - 1 - across, across)
    rows = _interpolation((pixels - down) % side, top, height, pixels)
    columns = _interpolation(across, left, width, pixels)
    if len(chosen) == 1:
        return rows[0] @ images @ columns[0].T
    return rows[:, None] @ images @ columns.mT[:, None]


def _interpolation(positions: Tensor, start: Tensor, length: Tensor, pixels: Tensor) -> Tensor:
    """Return the weights [B, R, R] by which pixels of the view are made of those of the image, along one side."""
    inner = (positions + 0.5) * length / len(pixels) - 0.5
    sources = start + torch.minimum(inner.clamp(min=0), length - 1)
    return (1 - (sources[..., None] - pixels).abs()).clamp(min=0)


def _weighted(settings: "RecoverSettings") -> dict[str, float]:
    """Return the weights of the terms that there are."""
    weights = {
        "feature": settings.feature_weight,
        "cross_entropy": settings.cross_entropy,
        "batchnorm": settings.regularisation,
    }
    return {name: weight for name, weight in weights.items() if weight > 0}


def statistics_loss(found: dict[str, tuple[Tensor, Tensor]], target: Target, settings: "RecoverSettings") -> Tensor:
    """Return the BatchNorm term of each class, [C], or of the whole batch, [1] (Eq. 6), of the mean and variance by layer."""
    total = torch.zeros(1, device=target.weights.device)
    for index, (name, (mean, variance)) in enumerate(found.items()):
        gain = settings.first_layer_weight if index == 0 else 1.0
        off_mean = torch.linalg.vector_norm(mean - target.statistics.mean[name], dim=1)
        off_variance = torch.linalg.vector_norm(variance - target.statistics.variance[name], dim=1)
        total = total + gain * (off_mean + off_variance)
    return total


def loss_terms(
    network: Network,
    images: Tensor,
    target: Target,
    settings: "RecoverSettings",
    found: Callable[[], dict[str, tuple[Tensor, Tensor]]],
) -> dict[str, Tensor]:
    """Return the weighted terms of L for images [C * K, 3, R, R], each summed over the classes.

    `found` gives the moments of the BatchNorm layers' inputs in the last forward pass (see `observed`).
    """
    classes, k = target.weights.shape
    embedded = network.embed(images)
    terms: dict[str, Tensor] = {}
    for name, weight in _weighted(settings).items():
        if name == "feature" and target.atoms is not None:
            residual = embedded.to(target.atoms.dtype) - target.atoms.flatten(0, 1)
            match settings.feature_loss:
                case "squared":
                    terms[name] = weight * residual.square().sum()
                case "mean":
                    terms[name] = weight * (target.weights.flatten() * residual.square().sum(1)).sum()
                case "norm":
                    terms[name] = weight * classes * residual.norm()
        elif name == "cross_entropy":
            logits = network.head(embedded).to(target.weights.dtype)
            terms[name] = weight * F.cross_entropy(logits, target.labels.repeat_interleave(k), reduction="sum") / k
        elif name == "batchnorm":
            terms[name] = weight * classes * statistics_loss(found(), target, settings).mean()
    return terms


@contextmanager
def observed(
    network: Network, target: Target, settings: "RecoverSettings", engine: Engine
) -> Iterator[Callable[[], dict[str, tuple[Tensor, Tensor]]]]:
    """Yield a function that gives mean and variance, by layer and class, of the BatchNorm inputs in the last pass.

    In one pass with the normalisation itself, or by a hook a layer for the reference and for a library's own layers.
    """
    weights = target.weights
    if settings.statistics == "global":
        weights = torch.full_like(weights.view(1, -1), 1 / weights.numel())
    if engine.fast and watchable(network):
        with watched(network, weights) as found:
            yield lambda: found
    else:
        with inputs_of(network) as seen:
            yield lambda: {name: moments(x, weights, weights.dtype) for name, x in seen.items()}


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


def recover(
    network: Network,
    labels: Tensor,
    atoms: Tensor | None,
    weights: Tensor,
    statistics: Statistics,
    resolution: int,
    mean: list[float],
    std: list[float],
    settings: "RecoverSettings",
    seed: int,
    context: Context,
    start: Tensor | None = None,
) -> Tensor:
    """Return the images of a block of classes, [C, K, 3, R, R] uint8.

    Args:
        network: the teacher.
        labels: [C], the classes of the block.
        atoms: [C, K, D], or None where no term needs them.
        weights: [C, K], each row sums to 1.
        statistics: per class of the block, [C, ch] by layer; not used with `statistics: global`.
        resolution: R.
        mean: per channel, of the normalisation.
        std: per channel.
        settings: the loss and its optimisation.
        seed: of the distillation.
        context: engine, checkpoints, log, progress.
        start: images to begin with, uint8 [C, K, 3, R, R]; None for noise.

    Raises:
        WmddError: a term of the loss has nothing to match, there is no term, or the loss is not a number.
    """
    _check(network, atoms, settings)
    network.eval().requires_grad_(False)
    context.engine.place(network)
    shared = settings.statistics == "global"
    target = Target(labels, atoms, weights, running(network) if shared else statistics, shared)
    count, k = weights.shape
    state = context.keeper.load()
    if state is None:
        images = noise(labels, k, resolution, seed) if start is None else normalise(start, mean, std)
        if start is not None and atoms is not None:
            images = matched(network, images, atoms, context.engine)
        at_once = _at_once(network, target, resolution, settings, context.engine)
        state = {"part": 0, "images": images, "at_once": at_once}
    at_once = int(state["at_once"])  # of the first attempt: how much of a GPU's memory is free may have changed
    parts = batches(count, k, settings, at_once)
    images = state["images"]

    def keep(part: int, inner: dict[str, Any]) -> None:
        kept = {"part": part, "images": images, "at_once": at_once, "optimizer": inner}
        done = part * settings.iterations + inner["iteration"]
        context.keeper.save(kept, done, len(parts) * settings.iterations, "iteration")

    for part, (classes, members) in list(enumerate(parts))[state["part"] :]:
        inner = state.get("optimizer") if part == state["part"] else None
        start = images[classes, members]
        shape = start.shape
        result = _optimise(
            network, start.flatten(0, 1), target.part(classes, members), mean, std, settings, seed, context,
            f"batch {part + 1} of {len(parts)}", inner,
            partial(keep, part),
        )  # fmt: skip
        images[classes, members] = result.view(shape)
    return through_jpeg(to_pixels(images, mean, std), settings.jpeg)


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
    with observed(network, one, settings, engine) as found, engine.autocast():
        terms = loss_terms(network, sample, one, settings, found)
    torch.stack(list(terms.values())).sum().backward()
    needed = torch.cuda.max_memory_allocated(engine.device) - before
    return max(k, min(engine.at_once(resolution, max(1, needed // k)), LARGEST * 224**2 // resolution**2))


def _optimise(
    network: Network,
    start: Tensor,
    target: Target,
    mean: list[float],
    std: list[float],
    settings: "RecoverSettings",
    seed: int,
    context: Context,
    what: str,
    resumed: dict[str, Any] | None,
    keep: Callable[[dict[str, Any]], None],
) -> Tensor:
    """Run Adam on one batch of normalised images [B, 3, R, R] and return them."""
    engine, iterations = context.engine, settings.iterations
    target = target.to(engine.device)
    bounds = bounds_of(mean, std, engine.device)
    x = (resumed["x"] if resumed else start).to(engine.device, copy=True).requires_grad_()
    optimizer = engine.optimizer("adam", [x], settings.lr, betas=settings.betas)
    first = 0
    if resumed:
        resume(optimizer, resumed["adam"])
        first = int(resumed["iteration"])
    k = target.weights.shape[1]
    views = torch.stack([drawn(settings, x.shape[-1], seed, i, target.labels, k) for i in range(iterations)])
    views = views.to(engine.device, x.dtype)
    names = list(_weighted(settings))
    trace = torch.zeros(iterations, len(names), device=engine.device)
    every = max(1, iterations // 100)
    with _stepper(network, x, optimizer, target, bounds, settings, engine) as step:
        for i in context.progress(range(first, iterations), what, iterations, first):
            set_rate(optimizer, settings.lr * 0.5 * (1 + math.cos(math.pi * i / iterations)))
            trace[i] = step(views[i])
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


@contextmanager
def _stepper(
    network: Network,
    x: Tensor,
    optimizer: torch.optim.Optimizer,
    target: Target,
    bounds: list[Tensor],
    settings: "RecoverSettings",
    engine: Engine,
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield one iteration: it takes views [B or 1, 7], changes the images x in place, and returns the terms of the loss."""
    work = 2 * flop(network, x.shape[-1]) * len(x) * settings.iterations if engine.graphs else 0
    with observed(network, target, settings, engine) as found:

        def terms_of(images: Tensor, chosen: Tensor) -> Tensor:
            # float32 outside of autocast: pixels are not rounded before the network sees them
            seen = sampled(images, chosen) if engine.fast else view(images, chosen)
            with engine.autocast():
                return torch.stack(list(loss_terms(network, seen, target, settings, found).values()))

        compiled = engine.compiled(terms_of, work)

        def step(chosen: Tensor) -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            terms = compiled(x, chosen)
            terms.sum().backward()
            optimizer.step()
            with torch.no_grad():
                torch.minimum(torch.maximum(x, bounds[0], out=x), bounds[1], out=x)
            return terms.detach()

        yield engine.captured(step)


def through_jpeg(images: Tensor, quality: int) -> Tensor:
    """Return uint8 images [..., 3, R, R] as they are read from JPEG files (4:2:0) of this quality, or (0) as they are."""
    if not quality:
        return images
    read = [decode_jpeg(encode_jpeg(image, quality), ImageReadMode.RGB) for image in images.flatten(0, -4)]
    return torch.stack(read).view(images.shape)
