"""Points [N, D] of several classes that stay on disk: found in a file, and read a class at a time."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wmdd.artifacts import hdf5
from wmdd.artifacts.atomic_files import check_file, sha256_of
from wmdd.base.errors import WmddError, one_line

PIECE = 2**24  # bytes that are read at a time
GAP = 64  # rows that are read for nothing sooner than to begin a new read

Rows = range | np.ndarray


class Cloud:
    """Points [N, D] with the class of each.

    Args:
        points: read by the row: an array, a tensor, a dataset of an open HDF5 file, a mapped file.
        labels: [N] whole numbers; None for one class.
        names: of the classes; of one class, what to call all the points.
    """

    def __init__(self, points: Any, labels: Any = None, names: Sequence[str] | None = None) -> None:
        self.points = points.numpy() if isinstance(points, Tensor) else points
        self.names, self.labels = names, labels
        self._all = labels is None
        if labels is not None:
            labels = np.asarray(labels)
            self._order = np.argsort(labels, kind="stable")
            self._sorted = labels[self._order]

    def title(self, label: int) -> str:
        """Return what to call a class in a message."""
        name = self.name(label)
        if self._all:
            return name
        return f"class {label}" if name == str(label) else f"class {label} ({name!r})"

    def name(self, label: int) -> str:
        """Return the name of a class."""
        return str(label) if self.names is None else self.names[label]

    def rows(self, label: int) -> Rows:
        """Return the rows of a class, rising; a range where no other row stands between them.

        Raises:
            WmddError: there are none.
        """
        if self._all:
            return range(len(self.points))
        first, last = np.searchsorted(self._sorted, [label, label + 1])
        rows = self._order[first:last]
        if len(rows) == 0:
            raise WmddError(f"{self.title(label)} has no features; run the features stage on data that hold it")
        return range(rows[0], rows[-1] + 1) if rows[-1] - rows[0] + 1 == len(rows) else rows

    def read(self, rows: Rows) -> Tensor:
        """Return some rows, [B, D]; whole numbers as float64. Beside the result, about `PIECE` bytes are in memory."""
        rows = np.asarray(rows)
        kind = self.points.dtype
        dtype = kind.newbyteorder("=") if kind.kind == "f" and kind.itemsize <= 8 else np.dtype(np.float64)
        points = np.empty((len(rows), self.points.shape[1]), dtype)
        piece = max(1, PIECE // (self.points.shape[1] * kind.itemsize))
        cuts = np.flatnonzero((np.diff(rows) > GAP) | (np.diff(rows // piece) > 0)) + 1
        for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True):
            points[a:b] = self.points[rows[a] : rows[b - 1] + 1][rows[a:b] - rows[a]]
        return torch.from_numpy(points)

    def variance(self, rows: Rows) -> float:
        r"""Return the total variance 1/B \sum_i ||x_i - mean||^2 of some rows, in float64 and by the piece."""
        piece = max(1, PIECE // (8 * self.points.shape[1]))
        count, mean, total = 0, torch.zeros(self.points.shape[1], dtype=torch.float64), 0.0
        for start in range(0, len(rows), piece):
            x = self.read(rows[start : start + piece]).double()
            off = x.mean(0) - mean
            share = len(x) / (count + len(x))
            total += float((x - x.mean(0)).square().sum() + off.square().sum() * count * share)
            count, mean = count + len(x), mean + share * off
        return total / len(rows)


class Confident(Cloud):
    r"""Features of each class of which a teacher is surest: the share with the least cross-entropy -log p(c | x).

    With W and b those of the teacher's last layer and n images of class c, the rows of c are those of the ceil(share n) least
    losses -log softmax(W f_i + b)_c; of equal ones the first.

    Args:
        features: of the same teacher, before its last layer.
        weight: W [C, D]; its classes are the labels of the features.
        bias: b [C].
        share: of each class, above 0 and up to 1.
    """

    def __init__(self, features: Cloud, weight: Tensor, bias: Tensor, share: float) -> None:
        super().__init__(features.points, features.labels, features.names)
        self._weight, self._bias, self._share = weight, bias, share

    def rows(self, label: int) -> Rows:
        """Return the rows of a class that count, rising."""
        rows = super().rows(label)
        losses = self.losses(rows, label)
        keep = losses.sort(stable=True).indices[: math.ceil(self._share * len(rows) - 1e-9)]
        return np.asarray(rows)[keep.sort().values.numpy()]

    def losses(self, rows: Rows, label: int) -> Tensor:
        """Return the teacher's cross-entropy -log p(label | x) of some rows, [B]."""
        logits = F.linear(self.read(rows).float(), self._weight, self._bias)
        return F.cross_entropy(logits, torch.full((len(rows),), label), reduction="none")


@dataclass(frozen=True)
class Source:
    """Points in an open file, and what the file says of them: `classes`, `names` and, of an artifact, its whole meta data."""

    cloud: Cloud
    path: Path
    meta: hdf5.Meta

    def input(self) -> hdf5.Meta | str:
        """Return the meta data of an artifact, or the digest of any other file (one pass, less than a solver makes)."""
        return self.meta if "digest" in self.meta else sha256_of(self.path)


@contextmanager
def reading(path: Path, dataset: str | None = None, labels: str | None = None) -> Iterator[Source]:
    """Open points: the features of an artifact, any other HDF5 file, or an array that `numpy.save` wrote.

    Args:
        path: the file; what it is is seen from its content.
        dataset: of an HDF5 file; by default `features`, or the only one that is 2-D.
        labels: dataset of the classes, numbers or text; by default `labels` beside the points, where its length is right.

    Raises:
        WmddError: the file can't be read, or it is not clear which points are meant.
    """
    begin = _begin(path)
    if begin.startswith(b"\x93NUMPY"):
        if dataset or labels:
            raise WmddError(f"{path} is a .npy file and has one array; --dataset and --labels are for HDF5 files")
        yield _foreign(path, _mapped(path), None, [path.name])
    elif begin.startswith(b"PK"):
        raise WmddError(f"{path} is an archive (.npz?); write the one array with numpy.save")
    elif begin == b"\x89HDF\r\n\x1a\n" or h5py.is_hdf5(path):
        with hdf5.opened(path) as file:
            ours = hdf5.is_artifact(file) and dataset is None and labels is None
            yield _features(hdf5.artifact_in(path, file), path) if ours else _any(file, path, dataset, labels)
    else:
        raise WmddError(f"{path} is neither an HDF5 file nor an array of numpy.save (.npy)")


def _begin(path: Path) -> bytes:
    check_file(path, "run the stage that makes it first, or correct the name")
    try:
        with path.open("rb") as file:
            return file.read(8)
    except OSError as error:
        raise WmddError(f"{path} cannot be read: {error.strerror}") from None


def _mapped(path: Path) -> np.ndarray:
    """Return the array of a .npy file, not read yet."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        if "Python objects" in str(error):
            raise WmddError(f"{path} holds Python objects, which are not loaded; save an array of numbers") from None
        raise WmddError(f"{path} is not a whole .npy file ({one_line(error)}); write it again") from None
    return _checked(array, str(path))


def _features(file: hdf5.Artifact, path: Path) -> Source:
    """Return the features of an artifact."""
    meta = file.meta
    missing = {"features", "labels"} - {*file.names}
    if missing:
        raise WmddError(
            f"{path} lacks {', '.join(sorted(missing))}; give the features.h5 of the features stage, or a --dataset of it"
        )
    points, labels = _checked(file["features"], f"features of {path}"), file["labels"][()]
    if labels.shape != (len(points),):
        raise WmddError(f"{path} has {len(points)} features but labels {labels.shape}; run the features stage again")
    return Source(Cloud(points, labels, meta["names"]), path, meta)


def _any(file: h5py.File, path: Path, dataset: str | None, labels: str | None) -> Source:
    """Return the points of a file that knows nothing of this package."""
    points = _dataset(file, path, dataset)
    given = _labels(file, path, points, labels)
    if given is None:
        return _foreign(path, points, None, [path.name])
    kinds, labels_of = np.unique(given, return_inverse=True)
    names = [kind.decode(errors="replace") if isinstance(kind, bytes) else str(kind) for kind in kinds.tolist()]
    return _foreign(path, points, labels_of, names)


def _foreign(path: Path, points: Any, labels: np.ndarray | None, names: list[str]) -> Source:
    """Return points of a file that knows nothing of this package."""
    return Source(Cloud(points, labels, names), path, hdf5.Meta(path, {"classes": names, "names": names}))


def _dataset(file: h5py.File, path: Path, name: str | None) -> h5py.Dataset:
    """Return the dataset of the points."""
    tables = _datasets(file, lambda item: item.ndim == 2 and item.dtype.kind in "fiub")
    if name is None and "features" in tables:
        name = "features"
    if name is not None:
        if name not in (names := _datasets(file, lambda _: True)):
            raise WmddError(f"{path} has no dataset {name!r}; it has: {', '.join(names) or 'none'}")
        return _checked(hdf5.dataset_of(path, file, name), f"{name} of {path}")
    if len(tables) != 1:
        several = f"several 2-D datasets: {', '.join(tables)}; choose one with --dataset NAME"
        raise WmddError(f"{path} has {several if tables else 'no 2-D dataset of numbers, so no points [N, D]'}")
    return _checked(hdf5.dataset_of(path, file, tables[0]), f"{tables[0]} of {path}")


def _datasets(file: h5py.File, wanted: Any) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) and wanted(item) else None)
    return names


def _labels(file: h5py.File, path: Path, points: h5py.Dataset, name: str | None) -> np.ndarray | None:
    """Return the class of each point, or None where the file tells no classes."""
    wanted = f"{points.parent.name}/labels".lstrip("/") if name is None else name
    item = hdf5.dataset_of(path, file, wanted) if isinstance(file.get(wanted), h5py.Dataset) else None
    count = len(points)
    if isinstance(item, h5py.Dataset) and item.shape == (count,) and (item.dtype.kind in "iubS" or _is_text(item)):
        return np.asarray(item[()])
    if name is None:
        return None
    if not isinstance(item, h5py.Dataset):
        raise WmddError(f"{path} has no dataset {name!r}; it has: {', '.join(_datasets(file, lambda _: True))}")
    kind = "text" if _is_text(item) else item.dtype
    raise WmddError(
        f"labels {name} of {path} are {kind} of shape {item.shape}, but {count} whole numbers or texts are needed, "
        "one a point"
    )


def _is_text(item: h5py.Dataset) -> bool:
    return h5py.check_string_dtype(item.dtype) is not None


def _checked(points: Any, what: str) -> Any:
    """Return an array that is points [N, D]."""
    if points.dtype.kind not in "fiub":
        raise WmddError(f"{what} holds {points.dtype}, not real numbers")
    if points.ndim != 2 or 0 in points.shape:
        raise WmddError(f"{what} has the shape {tuple(points.shape)}; points [N, D] with N and D at least 1 are needed")
    return points
