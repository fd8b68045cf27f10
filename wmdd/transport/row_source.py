"""Points [N, D] that are read by the row, a chunk at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from wmdd.base.errors import WmddError

Progress = Callable[..., Iterator[Any]]


class Rows(Protocol):
    """Points [N, D] that are read by the row: an h5py dataset, a memory-mapped file, an array or a tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


@dataclass(frozen=True)
class RowSource:
    """Some rows of a source, less a centre [D], in chunks of `size` rows."""

    source: Rows
    rows: range
    size: int
    centre: Tensor
    progress: Progress

    @classmethod
    def of(cls, source: Rows, rows: slice | range | None, chunk_bytes: int, progress: Progress) -> "RowSource":
        """Take some rows of a source, about a centre of 0.

        Raises:
            WmddError: the source has no points [N, D], or it lacks some of the rows.
        """
        shape = tuple(source.shape)
        if len(shape) != 2 or 0 in shape:
            raise WmddError(f"the source needs points [N, D] with N and D at least 1, got {shape}")
        wanted = rows if isinstance(rows, range) else range(shape[0])[rows or slice(None)]
        if wanted.step < 1 or len(wanted) == 0 or wanted[0] < 0 or wanted[-1] >= shape[0]:
            raise WmddError(f"rows {rows} of {shape[0]}: ask for at least one, in rising order, that the source has")
        kind = _tensor(source[:1]).dtype
        dtype = torch.float32 if kind.is_floating_point and kind.itemsize <= 4 else torch.float64
        centre = torch.zeros(shape[1], dtype=dtype)
        return cls(source, wanted, max(1, chunk_bytes // centre.nbytes), centre, progress)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, start: int, stop: int) -> Tensor:
        """Return a copy of rows start to stop, [B, D], less the centre."""
        part = self.rows[start:stop]
        return _tensor(self.source[part.start : part.stop : part.step]).to(self.centre) - self.centre

    def in_order(self, what: str) -> Iterator[tuple[int, Tensor]]:
        """Yield the number of the first row and the points of each chunk."""
        for at in self._shown(range(0, len(self), self.size), what):
            points = self.read(at, at + self.size)
            # A sum is finite only when every term is, up to overflow; so the slow look is rarely taken.
            if not bool(torch.isfinite(points.sum())) and not bool(torch.isfinite(points).all()):
                row = self.rows[at + int((~torch.isfinite(points)).any(1).nonzero()[0])]
                raise WmddError(f"the source holds NaN or infinity, first in row {row}; check where it comes from")
            yield at, points

    def _shown(self, chunks: Any, what: str) -> Iterator[Any]:
        return self.progress(chunks, what, len(chunks), unit="chunk")


def _tensor(part: Any) -> Tensor:
    """Return a part of a source as a tensor of real numbers."""
    if not isinstance(part, Tensor):
        part = np.asarray(part)
        try:
            part = torch.from_numpy(np.require(part, part.dtype.newbyteorder("="), ["C", "W"]))
        except TypeError:
            raise WmddError(f"the source holds {part.dtype}, not numbers; give real numbers") from None
    if part.is_complex():
        raise WmddError("the source holds complex numbers; give real numbers, such as both parts side by side")
    return part
