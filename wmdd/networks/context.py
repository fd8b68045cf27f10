"""What a long stage is given: where to compute, where to keep its state, whom to tell how far it is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from wmdd.base.preemption import KEPT, Notice, Preempted
from wmdd.networks.distributed import ALONE, World
from wmdd.networks.engine import Engine

Log = Callable[[dict[str, Any], int], None]


class Keeper(Protocol):
    """Keeps the state of an unfinished job, as `wmdd.artifacts.checkpoint.Checkpoint` does; by default nothing."""

    def load(self) -> dict[str, Any] | None:
        """Return the state to go on from, or None."""
        return None

    def due(self) -> bool:
        """Return whether it is time to save."""
        return False

    def save(self, state: dict[str, Any], done: float = 0.0, total: float = 0.0, unit: str = "") -> None:
        """Keep a state, and how far it is: `done` of `total` units."""
        return None


class Forgetful(Keeper):
    """Keeps nothing."""


class Reader(Forgetful):
    """Goes on from what another process keeps, and ends with it."""

    def __init__(self, keeper: Keeper, notice: Notice) -> None:
        self._keeper, self._notice = keeper, notice

    def load(self) -> dict[str, Any] | None:
        """Return the state to go on from, or None."""
        return self._keeper.load()

    def due(self) -> bool:
        """Return whether the processes have agreed to end."""
        return bool(self._notice.signal)

    def save(self, state: dict[str, Any], done: float = 0.0, total: float = 0.0, unit: str = "") -> None:
        """End, if the processes have agreed to."""
        if self._notice.signal:
            raise Preempted(f"{self._notice.signal}: {KEPT}", agreed=True)


@dataclass(frozen=True)
class Context:
    """What a long stage is given beside its arrays: the engine, a place for checkpoints, a log, a progress bar.

    `world` are the processes that do it together, `notice` says whether this one was told to end.
    """

    engine: Engine
    keeper: Keeper
    log: Log
    progress: Callable[..., Iterator[Any]]
    world: World = ALONE
    notice: Notice = field(default_factory=Notice)


def quiet(engine: Engine) -> Context:
    """Return a context that keeps, logs and shows nothing."""
    return Context(engine, Forgetful(), lambda _metrics, _step: None, lambda items, *_, **__: iter(items))
