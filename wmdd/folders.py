"""Folders of pictures: root/train/CLASS/... and root/val/CLASS/... (or test/, or validation/), nested as they like.

No link that leaves the root is followed; hidden entries and files of other kinds are passed over.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from operator import attrgetter
from pathlib import Path

import numpy as np

from wmdd.errors import WmddError
from wmdd.pictures import UnreadableError, decode, in_order
from wmdd.settings import DataSettings

_EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
_VAL_FOLDERS = ("val", "test", "validation")  # the first that exists

Listing = dict[Path, list[Path]]  # the pictures of each class folder, both sorted by name


def root_of(settings: DataSettings) -> Path:
    """Return the folder that the source is in, resolved; it need not exist."""
    if not settings.root:
        raise WmddError(f"data.root is not set; set it to the folder of the {settings.source} data")
    root = Path(settings.root).expanduser().resolve()
    if root.exists() and not os.access(root, os.R_OK | os.X_OK):
        raise WmddError(f"cannot read {root}; check its permissions")
    return root


def find(root: Path) -> tuple[str, Listing, Listing]:
    """Return the name of the validation folder, and the pictures of both splits, which must have the same classes."""
    val_folder = next((name for name in _VAL_FOLDERS if (root / name).is_dir()), "val")
    for split in ("train", val_folder):
        if not (root / split).is_dir():
            raise WmddError(
                f"there is no folder {root / split}; put train/ and val/ (or test/, validation/) there, "
                "with one folder per class, or correct data.root"
            )
    train, val = (
        [entry.name for entry in _entries(root / split, root) if entry.is_dir()] for split in ("train", val_folder)
    )
    lacks = "; ".join(
        f"{split}/ lacks {', '.join(map(repr, missing[:3]))}" + (f" and {len(missing) - 3} more" if missing[3:] else "")
        for split, missing in ((val_folder, sorted({*train} - {*val})), ("train", sorted({*val} - {*train})))
        if missing
    )
    if lacks:
        raise WmddError(f"the classes of {root} differ: {lacks}; give every class a folder in both")
    return val_folder, _pictures(root / "train", train, root), _pictures(root / val_folder, val, root)


def readable_names(root: Path, classes: list[str]) -> list[str]:
    """Return the readable names from root/classes.txt (lines of folder, tab, name), else the folders' own."""
    path = root / "classes.txt"
    if path.is_symlink():
        check_inside(path, root)
    if not path.is_file():
        return classes
    with _reading(path):
        lines = path.read_text("utf-8-sig", errors="replace").splitlines()
    named = dict(line.split("\t", 1) for line in lines if "\t" in line)
    return [named.get(name, "").strip() or name for name in classes]


def _pictures(folder: Path, classes: list[str], root: Path) -> Listing:
    listing = {folder / name: list(_walk(folder / name, root)) for name in classes}
    for empty in (folder for folder, paths in listing.items() if not paths):
        remedy = "add some, or delete the class in both splits"
        raise WmddError(f"the class folder {empty} has no pictures ({' '.join(_EXTENSIONS)}); {remedy}")
    return listing


def _walk(folder: Path, root: Path) -> Iterator[Path]:
    for entry in _entries(folder, root):
        if entry.is_dir() and entry.is_symlink():
            raise WmddError(f"{entry.path} links to a folder, which might never end; put the pictures there themselves")
        if entry.is_dir():
            yield from _walk(folder / entry.name, root)
        elif entry.is_file() and entry.name.lower().endswith(_EXTENSIONS):
            yield folder / entry.name


def _entries(folder: Path, root: Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder, sorted by name, without hidden entries."""
    check_inside(folder, root)
    with _reading(folder), os.scandir(folder) as found:
        entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=attrgetter("name"))
    for entry in entries:
        if entry.is_symlink():
            check_inside(folder / entry.name, root)
    return entries


def check_inside(path: Path, root: Path) -> None:
    """Refuse links that are broken or leave the root."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a loop, before Python 3.13
        raise WmddError(f"{path} is a broken link; repair or delete it") from None
    if not target.is_relative_to(root):
        raise WmddError(f"{path} links to {target}, outside of data.root; copy it there or set data.root to the target")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WmddError(f"cannot read {path} ({error.strerror}); check its permissions") from None


class Reader:
    """Reads splits, each picture once; carries over from one split to the next what they share."""

    def __init__(self, root: Path, settings: DataSettings) -> None:
        self.root, self.settings = root, settings
        self.resolution = settings.resolution  # when 0: that of the first picture
        self.skipped: list[str] = []  # relative to the root

    def read(self, listing: Listing, limit: int | None = None) -> Iterator[tuple[int, bytes, np.ndarray]]:
        """Yield label, bytes and pixels of the first `limit` readable pictures of each class, None: of all."""
        for label, (folder, paths) in enumerate(listing.items()):
            nothing = True
            for data, pixels in islice(self._readable(paths), limit):
                nothing = False
                yield label, data, pixels
            if nothing:
                raise WmddError(
                    f"none of the {len(paths)} pictures of {folder} can be read; "
                    "replace them, or delete the class in both splits"
                )

    def _readable(self, paths: list[Path]) -> Iterator[tuple[bytes, np.ndarray]]:
        for path, opened in in_order(self._open, paths):
            try:
                data, pixels = opened.result()
            except UnreadableError as error:
                if self.settings.on_corrupt == "error":
                    remedy = "replace it, or set data.on_corrupt to skip"
                    raise WmddError(f"cannot read the picture {path} ({error}); {remedy}") from None
                self.skipped.append(path.relative_to(self.root).as_posix())
                continue
            _, height, width = pixels.shape
            side = self.resolution = self.resolution or width
            if (height, width) != (side, side):
                fault = "is not square" if height != width else f"differs from the first, {side} x {side}"
                remedy = "set data.resolution to the side that all shall have"
                raise WmddError(f"{path} ({width} x {height}) {fault}; {remedy}")
            yield data, pixels

    def _open(self, path: Path) -> tuple[bytes, np.ndarray]:
        with _reading(path):
            data = path.read_bytes()
        return data, decode(data, self.settings.resolution)
