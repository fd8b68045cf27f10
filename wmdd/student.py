"""Student: a network trained from scratch on the distilled images, with the teacher's soft labels or the hard ones."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from wmdd import augment
from wmdd.errors import WmddError
from wmdd.models import Network, build
from wmdd.relabel import views_of
from wmdd.rng import generator
from wmdd.training import Batch, Context, batches_of, cross_entropy, distillation, evaluate, fit

if TYPE_CHECKING:
    from wmdd.feeding import Pictures
    from wmdd.settings import AugmentationSettings, StudentSettings


def mixed(labels: Tensor, views: augment.Views, classes: int, side: int) -> Tensor:
    """Return the hard labels of the views as probabilities [N, C]: the shares of the pixels that image and partner show."""
    own = F.one_hot(labels, classes).float()
    kept = views.kept(side, side)[:, None].float()
    return kept * own + (1 - kept) * own[views.partner]


def train(
    images: Tensor,
    labels: Tensor,
    weights: Tensor,
    logits: Tensor | None,
    seeds: list[int],
    val_pictures: "Pictures",
    classes: int,
    mean: list[float],
    std: list[float],
    settings: "StudentSettings",
    augmentation: "AugmentationSettings",
    seed: int,
    run: int,
    context: Context,
) -> tuple[Network, list[dict[str, float]]]:
    r"""Train a student and return it with its history.

    The loss is 1/B \sum_i w_i KL(softmax(t_i / T) || softmax(s_i / T)) over the views of a batch, t the stored logits of
    the teacher, or the cross-entropy with `labels: hard`. The weights w have mean 1 over the distilled set.

    Args:
        images: the distilled set, normalised [N, 3, R, R].
        labels: [N].
        weights: [N], not negative, of any scale.
        logits: the teacher's, [E, N, C] with E >= epochs; None with hard labels.
        seeds: of the views of each epoch, [E].
        val_pictures: of the real validation split.
        classes: C.
        mean: per channel, of the normalisation.
        std: per channel.
        settings: the optimisation.
        augmentation: what is random in a view; the relabel stage's.
        seed: of the distillation.
        run: tells students of one distilled set apart.
        context: engine, checkpoints, log, progress.

    Raises:
        WmddError: there are labels for fewer epochs than the student trains, or the loss is not a number.
    """
    if len(seeds) < settings.epochs:
        raise WmddError(
            f"there are labels for {len(seeds)} epochs but the student trains {settings.epochs}; raise relabel.epochs"
        )
    network = build(settings, classes, images.shape[-1], generator("student", "weights", seed, run))
    context.engine.place(network)
    images = context.engine.images(images)
    share = weights / weights.mean()

    def epoch_of(epoch: int) -> Iterable[Batch]:
        views = views_of(augmentation, len(labels), seeds[epoch])
        targets = mixed(labels, views, classes, images.shape[-1]) if logits is None else logits[epoch]
        order = torch.randperm(len(labels), generator=generator("student", "order", seed, run, epoch))
        for index in batches_of(order, settings.batch_size):
            seen = augment.apply(images, views, index)
            yield Batch(seen, targets[index].to(seen.device), share[index].to(seen.device))

    history = fit(
        network,
        epoch_of,
        len(batches_of(labels, settings.batch_size)),
        cross_entropy() if logits is None else distillation(settings.temperature),
        lambda net: evaluate(net, val_pictures, mean, std, context.engine),
        settings,
        context,
    )
    return network, history
