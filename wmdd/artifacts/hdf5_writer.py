"""Writing an HDF5 artifact: arrays, `meta` (JSON), checksums, and a digest (SHA-256 of the arrays) by which others name it."""

import errno
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from wmdd.artifacts.atomic_files import atomic
from wmdd.artifacts.checksums import CHECKSUMS, SEAL, Blocks, Described, seal_of
from wmdd.artifacts.hdf5 import META

CHUNK = 2**20  # bytes that are read and written at once in an array that grows


def digest_of(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 over names, types, shapes and contents."""
    return _digest_of_parts({name: _Content.of(np.asarray(array)) for name, array in arrays.items()})


@dataclass
class _Content:
    """What is known of an array that grows by rows: enough for its part of the digest."""

    dtype: np.dtype
    row: tuple[int, ...]  # shape of one row
    scalar: bool = False
    rows: int = 0
    total: Any = field(default_factory=hashlib.sha256)
    blocks: Blocks = field(init=False)

    def __post_init__(self) -> None:
        self.blocks = Blocks(self.dtype, self.row)

    @classmethod
    def of(cls, array: np.ndarray) -> "_Content":
        content = cls(array.dtype, array.shape[1:], array.ndim == 0)
        content.add(array.reshape(-1, *array.shape[1:]))
        return content

    def add(self, rows: np.ndarray) -> None:
        self.rows += len(rows)
        if rows.size:
            self.total.update(np.asarray(rows, order="C").data)
        self.blocks.add(rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return () if self.scalar else (self.rows, *self.row)

    def describe(self, name: str) -> str:
        return f"{name} {self.dtype} {self.shape} {self.total.hexdigest()}\n"


def _digest_of_parts(contents: Mapping[str, _Content]) -> str:
    text = "".join(contents[name].describe(name) for name in sorted(contents))
    return hashlib.sha256(text.encode()).hexdigest()


class _Sink:
    """The file that HDF5 writes to. Keeps the first failure to itself, because HDF5 cannot even close a file on a full disk."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None
        for name in ("read", "readinto", "seek", "tell"):
            setattr(self, name, getattr(file, name))

    def write(self, data: Any) -> int:
        self._try(self._file.write, data)
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        self._try(self._file.truncate, size)
        return size or 0

    def flush(self) -> None:
        self._try(self._file.flush)

    def check(self) -> None:
        """Raise what went wrong."""
        if self.error is not None:
            raise self.error

    def _try(self, act: Callable[..., Any], *arguments: Any) -> None:
        if self.error is None:
            try:
                act(*arguments)
            except OSError as error:
                self.error = error


class Writer:
    """An HDF5 artifact in the making: whole arrays are put, long ones appended by rows, so that memory stays bounded.

    `meta` is written at the end.
    """

    def __init__(self, file: h5py.File, sink: _Sink, folder: Path) -> None:
        self.meta: Mapping[str, Any] = {}
        self._file, self._sink, self._folder = file, sink, folder
        self._contents: dict[str, _Content] = {}
        self._pending: dict[str, list[np.ndarray]] = {}

    def reserve(self, size: int) -> None:
        """Refuse to begin what will not fit.

        Raises:
            OSError: the disk has less than `size` bytes left.
        """
        if shutil.disk_usage(self._folder).free < size:
            raise OSError(errno.ENOSPC, f"{size:,} bytes are needed")

    def put(self, name: str, array: np.ndarray) -> None:
        """Write a whole array.

        Raises:
            OSError: the disk is full.
        """
        array = np.asarray(array, order="C")
        self._file.create_dataset(name, data=array)
        self._contents[name] = _Content.of(array)
        self._sink.check()

    def append(self, name: str, rows: np.ndarray, compressed: bool = False) -> None:
        """Add rows [n, ...] to an array; stored in chunks of about `CHUNK` bytes, or of one row if compressed.

        Raises:
            OSError: the disk is full.
        """
        if name not in self._contents:
            self._begin(name, rows, compressed)
        self._contents[name].add(rows)
        self._pending[name].append(rows)
        self._flush(name)

    def _begin(self, name: str, rows: np.ndarray, compressed: bool) -> None:
        row, dtype = rows.shape[1:], rows.dtype
        chunk = 1 if compressed else max(1, CHUNK // max(1, dtype.itemsize * math.prod(row)))
        options = {"compression": "gzip"} if compressed else {}
        self._file.create_dataset(name, (0, *row), dtype, maxshape=(None, *row), chunks=(chunk, *row), **options)
        self._contents[name], self._pending[name] = _Content(dtype, row), []

    def _flush(self, name: str, all_of_it: bool = False) -> None:
        """Write whole chunks, so that none is written twice."""
        pending, data = self._pending[name], self._file[name]
        count = sum(map(len, pending))
        ready = count if all_of_it else count - count % data.chunks[0]
        if ready == 0:
            return
        rows = np.concatenate(pending)
        self._pending[name] = [rows[ready:].copy()]
        if all_of_it and len(data) == 0 and data.compression is None:  # less than a chunk, which would be padded
            del self._file[name]
            self._file.create_dataset(name, data=rows)
            return
        data.resize(len(data) + ready, axis=0)
        data[len(data) - ready :] = rows[:ready]
        self._sink.check()

    def finish(self) -> None:
        """Write what is left, the meta data, the digest, checksums and the seal."""
        for name in self._pending:
            self._flush(name, all_of_it=True)
        meta = json.dumps(dict(self.meta), sort_keys=True).encode()
        digest = _digest_of_parts(self._contents)
        arrays = {
            name: Described(content.dtype, content.shape, content.blocks.checksums())
            for name, content in self._contents.items()
        }
        self._file[META] = np.frombuffer(meta, np.uint8)  # too large for an attribute
        self._file.attrs["digest"] = digest
        for name, array in arrays.items():
            self._file[f"{CHECKSUMS}/{name}"] = array.checksums
        self._file.attrs[SEAL] = seal_of(digest, meta, arrays)


@contextmanager
def new_file(path: Path) -> Iterator[tuple[h5py.File, _Sink]]:
    """Open a new HDF5 file; `check` of its sink raises what went wrong with the disk, as does the end.

    Raises:
        OSError: the disk is full, or the folder can't be written.
    """
    with path.open("w+b") as raw:
        sink = _Sink(raw)
        file = h5py.File(sink, "w")
        try:
            yield file, sink
        except BaseException:
            with suppress(Exception):
                file.close()
            raise
        file.close()
        sink.check()


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """Write an HDF5 artifact by pieces; it appears under its name when it is whole.

    Raises:
        WmddError: the disk is full, or the folder can't be written.
    """
    with atomic(path) as part, new_file(part) as (file, sink):
        writer = Writer(file, sink, part.parent)
        yield writer
        writer.finish()


def save(path: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], chunked: tuple[str, ...] = ()) -> None:
    """Write an HDF5 artifact. The arrays named in `chunked` are compressed in chunks of one row."""
    with writing(path) as writer:
        writer.meta = meta
        for name in sorted(arrays):
            if name in chunked:
                writer.append(name, np.asarray(arrays[name]), compressed=True)
            else:
                writer.put(name, arrays[name])
