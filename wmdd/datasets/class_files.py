"""The encoded pictures of one class in one split, where they are: in a folder, or within a tar."""

import os
import weakref
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from wmdd.base.errors import WmddError


class ClassFiles(Protocol):
    """The encoded pictures of one class in one split, sorted by name; may be read from many threads at once."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return the path of a picture from the root of its dataset, for messages and provenance."""

    def read(self, index: int) -> bytes:
        """Return the bytes of a picture.

        Raises:
            WmddError: it can't be read; names the file.
        """


class FolderFiles:
    """Pictures in a folder. A million of them are listed, so each is a plain string."""

    __slots__ = ("_folder", "_names", "_root")

    def __init__(self, root: Path, folder: str, names: Iterable[str]) -> None:
        self._root, self._folder, self._names = root, folder, list(names)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return f"{self._folder}/{self._names[index]}"

    def read(self, index: int) -> bytes:
        path = self._root / self.name(index)
        with reading(path):
            return path.read_bytes()


class OpenTar:
    """A tar that any thread may read at any place; closed with the last class that is in it."""

    def __init__(self, path: Path) -> None:
        with reading(path):
            self.path, self._descriptor = path, os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, offset: int, size: int, name: str) -> bytes:
        """Return `size` bytes from `offset`; `name` is what they are, for messages."""
        with reading(self.path):
            content = os.pread(self._descriptor, size, offset)
        if len(content) != size:
            raise WmddError(f"{self.path} ends within {name}; it has changed since it was listed: run again")
        return content


class TarFiles:
    """Pictures within a tar, which is not unpacked."""

    __slots__ = ("_inner", "_names", "_offsets", "_sizes", "_tar")

    def __init__(self, tar: OpenTar, inner: str, members: Iterable[tuple[str, int, int]]) -> None:
        """Take the name, offset and size of each picture; `inner` is the tar within the tar, "" if there is none."""
        self._tar, self._inner = tar, inner
        pictures = list(members)
        self._names = [name for name, _, _ in pictures]
        self._offsets = array("q", [offset for _, offset, _ in pictures])
        self._sizes = array("q", [size for _, _, size in pictures])

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return "/".join(filter(None, (self._tar.path.name, self._inner, self._names[index])))

    def read(self, index: int) -> bytes:
        return self._tar.read(self._offsets[index], self._sizes[index], self.name(index))


class SelectedFiles:
    """Some of the pictures of a class."""

    __slots__ = ("_all", "_positions")

    def __init__(self, files: ClassFiles, positions: Iterable[int]) -> None:
        self._all, self._positions = files, array("q", positions)

    def __len__(self) -> int:
        return len(self._positions)

    def name(self, index: int) -> str:
        return self._all.name(self._positions[index])

    def read(self, index: int) -> bytes:
        return self._all.read(self._positions[index])


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong with reading a file or folder into one line.

    Raises:
        WmddError: names the path.
    """
    try:
        yield
    except OSError as error:
        remedy = "it has gone since it was listed: run again" if error.errno == 2 else "check its permissions"
        raise WmddError(f"cannot read {path} ({error.strerror}); {remedy}") from None
