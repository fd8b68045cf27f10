"""Where the pictures of a dataset are. Downloads and unpacks them where the catalogue says so; decodes nothing."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wmdd.base.errors import WmddError
from wmdd.datasets import class_folders, imagenet_archives, imagenet_classes
from wmdd.datasets.archives import unpack
from wmdd.datasets.class_files import ClassFiles, in_folder, reading
from wmdd.datasets.class_folders import Splits
from wmdd.datasets.download import fetch
from wmdd.settings.catalogue import known
from wmdd.settings.data import DataSettings


@dataclass(frozen=True)
class DatasetFiles:
    """The encoded pictures of a dataset."""

    root: Path  # that the names of pictures begin at
    classes: list[str]  # folder names in label order, sorted
    names: list[str]  # readable names
    train: Sequence[ClassFiles]  # one a class, in label order
    val: Sequence[ClassFiles]
    val_folder: str  # what the validation split was called
    variant: str  # which of the things that go by this name it is, for the report
    other_formats: Sequence[str] = ()  # pictures that are passed over


def find(settings: DataSettings) -> DatasetFiles:
    """Find the pictures of a dataset that is laid out as folders or as ImageNet is.

    Raises:
        WmddError: something is missing, can't be fetched, or does not fit together; the message names it.
    """
    entry = known(settings.source)
    if entry.layout == "imagenet":
        root, splits, form = imagenet_archives.find(root_of(settings), entry, settings.source)
        variant = f"{entry.variant}, from {form}"
    elif entry.layout in ("folders", "tiny-imagenet"):
        root = unpacked(settings, lambda folder: (folder / "train").is_dir())
        splits = (
            _tiny_imagenet(root)
            if entry.layout == "tiny-imagenet"
            else class_folders.find(root, bool(settings.held_out))
        )
        variant = entry.variant.format(folder=root.name)
    else:
        raise WmddError(f"the pictures of {settings.source} are not files; this is a mistake of ours")
    names = [
        imagenet_classes.readable(name) if name == folder else name
        for name, folder in zip(class_folders.readable_names(root, splits.classes), splits.classes, strict=True)
    ]
    return DatasetFiles(root, names=names, variant=variant, **splits._asdict())


def root_of(settings: DataSettings) -> Path:
    """Return the folder that the dataset is in, resolved; it need not exist.

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
    """Return the folder that a dataset is unpacked in: data.root, or the archive's in it, downloaded if need be.

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


def _tiny_imagenet(root: Path) -> Splits:
    """Tiny-ImageNet as it is published: the validation pictures in one folder, their classes in a file."""
    folder, annotations = root / "val/images", root / "val/val_annotations.txt"
    if not folder.is_dir():  # sorted into class folders since
        return class_folders.find(root)
    classes = class_folders.class_names(root, "train")
    with reading(annotations):
        rows = [
            line.split("\t")
            for line in annotations.read_text(encoding="utf-8", errors="replace").splitlines()
            if "\t" in line
        ]
    labels = {name.rpartition(".")[0]: label for name, label, *_ in rows}
    names = class_folders.pictures_in(root, "val/images")
    positions = class_folders.positions_by_class(names, labels, classes, folder, annotations)
    train = [class_folders.class_files(root, f"train/{name}") for name in classes]
    val = [in_folder(root, "val/images", (names[index] for index in positions[name])) for name in classes]
    return Splits(classes, train, val, "val")
