"""Checkpoints: the state of an unfinished job, kept beside its output until that is in place."""

import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

from wmdd.artifacts.atomic_files import atomic, remove_abandoned
from wmdd.base import units
from wmdd.base.errors import WmddError, one_line
from wmdd.base.preemption import KEPT, Notice, Preempted

SECONDS = 60.0  # between two checkpoints at least; WMDD_CHECKPOINT_SECONDS changes it
PROGRESS = "archive/progress.json"  # in the file, beside what torch writes there


class Progress(NamedTuple):
    """How far a job was at its last checkpoint: `done` of `total` units, after `seconds` of all attempts."""

    done: float
    total: float
    unit: str
    seconds: float


class Checkpoint:
    """The state of an unfinished job, beside its output; never an output itself.

    Two jobs that make the same output may share the file: each writes it whole, and goes on without it.

    Args:
        path: of the file.
        key: everything that the result depends on; a checkpoint of another key is stale and left aside.
        seconds: the least time between two writes; 0 writes at every chance.
        notice: says when to end: a checkpoint is then due, and once it is written the job ends.

    Attributes:
        earlier: seconds that the jobs before this one have spent.
    """

    def __init__(self, path: Path, key: str, seconds: float = SECONDS, notice: Notice | None = None) -> None:
        self.path, self.key, self.seconds = path, key, seconds
        self.notice = notice or Notice()
        self.earlier = 0.0
        self._begun = self._last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Return the state to go on from, or None for a fresh start (said on the log when a file was set aside).

        From here on a scheduler's warning waits for the next `save`.
        """
        self.notice.keeps = True
        if not self.path.exists():
            return None
        try:
            content = _content(self.path)
            key, state, earlier = content["key"], dict(content["state"]), float(content["seconds"])
        except Exception as error:
            print(f"checkpoint {self.path} cannot be read ({one_line(error)}); starting over", flush=True)
            return None
        if key != self.key:
            print(f"checkpoint {self.path} is of other settings, code or inputs; starting over", flush=True)
            return None
        self.earlier = earlier
        print(f"going on from {self.path}, after {units.seconds(self.earlier) or '0 s'} of earlier work", flush=True)
        return state

    def begin(self, earlier: float) -> None:
        """Begin a job that keeps what it has done elsewhere, and here how far it is; `earlier` seconds were spent on that."""
        self.notice.keeps, self.earlier = True, earlier

    def due(self) -> bool:
        """Return whether it is time to save again."""
        return bool(self.notice.signal) or time.monotonic() - self._last >= self.seconds

    def spent(self) -> float:
        """Return the seconds since the work began, by this job and the ones before it."""
        return self.earlier + time.monotonic() - self._begun

    def save(self, state: dict[str, Any], done: float = 0.0, total: float = 0.0, unit: str = "") -> None:
        """Write tensors, numbers and strings, and how far this is: `done` of `total` units.

        Raises:
            Preempted: the job was told to end.
        """
        import torch

        seconds = self.spent()
        with atomic(self.path) as part, part.open("w+b") as file:
            torch.save({"key": self.key, "state": state, "seconds": seconds}, file)
            with ZipFile(file, "a") as archive:  # as torch's files are
                archive.writestr(PROGRESS, json.dumps([float(done), float(total), unit, seconds]))
        self._last = time.monotonic()
        if self.notice.signal:
            raise Preempted(f"{self.notice.signal}: {KEPT}", agreed=True)

    def remove(self) -> None:
        """Delete the file, once the output is in place, and half-written ones of jobs that were killed."""
        self.path.unlink(missing_ok=True)
        remove_abandoned(self.path)


def peek(path: Path) -> Progress | None:
    """Return how far a job is, by its checkpoint, read without torch; None where no checkpoint can be read."""
    try:
        with ZipFile(path) as archive:
            done, total, unit, seconds = json.loads(archive.read(PROGRESS))
        return Progress(float(done), float(total), str(unit), float(seconds))
    except Exception:  # another version's, damaged, or removed a moment ago
        return None


def _content(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds, once the checksums of the archive that it is are seen to be right: torch checks none."""
    import torch

    with ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} has changed since it was written")
    content: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return content


def seconds_between() -> float:
    """Return the least time between two checkpoints that the environment asks for.

    Raises:
        WmddError: it isn't a number of seconds.
    """
    text = os.environ.get("WMDD_CHECKPOINT_SECONDS", str(SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not seconds >= 0:
        raise WmddError(f"WMDD_CHECKPOINT_SECONDS is {text!r}; set it to a number of seconds, 0 or more, or not at all")
    return seconds
