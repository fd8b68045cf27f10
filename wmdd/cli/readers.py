"""What several commands read of artifacts, and whether artifacts belong together; nothing here needs torch."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from wmdd.artifacts import hdf5
from wmdd.artifacts.atomic_files import read_json
from wmdd.artifacts.hdf5 import Meta
from wmdd.artifacts.model_files import load_meta
from wmdd.base.errors import WmddError
from wmdd.jobs.job import cost_path

PER_EPOCH = "images_per_epoch"  # of the meta data of an images.h5: images of each class that an epoch shows, if not all

CODED = "coded"  # of the meta data of an images.h5: the format and the bytes of its files, where it is coded


def images_per_epoch(meta: Meta, held: int) -> int:
    """Return how many of the `held` images of a class an epoch shows.

    Raises:
        WmddError: the set says that it shows more than it holds, or none.
    """
    shown = meta.get(PER_EPOCH, held)
    if shown not in range(1, held + 1):
        raise WmddError(f"{meta.path} holds {held} images of each class but shows {shown} an epoch; make it again")
    return int(shown)


def data_facts(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return what every artifact says of the data it comes from."""
    grey = {"grey": True} if meta.get("grey") else {}
    return {name: meta[name] for name in ("classes", "names", "resolution", "mean", "std")} | grey


def numbered(metas: Iterable[Meta]) -> dict[str, Meta]:
    """Return inputs that have no name but their number."""
    return {str(number): meta for number, meta in enumerate(metas)}


def read_meta(path: Path) -> Meta:
    """Read what an artifact says of itself: HDF5 or safetensors."""
    return load_meta(path) if path.suffix == ".safetensors" else hdf5.load_meta(path)


def block_classes(block: str, classes: list[str]) -> range:
    """Return the classes of a block named `classes{first}-{last}`.

    Raises:
        WmddError: the classes have no such block.
    """
    match = re.fullmatch(r"classes(\d+)-(\d+)", block)
    if match is None or not int(match[1]) <= int(match[2]) < len(classes):
        raise WmddError(f"there is no block {block!r}; name the classes as in classes0-{len(classes) - 1}")
    return range(int(match[1]), int(match[2]) + 1)


def check_teacher(path: Path, meta: Meta, teacher: Path, teacher_meta: Meta) -> None:
    """Refuse features, or statistics, of another teacher.

    Raises:
        WmddError: names both files.
    """
    if meta["inputs"]["teacher"] != teacher_meta["digest"]:
        raise WmddError(f"{path} is of another teacher than {teacher}; run the features stage again")


@contextmanager
def reading_features(path: Path, teacher: Path, teacher_meta: Meta) -> Iterator[tuple[hdf5.Artifact, Meta]]:
    """Open the features of a teacher; yield the file, which has `features` [N, D] and `labels` [N], and its meta data."""
    with hdf5.reading(path, "features", "labels") as file:
        meta = file.meta
        check_teacher(path, meta, teacher, teacher_meta)
        yield file, meta


def read_nearest(path: Path, images: Meta, data: Meta) -> list[list[int]]:
    """Read which training image is nearest to each image of a set, as its row in the data, [C][K].

    Raises:
        WmddError: the distances are of other images or other data, or of an earlier version.
    """
    content = read_json(path)
    if "nearest" not in content:
        raise WmddError(f"{path} does not say which real images are nearest; delete it and run again")
    for name, meta, digest in (
        ("images", images, content.get("inputs", {}).get("images")),
        ("data", data, content.get("roots", {}).get("data")),
    ):
        if digest != meta["digest"]:
            raise WmddError(f"{path} is of other {name} than {meta.path}; run the distance stage again")
    return [list(map(int, rows)) for rows in content["nearest"]]


def read_quality(path: Path) -> tuple[dict[str, np.ndarray], list[float]]:
    """Read how good the barycenters of a block are, and the seconds of each from the cost file beside it."""
    with hdf5.reading(path) as file:
        quality = {name.removeprefix("quality/"): file[name][()] for name in file.names if name.startswith("quality/")}
    if not quality:
        raise WmddError(f"{path} lacks the quality of its barycenters; delete it and run again to rebuild it")
    return quality, read_json(cost_path(path)).get("seconds_per_class", [float("nan")])
