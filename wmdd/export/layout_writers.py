"""How each layout of an export is written, some images at a time (what lies where: `wmdd.export.manifest`)."""

import io
import itertools
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from wmdd.artifacts.hdf5_writer import new_file
from wmdd.export.layouts import GROUP, SOFT, Rows, beside_table
from wmdd.export.manifest import ARRAYS, PICTURES, TABLE, Lost, Manifest

SHARD = 2000  # images of a tar or parquet file: about 200 MB at 224 px


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

    pixels: np.ndarray  # [3, R, R] uint8
    picture: bytes  # the file
    label: int
    weight: float
    soft: dict[str, np.ndarray]  # soft_label and soft_logit, [C] each; empty without soft labels


def _samples(parts: Iterable[Rows]) -> Iterator[_Sample]:
    for part in parts:
        columns = {column: getattr(part, f"{column}s") for column in SOFT}
        for row in range(len(part.labels)):
            soft = {column: array[row] for column, array in columns.items() if array is not None}
            picture = part.files[row] if part.files else png(part.images[row])
            yield _Sample(part.images[row], picture, int(part.labels[row]), float(part.weights[row]), soft)


def _write_image_folder(folder: Path, parts: Iterable[Rows], manifest: Manifest) -> None:
    def number(value: float) -> float:
        return float(f"{value:.9g}")  # digits that tell all float32 apart

    for entry in manifest.classes:
        (folder / PICTURES / entry.folder).mkdir(parents=True)
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as table:
        for name, sample in zip(manifest.pictures(), _samples(parts), strict=True):
            (folder / name).write_bytes(sample.picture)
            record: dict[str, Any] = {"file_name": beside_table(name), "label": sample.label}
            record |= {"weight": number(sample.weight)}
            record |= {column: [*map(number, soft)] for column, soft in sample.soft.items()}
            table.write(json.dumps(record) + "\n")


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
            for position, sample in itertools.islice(samples, SHARD):
                label_and_weight = json.dumps({"label": sample.label, "weight": sample.weight}).encode()
                picture = (
                    sample.picture if manifest.picture_format == "png" else png(sample.pixels)
                )  # which webdataset decodes
                files = {"png": picture, "cls": str(sample.label).encode(), "json": label_and_weight}
                files |= {SOFT[column]: _npy(array) for column, array in sample.soft.items()}
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
                    {
                        "image": {"bytes": sample.picture, "path": f"{position:08d}.{manifest.picture_format}"},
                        "label": sample.label,
                        "weight": sample.weight,
                    }
                    | sample.soft
                    for position, sample in group
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
