"""The command that puts all students of an experiment into one wandb table."""

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wmdd.artifacts import atomic_files, hdf5
from wmdd.artifacts.atomic_files import read_json
from wmdd.artifacts.pixels import as_bytes
from wmdd.cli.arguments import Paths, command
from wmdd.report import results, thumbnails
from wmdd.tracking import tracker as tracking
from wmdd.workflow.launch import PACKAGE, sources
from wmdd.workflow.layout import beside


@command
def scoreboard(*, students: Paths, output: Path) -> None:
    """Put the scores of all students beside an image of each of some classes that they learned from, as one wandb table.

    Args:
        students: of the student stage; the images lie where the workflow puts them.
        output: the table without the images, JSON.
    """
    contents = [(path, read_json(path)) for path in students]
    frame = results.rows(contents, results.families_beside(students))
    frame = frame.loc[:, (frame != "").any()]  # no column of what none of them has
    content = {"columns": [*frame], "rows": json.loads(frame.to_json(orient="values"))}
    key = sha256(json.dumps(content).encode()).hexdigest()
    tracker = tracking.start(output, "scoreboard", {"stage": "scoreboard", "students": len(students)}, key)
    sets = [Path(beside(path, "images")) for path in students]
    pictures = {path: _picture(path) for path in dict.fromkeys(sets) if path.is_file()}
    rows = [[pictures.get(path), *row] for path, row in zip(sets, content["rows"], strict=True)]
    tracker.log_table("scoreboard", ["images", *content["columns"]], rows)
    if os.environ.get("WMDD_TRACKED_CODE"):
        tracker.log_code(_sources())
    tracker.finish()
    atomic_files.write_json(output, content)


def _picture(path: Path) -> np.ndarray[Any, Any]:
    """Return the first image of some classes of a distilled set side by side, [H, N W, 3] uint8."""
    with hdf5.reading(path, "images") as file:
        images = as_bytes(file["images"][thumbnails.chosen(len(file.meta["names"])), 0]).transpose(0, 2, 3, 1)
    side = min(images.shape[1], thumbnails.SIDE)
    return np.concatenate([np.asarray(Image.fromarray(image).resize((side, side))) for image in images], axis=1)


def _sources() -> dict[str, Path]:
    """Return the files of the package and of its workflow by name."""
    workflow = [sources() / "Snakefile", *sources().glob("rules/*.smk")]
    package = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.yaml")]
    named = {path.relative_to(sources()).as_posix(): path for path in workflow}
    return named | {f"wmdd/{path.relative_to(PACKAGE).as_posix()}": path for path in package}
