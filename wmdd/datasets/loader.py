"""The pictures of a split, in batches, in any order. Small splits live in memory, large ones stream from the file.

`data.h5` is one file that is read in long runs, not a million small ones. It is HDF5, which gives any class or picture by its
position. (Tar shards, as WebDataset's, can't be read by class; LMDB, Arrow and FFCV would each be one more dependency.)
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from wmdd.artifacts import hdf5
from wmdd.base.errors import WmddError
from wmdd.base.threads import in_order
from wmdd.datasets.decode import UnreadableError, decode, decode_plain

RESIDENT_MB = 4096  # splits up to this size, decoded, are held in memory; WMDD_RESIDENT_MB changes it
BATCH = 256


class Pictures(Protocol):
    """Pictures [N, 3, R, R] uint8, wherever they are, sorted by class."""

    labels: Tensor  # [N] int64
    resolution: int  # R

    def batches(self, positions: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the pictures at each batch of positions, uint8 [B, 3, R, R], prepared a little ahead."""


class Resident:
    """Pictures that are held in memory, of the CPU or of a GPU."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels, self.resolution = images, labels, images.shape[-1]

    def batches(self, positions: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the pictures at each batch of positions."""
        for index in positions:
            yield self.images.index_select(0, index.to(self.images.device))


class Streamed:
    """Pictures that stay in an open `data.h5`; read, and decoded where they are encoded, by threads ahead of their use.

    Threads, not processes: both libraries decode without Python's lock, and nothing has to be copied between processes.
    """

    def __init__(self, file: hdf5.Artifact, split: str, resolution: int) -> None:
        self.resolution = resolution
        self.labels = torch.from_numpy(file[f"{split}/labels"][()])
        self._path = file.path
        self._images = None
        if f"{split}/images" in file:
            self._images = file[f"{split}/images"]
        else:
            self._bytes = file[f"{split}/bytes"]
            self._offsets, self._plain = (file[f"{split}/{name}"][()] for name in ("offsets", "plain"))

    def batches(self, positions: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the pictures at each batch of positions."""
        for _, loaded in in_order(self._load, positions, ahead=2):
            try:
                yield torch.from_numpy(loaded.result())
            except UnreadableError as error:
                message = f"{self._path} holds an unreadable picture ({error}); delete it and run again"
                raise WmddError(message) from None

    def _load(self, positions: Tensor) -> np.ndarray:
        index = positions.numpy()
        if self._images is not None:
            if _is_consecutive(index):
                return np.asarray(self._images[index[0] : index[-1] + 1])
            return np.stack([self._images[i] for i in index])
        images = np.empty((len(index), 3, self.resolution, self.resolution), np.uint8)
        for image, i, data in zip(images, index, self._encoded(index), strict=True):
            image[:] = decode_plain(data) if self._plain[i] else decode(data, self.resolution).pixels
        return images

    def _encoded(self, index: np.ndarray) -> Iterator[bytes]:
        """Yield the files at some positions; consecutive ones are read at once."""
        if _is_consecutive(index):
            offsets = self._offsets[index[0] : index[-1] + 2]
            content = memoryview(self._bytes[offsets[0] : offsets[-1]].tobytes())
            yield from (bytes(content[a:b]) for a, b in pairwise(offsets - offsets[0]))
        else:
            yield from (self._bytes[self._offsets[i] : self._offsets[i + 1]].tobytes() for i in index)


def _is_consecutive(index: np.ndarray) -> bool:
    return bool(len(index) and index[-1] - index[0] + 1 == len(index) and (np.diff(index) == 1).all())


@contextmanager
def opened(
    path: Path, split: str, once: bool = False, device: torch.device | None = None
) -> Iterator[tuple[Pictures, hdf5.Meta]]:
    """Open a split of `data.h5`; yield its pictures and the file's meta data.

    Args:
        path: of the data stage.
        split: train or val.
        once: the pictures are used once or in part, so that there is no use in holding them.
        device: where to hold them if they fit (half of a GPU's free memory at most).

    Raises:
        WmddError: the file is damaged, cut short or not of the data stage.
    """
    with hdf5.reading(path) as file:
        meta = file.meta
        if f"{split}/labels" not in file or "resolution" not in meta:
            raise WmddError(f"{path} has no split {split!r}; delete it and run again to rebuild it")
        if f"{split}/images" not in file and f"{split}/plain" not in file:
            fault = f"lacks the pictures of {split}, or is of an earlier version"
            raise WmddError(f"{path} {fault}; delete it and run again")
        streamed = Streamed(file, split, meta["resolution"])
        if once or not _fits(len(streamed.labels) * 3 * streamed.resolution**2):
            yield streamed, meta
        else:
            yield resident(streamed, device), meta


def _fits(size: int) -> bool:
    limit = os.environ.get("WMDD_RESIDENT_MB", RESIDENT_MB)
    try:
        return size <= float(limit) * 2**20
    except ValueError:
        raise WmddError(f"WMDD_RESIDENT_MB is {limit!r}; set it to a number of megabytes, or not at all") from None


def resident(pictures: Pictures, device: torch.device | None = None) -> Resident:
    """Read pictures into memory, and move them to a GPU if they take at most half of what is free there."""
    images = read(pictures, torch.arange(len(pictures.labels)))
    if device is not None and device.type == "cuda" and images.nbytes <= torch.cuda.mem_get_info(device)[0] // 2:
        images = images.to(device)
    return Resident(images, pictures.labels)


def read(pictures: Pictures, positions: Tensor) -> Tensor:
    """Return the pictures at some positions, uint8 [n, 3, R, R]."""
    images = torch.empty(len(positions), 3, pictures.resolution, pictures.resolution, dtype=torch.uint8)
    for rows, batch in zip(images.split(BATCH), pictures.batches(positions.split(BATCH)), strict=True):
        rows.copy_(batch)
    return images


def batches_by_class(labels: Tensor, size: int, first: int = 0, last: int | None = None) -> Sequence[Tensor]:
    """Cut the positions of the classes first..last into batches of at most `size`, none with two classes.

    So what a batch holds depends on its class alone, not on which classes a job was given.
    """
    classes, counts = torch.unique_consecutive(labels, return_counts=True)
    starts = counts.cumsum(0) - counts
    last = int(classes[-1]) if last is None else last
    return [
        offsets + start
        for label, count, start in zip(classes.tolist(), counts.tolist(), starts.tolist(), strict=True)
        if first <= label <= last
        for offsets in torch.arange(count).tensor_split(-(-count // size))
    ]
