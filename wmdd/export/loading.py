"""Load: a distilled set, from an export of any layout or from images.h5, as a small dataset for PyTorch.

An export is a folder with README.md, example.py, manifest.json and, by layout:

    imagefolder   train/{folder}/{k}.png, metadata.csv (file_name, label, weight, soft_label: numbers with blanks between)
    hdf5          distilled.h5: images [N, 3, R, R], labels [N], weights [N], soft_labels [N, C]
    webdataset    train-{shard}.tar: of each image png, cls, json (weight) and npy (the soft label)
    parquet       data/train-{shard}-of-{shards}.parquet: image (PNG), label, weight, soft_label

The N = C K images are sorted by class, K of each. manifest.json names the classes and holds a digest of each array, so that
whatever was changed since the export is noticed. All paths are made here, none is taken from the data; nothing is unpickled.
"""

import hashlib
import io
import itertools
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple

import h5py
import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor
from torch.utils.data import Dataset

from wmdd.artifacts import hdf5
from wmdd.base.errors import WmddError, one_line
from wmdd.datasets.decode import UnreadableError, decode
from wmdd.networks.models import normalise

Layout = Literal["imagefolder", "hdf5", "webdataset", "parquet"]
MANIFEST, CARD = "manifest.json", "README.md"
PICTURES, TABLE, ARRAYS = "train", "metadata.csv", "distilled.h5"
AGAIN = "export the set again"
_AT_ONCE = 100  # images that are read at once
_DAMAGE = (  # what pandas, tarfile, numpy and pyarrow raise
    OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, NotImplementedError, UnreadableError, tarfile.TarError,
)  # fmt: skip
_Positive = Annotated[int, Field(gt=0)]
_Channels = tuple[float, float, float]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Class(_Part):
    """A class: its index, its folder in an export, what the artifacts call it, and its readable name."""

    index: int
    folder: str
    original: str
    name: str

    @field_validator("folder")
    @classmethod
    def _plain(cls, value: str) -> str:
        if not value or PurePosixPath(value).name != value or value == ".." or "\\" in value:
            raise ValueError("the name of a folder, without a path")
        return value


class SoftLabels(_Part):
    """Which soft labels were averaged, and how; or that they are those that the method learned (store: learned)."""

    temperature: float
    epochs: int
    store: str
    mix: str
    digest: str


class Manifest(_Part):
    """What manifest.json says of an export."""

    kind: Literal["wmdd distilled set"] = "wmdd distilled set"
    version: Literal[1] = 1
    layout: Layout
    classes: tuple[Class, ...] = Field(min_length=1)
    images_per_class: _Positive
    resolution: _Positive
    mean: _Channels
    std: _Channels
    soft_labels: SoftLabels | None = None
    shards: _Positive = 1
    digests: dict[str, str] = {}
    made: dict[str, Any]

    @property
    def images(self) -> int:
        """How many images there are, N."""
        return len(self.classes) * self.images_per_class

    def pictures(self) -> list[str]:
        """Return the paths of the pictures in an imagefolder, in order."""
        return [f"{PICTURES}/{c.folder}/{k:05d}.png" for c in self.classes for k in range(self.images_per_class)]

    def files(self) -> list[str]:
        """Return the paths of the shards, in order."""
        if self.layout == "webdataset":
            return [f"train-{shard:06d}.tar" for shard in range(self.shards)]
        return [f"data/train-{shard:05d}-of-{self.shards:05d}.parquet" for shard in range(self.shards)]

    def shapes(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """Return shape and type of each array."""
        n, side, soft = self.images, self.resolution, (self.images, len(self.classes))
        found: dict[str, tuple[tuple[int, ...], type]] = {
            "images": ((n, 3, side, side), np.uint8),
            "labels": ((n,), np.int64),
            "weights": ((n,), np.float32),
        }
        return found | ({"soft_labels": (soft, np.float32)} if self.soft_labels else {})


@dataclass(frozen=True, eq=False)
class Distilled(Dataset[dict[str, Any]]):
    """A distilled set in memory, sorted by class, K images of each.

    An item is a dict that a DataLoader can batch: `image` (float32 [3, R, R], normalised by mean and std; or what `transform`
    makes of the uint8 one), `label` (int64), `weight` (float32) and, where there are soft labels, `soft_label` (float32 [C]).
    """

    images: Tensor  # [N, 3, R, R] uint8
    labels: Tensor  # [N] int64
    weights: Tensor  # [N] float32: the masses of the images of a class, as the method left them
    soft_labels: Tensor | None  # [N, C] float32: probabilities, the mean over an image's labelled views, or learned
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
        see = self.transform or partial(normalise, mean=self.mean, std=self.std)
        item = {"image": see(self.images[index]), "label": self.labels[index], "weight": self.weights[index]}
        return item if self.soft_labels is None else item | {"soft_label": self.soft_labels[index]}


def load(path: str | Path, transform: Callable[[Tensor], Any] | None = None) -> Distilled:
    """Read a distilled set: the folder of an export, whatever its layout, or the images.h5 of a run.

    Args:
        path: of the folder or the file.
        transform: makes of an image, uint8 [3, R, R], what an item has; by default it is normalised.

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
        meta = hdf5.meta_of(file)
        images, weights = (torch.from_numpy(file[name][()]) for name in ("images", "weights"))
        learned = hdf5.learned_labels(path, file)
    labels = torch.arange(len(images)).repeat_interleave(images.shape[1])
    return Distilled(
        images.flatten(0, 1), labels, weights.float().flatten(), None if learned is None else torch.from_numpy(learned),
        meta["classes"], meta["names"], meta["mean"], meta["std"], {"images": provenance(meta)}, "", transform,
    )  # fmt: skip


def check_images(path: Path, file: h5py.File) -> None:
    """Refuse an open artifact that is no images.h5 with all its classes.

    Raises:
        WmddError: says what it is instead.
    """
    shape: tuple[int, ...] = tuple(file["images"].shape) if isinstance(file.get("images"), h5py.Dataset) else ()
    if len(shape) != 5 or not isinstance(file.get("weights"), h5py.Dataset):
        raise WmddError(f"{path} is no distilled set; give the images.h5 of a run, or the folder of an export")
    classes = len(hdf5.meta_of(file)["classes"])
    if shape[0] != classes or file["weights"].shape != shape[:2]:
        raise WmddError(
            f"{path} has the images of {shape[0]} classes and weights of {file['weights'].shape[0]}, but names {classes} "
            "classes; give the images.h5 that joins all blocks"
        )


def provenance(meta: dict[str, Any]) -> dict[str, Any]:
    """Return of an artifact's meta data what made it, without what is said elsewhere."""
    left_out = ("classes", "names", "resolution", "mean", "std", "positions", "engine", "teacher_accuracy")
    return {name: value for name, value in meta.items() if name not in left_out}


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an export.

    Raises:
        WmddError: there is none, or it isn't one.
    """
    path = folder / MANIFEST
    try:
        return Manifest.model_validate(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        raise WmddError(
            f"{folder} has no {MANIFEST}, so it is no export; give the folder that `wmdd export` wrote"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise WmddError(f"{path} is no manifest of an export ({at}: {first['msg']}); {AGAIN}") from None
    except (OSError, ValueError) as error:
        raise WmddError(f"{path} can't be read ({error}); {AGAIN}") from None


def _from_export(folder: Path, transform: Callable[[Tensor], Any] | None) -> Distilled:
    about = read_manifest(folder)
    arrays = {name: torch.from_numpy(array) for name, array in _assembled(folder, about).items()}
    with _readable(folder / CARD):
        card = (folder / CARD).read_text("utf-8")
    return Distilled(
        arrays["images"], arrays["labels"], arrays["weights"], arrays.get("soft_labels"),
        [each.original for each in about.classes], [each.name for each in about.classes],
        list(about.mean), list(about.std), about.made, card, transform,
    )  # fmt: skip


def _assembled(folder: Path, about: Manifest) -> dict[str, np.ndarray]:
    """Read all rows of an export into arrays, and check that they are what was exported."""
    arrays: dict[str, np.ndarray] = {name: np.empty(shape, dtype) for name, (shape, dtype) in about.shapes().items()}
    done = 0
    for rows in _READERS[about.layout](folder, about):
        count = len(rows.labels)
        for name, array in arrays.items():
            _put(array, done, getattr(rows, name), name, rows.where)
        done += count
    if done != about.images:
        raise WmddError(f"{folder} has {done} images, but its manifest says {about.images}; {AGAIN}")
    wrong = sorted(name for name, array in arrays.items() if digest(array) != about.digests.get(name))
    if wrong:
        raise WmddError(f"{', '.join(wrong)} of {folder} are not those that were exported; {AGAIN}")
    return arrays


def _put(array: np.ndarray, first: int, rows: np.ndarray | None, name: str, where: str) -> None:
    """Copy rows to their place."""
    name = name.replace("_", " ")
    if rows is None:
        raise WmddError(f"{where} lacks {name}; {AGAIN}")
    if rows.shape[1:] != array.shape[1:]:
        shapes = f"{list(rows.shape[1:])}, where the manifest says {list(array.shape[1:])}"
        what = " (the number of classes differs)" if name == "soft labels" else ""
        raise WmddError(f"{where} has {name} of shape {shapes}{what}; {AGAIN}")
    if first + len(rows) > len(array):
        raise WmddError(f"{where} has more images than the {len(array)} of the manifest; {AGAIN}")
    array[first : first + len(rows)] = rows


def digest(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's contents."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


class Rows(NamedTuple):
    """Some images of a set, with all that belongs to them."""

    where: str  # they are from, for messages
    images: np.ndarray  # [n, 3, R, R] uint8
    labels: np.ndarray  # [n]
    weights: np.ndarray  # [n] float32
    soft_labels: np.ndarray | None  # [n, C] float32


@contextmanager
def _readable(path: Path | str) -> Iterator[None]:
    """Turn what readers raise on damaged files into one line."""
    try:
        yield
    except FileNotFoundError:
        raise WmddError(f"{path} is missing; restore it or {AGAIN}") from None
    except _DAMAGE as error:
        raise WmddError(f"{path} is damaged ({one_line(error)}); restore it or {AGAIN}") from None


def _image_folder(folder: Path, about: Manifest) -> Iterator[Rows]:
    import pandas as pd

    _check_folders(folder / PICTURES, about)
    table, names = folder / TABLE, about.pictures()
    with _readable(table):
        columns = pd.read_csv(table, dtype=str, keep_default_na=False, encoding="utf-8")
        if columns["file_name"].tolist() != names:
            raise ValueError("its pictures or their order are not those of the manifest")
        labels, weights = columns["label"].astype(int).to_numpy(), columns["weight"].astype(np.float32).to_numpy()
        softs = columns.get("soft_label")
    for place, name in enumerate(names):
        with _readable(folder / name):
            image = _pixels((folder / name).read_bytes())
        with _readable(table):
            soft = None if softs is None else np.array(softs[place].split(), np.float32)[None]
        yield Rows(str(folder / name), image[None], labels[place, None], weights[place, None], soft)


def _check_folders(folder: Path, about: Manifest) -> None:
    """Refuse folders that are not those of the classes: ImageFolder numbers whatever it finds."""
    with _readable(folder):
        found = {entry.name for entry in folder.iterdir() if entry.is_dir()}
    expected = {each.folder for each in about.classes}
    if found != expected:
        odd = sorted(found ^ expected)[0]
        word = "has a folder too many" if odd in found else "lacks the folder"
        raise WmddError(
            f"{folder} {word}, {odd!r}: {len(found)} in place of {len(expected)} classes; restore or {AGAIN}"
        )


def _hdf5(folder: Path, about: Manifest) -> Iterator[Rows]:
    path = folder / ARRAYS
    if not path.exists():
        raise WmddError(f"{path} is missing; restore it or {AGAIN}")
    with hdf5.reading(path, *about.shapes()) as file:
        for first in range(0, len(file["labels"]), _AT_ONCE):
            rows = {name: file[name][first : first + _AT_ONCE] for name in about.shapes()}
            yield Rows(str(path), rows["images"], rows["labels"], rows["weights"], rows.get("soft_labels"))


def _web_dataset(folder: Path, about: Manifest) -> Iterator[Rows]:
    for name in about.files():
        path = folder / name
        with _readable(path), tarfile.open(path, "r:") as tar:
            for key, members in itertools.groupby(tar, lambda member: member.name.partition(".")[0]):
                sample = {member.name.partition(".")[2]: _content(tar, member) for member in members}
                soft = np.load(io.BytesIO(sample["npy"]), allow_pickle=False)[None] if "npy" in sample else None
                weight = np.array([json.loads(sample["json"])["weight"]], np.float32)
                where = f"{path} ({key})"
                with _readable(where):
                    image = _pixels(sample["png"])
                yield Rows(where, image[None], np.array([int(sample["cls"])]), weight, soft)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member) if member.isreg() else None
    if file is None:
        raise ValueError(f"{member.name} is no file")
    return file.read()


def _parquet(folder: Path, about: Manifest) -> Iterator[Rows]:
    from pyarrow.parquet import ParquetFile

    for name in about.files():
        path = folder / name
        with _readable(path), ParquetFile(path) as file:
            for batch in file.iter_batches(_AT_ONCE):
                labels, weights = (
                    batch.column(column).to_numpy(zero_copy_only=False) for column in ("label", "weight")
                )
                soft = None
                if "soft_label" in batch.schema.names:
                    soft = batch.column("soft_label").flatten().to_numpy(zero_copy_only=False).reshape(len(labels), -1)
                images = [_of_record(path, record) for record in batch.column("image").to_pylist()]
                yield Rows(str(path), np.stack(images), labels, weights, soft)


def _of_record(path: Path, record: dict[str, Any]) -> np.ndarray:
    with _readable(f"{path} ({record['path']})"):
        return _pixels(record["bytes"])


def _pixels(data: bytes) -> np.ndarray:
    """Return the pixels [3, H, W] uint8 of a PNG file."""
    return decode(data, resolution=0).pixels


_READERS: dict[str, Callable[[Path, Manifest], Iterator[Rows]]] = {
    "imagefolder": _image_folder,
    "hdf5": _hdf5,
    "webdataset": _web_dataset,
    "parquet": _parquet,
}
