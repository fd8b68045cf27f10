"""The command that draws the pictures of a distilled set."""

from pathlib import Path

import numpy as np

from wmdd.artifacts import atomic_files, hdf5
from wmdd.cli.arguments import Threads, command
from wmdd.cli.readers import images_per_epoch
from wmdd.report.grid import draw


@command
def grid(*, images: Path, output: Path, per_class: int = 10, rows: int = 20, threads: Threads = 1) -> None:
    """Draw the distilled images, a row a class; of more classes than `rows`, some from first to last."""
    with hdf5.reading(images, "images") as file:
        meta = file.meta
        classes = np.unique(np.linspace(0, len(meta["classes"]) - 1, rows).round().astype(int))
        shown = min(per_class, images_per_epoch(meta, file["images"].shape[1]))
        pictures = file["images"][classes, :shown]
    with atomic_files.atomic(output) as part:
        draw(pictures, [meta["names"][label] for label in classes], part, str(images.parent))
