"""Reading an HDF5 artifact: arrays, and `meta`, which says how it was made: settings, seeds, versions, classes, digests."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wmdd.base.errors import WmddError, one_line

META = "meta"
LEARNED = "labels_learned"  # [C, K, C] of an images.h5: probabilities

Arrays = dict[str, np.ndarray]


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open any HDF5 file to read.

    Raises:
        WmddError: it is missing or cut short.
    """
    try:
        file = h5py.File(path, "r", locking=False)
    except FileNotFoundError:
        raise WmddError(f"{path} does not exist; run the stage that makes it first") from None
    except OSError as error:
        raise WmddError(
            f"{path} is not a whole HDF5 file ({one_line(error)}); delete it and run again to rebuild it"
        ) from None
    with file:
        try:
            yield file
        except (OSError, json.JSONDecodeError) as error:
            if getattr(error, "errno", None) is not None:  # not of HDF5, which has none once the file is open
                raise
            raise WmddError(f"{path} is damaged ({error}); delete it and run again to rebuild it") from None


@contextmanager
def reading(path: Path, *needed: str) -> Iterator[h5py.File]:
    """Open an HDF5 artifact that has the needed arrays.

    Raises:
        WmddError: it is missing, cut short, not an artifact of this package, or lacks an array.
    """
    with opened(path) as file:
        if not is_artifact(file):
            raise WmddError(f"{path} was not written by wmdd (no provenance); delete it and run again to rebuild it")
        missing = sorted(name for name in needed if name not in file)
        if missing:
            raise WmddError(f"{path} lacks {', '.join(missing)}; delete it and run again to rebuild it")
        yield file


def is_artifact(file: h5py.File) -> bool:
    """Return whether this package wrote the file."""
    return META in file and "digest" in file.attrs


def load(path: Path, *names: str) -> tuple[Arrays, dict[str, Any]]:
    """Read the named arrays (all of them when none is named) and the meta data, with the digest added to it."""
    with reading(path, *names) as file:
        every: list[str] = []
        file.visititems(lambda name, item: every.append(name) if isinstance(item, h5py.Dataset) else None)
        every.remove(META)
        return {name: file[name][()] for name in names or every}, meta_of(file)


def load_meta(path: Path) -> dict[str, Any]:
    """Read the meta data alone."""
    with reading(path) as file:
        return meta_of(file)


def meta_of(file: h5py.File) -> dict[str, Any]:
    """Return the meta data of an open artifact, with the digest added to it."""
    return dict(json.loads(file[META][()].tobytes()), digest=str(file.attrs["digest"]))


def learned_labels(path: Path, file: h5py.File) -> np.ndarray | None:
    """Return the labels [N, C] float32 that the method of a distilled set learned, or None.

    Raises:
        WmddError: they are not those of its images and classes.
    """
    if LEARNED not in file:
        return None
    classes, k = file["weights"].shape
    if file[LEARNED].shape != (classes, k, classes):
        raise WmddError(
            f"{path} has labels {list(file[LEARNED].shape)} of {classes} classes of {k} images; make it again"
        )
    return np.asarray(file[LEARNED][()], np.float32).reshape(-1, classes)


def check_classes(expected: list[str], found: list[str], expected_from: str, found_from: str) -> None:
    """Refuse two artifacts whose classes differ in number, name or order.

    Raises:
        WmddError: names the first class that differs.
    """
    if len(expected) != len(found):
        raise WmddError(
            f"{found_from} has {len(found)} classes but {expected_from} has {len(expected)}; "
            "they do not belong together: rebuild one from the other's dataset"
        )
    for index, (a, b) in enumerate(zip(expected, found, strict=True)):
        if a != b:
            raise WmddError(f"class {index} is {a!r} in {expected_from} but {b!r} in {found_from}; rebuild one of them")
