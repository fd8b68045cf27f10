"""The encoded pictures of one class in one split, where they are: in a folder, or within a tar."""

import os
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from wmdd.base.errors import WmddError


class ClassFiles:
    """The encoded pictures of one class in one split, sorted by name; may be read from many threads at once.

    A million of them are listed, so each is a plain string.
    """

    __slots__ = ("_names", "_prefix", "_read")

    def __init__(self, prefix: str, names: list[str], read: Callable[[int], bytes]) -> None:
        """Take the names below `prefix`, a path from the root of the dataset, and what reads the picture at an index."""
        self._prefix, self._names, self._read = prefix, names, read

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """Return the path of a picture from the root of its dataset, for messages and provenance."""
        return f"{self._prefix}/{self._names[index]}"

    def read(self, index: int) -> bytes:
        """Return the bytes of a picture.

        Raises:
            WmddError: it can't be read; names the file.
        """
        return self._read(index)

    def at(self, positions: Iterable[int]) -> "ClassFiles":
        """Return some of the pictures."""
        chosen = array("q", positions)
        return ClassFiles(self._prefix, [self._names[i] for i in chosen], lambda index: self._read(chosen[index]))


def in_folder(root: Path, folder: str, names: Iterable[str]) -> ClassFiles:
    """Return pictures of a folder below the root of a dataset."""
    names = list(names)

    def read(index: int) -> bytes:
        path = root / folder / names[index]
        with reading(path):
            return path.read_bytes()

    return ClassFiles(folder, names, read)


class OpenTar:
    """A tar that any thread may read at any place; closed with the last class that is in it."""

    def __init__(self, path: Path) -> None:
        with reading(path):
            self.path, self._descriptor = path, os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def files(self, inner: str, members: Iterable[tuple[str, int, int]]) -> ClassFiles:
        """Return pictures by name, offset and size, which are not unpacked; `inner` is the tar within the tar, if any."""
        pictures = list(members)
        names, prefix = [name for name, *_ in pictures], "/".join(filter(None, (self.path.name, inner)))
        offsets, sizes = array("q", [offset for _, offset, _ in pictures]), array("q", [size for *_, size in pictures])

        def read(index: int) -> bytes:
            with reading(self.path):
                content = os.pread(self._descriptor, sizes[index], offsets[index])
            if len(content) != sizes[index]:
                fault = f"ends within {prefix}/{names[index]}"
                raise WmddError(f"{self.path} {fault}; it has changed since it was listed: run again")
            return content

        return ClassFiles(prefix, names, read)


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
