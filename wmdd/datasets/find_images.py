"""Sources: where the pictures of a dataset are. Downloads and unpacks them where the table says so; decodes nothing."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wmdd.base.errors import WmddError
from wmdd.datasets import class_folders, imagenet_archives, imagenet_classes
from wmdd.datasets.archives import unpack
from wmdd.datasets.class_files import FolderShelf, Shelf, reading
from wmdd.datasets.class_folders import Splits
from wmdd.datasets.download import fetch
from wmdd.settings.catalogue import known
from wmdd.settings.data import DataSettings

__all__ = ["Found", "Shelf", "find", "root_of", "unpacked"]


@dataclass(frozen=True)
class Found:
    """The encoded pictures of a dataset."""

    root: Path  # that the names of pictures begin at
    classes: list[str]  # folder names in label order, sorted
    names: list[str]  # readable names
    train: Sequence[Shelf]  # one a class, in label order
    val: Sequence[Shelf]
    val_folder: str  # what the validation split was called
    variant: str  # which of the things that go by this name it is, for the report


def find(settings: DataSettings) -> Found:
    """Find the pictures of a dataset that is laid out as folders or as ImageNet is.

    Raises:
        WmddError: something is missing, can't be fetched, or does not fit together; the message names it.
    """
    entry = known(settings.source)
    if entry.layout == "imagenet":
        root, splits, how = imagenet_archives.find(root_of(settings), entry, settings.source)
        variant = f"{entry.variant}, from {how}"
    elif entry.layout in ("folders", "tiny-imagenet"):
        root = unpacked(settings, lambda folder: (folder / "train").is_dir())
        splits, variant = (
            (_tiny if entry.layout == "tiny-imagenet" else class_folders.find)(root),
            entry.variant.format(folder=root.name),
        )
    else:
        raise WmddError(f"the pictures of {settings.source} are not files; this is a mistake of ours")
    names = class_folders.readable_names(root, splits.classes)
    names = [
        imagenet_classes.readable(name) if name == folder else name
        for name, folder in zip(names, splits.classes, strict=True)
    ]
    return Found(root, splits.classes, names, splits.train, splits.val, splits.val_folder, variant)


def root_of(settings: DataSettings) -> Path:
    """Return the folder that the source is in, resolved; it need not exist.

    Raises:
        WmddError: none is set, or it can't be read.
    """
    where = settings.root or known(settings.source).data.get("root", "")
    if not where:
        raise WmddError(f"data.root is not set; set it to the folder of the {settings.source} data")
    root = Path(where).expanduser().resolve()
    if root.exists() and not os.access(root, os.R_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise WmddError(f"cannot read {root}; check its permissions")
    return root


def unpacked(settings: DataSettings, is_whole: Callable[[Path], bool]) -> Path:
    """Return the folder that a source is unpacked in: data.root, or the archive's in it, downloaded if need be.

    Raises:
        WmddError: it is there but not whole, or can't be had.
    """
    root, entry = root_of(settings), known(settings.source)
    if not entry.archives or is_whole(root):
        return root
    (archive,) = entry.archives
    folder = root / archive.folder
    if not folder.exists():
        unpack(fetch(archive, root, settings.download), folder)
    if not is_whole(folder):
        raise WmddError(f"{folder} lacks some of its files; delete it and run again to unpack it anew")
    return folder.resolve()


def _tiny(root: Path) -> Splits:
    """Tiny-ImageNet as it is published: the validation pictures in one folder, their classes in a file."""
    if not (root / "val/images").is_dir():  # sorted into class folders since
        return class_folders.find(root)
    classes = class_folders.class_folders(root, "train")
    origin = root / "val/val_annotations.txt"
    with reading(origin):
        lines = origin.read_text(errors="replace").splitlines()
    labels = {
        name.rpartition(".")[0]: label for name, label, *_ in (line.split("\t") for line in lines if "\t" in line)
    }
    names = class_folders.flat(root, "val/images")
    positions = class_folders.by_class(names, labels, classes, root / "val/images", origin)
    val = [FolderShelf(root, "val/images", (names[index] for index in positions[name])) for name in classes]
    return Splits(classes, [class_folders.shelf(root, f"train/{name}") for name in classes], val, "val")
