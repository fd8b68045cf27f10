"""Export: a distilled set as a folder that others read without this package (the layouts stand in `wmdd.export.loading`)."""

import csv
import io
import json
import os
import re
import shutil
import socket
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from wmdd.artifacts import atomic_files, hdf5_writer
from wmdd.base.errors import WmddError
from wmdd.export.dataset_card import EXAMPLE, Origin, card
from wmdd.export.loading import ARRAYS, CARD, MANIFEST, PICTURES, TABLE, Class, Manifest, Rows, digest, read_manifest

if TYPE_CHECKING:
    from wmdd.stages.labels import Labels

SHARD = 2000  # images of a tar or parquet file: about 200 MB at 224 px
GROUP = 100  # images of a row group of a parquet file
Progress = Callable[..., Iterator[Any]]
_OURS = (CARD, EXAMPLE, MANIFEST, PICTURES, TABLE, ARRAYS, "data")


# ---- classes and soft labels


def folders(classes: Sequence[str]) -> list[str]:
    """Return a safe folder for each class. Sorted by name they are in the order of the classes, as ImageFolder needs them.

    They are the classes' own names where these do; else each is made safe and numbered.
    """
    safe = [re.sub(r"^\.|[^\w.-]", "_", name)[:80] for name in classes]
    distinct = len({name.casefold() for name in safe}) == len(safe)  # on disks that don't tell cases apart, too
    if safe == list(classes) and safe == sorted(safe) and all(safe) and distinct:
        return safe
    digits = len(str(len(safe) - 1))
    return [f"{index:0{digits}d}-{name}" for index, name in enumerate(safe)]


def manifest_classes(classes: Sequence[str], names: Sequence[str]) -> tuple[Class, ...]:
    """Return the class manifest of a set."""
    rows = zip(folders(classes), classes, names, strict=True)
    return tuple(Class(index=i, folder=f, original=o, name=n) for i, (f, o, n) in enumerate(rows))


def mean_soft_labels(
    labels: "Labels", epochs: int, shape: tuple[int, int], temperature: float, progress: Progress
) -> np.ndarray:
    r"""Return the mean soft label of each image, 1/E \sum_e softmax(t_ie / T), [N, C] float32; an epoch is read at a time.

    Args:
        labels: stored or pruned; t_ie are the logits on the view of image i in epoch e.
        epochs: E, that are in the file.
        shape: N and C.
        temperature: T.
        progress: shows how far it is.

    Raises:
        WmddError: the labels are of another number of images or classes.
    """
    assert labels.logits is not None
    total = torch.zeros(shape, dtype=torch.float64)
    for epoch in progress(range(epochs), "averaging labels", epochs, 0, "epoch"):
        logits = labels.logits(epoch)
        if logits.shape != shape:
            raise WmddError(
                f"the labels are {list(logits.shape)}, the set has {list(shape)} images and classes; relabel it"
            )
        for rows, part in zip(total.split(1000), logits.split(1000), strict=True):
            rows += (part.double() / temperature).softmax(1)
    return (total / epochs).float().numpy()


# ---- the folder


def export(
    output: Path,
    about: Manifest,
    images: Any,
    weights: np.ndarray,
    soft_labels: np.ndarray | None,
    origin: Origin,
    progress: Progress,
    overwrite: bool = False,
) -> None:
    """Write a set as a folder, whole or not at all; one class of images is in memory at a time.

    Args:
        output: the folder.
        about: the set and its layout, without digests and shards.
        images: [C, K, 3, R, R] uint8, an array or an open file's.
        weights: [C, K] float32.
        soft_labels: [N, C] float32, or None.
        origin: what else the card says.
        progress: shows how far it is.
        overwrite: replace an earlier export.

    Raises:
        WmddError: the folder has something else in it, or can't be written.
    """
    sharded = about.layout in ("webdataset", "parquet")
    about = about.model_copy(update={"shards": -(-about.images // SHARD) if sharded else 1})
    hashed, k = sha256(), about.images_per_class
    labels = np.arange(len(about.classes)).repeat(k)

    def rows() -> Iterator[Rows]:
        for label in progress(range(len(about.classes)), "exporting", len(about.classes), 0, "class"):
            pixels, mine = images[label], slice(label * k, (label + 1) * k)
            hashed.update(np.ascontiguousarray(pixels).data)
            yield Rows("", pixels, labels[mine], weights[label], None if soft_labels is None else soft_labels[mine])

    with _new_folder(output, overwrite) as folder:
        _WRITERS[about.layout](folder, rows(), about)
        digests = {"images": hashed.hexdigest(), "labels": digest(labels), "weights": digest(weights)}
        digests |= {} if soft_labels is None else {"soft_labels": digest(soft_labels)}
        about = about.model_copy(update={"digests": digests})
        _write(folder / MANIFEST, json.dumps(about.model_dump(mode="json"), indent=1, sort_keys=True) + "\n")
        _write(folder / EXAMPLE, example(about))
        _write(folder / CARD, card(about, origin))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def _new_folder(output: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a folder beside `output` that takes its place at the end, or is removed on failure."""
    output = output.resolve()  # of a link, what it leads to is replaced
    check_output(output, overwrite)
    atomic_files.make_room(output)
    mark = f"{socket.gethostname()}.{os.getpid()}"
    part, old = output.with_name(f".{output.name}.{mark}.part"), output.with_name(f".{output.name}.{mark}.old")
    try:
        part.mkdir()
        yield part
        check_output(output, overwrite)  # it has taken a while
        if output.exists():
            output.rename(old)
        part.rename(output)
    except (OSError, RuntimeError) as error:
        raise (atomic_files._write_error(output, error) or error) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if old.exists() and not output.exists():
            old.rename(output)
        shutil.rmtree(old, ignore_errors=True)


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse a place that holds anything but an earlier export that may be overwritten.

    Raises:
        WmddError: names what is there.
    """
    if output.exists() and not output.is_dir():
        raise WmddError(f"{output} is a file; name a new folder as --output")
    found = sorted(entry.name for entry in output.iterdir()) if output.exists() else []
    if not found:
        return
    try:
        read_manifest(output)
    except WmddError:
        raise WmddError(f"{output} is not empty and no export of wmdd; name a new folder as --output") from None
    if not overwrite:
        raise WmddError(f"{output} already holds an export; add --overwrite, or name a new folder as --output")
    if foreign := [name for name in found if name not in _OURS and not re.fullmatch(r"train-\d+\.tar", name)]:
        raise WmddError(f"{output} holds {foreign[0]!r}, which is not of the export; move it before you overwrite")


# ---- the layouts


def png(pixels: np.ndarray) -> bytes:
    """Return pixels [3, H, W] uint8 as a PNG file, which loses nothing."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(buffer, "PNG")
    return buffer.getvalue()


def _singly(parts: Iterable[Rows]) -> Iterator[tuple[np.ndarray, int, float, np.ndarray | None]]:
    """Yield pixels, label, weight and soft label of each image."""
    for part in parts:
        softs: Iterable[np.ndarray | None] = (
            part.soft_labels if part.soft_labels is not None else [None] * len(part.labels)
        )
        for pixels, label, weight, soft in zip(part.images, part.labels, part.weights, softs, strict=True):
            yield pixels, int(label), float(weight), soft


def _image_folder(folder: Path, parts: Iterable[Rows], about: Manifest) -> None:
    for each in about.classes:
        (folder / PICTURES / each.folder).mkdir(parents=True)
    soft_column = ["soft_label"] if about.soft_labels else []
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file_name", "label", "weight", *soft_column])
        for name, (pixels, label, weight, soft) in zip(about.pictures(), _singly(parts), strict=True):
            (folder / name).write_bytes(png(pixels))
            numbers = [] if soft is None else [" ".join(map(_number, soft))]
            table.writerow([name, label, _number(weight), *numbers])


def _number(value: float) -> str:
    return f"{value:.9g}"  # digits that tell all float32 apart


def _hdf5(folder: Path, parts: Iterable[Rows], about: Manifest) -> None:
    with hdf5_writer.writing(folder / ARRAYS) as writer:
        writer.meta = about.model_dump(mode="json")
        others: dict[str, list[np.ndarray]] = {name: [] for name in about.shapes() if name != "images"}
        for part in parts:
            writer.append("images", part.images, compressed=True)
            for name, those in others.items():
                those.append(getattr(part, name))
        for name, those in others.items():
            writer.put(name, np.concatenate(those))


def _web_dataset(folder: Path, parts: Iterable[Rows], about: Manifest) -> None:
    rows = enumerate(_singly(parts))
    for name in about.files():
        with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for place, (pixels, label, weight, soft) in islice(rows, SHARD):
                _add(tar, f"{place:08d}.png", png(pixels))
                _add(tar, f"{place:08d}.cls", str(label).encode())
                _add(tar, f"{place:08d}.json", json.dumps({"label": label, "weight": weight}).encode())
                if soft is not None:
                    buffer = io.BytesIO()
                    np.save(buffer, soft, allow_pickle=False)
                    _add(tar, f"{place:08d}.npy", buffer.getvalue())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # of no owner, and of the year 1970, so that equal sets are equal bytes
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _parquet(folder: Path, parts: Iterable[Rows], about: Manifest) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    count = len(about.classes)
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {"image": image, "label": pa.int64(), "weight": pa.float32()}
    columns |= {"soft_label": pa.list_(pa.float32(), count)} if about.soft_labels else {}
    features = {"info": {"features": hub_features(about)}}
    schema = pa.schema(columns, metadata={"huggingface": json.dumps(features)})
    rows = enumerate(_singly(parts))
    (folder / "data").mkdir()
    for name in about.files():
        left = islice(rows, SHARD)
        with ParquetWriter(folder / name, schema) as writer:
            while group := list(islice(left, GROUP)):
                writer.write_table(pa.Table.from_pylist([_record(place, *row) for place, row in group], schema))


def _record(place: int, pixels: np.ndarray, label: int, weight: float, soft: np.ndarray | None) -> dict[str, Any]:
    record = {"image": {"bytes": png(pixels), "path": f"{place:08d}.png"}, "label": label, "weight": weight}
    return record if soft is None else record | {"soft_label": soft}


def hub_features(about: Manifest) -> dict[str, Any]:
    """Return the columns as the library `datasets` of Hugging Face describes them. Its class names have to be distinct."""
    names = [each.name for each in about.classes]
    distinct = [f"{c.name} ({c.original})" if names.count(c.name) > 1 else c.name for c in about.classes]
    number = {"dtype": "float32", "_type": "Value"}
    columns: dict[str, Any] = {"image": {"_type": "Image"}, "label": {"names": distinct, "_type": "ClassLabel"}}
    columns |= {"weight": number}
    soft = {"feature": number, "length": len(names), "_type": "Sequence"}  # older versions know no List
    return columns | ({"soft_label": soft} if about.soft_labels else {})


_WRITERS: dict[str, Callable[[Path, Iterable[Rows], Manifest], None]] = {
    "imagefolder": _image_folder,
    "hdf5": _hdf5,
    "webdataset": _web_dataset,
    "parquet": _parquet,
}


# ---- the example

_EXAMPLES = {
    "imagefolder": """{opening}

import json
from pathlib import Path

import pandas as pd
from torchvision import transforms
from torchvision.datasets import ImageFolder

{here}
transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(about["mean"], about["std"])])
images = ImageFolder(here / "train", transform)
assert images.classes == [each["folder"] for each in about["classes"]]  # the order of the labels
rows = pd.read_csv(here / "metadata.csv")  # in the order of the images
image, label = images[0]
weight = rows.weight[0]
{soft}""",
    "hdf5": """{opening}

import json
from pathlib import Path

import h5py
import torch
from torchvision.transforms.functional import normalize

{here}
file = h5py.File(here / "distilled.h5")
images = torch.from_numpy(file["images"][:])  # uint8
image, label = normalize(images[0].float() / 255, about["mean"], about["std"]), int(file["labels"][0])
weight = file["weights"][0]
{soft}""",
    "webdataset": """{opening}

import json
from pathlib import Path

import webdataset
from torchvision.transforms.functional import normalize

{here}
files = sorted(str(path) for path in here.glob("train-*.tar"))
images = list(webdataset.WebDataset(files, shardshuffle=False).decode("torchrgb"))
first = images[0]
image, label, weight = normalize(first["png"], about["mean"], about["std"]), first["cls"], first["json"]["weight"]
{soft}""",
    "parquet": """{opening}

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image
from torchvision.transforms.functional import normalize, to_tensor

{here}
images = pq.read_table(sorted((here / "data").glob("*.parquet"))).to_pylist()
first = images[0]
pixels = to_tensor(Image.open(io.BytesIO(first["image"]["bytes"])))
image, label, weight = normalize(pixels, about["mean"], about["std"]), first["label"], first["weight"]
{soft}""",
}
_PARTS = {
    "opening": '"""Reads this distilled set with public packages alone. With wmdd, `wmdd.load(here)` reads every layout."""',
    "here": """here = Path(__file__).parent
about = json.loads((here / "manifest.json").read_text(encoding="utf-8"))""",
}
_SOFT = {
    "imagefolder": "soft_label = [float(number) for number in rows.soft_label[0].split()]\n",
    "hdf5": 'soft_label = file["soft_labels"][0]\n',
    "webdataset": 'soft_label = first["npy"]\n',
    "parquet": 'soft_label = first["soft_label"]\n',
}
_CLOSING = """print(len(images), "images; the first:", tuple(image.shape), about["classes"][label]["name"], "of weight", weight)
"""


def example(about: Manifest) -> str:
    """Return a script that reads an export with public packages alone."""
    soft = _SOFT[about.layout] if about.soft_labels else ""
    return _EXAMPLES[about.layout].format(**_PARTS, soft=soft) + _CLOSING
