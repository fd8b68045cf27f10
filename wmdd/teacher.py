"""Teacher: a network trained on the real data (the squeeze stage of SRe2L), gated on its accuracy."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from wmdd import augment
from wmdd.errors import WmddError
from wmdd.feeding import Pictures
from wmdd.models import Network, build, normalise
from wmdd.rng import generator
from wmdd.training import Batch, Context, batches_of, cross_entropy, evaluate, fit

if TYPE_CHECKING:
    from wmdd.settings import TeacherSettings


def views_of(settings: "TeacherSettings", count: int, resolution: int, seed: int, epoch: int) -> augment.Views:
    """Draw the views of the training images for one epoch."""
    draws = generator("teacher", "views", seed, epoch)
    scale = settings.crop_scale if settings.crop == "resized" else (1.0, 1.0)
    views = augment.draw(draws, count, scale, settings.flip)
    if settings.crop != "pad":
        return views
    box = augment.shifted(draws, count, settings.pad, resolution)
    return augment.Views(box, views.flip, views.partner, views.paste)


def train(
    pictures: Pictures,
    val_pictures: Pictures,
    classes: int,
    mean: list[float],
    std: list[float],
    settings: "TeacherSettings",
    seed: int,
    context: Context,
) -> tuple[Network, list[dict[str, float]]]:
    """Train a teacher on the pictures of the training split; return it with its history.

    The learning rate, the views and the order of the images depend on seed and epoch alone.

    Raises:
        WmddError: the accuracy of the last epoch is below `min_accuracy` (the gate), or the loss is not a number.
    """
    labels, resolution = pictures.labels, pictures.resolution
    network = build(settings, classes, resolution, generator("teacher", "weights", seed))
    context.engine.place(network)

    def epoch_of(epoch: int) -> Iterable[Batch]:
        views = views_of(settings, len(labels), resolution, seed, epoch)
        order = torch.randperm(len(labels), generator=generator("teacher", "order", seed, epoch))
        batches = batches_of(order, settings.batch_size)
        for index, images in zip(batches, pictures.batches(batches), strict=True):
            chosen = normalise(context.engine.images(images), mean, std)
            mine = views.of(index)
            local = augment.Views(mine.crop, mine.flip, torch.arange(len(index)), mine.paste)
            seen = augment.apply(chosen, local, torch.arange(len(index)), padded=settings.crop == "pad")
            yield Batch(seen, labels[index].to(context.engine.device))

    history = fit(
        network,
        epoch_of,
        len(batches_of(labels, settings.batch_size)),
        cross_entropy(settings.label_smoothing),
        lambda net: evaluate(net, val_pictures, mean, std, context.engine),
        settings,
        context,
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
