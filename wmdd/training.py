"""The training loop that teacher and student share: optimiser, schedule, evaluation, checkpoints."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmdd.engine import Engine
from wmdd.errors import WmddError
from wmdd.models import normalise

if TYPE_CHECKING:
    from wmdd.settings import TrainingSettings

Log = Callable[[dict[str, Any], int], None]


class Keeper(Protocol):
    """Keeps the state of an unfinished job (see `wmdd.artifacts.Checkpoint`)."""

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


@dataclass(frozen=True)
class Batch:
    """Normalised images [B, 3, H, W], targets (whatever the loss takes) and weights [B] of mean about 1."""

    images: Tensor
    targets: Tensor
    weights: Tensor | None = None


@dataclass(frozen=True)
class Context:
    """What a long stage is given beside its arrays: the engine, a place for checkpoints, a log, a progress bar."""

    engine: Engine
    keeper: Keeper
    log: Log
    progress: Callable[..., Iterator[Any]]


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
    images: Tensor,
    labels: Tensor,
    mean: list[float],
    std: list[float],
    engine: Engine,
    size: int = 500,
) -> dict[str, float]:
    """Return top-1 and top-5 accuracy in [0, 1] on uint8 images [N, 3, H, W]."""
    training = network.training
    network.eval()
    top1 = top5 = 0
    for start in range(0, len(labels), size):
        x = normalise(engine.images(images[start : start + size]), mean, std)
        with engine.autocast():
            logits = network(x)
        ranked = logits.float().topk(min(5, logits.shape[1]), 1).indices == labels[start : start + size, None].to(
            x.device
        )
        top1 += int(ranked[:, 0].sum())
        top5 += int(ranked.sum())
    network.train(training)
    return {"top1": top1 / len(labels), "top5": top5 / len(labels)}


def fit(
    network: nn.Module,
    epoch_of: Callable[[int], Iterable[Batch]],
    steps: int,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    validate: Callable[[nn.Module], dict[str, float]],
    settings: "TrainingSettings",
    context: Context,
) -> list[dict[str, float]]:
    """Train `network` in place and return its history, one entry an epoch.

    Args:
        network: on the engine's device.
        epoch_of: gives the batches of an epoch; must depend on the epoch's number alone, so that a resumed job is the same.
        steps: batches an epoch.
        loss_of: maps logits [B, C] and targets to one loss for each image [B].
        validate: gives the accuracy of the network.
        settings: the optimisation.
        context: engine, checkpoints, log, progress.

    Raises:
        WmddError: the loss is not a number.
    """
    optimizer = optimizer_of(network, settings)
    history: list[dict[str, float]] = []
    if (state := context.keeper.load()) is not None:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        history = state["history"]
    done = len(history)
    for epoch in context.progress(range(done, settings.epochs), "training", settings.epochs, done, "epoch"):
        network.train()
        total = torch.zeros((), device=context.engine.device)
        for step, batch in enumerate(epoch_of(epoch)):
            rate = learning_rate(settings, epoch + step / steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            total += _step(network, optimizer, batch, loss_of, context.engine)
        entry = {"epoch": epoch + 1, "loss": float(total) / steps, "lr": rate}
        if not math.isfinite(entry["loss"]):
            raise WmddError(
                f"the loss is not a number after epoch {epoch + 1}; lower lr ({settings.lr}) or set precision: fp32"
            )
        if (epoch + 1) % settings.evaluate_every == 0 or epoch + 1 == settings.epochs:
            entry |= validate(network)
        history.append(entry)
        context.log({k: v for k, v in entry.items() if k != "epoch"}, epoch + 1)
        if (
            context.keeper.due() or epoch + 1 == settings.epochs
        ):  # the end too: what follows, as a gate, may still stop the job
            content = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
            context.keeper.save(content)
    return history


def _step(
    network: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, loss_of: Callable[..., Tensor], engine: Engine
) -> Tensor:
    with engine.autocast():
        logits = network(batch.images)
    losses = loss_of(logits.float(), batch.targets)
    loss = (losses if batch.weights is None else losses * batch.weights).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
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
