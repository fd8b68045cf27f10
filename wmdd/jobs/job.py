"""The edge between a stage and the world: provenance, checkpoint, tracker, progress and cost of one command."""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdd.artifacts import atomic_files
from wmdd.artifacts.checkpoint import Checkpoint, seconds_between
from wmdd.artifacts.hdf5 import Meta
from wmdd.artifacts.lineage import roots_of
from wmdd.base import units
from wmdd.base.errors import WmddError
from wmdd.base.preemption import AGAIN, NOTHING, Notice, listening
from wmdd.base.progress import progress
from wmdd.jobs.provenance import code_digest, git_revision, processor, versions
from wmdd.settings.base import Settings
from wmdd.settings.engine import EngineSettings
from wmdd.tracking import artifact
from wmdd.tracking import tracker as tracking
from wmdd.workflow.layout import cost_of

if TYPE_CHECKING:
    from wmdd.networks.context import Context
    from wmdd.networks.distributed import World
    from wmdd.networks.engine import Engine

RESUMABLE = "going on from its checkpoint when started again"


@dataclass
class StageJob:
    """One run of one stage that makes `output`; `cost` is what its cost file says besides time and memory."""

    stage: str
    output: Path
    meta: dict[str, Any]
    checkpoint: Checkpoint
    placed: "Engine | None" = None  # of a stage that runs no network there is none
    processes: "World | None" = None  # one that runs alone has none
    tracker: tracking.NullTracker = field(default_factory=tracking.NullTracker)
    cost: dict[str, Any] = field(default_factory=dict)

    @property
    def engine(self) -> "Engine":
        """Where and how networks run, by default the reference."""
        from wmdd.networks.engine import plain

        return self.placed or plain()

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes, tracks and speaks."""
        return self.processes is None or self.processes.main

    @property
    def context(self) -> "Context":
        """Return what a long stage is given; of several processes, only the main one keeps, logs and shows."""
        from wmdd.networks.context import Context, Reader, quiet
        from wmdd.networks.distributed import ALONE

        notice, world = self.checkpoint.notice, self.processes or ALONE
        if not self.main:
            return replace(quiet(self.engine), keeper=Reader(self.checkpoint, notice), world=world, notice=notice)
        return Context(self.engine, self.checkpoint, self.tracker.log, progress, world, notice)


@contextmanager
def job(
    stage: str,
    output: Path,
    settings: list[Settings],
    inputs: Mapping[str, Meta | str],
    engine: EngineSettings | None = None,
    threads: int = 1,
    world: "World | None" = None,
    **identity: Any,
) -> Iterator[StageJob]:
    """Run a stage: what is yielded carries the provenance, and on success the cost is written and the checkpoint removed.

    A scheduler's warning ends a stage that has not asked for its checkpoint yet at once, any other at its next checkpoint
    (`wmdd.base.preemption`).

    Args:
        stage: name of the command.
        output: the (first) file that is made; names the checkpoint, the cost file and the tracked run.
        settings: what the result depends on.
        inputs: meta data of each input by name, or the digest of one that is no artifact.
        engine: None for stages that run no network.
        threads: of the CPU.
        world: the processes that do it together, by default this one alone; all but the main one are silent and leave
            nothing behind.
        identity: what else the result depends on: seeds, images per class, block.

    Raises:
        WmddError: inputs descend from different data or networks, the output can't be written, or WMDD_CHECKPOINT_SECONDS is
            no number.
        Preempted: the job was told to end before it was done.
    """
    started = time.monotonic()
    atomic_files.make_room(output)
    placed = _placed(engine, threads)
    values = {name: value for part in settings for name, value in part.model_dump(mode="json").items()}
    meta = {
        "stage": stage,
        "settings": values,
        "identity": identity,
        "inputs": {name: item["digest"] if isinstance(item, Meta) else item for name, item in inputs.items()},
        "roots": roots_of(stage, {name: item for name, item in inputs.items() if isinstance(item, Meta)}),
        "engine": {} if placed is None else placed.describe(),
        "code": code_digest(stage),
    }
    checkpoint = _checkpoint(output, meta, world)
    meta |= {"versions": versions(), "revision": git_revision()}
    stage_job = StageJob(stage, output, meta, checkpoint, placed, world)
    with listening(checkpoint.notice):
        if stage_job.main:
            columns = artifact.columns(stage, output, meta) | values | identity
            yield from _tracked(stage_job, columns, threads, started)
        else:
            with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
                yield stage_job


def _placed(engine: EngineSettings | None, threads: int) -> "Engine | None":
    """Return where networks run, None for a stage without any; where a command has imported torch, it gets its threads."""
    if engine is None:
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
        return None
    from wmdd.networks.engine import Engine

    return Engine.of(engine, threads)


def _checkpoint(output: Path, meta: dict[str, Any], world: "World | None") -> Checkpoint:
    """Return the checkpoint of a job, which belongs to all that the result depends on."""
    settings = {name: value for name, value in meta["settings"].items() if name != "min_accuracy"}  # changes no result
    key = sha256(json.dumps(meta | {"settings": settings}, sort_keys=True).encode()).hexdigest()
    path = output.with_name(f".{output.name}.checkpoint")
    # of several processes none ends but with the others, at a place on which they agree
    together = world is not None and world.size > 1
    notice = Notice(RESUMABLE if path.exists() else NOTHING, keeps=together, together=together)
    return Checkpoint(path, key, seconds_between(), notice)


def _tracked(stage_job: StageJob, columns: dict[str, Any], threads: int, started: float) -> Iterator[StageJob]:
    """Run a job in the process that tracks it and writes its cost."""
    stage, output, checkpoint = stage_job.stage, stage_job.output, stage_job.checkpoint
    _say(f"wmdd {stage}: {output} on {_where(stage_job, threads)}")
    stage_job.tracker = tracker = tracking.start(output, stage, columns, checkpoint.key)
    try:
        yield stage_job
    except BaseException as error:
        end = checkpoint.notice.end(error)
        if end is None:
            if stage == "teacher" and isinstance(error, WmddError):  # below its gate: nothing after it is made
                tracker.alert("The teacher stopped the run", str(error))
            tracker.finish(1, str(error) if isinstance(error, WmddError) else type(error).__name__)
            raise
        with suppress(Exception):  # wandb may have had the same warning
            tracker.finish(AGAIN)
        raise end from None
    checkpoint.notice.keeps = True  # the output is in place: what is left is done in a moment
    seconds = round(checkpoint.earlier + time.monotonic() - started, 2)
    cost = {"stage": stage, "seconds": seconds} | _memory(stage_job.placed) | stage_job.cost
    tracker.log({f"cost/{name}": value for name, value in cost.items() if isinstance(value, int | float)})
    tracker.log_artifact(output, stage_job.meta)
    tracker.finish()
    atomic_files.write_json(cost_path(output), cost)
    checkpoint.remove()
    _say(f"wmdd {stage}: done in {units.seconds(seconds) or '0 s'}, peak memory {cost['peak_memory_mb']} MB")


def _where(stage_job: StageJob, threads: int) -> str:
    engine, world = stage_job.placed, stage_job.processes
    together = f"{world.size} processes of " if world is not None and world.size > 1 else ""
    device, dtype = ("cpu", "") if engine is None else (engine.device, f", {engine.dtype}")
    return f"{device} with {together}{threads} thread(s){dtype}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def cost_path(output: Path) -> Path:
    """Return where the cost of making `output` is kept."""
    return Path(cost_of(output.as_posix()))


def _memory(engine: "Engine | None") -> dict[str, Any]:
    """Return the peak memory of this process in MB, and the processor or GPU."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform != "darwin" else 1024**2)
    if engine is not None and engine.device.type == "cuda":
        from torch import cuda

        gpu_peak, gpu = cuda.max_memory_allocated() // 2**20, cuda.get_device_name()
        return {"peak_memory_mb": int(peak), "peak_gpu_memory_mb": gpu_peak, "machine": gpu}
    return {"peak_memory_mb": int(peak), "machine": processor()}
