"""The four layouts of an export (see `wmdd.export.manifest`): how each is read again, some images at a time."""

import csv
import io
import itertools
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import h5py
import numpy as np

from wmdd.artifacts.atomic_files import check_file
from wmdd.artifacts.hdf5 import dataset_of
from wmdd.base.errors import WmddError, one_line
from wmdd.datasets.decode import UnreadableError, decode
from wmdd.export.manifest import AGAIN, ARRAYS, PICTURES, TABLE, TABLE_OF_VERSION_1, Manifest

SOFT = {"soft_label": "npy", "soft_logit": "logits.npy"}  # column of a table -> ending in a tar; arrays have an s more
GROUP = 100  # images of a row group of a parquet file, and of what is read at once
DAMAGE = (  # what csv, tarfile, numpy, h5py and pyarrow raise
    OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, NotImplementedError, RuntimeError,
    UnreadableError, csv.Error, tarfile.TarError, MemoryError, OverflowError,
)  # fmt: skip


class Rows(NamedTuple):
    """Some images of a set, with all that belongs to them."""

    where: str  # they are from, for messages; "" for those that are to be written
    images: np.ndarray  # [n, 3, R, R] uint8, or float32 in unit scale
    labels: np.ndarray  # [n]
    weights: np.ndarray  # [n] float32
    soft_labels: np.ndarray | None = None  # [n, C] float32
    soft_logits: np.ndarray | None = None  # [n, C] float32
    files: Any = None  # of the pictures to be written, a list of bytes where they have some already


@contextmanager
def readable(path: Path | str) -> Iterator[None]:
    """Turn what readers raise on damaged files into one line.

    Raises:
        WmddError: names the path.
    """
    try:
        yield
    except FileNotFoundError:
        raise WmddError(f"{path} is missing; restore it or {AGAIN}") from None
    except DAMAGE as error:
        raise WmddError(f"{path} is damaged ({one_line(error)}); restore it or {AGAIN}") from None


def _pixels(where: Path | str, data: bytes) -> np.ndarray:
    """Return the pixels [3, H, W] uint8 of a picture."""
    with readable(where):
        return decode(data, resolution=0).pixels


def _read_image_folder(folder: Path, manifest: Manifest) -> Iterator[Rows]:
    with readable(folder / PICTURES):  # ImageFolder numbers whatever folders it finds
        folders = {entry.name for entry in (folder / PICTURES).iterdir() if entry.is_dir()}
        if odd := sorted(folders ^ {entry.folder for entry in manifest.classes}):
            raise ValueError(f"the folder {odd[0]!r} is {'none of a class' if odd[0] in folders else 'missing'}")
    names = manifest.pictures()
    for name, record in zip(names, _read_table(folder, manifest), strict=True):
        check_file(folder / name, AGAIN)
        with readable(folder / name):
            data = (folder / name).read_bytes()
        image = _pixels(folder / name, data)
        yield Rows(str(folder / name), image[None], **{column: array[None] for column, array in record.items()})


def beside_table(picture: str) -> str:
    """Return the path of a picture as the table has it: from the table's own folder on."""
    return str(PurePosixPath(picture).relative_to(PICTURES))


def _read_table(folder: Path, manifest: Manifest) -> list[dict[str, np.ndarray]]:
    """Return label, weight, soft label and soft logit of each picture of an imagefolder, as arrays."""
    old = manifest.version == 1
    table = folder / (TABLE_OF_VERSION_1 if old else TABLE)
    names = [name if old else beside_table(name) for name in manifest.pictures()]
    with readable(table):
        if old:
            records: list[dict[Any, Any]] = list(csv.DictReader(table.read_text("utf-8").splitlines(), strict=True))
        else:
            records = [json.loads(line) for line in table.read_text("utf-8").splitlines()]
        if [record["file_name"] for record in records] != names:
            raise ValueError("its pictures or their order are not those of the manifest")
        return [_arrays(record) for record in records]


def _arrays(record: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    """Return a row of the table; that of version 1 has the numbers of a soft label as words."""
    row: dict[str, np.ndarray] = {
        "labels": np.array(record["label"], np.int64),
        "weights": np.array(record["weight"], np.float32),
    }
    for column in SOFT:
        if column in record:
            numbers = record[column].split() if isinstance(record[column], str) else record[column]
            row[f"{column}s"] = np.array(numbers, np.float32)
    return row


def _read_hdf5(folder: Path, manifest: Manifest) -> Iterator[Rows]:
    path, names = folder / ARRAYS, manifest.array_names()
    with readable(path), h5py.File(path, "r", locking=False) as file:
        if missing := [name for name in names if name not in file]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        arrays = {name: dataset_of(path, file, name) for name in names}
        for first in range(0, len(arrays["labels"]), GROUP):
            yield Rows(str(path), **{name: array[first : first + GROUP] for name, array in arrays.items()})


def _read_web_dataset(folder: Path, manifest: Manifest) -> Iterator[Rows]:
    for name in manifest.shard_files():
        path = folder / name
        with readable(path), tarfile.open(path, "r:") as tar:
            for key, members in itertools.groupby(tar, lambda member: member.name.partition(".")[0]):
                sample = {member.name.partition(".")[2]: content(tar, member) for member in members}
                soft = {
                    f"{column}s": np.load(io.BytesIO(sample[ending]), allow_pickle=False)[None]
                    for column, ending in SOFT.items()
                    if ending in sample
                }
                weight = np.array([json.loads(sample["json"])["weight"]], np.float32)
                where = f"{path} ({key})"
                yield Rows(where, _pixels(where, sample["png"])[None], np.array([int(sample["cls"])]), weight, **soft)


def content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Return the bytes of a plain member.

    Raises:
        ValueError: it is a link, sparse or no file.
    """
    file = tar.extractfile(member) if member.isreg() and not member.issparse() else None
    if file is None:
        raise ValueError(f"{member.name} is no file")
    return file.read()


def _read_parquet(folder: Path, manifest: Manifest) -> Iterator[Rows]:
    from pyarrow.parquet import ParquetFile

    for name in manifest.shard_files():
        path = folder / name
        with readable(path), ParquetFile(path) as file:
            for batch in file.iter_batches(GROUP):
                labels, weights = (
                    batch.column(column).to_numpy(zero_copy_only=False) for column in ("label", "weight")
                )
                soft = {
                    f"{column}s": batch.column(column).flatten().to_numpy(zero_copy_only=False).reshape(len(labels), -1)
                    for column in SOFT
                    if column in batch.schema.names
                }
                records = batch.column("image").to_pylist()
                images = [_pixels(f"{path} ({record['path']})", record["bytes"]) for record in records]
                yield Rows(str(path), np.stack(images), labels, weights, **soft)


READERS: dict[str, Callable[[Path, Manifest], Iterator[Rows]]] = {
    "imagefolder": _read_image_folder,
    "hdf5": _read_hdf5,
    "webdataset": _read_web_dataset,
    "parquet": _read_parquet,
}
