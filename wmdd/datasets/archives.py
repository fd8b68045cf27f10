"""Archives of tar and zip become folders, whole or not at all.

Their checksums are the published ones (`wmdd.datasets.download`). Even so nothing is written outside of the folder: `tarfile`
refuses such members (PEP 706), `zipfile` strips their names. Nothing that grows beyond what its compression can do is unpacked.
"""

import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any, Self

from wmdd.artifacts.atomic_files import DISK_FULL
from wmdd.base.errors import WmddError, one_line
from wmdd.base.progress import progress

MOST = 1100  # times the archive's bytes; deflate makes a file 1,032 times as small at most
DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile, lzma.LZMAError, EOFError,
    NotImplementedError, RuntimeError,  # a zip's compression that Python has not, or a password
    IndexError, ValueError, OverflowError,  # names and numbers in a damaged header
)  # fmt: skip


class StrictTarInfo(tarfile.TarInfo):
    """A header that must be whole: `tarfile` takes a damaged one, and a missing end, for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # which is the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive whose top folder has the name of `folder` to there.

    Raises:
        WmddError: it is damaged, lacks that folder, has members that would lie outside of it or are devices, or the disk
            is full; names the archive. Nothing is left then.
    """
    prefix = f".{folder.name}.unpacking."
    try:
        with TemporaryDirectory(dir=folder.parent, prefix=prefix, ignore_cleanup_errors=True) as part:
            _extract(archive, Path(part))
            _place(Path(part, folder.name), folder, archive)
    except tarfile.FilterError as error:
        raise WmddError(f"{archive} is not safe to unpack ({error}); fetch it from where it was published") from None
    except DAMAGED as error:
        raise WmddError(f"{archive} is damaged ({one_line(error)}); delete it and run again to fetch it anew") from None
    except OSError as error:
        if error.errno in DISK_FULL:
            remedy = "free some space and run again: nothing half-written was left"
            message = f"disk full (or file size limit reached) while unpacking {archive} to {folder}"
            raise WmddError(f"{message}; {remedy}") from None
        reason = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        raise WmddError(f"cannot unpack {archive} to {folder} ({reason}); check the permissions there") from None
    for abandoned in folder.parent.glob(f"{prefix}*"):  # by jobs that were killed
        rmtree(abandoned, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    what = f"unpacking {archive.name}"
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as zipped:
            members = list(_bounded(zipped.infolist(), archive))
            zipped.extractall(folder, progress(members, what, unit="files"))
    else:
        with tarfile.open(archive, tarinfo=StrictTarInfo) as tar:
            tar.extractall(folder, progress(_bounded(tar, archive), what, unit="files"), filter="data")


def _bounded(members: Iterable[Any], archive: Path) -> Iterator[Any]:
    """Yield the members of an archive, as long as it can hold them.

    Raises:
        TarError: it can't: one is sparse, or they are larger than compression explains.
    """
    room = MOST * archive.stat().st_size
    for member in members:
        room -= getattr(member, "size", 0) or getattr(member, "file_size", 0)
        if room < 0 or (isinstance(member, tarfile.TarInfo) and member.issparse()):
            name = getattr(member, "name", "") or getattr(member, "filename", "")
            raise tarfile.TarError(f"{name} claims to be larger than the archive can hold")
        yield member


def _place(content: Path, folder: Path, archive: Path) -> None:
    if not content.is_dir():
        remedy = "it is not the archive that is expected here: delete it and run again to fetch it anew"
        raise WmddError(f"{archive} holds no folder {content.name}; {remedy}")
    try:
        content.replace(folder)
    except OSError:
        if not folder.is_dir():  # else another job has been faster
            raise
