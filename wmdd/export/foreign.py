"""Read a distilled set that others made, in the layout that they saved it in.

Which layouts there are and whose code writes them stands in `foreign_tensors`, `foreign_arrays` and `foreign_pictures`; this
package's own exports and images.h5 are read by `loading`. Nothing is unpickled or executed, and what a file merely claims is
not allocated. What was guessed on the way is told in `notes`.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np

from wmdd.artifacts.atomic_files import check_file, sha256_of
from wmdd.base.errors import WmddError
from wmdd.export.foreign_arrays import read_arrays, read_hdf5
from wmdd.export.foreign_content import Content, check_number, images_of, readable
from wmdd.export.foreign_labels import LabelKind, kind_of
from wmdd.export.foreign_pictures import (
    parquet_files,
    picture_folder,
    read_image_folder,
    read_parquet,
    read_webdataset,
    tar_files,
)
from wmdd.export.foreign_tensors import read_tensors
from wmdd.export.manifest import ARRAYS, MANIFEST
from wmdd.settings.imported import Layout

TENSOR_LAYOUTS = ("dc", "mtt", "datm", "idc", "ncfm", "tensors")
LAYOUTS: tuple[str, ...] = get_args(Layout)
_ENDINGS = {
    ".pt": "tensors", ".pth": "tensors", ".npz": "arrays", ".npy": "arrays", ".h5": "hdf5", ".hdf5": "hdf5",
    ".parquet": "parquet", ".tar": "webdataset",
}  # fmt: skip
_ARCHIVES = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".zst", ".rar")


@dataclass(frozen=True, eq=False)
class ForeignSet:
    """A distilled set as its file has it, before anything is undone."""

    images: np.ndarray  # [N, 3, H, W] uint8, or float32 with the file's values
    labels: np.ndarray  # [N] int64, or [N, C] float32
    label_kind: LabelKind
    layout: str  # that it was: one of LAYOUTS, not auto
    sha256: str  # of the file; of several files, of their sorted names and contents
    hard_labels: np.ndarray | None = (
        None  # [N] int64: the class of each image, where the file says it beside soft labels
    )
    weights: np.ndarray | None = None  # [N] float32
    learned_rate: float | None = None  # of the student, where it was learned with the set
    names: list[str] | None = None  # of the classes: labels are positions in it
    readable_names: list[str] | None = None  # of the same classes, where the set has both (this package's own)
    space: str | None = None  # of the pixels, where the layout says it: unit or normalised
    factor: int | None = None  # of IDC's formation, where a file says it
    notes: list[str] = field(default_factory=list)  # what was guessed or changed, in sentences


def read(
    path: str | Path, layout: str = "auto", labels: str = "auto", side: int = 0, most: int = 0, experiment: int = 0
) -> ForeignSet:
    """Read a distilled set.

    Args:
        path: of the file or folder.
        layout: one of LAYOUTS; "auto" tells it by names and contents.
        labels: their kind where rows of numbers are ambiguous: one-hot, probabilities or logits.
        side: pictures are resized and cropped to it; 0 leaves them. Arrays are never resized here.
        most: images that are expected at most; more are refused before they are decoded. 0 is no limit.
        experiment: which of a file of DC or DM with several.

    Raises:
        WmddError: it is missing, of no known layout, damaged, ambiguous or no distilled set; the message names what and
            the remedy.
    """
    path = Path(path)
    if layout not in LAYOUTS:
        raise WmddError(f"there is no layout {layout!r}; name one of {', '.join(LAYOUTS)}")
    if not path.is_dir():
        check_file(path, "give the path of a distilled set, a file or a folder")
    try:
        settled = layout_of(path) if layout == "auto" else layout
        if settled == "wmdd":
            return _own(path, most)
        tensors = "auto" if layout == "auto" else layout  # of which form a file of torch is, its content says
        return _checked(path, _content(path, settled, tensors, side, most, experiment), labels)
    except OSError as error:
        raise WmddError(f"cannot read {error.filename or path} ({error.strerror}); check its permissions") from None


def _content(path: Path, layout: str, tensors: str, side: int, most: int, experiment: int) -> Content:
    """Return what a path of a layout holds."""
    if layout in TENSOR_LAYOUTS:
        return read_tensors(path, tensors, most, experiment)
    if layout in ("arrays", "hdf5"):
        check_file(path, "give the path of the file")
        return read_arrays(path, most) if layout == "arrays" else read_hdf5(path, most)
    _check_place(path, layout)
    by_layout = {"imagefolder": read_image_folder, "parquet": read_parquet, "webdataset": read_webdataset}
    return by_layout[layout](path, side, most)


def layout_of(path: Path) -> str:
    """Return the layout of a path by its name and, of a folder, what lies in it.

    Raises:
        WmddError: it is none of them; says what to give.
    """
    if path.is_dir():
        return _layout_of_folder(path)
    if path.name.endswith(".pth.tar"):  # as scripts after PyTorch's ImageNet example call files of torch
        return "tensors"
    if path.suffix.lower() in _ARCHIVES:
        raise WmddError(f"{path} is a compressed archive; unpack it and give the folder or file")
    layout = _ENDINGS.get(path.suffix.lower())
    if layout is None:
        kinds = ", ".join(_ENDINGS)
        raise WmddError(f"{path} is of no known layout by its ending; give a folder, or a file that ends in {kinds}")
    ours = layout == "hdf5" and (_is_images(path) or (path.name == ARRAYS and (path.parent / MANIFEST).is_file()))
    return "wmdd" if ours else layout


def _layout_of_folder(path: Path) -> str:
    with readable(path):
        names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    if MANIFEST in names:
        return "wmdd"
    if any(name.endswith(".pt") for name in names) or (path / "Normal/images_best.pt").is_file():
        return "tensors"
    if parquet_files(path):
        return "parquet"
    if tar_files(path):
        return "webdataset"
    if picture_folder(path):
        return "imagefolder"
    single = [name for name in names if Path(name).suffix.lower() in _ENDINGS]
    if single:
        raise WmddError(f"{path} is a folder; give the file itself: {', '.join(single[:4])}")
    inside = ", ".join(names[:4]) or "nothing"
    raise WmddError(f"{path} holds {inside}, which is no known layout; give the folder whose folders are the classes")


def _is_images(path: Path) -> bool:
    """Return whether a file is an images.h5 of this package."""
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            images = file.get("images")
            return "meta" in file and "digest" in file.attrs and isinstance(images, h5py.Dataset) and images.ndim == 5
    except (OSError, RuntimeError, KeyError, ValueError):
        return False  # its reader says what is wrong


def _check_place(path: Path, layout: str) -> None:
    """Refuse a file where a folder is needed, and a folder without files of the layout."""
    if layout == "imagefolder" and not path.is_dir():
        raise WmddError(f"{path} is a file; give the folder whose folders are the classes")
    if layout == "parquet" and not parquet_files(path):
        raise WmddError(f"{path} has no *.parquet files; give the folder that has them")
    if layout == "webdataset" and not tar_files(path):
        raise WmddError(f"{path} has no *.tar files; give the folder that has them")


def _checked(path: Path, content: Content, stated: str) -> ForeignSet:
    """Return what a reader found as a set: images and labels that fit each other.

    Raises:
        WmddError: labels are missing, of another number or no numbers, or images are no images.
    """
    notes = list(content.notes)
    if content.labels is None and content.soft_labels is None:
        if content.images.ndim != 5:
            raise WmddError(
                f"{path} has images but no labels; add them, or give images [C, K, 3, H, W] sorted by class"
            )
        content.labels = np.arange(len(content.images)).repeat(content.images.shape[1])
        notes.append("There are no labels; the images [C, K, ...] are taken as sorted by class.")
    images, changes = images_of(content.images, path)
    notes += changes
    names = content.names
    if content.labels is not None and content.labels.dtype.kind in "US":
        names = sorted({str(name) for name in content.labels})
        content.labels = np.array([names.index(str(name)) for name in content.labels])
    labels, kind, guesses = _labels(content.labels, path, stated, len(images))
    hard = None
    if content.soft_labels is not None:
        if content.labels is not None and kind == "index":
            hard = labels
        labels, kind, guesses = _labels(content.soft_labels, path, stated, len(images))
        if kind == "index":
            hard = None
    weights = None if content.weights is None else _weights(content.weights, path, len(images))
    return ForeignSet(
        images, labels, kind, content.layout, digest_of(path, content.files), hard, weights, content.rate, names, None,
        content.space, content.factor, [*notes, *guesses],
    )  # fmt: skip


def _labels(labels: np.ndarray | None, path: Path, stated: str, number: int) -> tuple[np.ndarray, LabelKind, list[str]]:
    if labels is None:
        return np.empty(0, np.int64), "index", []
    if labels.size and len(labels) != number and labels.size == number:  # [C, K]
        labels = labels.reshape(-1)
    elif labels.ndim == 3:  # [C, K, C]
        labels = labels.reshape(-1, labels.shape[-1])
    if len(labels) != number:
        raise WmddError(f"{path} has {number} images and {len(labels)} labels; they do not belong together")
    if labels.ndim == 1 and stated in ("one-hot", "probabilities", "logits") and labels.dtype.kind in "iu":
        stated = "auto"  # the class beside rows, or all that there is
    return kind_of(labels, path, stated)


def _weights(weights: np.ndarray, path: Path, number: int) -> np.ndarray:
    flat = weights.reshape(-1).astype(np.float32)
    if len(flat) != number or not np.isfinite(flat).all() or (flat < 0).any() or not flat.any():
        raise WmddError(f"the weights of {path} are not {number} numbers, none negative and not all 0; leave them out")
    return flat


def digest_of(path: Path, files: list[Path]) -> str:
    """Return the SHA-256 of a file, or of the sorted names (from the folder on) and contents of several."""
    if len(files) == 1:
        return sha256_of(files[0])
    root = path if path.is_dir() else path.parent
    digest = hashlib.sha256()
    for name, file in sorted((file.relative_to(root).as_posix(), file) for file in files):
        digest.update(f"{name}\0{sha256_of(file)}\n".encode())
    return digest.hexdigest()


def _own(path: Path, most: int) -> ForeignSet:
    """Read an export or an images.h5 of this package."""
    from wmdd.export.loading import load

    known = load(path)
    check_number(path, len(known), most)
    labels = known.labels.numpy()
    soft = None if known.soft_labels is None else known.soft_labels.numpy()
    images, notes = images_of(known.images.numpy(), path)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return ForeignSet(
        images, labels if soft is None else soft, "index" if soft is None else "probabilities", "wmdd", digest_of(path, files),
        None if soft is None else labels, known.weights.numpy(), None, known.classes, known.names,
        None if images.dtype == np.uint8 else "unit", 1, notes,
    )  # fmt: skip
