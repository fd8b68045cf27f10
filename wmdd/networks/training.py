"""The training loop that all networks share: schedule, epochs, evaluation, checkpoints."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from wmdd.base.errors import WmddError
from wmdd.networks.context import Context
from wmdd.networks.distributed import ALONE, World
from wmdd.networks.engine import Engine
from wmdd.networks.losses import LossOf
from wmdd.networks.models import normalise
from wmdd.networks.normalisation import Normalisation
from wmdd.networks.steps import Epoch, Trained, side_by_side, stepper

if TYPE_CHECKING:
    from wmdd.datasets.loader import Pictures
    from wmdd.settings.network import OptimisationSettings


@dataclass(frozen=True)
class Batch:
    """Normalised images [B, 3, H, W], targets (whatever the loss takes) and weights [B] of mean about 1.

    `more` are further inputs of the network, [B, ...] each. It may be a part of a step's images. The step's loss is then the
    mean, over the processes, of the sum over parts of `share` times a part's mean loss; `last` marks the part with which the
    step is complete.
    """

    images: Tensor
    targets: Tensor
    weights: Tensor | None = None
    share: float = 1.0
    last: bool = True
    more: tuple[Tensor, ...] = ()


def learning_rate(settings: "OptimisationSettings", epoch: float) -> float:
    r"""Return the rate at a (fractional) epoch: lr/2 (1 + cos(pi t / (zeta T))) after a linear warm-up.

    zeta = `schedule_stretch`; zeta = 1 is the usual cosine to zero, zeta = 2 ends at half the rate (EDC, NeurIPS 2024). With
    `schedule: constant` it stays, with `step` it is a tenth from half of the epochs on (DM).
    """
    if epoch < settings.warmup_epochs:
        return settings.lr * (epoch + 1e-2) / (settings.warmup_epochs + 1e-2)
    if settings.schedule != "cosine":
        return settings.lr * (0.1 if settings.schedule == "step" and epoch >= settings.epochs / 2 else 1.0)
    span = max(settings.epochs - settings.warmup_epochs, 1e-9)
    share = (epoch - settings.warmup_epochs) / (span * settings.schedule_stretch)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def batches_of(order: Tensor, size: int) -> tuple[Tensor, ...]:
    """Cut an order into the fewest batches of at most `size`, of nearly equal length (none of one image by accident)."""
    return order.tensor_split(math.ceil(len(order) / size))


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    pictures: "Pictures",
    normalisation: Normalisation,
    engine: Engine,
    size: int = 500,
    world: World = ALONE,
    confusion: Tensor | None = None,
) -> dict[str, float]:
    """Return top-1 and top-5 accuracy in [0, 1] on pictures, of which each process looks at its share.

    To `confusion` [C, C], if given, is added how many pictures of each class (row) this process takes for each class (column).
    """
    training = network.training
    network.eval()
    right = torch.zeros(2, dtype=torch.int64, device=engine.device)
    pairs: list[Tensor] = []  # of a class and what it is taken for
    positions = [p for p in world.share(torch.arange(len(pictures.labels))).split(size) if len(p)]

    def guesses(images: Tensor) -> Tensor:  # classes [B, 5], the likeliest first
        with torch.inference_mode(), engine.autocast():
            logits = network(normalise(engine.arranged(images, network), normalisation))
        return logits.float().topk(min(5, logits.shape[1]), 1).indices

    labels = pictures.labels.to(engine.device)
    for index, guessed in zip(positions, engine.passes(guesses, pictures.batches(positions)), strict=True):
        ranked = guessed == labels[index.to(engine.device), None]
        right += torch.stack([ranked[:, 0].sum(), ranked.sum()])
        if confusion is not None:
            pairs.append(labels[index.to(engine.device)] * len(confusion) + guessed[:, 0])
    network.train(training)
    if confusion is not None:
        confusion += torch.cat(pairs).cpu().bincount(minlength=confusion.numel()).view_as(confusion)
    top1, top5 = (world.sum(right).double() / len(pictures.labels)).tolist()
    return {"top1": top1, "top5": top5}


EpochOf = Callable[[int, int], Iterable[Batch]]  # maps an epoch and one of its steps to the batches from there on
Validate = Callable[[nn.Module], dict[str, float]]


def fit(
    network: nn.Module,
    epoch_of: EpochOf,
    steps: int,
    loss_of: LossOf,
    validate: Validate,
    settings: "OptimisationSettings",
    context: Context,
    ema: float = 0.0,
    work: float = 0.0,
    each: Callable[[nn.Module], None] | None = None,
) -> list[dict[str, float]]:
    """Train one network in place and return its history; see `fit_all`."""
    return fit_all([network], [epoch_of], steps, loss_of, validate, settings, context, ema, work, each)[0]


def fit_all(
    networks: Sequence[nn.Module],
    epochs_of: Sequence[EpochOf],
    steps: int,
    loss_of: LossOf,
    validate: Validate,
    settings: "OptimisationSettings",
    context: Context,
    ema: float = 0.0,
    work: float = 0.0,
    each: Callable[[nn.Module], None] | None = None,
) -> list[list[dict[str, float]]]:
    """Train networks in place, side by side, and return the history of each, one entry an epoch.

    What a network becomes does not depend on the others. On CPU each has a thread, on a GPU a stream, so that steps too small
    for the device overlap. One network in one process may be kept after any step. Otherwise they are kept at the end of an
    epoch only: several are in the middle of different steps, and of several processes each has BatchNorm statistics of its
    own until then. At that point the processes also agree whether one of them was told to end.

    Of each network a function gives the batches of an epoch, of `steps` optimiser steps, by the epoch's number alone, so that a
    resumed job is the same. `loss_of` gives the loss of each image, `validate` the accuracy of a network. With a decay `ema`
    above 0 a moving average of weights and buffers is validated, and put into the network at the end. By `work`, the FLOP of
    a network's training, the engine decides whether to compile it. `each` is given every network after each epoch, before
    that is kept. Only one network can be trained by several processes together.

    Raises:
        WmddError: a loss is not a number.
        Preempted: the job was told to end.
    """
    every = [Trained.of(network, settings, ema, context.engine) for network in networks]
    kept = _Kept(every, steps, settings.epochs, context)
    first, total = kept.resume()
    done = len(every[0].history)
    context.world.agree(done * steps + first, "the steps that are done")
    stepped = kept.save_if_due if context.world.size == len(every) == 1 else None
    steppers = [stepper(trained, loss_of, context, work, stepped) for trained in every]
    for epoch in context.progress(range(done, settings.epochs), "training", settings.epochs, done, "epoch"):
        rates = [learning_rate(settings, epoch + step / steps) for step in range(steps)]
        runs = [
            partial(run, Epoch(epoch_of(epoch, first), rates, first, total))
            for run, epoch_of in zip(steppers, epochs_of, strict=True)
        ]
        totals = side_by_side(runs, context.engine)
        first, total = 0, torch.zeros_like(total)
        for number, (trained, summed) in enumerate(zip(every, totals, strict=True)):
            entry = {"epoch": epoch + 1, "loss": float(context.world.mean(summed)) / steps, "lr": rates[-1]}
            _end_epoch(trained, entry, validate, each, settings, context)
            prefix = f"{number}/" if len(every) > 1 else ""
            context.log({f"{prefix}{k}": v for k, v in entry.items() if k != "epoch"}, epoch + 1)
        if context.world.any(bool(context.notice.heard)):
            context.notice.agree()
        if context.keeper.due() or epoch + 1 == settings.epochs:
            kept.save(0, total)  # at the end too: what follows, as a gate, may still stop the job
    return [trained.finish() for trained in every]


@dataclass(frozen=True)
class _Kept:
    """The state of a training, in the keeper of its context."""

    every: Sequence[Trained]
    steps: int  # an epoch
    epochs: int
    context: Context

    def resume(self) -> tuple[int, Tensor]:
        """Restore the networks; return the steps of an unfinished epoch that are done, and the sum of their losses."""
        state = self.context.keeper.load()
        if state is None:
            return 0, torch.zeros((), device=self.context.engine.device)
        for trained, own in zip(self.every, state["networks"], strict=True):
            trained.restore(own)
        return int(state["step"]), state["total"].to(self.context.engine.device)

    def save(self, step: int, total: Tensor) -> None:
        """Keep the networks after some steps of an epoch."""
        state = {"networks": [trained.state() for trained in self.every], "step": step, "total": total}
        self.context.keeper.save(state, len(self.every[0].history) + step / self.steps, self.epochs, "epoch")

    def save_if_due(self, step: int, total: Tensor) -> None:
        """Keep them if it is time to."""
        if self.context.keeper.due():
            self.save(step, total)


def _end_epoch(
    trained: Trained,
    entry: dict[str, float],
    validate: Validate,
    each: Callable[[nn.Module], None] | None,
    settings: "OptimisationSettings",
    context: Context,
) -> None:
    """Check the loss of an epoch, let the processes share their buffers, validate, and add the entry to the history."""
    epoch = int(entry["epoch"])
    if not math.isfinite(entry["loss"]):
        raise WmddError(
            f"the loss is not a number after epoch {epoch}; lower lr ({settings.lr}) or set precision: fp32"
        )
    for network in trained.networks:
        context.world.average_buffers(network)
    if epoch % settings.evaluate_every == 0 or epoch == settings.epochs:
        entry |= validate(trained.networks[-1])
    trained.history.append(entry)
    if each is not None:
        each(trained.networks[-1])
