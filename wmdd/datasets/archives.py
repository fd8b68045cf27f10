"""Archives of tar and zip become folders, whole or not at all.

They come from the network: links, devices and names that leave the folder are refused, not passed over.
"""

import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Self

from wmdd.base.errors import WmddError, one_line
from wmdd.base.progress import progress
from wmdd.datasets.download import CHUNK, FULL

DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile, lzma.LZMAError, EOFError,
    NotImplementedError, RuntimeError,  # a zip's compression that Python has not, or a password
)  # fmt: skip


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive whose top folder has the name of `folder` to there.

    Raises:
        WmddError: it is damaged, lacks that folder, holds what it must not, or the disk is full; names the archive
            and the member. Nothing is left then.
    """
    at = ""  # the member in hand
    try:
        with TemporaryDirectory(dir=folder.parent, prefix=_prefix(folder), ignore_cleanup_errors=True) as part:
            members = (_zip if archive.suffix == ".zip" else _tar)(archive, Path(part))
            for name in progress(members, f"unpacking {archive.name}", unit="files"):
                at = name
            _place(Path(part, folder.name), folder, archive)
    except DAMAGED as error:
        reason = one_line(error)
        where = f" at {at!r}" if at else ""
        raise WmddError(f"{archive} is damaged{where} ({reason}); delete it and run again to fetch it anew") from None
    except OSError as error:
        if error.errno in FULL:
            remedy = "free some space and run again: nothing half-written was left"
            message = f"disk full (or file size limit reached) while unpacking {archive} to {folder}"
            raise WmddError(f"{message}; {remedy}") from None
        reason = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        raise WmddError(f"cannot unpack {archive} to {folder} ({reason}); check the permissions there") from None
    for left in folder.parent.glob(f"{_prefix(folder)}*"):  # by jobs that were killed
        rmtree(left, ignore_errors=True)


def _prefix(folder: Path) -> str:
    return f".{folder.name}.unpacking."


def _place(content: Path, folder: Path, archive: Path) -> None:
    if not content.is_dir():
        remedy = "it is not the archive that is expected here: delete it and run again to fetch it anew"
        raise WmddError(f"{archive} holds no folder {content.name}; {remedy}")
    try:
        content.replace(folder)
    except OSError:
        if not folder.is_dir():  # else another job has been faster
            raise


def check_member(archive: Path, name: str, kind: str) -> None:
    """Refuse a member that is neither a file nor a folder within the archive; `kind` is what else it is, if anything.

    Raises:
        WmddError: names the archive and the member.
    """
    remedy = "delete it, and fetch it from where it was published"
    if kind:
        raise WmddError(f"{archive} holds {name!r}, which is {kind}; {remedy}")
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in name.split("/")[0]:
        raise WmddError(f"{archive} holds {name!r}, which lies outside of the folder it is unpacked to; {remedy}")


def kind_of(member: tarfile.TarInfo) -> str:
    """Return what a member of a tar is beside a file or a folder, nothing if it is one of these."""
    if member.issym() or member.islnk():
        return f"a link to {member.linkname!r}"
    return "" if member.isreg() or member.isdir() else "a device or pipe"


class StrictTarInfo(tarfile.TarInfo):
    """A header that must be whole: `tarfile` takes one that is damaged, and the lack of an end, for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # which is the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


def _tar(archive: Path, folder: Path) -> Iterator[str]:
    """Unpack a tar, compressed or not; yield each name before that."""
    with tarfile.open(archive, tarinfo=StrictTarInfo) as content:
        for member in content:
            check_member(archive, member.name, kind_of(member))
            yield member.name
            content.extract(member, folder, set_attrs=False, filter="data")
        while content.fileobj and content.fileobj.read(CHUNK):  # up to where the compression has its checksum
            pass


def _zip(archive: Path, folder: Path) -> Iterator[str]:
    """Unpack a zip; yield each name before that. Checksums are compared on the way."""
    with zipfile.ZipFile(archive) as content:
        for member in content.infolist():
            mode = member.external_attr >> 16
            plain = not stat.S_IFMT(mode) or stat.S_ISREG(mode) or stat.S_ISDIR(mode)
            check_member(archive, member.filename, "" if plain else "a link or a device")
            yield member.filename
            content.extract(member, folder)
