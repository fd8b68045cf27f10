"""One workflow a folder: it is written down who holds the folder, so that the lock of a killed workflow does not outlive it.

Snakemake locks the folder that it works in, and after `kill -9` or a power loss the lock stays: nothing tells whose it was.
Here the process that takes the lock leaves its name, which a later one of the same machine can look up.
"""

import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

NAME = "wmdd-holder.json"  # in .snakemake


@dataclass(frozen=True)
class Holder:
    """A process that works in a folder, and all by which another can tell whether it still runs."""

    host: str
    machine: str  # machine-id, or the boot where there is none
    namespace: str  # of process ids: those of another container mean nothing here
    pid: int
    started: str  # boot and time of its start: a process id is used again
    since: str
    command: str

    @classmethod
    def here(cls) -> "Holder":
        """Return this process."""
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        program = Path(sys.argv[0])
        name = program.parent.name if program.name == "__main__.py" else program.name
        pid = os.getpid()
        return cls(*_machine(), pid, _started(pid) or "", since, shlex.join([name, *sys.argv[1:]]))

    def __str__(self) -> str:
        return f"`{self.command}` (pid {self.pid} on {self.host}, since {self.since})"

    @property
    def near(self) -> bool:
        """Return whether this process can see the holder, if it runs."""
        return (self.host, self.machine, self.namespace) == _machine()

    @property
    def gone(self) -> bool:
        """Return whether it surely runs no more. Of another machine that can't be said."""
        if not self.near:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's, and its details may be hidden
            return _started(self.pid) not in (None, self.started)
        return _started(self.pid) != self.started


def _machine() -> tuple[str, str, str]:
    """Return host name, machine-id and the namespace of process ids."""
    machine = _text("/etc/machine-id") or _text("/proc/sys/kernel/random/boot_id")
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return platform.node(), machine, namespace


def _started(pid: int) -> str | None:
    """Return when a process started, or None if there is none (one that waits to be buried is none)."""
    if not Path("/proc/self/stat").exists():  # not Linux
        import psutil  # type: ignore[import-untyped]  # comes with snakemake

        return f"{psutil.Process(pid).create_time()}" if psutil.pid_exists(pid) else None
    state, *fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split() or ["X"]
    return None if state in ("Z", "X") else f"{_text('/proc/sys/kernel/random/boot_id')} {fields[18]}"


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


class HeldError(Exception):
    """Another workflow holds the folder, or may do so."""


@contextmanager
def held(path: Path, clear: Callable[[], None]) -> Iterator[None]:
    """Hold a folder, of which `path` says who does; `clear` removes what a holder that is gone has left.

    Raises:
        HeldError: another holds it, or may do so; says who and what to do.
    """
    mine = Holder.here()
    while not _claim(path, mine):
        try:
            found = path.read_text()
        except FileNotFoundError:
            continue
        other = _parse(found)
        if other is None or not other.gone:
            raise HeldError(_refusal(other))
        if _put_aside(path, found):
            clear()
            print(_farewell(other), file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if _parse(_text(str(path))) == mine:  # else somebody has unlocked the folder meanwhile
            path.unlink(missing_ok=True)


def _claim(path: Path, mine: Holder) -> bool:
    """Write who holds the folder, if nobody does; of several who try at once one can."""
    text = json.dumps(asdict(mine))
    part = _beside(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(part, path)
    except FileExistsError:
        return False
    except OSError:  # no links here: then for an instant the file is empty
        try:
            with path.open("x") as file:
                file.write(text)
        except FileExistsError:
            return False
    finally:
        part.unlink(missing_ok=True)
    return True


def _beside(path: Path) -> Path:
    """Return a name that no other process uses."""
    return path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}")


def _put_aside(path: Path, found: str) -> bool:
    """Remove the name of a holder that is gone; of several who try only one can, and not the name of one who came since."""
    aside = _beside(path)
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False
    if aside.read_text() != found:
        with suppress(OSError):
            os.link(aside, path)
        found = ""
    aside.unlink()
    return bool(found)


def _parse(text: str) -> Holder | None:
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):
        return None


def _refusal(other: Holder | None) -> str:
    if other is None:
        return f"this folder is held by a workflow that cannot be told (.snakemake/{NAME} is cut short)"
    if other.near:
        remedy = f"wait for it, stop it (kill -INT {other.pid}), or work in another folder (--directory)"
    else:
        remedy = f"if it runs no more (`ps -p {other.pid}` on {other.host}), run the same command with --unlock first"
    return f"this folder is held by {other}; {remedy}"


def _farewell(other: Holder) -> str:
    return (
        f"wmdd: the workflow that held this folder, {other}, is gone; its lock is removed. Jobs that it had started may "
        "still run: that is harmless, because they write the same files whole, but it costs; on SLURM see squeue and "
        "`scancel --name=` with the run id that it printed"
    )


def guard() -> None:
    """Let the Snakemake of this process write down that it holds its folder, whenever it locks it.

    That is in a run, and not in a dry run, in `--unlock`, in `--nolock` or in the jobs of a workflow.
    """
    from snakemake import persistence
    from snakemake.exceptions import LockException

    kind: Any = getattr(persistence, "PersistenceBase", None)
    if kind is None or hasattr(kind, "wmdd_guarded"):  # another Snakemake: its own lock is all there is
        return
    lock, cleanup_locks = kind.lock, kind.cleanup_locks

    @contextmanager
    def guarded(self: Any) -> Iterator[None]:
        folder = Path(self.path)

        def clear() -> None:
            self.unlock()
            (folder / "locks").mkdir(exist_ok=True)  # it is gone with what was in it, but needed

        try:
            with held(folder / NAME, clear), lock(self):
                yield
        except HeldError as error:
            print(f"wmdd: {error}", file=sys.stderr, flush=True)
            raise LockException from None

    def cleanup(self: Any) -> None:
        cleanup_locks(self)
        (Path(self.path) / NAME).unlink(missing_ok=True)

    kind.lock, kind.cleanup_locks, kind.wmdd_guarded = guarded, cleanup, True
