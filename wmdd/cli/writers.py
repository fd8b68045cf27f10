"""What several commands write: distilled images, the atoms of measures, the history of a training."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from wmdd.artifacts import atomic_files
from wmdd.artifacts.hdf5_writer import save
from wmdd.artifacts.pixels import as_bytes
from wmdd.cli.readers import data_facts
from wmdd.jobs.job import StageJob

if TYPE_CHECKING:
    import torch

TRACKED = 50  # classes of a distilled set whose first image the tracker shows


def save_history(output: Path, history: list[dict[str, float]]) -> None:
    """Write the history of a training, a row an epoch, as CSV beside its output."""
    columns = dict.fromkeys(name for row in history for name in row)  # not all rows have all of them
    with io.StringIO() as text:
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: value for name, value in row.items() if value == value} for row in history)  # no NaN
        atomic_files.write_text(output.with_suffix(".csv"), text.getvalue())


def save_images(
    stage_job: StageJob,
    images: "torch.Tensor",
    weights: "torch.Tensor",
    labels: list[int],
    meta: dict[str, Any],
    learned: Mapping[str, np.ndarray] = MappingProxyType({}),
    learned_meta: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write distilled images [C, K, 3, H, W] with weights [C, K], and show the first of some classes on the tracker.

    The images are uint8, or float32 in unit scale. `meta` is of an artifact of the same data; `learned` and `learned_meta`
    are what a method learned besides images.
    """
    arrays = {"images": images.numpy(), "weights": weights.float().numpy(), "labels": np.array(labels), **learned}
    save(stage_job.output, arrays, stage_job.meta | data_facts(meta) | dict(learned_meta), chunked=("images",))
    shown = as_bytes(images[:TRACKED, 0].permute(0, 2, 3, 1).numpy())
    stage_job.tracker.log_images("images", shown, [meta["names"][label] for label in labels[:TRACKED]])


def save_atoms(
    stage_job: StageJob,
    atoms: "torch.Tensor",
    weights: "torch.Tensor",
    labels: range,
    quality: dict[str, np.ndarray],
    seconds: list[float],
    meta: dict[str, Any],
) -> None:
    """Write atoms [C, K, D] with weights [C, K] and columns of quality [C]; the seconds of each class go to the cost file."""
    arrays = {"labels": np.array(labels), "atoms": atoms.numpy(), "weights": weights.numpy()}
    arrays |= {f"quality/{name}": values for name, values in quality.items()}
    save(stage_job.output, arrays, stage_job.meta | meta)
    stage_job.cost["seconds_per_class"] = [round(value, 4) for value in seconds]
    stage_job.tracker.log({f"mean/{name}": float(values.mean()) for name, values in quality.items()})
