"""Files that get their name when they are whole; text and JSON; one line for a disk that is full or read-only."""

import errno
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from wmdd.base.errors import WmddError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
        raise (write_error(path, error, part) or error) from None
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
        raise (write_error(path, error) or error) from None


def write_error(path: Path, error: Exception, part: Path | None = None) -> WmddError | None:
    """Return the one line for an error of writing `path`, through the file `part`; None if it is of another kind."""
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        error = error.__context__  # torch.save trips over what Python said first
    text = str(error)
    if getattr(error, "errno", None) in DISK_FULL or any(
        f"errno = {n}" in text or os.strerror(n) in text for n in DISK_FULL
    ):
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


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's contents.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
