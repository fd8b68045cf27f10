"""A published archive arrives whole and with the right checksum, or one line says what to fetch by hand.

A download that was cut off goes on where it stopped, also in a later run. A file that is there already is checked and kept.
"""

import errno
import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from wmdd.artifacts.atomic_files import DISK_FULL
from wmdd.base.errors import WmddError, one_line
from wmdd.base.progress import progress
from wmdd.datasets.class_files import reading
from wmdd.settings.catalogue import Archive

CHUNK = 2**20
ATTEMPTS = 5  # to get the rest of a file whose connection broke
TIMEOUT = 30  # seconds without an answer, or without another byte
RETRY = Retry(total=4, backoff_factor=1, status_forcelist=(429, 500, 502, 503, 504), raise_on_status=False)


class _CutShortError(Exception):
    """The connection ended before the file did."""


def fetch(archive: Archive, root: Path, allowed: bool) -> Path:
    """See to it that an archive is in `root`, with its size and checksum, and return its path.

    Args:
        archive: what to fetch.
        root: the folder it is put in, made where it is not there.
        allowed: whether it may be downloaded when it is not there.

    Raises:
        WmddError: it can't be had; says what to fetch by hand and where to put it. A download with a wrong checksum is
            deleted, a file that was there before is not.
    """
    path = root / archive.name
    if path.exists():
        if fault := _fault(path, archive):
            raise WmddError(f"{path} {fault}; delete or move it, then run again, or {by_hand(archive, root)}")
        return path
    if not archive.url:
        raise WmddError(f"{path} does not exist; {by_hand(archive, root)}")
    if not allowed:
        raise WmddError(f"{path} does not exist and data.download is off; {by_hand(archive, root)}, or switch it on")
    with _writing(path, archive), _opened_alone(root / f"{archive.name}.part") as file:
        if not path.exists():  # no other job has made it meanwhile
            _complete(file, archive, root)
            part = Path(file.name)
            if fault := _fault(part, archive):
                part.unlink()
                remedy = f"it was deleted: run again, or {by_hand(archive, root)}"
                raise WmddError(f"what was downloaded from {archive.url} {fault}; {remedy}")
            part.replace(path)
    return path


def by_hand(archive: Archive, root: Path) -> str:
    """Return what to tell a user who has to fetch an archive."""
    kind, digest = archive.checksum
    checksum = f" ({'SHA-256' if kind == 'sha256' else 'MD5'} {digest})" if kind else ""
    return f"fetch {archive.url or archive.name}{checksum} by hand and put it at {root / archive.name}"


def _fault(path: Path, archive: Archive) -> str:
    """Return what is wrong with a file, nothing if it is the archive."""
    size = path.stat().st_size
    if archive.size and size != archive.size:
        return f"has {size:,} bytes where {archive.size:,} are published"
    kind, digest = archive.checksum
    with reading(path), path.open("rb") as file:
        actual = hashlib.file_digest(file, kind).hexdigest() if kind else digest
    return "" if actual == digest else f"has a wrong checksum ({kind} {actual})"


@contextmanager
def _writing(path: Path, archive: Archive) -> Iterator[None]:
    """Turn what goes wrong with the disk into one line."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            whole = f" ({archive.size:,} bytes in all)" if archive.size else ""
            remedy = f"free some space and run again, which goes on where it stopped{whole}"
            raise WmddError(f"disk full (or file size limit reached) while writing {path}; {remedy}") from None
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            raise WmddError(f"cannot write {path}: a file stands where a folder is needed; correct data.root") from None
        remedy = f"choose another data.root or change its permissions, or {by_hand(archive, path.parent)}"
        raise WmddError(f"cannot write {path} ({error.strerror}); {remedy}") from None


@contextmanager
def _opened_alone(part: Path) -> Iterator[BinaryIO]:
    """Open a file to append to it, once no other job of this machine does; it does not stay when it is empty."""
    try:
        with part.open("ab") as file:
            with suppress(OSError):  # file systems that know no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield file
    finally:
        with suppress(OSError):  # it has got its name
            if not part.stat().st_size:
                part.unlink()


def _complete(file: BinaryIO, archive: Archive, root: Path) -> None:
    """Append to a file what it lacks."""
    adapter = HTTPAdapter(max_retries=RETRY)
    with requests.Session() as session:
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _append(file, archive, session)
                file.flush()
                return
            except (_CutShortError, requests.RequestException) as error:
                if attempt == ATTEMPTS or not isinstance(error, _CutShortError):
                    kept = f"run again to go on after {file.tell():,} bytes, or " if file.tell() else ""
                    message = f"cannot download {archive.url} ({_brief(error)}); {kept}{by_hand(archive, root)}"
                    raise WmddError(message) from None


def _append(file: BinaryIO, archive: Archive, session: requests.Session) -> None:
    done = file.tell()
    if done and done == archive.size:
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with session.get(archive.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code != 416:
            response.raise_for_status()
        rest = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        if done and not rest:  # there is none, or the server sends all of it again
            file.seek(0)
            file.truncate()
            done = 0
        if response.status_code == 416:
            raise _CutShortError("the server has no more than a part that was here")
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdecimal() else archive.size
        if archive.size and total != archive.size:
            raise requests.RequestException(f"it has {total:,} bytes there where {archive.size:,} were published")
        if shutil.disk_usage(Path(file.name).parent).free < total - done:
            raise OSError(errno.ENOSPC, "too little space")
        chunks = response.raw.stream(CHUNK, decode_content=False)  # .tar.gz as it is, whatever the server calls it
        try:
            for chunk in progress(chunks, f"fetching {archive.name}", -(-total // CHUNK) or None, done // CHUNK, "MiB"):
                if archive.size and file.tell() + len(chunk) > archive.size:
                    file.truncate(0)
                    raise requests.RequestException(
                        f"it sends more than the {archive.size:,} bytes that were published"
                    )
                file.write(chunk)
        except urllib3.exceptions.HTTPError as error:
            reason = f"the connection broke at {file.tell():,} of {total:,} bytes: {_brief(error)}"
            raise _CutShortError(reason) from None


def _brief(error: Exception) -> str:
    """Return the innermost reason of an error of requests or urllib3, in one line."""
    reason = getattr(error, "reason", None)
    inner = reason if isinstance(reason, Exception) else next(iter(error.args), None)
    return _brief(inner) if isinstance(inner, Exception) else one_line(error)
