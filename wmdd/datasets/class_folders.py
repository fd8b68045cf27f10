"""Folders of pictures: root/train/CLASS/... and root/val/CLASS/... (or valid/, validation/, test/), nested as they like.

No link that leaves the root is followed. Hidden entries and files of other kinds are passed over; pictures in formats that are
not read are counted.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from wmdd.base.errors import WmddError, printable
from wmdd.datasets.class_files import ClassFiles, in_folder, reading

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
OTHER_FORMATS = (
    ".heic",
    ".heif",
    ".avif",
    ".jp2",
    ".j2k",
    ".jxl",
    ".svg",
    ".psd",
    ".dng",
    ".cr2",
    ".nef",
    ".arw",
    ".exr",
)
_VAL_FOLDERS = ("val", "valid", "validation", "test")  # the first that exists


class Splits(NamedTuple):
    """The classes, sorted, and the files of each in both splits, in the same order."""

    classes: list[str]
    train: Sequence[ClassFiles]
    val: Sequence[ClassFiles]
    val_folder: str
    other_formats: Sequence[str] = ()  # pictures that are passed over


def find(root: Path, held_out: bool = False) -> Splits:
    """List the pictures of both splits, which must have the same classes; of the training set alone, if a part validates.

    Raises:
        WmddError: a split is not there, a class is only in one of them or has no pictures, a link leaves the root, or a
            folder can't be read.
    """
    val_folder = next((name for name in _VAL_FOLDERS if (root / name).is_dir()), "val")
    classes, others = class_names(root, "train"), list[str]()
    train = [class_files(root, f"train/{name}", others) for name in classes]
    if held_out:
        return Splits(classes, train, [], "", others)
    check_same(root, classes, class_names(root, val_folder), val_folder)
    val = [class_files(root, f"{val_folder}/{name}", others) for name in classes]
    return Splits(classes, train, val, val_folder, others)


def class_names(root: Path, split: str) -> list[str]:
    """Return the names of the class folders of a split, sorted.

    Raises:
        WmddError: there is no such split, or no class folder in it.
    """
    folder = root / split
    remedy = (
        "put train/ and val/ (or valid/, validation/, test/) there, with one folder per class, or correct data.root"
    )
    if not folder.is_dir():
        raise WmddError(f"there is no folder {folder}; {remedy}")
    names = [entry.name for entry in visible_entries(folder, root) if entry.is_dir()]
    if not names:
        raise WmddError(f"there are no class folders in {folder}; {remedy}")
    return names


def check_same(root: Path, train: Iterable[str], val: Iterable[str], val_folder: str) -> None:
    """Refuse classes that are only in one split.

    Raises:
        WmddError: names them.
    """
    train, val = set(train), set(val)
    lacks = "; ".join(
        f"{split}/ lacks {shortened(missing)}"
        for split, missing in ((val_folder, sorted(train - val)), ("train", sorted(val - train)))
        if missing
    )
    if lacks:
        raise WmddError(f"the classes of {root} differ: {lacks}; give every class a folder in both")


def shortened(names: Sequence[str]) -> str:
    """Return at most three names and how many more there are."""
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def class_files(root: Path, folder: str, others: list[str] | None = None) -> ClassFiles:
    """List the pictures below a class folder; those in formats that are not read are added to `others`.

    Raises:
        WmddError: there are none, or something in it can't be read or leaves the root.
    """
    passed: list[str] = []
    files = in_folder(root, folder, _pictures_below(root / folder, root, passed))
    if others is not None:
        others += [f"{folder}/{name}" for name in passed]
    if not len(files):
        remedy = "add some, or delete the class in both splits"
        if passed:
            remedy = f"convert the {len(passed)} that are in other formats, as {passed[0]}"
        raise WmddError(f"the class folder {root / folder} has no pictures ({' '.join(EXTENSIONS)}); {remedy}")
    return files


def pictures_in(root: Path, folder: str) -> list[str]:
    """Return the names of the pictures in a folder that has no class folders, sorted."""
    return [entry.name for entry in visible_entries(root / folder, root) if entry.is_file() and is_picture(entry.name)]


def positions_by_class(
    names: Sequence[str], labels: Mapping[str, str], classes: Iterable[str], pictures: Path, label_file: Path
) -> dict[str, list[int]]:
    """Return the positions in `names` of the pictures of each class.

    Args:
        names: of the pictures.
        labels: the class of each, by its name without the ending.
        classes: that there are.
        pictures: the folder or tar of the pictures, for messages.
        label_file: where the labels are from, for messages.

    Raises:
        WmddError: a label is of no picture or of no class, a picture has no label, or a class no picture.
    """
    position_of = {name.rpartition(".")[0]: index for index, name in enumerate(names)}
    if len(position_of) < len(names):
        raise WmddError(
            f"two files in {pictures} differ only in the ending, so {label_file} can't tell them apart; rename one"
        )
    positions: dict[str, list[int]] = {name: [] for name in classes}
    for stem, name in labels.items():
        if stem not in position_of:
            raise WmddError(
                f"{label_file} labels {stem!r}, but {pictures} has no such picture; restore it or delete its line"
            )
        if name not in positions:
            raise WmddError(
                f"{label_file} says that {stem!r} is a {name!r}, but train/ has no such class; correct one of them"
            )
        positions[name].append(position_of[stem])
    if unlabelled := sorted(position_of.keys() - labels.keys()):
        raise WmddError(
            f"{label_file} has no label for {shortened(unlabelled)} in {pictures}; add it or delete the picture"
        )
    if empty := [name for name, members in positions.items() if not members]:
        raise WmddError(
            f"{pictures} has no picture of {shortened(empty)} by {label_file}; restore them or delete the class in train/"
        )
    return {name: sorted(members) for name, members in positions.items()}


def readable_names(root: Path, classes: list[str]) -> list[str]:
    """Return the readable names from root/classes.txt or words.txt (lines of folder, tab, name), else the folders' own."""
    names: dict[str, str] = {}
    for path in (root / "words.txt", root / "classes.txt"):
        if path.is_symlink():
            check_inside(path, root)
        if path.is_file():
            with reading(path):
                lines = path.read_text("utf-8-sig", errors="replace").splitlines()
            names |= dict(line.split("\t", 1) for line in lines if "\t" in line)
    return [names.get(name, "").strip() or name for name in classes]


def is_picture(name: str) -> bool:
    """Return whether a file is one by its name."""
    return name.lower().endswith(EXTENSIONS)


def _pictures_below(folder: Path, root: Path, passed: list[str], prefix: str = "") -> Iterator[str]:
    for entry in visible_entries(folder, root):
        if entry.is_dir() and entry.is_symlink():
            raise WmddError(f"{entry.path} links to a folder, which might never end; put the pictures there themselves")
        if entry.is_dir():
            yield from _pictures_below(folder / entry.name, root, passed, f"{prefix}{entry.name}/")
        elif entry.is_file() and is_picture(entry.name):
            yield prefix + entry.name
        elif entry.name.lower().endswith(OTHER_FORMATS):
            passed.append(prefix + entry.name)


def visible_entries(folder: Path, root: Path, setting: str = "data.root") -> list[os.DirEntry[str]]:
    """Return what is in a folder, sorted by name, without hidden entries; `setting` names the root.

    Raises:
        WmddError: it can't be read, a name in it is no UTF-8 or has control characters, or a link in it leaves the root.
    """
    check_inside(folder, root, setting)
    with reading(folder), os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=attrgetter("name"))
    for entry in visible:
        if printable(entry.name) != entry.name:
            fault = "is no UTF-8 or has control characters, which no later stage can write"
            raise WmddError(f"the name {printable(entry.name)} in {folder} {fault}; rename it")
        if entry.is_symlink():
            check_inside(folder / entry.name, root, setting)
    return visible


def check_inside(path: Path, root: Path, setting: str = "data.root") -> None:
    """Refuse links that are broken or leave the root, which a setting names.

    Raises:
        WmddError: names the link and where it leads.
    """
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a loop, before Python 3.13
        raise WmddError(f"{path} is a broken link; repair or delete it") from None
    if not target.is_relative_to(root):
        raise WmddError(f"{path} links to {target}, outside of {setting}; copy it there or set {setting} to the target")
