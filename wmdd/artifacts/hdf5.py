"""Reading an HDF5 artifact: arrays, and `meta`, which says how it was made: settings, seeds, versions, classes, digests.

What is read is checked against the checksums that were written with it (`wmdd.artifacts.checksums`).
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wmdd.artifacts.atomic_files import check_file
from wmdd.artifacts.checksums import CHECKSUMS, SEAL, SIZE, Described, checksum_of, rows_of_block, seal_of
from wmdd.base.errors import WmddError, one_line

META = "meta"
LEARNED = "labels_learned"  # [C, K, C] of an images.h5: probabilities
AGAIN = "delete it and run again to rebuild it"
MOST = 1100  # times what an array takes in the file; gzip makes it 1,032 times as small at most
SMALL = 2**24  # bytes that an array may have whatever it takes in the file

Arrays = dict[str, np.ndarray]


class Meta(dict[str, Any]):
    """The meta data of the file `path`; asking for what it does not say names the file."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise WmddError(f"{self.path} says nothing of its {key}, so it is of another stage or no artifact; {AGAIN}")


@contextmanager
def opened(path: Path, remedy: str = AGAIN) -> Iterator[h5py.File]:
    """Open any HDF5 file to read; `remedy` says what to do where it is damaged.

    Raises:
        WmddError: it is missing, locked, not to be read, no file or cut short.
    """
    check_file(path, "run the stage that makes it first")
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        if "unable to lock file" in str(error):
            raise WmddError(
                f"{path} is locked by a process that writes it; wait, or set HDF5_USE_FILE_LOCKING=FALSE"
            ) from None
        raise WmddError(f"{path} is not a whole HDF5 file ({one_line(error)}); {remedy}") from None
    with file:
        try:
            yield file
        except OSError as error:
            if error.errno is not None:  # not of HDF5, which has none once the file is open
                raise
            raise WmddError(f"{path} is damaged ({error}); {remedy}") from None


@contextmanager
def damage(path: Path, remedy: str = AGAIN) -> Iterator[None]:
    """Turn what h5py and JSON raise on damaged files into one line."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, RuntimeError, KeyError) as error:
        raise WmddError(f"{path} is damaged ({one_line(error)}); {remedy}") from None


def dataset_of(path: Path, file: h5py.File, name: str, remedy: str = AGAIN) -> h5py.Dataset:
    """Return an array that lies in the file itself and is no larger than the file can hold.

    Raises:
        WmddError: there is none of that name, or its content lies elsewhere (links, external and virtual storage).
    """
    for end in range(1, len(parts := name.strip("/").split("/")) + 1):
        link = file.get("/".join(parts[:end]), getlink=True)
        if link is not None and not isinstance(link, h5py.HardLink):
            raise WmddError(f"{name} of {path} is a link, which is not followed; write the array into the file")
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset):
        raise WmddError(f"{path} lacks {name}; {remedy}")
    if dataset.external or dataset.is_virtual:
        raise WmddError(f"{name} of {path} lies in other files, which are not read; write the array into the file")
    if dataset.nbytes > max(SMALL, MOST * dataset.id.get_storage_size()):
        size = dataset.id.get_storage_size()
        raise WmddError(f"{name} of {path} claims {dataset.nbytes:,} bytes, of which the file has {size:,}; {remedy}")
    return dataset


class Array:
    """An array of an artifact, read as one of h5py is. What is read is checked, each block of rows once.

    Attributes:
        path: of the file.
        name: of the array.
    """

    def __init__(self, path: Path, name: str, dataset: h5py.Dataset, checksums: np.ndarray | None) -> None:
        self.path, self.name = path, name
        self._dataset, self._checksums = dataset, checksums
        self.shape, self.dtype = tuple(dataset.shape), dataset.dtype
        self.ndim, self.nbytes = len(self.shape), int(dataset.nbytes)
        self._rows = rows_of_block(self.dtype, self.shape[1:])
        self._checked = np.zeros(0 if checksums is None else len(checksums), bool)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        """Return a part, as h5py does: `[()]` is all of it.

        Raises:
            WmddError: it is damaged, or has changed since it was written.
        """
        try:
            return self._part(key)
        except RuntimeError as error:  # of HDF5
            raise WmddError(f"{self.name} of {self.path} is damaged ({one_line(error)}); {AGAIN}") from None

    def _part(self, key: Any) -> Any:
        if self._checksums is None or self._checked.all():
            return self._dataset[key]
        rows, rest = (key[0], key[1:]) if isinstance(key, tuple) and key else (key, ())
        wanted = self._consecutive(rows)
        if self.ndim == 0 or wanted is None:
            for block in self._blocks(rows):
                self._check(block, *self._read(block, block))
            return self._dataset[key]
        if not wanted:
            return self._dataset[key]
        values, first = self._read(wanted[0] // self._rows, wanted[-1] // self._rows)
        for block in range(wanted[0] // self._rows, wanted[-1] // self._rows + 1):
            self._check(block, values, first)
        part = slice(wanted[0] - first, wanted[-1] + 1 - first, wanted.step)
        return values[(part if isinstance(rows, slice) or _is_all(rows) else part.start, *rest)]

    def __iter__(self) -> Iterator[Any]:
        return (self[row] for row in range(len(self)))

    def _consecutive(self, rows: Any) -> range | None:
        """Return the rows of a number or a rising slice; None of any other key."""
        if _is_all(rows):
            return range(len(self)) if self.ndim else None
        if isinstance(rows, slice):
            chosen = range(len(self))[rows]
            return chosen if chosen.step > 0 else None
        if isinstance(rows, int | np.integer) and -len(self) <= rows < len(self):
            return range(rows % len(self), rows % len(self) + 1)
        return None

    def _blocks(self, rows: Any) -> list[int]:
        """Return the blocks that hold the rows of a list of them, or (of any other key) all blocks."""
        if self.ndim == 0 or not isinstance(rows, list | np.ndarray):
            return list(range(len(self._checked)))
        index = np.asarray(rows)
        index = np.flatnonzero(index) if index.dtype == bool else index % len(self)
        return np.unique(index // self._rows).tolist()

    def _read(self, first: int, last: int) -> tuple[np.ndarray, int]:
        """Return the rows of blocks first to last, and the number of the first of these rows."""
        if self.ndim == 0:
            return np.atleast_1d(self._dataset[()]), 0
        return self._dataset[first * self._rows : (last + 1) * self._rows], first * self._rows

    def _check(self, block: int, values: np.ndarray, first: int) -> None:
        """Check a block, if it is not yet, whose rows lie among values of rows from `first` on."""
        if self._checked[block] or self._checksums is None:
            return
        begin = block * self._rows - first
        if checksum_of(values[begin : begin + self._rows]) != self._checksums[block].tobytes():
            raise WmddError(f"{self.name} of {self.path} has changed since it was written; {AGAIN}")
        self._checked[block] = True


def _is_all(key: Any) -> bool:
    return key is Ellipsis or (isinstance(key, tuple) and key == ()) or (isinstance(key, slice) and key == slice(None))


class Artifact:
    """An open HDF5 artifact.

    Attributes:
        path: of the file.
        meta: what it says of itself, with its digest.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path, self._file = path, file
        text = bytes(dataset_of(path, file, META)[()].tobytes())
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("its meta data are no mapping")
        self.meta = Meta(path, content | {"digest": str(file.attrs["digest"])})
        self._checksums: dict[str, np.ndarray | None]
        if SEAL in file.attrs:
            self._checksums = {**self._sealed(text)}
        else:
            self._checksums = dict.fromkeys(self._names())
            print(
                f"warning: {path} has no checksums, as an earlier version wrote it; it is not checked", file=sys.stderr
            )

    def _sealed(self, meta: bytes) -> dict[str, np.ndarray]:
        """Return the checksums of each array, once the seal is seen to be theirs."""
        checksums = {
            name: dataset_of(self.path, self._file, f"{CHECKSUMS}/{name}")[()] for name in self._names(CHECKSUMS)
        }
        arrays = {}
        for name, blocks in checksums.items():
            dataset = dataset_of(self.path, self._file, name)
            rows = rows_of_block(dataset.dtype, dataset.shape[1:])
            expected = -(-dataset.shape[0] // rows) if dataset.shape else 1
            if blocks.shape != (expected, SIZE):
                raise ValueError(f"{name} has {len(blocks)} checksums instead of {expected}")
            arrays[name] = Described(dataset.dtype, tuple(dataset.shape), blocks)
        if seal_of(self.meta["digest"], meta, arrays) != self._file.attrs[SEAL]:
            raise ValueError("what it says of itself has changed since it was written")
        return checksums

    def _names(self, group: str = "/") -> list[str]:
        names: list[str] = []
        if isinstance(folder := self._file.get(group), h5py.Group):
            folder.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        return names

    @property
    def names(self) -> list[str]:
        """The names of its arrays, in order."""
        return sorted(self._checksums.keys() - {META})

    def __contains__(self, name: str) -> bool:
        return name in self._checksums

    def __getitem__(self, name: str) -> Array:
        """Return an array.

        Raises:
            WmddError: it lacks the array.
        """
        if name not in self._checksums:
            raise WmddError(f"{self.path} lacks {name}; {AGAIN}")
        return Array(self.path, name, dataset_of(self.path, self._file, name), self._checksums[name])


@contextmanager
def reading(path: Path, *needed: str) -> Iterator[Artifact]:
    """Open an HDF5 artifact that has the needed arrays.

    Raises:
        WmddError: it is missing, damaged, changed, not an artifact of this package, or lacks an array.
    """
    with opened(path) as file:
        if not is_artifact(file):
            raise WmddError(f"{path} was not written by wmdd (no provenance); {AGAIN}")
        artifact = artifact_in(path, file)
        missing = sorted(name for name in needed if name not in artifact)
        if missing:
            raise WmddError(f"{path} lacks {', '.join(missing)}; {AGAIN}")
        yield artifact


def artifact_in(path: Path, file: h5py.File) -> Artifact:
    """Return the artifact of an open file.

    Raises:
        WmddError: it is damaged, or has changed since it was written.
    """
    with damage(path):
        return Artifact(path, file)


def is_artifact(file: h5py.File) -> bool:
    """Return whether this package wrote the file.

    Raises:
        WmddError: it is damaged.
    """
    with damage(Path(file.filename)):
        return META in file and "digest" in file.attrs


def load(path: Path, *names: str) -> tuple[Arrays, Meta]:
    """Read the named arrays (all of them when none is named) and the meta data, with the digest added to it."""
    with reading(path, *names) as file:
        return {name: file[name][()] for name in names or file.names}, file.meta


def load_meta(path: Path) -> Meta:
    """Read the meta data alone."""
    with reading(path) as file:
        return file.meta


def learned_labels(path: Path, file: Artifact) -> np.ndarray | None:
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


def checked_weights(path: Path, weights: np.ndarray) -> np.ndarray:
    """Return the weights [C, K] of the images or atoms of a file.

    Raises:
        WmddError: one is negative or no number, or all of a class are 0.
    """
    for label, row in enumerate(weights):
        if not (np.isfinite(row).all() and (row >= 0).all() and row.sum() > 0):
            raise WmddError(
                f"the weights of class {label} in {path} are {row.min():g} to {row.max():g}; they must be numbers, none "
                "negative and not all 0: make the file again"
            )
    return weights


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
