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
from wmdd.networks.models import ConvNet, build, normalise
from wmdd.networks.normalisation import Normalisation
from wmdd.stages.match import Matched, Real, finished, limits, start, within

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
    each = len(images) // classes
    at_once = engine.at_once(images.shape[-1])  # the result does not depend on it, up to the order of sums
    owners = torch.arange(classes, device=images.device).repeat_interleave(each)
    total: list[Tensor] = []
    for images_at_once, owner in zip(images.split(at_once), owners.split(at_once), strict=True):
        with engine.autocast():
            rows = [part.float() for _, part in embedded(network, images_at_once, settings)]
        total = total or [row.new_zeros(classes, row.shape[1]) for row in rows]
        for sums, row in zip(total, rows, strict=True):
            sums.index_add_(0, owner, row)
    return [sums / each for sums in total]


def loss(network: ConvNet, fake: Tensor, target: list[Tensor], settings: "MatchSettings", engine: Engine) -> Tensor:
    """Return the loss of each class, [C], of distilled images [C, K, 3, R, R] (distorted) against the means of real ones."""
    classes, k = fake.shape[:2]
    with engine.autocast():
        parts = embedded(network, fake.flatten(0, 1), settings)
    total = fake.new_zeros(classes)
    for (weight, rows), mean_of_real in zip(parts, target, strict=True):
        mean_of_fake = rows.float().view(classes, k, -1).mean(1)
        total = total + weight * (mean_of_real - mean_of_fake).square().sum(1)
    return total


def match(
    real: Real,
    classes: int,
    k: int,
    normalisation: Normalisation,
    settings: "MatchSettings",
    seed: int,
    context: Context,
) -> Matched:
    """Return the images of a block of classes, K each; `classes` of the whole dataset have a place in the last layer, unused.

    Raises:
        WmddError: the network is not one of these, or the loss is not a number.
    """
    settings.check("match: ")
    engine, iterations, side = context.engine, settings.iterations, real.pictures.resolution
    state = context.keeper.load()
    images = state["images"] if state else start(real, k, normalisation, settings, seed)
    x = images.to(engine.device, copy=True).requires_grad_()
    optimizer = engine.optimizer("sgd", [x], settings.lr, momentum=settings.momentum)
    first = 0
    if state:
        resume(optimizer, state["optimizer"])
        first = int(state["iteration"])
    bounds = limits(settings, normalisation, engine.device)
    pixels = real.pictures.batches(_positions(real, settings, seed, first))
    every = max(1, iterations // 100)
    for i in context.progress(range(first, iterations), "matching", iterations, first):
        draws = generator("match", "network", seed, i % settings.pool if settings.pool else i)
        network = cast(ConvNet, engine.place(build(settings, classes, side, draws).requires_grad_(False)))
        real_batches = (engine.arranged(normalise(p.to(engine.device), normalisation), network) for p in pixels)
        optimizer.zero_grad(set_to_none=True)
        total = _descend(network, x, real_batches, _distortions(real, settings, seed, i), settings, engine)
        optimizer.step()
        if bounds is not None:
            within(x, bounds)
        due = context.keeper.due()
        if due or i % every == 0 or i + 1 == iterations:
            context.log({"loss": (value := total.item() / len(real.labels))}, i)
            if not math.isfinite(value):
                raise WmddError(
                    f"the loss is not a number at iteration {i}; lower match.lr ({settings.lr:g}); "
                    "what was kept is of before it"
                )
        if due:
            kept: dict[str, Any] = {"images": x.detach().cpu(), "optimizer": optimizer.state_dict(), "iteration": i + 1}
            context.keeper.save(kept, i + 1, iterations, "iteration")
    return Matched(finished(x.detach().cpu(), normalisation, settings))


def _descend(
    network: ConvNet,
    x: Tensor,
    real_batches: Iterator[Tensor],
    distortions: siamese.Distortions | None,
    settings: "MatchSettings",
    engine: Engine,
) -> Tensor:
    """Add the gradient of the loss to that of the images x [C, K, 3, R, R], and return the loss, summed over the classes.

    The loss separates: classes are taken as many at once as the device holds, their real images included.
    """
    classes, k = x.shape[:2]
    size = engine.at_once(x.shape[-1])
    group = max(1, min(size // k, 16 * size // settings.real_batch))
    total = torch.zeros((), device=engine.device)
    for first in range(0, classes, group):
        members = torch.arange(first, min(first + group, classes))
        count = len(members)
        fake = x[first : first + group].flatten(0, 1)
        real = torch.cat([next(real_batches) for _ in members])
        if distortions is not None:
            chosen = distortions.of(members).to(engine.device)
            real = siamese.apply(real, chosen.repeated(settings.real_batch))
            fake = siamese.apply(fake, chosen.repeated(k))
        target = means(network, real, count, settings, engine)
        fake = engine.arranged(fake, network).view(count, k, *x.shape[2:])
        losses = loss(network, fake, target, settings, engine)
        losses.sum().backward()
        total += losses.detach().sum()
    return total


def _distortions(real: Real, settings: "MatchSettings", seed: int, iteration: int) -> siamese.Distortions | None:
    """Draw one distortion for each class."""
    if settings.views == "none":
        return None
    return siamese.joined([siamese.draw(generator("match", "view", seed, iteration, c), 1) for c in real.labels])


def _positions(real: Real, settings: "MatchSettings", seed: int, first: int) -> Iterator[Tensor]:
    """Yield the positions of the real images of each iteration and class."""
    for i in range(first, settings.iterations):
        for label, begin, count in zip(real.labels, real.begins, real.counts, strict=True):
            draws = generator("match", "real", seed, i, label)
            yield begin + torch.randperm(count, generator=draws)[: settings.real_batch]
