"""Student: a network trained from scratch on the distilled images, with the teacher's soft labels or the hard ones."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.networks import siamese
from wmdd.networks.context import Context
from wmdd.networks.engine import Engine, flop
from wmdd.networks.losses import OF_THE_CLASS, LossOf, cosine, cross_entropy, distillation, squared_error, with_sinkhorn
from wmdd.networks.models import Network, build
from wmdd.networks.normalisation import Normalisation
from wmdd.networks.training import Batch, batches_of, evaluate, fit_all
from wmdd.networks.whitening import Whitened, Whitening
from wmdd.stages.labels import Labels
from wmdd.stages.relabel import AnyViews, ask, batches_of_labels, logits_of_epoch, seen, use_batch_statistics, views_of
from wmdd.stages.shown import Shown

if TYPE_CHECKING:
    from wmdd.datasets.loader import Pictures
    from wmdd.settings.student import AugmentationSettings, StudentSettings


class Student(NamedTuple):
    """A trained student."""

    network: Network
    history: list[dict[str, float]]  # an entry an epoch
    confusion: (
        Tensor  # [C, C] after the last epoch: validation pictures of a class (row) that it takes for a class (column)
    )


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


def mixed(own: Tensor, views: AnyViews, side: int) -> Tensor:
    """Return labels of the views, [N, C], of those of the images: by the shares of the pixels that image and partner show."""
    if isinstance(views, siamese.Distortions):
        return own
    kept = views.kept(side, side)[:, None].float()
    return kept * own + (1 - kept) * own[views.partner]


def loss_of(settings: "StudentSettings", soft: bool) -> LossOf:
    """Return the loss of a student of soft or hard labels."""
    if not soft:
        return cross_entropy()
    if settings.loss == "kl":
        return distillation(settings.temperature, settings.student_temperature)
    if settings.loss == "kl+sinkhorn":
        return with_sinkhorn(settings.temperature, settings.student_temperature, settings.sinkhorn_weight)
    if settings.loss == "cosine":
        return cosine(settings.hard_weight)
    return squared_error(settings.hard_weight if settings.loss == "mse+ce" else 0.0)


def temperature_of(settings: "StudentSettings", epoch: int) -> float:
    """Return the temperature of the labels in an epoch: max(floor, T decay^(epoch // every)), and never above T (LPQLD)."""
    fallen = settings.temperature * settings.temperature_decay ** (epoch // settings.temperature_epochs)
    return max(fallen, min(settings.temperature_floor, settings.temperature))


def train(
    images: Tensor,
    own: Tensor,
    weights: Tensor,
    labels: Labels,
    val_pictures: "Pictures",
    classes: int,
    normalisation: Normalisation,
    settings: "StudentSettings",
    augmentation: "AugmentationSettings",
    seed: int,
    runs: Sequence[int],
    context: Context,
    whitening: Whitening | None = None,
    shown: Shown | None = None,
) -> list[Student]:
    r"""Train students of one distilled set side by side and return them.

    The loss is 1/B \sum_i w_i l(s_i, t_i) over the views of a batch, s the student's logits and t the teacher's, with l one of
    `wmdd.networks.losses`, or the cross-entropy with hard labels. The weights w [N], given on any scale, have mean 1 over the
    set. A loss that sees the class sees that of the image itself, whatever is pasted into the view (as EDC's code does).

    The set is images [N, 3, R, R]; `own` are their classes [N], or probabilities [N, C] that a method learned. `labels`
    hold the seed of each epoch's views. `whitening` is that of the real training images, if students see whitened ones; the
    numbers `runs` tell the students apart, which do not depend on each other. An epoch shows all images, or those of `shown`.

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
        if labels.statistics_batch:
            use_batch_statistics(labels.teacher)
    white = None if whitening is None else whitening.to(engine.device)
    own = F.one_hot(own, classes).float() if own.ndim == 1 else own
    shown = shown or Shown.all_of(images)
    place = engine.device if shown.everything else images.device  # what an epoch leaves out stays where it is
    images, own, share = (part.to(place) for part in (images, own, weights / weights.mean()))
    lesson = _Lesson(images, own, share, shown, labels, normalisation, white, augmentation, settings, engine)
    size = settings.batch_size
    epochs_of = [lesson.of(network, size, seed, run) for network, run in zip(networks, runs, strict=True)]
    loss, steps = loss_of(settings, labels.soft), shown.steps(size)
    work = 3 * flop(networks[0], side) * shown.count * settings.epochs if engine.graphs else 0

    confusions: deque[Tensor] = deque(maxlen=len(networks))  # of the last look at each network

    def validate(network: nn.Module) -> dict[str, float]:
        confusions.append(torch.zeros(classes, classes, dtype=torch.int64))
        seeing = network if white is None else Whitened(network, white)
        return evaluate(seeing, val_pictures, normalisation, engine, confusion=confusions[-1])

    histories = fit_all(networks, epochs_of, steps, loss, validate, settings, context, settings.ema, work)
    if not confusions:  # the job was killed after the last epoch: nothing was left to train or to look at
        for network in networks:
            validate(network)
    return [Student(*parts) for parts in zip(networks, histories, confusions, strict=True)]


class _Epoch(NamedTuple):
    """The images that an epoch shows, their own labels, weights and views, and labels of these (None: a teacher is asked)."""

    number: int
    images: Tensor
    own: Tensor
    share: Tensor
    views: AnyViews
    targets: Tensor | None


@dataclass
class _Lesson:
    """The distilled set as students see it: views, labels and weights."""

    images: Tensor
    own: Tensor  # labels [N, C]
    share: Tensor  # weights of mean 1
    shown: Shown
    labels: Labels
    normalisation: Normalisation
    whitening: Whitening | None
    augmentation: "AugmentationSettings"
    settings: "StudentSettings"
    engine: Engine
    _epoch: _Epoch | None = None  # that the students are in
    _lock: Lock = field(default_factory=Lock)

    def of(self, network: Network, size: int, seed: int, run: int) -> Callable[[int, int], Iterator[Batch]]:
        """Return a function that yields the batches of an epoch of a student, from a step on, in its own order."""
        ask_teacher = self.engine.captured(self._logits_of)  # of its own: its answers last to the next question

        def batches(epoch: int, begin: int) -> Iterator[Batch]:
            _, images, own, share, views, targets = self._epoch_of(epoch)
            order = torch.randperm(len(images), generator=generator("student", "order", seed, run, epoch))
            steps = batches_of(order.to(self.engine.device), size)
            at_once = max(1, self.engine.at_once(self.images.shape[-1]) // len(steps[0]))  # small steps share a call
            for first in range(begin - begin % at_once, len(steps), at_once):
                parts = steps[first : first + at_once]
                index = torch.cat(parts)
                shown = asked_about = self._shown(images, views, index, network, self.whitening)
                if targets is None and self.whitening is not None:  # the teacher's views are never whitened
                    asked_about = self._shown(images, views, index, network, None)
                sizes = [len(part) for part in parts]
                for step, (x, question, i) in enumerate(
                    zip(shown.split(sizes), asked_about.split(sizes), parts, strict=True), first
                ):
                    if step >= begin:
                        answer = ask_teacher(question) if targets is None else targets[i]
                        yield Batch(x, self._targets_of(answer, own[i], epoch), share[i])

        return batches

    def _shown(
        self, images: Tensor, views: AnyViews, index: Tensor, network: Network, whitening: Whitening | None
    ) -> Tensor:
        """Return views of some images as a network takes them."""
        return self.engine.arranged(seen(images, views, index, self.normalisation, whitening), network)

    def _epoch_of(self, epoch: int) -> _Epoch:
        """Return what an epoch shows; made once for all students."""
        with self._lock:
            if self._epoch is None or self._epoch.number != epoch:
                turn, device = self.labels.turn(epoch), self.engine.device
                images, own, share = (self.shown.part(v, turn, device) for v in (self.images, self.own, self.share))
                views = views_of(self.augmentation, len(own), self.labels.seed(epoch)).to(device)
                self._epoch = _Epoch(epoch, images, own, share, views, self._targets(epoch, images, own, views))
                if device.type == "cuda":  # the students' streams may read it at once
                    torch.cuda.current_stream().synchronize()
            return self._epoch

    def _targets(self, epoch: int, images: Tensor, own: Tensor, views: AnyViews) -> Tensor | None:
        if self.labels.logits is not None:
            return self.labels.logits(epoch).to(self.engine.device)
        if self.labels.teacher is not None and self.labels.statistics_batch:  # not of the student's batches
            batches = batches_of_labels(self.labels.seed(epoch), len(own), self.labels.statistics_batch)
            teacher = self.labels.teacher
            return logits_of_epoch(teacher, images, views, self.normalisation, batches, self.engine)
        return None if self.labels.soft else mixed(own, views, images.shape[-1])

    def _targets_of(self, labels: Tensor, own: Tensor, epoch: int) -> Tensor:
        """Return what the loss takes in an epoch, of labels [B, C] of views and those of the images themselves."""
        if not self.labels.soft:
            return labels
        if self.settings.temperature_decay < 1:  # softmax(t T / T_e / T) = softmax(t / T_e)
            labels = labels.float() * (self.settings.temperature / temperature_of(self.settings, epoch))
        if self.settings.loss not in OF_THE_CLASS:
            return labels
        return torch.cat([labels.float(), own], 1)

    def _logits_of(self, shown: Tensor) -> Tensor:
        assert self.labels.teacher is not None
        return ask(self.labels.teacher, shown, self.engine)
