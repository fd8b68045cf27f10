"""A run of wandb, or of nobody: both have the same methods, so that no stage asks which it has.

wandb's own environment variables decide: WANDB_MODE (offline unless set), WANDB_PROJECT, WANDB_ENTITY, WANDB_RUN_GROUP,
WANDB_TAGS, WANDB_NOTES. WMDD_TRACKED_STAGES names the stages whose jobs are runs; unset, all are. WMDD_TRACKED_CODE lets the
scoreboard take the sources along. A job that is no run, and any with WANDB_MODE=disabled, does not even import wandb. What
wandb can't do is said in one line and never ends a job.
"""

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from wmdd.artifacts import atomic_files
from wmdd.tracking.artifact import RECORD, describe

STUDENT_SCORE = re.compile(r"\d+/(final/.+)")  # of one of several students of a job
FOLDER = "folder-id.txt"  # beside the runs: tells their folder from all others
SECRET = re.compile(r"\b([0-9a-f]{40}|wandb_v\d\w+)\b")


class NullTracker:
    """What a stage may do with its run, of which nothing comes."""

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Record numbers under their names; `step` is the epoch or iteration, None for numbers of the whole run."""

    def log_images(self, name: str, images: Any, captions: list[str]) -> None:
        """Record pictures [n, H, W, 3] uint8."""

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Record a table; an array [H, W, 3] uint8 in a cell of it is a picture."""

    def log_code(self, files: Mapping[str, Path]) -> None:
        """Record source files by name."""

    def log_artifact(self, output: Path, meta: dict[str, Any]) -> None:
        """Record what was made, and from what."""

    def alert(self, title: str, text: str) -> None:
        """Send a message to the people of the project."""

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
                complain(self._stage, method.__name__, error)

    return attempt


class WandbTracker(NullTracker):
    """A wandb run. A job that goes on from its checkpoint continues it; a changed setting or input makes another one."""

    def __init__(self, output: Path, stage: str, settings: dict[str, Any], key: str) -> None:
        # wandb's own place is the home folder: the folder of runs would not be whole.
        os.environ.setdefault("WANDB_DATA_DIR", str(_runs().absolute()))
        import wandb

        self._wandb = wandb
        self._stage, self._complained = stage, False
        self._scores: dict[str, list[float]] = {}
        group = os.environ.get("WANDB_RUN_GROUP", "wmdd")
        self._run = wandb.init(
            id=run_id(output, key),
            name=str(output.with_suffix("")),
            project=os.environ.get("WANDB_PROJECT", "wmdd"),
            group=group,
            job_type=stage,
            config=settings,
            dir=os.environ.get("WANDB_DIR", "."),
            mode=os.environ["WANDB_MODE"],  # type: ignore[arg-type]
            resume="allow",
            settings=wandb.Settings(
                silent=True,
                console="off",
                x_disable_stats=settings.get("device", "cpu") == "cpu",  # else it is the name of a GPU
                x_save_requirements=False,  # an artifact has the versions that count; listing all costs 0.1 s
            ),
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
    def log_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Record a table; an array [H, W, 3] uint8 in a cell of it is a picture."""
        arrays = {id(cell): cell for row in rows for cell in row if hasattr(cell, "shape")}  # rows may share one
        pictures = {place: self._wandb.Image(array) for place, array in arrays.items()}
        shown = [[pictures.get(id(cell), cell) for cell in row] for row in rows]
        self._run.log({name: self._wandb.Table(columns=[*columns], data=[*shown])})

    @_harmless
    def log_code(self, files: Mapping[str, Path]) -> None:
        """Record source files by name, as wandb's code of the run."""
        with TemporaryDirectory() as folder:  # wandb takes all files of one folder, and copies them
            for name, path in files.items():
                place = Path(folder, name)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place)
            self._run.log_code(folder, "source-wmdd", include_fn=lambda _: True)

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
        run = {"run": self._run.id, "project": self._run.project, "entity": self._run.entity or ""}
        atomic_files.write_json(record, facts | run | {"output": output.absolute().as_posix(), "aliases": aliases})
        artifact = self._wandb.Artifact(facts["name"], facts["kind"], metadata=facts)
        artifact.add_file(str(record.resolve()), name="provenance.json", policy="immutable", skip_cache=True)
        if facts["kind"] == "images":
            artifact.add_file(str(output.resolve()), name=output.name, policy="immutable", skip_cache=True)
        self._run.log_artifact(artifact, aliases=aliases)

    @_harmless
    def alert(self, title: str, text: str) -> None:
        """Send a message to the people of the project, from an offline run when it is uploaded."""
        self._run.alert(title, without_key(text), "ERROR")

    @_harmless
    def finish(self, exit_code: int = 0, reason: str = "") -> None:
        """Flush and close; why the job failed stands in the summary."""
        if reason:
            self._run.summary["error"] = without_key(reason)
        self._run.finish(exit_code=exit_code)


def complain(stage: str, action: str, error: Exception) -> None:
    """Say in one line what wandb could not do."""
    reason = without_key(f"{type(error).__name__}: {error}")
    print(f"wmdd {stage}: wandb can't {action} ({reason}); goes on without", file=sys.stderr, flush=True)


def without_key(text: str) -> str:
    """Return a text in one line and with nothing in it that may be an API key."""
    key = os.environ.get("WANDB_API_KEY", "")
    return SECRET.sub("***", " ".join((text.replace(key, "***") if key else text).split()))


def run_id(output: Path, key: str) -> str:
    """Return the id of the run that makes `output`: another one in another folder, also of the same path elsewhere.

    Args:
        output: of the job.
        key: stands for all that its result depends on.
    """
    return hashlib.sha256(f"{_folder_id()} {output.absolute().as_posix()} {key}".encode()).hexdigest()[:16]


def _folder_id() -> str:
    """Return the id of the folder with the runs, which its first run draws."""
    path = _runs() / FOLDER
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{FOLDER}.{atomic_files.owner()}")
        part.write_text(uuid4().hex, encoding="utf-8")
        with suppress(FileExistsError):
            os.link(part, path)  # of several jobs the first one decides
        part.unlink()
    return path.read_text(encoding="utf-8")


def _runs() -> Path:
    return Path(os.environ.get("WANDB_DIR", "."), "wandb")


def start(output: Path, stage: str, settings: dict[str, Any], key: str) -> NullTracker:
    """Return the tracker that the environment asks for.

    Args:
        output: the file that the job makes.
        stage: its name.
        settings: the columns of the run.
        key: stands for all that the result depends on.
    """
    os.environ.setdefault("WANDB_MODE", "offline")
    tracked_stages = os.environ.get("WMDD_TRACKED_STAGES", stage).split()
    if os.environ["WANDB_MODE"] == "disabled" or stage not in tracked_stages:
        return NullTracker()
    try:
        return WandbTracker(output, stage, settings, key)
    except Exception as error:
        complain(stage, "start", error)
        return NullTracker()
