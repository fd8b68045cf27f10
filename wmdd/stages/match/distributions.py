r"""DM and DataDAM: distilled images whose mean is that of real ones, as untrained networks see them.

With psi_theta a ConvNet of fresh weights theta, A one siamese augmentation for both sides (`wmdd.networks.siamese`), T_c a
batch of real images of class c and S_c its K distilled ones, the pixels descend

    DM        \sum_c || mean_{x in T_c} psi(A(x)) - mean_{s in S_c} psi(A(s)) ||^2          (Zhao and Bilen 2023, Eq. 4)

    DataDAM   \sum_c [ \sum_{l < L} || mean_x a_l(A(x)) - mean_s a_l(A(s)) ||^2  +  beta times the same of psi ],
              a_l(x) = z / ||z||,  z = \sum_channels |f_l(x)|^p  at every pixel                (Sajedi et al. 2023, Sec. 3)

with p = `attention_power`, beta = `task_balance` and f_l the rectified map of layer l. DM and the last term of DataDAM take
the last, pooled and flattened map. A step of descent with momentum follows each draw of network, real images and augmentation.

The terms are sums over classes and a draw belongs to (seed, iteration, class), so a class does not depend on the others of its
block: the stage runs in blocks. That takes a normalisation without statistics of the batch, as instance norm.

Departures. DataDAM's released code raises |f| to the power 1, where the paper and we have p = 4, takes what its network returns
first in place of psi, and multiplies the loss by 100, which is in our preset's learning rate. Both released codes take as
many images as there are where a class has fewer than the batch; here that is an error.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.networks import siamese
from wmdd.networks.context import Context
from wmdd.networks.engine import Engine, resume
from wmdd.networks.models import ConvNet, bounds_of, build, normalise, to_pixels
from wmdd.stages.match import Matched, Real, start, within

if TYPE_CHECKING:
    from wmdd.settings.match import MatchSettings


def attention(maps: Tensor, power: float) -> Tensor:
    """Return the spatial attention of feature maps [B, channels, h, w], [B, h w] of norm 1: where their energy is."""
    return F.normalize(maps.abs().pow(power).sum(1).flatten(1), dim=1)


def embedded(network: ConvNet, images: Tensor, settings: "MatchSettings") -> list[tuple[float, Tensor]]:
    """Return what is to be matched of images [B, 3, R, R], each with its weight: rows [B, D], whose means count."""
    if settings.objective == "dm":
        return [(1.0, network.embed(images))]
    *maps, last = network.maps(images)
    return [(1.0, attention(m, settings.attention_power)) for m in maps[:-1]] + [(settings.task_balance, last)]


@torch.no_grad()
def means(network: ConvNet, images: Tensor, classes: int, settings: "MatchSettings", engine: Engine) -> list[Tensor]:
    """Return the means of each class of images [C n, 3, R, R], [C, D] of each part; any number of images."""
    total: list[Tensor] = []
    each = len(images) // classes
    for part, owner in zip(
        images.split(at_once(engine, images)),
        torch.arange(classes, device=images.device).repeat_interleave(each).split(at_once(engine, images)),
        strict=True,
    ):
        with engine.autocast():
            rows = [found.float() for _, found in embedded(network, part, settings)]
        total = total or [row.new_zeros(classes, row.shape[1]) for row in rows]
        for sums, row in zip(total, rows, strict=True):
            sums.index_add_(0, owner, row)
    return [sums / each for sums in total]


def at_once(engine: Engine, images: Tensor) -> int:
    """Return how many images a pass takes; the result does not depend on it, up to the order of sums."""
    return engine.at_once(images.shape[-1])


def loss(network: ConvNet, fake: Tensor, target: list[Tensor], settings: "MatchSettings", engine: Engine) -> Tensor:
    """Return the loss of each class, [C], of distilled images [C, K, 3, R, R] (distorted) against the means of real ones."""
    classes, k = fake.shape[:2]
    with engine.autocast():
        parts = embedded(network, fake.flatten(0, 1), settings)
    found = fake.new_zeros(classes)
    for (weight, rows), wanted in zip(parts, target, strict=True):
        mine = rows.float().view(classes, k, -1).mean(1)
        found = found + weight * (wanted - mine).square().sum(1)
    return found


def match(
    found: Real,
    classes: int,
    k: int,
    mean: list[float],
    std: list[float],
    settings: "MatchSettings",
    seed: int,
    context: Context,
) -> Matched:
    """Return the images of a block of classes.

    Args:
        found: the real images of the block's classes.
        classes: how many the dataset has, for the networks' last layer, which is not used.
        k: images per class.
        mean: per channel, of the normalisation.
        std: per channel.
        settings: the objective and its optimisation.
        seed: of the distillation.
        context: engine, checkpoints, log, progress.

    Raises:
        WmddError: the network is not one of these, or the loss is not a number.
    """
    settings.check("match: ")
    engine, iterations, side = context.engine, settings.iterations, found.pictures.resolution
    state = context.keeper.load()
    images = state["images"] if state else start(found, k, mean, std, settings, seed)
    x = images.to(engine.device, copy=True).requires_grad_()
    optimizer = engine.optimizer("sgd", [x], settings.lr, momentum=settings.momentum)
    first = 0
    if state:
        resume(optimizer, state["optimizer"])
        first = int(state["iteration"])
    bounds = bounds_of(mean, std, engine.device)
    size = at_once(engine, x)  # classes at once: the loss separates; their real images are held together
    group = max(1, min(size // k, 16 * size // settings.real_batch))
    batches = found.pictures.batches(_drawn(found, settings, seed, first))
    trace = torch.zeros(iterations, device=engine.device)
    every = max(1, iterations // 100)

    def checked(i: int) -> None:
        context.log({"loss": (value := trace[i].item() / len(found.labels))}, i)
        if not math.isfinite(value):
            raise WmddError(
                f"the loss is not a number at iteration {i}; lower match.lr ({settings.lr:g}); what was kept is of before it"
            )

    for i in context.progress(range(first, iterations), "matching", iterations, first):
        network = cast(
            ConvNet, build(settings, classes, side, generator("match", "network", seed, _of_pool(i, settings)))
        )
        engine.place(network.requires_grad_(False))
        how = _distortions(found, settings, seed, i)
        optimizer.zero_grad(set_to_none=True)
        for a in range(0, len(found.labels), group):
            mine = slice(a, a + group)
            pixels = torch.cat([next(batches) for _ in found.labels[mine]])
            real = engine.arranged(normalise(pixels.to(engine.device), mean, std), network)
            fake, count = x[mine].flatten(0, 1), len(found.labels[mine])
            if how is not None:
                chosen = how.of(torch.arange(a, a + count)).to(engine.device)
                real = siamese.apply(real, chosen.repeated(settings.real_batch))
                fake = siamese.apply(fake, chosen.repeated(k))
            target = means(network, real, count, settings, engine)
            losses = loss(
                network, engine.arranged(fake, network).view(count, k, 3, side, side), target, settings, engine
            )
            losses.sum().backward()
            trace[i] += losses.detach().sum()
        optimizer.step()
        within(x, bounds)
        if i % every == 0 or i + 1 == iterations:
            checked(i)
        if context.keeper.due():
            checked(i)
            kept: dict[str, Any] = {"images": x.detach().cpu(), "optimizer": optimizer.state_dict(), "iteration": i + 1}
            context.keeper.save(kept, i + 1, iterations, "iteration")
    return Matched(to_pixels(x.detach().cpu(), mean, std))


def _of_pool(iteration: int, settings: "MatchSettings") -> int:
    """Return the number of the network of an iteration."""
    return iteration % settings.pool if settings.pool else iteration


def _distortions(found: Real, settings: "MatchSettings", seed: int, iteration: int) -> siamese.Distortions | None:
    """Draw one distortion for each class."""
    if settings.views == "none":
        return None
    return siamese.joined(
        [siamese.draw(generator("match", "view", seed, iteration, label), 1) for label in found.labels]
    )


def _drawn(found: Real, settings: "MatchSettings", seed: int, first: int) -> Iterator[Tensor]:
    """Yield the positions of the real images of each iteration and class."""
    for i in range(first, settings.iterations):
        for label, begin, count in zip(found.labels, found.begins, found.counts, strict=True):
            draws = generator("match", "real", seed, i, label)
            yield begin + torch.randperm(count, generator=draws)[: settings.real_batch]
