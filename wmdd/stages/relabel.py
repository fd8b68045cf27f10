"""Relabel: the teacher's logits on random views of the distilled images (FKD, Shen and Xing 2022; SRe2L's third stage).

The views of epoch e are drawn from a seed that depends on (distillation seed, e) alone, for all images at once. So the views
are never kept: a file of labels holds their seeds and what `wmdd.stages.labels` makes of the logits, and a student replays
them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator, seed_of
from wmdd.networks import augment, siamese
from wmdd.networks.context import Context
from wmdd.networks.engine import Engine
from wmdd.networks.models import normalise
from wmdd.networks.normalisation import Normalisation
from wmdd.networks.training import batches_of
from wmdd.networks.whitening import Whitening
from wmdd.stages.shown import Shown

if TYPE_CHECKING:
    from wmdd.settings.student import AugmentationSettings


AnyViews = augment.Views | siamese.Distortions


def seed_of_views(seed: int, epoch: int) -> int:
    """Return the seed of the views of an epoch."""
    return seed_of("relabel", "views", seed, epoch)


def seeds_of(seed: int, epochs: int) -> list[int]:
    """Return the seed of each epoch's views."""
    return [seed_of_views(seed, epoch) for epoch in range(epochs)]


def views_of(settings: "AugmentationSettings", count: int, view_seed: int) -> AnyViews:
    """Replay the views of one epoch from its seed."""
    draws = torch.Generator().manual_seed(view_seed)
    if settings.views == "dsa":
        return siamese.draw(draws, count)
    return augment.draw(draws, count, settings.crop_scale, settings.flip, settings.mix, settings.patches)


def seen(
    images: Tensor,
    views: AnyViews,
    index: Tensor,
    normalisation: Normalisation,
    whitening: Whitening | None = None,
) -> Tensor:
    """Return the views of `images[index]`, [B, 3, R, R] normalised (and whitened), of a set [N, 3, R, R] that stays as it is.

    Only these images and their CutMix partners become float32, the partners behind the images. All on one device.
    """

    def prepared(chosen: Tensor) -> Tensor:
        pixels = normalise(images.index_select(0, chosen), normalisation)
        return pixels if whitening is None else whitening.apply(pixels)

    if isinstance(views, siamese.Distortions):
        return siamese.apply(prepared(index), views.of(index))
    both = torch.cat([index, views.partner[index]]) if views.mixed else index
    here = torch.arange(len(both), device=index.device)
    paired = replace(views.of(both), partner=here.roll(len(index)))
    return augment.apply(prepared(both), paired, here[: len(index)])


def use_batch_statistics(network: nn.Module) -> None:
    """Let the BatchNorm of a network take the statistics of each batch, and leave its running ones as they are.

    Raises:
        WmddError: the network has no BatchNorm.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        raise WmddError(
            "no teacher of the labels has BatchNorm layers, so statistics: batch means nothing; set running"
        )
    for layer in layers:
        layer.train()
        layer.track_running_stats = False


def batches_of_labels(view_seed: int, count: int, size: int) -> tuple[Tensor, ...]:
    """Return which views of an epoch share the statistics of a batch: at most `size`, drawn from the views' seed alone."""
    draws = generator("relabel", "batches", view_seed)
    return batches_of(torch.randperm(count, generator=draws), size)


@torch.no_grad()
def ask(network: nn.Module, images: Tensor, engine: Engine) -> Tensor:
    """Return what a teacher says of normalised views [B, 3, R, R]: its logits, [B, C] float32."""
    images = engine.arranged(images, network)
    with engine.autocast():
        return network(images).float()


def logits_of_epoch(
    network: nn.Module,
    images: Tensor,
    views: AnyViews,
    normalisation: Normalisation,
    batches: Sequence[Tensor],
    engine: Engine,
) -> Tensor:
    """Return a teacher's logits on all views of an epoch, [N, C] float32, asked batch by batch; all on one device."""

    def logits_of(index: Tensor) -> Tensor:
        return ask(network, seen(images, views, index, normalisation), engine)

    order = torch.cat(list(batches)).to(images.device)
    logits = torch.cat(list(engine.passes(logits_of, order.split([len(batch) for batch in batches]))))
    return torch.empty_like(logits).index_copy_(0, order, logits)


def relabel(
    network: nn.Module,
    images: Tensor,
    normalisation: Normalisation,
    seeds: list[int],
    settings: "AugmentationSettings",
    batch_size: int,
    context: Context,
    start: int = 0,
    shown: Shown | None = None,
    statistics_batch: int = 0,
) -> Iterator[Tensor]:
    """Yield the teacher's logits on the views of one epoch after the other, each [N, C] float16 on the engine's device.

    The views are of the N distilled images [N, 3, R, R] that an epoch shows, all images given or those of `shown`, and drawn
    from one of the `seeds` [E] an epoch; `start` epochs are done. The result does not depend on the batch size, beyond
    rounding. With a `statistics_batch`, so many views share the statistics of BatchNorm instead, on which the result depends
    (BSSL of CV-DD and FADRM).

    Raises:
        WmddError: a logit is no number, or too large for float16; or there is no BatchNorm whose statistics could be a batch's.
    """
    network.eval()
    if statistics_batch:
        use_batch_statistics(network)
    context.engine.place(network)
    engine, shown = context.engine, shown or Shown.all_of(images)
    images = images.to(engine.device) if shown.everything else images
    everything = torch.arange(shown.count)
    for epoch in context.progress(range(start, len(seeds)), "relabelling", len(seeds), start, "epoch"):
        pixels = shown.part(images, epoch, engine.device)
        views, batches = views_of(settings, shown.count, seeds[epoch]).to(engine.device), everything.split(batch_size)
        if statistics_batch:
            batches = batches_of_labels(seeds[epoch], shown.count, statistics_batch)
        logits = logits_of_epoch(network, pixels, views, normalisation, batches, engine).half()
        if not logits.isfinite().all():
            raise WmddError(
                f"a logit of the teacher in epoch {epoch + 1} is NaN, infinite or beyond 65,504; train the teacher again, "
                "or set precision: fp32"
            )
        yield logits
