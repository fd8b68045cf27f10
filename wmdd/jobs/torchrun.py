"""Starting a command on several processes of this machine, as torchrun does, and ending with one line when it fails.

The launcher holds no data and no network. Whatever ends one process ends all: the launcher stops the others, and each
process stops when its launcher is gone. A scheduler's warning ends nothing yet: the launcher passes it on and waits. It does
so by a file that the processes look for, because they are in sessions of their own, where no signal to the launcher arrives.
"""

import logging
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from wmdd.base.errors import WmddError
from wmdd.base.preemption import AGAIN, Notice, Preempted, listening

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    from wmdd.settings.engine import EngineSettings

LAUNCHER = "WMDD_LAUNCHER"  # process id of the launcher, in the environment of what it starts
WARNING = "WMDD_WARNING"  # file that appears when the launcher was warned, and holds the signal's name
STOPPED = (-signal.SIGTERM, 128 + signal.SIGTERM)  # exit codes of a process that the launcher stops because of another


def launch(processes: int, engine: "EngineSettings", arguments: list[str]) -> None:
    """Run `python -m wmdd ARGUMENTS` as several processes that train together, and wait for them.

    Args:
        processes: how many.
        engine: says whether they take a GPU each.
        arguments: of this command; the processes are told who they are by torchrun's environment variables.

    Raises:
        WmddError: there are too few GPUs; or the first mistake or violent end of a process, in one line.
        Preempted: a scheduler's warning came, and the processes have ended.
        SystemExit: a process met a bug, whose trace is printed, or the launcher was interrupted.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import DefaultLogsSpecs, LaunchConfig, elastic_launch

    check_gpus(processes, engine)
    os.environ[LAUNCHER] = str(os.getpid())
    quiet = logging.getLogger("torch.distributed.elastic")
    quiet.addHandler(logging.NullHandler())  # what it has to say of a failure is said below, in one line
    quiet.propagate = False
    with (
        tempfile.TemporaryDirectory(prefix="wmdd-") as folder,
        listening(notice := _PassedOn(Path(folder) / "warning")),
    ):
        config = LaunchConfig(
            1, 1, processes, run_id=uuid.uuid4().hex, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
            local_addr="localhost", logs_specs=DefaultLogsSpecs(log_dir=folder),
            signals_to_handle="SIGINT,SIGHUP,SIGQUIT",
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)("-m", "wmdd", *arguments)
        except ChildFailedError as error:
            explain(dict(error.failures), processes, notice.signal)
        except SignalException as stop:
            sys.exit(128 + stop.sigval)


def check_gpus(processes: int, engine: "EngineSettings") -> None:
    """Refuse more processes than GPUs, where GPUs are used.

    Raises:
        WmddError: names both numbers.
    """
    import torch

    gpus = torch.cuda.device_count() if engine.device != "cpu" else 0
    if processes > gpus and (gpus or engine.device == "cuda"):
        raise WmddError(
            f"{processes} processes need as many GPUs, but {gpus} are visible; lower the teacher's `gpus` (--processes), "
            "or set engine.device: cpu"
        )


class _PassedOn(Notice):
    """A warning that is passed on to the processes."""

    def __init__(self, file: Path) -> None:
        super().__init__(keeps=True)
        self._file = file
        os.environ[WARNING] = str(file)

    def give(self, name: str) -> None:
        """Take a warning."""
        if not self.signal:
            super().give(name)
            part = self._file.with_suffix(".part")
            part.write_text(name, encoding="utf-8")
            part.replace(self._file)


def explain(failures: "dict[int, ProcessFailure]", processes: int, warned: str = "") -> None:
    """End as the process did that failed first; `warned` is the signal of a scheduler's warning, if one came.

    Raises:
        WmddError: it met a mistake, or something killed it.
        Preempted: it ended because of a warning.
        SystemExit: it met a bug, whose trace is printed.
    """
    rank = min(failures, key=lambda rank: _order(failures[rank]))
    first = failures[rank]
    recorded = first.error_file_data.get("message")  # absent when the process had no time to write it
    if isinstance(recorded, dict):
        kind, _, text = recorded["message"].partition(": ")
        if kind == WmddError.__name__:
            raise WmddError(text)
        print(recorded["extraInfo"]["py_callstack"], file=sys.stderr)
        sys.exit(1)
    if warned or first.exitcode == AGAIN:
        raise Preempted(f"{warned or 'a signal to a process'}: going on from its last checkpoint when started again")
    end = f"was killed by {first.signal_name()}" if first.exitcode < 0 else f"ended with exit status {first.exitcode}"
    raise WmddError(
        f"process {rank + 1} of {processes} {end}; run again: the training goes on from its last checkpoint"
    )


def _order(failure: "ProcessFailure") -> tuple[int, int]:
    """Sort the cause before its consequences: a kill breaks the others' connections, and then the launcher stops them."""
    if failure.exitcode in STOPPED:
        return 2, failure.timestamp
    return int(failure.exitcode > 0), failure.timestamp


def launched() -> bool:
    """Return whether `launch` started this process."""
    return LAUNCHER in os.environ and "RANK" in os.environ


def follow() -> None:
    """Take the launcher's warning, and end when it is gone, even by SIGKILL, so that none trains on beside a later job."""
    launcher, warning = int(os.environ[LAUNCHER]), Path(os.environ[WARNING])

    def watch() -> None:
        warned = False
        while os.getppid() == launcher:
            if not warned and (warned := warning.exists()):
                os.kill(os.getpid(), getattr(signal, warning.read_text(encoding="utf-8")))
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def leave(error: BaseException) -> NoReturn:
    """End this process and leave the exception to the launcher, which prints it if it is the first."""
    from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

    ErrorHandler().record_exception(error)
    end(1)


def end(code: int) -> NoReturn:
    """End this process at once, because NCCL takes its time, and complains, when one ends in the middle of a conversation."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
