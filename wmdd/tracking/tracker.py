"""Metrics to wandb, or to nobody: both have the same methods, so that no stage asks which it has.

wandb's own environment variables decide: WANDB_MODE (offline unless set), WANDB_PROJECT, WANDB_RUN_GROUP. With
WANDB_MODE=disabled wandb is not even imported. What wandb can't do is said in one line and never ends a job.
"""

import hashlib
import os
import re
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Protocol

from wmdd.artifacts import atomic_files, hdf5, model_files
from wmdd.workflow.layout import place_of
from wmdd.workflow.stages import STAGES, makers_of

RECORD = (
    "artifact.json"  # beside a run's data: the artifact that it made; `wmdd.tracking.sync` draws the lineage from it
)
SEVERAL = re.compile(r"\d+/(final/.+)")  # the score of one of several students of a job
SECRET = re.compile(r"\b([0-9a-f]{40}|wandb_v\d\w+)\b")


class Tracker(Protocol):
    """What a stage may do with its run."""

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Record numbers under their names."""

    def log_images(self, name: str, images: Any, captions: list[str]) -> None:
        """Record pictures [n, H, W, 3] uint8."""

    def log_artifact(self, output: Path, meta: dict[str, Any]) -> None:
        """Record what was made, and from what."""

    def finish(self, exit_code: int = 0) -> None:
        """Close the run."""


class NullTracker:
    """Forgets everything."""

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Do nothing."""

    def log_images(self, name: str, images: Any, captions: list[str]) -> None:
        """Do nothing."""

    def log_artifact(self, output: Path, meta: dict[str, Any]) -> None:
        """Do nothing."""

    def finish(self, exit_code: int = 0) -> None:
        """Do nothing."""


def _harmless(method: Callable[..., None]) -> Any:
    """Make a method say in one line what wandb could not do, instead of ending the job."""

    @wraps(method)
    def tried(self: "WandbTracker", *arguments: Any, **named: Any) -> None:
        try:
            method(self, *arguments, **named)
        except Exception as error:
            self._complain(method.__name__, error)

    return tried


class WandbTracker:
    """A wandb run whose id follows from the output's path, so that a rerun continues the same line on the dashboard."""

    def __init__(self, output: Path, stage: str, settings: dict[str, Any]) -> None:
        import wandb

        self._wandb = wandb
        self._stage, self._complained = stage, False
        self._finals: dict[str, list[float]] = {}
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
        found = {name: match[1] for name in metrics if (match := SEVERAL.fullmatch(name))}
        for name, plain in found.items():
            self._finals.setdefault(plain, []).append(metrics[name])
        return {plain: sum(self._finals[plain]) / len(self._finals[plain]) for plain in found.values()}

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
        about = describe(output, meta)
        if about is None:
            return
        record = Path(self._run.dir).parent / RECORD
        known = aliases(about["outputs"])
        atomic_files.write_json(record, about | {"run": self._run.id, "project": self._run.project, "aliases": known})
        made = self._wandb.Artifact(about["name"], about["kind"], metadata=about)
        made.add_file(str(record.resolve()), name="provenance.json", policy="immutable", skip_cache=True)
        if about["kind"] == "images":
            made.add_file(str(output.resolve()), name=output.name, policy="immutable", skip_cache=True)
        self._run.log_artifact(made, aliases=known)

    @_harmless
    def finish(self, exit_code: int = 0) -> None:
        """Flush and close."""
        self._run.finish(exit_code=exit_code)

    def _complain(self, what: str, error: Exception) -> None:
        """Say once that wandb failed."""
        if not self._complained:
            self._complained = True
            _say(self._stage, what, error)


def _say(stage: str, what: str, error: Exception) -> None:
    reason = without_key(f"{type(error).__name__}: {error}")
    print(f"wmdd {stage}: wandb can't {what} ({reason}); goes on without", file=sys.stderr, flush=True)


def without_key(text: str) -> str:
    """Return a text in one line and with nothing in it that may be an API key."""
    key = os.environ.get("WANDB_API_KEY", "")
    return SECRET.sub("***", " ".join((text.replace(key, "***") if key else text).split()))


def parts_of(output: Path) -> dict[str, Any]:
    """Return what a path says of the output, as far as it is one of the workflow's: dataset, method, seed and so on."""
    place = place_of(output)
    return place.cell.parts() if place else {}


def kind_of(stage: str) -> str:
    """Return the kind of a stage's artifacts: one for all stages that make the same file, as images and select."""
    file = STAGES[stage].file if stage in STAGES else ""
    return file if len(makers_of(file)) > 1 else stage


def columns(stage: str, output: Path, meta: dict[str, Any]) -> dict[str, Any]:
    """Return what runs are compared by, beside their settings: the stage, the place of the output, digests of the inputs.

    `cell` is method and IPC in one, to group by.
    """
    found = {"stage": stage} | parts_of(output)
    if "ipc" in found:
        found["cell"] = f"{found['method']} ipc{found['ipc']}"
    inputs = _named(meta["inputs"])
    if parts := inputs.pop("parts", None):
        found["input/parts"] = hashlib.sha256(" ".join(parts).encode()).hexdigest()
    return found | {f"input/{name}": digest for name, digest in inputs.items()} | meta["engine"]


def _named(inputs: dict[str, str]) -> dict[str, Any]:
    """Return the digests of the inputs by name; those of numbered ones, which may be thousands, as one list `parts`."""
    parts = {name: digest for name, digest in inputs.items() if re.fullmatch(r"(expert)?\d+", name)}
    return {k: v for k, v in inputs.items() if k not in parts} | ({"parts": [*parts.values()]} if parts else {})


def describe(output: Path, meta: dict[str, Any]) -> dict[str, Any] | None:
    """Return what an artifact says of itself, or None where there is no file: digests, inputs, settings.

    Equal content says the same, whenever and wherever it was made.
    """
    if not output.is_file():
        return None
    outputs = {output.name: digest(output)}
    statistics = output.with_name("statistics.h5")
    if output.name == "features.h5" and statistics.is_file():
        outputs[statistics.name] = digest(statistics)
    about = {"name": artifact_name(output), "kind": kind_of(meta["stage"]), "outputs": outputs}
    about |= {"path": output.as_posix(), "digest": outputs[output.name], "inputs": _named(meta["inputs"])}
    return about | {name: meta[name] for name in ("stage", "settings", "identity", "code")}


def artifact_name(output: Path) -> str:
    """Return the name of an artifact: its path with dots, short enough for wandb."""
    path = output.as_posix().removeprefix("results/")
    name = re.sub(r"[^\w.-]+", ".", path.removesuffix(output.suffix)).strip(".")
    return name if len(name) <= 120 else f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def aliases(outputs: dict[str, str]) -> list[str]:
    """Return the aliases of an artifact: by each of its digests it is found."""
    return [value[:16] for value in outputs.values()]


def digest(path: Path) -> str:
    """Return the digest by which later artifacts name a file."""
    if path.suffix == ".h5":
        return str(hdf5.load_meta(path)["digest"])
    if path.suffix == ".safetensors":
        return str(model_files.load_model(path)[1]["digest"])
    return atomic_files.sha256_of(path)


def run_id(group: str, output: Path) -> str:
    """Return the stable id of the run that makes `output`."""
    return hashlib.sha256(f"{group} {output.as_posix()}".encode()).hexdigest()[:16]


def start(output: Path, stage: str, settings: dict[str, Any]) -> Tracker:
    """Return the tracker that the environment asks for."""
    os.environ.setdefault("WANDB_MODE", "offline")
    if os.environ["WANDB_MODE"] == "disabled":
        return NullTracker()
    try:
        return WandbTracker(output, stage, settings)
    except Exception as error:
        _say(stage, "start", error)
        return NullTracker()
