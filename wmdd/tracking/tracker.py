"""A run of wandb, or of nobody: both have the same methods, so that no stage asks which it has.

wandb's own environment variables decide: WANDB_MODE (offline unless set), WANDB_PROJECT, WANDB_RUN_GROUP. WMDD_TRACKED_STAGES
names the stages whose jobs are runs; unset, all are. A job that is no run, and any with WANDB_MODE=disabled, does not even
import wandb. What wandb can't do is said in one line and never ends a job.
"""

import hashlib
import os
import re
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from wmdd.artifacts import atomic_files
from wmdd.tracking.artifact import RECORD, describe

STUDENT_SCORE = re.compile(r"\d+/(final/.+)")  # of one of several students of a job
SECRET = re.compile(r"\b([0-9a-f]{40}|wandb_v\d\w+)\b")


class NullTracker:
    """What a stage may do with its run, of which nothing comes."""

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Record numbers under their names; `step` is the epoch or iteration, None for numbers of the whole run."""

    def log_images(self, name: str, images: Any, captions: list[str]) -> None:
        """Record pictures [n, H, W, 3] uint8."""

    def log_artifact(self, output: Path, meta: dict[str, Any]) -> None:
        """Record what was made, and from what."""

    def finish(self, exit_code: int = 0, reason: str = "") -> None:
        """Close the run; `reason` says why it failed."""


def _harmless(method: Callable[..., None]) -> Any:
    """Make a method say in one line what wandb could not do, instead of ending the job."""

    @wraps(method)
    def attempt(self: "WandbTracker", *arguments: Any, **named: Any) -> None:
        try:
            method(self, *arguments, **named)
        except Exception as error:
            if not self._complained:
                self._complained = True
                _complain(self._stage, method.__name__, error)

    return attempt


class WandbTracker(NullTracker):
    """A wandb run whose id follows from the output's place, so that a rerun continues the same line on the dashboard."""

    def __init__(self, output: Path, stage: str, settings: dict[str, Any]) -> None:
        import wandb

        self._wandb = wandb
        self._stage, self._complained = stage, False
        self._scores: dict[str, list[float]] = {}
        group = os.environ.get("WANDB_RUN_GROUP", "wmdd")
        self._run = wandb.init(
            id=run_id(group, output),
            name=str(output.with_suffix("")),
            project=os.environ.get("WANDB_PROJECT", "wmdd"),
            group=group,
            job_type=stage,
            config=settings,
            dir=os.environ.get("WANDB_DIR", "."),
            mode=os.environ["WANDB_MODE"],  # type: ignore[arg-type]
            resume="allow",
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    @_harmless
    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Record numbers; `step` becomes the x axis, and what has none is of the whole run and goes to its summary too."""
        self._run.log(metrics if step is None else metrics | {"step": step})
        if step is None:
            self._run.summary.update(metrics | self._means(metrics))

    def _means(self, metrics: dict[str, Any]) -> dict[str, float]:
        """Return the mean score of several students so far, under the name that a single one's has."""
        names = {name: match[1] for name in metrics if (match := STUDENT_SCORE.fullmatch(name))}
        for name, plain in names.items():
            self._scores.setdefault(plain, []).append(metrics[name])
        return {plain: sum(self._scores[plain]) / len(self._scores[plain]) for plain in names.values()}

    @_harmless
    def log_images(self, name: str, images: Any, captions: list[str]) -> None:
        """Record pictures [n, H, W, 3] uint8."""
        pictures = [self._wandb.Image(image, caption=text) for image, text in zip(images, captions, strict=True)]
        self._run.log({name: pictures})

    @_harmless
    def log_artifact(self, output: Path, meta: dict[str, Any]) -> None:
        """Record what was made, and from what: a distilled set with its file, all else by its digest alone.

        Nothing is copied: a distilled set is read where it is when the run is uploaded.
        """
        facts = describe(output, meta)
        if facts is None:
            return
        record = Path(self._run.dir).parent / RECORD
        aliases = [digest[:16] for digest in facts["outputs"].values()]
        atomic_files.write_json(record, facts | {"run": self._run.id, "project": self._run.project, "aliases": aliases})
        artifact = self._wandb.Artifact(facts["name"], facts["kind"], metadata=facts)
        artifact.add_file(str(record.resolve()), name="provenance.json", policy="immutable", skip_cache=True)
        if facts["kind"] == "images":
            artifact.add_file(str(output.resolve()), name=output.name, policy="immutable", skip_cache=True)
        self._run.log_artifact(artifact, aliases=aliases)

    @_harmless
    def finish(self, exit_code: int = 0, reason: str = "") -> None:
        """Flush and close; why the job failed stands in the summary."""
        if reason:
            self._run.summary["error"] = without_key(reason)
        self._run.finish(exit_code=exit_code)


def _complain(stage: str, action: str, error: Exception) -> None:
    reason = without_key(f"{type(error).__name__}: {error}")
    print(f"wmdd {stage}: wandb can't {action} ({reason}); goes on without", file=sys.stderr, flush=True)


def without_key(text: str) -> str:
    """Return a text in one line and with nothing in it that may be an API key."""
    key = os.environ.get("WANDB_API_KEY", "")
    return SECRET.sub("***", " ".join((text.replace(key, "***") if key else text).split()))


def run_id(group: str, output: Path) -> str:
    """Return the id of the run that makes `output`: the same for each attempt, another in another folder or experiment."""
    return hashlib.sha256(f"{group} {output.absolute().as_posix()}".encode()).hexdigest()[:16]


def start(output: Path, stage: str, settings: dict[str, Any]) -> NullTracker:
    """Return the tracker that the environment asks for."""
    os.environ.setdefault("WANDB_MODE", "offline")
    tracked_stages = os.environ.get("WMDD_TRACKED_STAGES", stage).split()
    if os.environ["WANDB_MODE"] == "disabled" or stage not in tracked_stages:
        return NullTracker()
    try:
        return WandbTracker(output, stage, settings)
    except Exception as error:
        _complain(stage, "start", error)
        return NullTracker()
