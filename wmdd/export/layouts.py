"""The four layouts of an export (see `wmdd.export.manifest`): how each is written, and read again, some images at a time."""

import io
import itertools
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import h5py
import numpy as np
from PIL import Image

from wmdd.artifacts.atomic_files import check_file
from wmdd.artifacts.hdf5 import dataset_of
from wmdd.artifacts.hdf5_writer import new_file
from wmdd.base.errors import WmddError, one_line
from wmdd.datasets.decode import UnreadableError, decode
from wmdd.export.manifest import AGAIN, ARRAYS, PICTURES, TABLE, TABLE_OF_VERSION_1, Lost, Manifest

SHARD = 2000  # images of a tar or parquet file: about 200 MB at 224 px
SOFT = {"soft_label": "npy", "soft_logit": "logits.npy"}  # column of a table -> ending in a tar; arrays have an s more
GROUP = 100  # images of a row group of a parquet file, and of what is read at once
_DAMAGE = (  # what pandas, tarfile, numpy, h5py and pyarrow raise
    OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, UnreadableError, tarfile.TarError,
    MemoryError, OverflowError,
)  # fmt: skip


class Rows(NamedTuple):
    """Some images of a set, with all that belongs to them."""

    where: str  # they are from, for messages; "" for those that are to be written
    images: np.ndarray  # [n, 3, R, R] uint8, or float32 in unit scale
    labels: np.ndarray  # [n]
    weights: np.ndarray  # [n] float32
    soft_labels: np.ndarray | None = None  # [n, C] float32
    soft_logits: np.ndarray | None = None  # [n, C] float32


# ---- writing


def to_bytes(images: np.ndarray) -> tuple[np.ndarray, Lost]:
    """Return float images in unit scale as the nearest uint8 ones, and how many values differ from them."""
    nearest = np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)
    clipped = int(np.count_nonzero((images < 0) | (images > 1)))
    changed = int(np.count_nonzero(nearest.astype(np.float32) / 255 != images))
    return nearest, Lost(clipped=clipped, rounded=changed - clipped)


def png(pixels: np.ndarray) -> bytes:
    """Return pixels [3, H, W] uint8 as a PNG file, which loses nothing."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(buffer, "PNG")
    return buffer.getvalue()


class _Sample(NamedTuple):
    """An image as a file, with all that belongs to it."""

    picture: bytes
    label: int
    weight: float
    soft: dict[str, np.ndarray]  # soft_label and soft_logit, [C] each; empty without soft labels


def _samples(parts: Iterable[Rows]) -> Iterator[_Sample]:
    for part in parts:
        columns = {column: getattr(part, f"{column}s") for column in SOFT}
        for row in range(len(part.labels)):
            soft = {column: array[row] for column, array in columns.items() if array is not None}
            yield _Sample(png(part.images[row]), int(part.labels[row]), float(part.weights[row]), soft)


def _write_image_folder(folder: Path, parts: Iterable[Rows], manifest: Manifest) -> None:
    def number(value: float) -> float:
        return float(f"{value:.9g}")  # digits that tell all float32 apart

    for entry in manifest.classes:
        (folder / PICTURES / entry.folder).mkdir(parents=True)
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as table:
        for name, sample in zip(manifest.pictures(), _samples(parts), strict=True):
            (folder / name).write_bytes(sample.picture)
            record: dict[str, Any] = {"file_name": _beside_table(name), "label": sample.label}
            record |= {"weight": number(sample.weight)}
            record |= {column: [*map(number, soft)] for column, soft in sample.soft.items()}
            table.write(json.dumps(record) + "\n")


def _beside_table(picture: str) -> str:
    """Return the path of a picture as the table has it: from the table's own folder on."""
    return str(PurePosixPath(picture).relative_to(PICTURES))


def _write_hdf5(folder: Path, parts: Iterable[Rows], manifest: Manifest) -> None:
    """Write the arrays and nothing else, because `datasets` of Hugging Face takes each array of a file as a column."""
    done = 0
    with new_file(folder / ARRAYS) as (file, sink):
        for part in parts:
            for name in manifest.array_names():
                rows = getattr(part, name)
                if done == 0:
                    options = {"chunks": (1, *rows.shape[1:]), "compression": "gzip"} if name == "images" else {}
                    file.create_dataset(name, (manifest.images, *rows.shape[1:]), rows.dtype, **options)
                file[name][done : done + len(rows)] = rows
            sink.check()
            done += len(part.labels)


def _write_web_dataset(folder: Path, parts: Iterable[Rows], manifest: Manifest) -> None:
    samples = enumerate(_samples(parts))
    for name in manifest.shard_files():
        with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for position, (picture, label, weight, soft) in itertools.islice(samples, SHARD):
                label_and_weight = json.dumps({"label": label, "weight": weight}).encode()
                files = {"png": picture, "cls": str(label).encode(), "json": label_and_weight}
                files |= {SOFT[column]: _npy(array) for column, array in soft.items()}
                for ending, data in files.items():
                    member = tarfile.TarInfo(
                        f"{position:08d}.{ending}"
                    )  # of no owner, and of 1970: equal sets are equal bytes
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _write_parquet(folder: Path, parts: Iterable[Rows], manifest: Manifest) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    columns = {
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "label": pa.int64(),
        "weight": pa.float32(),
    }
    if manifest.soft_labels:
        columns |= dict.fromkeys(SOFT, pa.list_(pa.float32(), len(manifest.classes)))
    schema = pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": _hub_features(manifest)}})})
    samples = enumerate(_samples(parts))
    (folder / "data").mkdir()
    for name in manifest.shard_files():
        shard = itertools.islice(samples, SHARD)
        with ParquetWriter(folder / name, schema) as writer:
            while group := list(itertools.islice(shard, GROUP)):
                records = [
                    {"image": {"bytes": picture, "path": f"{position:08d}.png"}, "label": label, "weight": weight}
                    | soft
                    for position, (picture, label, weight, soft) in group
                ]
                writer.write_table(pa.Table.from_pylist(records, schema))


def _hub_features(manifest: Manifest) -> dict[str, Any]:
    """Return the columns as the library `datasets` of Hugging Face describes them. Its class names have to be distinct."""
    names = [entry.name for entry in manifest.classes]
    distinct = [f"{c.name} ({c.original})" if names.count(c.name) > 1 else c.name for c in manifest.classes]
    number = {"dtype": "float32", "_type": "Value"}
    features: dict[str, Any] = {"image": {"_type": "Image"}, "label": {"names": distinct, "_type": "ClassLabel"}}
    features["weight"] = number
    if manifest.soft_labels:  # older versions of `datasets` know no List
        for column in SOFT:
            features[column] = {"feature": number, "length": len(names), "_type": "Sequence"}
    return features


WRITERS: dict[str, Callable[[Path, Iterable[Rows], Manifest], None]] = {
    "imagefolder": _write_image_folder,
    "hdf5": _write_hdf5,
    "webdataset": _write_web_dataset,
    "parquet": _write_parquet,
}


# ---- reading


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
    except _DAMAGE as error:
        raise WmddError(f"{path} is damaged ({one_line(error)}); restore it or {AGAIN}") from None


def _pixels(where: Path | str, data: bytes) -> np.ndarray:
    """Return the pixels [3, H, W] uint8 of a PNG file."""
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


def _read_table(folder: Path, manifest: Manifest) -> list[dict[str, np.ndarray]]:
    """Return label, weight, soft label and soft logit of each picture of an imagefolder, as arrays."""
    import pandas as pd

    old = manifest.version == 1
    table = folder / (TABLE_OF_VERSION_1 if old else TABLE)
    names = [name if old else _beside_table(name) for name in manifest.pictures()]
    with readable(table):
        if old:
            records = pd.read_csv(table, dtype=str, keep_default_na=False, encoding="utf-8").to_dict("records")
        else:
            records = [json.loads(line) for line in table.read_text("utf-8").splitlines()]
        if [record["file_name"] for record in records] != names:
            raise ValueError("its pictures or their order are not those of the manifest")
        return [_arrays(record) for record in records]


def _arrays(record: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return a row of the table; that of version 1 has the numbers of a soft label as words."""
    row = {"labels": np.array(record["label"], np.int64), "weights": np.array(record["weight"], np.float32)}
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
                sample = {member.name.partition(".")[2]: _content(tar, member) for member in members}
                soft = {
                    f"{column}s": np.load(io.BytesIO(sample[ending]), allow_pickle=False)[None]
                    for column, ending in SOFT.items()
                    if ending in sample
                }
                weight = np.array([json.loads(sample["json"])["weight"]], np.float32)
                where = f"{path} ({key})"
                yield Rows(where, _pixels(where, sample["png"])[None], np.array([int(sample["cls"])]), weight, **soft)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
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
