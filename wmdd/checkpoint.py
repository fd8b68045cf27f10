"""Checkpoints: the state of an unfinished job, kept beside its output until that is in place."""

import time
from pathlib import Path
from typing import Any

import torch

from wmdd.artifacts import atomic


class Checkpoint:
    """The state of an unfinished job, beside its output; never an output itself.

    `key` is everything that the result depends on: a checkpoint made under another key is stale and left aside.
    `seconds` is the least time between two writes; 0 writes at every chance. `earlier` is the time that the jobs before
    this one have spent.
    """

    def __init__(self, path: Path, key: str, seconds: float = 60.0) -> None:
        self.path, self.key, self.seconds = path, key, seconds
        self.earlier = 0.0
        self._begun = self._last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Return the state to go on from, or None for a fresh start (said on the log when a file was set aside)."""
        if not self.path.exists():
            return None
        try:
            content = torch.load(self.path, weights_only=True, map_location="cpu")
            key, state, earlier = content["key"], dict(content["state"]), float(content["seconds"])
        except Exception as error:
            print(f"checkpoint {self.path} cannot be read ({type(error).__name__}); starting over", flush=True)
            return None
        if key != self.key:
            print(f"checkpoint {self.path} is of other settings, code or inputs; starting over", flush=True)
            return None
        self.earlier = earlier
        print(f"going on from {self.path}, after {self.earlier:.0f} s of earlier work", flush=True)
        return state

    def due(self) -> bool:
        """Return whether it is time to save again."""
        return time.monotonic() - self._last >= self.seconds

    def touch(self) -> None:
        """Count the time to the next write from now, as what is done was kept elsewhere."""
        self._last = time.monotonic()

    def spent(self) -> float:
        """Return the seconds since the work began, by this job and the ones before it."""
        return self.earlier + time.monotonic() - self._begun

    def save(self, state: dict[str, Any]) -> None:
        """Write tensors, numbers and strings."""
        with atomic(self.path) as part, part.open("wb") as file:
            torch.save({"key": self.key, "state": state, "seconds": self.spent()}, file)
        self._last = time.monotonic()

    def remove(self) -> None:
        """Forget the state, once the output is in place, and what a job that was killed while it wrote one left behind."""
        self.path.unlink(missing_ok=True)
        for left in self.path.parent.iterdir():
            if left.name.startswith(f".{self.path.name}.") and left.name.endswith(".part"):
                left.unlink(missing_ok=True)
