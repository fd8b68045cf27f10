"""CIFAR-10 and CIFAR-100 in their binary version, downloaded when they are not there (torchvision's reader unpickles)."""

import tarfile
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torchvision.datasets.utils import check_integrity, download_url

from wmdd.errors import WmddError
from wmdd.folders import check_inside, root_of
from wmdd.settings import DataSettings

Arrays = tuple[np.ndarray, np.ndarray]  # labels [N], images [N, 3, h, w] in 0..255


@dataclass(frozen=True)
class Archive:
    """A published archive; its binary files are rows of label bytes, the last of which counts, and 3072 pixels."""

    name: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    classes: str
    label_bytes: int


ARCHIVES = {
    "cifar10": Archive(
        name="cifar-10-binary.tar.gz", md5="c32a1d4ab5d03f1284b67883e8d87530", folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)), test=("test_batch.bin",),
        classes="batches.meta.txt", label_bytes=1,
    ),
    "cifar100": Archive(
        name="cifar-100-binary.tar.gz", md5="03b5dce01913d631647c71ecec9e9cb8", folder="cifar-100-binary",
        train=("train.bin",), test=("test.bin",), classes="fine_label_names.txt", label_bytes=2,
    ),
}  # fmt: skip


def read(settings: DataSettings) -> tuple[Arrays, Arrays, list[str]]:
    """Return the training and the test rows and the names of the classes."""
    archive, root = ARCHIVES[settings.source], root_of(settings)
    folder = _unpacked(archive, root)
    if folder is None:
        _fetch(archive, root, settings.download)
        _unpack(archive, root)
        return read(settings)
    classes = (folder / archive.classes).read_text().split()
    train, test = (_read_rows(archive, folder, names, len(classes)) for names in (archive.train, archive.test))
    return train, test, classes


def _unpacked(archive: Archive, root: Path) -> Path | None:
    """Return the folder that has all files: root/FOLDER, or root itself."""
    for folder in (root / archive.folder, root):
        files = [folder / name for name in (archive.classes, *archive.train, *archive.test)]
        if all(file.is_file() for file in files):
            for file in files:
                check_inside(file, root)
            return folder
    if (root / archive.folder).exists():
        raise WmddError(f"{root / archive.folder} lacks some of its files; delete it and run again to unpack it anew")
    return None


def _fetch(archive: Archive, root: Path, download: bool) -> None:
    """See to it that the archive is in root, with the right checksum."""
    path, url = root / archive.name, f"https://www.cs.toronto.edu/~kriz/{archive.name}"
    by_hand = f"fetch {url} (MD5 {archive.md5}) by hand and put it at {path}"
    if check_integrity(path, archive.md5):
        return
    if not download:
        state = "has a wrong checksum" if path.exists() else "does not exist"
        raise WmddError(f"{path} {state} and data.download is off; {by_hand}, or switch it on")
    try:
        download_url(url, root, archive.name, archive.md5)
    except (OSError, RuntimeError, HTTPException) as error:  # RuntimeError: the checksum
        reason = " ".join(str(error).split())
        raise WmddError(f"cannot download {url} ({reason}); {by_hand}") from None


def _unpack(archive: Archive, root: Path) -> None:
    """Unpack the archive beside itself, whole or not at all."""
    path, folder = root / archive.name, root / archive.folder
    try:
        with TemporaryDirectory(dir=root, prefix=f".{archive.folder}.") as part:
            with tarfile.open(path) as content:
                content.extractall(part, filter="data")
            Path(part, archive.folder).replace(folder)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise WmddError(f"cannot unpack {path} ({error}); unpack it by hand to {folder}") from None


def _read_rows(archive: Archive, folder: Path, names: tuple[str, ...], classes: int) -> Arrays:
    """Return labels [N] and images [N, 3, 32, 32]."""
    width = archive.label_bytes + 3 * 32 * 32
    content = np.concatenate([np.fromfile(folder / name, np.uint8) for name in names])
    rows = content[: content.size // width * width].reshape(-1, width)
    labels = rows[:, archive.label_bytes - 1]
    if rows.size != content.size or not rows.size or labels.max() >= classes:
        raise WmddError(f"{', '.join(names)} in {folder} are damaged; delete {folder} and run again to unpack it anew")
    return labels, rows[:, archive.label_bytes :].reshape(-1, 3, 32, 32)
