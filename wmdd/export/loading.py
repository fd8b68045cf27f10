"""Load a distilled set, from an export of any layout or from images.h5, as a small dataset for PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from wmdd.artifacts import hdf5
from wmdd.base import extras
from wmdd.base.errors import WmddError
from wmdd.export.layouts import READERS, readable
from wmdd.export.manifest import (
    AGAIN,
    ARRAYS,
    CARD,
    MANIFEST,
    Manifest,
    check_images,
    digest,
    provenance,
    read_manifest,
    soft_logits,
)
from wmdd.networks.models import normalise
from wmdd.networks.normalisation import Normalisation


@dataclass(frozen=True, eq=False)
class Distilled(Dataset[dict[str, Any]]):
    """A distilled set in memory, sorted by class, K images of each.

    An item is a dict that a DataLoader can batch: `image` (float32 [3, R, R], normalised by mean and std; or what `transform`
    makes of the stored one), `label` (int64), `weight` (float32) and, where there are soft labels, `soft_label` (float32 [C]).
    """

    images: Tensor  # [N, 3, R, R] uint8, or float32 in unit scale (black 0, white 1, and values beyond)
    labels: Tensor  # [N] int64
    weights: Tensor  # [N] float32: the masses of the images of a class, as the method left them
    soft_labels: Tensor | None  # [N, C] float32: probabilities, the mean over an image's labelled views, or learned
    soft_logits: Tensor | None  # [N, C] float32: softmax(soft_logits / T) = soft_labels, at their T, 1 of learned ones
    classes: list[str]  # as the artifacts call them
    names: list[str]  # readable
    mean: list[float]  # per channel, of the normalisation
    std: list[float]
    meta: dict[str, Any]  # what made it
    card: str = ""  # the text of README.md; empty for images.h5
    transform: Callable[[Tensor], Any] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        see = self.transform or partial(normalise, normalisation=Normalisation(self.mean, self.std))
        item = {"image": see(self.images[index]), "label": self.labels[index], "weight": self.weights[index]}
        return item if self.soft_labels is None else item | {"soft_label": self.soft_labels[index]}


@extras.named()
def load(path: str | Path, transform: Callable[[Tensor], Any] | None = None) -> Distilled:
    """Read a distilled set: the folder of an export, whatever its layout, or the images.h5 of a run.

    Args:
        path: of the folder or the file.
        transform: makes of an image, uint8 (or float32 in unit scale) [3, R, R], what an item has; by default it is normalised.

    Raises:
        WmddError: it is neither, or something in it is missing, damaged or not as the manifest says; names it.
    """
    path = Path(path)
    if path.is_dir():
        return _from_export(path, transform)
    if path.name == ARRAYS and (path.parent / MANIFEST).is_file():
        return _from_export(path.parent, transform)
    if not path.exists():
        raise WmddError(f"{path} does not exist; give the folder of an export, or the images.h5 of a run")
    return _from_images(path, transform)


def _from_images(path: Path, transform: Callable[[Tensor], Any] | None) -> Distilled:
    if not h5py.is_hdf5(path):
        raise WmddError(f"{path} is no distilled set; give the folder that `wmdd export` wrote, or images.h5")
    with hdf5.reading(path) as file:
        check_images(path, file)
        meta = file.meta
        images = torch.from_numpy(file["images"][()])
        weights = torch.from_numpy(hdf5.checked_weights(path, file["weights"][()]))
        learned = hdf5.learned_labels(path, file)
    labels = torch.arange(len(images)).repeat_interleave(images.shape[1])
    soft = {} if learned is None else {"soft_labels": learned, "soft_logits": soft_logits(learned, temperature=1)}
    tensors = {name: torch.from_numpy(array) for name, array in soft.items()}
    return Distilled(
        images.flatten(0, 1), labels, weights.float().flatten(), tensors.get("soft_labels"), tensors.get("soft_logits"),
        meta["classes"], meta["names"], meta["mean"], meta["std"], {"images": provenance(meta)}, "", transform,
    )  # fmt: skip


def _from_export(folder: Path, transform: Callable[[Tensor], Any] | None) -> Distilled:
    manifest = read_manifest(folder)
    arrays = {name: torch.from_numpy(array) for name, array in _verified_arrays(folder, manifest).items()}
    with readable(folder / CARD):
        card = (folder / CARD).read_text("utf-8")
    return Distilled(
        arrays["images"], arrays["labels"], arrays["weights"], arrays.get("soft_labels"), arrays.get("soft_logits"),
        [entry.original for entry in manifest.classes], [entry.name for entry in manifest.classes],
        list(manifest.mean), list(manifest.std), manifest.made, card, transform,
    )  # fmt: skip


def _verified_arrays(folder: Path, manifest: Manifest) -> dict[str, np.ndarray]:
    """Read all rows of an export into arrays, and check that they are what was exported."""
    n, side = manifest.images, manifest.resolution
    stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if 3 * n * side**2 > max(hdf5.SMALL, hdf5.MOST * stored):
        raise WmddError(
            f"the manifest of {folder} claims {n:,} images of {side:,} px, more than its files hold; {AGAIN}"
        )
    arrays: dict[str, np.ndarray] = {
        "images": np.empty((n, 3, side, side), manifest.pixels),
        "labels": np.empty(n, np.int64),
        "weights": np.empty(n, np.float32),
    }
    for name in [name for name in manifest.array_names() if name not in arrays]:
        arrays[name] = np.empty((n, len(manifest.classes)), np.float32)
    done = 0
    for rows in READERS[manifest.layout](folder, manifest):
        for name, array in arrays.items():
            place, part = array[done : done + len(rows.labels)], getattr(rows, name)
            if part is None or part.shape != place.shape:
                shape = "" if part is None else f" of shape {list(part.shape)}"
                fault = f"{'lacks' if part is None else 'has'} {name.replace('_', ' ')}{shape}"
                raise WmddError(f"{rows.where} {fault}, where the manifest has place for {list(place.shape)}; {AGAIN}")
            place[...] = part
        done += len(rows.labels)
    if done != n:
        raise WmddError(f"{folder} has {done} images, but its manifest says {n}; {AGAIN}")
    wrong = sorted(name for name, array in arrays.items() if digest(array) != manifest.digests.get(name))
    if wrong:
        raise WmddError(f"{', '.join(wrong)} of {folder} are not those that were exported; {AGAIN}")
    if manifest.soft_labels and manifest.version == 1:
        arrays["soft_logits"] = soft_logits(arrays["soft_labels"], manifest.soft_labels.temperature)
    return arrays
