"""Shared by the tests: one thread, a tiny teacher, and a keeper of checkpoints that dies as a killed job does."""

import io

import pytest
import torch

from wmdd.models import build
from wmdd.rng import generator
from wmdd.settings import NetworkSettings

torch.set_num_threads(1)


class Killed(Exception):
    """Stands for the end of a job by a signal."""


class DyingKeeper:
    """Saves at its `save_at`-th chance and dies at its `die_at`-th; states go through the bytes of a file."""

    Killed = Killed

    def __init__(self, save_at: int = 0, die_at: int = 0) -> None:
        self.save_at, self.die_at = save_at, die_at
        self.chances = 0
        self.content: bytes | None = None

    def load(self):
        return None if self.content is None else torch.load(io.BytesIO(self.content), weights_only=True)

    def due(self) -> bool:
        self.chances += 1
        if self.chances == self.die_at:
            raise Killed
        return self.chances == self.save_at

    def save(self, state, *_) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.content = buffer.getvalue()


@pytest.fixture
def dying_keeper():
    return DyingKeeper


@pytest.fixture
def tiny_teacher():
    """A ResNet-18 of width 4 for five classes at 16 px, whose running statistics are those of some noise."""
    network = build(NetworkSettings(architecture="resnet18", width=4), 5, 16, generator("tiny teacher"))
    network.train()
    with torch.no_grad():
        for step in range(20):
            network(1 + 2 * torch.randn(8, 3, 16, 16, generator=generator("noise", step)))
    return network.eval()


@pytest.fixture(autouse=True)
def _untracked(monkeypatch):
    """No test tracks its jobs unless it asks for it; subprocesses inherit this."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
