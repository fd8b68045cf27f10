"""Files on disk: written whole or not at all, read with one clear line when they can't be, and never unpickled.

Every HDF5 artifact holds arrays, a dataset `meta` (JSON: settings, seeds, versions, class manifest, digests of the inputs:
see `wmdd.job`) and an attribute `digest` (SHA-256 of the arrays), by which later artifacts name it.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from wmdd.base.errors import WmddError

META = "meta"
LEARNED = "labels_learned"  # [C, K, C] of an images.h5: probabilities
CHUNK = 2**20  # bytes that are read and written at once in an array that grows
Arrays = dict[str, np.ndarray]
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it, on failure remove it.

    Its name carries host and process, so that jobs that make the same file at once, wherever they are, don't meet.

    Raises:
        WmddError: the disk is full, the folder can't be written, or another job removed what was being written.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
        _flush_folder(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise (_write_error(path, error, part) or error) from None
    finally:
        with suppress(OSError):  # not there, or its folder is not
            part.unlink()


def _flush_folder(folder: Path) -> None:
    """Bring the names in a folder to disk, where a file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def make_room(path: Path) -> None:
    """Make the folder of an output, so that a place that can't be written is known before hours of work.

    Raises:
        WmddError: it can't be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            raise PermissionError
    except OSError as error:
        raise (_write_error(path, error) or error) from None


def _write_error(path: Path, error: Exception, part: Path | None = None) -> WmddError | None:
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        error = error.__context__  # torch.save trips over what Python said first
    text = str(error)
    if getattr(error, "errno", None) in _FULL or any(f"errno = {n}" in text or os.strerror(n) in text for n in _FULL):
        return WmddError(
            f"disk full (or file size limit reached) while writing {path}; free some space and run again: "
            "nothing half-written was left and finished files are kept"
        )
    if isinstance(error, PermissionError) or f"errno = {errno.EACCES}" in text or "Permission denied" in text:
        return WmddError(f"no permission to write {path}; choose another folder or change its permissions")
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return WmddError(f"cannot write {path}: a file stands where a folder is needed ({error.filename})")
    if isinstance(error, IsADirectoryError):
        return WmddError(f"cannot write {path}: a folder of that name is in the way; move it")
    if part is not None and _is_gone(error, part):
        return WmddError(
            f"cannot write {path}: another job, or a person, removed what was being written; run again (of jobs that make "
            "the same file, any may finish it)"
        )
    return None


def _is_gone(error: Exception, part: Path) -> bool:
    """Return whether the file that was being written, or its folder, is there no more."""
    if getattr(error, "errno", None) == errno.ESTALE:  # as network file systems put it
        return True
    named = getattr(error, "filename", None) == str(part) or not isinstance(error, OSError)
    return named and "No such file or directory" in str(error)


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

    @classmethod
    def of(cls, array: np.ndarray) -> "_Content":
        found = cls(array.dtype, array.shape[1:], array.ndim == 0)
        found.add(array.reshape(-1, *array.shape[1:]))
        return found

    def add(self, rows: np.ndarray) -> None:
        self.rows += len(rows)
        if rows.size:
            self.total.update(np.asarray(rows, order="C").data)

    def describe(self, name: str) -> str:
        shape = () if self.scalar else (self.rows, *self.row)
        return f"{name} {self.dtype} {shape} {self.total.hexdigest()}\n"


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
        data.resize(len(data) + ready, axis=0)
        data[len(data) - ready :] = rows[:ready]
        self._sink.check()

    def finish(self) -> None:
        """Write what is left, the meta data and the digest."""
        for name in self._pending:
            self._flush(name, all_of_it=True)
        text = json.dumps(dict(self.meta), sort_keys=True)
        self._file[META] = np.frombuffer(text.encode(), np.uint8)  # too large for an attribute
        self._file.attrs["digest"] = _digest_of_parts(self._contents)


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """Write an HDF5 artifact by pieces; it appears under its name when it is whole.

    Raises:
        WmddError: the disk is full, or the folder can't be written.
    """
    with atomic(path) as part, part.open("w+b") as raw:
        sink = _Sink(raw)
        file = h5py.File(sink, "w")
        try:
            writer = Writer(file, sink, part.parent)
            yield writer
            writer.finish()
        except BaseException:
            with suppress(Exception):
                file.close()
            raise
        file.close()
        sink.check()


def save(path: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], chunked: tuple[str, ...] = ()) -> None:
    """Write an HDF5 artifact. The arrays named in `chunked` are compressed in chunks of one row."""
    with writing(path) as writer:
        writer.meta = meta
        for name in sorted(arrays):
            if name in chunked:
                writer.append(name, np.asarray(arrays[name]), compressed=True)
            else:
                writer.put(name, arrays[name])


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
        reason = " ".join(str(error).split())
        raise WmddError(f"{path} is not a whole HDF5 file ({reason}); delete it and run again to rebuild it") from None
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
        found: list[str] = []
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        found.remove(META)
        return {name: file[name][()] for name in names or found}, meta_of(file)


def load_meta(path: Path) -> dict[str, Any]:
    """Read the meta data alone."""
    with reading(path) as file:
        return meta_of(file)


def meta_of(file: h5py.File) -> dict[str, Any]:
    """Return the meta data of an open artifact, with the digest added to it."""
    return dict(json.loads(file[META][()].tobytes()), digest=str(file.attrs["digest"]))


def save_model(path: Path, state: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
    """Write a network as safetensors; the meta data stand in one JSON field, so that equal content is equal bytes."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    digest = digest_of({name: value.numpy() for name, value in tensors.items()})
    with atomic(path) as part:
        save_file(tensors, part, metadata={"wmdd": json.dumps(dict(meta, digest=digest), sort_keys=True)})


def load_model(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a network and its meta data.

    Raises:
        WmddError: it is missing, damaged, or was not written by this package.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("wmdd", ""))
            return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118
    except FileNotFoundError:
        raise WmddError(f"{path} does not exist; train the teacher first") from None
    except json.JSONDecodeError:
        raise WmddError(f"{path} was not written by wmdd (no provenance); delete it and run again") from None
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise WmddError(f"{path} is not a whole safetensors file ({reason}); delete it and run again") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic(path) as part:
        part.write_text(text)


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all, keys sorted."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        WmddError: it is missing, cut short or a folder.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise WmddError(f"{path} does not exist; run the stage that makes it first") from None
    except IsADirectoryError:
        raise WmddError(f"{path} is a folder; name a file in it") from None
    except (OSError, ValueError) as error:
        raise WmddError(f"{path} is not a whole JSON file ({error}); delete it and run again") from None


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
