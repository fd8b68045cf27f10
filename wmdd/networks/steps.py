"""The steps of an epoch: what they change, how one is taken, and how several networks take theirs at once."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from wmdd.networks.distributed import unsent
from wmdd.networks.engine import Engine, resume, set_rate
from wmdd.networks.losses import LossOf

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wmdd.networks.context import Context
    from wmdd.networks.training import Batch
    from wmdd.settings.network import OptimisationSettings

Stepped = Callable[[int, Tensor], None]  # is told the steps of the epoch so far, and the sum of their losses


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
        parameters: list[Tensor] = [p for p in network.parameters() if p.requires_grad]
        options: dict[str, Any] = {"weight_decay": settings.weight_decay}
        if settings.optimizer in ("sgd", "muon"):
            options |= {"momentum": settings.momentum, "nesterov": settings.momentum > 0}
        return cls(network, engine.optimizer(settings.optimizer, parameters, settings.lr, **options), average, [])

    @property
    def networks(self) -> list[nn.Module]:
        """The network that is trained and, behind it, the average."""
        return [self.network] if self.average is None else [self.network, self.average.module]

    def follow(self) -> None:
        """Let the average follow a step."""
        if self.average is not None:
            self.average.update_parameters(self.network)

    def finish(self) -> list[dict[str, float]]:
        """Put the average into the network, and return the history."""
        if self.average is not None:
            self.network.load_state_dict(self.average.module.state_dict())
        return self.history

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


@dataclass(frozen=True)
class Epoch:
    """An epoch, or what is left of it."""

    batches: "Iterable[Batch]"  # of the steps that are left
    rates: list[float]  # the learning rate of each step of the whole epoch
    first: int  # steps that are done
    total: Tensor  # the sum of their losses


def stepper(
    trained: Trained, loss_of: LossOf, context: "Context", work: float, stepped: Stepped | None
) -> Callable[[Epoch], Tensor]:
    """Return a function that takes the steps of an epoch and returns the sum of their losses.

    `work` is the FLOP of the whole training; `stepped` is called after each step.
    """
    engine, optimizer = context.engine, trained.optimizer
    network = context.world.parallel(trained.network)
    loss, step = _loss_and_step(network, optimizer, loss_of, context, work)

    def run(epoch: Epoch) -> Tensor:
        network.train()
        number, is_first_part, total = epoch.first, True, epoch.total.clone()
        for batch in epoch.batches:
            weights = torch.ones(len(batch.images), device=engine.device) if batch.weights is None else batch.weights
            if batch.last:
                set_rate(optimizer, epoch.rates[number])
            if is_first_part and batch.last and batch.share == 1:
                total += step(batch.images, batch.targets, weights, *batch.more)
            else:
                if is_first_part:
                    optimizer.zero_grad(set_to_none=True)
                with nullcontext() if batch.last else unsent(network):
                    part = loss(batch.images, batch.targets, weights, *batch.more) * batch.share
                    part.backward()
                total += part.detach()
                if batch.last:
                    optimizer.step()
            is_first_part = batch.last
            if batch.last:
                trained.follow()
                number += 1
                if stepped is not None:
                    stepped(number, total)
        return total

    return run


def _loss_and_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, loss_of: LossOf, context: "Context", work: float
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Return the loss of a part of a step, and a whole step, compiled and captured where that is worth it."""
    engine, alone = context.engine, context.world.size == 1

    def loss(images: Tensor, targets: Tensor, weights: Tensor, *more: Tensor) -> Tensor:
        with engine.autocast():
            logits = network(images, *more)
        return (loss_of(logits.float(), targets) * weights).mean()

    compiled = engine.compiled(loss, work) if alone else loss

    def step(images: Tensor, targets: Tensor, weights: Tensor, *more: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        mean_loss = compiled(images, targets, weights, *more)
        mean_loss.backward()
        optimizer.step()
        return mean_loss.detach()

    return loss, engine.captured(step) if alone else step


def side_by_side(runs: Sequence[Callable[[], Tensor]], engine: Engine) -> list[Tensor]:
    """Return the results of independent functions, each in a thread (CPU) or on a stream (GPU) of its own."""
    if len(runs) == 1:
        return [runs[0]()]
    if engine.device.type == "cpu":
        with ThreadPoolExecutor(torch.get_num_threads(), initializer=lambda: torch.set_num_threads(1)) as pool:
            return [future.result() for future in [pool.submit(run) for run in runs]]
    current = torch.cuda.current_stream(engine.device)
    streams = [torch.cuda.Stream(engine.device) for _ in runs]
    results = []
    for run, stream in zip(runs, streams, strict=True):
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            results.append(run())
    for stream in streams:
        current.wait_stream(stream)
    return results
