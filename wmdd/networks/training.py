"""The training loop that teacher and student share: optimiser, schedule, evaluation, checkpoints."""

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from wmdd.base.errors import WmddError
from wmdd.networks.context import Context
from wmdd.networks.distributed import ALONE, World, unsent
from wmdd.networks.engine import Engine, resume, set_rate
from wmdd.networks.models import normalise

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


def optimizer_of(network: nn.Module, settings: "OptimisationSettings", engine: Engine) -> torch.optim.Optimizer:
    """Return the optimiser over all parameters."""
    parameters: list[Tensor] = [p for p in network.parameters() if p.requires_grad]
    options: dict[str, Any] = {"weight_decay": settings.weight_decay}
    if settings.optimizer == "sgd":
        options |= {"momentum": settings.momentum, "nesterov": settings.momentum > 0}
    return engine.optimizer(settings.optimizer, parameters, settings.lr, **options)


def batches_of(order: Tensor, size: int) -> tuple[Tensor, ...]:
    """Cut an order into the fewest batches of at most `size`, of nearly equal length (none of one image by accident)."""
    return order.tensor_split(math.ceil(len(order) / size))


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    pictures: "Pictures",
    mean: list[float],
    std: list[float],
    engine: Engine,
    size: int = 500,
    world: World = ALONE,
) -> dict[str, float]:
    """Return top-1 and top-5 accuracy in [0, 1] on pictures, of which each process looks at its share."""
    training = network.training
    network.eval()
    right = torch.zeros(2, dtype=torch.int64, device=engine.device)
    positions = [p for p in world.share(torch.arange(len(pictures.labels))).split(size) if len(p)]

    def found(images: Tensor) -> Tensor:  # what is thought of them, best first
        with torch.inference_mode(), engine.autocast():
            logits = network(normalise(engine.arranged(images, network), mean, std))
        return logits.float().topk(min(5, logits.shape[1]), 1).indices

    labels = pictures.labels.to(engine.device)
    for index, best in zip(positions, engine.passes(found, pictures.batches(positions)), strict=True):
        ranked = best == labels[index.to(engine.device), None]
        right += torch.stack([ranked[:, 0].sum(), ranked.sum()])
    network.train(training)
    top1, top5 = (world.sum(right).double() / len(pictures.labels)).tolist()
    return {"top1": top1, "top5": top5}


@dataclass(frozen=True)
class Trained:
    """All that a step changes: a network, its optimiser and, where asked for, the moving average of the network."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    history: list[dict[str, float]]

    @classmethod
    def of(cls, network: nn.Module, settings: "OptimisationSettings", ema: float, engine: Engine) -> "Trained":
        """Begin; the average begins at the network after the first step."""
        average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(ema), use_buffers=True) if ema else None
        return cls(network, optimizer_of(network, settings, engine), average, [])

    @property
    def networks(self) -> list[nn.Module]:
        """Return the network that is trained and, behind it, the average."""
        return [self.network] if self.average is None else [self.network, self.average.module]

    def follow(self) -> None:
        """Let the average follow a step."""
        if self.average is not None:
            self.average.update_parameters(self.network)

    def state(self) -> dict[str, Any]:
        """Return what `restore` goes on from."""
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
        }
        return state if self.average is None else state | {"average": self.average.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a kept state."""
        self.network.load_state_dict(state["network"])
        resume(self.optimizer, state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.history.extend(state["history"])


Epoch = Callable[[int, int], Iterable[Batch]]  # of an epoch, the batches from one of its steps on


Validate = Callable[[nn.Module], dict[str, float]]


def fit(
    network: nn.Module,
    epoch_of: Epoch,
    steps: int,
    loss_of: Callable[[Tensor, Tensor], Tensor],
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
    epochs_of: Sequence[Epoch],
    steps: int,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    validate: Validate,
    settings: "OptimisationSettings",
    context: Context,
    ema: float = 0.0,
    work: float = 0.0,
    each: Callable[[nn.Module], None] | None = None,
) -> list[list[dict[str, float]]]:
    """Train networks in place, side by side, and return the history of each, one entry an epoch.

    They know nothing of each other: what a network becomes does not depend on which others are trained beside it. On CPU each
    has a thread, on a GPU a stream, so that steps too small for the device overlap.

    One network in one process may be kept after any step, and goes on from there. Several are in the middle of different steps,
    and of several processes each has BatchNorm statistics of its own until the end of an epoch: they are kept then only, and
    there the processes agree whether one of them was told to end.

    Args:
        networks: on the engine's device.
        epochs_of: of each network, gives the batches of an epoch from one of its steps on; must depend on the epoch's number
            alone, so that a resumed job is the same.
        steps: optimiser steps an epoch.
        loss_of: maps logits [B, C] and targets to one loss for each image [B].
        validate: gives the accuracy of a network.
        settings: the optimisation.
        context: engine, checkpoints, log, progress, and the processes that train together (one network only).
        ema: decay of the moving average of weights and buffers that is validated, and put into the network at the end; 0: off.
        work: FLOP of a network's training, by which the engine decides whether to compile it.
        each: is given every network after each epoch, before that is kept.

    Raises:
        WmddError: a loss is not a number.
        Preempted: the job was told to end.
    """
    every = [Trained.of(network, settings, ema, context.engine) for network in networks]
    state = context.keeper.load()
    for trained, kept in zip(every, state["networks"] if state else [], strict=state is not None):
        trained.restore(kept)
    done = len(every[0].history)
    first = int(state["step"]) if state else 0
    total = state["total"].to(context.engine.device) if state else torch.zeros((), device=context.engine.device)
    context.world.agree(done * steps + first, "the steps that are done")

    def keep(step: int, total: Tensor) -> None:
        state = {"networks": [trained.state() for trained in every], "step": step, "total": total}
        context.keeper.save(state, len(every[0].history) + step / steps, settings.epochs, "epoch")

    def stepped(step: int, total: Tensor) -> None:
        if context.keeper.due():
            keep(step, total)

    alone = context.world.size == len(every) == 1
    passes = [_pass(trained, loss_of, context, work, stepped if alone else None) for trained in every]
    for epoch in context.progress(range(done, settings.epochs), "training", settings.epochs, done, "epoch"):
        rates = [learning_rate(settings, epoch + step / steps) for step in range(steps)]
        totals = _side_by_side(
            [partial(run, of, epoch, rates, first, total) for run, of in zip(passes, epochs_of, strict=True)],
            context.engine,
        )
        first, total = 0, torch.zeros_like(total)
        for number, (trained, summed) in enumerate(zip(every, totals, strict=True)):
            entry = {"epoch": epoch + 1, "loss": float(context.world.mean(summed)) / steps, "lr": rates[-1]}
            if not math.isfinite(entry["loss"]):
                raise WmddError(
                    f"the loss is not a number after epoch {epoch + 1}; lower lr ({settings.lr}) or set precision: fp32"
                )
            for network in trained.networks:
                context.world.average_buffers(network)
            if (epoch + 1) % settings.evaluate_every == 0 or epoch + 1 == settings.epochs:
                entry |= validate(trained.networks[-1])
            trained.history.append(entry)
            if each is not None:
                each(trained.networks[-1])
            of = f"{number}/" if len(every) > 1 else ""
            context.log({f"{of}{k}": v for k, v in entry.items() if k != "epoch"}, epoch + 1)
        if context.world.any(bool(context.notice.heard)):
            context.notice.agree()
        if context.keeper.due() or epoch + 1 == settings.epochs:
            keep(0, total)  # at the end too: what follows, as a gate, may still stop the job
    for trained in every:
        if trained.average is not None:
            trained.network.load_state_dict(trained.average.module.state_dict())
    return [trained.history for trained in every]


def _side_by_side(runs: Sequence[Callable[[], Tensor]], engine: Engine) -> list[Tensor]:
    """Return the results of functions that have nothing to do with each other, each in a thread or on a stream of its own."""
    if len(runs) == 1:
        return [runs[0]()]
    if engine.device.type == "cpu":
        with ThreadPoolExecutor(torch.get_num_threads(), initializer=lambda: torch.set_num_threads(1)) as pool:
            return [done.result() for done in [pool.submit(run) for run in runs]]
    now = torch.cuda.current_stream(engine.device)
    streams = [torch.cuda.Stream(engine.device) for _ in runs]
    found = []
    for run, stream in zip(runs, streams, strict=True):
        stream.wait_stream(now)
        with torch.cuda.stream(stream):
            found.append(run())
    for stream in streams:
        now.wait_stream(stream)
    return found


def _pass(
    trained: Trained,
    loss_of: Callable[..., Tensor],
    context: Context,
    work: float,
    stepped: Callable[[int, Tensor], None] | None,
) -> Callable[[Epoch, int, list[float], int, Tensor], Tensor]:
    """Return a function that takes the steps of an epoch, at the given rates, and returns the sum of their losses.

    It begins at one of the steps, with the sum up to there; `stepped` is told the number of steps and the sum after each.
    """
    engine, optimizer = context.engine, trained.optimizer
    network = context.world.parallel(trained.network)

    def loss(images: Tensor, targets: Tensor, weights: Tensor, *more: Tensor) -> Tensor:
        with engine.autocast():
            logits = network(images, *more)
        return (loss_of(logits.float(), targets) * weights).mean()

    compiled = engine.compiled(loss, work) if context.world.size == 1 else loss

    def whole(images: Tensor, targets: Tensor, weights: Tensor, *more: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        found = compiled(images, targets, weights, *more)
        found.backward()
        optimizer.step()
        return found.detach()

    captured = engine.captured(whole) if context.world.size == 1 else whole

    def run(epoch_of: Epoch, epoch: int, rates: list[float], step: int, total: Tensor) -> Tensor:
        network.train()
        fresh, total = True, total.clone()
        for batch in epoch_of(epoch, step):
            weights = torch.ones(len(batch.images), device=engine.device) if batch.weights is None else batch.weights
            if batch.last:
                set_rate(optimizer, rates[step])
            if fresh and batch.last and batch.share == 1:
                total += captured(batch.images, batch.targets, weights, *batch.more)
            else:
                if fresh:
                    optimizer.zero_grad(set_to_none=True)
                with nullcontext() if batch.last else unsent(network):
                    part = loss(batch.images, batch.targets, weights, *batch.more) * batch.share
                    part.backward()
                total += part.detach()
                if batch.last:
                    optimizer.step()
            fresh = batch.last
            if batch.last:
                trained.follow()
                step += 1
                if stepped is not None:
                    stepped(step, total)
        return total

    return run


def own_loss(losses: Tensor, targets: Tensor) -> Tensor:
    """Return the losses [B] of a network that computes its own; it has no use for targets."""
    return losses


def cross_entropy(smoothing: float = 0.0) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss for labels [B] or class probabilities [B, C], one value an image."""
    return lambda logits, targets: F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)


def distillation(temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return KL(softmax(teacher / T) || softmax(student / T)), one value an image.

    Without the factor T^2 of Hinton et al. 2015, as SRe2L and WMDD run it; Adam's steps hardly depend on the scale.
    """

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        student = F.log_softmax(logits / temperature, 1)
        teacher = F.log_softmax(targets.float() / temperature, 1)
        return F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)

    return loss
