"""CIFAR in small: the same files with few rows."""

import hashlib
import tarfile
import urllib.error
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_data import noise, refusal

from wmdd import cifar, data
from wmdd.cifar import ARCHIVES
from wmdd.settings import DataSettings


@pytest.fixture(params=["cifar10", "cifar100"])
def source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An archive of 40 training and 20 test rows at tmp_path/raw, with its own checksum."""
    spec, classes = ARCHIVES[request.param], 10 if request.param == "cifar10" else 100
    folder = tmp_path / spec.folder
    folder.mkdir()
    for index, name in enumerate((*spec.train, *spec.test)):
        count = 20 if name in spec.test else 40 // len(spec.train)
        rows = noise(count, spec.label_bytes + 3072, seed=index)
        rows[:, spec.label_bytes - 1] = np.arange(count)[::-1] % classes
        rows.tofile(folder / name)
    (folder / spec.classes).write_text("\n".join(f"class{label:02}" for label in range(classes)) + "\n\n")
    (tmp_path / "raw").mkdir()
    archive = tmp_path / "raw" / spec.name
    with tarfile.open(archive, "w:gz") as content:
        content.add(folder, spec.folder)
    monkeypatch.setitem(ARCHIVES, request.param, replace(spec, md5=hashlib.md5(archive.read_bytes()).hexdigest()))
    return str(request.param)


def read(source: str, root: Path, **options: Any) -> data.Dataset:
    classes = {"cifar10": 10, "cifar100": 100}[source]
    return data.collect(DataSettings(**{"source": source, "root": str(root), "classes": classes} | options))


def no_network(*_: Any) -> None:
    raise urllib.error.URLError("Name or service not known")


def test_cifar(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "download_url", no_network)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.delattr(f"pickle.{name}")
    dataset = read(source, tmp_path / "raw")
    spec = ARCHIVES[source]
    rows = np.concatenate([np.fromfile(tmp_path / spec.folder / name, np.uint8) for name in spec.train])
    rows = rows.reshape(40, -1)
    rows = rows[np.argsort(rows[:, spec.label_bytes - 1], kind="stable")]
    assert dataset.train.labels.tolist() == rows[:, spec.label_bytes - 1].tolist()
    assert dataset.train.images is not None
    for channel in range(3):
        plane = rows[:, spec.label_bytes + 1024 * channel :][:, :1024].reshape(40, 32, 32)
        np.testing.assert_array_equal(dataset.train.images[:, channel], plane)
    assert len(dataset.val.labels) == 20
    assert dataset.classes[:2] == ["class00", "class01"]
    assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == sorted([spec.folder, spec.name])


def test_cifar_already_unpacked(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "download_url", no_network)
    above, itself = (read(source, root) for root in (tmp_path, tmp_path / ARCHIVES[source].folder))
    np.testing.assert_array_equal(above.train.labels, itself.train.labels)
    small = read(source, tmp_path, resolution=8, images_per_class=1)
    assert data.to_arrays(small)["train/images"].shape[1:] == (3, 8, 8)
    assert np.bincount(small.train.labels).max() == 1


def test_cifar_without_network(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "download_url", no_network)
    spec = ARCHIVES[source]
    named = (f"https://www.cs.toronto.edu/~kriz/{spec.name}", spec.md5, str(tmp_path / "new" / spec.name))
    refusal(*named, "not known", call=lambda: read(source, tmp_path / "new"))
    refusal(*named, "data.download", call=lambda: read(source, tmp_path / "new", download=False))


def test_cifar_with_a_wrong_checksum(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(cifar, "download_url", failing)
    archive = tmp_path / "raw" / ARCHIVES[source].name
    archive.write_bytes(archive.read_bytes()[:-100])
    refusal("kriz", ARCHIVES[source].name, str(archive), "corrupted", call=lambda: read(source, tmp_path / "raw"))
    refusal("wrong checksum", str(archive), call=lambda: read(source, tmp_path / "raw", download=False))


def test_cifar_damaged(source: str, tmp_path: Path) -> None:
    spec = ARCHIVES[source]
    path = tmp_path / spec.folder / spec.train[-1]
    whole = path.read_bytes()
    for content in (whole[:-5], b"\xff" * len(whole)):
        path.write_bytes(content)
        refusal(path.name, spec.folder, "damaged", call=lambda: read(source, tmp_path))
    path.unlink()
    refusal(spec.folder, "lacks", call=lambda: read(source, tmp_path))


def test_a_cifar_archive_that_writes_elsewhere_is_refused(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ARCHIVES[source]
    archive = tmp_path / "raw" / spec.name
    with tarfile.open(archive, "w:gz") as content:
        content.add(tmp_path / spec.folder / spec.classes, "../../escaped")
    monkeypatch.setitem(ARCHIVES, source, replace(spec, md5=hashlib.md5(archive.read_bytes()).hexdigest()))
    refusal(str(archive), "cannot unpack", call=lambda: read(source, tmp_path / "raw"))
    assert [path.name for path in (tmp_path / "raw").iterdir()] == [spec.name]
    assert not list(tmp_path.rglob("escaped"))


def test_a_cifar_archive_that_lacks_a_file(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ARCHIVES[source]
    archive = tmp_path / "raw" / spec.name
    with tarfile.open(archive, "w:gz") as content:
        content.add(tmp_path / spec.folder / spec.classes, f"{spec.folder}/{spec.classes}")
    monkeypatch.setitem(ARCHIVES, source, replace(spec, md5=hashlib.md5(archive.read_bytes()).hexdigest()))
    refusal(spec.folder, "lacks", call=lambda: read(source, tmp_path / "raw"))


def test_cifar_number_of_classes(source: str, tmp_path: Path) -> None:
    refusal("data.classes is 7", call=lambda: read(source, tmp_path, classes=7))
