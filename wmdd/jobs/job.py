"""The edge between a stage and the world: provenance, checkpoint, tracker, progress and cost of one command."""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from wmdd.artifacts import atomic_files
from wmdd.artifacts.checkpoint import Checkpoint, seconds_between
from wmdd.base import units
from wmdd.base.preemption import AGAIN, NOTHING, Notice, listening
from wmdd.base.progress import progress
from wmdd.jobs.provenance import code_digest, git_revision, processor, versions
from wmdd.networks.context import Context, Reader, quiet
from wmdd.networks.distributed import ALONE, World
from wmdd.networks.engine import Engine, plain
from wmdd.settings.base import Settings
from wmdd.settings.engine import EngineSettings
from wmdd.tracking import tracker as tracking
from wmdd.workflow.layout import cost_of

BEFORE = "going on from its checkpoint when started again"


@dataclass
class Job:
    """One run of one stage that makes `output`."""

    stage: str
    output: Path
    meta: dict[str, Any]
    engine: Engine
    tracker: tracking.Tracker
    checkpoint: Checkpoint
    figures: dict[str, Any] = field(default_factory=dict)
    world: World = ALONE

    @property
    def context(self) -> Context:
        """Return what a long stage is given; of several processes, only the main one keeps, logs and shows."""
        notice = self.checkpoint.notice
        if not self.world.main:
            return replace(quiet(self.engine), keeper=Reader(self.checkpoint, notice), world=self.world, notice=notice)
        log = self.tracker.log
        return Context(
            self.engine, self.checkpoint, lambda metrics, step: log(metrics, step), progress, self.world, notice
        )


@contextmanager
def job(
    stage: str,
    output: Path,
    settings: list[Settings],
    inputs: dict[str, str],
    engine: EngineSettings | None = None,
    threads: int = 1,
    world: World = ALONE,
    **identity: Any,
) -> Iterator[Job]:
    """Run a stage: what is yielded carries the provenance, and on success the cost is written and the checkpoint removed.

    A scheduler's warning ends it: at once as long as it keeps nothing, then with its next checkpoint (`wmdd.base.preemption`).

    Args:
        stage: name of the command.
        output: the (first) file that is made; names the checkpoint, the cost file and the tracked run.
        settings: what the result depends on.
        inputs: digest of each input by name.
        engine: None for stages that run no network.
        threads: of the CPU.
        world: the processes that do it together; all but the main one are silent and leave nothing behind.
        identity: what else the result depends on: seeds, images per class, block.

    Raises:
        WmddError: the output can't be written, or WMDD_CHECKPOINT_SECONDS is no number.
        Preempted: the job was told to end before it was done.
    """
    begun = time.monotonic()
    atomic_files.make_room(output)
    torch.set_num_threads(threads)
    computing = plain() if engine is None else Engine.of(engine, threads)
    merged = {k: v for part in settings for k, v in part.model_dump(mode="json").items()}
    meta = {
        "stage": stage,
        "settings": merged,
        "identity": identity,
        "inputs": inputs,
        "engine": computing.describe() if engine is not None else {},
        "code": code_digest(stage),
    }
    decisive = meta | {"settings": {k: v for k, v in merged.items() if k != "min_accuracy"}}  # a gate changes no result
    key = sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    meta |= {"versions": versions(), "revision": git_revision()}
    path = output.with_name(f".{output.name}.checkpoint")
    # of several processes none ends but with the others, at a place on which they agree
    notice = Notice(BEFORE if path.exists() else NOTHING, keeps=world.size > 1, together=world.size > 1)
    checkpoint = Checkpoint(path, key, seconds_between(), notice)
    done = Job(stage, output, meta, computing, tracking.NullTracker(), checkpoint, world=world)
    with listening(notice):
        if world.main:
            config = tracking.columns(stage, output, meta) | merged | identity
            yield from _main(done, config, threads, begun)
        else:
            with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
                yield done


def _main(done: Job, config: dict[str, Any], threads: int, begun: float) -> Iterator[Job]:
    """Run a job in the process that tracks and speaks."""
    stage, output, world, computing, checkpoint = done.stage, done.output, done.world, done.engine, done.checkpoint
    together = f"{world.size} processes of " if world.size > 1 else ""
    print(
        f"wmdd {stage}: {output} on {computing.device} with {together}{threads} thread(s), {computing.dtype}",
        file=sys.stderr,
        flush=True,
    )
    done.tracker = tracker = tracking.start(output, stage, config)
    try:
        yield done
    except BaseException as error:
        end = checkpoint.notice.end(error)
        if end is None:
            tracker.finish(1)
            raise
        with suppress(Exception):  # wandb may have had the same warning
            tracker.finish(AGAIN)
        raise end from None
    checkpoint.notice.keeps = True  # the output is in place: what is left is done in a moment
    cost = {"stage": stage} | _cost(checkpoint.earlier + time.monotonic() - begun, computing) | done.figures
    tracker.log({f"cost/{name}": value for name, value in cost.items() if isinstance(value, int | float)})
    tracker.log_artifact(output, done.meta)
    tracker.finish()
    atomic_files.write_json(cost_path(output), cost)
    checkpoint.remove()
    print(
        f"wmdd {stage}: done in {units.seconds(cost['seconds']) or '0 s'}, peak memory {cost['peak_memory_mb']} MB",
        file=sys.stderr,
        flush=True,
    )


def cost_path(output: Path) -> Path:
    """Return where the cost of making `output` is kept."""
    return Path(cost_of(output.as_posix()))


def _cost(seconds: float, engine: Engine) -> dict[str, Any]:
    """Return seconds (of all attempts), peak memory of this process in MB, and the processor or GPU."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform != "darwin" else 1024**2)
    cost = {"seconds": round(seconds, 2), "peak_memory_mb": int(peak), "machine": processor()}
    if engine.device.type == "cuda":
        cost |= {
            "peak_gpu_memory_mb": torch.cuda.max_memory_allocated() // 2**20,
            "machine": torch.cuda.get_device_name(),
        }
    return cost
