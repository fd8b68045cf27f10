"""The training loop that teacher and student share: optimiser, schedule, evaluation, checkpoints."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from wmdd.distributed import ALONE, World, unsent
from wmdd.engine import Engine
from wmdd.errors import WmddError
from wmdd.models import normalise

if TYPE_CHECKING:
    from wmdd.feeding import Pictures
    from wmdd.settings import TrainingSettings

Log = Callable[[dict[str, Any], int], None]


class Keeper(Protocol):
    """Keeps the state of an unfinished job (see `wmdd.checkpoint.Checkpoint`)."""

    def load(self) -> dict[str, Any] | None:
        """Return the state to go on from, or None."""

    def due(self) -> bool:
        """Return whether it is time to save."""

    def save(self, state: dict[str, Any]) -> None:
        """Keep a state."""


class Forgetful:
    """Keeps nothing."""

    def load(self) -> dict[str, Any] | None:
        """Return None."""
        return None

    def due(self) -> bool:
        """Return False."""
        return False

    def save(self, state: dict[str, Any]) -> None:
        """Do nothing."""


class Reader(Forgetful):
    """Goes on from what another process keeps."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def load(self) -> dict[str, Any] | None:
        """Return the state to go on from, or None."""
        return self._keeper.load()


@dataclass(frozen=True)
class Batch:
    """Normalised images [B, 3, H, W], targets (whatever the loss takes) and weights [B] of mean about 1.

    It may be a part of a step's images. The step's loss is then the mean, over the processes, of the sum over parts of
    `share` times a part's mean loss; `last` marks the part with which the step is complete.
    """

    images: Tensor
    targets: Tensor
    weights: Tensor | None = None
    share: float = 1.0
    last: bool = True


@dataclass(frozen=True)
class Context:
    """What a long stage is given beside its arrays: the engine, a place for checkpoints, a log, a progress bar."""

    engine: Engine
    keeper: Keeper
    log: Log
    progress: Callable[..., Iterator[Any]]
    world: World = ALONE


def quiet(engine: Engine) -> Context:
    """Return a context that keeps, logs and shows nothing."""
    return Context(engine, Forgetful(), lambda _metrics, _step: None, lambda items, *_, **__: iter(items))


def learning_rate(settings: "TrainingSettings", epoch: float) -> float:
    r"""Return the rate at a (fractional) epoch: lr/2 (1 + cos(pi t / (zeta T))) after a linear warm-up.

    zeta = `schedule_stretch`; zeta = 1 is the usual cosine to zero, zeta = 2 ends at half the rate (EDC, NeurIPS 2024).
    """
    if epoch < settings.warmup_epochs:
        return settings.lr * (epoch + 1e-2) / (settings.warmup_epochs + 1e-2)
    span = max(settings.epochs - settings.warmup_epochs, 1e-9)
    share = (epoch - settings.warmup_epochs) / (span * settings.schedule_stretch)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def optimizer_of(network: nn.Module, settings: "TrainingSettings") -> torch.optim.Optimizer:
    """Return the optimiser over all parameters."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    common: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=settings.momentum, nesterov=settings.momentum > 0, **common)
    return (torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW)(parameters, **common)


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
    for index, images in zip(positions, pictures.batches(positions), strict=True):
        x = normalise(engine.images(images), mean, std)
        with engine.autocast():
            logits = network(x)
        labels = pictures.labels[index, None].to(x.device)
        ranked = logits.float().topk(min(5, logits.shape[1]), 1).indices == labels
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

    @classmethod
    def of(cls, network: nn.Module, settings: "TrainingSettings", ema: float) -> "Trained":
        """Begin; the average begins at the network after the first step."""
        average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(ema), use_buffers=True) if ema else None
        return cls(network, optimizer_of(network, settings), average)

    @property
    def networks(self) -> list[nn.Module]:
        """Return the network that is trained and, behind it, the average."""
        return [self.network] if self.average is None else [self.network, self.average.module]

    def step(self) -> None:
        """Change the network by its gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.network)

    def state(self) -> dict[str, Any]:
        """Return what `restore` goes on from."""
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        return state if self.average is None else state | {"average": self.average.state_dict()}

    def restore(self, state: dict[str, Any] | None) -> list[dict[str, float]]:
        """Go on from a kept state, or from nothing; return its history."""
        if state is None:
            return []
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        return list(state["history"])


def fit(
    network: nn.Module,
    epoch_of: Callable[[int], Iterable[Batch]],
    steps: int,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    validate: Callable[[nn.Module], dict[str, float]],
    settings: "TrainingSettings",
    context: Context,
    ema: float = 0.0,
) -> list[dict[str, float]]:
    """Train `network` in place and return its history, one entry an epoch.

    Args:
        network: on the engine's device.
        epoch_of: gives the batches of an epoch; must depend on the epoch's number alone, so that a resumed job is the same.
        steps: optimiser steps an epoch.
        loss_of: maps logits [B, C] and targets to one loss for each image [B].
        validate: gives the accuracy of the network.
        settings: the optimisation.
        context: engine, checkpoints, log, progress, and the processes that train together.
        ema: decay of the moving average of weights and buffers that is validated, and put into `network` at the end; 0: off.

    Raises:
        WmddError: the loss is not a number.
    """
    trained = Trained.of(network, settings, ema)
    history = trained.restore(context.keeper.load())
    done = len(history)
    context.world.agree(done, "the epochs that are done")
    parallel = context.world.parallel(network)
    for epoch in context.progress(range(done, settings.epochs), "training", settings.epochs, done, "epoch"):
        rates = [learning_rate(settings, epoch + step / steps) for step in range(steps)]
        total = context.world.mean(_epoch(parallel, trained, epoch_of(epoch), rates, loss_of, context.engine))
        entry = {"epoch": epoch + 1, "loss": float(total) / steps, "lr": rates[-1]}
        if not math.isfinite(entry["loss"]):
            raise WmddError(
                f"the loss is not a number after epoch {epoch + 1}; lower lr ({settings.lr}) or set precision: fp32"
            )
        for each in trained.networks:
            context.world.average_buffers(each)
        if (epoch + 1) % settings.evaluate_every == 0 or epoch + 1 == settings.epochs:
            entry |= validate(trained.networks[-1])
        history.append(entry)
        context.log({k: v for k, v in entry.items() if k != "epoch"}, epoch + 1)
        if (
            context.keeper.due() or epoch + 1 == settings.epochs
        ):  # the end too: what follows, as a gate, may still stop the job
            context.keeper.save(trained.state() | {"history": history})
    if trained.average is not None:
        network.load_state_dict(trained.average.module.state_dict())
    return history


def _epoch(
    network: nn.Module,
    trained: Trained,
    batches: Iterable[Batch],
    rates: list[float],
    loss_of: Callable[..., Tensor],
    engine: Engine,
) -> Tensor:
    """Take the steps of an epoch, at the given learning rates; return the sum of their losses."""
    network.train()
    step, total = 0, torch.zeros((), device=engine.device)
    for batch in batches:
        with nullcontext() if batch.last else unsent(network):
            total += _backward(network, batch, loss_of, engine)
        if batch.last:
            for group in trained.optimizer.param_groups:
                group["lr"] = rates[step]
            trained.step()
            step += 1
    return total


def _backward(network: nn.Module, batch: Batch, loss_of: Callable[..., Tensor], engine: Engine) -> Tensor:
    """Add the gradients of a batch to those that the network has; return its share of the loss."""
    with engine.autocast():
        logits = network(batch.images)
    losses = loss_of(logits.float(), batch.targets)
    loss = (losses if batch.weights is None else losses * batch.weights).mean() * batch.share
    loss.backward()
    return loss.detach()


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
