"""Data: raw pictures become uint8 pixels [N, 3, R, R], or the files' own bytes, sorted by class, in one pass.

The only place that decodes pictures (`decode`), so that pixels do not depend on how they are stored. Pictures come
from anywhere: no pickle is read, no link that leaves `root` is followed, and only the formats in `_FORMATS` are decoded.
"""

import contextlib
import io
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.datasets.utils import check_integrity, download_url

from wmdd import artifacts
from wmdd.errors import WmddError
from wmdd.progress import progress
from wmdd.rng import generator
from wmdd.settings import DataSettings

T = TypeVar("T")
U = TypeVar("U")

_EXTENSIONS = tuple(
    f".{name}"
    for name in ("jpg", "jpeg", "jpe", "jfif", "png", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm")
)
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # all that Pillow may try; EPS would run a program
_VAL_FOLDERS = ("val", "test", "validation")  # the first that exists
_DEFAULT_DIGITS_RESOLUTION = 32
_DIGITS_VAL_FRACTION = 0.2
_ROWS = 256  # images handled at once where all of them as floats would not fit


class UnreadableError(Exception):
    """A file whose pixels can't be had; says why."""


@dataclass(frozen=True)
class Split:
    """Images sorted by label; within a class in the order of their file names."""

    labels: np.ndarray  # [N] int64, position of the class in `Dataset.classes`
    images: np.ndarray | None  # [N, 3, R, R] uint8 when stored as pixels
    files: list[bytes] | None  # N encoded files when stored as encoded


@dataclass(frozen=True)
class Dataset:
    """A training and a validation split with the same classes, and what is needed to use them."""

    train: Split
    val: Split
    classes: list[str]  # folder names, or the source's own, in label order
    names: list[str]  # readable names, in label order
    resolution: int  # R
    mean: list[float]  # of the training images in [0, 1], per channel
    std: list[float]  # a constant channel has 1, so that it can be divided by
    skipped: list[str]  # unreadable pictures left out, relative to root
    val_folder: str  # "" for digits, which have no split of their own
    source: str = ""


def collect(settings: DataSettings, seed: int = 0) -> Dataset:
    """Read the raw pictures of a dataset; `seed` matters only where the source has no split of its own (digits).

    Raises:
        WmddError: something is missing, unreadable or does not fit the settings; the message names it.
    """
    return _SOURCES[settings.source](settings, seed)


def to_arrays(dataset: Dataset) -> dict[str, np.ndarray]:
    """Return the arrays of `data.h5`, for each split S.

    `S/labels` [N] int64, and either `S/images` [N, 3, R, R] uint8, or `S/bytes` [total] uint8 with
    `S/offsets` [N + 1] int64: file i is `bytes[offsets[i]:offsets[i + 1]]`.
    """
    arrays = {}
    for name, split in (("train", dataset.train), ("val", dataset.val)):
        arrays[f"{name}/labels"] = split.labels
        if split.images is not None:
            arrays[f"{name}/images"] = split.images
        else:
            files = split.files or []
            arrays[f"{name}/bytes"] = np.frombuffer(b"".join(files), np.uint8)
            arrays[f"{name}/offsets"] = np.cumsum([0] + [len(file) for file in files], dtype=np.int64)
    return arrays


def to_meta(dataset: Dataset) -> dict[str, Any]:
    """Return what a reader of `data.h5` needs beside the arrays, as JSON; counts are per class in label order."""
    splits = {"train": dataset.train, "val": dataset.val}
    return {
        "source": dataset.source,
        "storage": "encoded" if dataset.train.images is None else "pixels",
        "classes": dataset.classes,
        "names": dataset.names,
        "resolution": dataset.resolution,
        "mean": dataset.mean,
        "std": dataset.std,
        "skipped": dataset.skipped,
        "val_folder": dataset.val_folder,
        "counts": {
            name: np.bincount(split.labels, minlength=len(dataset.classes)).tolist() for name, split in splits.items()
        },
    }


def load_images(
    path: Path, split: str, first: int = 0, last: int | None = None
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Read the classes first..last (inclusive; None: to the end) of a split as one contiguous slice of the file.

    Returns:
        Images [N, 3, R, R] uint8, labels [N] int64, and the meta data.

    Raises:
        WmddError: the file or a picture in it is damaged, or it lacks the split or the classes.
    """
    meta = artifacts.load_meta(path)
    last = len(meta["classes"]) - 1 if last is None else last
    if not 0 <= first <= last < len(meta["classes"]):
        raise WmddError(f"{path} has the classes 0..{len(meta['classes']) - 1}, not {first}..{last}; correct the range")
    with artifacts.reading(path) as file:
        if f"{split}/labels" not in file:
            raise WmddError(f"{path} has no split {split!r}; delete it and run again to rebuild it")
        labels = file[f"{split}/labels"][()]
        start, stop = np.searchsorted(labels, [first, last + 1])
        if f"{split}/images" in file:
            images = file[f"{split}/images"][start:stop]
        else:
            files = _stored_files(file[split], start, stop)
            images = _decode_all(files, meta["resolution"], f"decoding {split}", path)
    return torch.from_numpy(images), torch.from_numpy(labels[start:stop]), meta


def _stored_files(group: h5py.Group, start: int, stop: int) -> list[bytes]:
    offsets = group["offsets"][start : stop + 1]
    content = group["bytes"][offsets[0] : offsets[-1]].tobytes()
    bounds = (offsets - offsets[0]).tolist()
    return [content[a:b] for a, b in pairwise(bounds)]


def _decode_all(files: list[bytes], resolution: int, what: str, path: Path) -> np.ndarray:
    images = np.empty((len(files), 3, resolution, resolution), np.uint8)
    decoded = _in_order(lambda file: decode(file, resolution), files)
    try:
        for index, pixels in enumerate(progress(decoded, what, len(files), unit="img")):
            images[index] = pixels
    except UnreadableError as error:
        raise WmddError(f"{path} holds a picture that can't be read ({error}); delete it and run again") from None
    return images


# Pictures


def decode(data: bytes, resolution: int) -> np.ndarray:
    """Return the RGB pixels [3, R, R] uint8 of an encoded picture, or [3, H, W] as it is for resolution 0.

    The shorter side is resized to R (bilinear, antialiased) and the centre cropped, done as one resampling of the
    central square. The orientation in the EXIF data is honoured and of an animation the first frame is taken.

    Raises:
        UnreadableError: it is not a picture, is cut short, or has more pixels than Pillow's limit.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
                raise UnreadableError(f"{image.width} x {image.height} pixels are more than Pillow's limit")
            image.load()
            _turn_upright(image)
            square = _cropped(_to_rgb(image), resolution)
            return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))  # [H, W, 3] -> [3, H, W]
    except (MemoryError, UnreadableError):
        raise
    except Image.UnidentifiedImageError:
        raise UnreadableError("not a picture, or of a format that is not read" if data else "empty file") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise UnreadableError(" ".join(str(error).split()) or type(error).__name__) from None


def _turn_upright(image: Image.Image) -> None:
    """Apply the orientation in the EXIF data; damaged EXIF data do not make a picture unreadable."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # SyntaxError, struct.error, ...: Pillow lets through what its TIFF reader meets
        return


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB: 16-bit grey is divided by 257 (65535 -> 255), transparency is laid on white."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UnreadableError("32-bit values, whose range is not defined")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UnreadableError("floating-point values, whose range is not defined")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _cropped(image: Image.Image, resolution: int) -> Image.Image:
    """Resample the central square; Pillow's filter sees beyond it, so this is a crop of the resized whole."""
    side = min(image.size)
    if resolution == 0 or image.size == (resolution, resolution):
        return image
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((resolution, resolution), Image.Resampling.BILINEAR, box=box)


def _in_order(function: Callable[[T], U], items: Iterable[T], ahead: int = 256) -> Iterator[U]:
    """Yield function(item) in order, computed by as many threads as torch may use, at most `ahead` items at once."""
    remaining = iter(items)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        while batch := list(islice(remaining, ahead)):
            yield from pool.map(function, batch)


def _moments(images: np.ndarray) -> np.ndarray:
    """Return count, sum and sum of squares per channel [3, 3] of images [N, 3, H, W]; whole numbers, hence exact."""
    total = np.zeros((3, 3))
    for start in range(0, len(images), _ROWS):
        values = images[start : start + _ROWS].astype(np.float64)
        count = np.full(3, values[:, 0].size)
        total += [count, values.sum((0, 2, 3)), np.square(values).sum((0, 2, 3))]
    return total


def _mean_std(moments: np.ndarray) -> dict[str, list[float]]:
    count, total, squares = moments
    mean = total / count / 255
    std = np.sqrt(np.maximum(squares / count / 255**2 - mean**2, 0)).round(6)
    return {"mean": mean.round(6).tolist(), "std": np.where(std == 0, 1.0, std).tolist()}


# Folders of pictures


def _imagefolder(settings: DataSettings, seed: int) -> Dataset:
    """Read root/train/CLASS/... and root/val/CLASS/... (or test/, or validation/)."""
    root = _root(settings)
    val_folder = _val_folder(root)
    classes = _classes(root, val_folder)
    _check_count(classes, settings)
    train = [_pictures(root, f"train/{name}") for name in classes]
    val = [_pictures(root, f"{val_folder}/{name}") for name in classes]
    kept = [paths[: settings.images_per_class or None] for paths in train]
    encoded = settings.storage == "encoded" or (settings.storage == "auto" and not _sizes_agree(kept + val))
    reader = _Reader(root, settings, encoded)
    train_split, moments = reader.read("train", train, settings.images_per_class)
    val_split, _ = reader.read(val_folder, val)
    return Dataset(
        train=train_split,
        val=val_split,
        classes=classes,
        names=_names(root, classes),
        resolution=reader.resolution,
        **_mean_std(moments),
        skipped=reader.skipped,
        val_folder=val_folder,
        source=settings.source,
    )


def _root(settings: DataSettings) -> Path:
    if not settings.root:
        raise WmddError(f"data.root is not set; set it to the folder of the {settings.source} data")
    root = Path(settings.root).expanduser().resolve()
    if settings.source == "imagefolder" and not os.path.isdir(root):
        raise WmddError(f"there is no folder {root}; correct data.root")
    if root.exists() and not os.access(root, os.R_OK | os.X_OK):
        raise WmddError(f"cannot read the folder {root}; check its permissions")
    return root


def _val_folder(root: Path) -> str:
    if not (root / "train").is_dir():
        raise WmddError(f"{root} has no folder train/; put one folder per class in it, or correct data.root")
    for folder in _VAL_FOLDERS:
        if (root / folder).is_dir():
            return folder
    raise WmddError(f"{root} has no folder val/ (nor test/, validation/); put one folder per class in it")


def _classes(root: Path, val_folder: str) -> list[str]:
    """Return the class folders, which must be the same in both splits."""
    train, val = (
        [entry.name for entry in _listing(root, folder) if entry.is_dir()] for folder in ("train", val_folder)
    )
    lacks = [
        f"{folder}/ lacks {_first_few(sorted(missing))}"
        for folder, missing in ((val_folder, set(train) - set(val)), ("train", set(val) - set(train)))
        if missing
    ]
    if lacks:
        raise WmddError(f"the classes of {root} differ: {'; '.join(lacks)}; give every class a folder in both")
    return train


def _first_few(names: list[str], few: int = 3) -> str:
    more = f" and {len(names) - few} more" if len(names) > few else ""
    return ", ".join(repr(name) for name in names[:few]) + more


def _check_count(classes: list[str], settings: DataSettings) -> None:
    if len(classes) != settings.classes:
        where = settings.root if settings.source == "imagefolder" else settings.source
        raise WmddError(
            f"{where} has {len(classes)} classes but data.classes is {settings.classes}; "
            f"set data.classes to {len(classes)} or correct the data"
        )


def _listing(root: Path, folder: str) -> list[os.DirEntry[str]]:
    """Return what is in root/folder, sorted by name, without hidden entries.

    Raises:
        WmddError: it can't be read, or a link (the folder itself, or in it) leaves root.
    """
    path = root / folder
    if path.is_symlink():
        _check_link(path, root)
    try:
        with os.scandir(path) as found:
            entries = sorted((e for e in found if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise WmddError(f"cannot read the folder {path} ({error.strerror}); check its permissions") from None
    for entry in entries:
        if entry.is_symlink():
            _check_link(Path(entry.path), root)
    return entries


def _check_link(path: Path, root: Path) -> None:
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a loop, before Python 3.13
        raise WmddError(f"{path} is a broken link; repair or delete it") from None
    if not target.is_relative_to(root):
        raise WmddError(f"{path} links to {target}, outside of data.root; copy it there or set data.root to the target")


def _pictures(root: Path, folder: str) -> list[Path]:
    """Return the pictures of a class sorted by name, those of nested folders included."""
    found = list(_walk(root, folder))
    if not found:
        raise WmddError(
            f"the class folder {root / folder} has no pictures ({' '.join(_EXTENSIONS)}); "
            "add some, or delete the class in both splits"
        )
    return found


def _walk(root: Path, folder: str) -> Iterator[Path]:
    for entry in _listing(root, folder):
        if entry.is_dir() and entry.is_symlink():
            raise WmddError(f"{entry.path} links to a folder, which might never end; put the pictures there themselves")
        if entry.is_dir():
            yield from _walk(root, f"{folder}/{entry.name}")
        elif entry.is_file() and entry.name.lower().endswith(_EXTENSIONS):
            yield Path(entry.path)


def _names(root: Path, classes: list[str]) -> list[str]:
    """Return the readable names from root/classes.txt (lines of folder, tab, name), else the folders' own."""
    path = root / "classes.txt"
    if path.is_symlink():
        _check_link(path, root)
    if not path.is_file():
        return classes
    try:
        lines = path.read_text("utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise WmddError(f"cannot read {path} ({error.strerror}); check its permissions") from None
    named = dict(line.split("\t", 1) for line in lines if "\t" in line)
    return [named.get(name, "").strip() or name for name in classes]


def _sizes_agree(listing: list[list[Path]]) -> bool:
    """Compare the sizes in the headers; stops at the first that differs, passes over files that have none."""
    sizes = _in_order(_size, (path for paths in listing for path in paths))
    seen: set[tuple[int, int]] = set()
    for size in sizes:
        seen |= {size} if size else set()
        if len(seen) > 1:
            return False
    return True


def _size(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(Exception), Image.open(path, formats=_FORMATS) as image:
        return image.size
    return None


class _Reader:
    """Reads splits, each picture once; carries over from one split to the next what they share."""

    def __init__(self, root: Path, settings: DataSettings, encoded: bool) -> None:
        self.root, self.settings, self.encoded = root, settings, encoded
        self.resolution = settings.resolution  # when 0: that of the first picture
        self.skipped: list[str] = []

    def read(self, folder: str, listing: list[list[Path]], limit: int = 0) -> tuple[Split, np.ndarray]:
        """Return a split and its moments, from the files of each class; `limit` readable ones of each, 0: all."""
        count = sum(min(len(paths), limit or len(paths)) for paths in listing)
        labels: list[int] = []
        files: list[bytes] = []
        images, moments = np.empty(0, np.uint8), np.zeros((3, 3))
        found = self._readable(listing, limit)
        for label, data, pixels in progress(found, f"reading {folder}", count, unit="img"):
            if self.encoded:
                files.append(data)
            else:
                images = images if labels else np.empty((count, *pixels.shape), np.uint8)
                images[len(labels)] = pixels
            labels.append(label)
            moments += _moments(pixels[None])
        stored = (None, files) if self.encoded else (images[: len(labels)], None)
        return Split(np.array(labels, np.int64), *stored), moments

    def _readable(self, listing: list[list[Path]], limit: int) -> Iterator[tuple[int, bytes, np.ndarray]]:
        for label, paths in enumerate(listing):
            found = 0
            for path, data, pixels in _in_order(self._open, paths, min(limit or 256, 256)):
                if isinstance(pixels, UnreadableError):
                    self._leave_out(path, pixels)
                    continue
                self._check_size(path, pixels)
                yield label, data, pixels
                found += 1
                if found == limit:
                    break
            if not found:
                where = self.root.joinpath(*paths[0].relative_to(self.root).parts[:2])
                raise WmddError(
                    f"none of the {len(paths)} pictures of {where} can be read; "
                    "replace them, or delete the class in both splits"
                )

    def _open(self, path: Path) -> tuple[Path, bytes, np.ndarray | UnreadableError]:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise WmddError(f"cannot read {path} ({error.strerror}); check its permissions") from None
        try:
            return path, data, decode(data, self.settings.resolution)
        except UnreadableError as error:
            return path, data, error

    def _leave_out(self, path: Path, error: UnreadableError) -> None:
        if self.settings.on_corrupt == "error":
            raise WmddError(f"cannot read the picture {path} ({error}); replace it, or set data.on_corrupt to skip")
        self.skipped.append(path.relative_to(self.root).as_posix())

    def _check_size(self, path: Path, pixels: np.ndarray) -> None:
        """With resolution 0 all pictures must be squares of one size."""
        height, width = pixels.shape[1:]
        self.resolution = self.resolution or width
        if (height, width) != (self.resolution, self.resolution):
            wanted = (
                "is not square" if height != width else f"differs from the first, {self.resolution} x {self.resolution}"
            )
            raise WmddError(
                f"{path} ({width} x {height}) {wanted}; set data.resolution to the side that all shall have"
            )


# Sources that are arrays


def _from_arrays(
    settings: DataSettings,
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    classes: list[str],
    val_folder: str,
) -> Dataset:
    """Make a dataset of labels [N] and uint8 images [N, 3, R, R] in any order."""
    _check_count(classes, settings)
    if settings.storage == "encoded":
        raise WmddError(f"{settings.source} has no picture files to store; set data.storage to auto or pixels")
    train_split, val_split = _sorted(*train, settings.images_per_class), _sorted(*val, 0)
    assert train_split.images is not None
    return Dataset(
        train=train_split,
        val=val_split,
        classes=classes,
        names=classes,
        resolution=train_split.images.shape[-1],
        **_mean_std(_moments(train_split.images)),
        skipped=[],
        val_folder=val_folder,
        source=settings.source,
    )


def _sorted(labels: np.ndarray, images: np.ndarray, limit: int) -> Split:
    order = np.argsort(labels, kind="stable")
    if limit:
        place = np.arange(len(order)) - np.searchsorted(labels[order], labels[order])  # within its class
        order = order[place < limit]
    return Split(labels[order].astype(np.int64), images[order], None)


def _resized(images: np.ndarray, resolution: int) -> np.ndarray:
    """Resample numbers in 0..255 [N, 3, h, w] to uint8 [N, 3, R, R], bilinear and antialiased."""
    parts = [
        interpolate(part.float(), (resolution, resolution), mode="bilinear", antialias=True)
        .round()
        .clamp(0, 255)
        .byte()
        for part in torch.from_numpy(images).split(_ROWS)
    ]
    return torch.cat(parts).numpy()


def _digits(settings: DataSettings, seed: int) -> Dataset:
    """Read scikit-learn's digits, 8 px and 0..16, enlarged; a fifth of each class, drawn by `seed`, validates."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8).repeat(3, axis=1) * (255 / 16)
    images = _resized(images, settings.resolution or _DEFAULT_DIGITS_RESOLUTION)
    held_out = np.zeros(len(labels), bool)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        order = torch.randperm(len(members), generator=generator("data", "split", seed, label)).numpy()
        held_out[members[order[: round(_DIGITS_VAL_FRACTION * len(members))]]] = True
    train, val = ((labels[keep], images[keep]) for keep in (~held_out, held_out))
    return _from_arrays(settings, train, val, [str(digit) for digit in range(10)], "")


@dataclass(frozen=True)
class _Cifar:
    """The binary version of a CIFAR archive: rows of label bytes, the last of which counts, and 3072 pixels."""

    archive: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    label_bytes: int

    @property
    def url(self) -> str:
        return f"https://www.cs.toronto.edu/~kriz/{self.archive}"


_CIFAR = {
    "cifar10": _Cifar(
        archive="cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test=("test_batch.bin",),
        names="batches.meta.txt",
        label_bytes=1,
    ),
    "cifar100": _Cifar(
        archive="cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        train=("train.bin",),
        test=("test.bin",),
        names="fine_label_names.txt",
        label_bytes=2,
    ),
}


def _cifar(settings: DataSettings, seed: int) -> Dataset:
    """Read CIFAR-10 or CIFAR-100 in their binary version (torchvision's reader unpickles, hence not used)."""
    cifar, root = _CIFAR[settings.source], _root(settings)
    folder = _find_cifar(cifar, root)
    if folder is None:
        if (root / cifar.folder).exists():
            raise WmddError(f"{root / cifar.folder} lacks some of its files; delete it and run again to unpack it anew")
        _fetch(cifar, root, settings.download)
        folder = _unpack(cifar, root)
    classes = (folder / cifar.names).read_text().split()
    _check_count(classes, settings)
    train, val = (_read_rows(cifar, folder, files, len(classes)) for files in (cifar.train, cifar.test))
    if settings.resolution not in (0, 32):
        train, val = ((labels, _resized(images, settings.resolution)) for labels, images in (train, val))
    return _from_arrays(settings, train, val, classes, "test")


def _find_cifar(cifar: _Cifar, root: Path) -> Path | None:
    """Return the unpacked folder: root/FOLDER, or root itself."""
    for folder in (root / cifar.folder, root):
        files = [folder / name for name in (cifar.names, *cifar.train, *cifar.test)]
        if all(file.is_file() for file in files):
            for file in files:
                _check_link(file, root)
            return folder
    return None


def _fetch(cifar: _Cifar, root: Path, download: bool) -> None:
    """See to it that the archive is in root, with the right checksum."""
    archive = root / cifar.archive
    by_hand = f"fetch {cifar.url} (MD5 {cifar.md5}) by hand and put it at {archive}"
    if check_integrity(archive, cifar.md5):
        return
    if not download:
        state = "has a wrong checksum" if archive.exists() else "does not exist"
        raise WmddError(f"{archive} {state} and data.download is off; {by_hand}, or switch it on")
    try:
        download_url(cifar.url, root, cifar.archive, cifar.md5)
    except (OSError, RuntimeError, HTTPException) as error:  # RuntimeError: the checksum
        reason = " ".join(str(error).split())
        raise WmddError(f"cannot download {cifar.url} ({reason}); {by_hand}") from None


def _unpack(cifar: _Cifar, root: Path) -> Path:
    """Unpack the archive beside itself, whole or not at all."""
    archive, folder = root / cifar.archive, root / cifar.folder
    try:
        with tempfile.TemporaryDirectory(dir=root, prefix=f".{cifar.folder}.") as part:
            with tarfile.open(archive) as content:
                content.extractall(part, filter="data")
            Path(part, cifar.folder).replace(folder)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise WmddError(f"cannot unpack {archive} ({error}); unpack it by hand to {folder}") from None
    if _find_cifar(cifar, root) is None:
        raise WmddError(f"{archive} lacks some of its files; delete it and run again to fetch it anew")
    return folder


def _read_rows(cifar: _Cifar, folder: Path, names: tuple[str, ...], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels [N] and images [N, 3, 32, 32] of some binary files."""
    width = cifar.label_bytes + 3 * 32 * 32
    rows = np.concatenate([np.fromfile(folder / name, np.uint8) for name in names])
    whole = rows.size > 0 and rows.size % width == 0
    rows = rows.reshape(-1, width) if whole else rows
    if not whole or rows[:, cifar.label_bytes - 1].max() >= classes:
        raise WmddError(f"{', '.join(names)} in {folder} are damaged; delete {folder} and run again to unpack it anew")
    return rows[:, cifar.label_bytes - 1], rows[:, cifar.label_bytes :].reshape(-1, 3, 32, 32)


_SOURCES: dict[str, Callable[[DataSettings, int], Dataset]] = {
    "digits": _digits,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "imagefolder": _imagefolder,
}
