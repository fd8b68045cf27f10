"""Metrics to wandb, or to nobody: both have the same three methods, so that no stage asks which it has.

wandb's own environment variables decide: WANDB_MODE (offline unless set), WANDB_PROJECT, WANDB_RUN_GROUP. With
WANDB_MODE=disabled wandb is not even imported.
"""

import hashlib
import os
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """What a stage may do with its run."""

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Record numbers under their names."""

    def log_images(self, name: str, images: Any, captions: list[str]) -> None:
        """Record pictures [n, H, W, 3] uint8."""

    def finish(self, exit_code: int = 0) -> None:
        """Close the run."""


class NullTracker:
    """Forgets everything."""

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Do nothing."""

    def log_images(self, name: str, images: Any, captions: list[str]) -> None:
        """Do nothing."""

    def finish(self, exit_code: int = 0) -> None:
        """Do nothing."""


class WandbTracker:
    """A wandb run whose id follows from the output's path, so that a rerun continues the same line on the dashboard."""

    def __init__(self, output: Path, stage: str, settings: dict[str, Any]) -> None:
        import wandb

        self._wandb = wandb
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

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Record numbers; `step` becomes the x axis."""
        self._run.log(metrics if step is None else metrics | {"step": step})

    def log_images(self, name: str, images: Any, captions: list[str]) -> None:
        """Record pictures [n, H, W, 3] uint8."""
        pictures = [self._wandb.Image(image, caption=text) for image, text in zip(images, captions, strict=True)]
        self._run.log({name: pictures})

    def finish(self, exit_code: int = 0) -> None:
        """Flush and close."""
        self._run.finish(exit_code=exit_code)


def run_id(group: str, output: Path) -> str:
    """Return the stable id of the run that makes `output`."""
    return hashlib.sha256(f"{group} {output.as_posix()}".encode()).hexdigest()[:16]


def start(output: Path, stage: str, settings: dict[str, Any]) -> Tracker:
    """Return the tracker that the environment asks for."""
    os.environ.setdefault("WANDB_MODE", "offline")
    if os.environ["WANDB_MODE"] == "disabled":
        return NullTracker()
    return WandbTracker(output, stage, settings)
