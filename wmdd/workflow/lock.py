"""Who holds a folder, so that the lock of a killed workflow does not outlive it.

Snakemake's lock keeps two workflows apart, but names nobody and stays after `kill -9`. So a workflow writes who it is beside
its lock before its first job, in the folder that Snakemake deletes with the lock; the next one reads that before it locks.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

LOCKS = Path(".snakemake/locks")
MACHINE = [os.uname().nodename]  # what a process id belongs to; machine-id and container where there are such
with suppress(OSError):
    MACHINE.append(Path("/etc/machine-id").read_text(encoding="utf-8").strip())
with suppress(OSError):
    MACHINE.append(os.readlink("/proc/self/ns/pid"))


@dataclass(frozen=True)
class Holder:
    """A process that works in a folder (by default this one), with what tells whether it still runs."""

    machine: list[str] = field(default_factory=lambda: MACHINE)
    pid: int = field(default_factory=os.getpid)
    command: list[str] = field(default_factory=lambda: psutil.Process().cmdline())  # a process id is used again
    since: str = field(default_factory=lambda: datetime.now().astimezone().isoformat(" ", "seconds"))

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.machine[0]}, since {self.since}"

    @property
    def gone(self) -> bool:
        """Whether it surely runs no more. Start times are not compared: they move when the clock is set."""
        try:
            with suppress(PermissionError):  # another user's
                os.kill(self.pid, 0)
            running = psutil.Process(self.pid).cmdline() in (self.command, [])  # none in the instant of its start
        except (ProcessLookupError, psutil.ZombieProcess):
            running = False
        except psutil.Error:  # hidden from other users
            running = True
        return not running and self.machine == MACHINE


def holders(locks: Path = LOCKS) -> Iterator[tuple[Path, Holder]]:
    """Yield the holders of a folder, each with its file; what can't be read is left to Snakemake's lock."""
    for path in locks.glob("wmdd-*.json"):
        with suppress(OSError, ValueError, TypeError):
            yield path, Holder(**json.loads(path.read_text(encoding="utf-8")))


def clear(locks: Path = LOCKS) -> None:
    """Remove the lock of a workflow that is gone, and say so; raise who holds the folder, or may do so."""
    for path, holder in holders(locks):
        who = f"`{' '.join(holder.command)}` ({holder})"
        if not holder.gone:
            raise WorkflowError(f"this folder is held by {who}; wait or stop it; if it runs no more, first --unlock")
        with suppress(OSError):  # of several at once, the one that removes the name may remove the lock
            stale = [lock for lock in locks.glob("*.lock") if lock.stat().st_mtime_ns <= path.stat().st_mtime_ns]
            path.unlink()
            for lock in stale:
                lock.unlink()
            logger.warning(f"wmdd: {who} is gone; its lock is removed. Its jobs may still run (SLURM: squeue, scancel)")


def locking(workflow: object) -> bool:
    """Return whether jobs run under a lock: not in a dry run, `--nolock`, `--unlock`, `--dag` or a job's own Snakemake."""
    execution = getattr(workflow, "execution_settings", None)  # set before Snakemake locks, and only if it runs jobs
    dry = getattr(getattr(workflow, "output_settings", None), "dryrun", True)
    return getattr(workflow, "is_main_process", False) and not dry and getattr(execution, "lock", False)


class Guard(logging.Handler):
    """Looks once who holds the folder: when Snakemake logs that it starts, which is before it locks."""

    def __init__(self, workflow: object) -> None:
        super().__init__()
        self.workflow = workflow

    def emit(self, record: logging.LogRecord) -> None:
        """Clear the way; an error ends the run."""
        if locking(self.workflow):
            self.workflow = None
            clear()


def hold(workflow: object) -> None:
    """Write down that this process has locked the folder (`onstart`)."""
    if locking(workflow) and LOCKS.is_dir():  # it is not where locks are in a database
        (LOCKS / f"wmdd-{os.urandom(8).hex()}.json").write_text(json.dumps(asdict(Holder())), encoding="utf-8")
