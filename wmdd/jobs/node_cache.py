"""The copy of a dataset's file on the node's own disk, so that random reads don't load the file system that all nodes share.

WMDD_SCRATCH names a folder there; `~` and variables such as `$TMPDIR` are those of the job. Whatever is wrong with it, the
file itself is read, and one line says so. Nothing is ever deleted but what a killed copy left half-written.
"""

import fcntl
import glob
import hashlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wmdd.artifacts import atomic_files, hdf5
from wmdd.base import units
from wmdd.base.errors import WmddError, one_line
from wmdd.base.progress import progress

PIECE = 2**24  # bytes that are copied at once
BIG = 2**30  # bytes; copies of this size show how far they are


def staged(path: Path, make: bool = True) -> Path:
    """Return the copy of an artifact on this node, or `path` where there is none.

    Args:
        path: of the artifact.
        make: copy it if it is not there yet; else a copy is only used, which suits who reads little of the file.
    """
    scratch = os.environ.get("WMDD_SCRATCH")
    if not scratch:
        return path
    try:
        return _staged(path, Path(os.path.expandvars(os.path.expanduser(scratch))), make)
    except (OSError, WmddError) as error:
        print(f"WMDD_SCRATCH cannot be used ({one_line(error)}); {path} itself is read", file=sys.stderr, flush=True)
        return path


def _staged(path: Path, scratch: Path, make: bool) -> Path:
    folder = _own_folder(scratch)
    digest, size = _digest(path), path.stat().st_size
    copy = folder / f"{path.stem}-{digest[:32]}-{size}.h5"
    if _is_whole(copy, digest, size):
        return copy
    if not make:
        return path
    with _locked(folder):
        if not _is_whole(copy, digest, size):  # unless another process has made it meanwhile
            _copy(path, copy, size)
            if not _is_whole(copy, digest, size):
                raise OSError(f"{copy} is not what was copied")
    return copy


def _own_folder(scratch: Path) -> Path:
    """Return the user's folder, made if need be; never one that others made, or may write to, or that leads elsewhere.

    Raises:
        OSError: it is such a one, or can't be made.
    """
    if not scratch.is_absolute() or "$" in str(scratch):
        raise OSError(f"{scratch} is no absolute path")
    folder = scratch / f"wmdd-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise OSError(f"{folder} is a link, or others may write to it")
    return folder


def _digest(path: Path) -> str:
    """Return the SHA-256 of what an artifact says of itself: the digest of its arrays, and its meta data."""
    with hdf5.reading(path) as file:
        return hashlib.sha256(json.dumps(file.meta, sort_keys=True).encode()).hexdigest()


def _is_whole(copy: Path, digest: str, size: int) -> bool:
    if not copy.exists() or copy.stat().st_size != size:
        return False
    try:
        return _digest(copy) == digest
    except WmddError:
        return False


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process of the node copy at a time; the lock goes with the process."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for the process that copies to {folder}", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _copy(path: Path, copy: Path, size: int) -> None:
    """Copy a file; under its name it is whole.

    Raises:
        OSError: there is no room.
        WmddError: the disk became full meanwhile.
    """
    for remnant in copy.parent.glob(f".{glob.escape(copy.name)}.*.part"):  # of a killed job, as nobody else copies now
        remnant.unlink()
    free = shutil.disk_usage(copy.parent).free
    if free < size:
        raise OSError(f"{copy.parent} has {units.size(free) or 'nothing'} left, {path} has {units.size(size)}")
    print(f"copying {path} to {copy}", file=sys.stderr, flush=True)
    with atomic_files.atomic(copy) as part, path.open("rb") as source, part.open("wb") as target:
        pieces = iter(lambda: source.read(PIECE), b"")
        shown = progress(pieces, "copying", -(-size // PIECE), unit=f"{PIECE >> 20} MB") if size > BIG else pieces
        for piece in shown:
            target.write(piece)
