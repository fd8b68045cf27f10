"""Write a distilled set as a folder that others read without this package (the layouts stand in `wmdd.export.manifest`)."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import escape
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from wmdd.artifacts import atomic_files
from wmdd.base.errors import WmddError
from wmdd.datasets.decode import decode
from wmdd.export import layout_writers
from wmdd.export.croissant import CROISSANT, croissant
from wmdd.export.dataset_card import Origin, card
from wmdd.export.example import example
from wmdd.export.layouts import Rows
from wmdd.export.manifest import (
    ARRAYS,
    CARD,
    EXAMPLE,
    MANIFEST,
    PICTURES,
    TABLE_OF_VERSION_1,
    Lost,
    Manifest,
    read_manifest,
    soft_logits,
)

if TYPE_CHECKING:
    from wmdd.stages.labels import Labels

Progress = Callable[..., Iterator[Any]]
_OURS = (CARD, CROISSANT, EXAMPLE, MANIFEST, PICTURES, TABLE_OF_VERSION_1, ARRAYS, "data")


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


class _Parts:
    """A set as it is written, a class at a time, and what has been seen of it so far: digests, and what 8 bits lost."""

    def __init__(
        self,
        manifest: Manifest,
        images: Any,
        weights: np.ndarray,
        soft_labels: np.ndarray | None,
        files: "PictureFiles | None",
    ) -> None:
        self.manifest, self.images, self.weights, self.soft_labels = manifest, images, weights, soft_labels
        self.files = files
        self.floats = images.dtype.kind == "f"
        self.digests = {name: sha256() for name in manifest.array_names()}
        self.losses: list[Lost] = []

    def of_class(self, label: int) -> Rows:
        """Return the images of a class, with all that belongs to them."""
        pixels = np.asarray(self.images[label], np.float32 if self.floats else np.uint8)
        k = self.manifest.images_per_class
        if self.floats and not np.isfinite(pixels).all():
            name = self.manifest.classes[label].name
            raise WmddError(f"an image of class {name!r} has pixels that are no numbers; make the images again")
        if self.floats and self.manifest.pixels == "uint8":
            pixels, lost = layout_writers.to_bytes(pixels)
            self.losses.append(lost)
        soft: dict[str, np.ndarray] = {}
        if self.soft_labels is not None and self.manifest.soft_labels is not None:
            own = self.soft_labels[label * k : (label + 1) * k]
            soft = {"soft_labels": own, "soft_logits": soft_logits(own, self.manifest.soft_labels.temperature)}
        files = None if self.files is None else self.files.of_class(label, k)
        for file, image in zip(files or [], pixels, strict=False):
            if not np.array_equal(decode(file, 0).pixels, image):
                name = self.manifest.classes[label].name
                raise WmddError(f"a file of class {name!r} does not show its image; make the images again")
        part = Rows("", pixels, np.full(k, label, np.int64), self.weights[label], **soft, files=files)
        for name, hashed in self.digests.items():
            hashed.update(np.ascontiguousarray(getattr(part, name)).data)
        return part

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says once all parts are written."""
        clipped, rounded = (sum(getattr(lost, name) for lost in self.losses) for name in ("clipped", "rounded"))
        lost = Lost(clipped=clipped, rounded=rounded) if self.losses else None
        return {"digests": {name: hashed.hexdigest() for name, hashed in self.digests.items()}, "lost": lost}


class PictureFiles(NamedTuple):
    """The files of a coded set, one behind the other: their bytes, and where each begins and the last ends, [C K + 1]."""

    content: np.ndarray
    offsets: np.ndarray

    def of_class(self, label: int, k: int) -> list[bytes]:
        """Return the K files of a class."""
        bounds = self.offsets[label * k : (label + 1) * k + 1]
        return [self.content[a:b].tobytes() for a, b in pairwise(bounds)]


def export(
    output: Path,
    manifest: Manifest,
    images: Any,
    weights: np.ndarray,
    soft_labels: np.ndarray | None,
    origin: Origin,
    progress: Progress,
    overwrite: bool = False,
    files: PictureFiles | None = None,
) -> None:
    """Write a set as a folder, whole or not at all; one class of images is in memory at a time.

    Args:
        output: the folder.
        manifest: the set and its layout, without what is found in writing it: shards, digests, what was lost.
        images: [C, K, 3, R, R] uint8, or float32 in unit scale, an array or an open file's.
        weights: [C, K] float32.
        soft_labels: [N, C] float32, or None.
        origin: what else the card says.
        progress: shows how far it is.
        overwrite: replace an earlier export.
        files: of the pictures, where the set has some.

    Raises:
        WmddError: the folder has something else in it, or can't be written; an image is not of numbers, or not what its file
            shows.
    """
    floats, sharded = images.dtype.kind == "f", manifest.layout in ("webdataset", "parquet")
    storage = {
        "shards": -(-manifest.images // layout_writers.SHARD) if sharded else 1,
        "pixels": "float32" if floats and manifest.layout == "hdf5" else "uint8",
    }
    manifest = manifest.model_copy(update=storage)
    parts, count = _Parts(manifest, images, weights, soft_labels, files), len(manifest.classes)
    with _new_folder(output, overwrite) as folder:
        rows = (parts.of_class(label) for label in progress(range(count), "exporting", count, 0, "class"))
        layout_writers.WRITERS[manifest.layout](folder, rows, manifest)
        manifest = manifest.model_copy(update=parts.facts())
        content = manifest.content()
        content[atomic_files.SEAL] = atomic_files.seal_of(content)
        texts = {
            MANIFEST: json.dumps(content, indent=1, sort_keys=True) + "\n",
            EXAMPLE: example(manifest),
            CARD: card(manifest, origin),
            CROISSANT: json.dumps(croissant(manifest, origin), indent=1) + "\n",
        }
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def _new_folder(output: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a folder beside `output` that takes its place at the end, or is removed on failure."""
    output = output.resolve()  # of a link, what it leads to is replaced
    check_output(output, overwrite)
    atomic_files.make_room(output)
    mark = atomic_files.owner()
    part, old = output.with_name(f".{output.name}.{mark}.part"), output.with_name(f".{output.name}.{mark}.old")
    try:
        part.mkdir()
        yield part
        check_output(output, overwrite)  # it has taken a while
        if not output.exists():
            part.rename(output)
        elif not atomic_files.exchanged(part, output):  # for a moment neither has the name
            output.rename(old)
            part.rename(output)
    except (OSError, RuntimeError) as error:
        raise (atomic_files.write_error(output, error) or error) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if old.exists() and not output.exists():
            old.rename(output)
        shutil.rmtree(old, ignore_errors=True)


def _clear(output: Path) -> None:
    """Remove what killed exports left of a folder; an earlier export whose replacement was cut short gets its name back."""
    for left in sorted(output.parent.glob(f".{escape(output.name)}.*")):
        own = left.stem == f".{output.name}.{atomic_files.owner()}"
        if own or left.suffix not in (".part", ".old") or not atomic_files.abandoned(left):
            continue
        if left.suffix == ".old" and not output.exists():
            left.rename(output)
        else:
            shutil.rmtree(left, ignore_errors=True)


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse a place that holds anything but an earlier export that may be overwritten; what killed exports left goes.

    Raises:
        WmddError: names what is there.
    """
    _clear(output)
    if output.exists() and not output.is_dir():
        raise WmddError(f"{output} is a file; name a new folder as --output")
    names = sorted(entry.name for entry in output.iterdir()) if output.exists() else []
    if not names:
        return
    try:
        read_manifest(output)
    except WmddError:
        raise WmddError(f"{output} is not empty and no export of wmdd; name a new folder as --output") from None
    if not overwrite:
        raise WmddError(f"{output} already holds an export; add --overwrite, or name a new folder as --output")
    if foreign := [name for name in names if name not in _OURS and not re.fullmatch(r"train-\d+\.tar", name)]:
        raise WmddError(f"{output} holds {foreign[0]!r}, which is not of the export; move it before you overwrite")
