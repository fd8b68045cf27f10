"""Checksums of an HDF5 artifact.

Each array has a SHA-256 for each block of about 1 MB of its rows, so that a stage that reads a tenth of it checks a tenth.
The seal is a SHA-256 of all else that the file says: its digest, its meta data, and the names, types, shapes and checksums of
its arrays.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

CHECKSUMS = "checksums"  # the group that holds them: an array [blocks, 32] uint8 for each array, of the same name
SEAL = "seal"
BLOCK = 2**20  # bytes
SIZE = 32  # bytes of a checksum


class Described(NamedTuple):
    """An array as the seal has it; `checksums` [blocks, 32] uint8."""

    dtype: np.dtype
    shape: tuple[int, ...]
    checksums: np.ndarray


def rows_of_block(dtype: np.dtype, row: tuple[int, ...]) -> int:
    """Return how many rows of a shape share a checksum."""
    return max(1, BLOCK // max(1, dtype.itemsize * math.prod(row)))


def checksum_of(rows: np.ndarray) -> bytes:
    """Return the checksum of the rows of a block."""
    return hashlib.sha256(np.asarray(rows, order="C").data if rows.size else b"").digest()


def seal_of(digest: str, meta: bytes, arrays: Mapping[str, Described]) -> str:
    """Return the seal of an artifact."""
    seal = hashlib.sha256(digest.encode() + meta)
    for name in sorted(arrays):
        array = arrays[name]
        seal.update(f"\n{name} {array.dtype} {array.shape} ".encode())
        seal.update(np.asarray(array.checksums, np.uint8, order="C").data if array.checksums.size else b"")
    return seal.hexdigest()


class Blocks:
    """The checksums of an array that grows by rows.

    Args:
        dtype: of the array.
        row: shape of one of its rows.
    """

    def __init__(self, dtype: np.dtype, row: tuple[int, ...]) -> None:
        self._rows = rows_of_block(dtype, row)
        self._whole = bytearray()
        self._open, self._count = hashlib.sha256(), 0

    def add(self, rows: np.ndarray) -> None:
        """Take rows [n, ...] behind those of before."""
        while len(rows):
            part, rows = np.split(rows, [self._rows - self._count])
            if part.size:
                self._open.update(np.asarray(part, order="C").data)
            self._count += len(part)
            if self._count == self._rows:
                self._whole += self._open.digest()
                self._open, self._count = hashlib.sha256(), 0

    def checksums(self) -> np.ndarray:
        """Return the checksums of all rows so far, [blocks, 32] uint8."""
        content = self._whole + (self._open.digest() if self._count else b"")
        return np.frombuffer(bytes(content), np.uint8).reshape(-1, SIZE)
