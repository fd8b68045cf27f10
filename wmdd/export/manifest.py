"""The manifest of an export: which classes, arrays and files it has, and their digests.

An export is a folder with README.md, example.py, manifest.json and, by layout:

    imagefolder   train/{folder}/{k}.png, train/metadata.jsonl (file_name, label, weight, soft_label, soft_logit)
    hdf5          distilled.h5: images [N, 3, R, R], labels [N], weights [N], soft_labels [N, C], soft_logits [N, C]
    webdataset    train-{shard}.tar: of each image png, cls, json (weight), npy (the soft label) and logits.npy
    parquet       data/train-{shard}-of-{shards}.parquet: image (PNG), label, weight, soft_label, soft_logit

The N = C K images are sorted by class, K of each. manifest.json names the classes and holds a digest of each array, so that
whatever was changed since the export is noticed. All paths are made here, none is taken from the data; nothing is unpickled.
The files of a coded set (`wmdd.stages.coded`) are its own: .webp in an imagefolder, WebP in parquet; the other layouts have the
pixels that these show. Version 1 had no soft logits, its imagefolder a metadata.csv beside train/, and its distilled.h5 what
wmdd's artifacts have. Version 3 is of sets with pictures in another format than PNG, or of which an epoch shows a part; others
are written as version 2.
"""

import json
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from wmdd.artifacts.atomic_files import SEAL, check_file, seal_of
from wmdd.artifacts.hdf5 import Artifact
from wmdd.base.errors import WmddError, first_mistake

Layout = Literal["imagefolder", "hdf5", "webdataset", "parquet"]
MANIFEST, CARD, EXAMPLE = "manifest.json", "README.md", "example.py"
PICTURES, ARRAYS = "train", "distilled.h5"
TABLE, TABLE_OF_VERSION_1 = f"{PICTURES}/metadata.jsonl", "metadata.csv"
_FILES: dict[Layout, str] = {  # that hold the images, as a pattern
    "imagefolder": f"{PICTURES}/*/*.",  # and the format
    "hdf5": ARRAYS,
    "webdataset": "train-*.tar",
    "parquet": "data/train-*.parquet",
}
AGAIN = "export the set again"
_Positive = Annotated[int, Field(gt=0)]
_Channels = tuple[float, float, float]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Class(_Section):
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


class SoftLabels(_Section):
    """Which soft labels were averaged, and how; or that they are those that the method learned (store: learned)."""

    temperature: float
    epochs: int
    store: str
    mix: str
    digest: str


class Lost(_Section):
    """What 8 bits lose of float images, as counts of values (3 R^2 of an image)."""

    clipped: int = Field(description="below 0 or above 1")
    rounded: int = Field(description="in [0, 1], but no multiple of 1/255")


class Manifest(_Section):
    """What manifest.json says of an export."""

    kind: Literal["wmdd distilled set"] = "wmdd distilled set"
    version: Literal[1, 2, 3] = 2
    layout: Layout
    pixels: Literal["uint8", "float32"] = Field("uint8", description="float32: in unit scale, not only in [0, 1]")
    picture_format: Literal["png", "webp"] = Field(
        "png", description="of the pictures of an imagefolder, and in parquet"
    )
    images_per_epoch: _Positive | None = Field(None, description="of each class, where an epoch does not show all")
    lost: Lost | None = Field(None, description="of float images that were written as pictures")
    classes: tuple[Class, ...] = Field(min_length=1)
    images_per_class: _Positive
    resolution: _Positive
    mean: _Channels
    std: _Channels
    soft_labels: SoftLabels | None = None
    shards: _Positive = 1
    digests: dict[str, str] = {}
    made: dict[str, Any]

    def content(self) -> dict[str, Any]:
        """Return what manifest.json has: of version 2 without what it did not know."""
        content = self.model_dump(mode="json")
        added = {"picture_format": "png", "images_per_epoch": None}
        if any(content[name] != value for name, value in added.items()):
            return content | {"version": 3}
        return {name: value for name, value in content.items() if name not in added}

    @property
    def images(self) -> int:
        """How many images there are, N."""
        return len(self.classes) * self.images_per_class

    def pictures(self) -> list[str]:
        """Return the paths of the pictures in an imagefolder, in order."""
        names = [f"{k:05d}.{self.picture_format}" for k in range(self.images_per_class)]
        return [f"{PICTURES}/{c.folder}/{name}" for c in self.classes for name in names]

    @property
    def files(self) -> str:
        """The files that hold the images, as a pattern."""
        return _FILES[self.layout] + (self.picture_format if self.layout == "imagefolder" else "")

    def shard_files(self) -> list[str]:
        """Return the paths of the shards, in order."""
        if self.layout == "webdataset":
            return [f"train-{shard:06d}.tar" for shard in range(self.shards)]
        return [f"data/train-{shard:05d}-of-{self.shards:05d}.parquet" for shard in range(self.shards)]

    def array_names(self) -> list[str]:
        """Return the names of the arrays that the set has."""
        names = ["images", "labels", "weights"]
        if self.soft_labels:
            names += ["soft_labels"] if self.version == 1 else ["soft_labels", "soft_logits"]
        return names


def folder_names(classes: Sequence[str]) -> list[str]:
    """Return a safe folder for each class. Sorted by name they are in the order of the classes.

    So they are for torchvision's ImageFolder, which compares letters, and for timm, which compares numbers in names as numbers
    and takes no notice of capitals (timm/utils/misc.py, natural_key).

    They are the classes' own names where these do; else each is made safe and numbered.
    """
    safe = [re.sub(r"^\.|[^\w.-]", "_", name)[:80] for name in classes]
    distinct = len({name.casefold() for name in safe}) == len(safe)  # on disks that don't tell cases apart, too
    if safe == list(classes) and safe == sorted(safe) == sorted(safe, key=_natural) and all(safe) and distinct:
        return safe
    digits = len(str(len(safe) - 1))
    return [f"{index:0{digits}d}-{name}" for index, name in enumerate(safe)]


def _natural(name: str) -> list[str | int]:
    """Return what timm sorts folders by."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.lower())]


def manifest_classes(classes: Sequence[str], names: Sequence[str]) -> tuple[Class, ...]:
    """Return the classes of a manifest, of what the artifacts call them and their readable names."""
    rows = zip(folder_names(classes), classes, names, strict=True)
    return tuple(Class(index=i, folder=f, original=o, name=n) for i, (f, o, n) in enumerate(rows))


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an export.

    Raises:
        WmddError: there is none, or it isn't one.
    """
    path = folder / MANIFEST
    if path.exists():
        check_file(path, AGAIN)
    try:
        content = json.loads(path.read_text("utf-8"))
        if isinstance(content, dict) and content.pop(SEAL, None) not in (None, seal_of(content)):
            raise WmddError(f"{path} has changed since it was written; {AGAIN}")
        return Manifest.model_validate(content)
    except FileNotFoundError:
        remedy = "give the folder that `wmdd export` wrote"
        raise WmddError(f"{folder} has no {MANIFEST}, so it is no export; {remedy}") from None
    except ValidationError as error:
        raise WmddError(f"{path} is no manifest of an export ({first_mistake(error)}); {AGAIN}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise WmddError(f"{path} can't be read ({error}); {AGAIN}") from None


def soft_logits(soft_labels: np.ndarray, temperature: float) -> np.ndarray:
    r"""Return logits z [N, C] float32 with softmax(z / T) = p, for soft labels p [N, C]: z = T \log p, no p below 1.2e-38."""
    return np.float32(temperature) * np.log(np.maximum(soft_labels, np.finfo(np.float32).tiny, dtype=np.float32))


def digest(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's contents."""
    return sha256(np.ascontiguousarray(array).data).hexdigest()


def check_images(path: Path, file: Artifact) -> None:
    """Refuse an open artifact that is no images.h5 with all its classes.

    Raises:
        WmddError: says what it is instead.
    """
    shape: tuple[int, ...] = file["images"].shape if "images" in file else ()
    if len(shape) != 5 or "weights" not in file:
        raise WmddError(f"{path} is no distilled set; give the images.h5 of a run, or the folder of an export")
    classes = len(file.meta["classes"])
    if shape[0] != classes or file["weights"].shape != shape[:2]:
        raise WmddError(
            f"{path} has the images of {shape[0]} classes and weights of {file['weights'].shape[0]}, but names {classes} "
            "classes; give the images.h5 that joins all blocks"
        )


def provenance(meta: dict[str, Any]) -> dict[str, Any]:
    """Return of an artifact's meta data what made it, without what is said elsewhere."""
    left_out = (
        "classes",
        "names",
        "resolution",
        "mean",
        "std",
        "positions",
        "engine",
        "teacher_accuracy",
    )
    return {name: value for name, value in meta.items() if name not in left_out}
