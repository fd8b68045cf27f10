"""Teacher: a network trained on the real data (the squeeze stage of SRe2L), gated on its accuracy."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.networks import augment
from wmdd.networks.context import Context
from wmdd.networks.distributed import ALONE, parts_of, shared_statistics
from wmdd.networks.losses import cross_entropy
from wmdd.networks.models import Network, build, normalise
from wmdd.networks.normalisation import Normalisation
from wmdd.networks.training import Batch, batches_of, evaluate, fit

if TYPE_CHECKING:
    from wmdd.datasets.loader import Pictures
    from wmdd.settings.teacher import TeacherSettings


def views_of(settings: "TeacherSettings", count: int, resolution: int, seed: int, epoch: int) -> augment.Views:
    """Draw the views of the training images for one epoch."""
    draws = generator("teacher", "views", seed, epoch)
    scale = settings.crop_scale if settings.crop == "resized" else (1.0, 1.0)
    views = augment.draw(draws, count, scale, settings.flip)
    if settings.crop != "pad":
        return views
    box = augment.shifted(draws, count, settings.pad, resolution)
    return replace(views, crop=box)


def side_of(settings: "TeacherSettings", resolution: int, epoch: int) -> int:
    """Return the side of the images in an epoch: from a share of the full side linearly to all of it, at 3/4 of the epochs.

    A multiple of 8 pixels but for the full side, so that the sides are few and convolutions fast.
    """
    first, gone = settings.progressive_from, epoch / (0.75 * settings.epochs)
    share = first + (1 - first) * gone
    return resolution if share >= 1 else min(resolution, max(8, 8 * round(share * resolution / 8)))


def shrink(images: Tensor, side: int) -> Tensor:
    """Return images [B, 3, R, R] at a smaller side, without aliasing."""
    if side == images.shape[-1]:
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)


def check_sizes(network: nn.Module, side: int, settings: "TeacherSettings", context: Context) -> None:
    """Refuse a network that can't see images of a smaller side.

    Raises:
        WmddError: names it.
    """
    training = network.training
    try:
        with torch.inference_mode():
            network.eval()(context.engine.arranged(torch.zeros(1, 3, side, side), network))
    except (AssertionError, RuntimeError, ValueError):
        raise WmddError(
            f"{settings.architecture} takes images of one size only, not of {side} px; set progressive_from: 1"
        ) from None
    network.train(training)


def train(
    pictures: "Pictures",
    val_pictures: "Pictures",
    classes: int,
    normalisation: Normalisation,
    settings: "TeacherSettings",
    seed: int,
    context: Context,
) -> tuple[Network, list[dict[str, float]]]:
    """Train a teacher on the pictures of the training split; return it with its history.

    One process keeps it after any step, several at the end of an epoch only (see `wmdd.networks.training.fit_all`).

    The learning rate, the views and the order of the images depend on seed and epoch alone, so several processes, each of
    which takes its share of each step, compute what one does, up to the order of sums. Without `sync_batchnorm` each
    normalises its own share, and the running statistics that are validated and saved are the mean of theirs.

    Raises:
        WmddError: the accuracy of the last epoch is below `min_accuracy` (the gate), or the loss is not a number.
    """
    labels, resolution = pictures.labels, pictures.resolution
    network = build(settings, classes, resolution, generator("teacher", "weights", seed))
    context.engine.place(network)

    device = context.engine.device
    classes_of = labels.to(device)

    def epoch_of(epoch: int, first: int) -> Iterable[Batch]:
        views = views_of(settings, len(labels), resolution, seed, epoch).to(device)
        order = torch.randperm(len(labels), generator=generator("teacher", "order", seed, epoch))
        side = side_of(settings, resolution, epoch)
        steps = batches_of(order, settings.batch_size)
        parts = [part for step in steps[first:] for part in parts_of(step, settings.accumulate, context.world)]
        for (index, share, last), images in zip(parts, pictures.batches(p.positions for p in parts), strict=True):
            chosen, index = normalise(images.to(device), normalisation), index.to(device)
            every = torch.arange(len(index), device=device)
            seen = augment.apply(chosen, replace(views.of(index), partner=every), every, padded=settings.crop == "pad")
            seen = context.engine.arranged(shrink(seen, side), network)
            yield Batch(seen, classes_of[index], share=share, last=last)

    if settings.progressive_from < 1:
        check_sizes(network, side_of(settings, resolution, 0), settings, context)
    with shared_statistics(network, context.world if settings.sync_batchnorm else ALONE):
        history = fit(
            network,
            epoch_of,
            len(batches_of(labels, settings.batch_size)),
            cross_entropy(settings.label_smoothing),
            lambda net: evaluate(net, val_pictures, normalisation, context.engine, world=context.world),
            settings,
            context,
            settings.ema,
        )
    gate(history[-1]["top1"], settings.min_accuracy)
    return network, history


def gate(accuracy: float, minimum: float) -> None:
    """Stop the run when the teacher is too weak for its features to mean anything.

    Raises:
        WmddError: names both numbers.
    """
    if accuracy < minimum:
        raise WmddError(
            f"the teacher reaches {accuracy:.1%} on the validation set, below min_accuracy {minimum:.1%}; "
            "check the order of the classes and the data, train longer, or lower teacher.min_accuracy"
        )
