"""Student: a network trained from scratch on the distilled images, with the teacher's soft labels or the hard ones."""

from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.networks import augment, siamese
from wmdd.networks.context import Context
from wmdd.networks.engine import Engine, flop
from wmdd.networks.models import Network, build
from wmdd.networks.training import Batch, batches_of, cross_entropy, distillation, evaluate, fit_all
from wmdd.networks.whitening import Whitened, Whitening
from wmdd.stages.labels import Labels
from wmdd.stages.relabel import ask, views_of
from wmdd.stages.relabel import seen as seen_of

if TYPE_CHECKING:
    from wmdd.datasets.loader import Pictures
    from wmdd.settings.student import AugmentationSettings, StudentSettings


def weighted(masses: Tensor, how: str) -> Tensor:
    r"""Return how much each image counts in the loss, [C, K] with mean 1 over the set, of the masses [C, K] that a method left.

    With w the masses of a class, sum 1, an image counts in proportion to

        mass                w                   the measure itself: \sum_k w_k l(x_k) estimates the mean loss over the class
        sqrt-mass           w^(1/2)             a reading of DDOQ's weights that others have given
        variance-reduced    (w + 1/K) / 2       half-way to equal ones: half the standard deviation, a quarter of the variance
        uniform             1/K                 D4M

    DDOQ reduces the variance of its weights, but we found no formula for it; the third row is this project's.
    """
    w = masses.double() / masses.double().sum(1, keepdim=True)
    equal = torch.full_like(w, 1 / w.shape[1])
    counts = {"mass": w, "sqrt-mass": w.sqrt(), "variance-reduced": (w + equal) / 2, "uniform": equal}[how]
    return (counts / counts.mean()).float()


def mixed(own: Tensor, views: augment.Views | siamese.Distortions, side: int) -> Tensor:
    """Return labels of the views, [N, C], of those of the images: by the shares of the pixels that image and partner show."""
    if isinstance(views, siamese.Distortions):
        return own
    kept = views.kept(side, side)[:, None].float()
    return kept * own + (1 - kept) * own[views.partner]


def train(
    images: Tensor,
    own: Tensor,
    weights: Tensor,
    labels: Labels,
    val_pictures: "Pictures",
    classes: int,
    mean: list[float],
    std: list[float],
    settings: "StudentSettings",
    augmentation: "AugmentationSettings",
    seed: int,
    runs: Sequence[int],
    context: Context,
    whitening: Whitening | None = None,
) -> list[tuple[Network, list[dict[str, float]]]]:
    r"""Train students of one distilled set side by side and return each with its history.

    The loss is 1/B \sum_i w_i KL(softmax(t_i / T) || softmax(s_i / T)) over the views of a batch, t the teacher's logits, or
    the cross-entropy with hard labels. The weights w have mean 1 over the set.

    Args:
        images: the distilled set, uint8 [N, 3, R, R].
        own: the class of each image, [N], or probabilities of the classes that a method learned, [N, C].
        weights: [N], not negative, of any scale.
        labels: the seed of each epoch's views, and where their labels come from.
        val_pictures: of the real validation split.
        classes: C.
        mean: per channel, of the normalisation.
        std: per channel.
        settings: the optimisation.
        augmentation: what is random in a view; the relabel stage's.
        seed: of the distillation.
        runs: tell the students apart, which do not depend on each other.
        context: engine, checkpoints, log, progress.
        whitening: of the real training images, if students see whitened ones.

    Raises:
        WmddError: there are labels for fewer epochs than the student trains, or the loss is not a number.
    """
    if labels.epochs < settings.epochs:
        raise WmddError(
            f"there are labels for {labels.epochs} epochs but the student trains {settings.epochs}; raise relabel.epochs"
        )
    engine, side = context.engine, images.shape[-1]
    networks = [engine.place(build(settings, classes, side, generator("student", "weights", seed, n))) for n in runs]
    if labels.teacher is not None:
        engine.place(labels.teacher).eval()
    white = None if whitening is None else whitening.to(engine.device)
    lesson = _Lesson(images, own, weights, labels, classes, mean, std, white, augmentation, engine)
    size = settings.batch_size
    epochs_of = [lesson.of(network, size, seed, run) for network, run in zip(networks, runs, strict=True)]
    loss, steps = distillation(settings.temperature) if labels.soft else cross_entropy(), len(batches_of(own, size))
    work = 3 * flop(networks[0], side) * len(images) * settings.epochs if engine.graphs else 0

    def validate(network: nn.Module) -> dict[str, float]:
        return evaluate(network if white is None else Whitened(network, white), val_pictures, mean, std, engine)

    histories = fit_all(networks, epochs_of, steps, loss, validate, settings, context, settings.ema, work)
    return list(zip(networks, histories, strict=True))


class _Lesson:
    """The distilled set as students see it: views, labels and weights, all on the device."""

    def __init__(
        self,
        images: Tensor,
        own: Tensor,
        weights: Tensor,
        labels: Labels,
        classes: int,
        mean: list[float],
        std: list[float],
        whitening: Whitening | None,
        augmentation: "AugmentationSettings",
        engine: Engine,
    ) -> None:
        own = F.one_hot(own, classes).float() if own.ndim == 1 else own
        self._images, self._own = images.to(engine.device), own.to(engine.device)
        self._share = (weights / weights.mean()).to(engine.device)
        self._labels, self._normalisation, self._whitening = labels, (mean, std), whitening
        self._augmentation, self._engine = augmentation, engine
        self._lock = Lock()
        self._epoch: tuple[int, augment.Views | siamese.Distortions, Tensor | None] | None = None

    def of(self, network: Network, size: int, seed: int, run: int) -> Callable[[int, int], Iterator[Batch]]:
        """Return a function that yields the batches of an epoch of a student, from a step on, in its own order."""
        ask_teacher = self._engine.captured(self._logits_of)  # of its own: its answers last to the next question
        normalisation, white = self._normalisation, self._whitening

        def batches(epoch: int, begin: int) -> Iterator[Batch]:
            views, targets = self._epoch_of(epoch)
            order = torch.randperm(len(self._own), generator=generator("student", "order", seed, run, epoch))
            steps = batches_of(order.to(self._engine.device), size)
            at_once = max(1, self._engine.at_once(self._images.shape[-1]) // len(steps[0]))  # small steps share a call
            for first in range(begin - begin % at_once, len(steps), at_once):
                parts = steps[first : first + at_once]
                index = torch.cat(parts)
                seen = self._engine.arranged(seen_of(self._images, views, index, *normalisation, white), network)
                asked_about = seen  # the teacher's views: never whitened
                if targets is None and white is not None:
                    asked_about = self._engine.arranged(seen_of(self._images, views, index, *normalisation), network)
                sizes = [len(part) for part in parts]
                for step, (x, question, i) in enumerate(
                    zip(seen.split(sizes), asked_about.split(sizes), parts, strict=True), first
                ):
                    if step >= begin:
                        yield Batch(x, ask_teacher(question) if targets is None else targets[i], self._share[i])

        return batches

    def _epoch_of(self, epoch: int) -> tuple[augment.Views | siamese.Distortions, Tensor | None]:
        """Return the views of an epoch and their labels, None where a teacher is to be asked; made once for all students."""
        with self._lock:
            if self._epoch is None or self._epoch[0] != epoch:
                views = views_of(self._augmentation, len(self._own), self._labels.seed(epoch))
                views = views.to(self._engine.device)
                self._epoch = epoch, views, self._targets(epoch, views)
                if self._engine.device.type == "cuda":  # the students' streams may read it at once
                    torch.cuda.current_stream().synchronize()
            return self._epoch[1:]

    def _targets(self, epoch: int, views: augment.Views | siamese.Distortions) -> Tensor | None:
        if self._labels.logits is not None:
            return self._labels.logits(epoch).to(self._engine.device)
        return None if self._labels.soft else mixed(self._own, views, self._images.shape[-1])

    def _logits_of(self, seen: Tensor) -> Tensor:
        assert self._labels.teacher is not None
        return ask(self._labels.teacher, seen, self._engine)
