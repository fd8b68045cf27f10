"""Data: raw pictures become uint8 pixels [N, 3, R, R], or the files' own bytes, sorted by class, in one pass."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate

from wmdd import artifacts, cifar, folders
from wmdd.errors import WmddError
from wmdd.pictures import UnreadableError, decode_all, sizes_agree
from wmdd.progress import progress
from wmdd.rng import generator
from wmdd.settings import DataSettings


@dataclass(frozen=True)
class Split:
    """Images sorted by label; within a class in the order of their file names."""

    labels: np.ndarray  # [N] int64, position of the class in `Dataset.classes`
    images: np.ndarray | None  # [N, 3, R, R] uint8 when stored as pixels
    files: list[bytes] | None  # N encoded files when stored as encoded


@dataclass(frozen=True)
class Dataset:
    """A training and a validation split with the same classes, and what is needed to use them."""

    train: Split
    val: Split
    classes: list[str]  # folder names, or the source's own, in label order
    names: list[str]  # readable names, in label order
    resolution: int  # R
    mean: list[float]  # of the training images in [0, 1], per channel
    std: list[float]  # a constant channel has 1, so that it can be divided by
    skipped: list[str]  # unreadable pictures left out, relative to root
    val_folder: str  # "" for digits, which have no split of their own
    source: str


def collect(settings: DataSettings, seed: int = 0) -> Dataset:
    """Read the raw pictures of a dataset; `seed` matters only where the source has no split of its own (digits).

    Raises:
        WmddError: something is missing, unreadable or does not fit the settings; the message names it.
    """
    if settings.source == "imagefolder":
        return _from_folders(settings)
    if settings.source == "digits":
        return _from_arrays(settings, *_digits(seed))
    return _from_arrays(settings, *cifar.read(settings))


def to_arrays(dataset: Dataset) -> dict[str, np.ndarray]:
    """Return the arrays of `data.h5`: for each split S, `S/labels` [N] int64 and `S/images` [N, 3, R, R] uint8.

    In place of the images it may be `S/bytes` and `S/offsets` [N + 1]: file i is `bytes[offsets[i]:offsets[i + 1]]`.
    """
    arrays = {}
    for name, split in (("train", dataset.train), ("val", dataset.val)):
        arrays[f"{name}/labels"] = split.labels
        if split.images is not None:
            arrays[f"{name}/images"] = split.images
        if split.files is not None:
            arrays[f"{name}/bytes"] = np.frombuffer(b"".join(split.files), np.uint8)
            arrays[f"{name}/offsets"] = np.cumsum([0, *map(len, split.files)], dtype=np.int64)
    return arrays


def to_meta(dataset: Dataset) -> dict[str, Any]:
    """Return what a reader of `data.h5` needs beside the arrays, as JSON; counts are per class in label order."""
    meta = {name: value for name, value in vars(dataset).items() if name not in ("train", "val")}
    splits, size = (("train", dataset.train), ("val", dataset.val)), len(dataset.classes)
    counts = {name: np.bincount(split.labels, minlength=size).tolist() for name, split in splits}
    return meta | {"storage": "encoded" if dataset.train.images is None else "pixels", "counts": counts}


def load_images(
    path: Path, split: str, first: int = 0, last: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Read images [N, 3, R, R] uint8, labels [N] and meta data of the classes first..last (inclusive; None: to the end).

    Raises:
        WmddError: the file or a picture in it is damaged, or it lacks the split or the classes.
    """
    meta = artifacts.load_meta(path)
    end = len(meta["classes"]) - 1
    last = end if last is None else last
    if not 0 <= first <= last <= end:
        raise WmddError(f"{path} has the classes 0..{end}, not {first}..{last}; correct the range")
    with artifacts.reading(path) as file:
        if split not in file:
            raise WmddError(f"{path} has no split {split!r}; delete it and run again to rebuild it")
        labels = file[f"{split}/labels"][()]
        start, stop = np.searchsorted(labels, [first, last + 1])
        if f"{split}/images" in file:
            images = file[f"{split}/images"][start:stop]
        else:
            offsets = file[f"{split}/offsets"][start : stop + 1]
            content = file[f"{split}/bytes"][offsets[0] : offsets[-1]].tobytes()
            files = [content[a:b] for a, b in pairwise(offsets - offsets[0])]
            try:
                images = decode_all(files, meta["resolution"], f"decoding {split}")
            except UnreadableError as error:
                raise WmddError(f"{path} holds an unreadable picture ({error}); delete it and run again") from None
    return torch.from_numpy(images), torch.from_numpy(labels[start:stop]), meta


def _from_folders(settings: DataSettings) -> Dataset:
    root = folders.root_of(settings)
    val_folder, train, val = folders.find(root)
    classes = [folder.name for folder in train]
    _check_count(classes, settings)
    limit = settings.images_per_class or None
    kept = [path for paths in train.values() for path in paths[:limit]]
    held_out = [path for paths in val.values() for path in paths]
    encoded = settings.storage == "encoded" or (settings.storage == "auto" and not sizes_agree(kept + held_out))
    reader = folders.Reader(root, settings)
    train_split, moments = _gather(progress(reader.read(train, limit), "reading train", len(kept), unit="img"), encoded)
    val_split, _ = _gather(progress(reader.read(val), f"reading {val_folder}", len(held_out), unit="img"), encoded)
    return Dataset(
        train_split, val_split, classes, folders.readable_names(root, classes), reader.resolution,
        *_mean_std(moments), reader.skipped, val_folder, settings.source,
    )  # fmt: skip


def _gather(found: Iterable[tuple[int, bytes, np.ndarray]], encoded: bool) -> tuple[Split, np.ndarray]:
    """Return a split and its moments from labels, files and pixels."""
    labels, files, content, moments = [], [], bytearray(), np.zeros((3, 3))
    for label, file, pixels in found:
        labels.append(label)
        if encoded:
            files.append(file)
        else:
            content += pixels.tobytes()
        moments += _moments(pixels)
    images = None if encoded else np.frombuffer(content, np.uint8).reshape(-1, *pixels.shape)
    return Split(np.array(labels, np.int64), images, files if encoded else None), moments


def _from_arrays(settings: DataSettings, train: cifar.Arrays, val: cifar.Arrays, classes: list[str]) -> Dataset:
    """Make a dataset of labels [N] and images [N, 3, h, w] in 0..255, in any order."""
    _check_count(classes, settings)
    if settings.storage == "encoded":
        raise WmddError(f"{settings.source} has no picture files to store; set data.storage to auto or pixels")
    side = settings.resolution or 32  # CIFAR's own; digits are enlarged to it
    val_folder = "" if settings.source == "digits" else "test"
    labels, images = _arranged(*train, settings.images_per_class or None, side)
    return Dataset(
        Split(labels, images, None), Split(*_arranged(*val, None, side), None), classes, classes, side,
        *_mean_std(sum(map(_moments, images), np.zeros((3, 3)))), [], val_folder, settings.source,
    )  # fmt: skip


def _arranged(labels: np.ndarray, images: np.ndarray, limit: int | None, side: int) -> cifar.Arrays:
    """Sort by class, keep the first `limit` of each, and resample to uint8 (bilinear, antialiased)."""
    order = np.concatenate([np.flatnonzero(labels == label)[:limit] for label in range(labels.max() + 1)])
    resampled = [
        interpolate(part.float(), (side, side), mode="bilinear", antialias=True).round().clamp(0, 255).byte()
        for part in torch.from_numpy(images[order]).split(256)  # all of them as floats might not fit
    ]
    return labels[order].astype(np.int64), torch.cat(resampled).numpy()


def _digits(seed: int) -> tuple[cifar.Arrays, cifar.Arrays, list[str]]:
    """Read scikit-learn's digits, 8 px and 0..16; a fifth of each class, drawn by `seed`, validates."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8).repeat(3, axis=1) * (255 / 16)
    held_out = np.zeros(len(labels), bool)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        order = torch.randperm(len(members), generator=generator("data", "split", seed, label)).numpy()
        held_out[members[order[: round(len(members) / 5)]]] = True
    return (labels[~held_out], images[~held_out]), (labels[held_out], images[held_out]), list("0123456789")


def _check_count(classes: list[str], settings: DataSettings) -> None:
    if len(classes) != settings.classes:
        where = settings.root if settings.source == "imagefolder" else settings.source
        remedy = f"set it to {len(classes)} or correct the data"
        raise WmddError(f"{where} has {len(classes)} classes but data.classes is {settings.classes}; {remedy}")


def _moments(pixels: np.ndarray) -> np.ndarray:
    """Return count, sum and sum of squares per channel [3, 3] of an image [3, H, W]; whole numbers, hence exact."""
    values = pixels.reshape(3, -1).astype(np.float64)
    return np.stack([np.full(3, values.shape[1]), values.sum(1), np.square(values).sum(1)])


def _mean_std(moments: np.ndarray) -> tuple[list[float], list[float]]:
    count, total, squares = moments
    mean = total / count / 255
    std = np.sqrt(np.maximum(squares / count / 255**2 - mean**2, 0)).round(6)
    return mean.round(6).tolist(), np.where(std == 0, 1.0, std).tolist()
