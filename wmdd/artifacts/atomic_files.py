"""Files that get their name when they are whole; text and JSON; one line for a disk that is full or read-only."""

import ctypes
import errno
import hashlib
import json
import os
import re
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from wmdd.base.errors import WmddError, one_line

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SEAL = "seal"  # of a JSON file: the SHA-256 of the rest of it
HOUR = 3600.0


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`; on success flush it to disk and rename it, on failure remove it.

    Its name carries host and process, so that jobs that make the same file at once, wherever they are, don't meet. Those that
    killed jobs left of the same file are removed. Its mode is the one that the umask gives.

    Raises:
        WmddError: the disk is full, the folder can't be written, or another job removed what was being written.
    """
    path = Path(path)
    part = _part(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path)
        part.touch()
        mode = stat.S_IMODE(part.stat().st_mode)
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
            if (
                stat.S_IMODE(os.fstat(written.fileno()).st_mode) != mode
            ):  # safetensors replaces the file by one of its own
                os.fchmod(written.fileno(), mode)
        part.replace(path)
        _flush_folder(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise (write_error(path, error, part) or error) from None
    finally:
        with suppress(OSError):  # not there, or its folder is not
            part.unlink()


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.{owner()}.part")


def owner() -> str:
    """Return the name of this process in those of its temporary files."""
    return f"{socket.gethostname()}.{os.getpid()}"


def owned_here(path: Path) -> int | None:
    """Return the process, if it is one of this machine, that a temporary file `.{name}.{host}.{pid}.{kind}` belongs to."""
    match = re.search(rf"\.{re.escape(socket.gethostname())}\.(\d+)\.\w+$", path.name)
    return int(match[1]) if match else None


def abandoned(path: Path) -> bool:
    """Return whether no job goes on with a temporary file: its process was on this machine and is gone, or it is an hour old.

    One of this process's own number was left by an earlier process of that number.
    """
    process = owned_here(path)
    if process is not None and (process == os.getpid() or not _runs(process)):
        return True
    try:
        return time.time() - path.stat().st_mtime > HOUR
    except OSError:  # gone already
        return True


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def remove_abandoned(path: Path) -> None:
    """Remove the half-written files of `path` that killed jobs left."""
    for part in path.parent.iterdir():
        if part.name.startswith(f".{path.name}.") and part.name.endswith(".part") and abandoned(part):
            with suppress(OSError):
                part.unlink()


def exchanged(first: Path, second: Path) -> bool:
    """Give two paths each other's content in one step, and return whether the system can (Linux, most local disks)."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(first), here, os.fsencode(second), swap) == 0


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
        with suppress(FileNotFoundError):
            _part(path).lstat()  # says whether the disk takes a name of that length
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
    if getattr(error, "errno", None) == errno.EROFS or os.strerror(errno.EROFS) in text:
        return WmddError(f"cannot write {path}: its disk is read-only; choose another folder")
    if getattr(error, "errno", None) == errno.ENAMETOOLONG:
        return WmddError(f"cannot write {path}: its name is too long for the disk; choose a shorter one")
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
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all, keys sorted; a mapping is sealed."""
    if isinstance(content, Mapping):
        content = {**content, SEAL: seal_of(content)}
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def seal_of(content: Mapping[str, Any]) -> str:
    """Return the seal of a mapping: by it `read_json` sees that the file is as it was written."""
    rest = {name: value for name, value in content.items() if name != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> Any:
    """Read JSON, without its seal; a file of an earlier version has none and is not checked.

    Raises:
        WmddError: it is missing, cut short, no file, or has changed since it was written.
    """
    check_file(path, "run the stage that makes it first")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WmddError(f"{path} is not a whole JSON file ({one_line(error)}); delete it and run again") from None
    if isinstance(content, dict) and SEAL in content:
        if content[SEAL] != seal_of(content):
            raise WmddError(f"{path} has changed since it was written; delete it and run again")
        del content[SEAL]
    return content


def check_file(path: Path, remedy: str) -> None:
    """Refuse what cannot be read as a file, before anything waits for it.

    Raises:
        WmddError: it is missing (`remedy` says what to do), a folder, a pipe or a device, or may not be read.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise WmddError(f"{path} does not exist; {remedy}") from None
    except OSError as error:
        raise WmddError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise WmddError(f"{path} is {kind}; name a file")
    if not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
        raise WmddError(f"no permission to read {path}; ask its owner for `chmod a+r`, or copy it")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's contents.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
