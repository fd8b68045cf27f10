"""Pieces: the finished rows of a long job, kept in files beside its output, which is made of them at the end.

A job's pieces are in a folder of its own, `.{output}.{host}.{process}.pieces`, so that two jobs that make the same output at
once do not meet. A job that is started again takes over those of the one before it.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wmdd.artifacts import atomic_files, hdf5, hdf5_writer
from wmdd.artifacts.atomic_files import abandoned, owned_here, owner
from wmdd.base.errors import WmddError

SIZE = 2**24  # bytes that are held at most before they are kept


class _Piece(NamedTuple):
    """A file, and the position behind what it holds, with the seconds that were spent up to there."""

    path: Path
    stop: int
    seconds: float


class Pieces:
    """The pieces of an unfinished output, each a run of its rows, which follow each other.

    Args:
        output: that is to be made of them.
        key: all that the result depends on; pieces of another key are stale.
    """

    def __init__(self, output: Path, key: str) -> None:
        self.output, self.key = output, key
        self.folder = output.with_name(f".{output.name}.{owner()}.pieces")
        self.files: list[Path] = []
        self.seconds = 0.0  # that were spent on them
        self._others: list[Path] = []

    def restore(self) -> int:
        """Take over the pieces of an earlier job, and return the position behind them."""
        self.files, self.seconds, stop = [], 0.0, 0
        folders = sorted(self.output.parent.glob(f".{escape(self.output.name)}.*.pieces"))
        pieces = max(map(self._follow, folders), key=_end, default=[])
        _delete(self.folder, {piece.path for piece in pieces})  # of an earlier process of the same number
        for piece in pieces:
            try:
                self.files.append(self._take(piece.path))
            except FileNotFoundError:  # another job was faster
                break
            stop, self.seconds = piece.stop, piece.seconds
        for folder in set(folders) - {self.folder}:
            if abandoned(folder):
                _delete(folder)
            elif owned_here(folder) is None:  # on another machine it may still run: keep until this job finishes
                self._others.append(folder)
        if self.files:
            print(f"going on from {self.files[0].parent}, with {len(self.files)} pieces of earlier work", flush=True)
        return stop

    def add(self, first: int, count: int, arrays: dict[str, np.ndarray], seconds: float = 0.0, **about: Any) -> None:
        """Keep rows from a position on, with the seconds that were spent on all up to them."""
        path = self.folder / f"{first:012d}.h5"
        meta = {"key": self.key, "first": first, "count": count, "seconds": seconds} | about
        hdf5_writer.save(path, arrays, meta)
        self.files.append(path)

    def rows(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield all rows, one [1, ...] at a time of each array."""
        for path in self.whole():
            with hdf5.reading(path) as file:
                arrays = {name: file[name] for name in file.names}
                for row in range(file.meta["count"]):
                    yield {name: array[row : row + 1] for name, array in arrays.items()}

    def whole(self) -> list[Path]:
        """Return the files.

        Raises:
            WmddError: some are gone.
        """
        if not all(path.exists() for path in self.files):
            raise WmddError(
                f"what was kept of {self.output} is gone; another job has finished it meanwhile, or run this again"
            )
        return self.files

    def remove(self) -> None:
        """Forget them, once the output is in place."""
        for folder in (self.folder, *self._others):
            _delete(folder)

    def _follow(self, folder: Path) -> list[_Piece]:
        """Return the pieces in a folder, as far as they can be read, are of this key and follow each other."""
        pieces: list[_Piece] = []
        for path in sorted(folder.glob("*.h5")):
            try:
                meta = hdf5.load_meta(path)
                if meta["key"] != self.key or (pieces and meta["first"] != pieces[-1].stop):
                    print(f"{path} is of other settings, code or inputs; it is left aside", flush=True)
                    break
            except WmddError as error:
                print(f"{error}; going on from before it", flush=True)
                break
            pieces.append(_Piece(path, meta["first"] + meta["count"], meta["seconds"]))
        return pieces

    def _take(self, path: Path) -> Path:
        """Make a piece this job's own, whatever becomes of the other's."""
        mine = self.folder / path.name
        if mine == path:
            return mine
        self.folder.mkdir(exist_ok=True)
        try:
            os.link(path, mine)
        except FileNotFoundError:
            raise
        except OSError:  # no hard links there
            with atomic_files.atomic(mine) as part:
                shutil.copyfile(path, part)
        return mine


def gathered(rows: Iterable[dict[str, np.ndarray]], due: Callable[[], bool]) -> Iterator[dict[str, np.ndarray]]:
    """Join rows [1, ...] to pieces of about `SIZE` bytes, smaller ones when one is due."""
    held: list[dict[str, np.ndarray]] = []
    size = 0
    for row in rows:
        held.append(row)
        size += sum(array.nbytes for array in row.values())
        if size >= SIZE or due():
            yield _joined(held)
            held, size = [], 0
    if held:
        yield _joined(held)


def _joined(held: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([row[name] for row in held]) for name in held[0]}


def _end(pieces: list[_Piece]) -> int:
    return pieces[-1].stop if pieces else 0


def _delete(folder: Path, but: Set[Path] = frozenset()) -> None:
    """Delete a folder of files, but some; another job may do so at the same time."""
    with suppress(OSError):
        for path in {*folder.iterdir()} - but:
            path.unlink(missing_ok=True)
        folder.rmdir()
