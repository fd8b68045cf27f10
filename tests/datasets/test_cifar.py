"""CIFAR in small: the same files with few rows."""

import hashlib
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.stages.test_data import noise, refusal
from wmdd.datasets import cifar
from wmdd.settings import catalogue
from wmdd.settings.catalogue import Archive, Rows
from wmdd.settings.data import DataSettings

CLASSES = {"cifar10": 10, "cifar100": 100}


def spec(source: str) -> tuple[Rows, Archive]:
    entry = catalogue.known(source)
    assert entry.rows is not None
    return entry.rows, entry.archives[0]


@pytest.fixture(params=["cifar10", "cifar100"])
def source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Files of 40 training and 20 test rows, and their archive at tmp_path/raw with its own checksum and no network."""
    rows, published = spec(request.param)
    folder = tmp_path / published.folder
    folder.mkdir()
    for index, name in enumerate((*rows.train, *rows.test)):
        count = 20 if name in rows.test else 40 // len(rows.train)
        table = noise(count, rows.label_bytes + 3072, seed=index)
        table[:, rows.label_bytes - 1] = np.arange(count)[::-1] % CLASSES[request.param]
        table.tofile(folder / name)
    (folder / rows.classes).write_text(
        "\n".join(f"class{label:02}" for label in range(CLASSES[request.param])) + "\n\n"
    )
    (tmp_path / "raw").mkdir()
    pack(request.param, tmp_path, monkeypatch, {path: f"{published.folder}/{path.name}" for path in folder.iterdir()})
    return str(request.param)


def pack(source: str, root: Path, monkeypatch: pytest.MonkeyPatch, members: dict[Path, str]) -> Path:
    """Make root/raw/ARCHIVE and put its checksum in the table."""
    published = spec(source)[1]
    path = root / "raw" / published.name
    with tarfile.open(path, "w:gz") as content:
        for file, name in members.items():
            content.add(file, name)
    changes = {"size": path.stat().st_size, "sha256": "", "md5": hashlib.md5(path.read_bytes()).hexdigest()}
    archive = published.model_copy(update=changes | {"url": f"http://127.0.0.1:1/{published.name}"})
    table = dict(catalogue.table())
    table[source] = table[source].model_copy(update={"archives": (archive,)})
    monkeypatch.setattr(catalogue, "table", lambda: table)
    return path


def read(source: str, root: Path, **options: Any) -> tuple[cifar.Arrays, cifar.Arrays, list[str]]:
    return cifar.read(DataSettings(source=source, root=str(root), **options))


def test_rows(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.delattr(f"pickle.{name}")
    (labels, images), (test_labels, test_images), classes = read(source, tmp_path / "raw")
    rows, archive = spec(source)
    table = np.concatenate([np.fromfile(tmp_path / archive.folder / name, np.uint8) for name in rows.train])
    table = table.reshape(40, -1)
    assert labels.tolist() == table[:, rows.label_bytes - 1].tolist()
    for channel in range(3):
        plane = table[:, rows.label_bytes + 1024 * channel :][:, :1024].reshape(40, 32, 32)
        np.testing.assert_array_equal(images[:, channel], plane)
    assert (len(test_labels), test_images.shape) == (20, (20, 3, 32, 32))
    assert classes[:2] == ["class00", "class01"]
    assert len(classes) == CLASSES[source]
    for root in (tmp_path, tmp_path / archive.folder):  # unpacked already: the folder, or the one above
        np.testing.assert_array_equal(read(source, root, download=False)[0][1], images)


def test_damage_and_links_are_one_line(source: str, tmp_path: Path) -> None:
    rows, archive = spec(source)
    path = tmp_path / archive.folder / rows.test[0]
    whole = path.read_bytes()
    for content in (whole[:-5], b"\xff" * len(whole), b""):
        path.write_bytes(content)
        refusal(path.name, archive.folder, "damaged", call=lambda: read(source, tmp_path))
    path.rename(tmp_path / "elsewhere")
    refusal(archive.folder, "lacks", call=lambda: read(source, tmp_path))
    path.symlink_to(tmp_path / "elsewhere")
    refusal(str(path), "outside", call=lambda: read(source, tmp_path))


def test_an_archive_that_can_not_be_had_or_is_wrong(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, archive = spec(source)
    said = (archive.url, archive.md5, str(tmp_path / "new" / archive.name), "data.download")
    refusal(*said, call=lambda: read(source, tmp_path / "new", download=False))
    path = tmp_path / "raw" / archive.name
    path.write_bytes(path.read_bytes()[::-1])
    refusal(str(path), "wrong checksum", call=lambda: read(source, tmp_path / "raw"))
    name = f"{archive.folder}/{rows.classes}"
    pack(source, tmp_path, monkeypatch, {tmp_path / name: name})
    refusal(archive.folder, "lacks", call=lambda: read(source, tmp_path / "raw"))
