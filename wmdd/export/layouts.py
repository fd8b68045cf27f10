"""The four layouts of an export (see `wmdd.export.manifest`): how each is written, and read again, some images at a time."""

import csv
import io
import itertools
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from wmdd.artifacts import hdf5, hdf5_writer
from wmdd.artifacts.atomic_files import check_file
from wmdd.base.errors import WmddError, one_line
from wmdd.datasets.decode import UnreadableError, decode
from wmdd.export.manifest import AGAIN, ARRAYS, PICTURES, TABLE, Manifest

SHARD = 2000  # images of a tar or parquet file: about 200 MB at 224 px
GROUP = 100  # images of a row group of a parquet file, and of what is read at once
DAMAGE = (  # what pandas, tarfile, numpy and pyarrow raise
    OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, NotImplementedError, UnreadableError, tarfile.TarError,
    RecursionError, MemoryError, OverflowError,
)  # fmt: skip


class Rows(NamedTuple):
    """Some images of a set, with all that belongs to them."""

    where: str  # they are from, for messages; "" for those that are to be written
    images: np.ndarray  # [n, 3, R, R] uint8
    labels: np.ndarray  # [n]
    weights: np.ndarray  # [n] float32
    soft_labels: np.ndarray | None  # [n, C] float32


# ---- writing


def png(pixels: np.ndarray) -> bytes:
    """Return pixels [3, H, W] uint8 as a PNG file, which loses nothing."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(buffer, "PNG")
    return buffer.getvalue()


def _singly(parts: Iterable[Rows]) -> Iterator[tuple[bytes, int, float, np.ndarray | None]]:
    """Yield picture, label, weight and soft label of each image."""
    for part in parts:
        soft_labels = itertools.repeat(None) if part.soft_labels is None else part.soft_labels
        for pixels, label, weight, soft in zip(part.images, part.labels, part.weights, soft_labels, strict=False):
            yield png(pixels), int(label), float(weight), soft


def _write_image_folder(folder: Path, parts: Iterable[Rows], manifest: Manifest) -> None:
    def number(value: float) -> str:
        return f"{value:.9g}"  # digits that tell all float32 apart

    for entry in manifest.classes:
        (folder / PICTURES / entry.folder).mkdir(parents=True)
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file_name", "label", "weight", *(["soft_label"] if manifest.soft_labels else [])])
        for name, (picture, label, weight, soft) in zip(manifest.pictures(), _singly(parts), strict=True):
            (folder / name).write_bytes(picture)
            table.writerow([name, label, number(weight), *([] if soft is None else [" ".join(map(number, soft))])])


def _write_hdf5(folder: Path, parts: Iterable[Rows], manifest: Manifest) -> None:
    with hdf5_writer.writing(folder / ARRAYS) as writer:
        writer.meta = manifest.model_dump(mode="json")
        small: dict[str, list[np.ndarray]] = {name: [] for name in manifest.array_names() if name != "images"}
        for part in parts:
            writer.append("images", part.images, compressed=True)
            for name, arrays in small.items():
                arrays.append(getattr(part, name))
        for name, arrays in small.items():
            writer.put(name, np.concatenate(arrays))


def _write_web_dataset(folder: Path, parts: Iterable[Rows], manifest: Manifest) -> None:
    rows = enumerate(_singly(parts))
    for name in manifest.shard_files():
        with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for position, (picture, label, weight, soft) in itertools.islice(rows, SHARD):
                label_and_weight = json.dumps({"label": label, "weight": weight}).encode()
                sample = {"png": picture, "cls": str(label).encode(), "json": label_and_weight}
                if soft is not None:
                    buffer = io.BytesIO()
                    np.save(buffer, soft, allow_pickle=False)
                    sample["npy"] = buffer.getvalue()
                for ending, data in sample.items():
                    member = tarfile.TarInfo(
                        f"{position:08d}.{ending}"
                    )  # of no owner, and of 1970: equal sets are equal bytes
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def _write_parquet(folder: Path, parts: Iterable[Rows], manifest: Manifest) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    columns = {
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "label": pa.int64(),
        "weight": pa.float32(),
        "soft_label": pa.list_(pa.float32(), len(manifest.classes)),
    }
    if not manifest.soft_labels:
        del columns["soft_label"]
    schema = pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": _hub_features(manifest)}})})
    rows = enumerate(_singly(parts))
    (folder / "data").mkdir()
    for name in manifest.shard_files():
        shard = itertools.islice(rows, SHARD)
        with ParquetWriter(folder / name, schema) as writer:
            while group := list(itertools.islice(shard, GROUP)):
                records = [
                    dict(zip(columns, ({"bytes": picture, "path": f"{position:08d}.png"}, *others), strict=False))
                    for position, (picture, *others) in group
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
        features["soft_label"] = {"feature": number, "length": len(names), "_type": "Sequence"}
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
    except DAMAGE as error:
        raise WmddError(f"{path} is damaged ({one_line(error)}); restore it or {AGAIN}") from None


def _pixels(where: Path | str, data: bytes) -> np.ndarray:
    """Return the pixels [3, H, W] uint8 of a PNG file."""
    with readable(where):
        return decode(data, resolution=0).pixels


def _read_image_folder(folder: Path, manifest: Manifest) -> Iterator[Rows]:
    import pandas as pd

    with readable(folder / PICTURES):  # ImageFolder numbers whatever folders it finds
        folders = {entry.name for entry in (folder / PICTURES).iterdir() if entry.is_dir()}
        if odd := sorted(folders ^ {entry.folder for entry in manifest.classes}):
            raise ValueError(f"the folder {odd[0]!r} is {'none of a class' if odd[0] in folders else 'missing'}")
    table, names = folder / TABLE, manifest.pictures()
    with readable(table):
        columns = pd.read_csv(table, dtype=str, keep_default_na=False, encoding="utf-8")
        if columns["file_name"].tolist() != names:
            raise ValueError("its pictures or their order are not those of the manifest")
        labels, weights = columns["label"].astype(int).to_numpy(), columns["weight"].astype(np.float32).to_numpy()
        softs = columns.get("soft_label")
    for position, name in enumerate(names):
        check_file(folder / name, AGAIN)
        with readable(folder / name):
            data = (folder / name).read_bytes()
        with readable(table):
            soft = None if softs is None else np.array(softs[position].split(), np.float32)[None]
        image = _pixels(folder / name, data)
        yield Rows(str(folder / name), image[None], labels[position, None], weights[position, None], soft)


def _read_hdf5(folder: Path, manifest: Manifest) -> Iterator[Rows]:
    path, names = folder / ARRAYS, manifest.array_names()
    if not path.exists():
        raise WmddError(f"{path} is missing; restore it or {AGAIN}")
    with hdf5.reading(path, *names) as file:
        for first in range(0, len(file["labels"]), GROUP):
            arrays = {name: file[name][first : first + GROUP] for name in names}
            yield Rows(str(path), **({"soft_labels": None} | arrays))


def _read_web_dataset(folder: Path, manifest: Manifest) -> Iterator[Rows]:
    for name in manifest.shard_files():
        path = folder / name
        with readable(path), tarfile.open(path, "r:") as tar:
            for key, members in itertools.groupby(tar, lambda member: member.name.partition(".")[0]):
                sample = {member.name.partition(".")[2]: content(tar, member) for member in members}
                soft = np.load(io.BytesIO(sample["npy"]), allow_pickle=False)[None] if "npy" in sample else None
                weight = np.array([json.loads(sample["json"])["weight"]], np.float32)
                where = f"{path} ({key})"
                yield Rows(where, _pixels(where, sample["png"])[None], np.array([int(sample["cls"])]), weight, soft)


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
                soft = None
                if "soft_label" in batch.schema.names:
                    soft = batch.column("soft_label").flatten().to_numpy(zero_copy_only=False).reshape(len(labels), -1)
                records = batch.column("image").to_pylist()
                images = [_pixels(f"{path} ({record['path']})", record["bytes"]) for record in records]
                yield Rows(str(path), np.stack(images), labels, weights, soft)


READERS: dict[str, Callable[[Path, Manifest], Iterator[Rows]]] = {
    "imagefolder": _read_image_folder,
    "hdf5": _read_hdf5,
    "webdataset": _read_web_dataset,
    "parquet": _read_parquet,
}
