"""Relabel: the teacher's logits on random views of the distilled images (FKD, Shen and Xing 2022; SRe2L's third stage).

The views of epoch e are drawn from a seed that depends on (distillation seed, e) alone, for all images at once. The file
keeps these seeds and the logits in half precision: a student replays the views and never sees the teacher.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wmdd import augment
from wmdd.models import Network
from wmdd.rng import seed_of
from wmdd.training import Context

if TYPE_CHECKING:
    from wmdd.settings import AugmentationSettings


def seeds_of(seed: int, epochs: int) -> list[int]:
    """Return the seed of each epoch's views."""
    return [seed_of("relabel", "views", seed, epoch) for epoch in range(epochs)]


def views_of(settings: "AugmentationSettings", count: int, view_seed: int) -> augment.Views:
    """Replay the views of one epoch from its seed."""
    draws = torch.Generator().manual_seed(view_seed)
    return augment.draw(draws, count, settings.crop_scale, settings.flip, settings.mix)


@torch.inference_mode()
def relabel(
    network: Network,
    images: Tensor,
    seeds: list[int],
    settings: "AugmentationSettings",
    batch_size: int,
    context: Context,
) -> Tensor:
    """Return the teacher's logits on every view, [E, N, C] float16.

    Args:
        network: the teacher, in eval mode throughout.
        images: the distilled set, normalised [N, 3, R, R].
        seeds: one an epoch, [E].
        settings: what is random in a view.
        batch_size: images a forward pass; the result does not depend on it beyond rounding.
        context: engine, progress.
    """
    network.eval()
    context.engine.place(network)
    images = context.engine.images(images)
    logits = torch.empty(len(seeds), len(images), network.head.out_features, dtype=torch.float16)
    for epoch, seed in enumerate(context.progress(seeds, "relabelling", len(seeds), unit="epoch")):
        views = views_of(settings, len(images), seed)
        for index in torch.arange(len(images)).split(batch_size):
            with context.engine.autocast():
                logits[epoch, index] = network(augment.apply(images, views, index)).to("cpu", torch.float16)
    return logits
