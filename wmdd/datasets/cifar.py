"""CIFAR-10 and CIFAR-100 in their binary version, downloaded when they are not there (torchvision's reader unpickles)."""

from pathlib import Path

import numpy as np

from wmdd.base.errors import WmddError
from wmdd.datasets.class_files import reading
from wmdd.datasets.class_folders import check_inside
from wmdd.datasets.find_images import unpacked
from wmdd.settings.catalogue import Rows, known
from wmdd.settings.data import DataSettings

Arrays = tuple[np.ndarray, np.ndarray]  # labels [N], images [N, 3, h, w] in 0..255


def read(settings: DataSettings) -> tuple[Arrays, Arrays, list[str]]:
    """Return the training and the test rows and the names of the classes.

    Raises:
        WmddError: the files can't be had, or are damaged.
    """
    rows = known(settings.source).rows
    assert rows is not None
    names = (rows.classes, *rows.train, *rows.test)
    folder = unpacked(settings, lambda folder: all((folder / name).is_file() for name in names))
    for name in names:
        check_inside(folder / name, folder)
    with reading(folder):
        classes = (folder / rows.classes).read_text(encoding="utf-8").split()
        train, test = (_read_rows(rows, folder, files, len(classes)) for files in (rows.train, rows.test))
    return train, test, classes


def _read_rows(rows: Rows, folder: Path, names: tuple[str, ...], classes: int) -> Arrays:
    """Return labels [N] and images [N, 3, 32, 32]."""
    width = rows.label_bytes + 3 * 32 * 32
    content = np.concatenate([np.fromfile(folder / name, np.uint8) for name in names])
    table = content[: content.size // width * width].reshape(-1, width)
    labels = table[:, rows.label_bytes - 1]
    if table.size != content.size or not table.size or labels.max() >= classes:
        raise WmddError(f"{', '.join(names)} in {folder} are damaged; delete {folder} and run again to unpack it anew")
    return labels, table[:, rows.label_bytes :].reshape(-1, 3, 32, 32)
