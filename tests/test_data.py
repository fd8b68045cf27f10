"""The data stage: pictures of every kind become the same pixels however they are stored, and faults are one line."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from wmdd import artifacts, data
from wmdd.errors import WmddError
from wmdd.settings import DataSettings

as_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def picture(path: Path, height: int = 8, width: int = 8, seed: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(height, width, 3, seed=seed)).save(path, **options)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of three training and two validation pictures of 8 x 8."""
    root = tmp_path / "pictures"
    for split, count in (("train", 3), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            for index in range(count):
                picture(root / split / name / f"{index}.png", seed=100 * label + 10 * index + len(split))
    return root


def collect(root: Path, **options: Any) -> data.Dataset:
    return data.collect(DataSettings(**{"source": "imagefolder", "root": str(root), "classes": 2} | options))


def refusal(*named: str, call: Callable[[], Any]) -> str:
    """The message of the error, which is one line and holds everything that it should name."""
    with pytest.raises(WmddError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in named:
        assert part in message
    return message


def stored(dataset: data.Dataset, path: Path) -> Path:
    meta = data.to_meta(dataset)
    assert json.loads(json.dumps(meta)) == meta
    artifacts.save(path, data.to_arrays(dataset), meta)
    return path


# An image folder


def test_folder(root: Path) -> None:
    dataset = collect(root)
    assert dataset.classes == dataset.names == ["cat", "dog"]
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.val.labels.tolist() == [0, 0, 1, 1]
    assert dataset.train.labels.dtype == np.int64
    assert dataset.train.images is not None
    assert dataset.train.images.shape == (6, 3, 8, 8)
    np.testing.assert_array_equal(dataset.train.images[5], noise(8, 8, 3, seed=125).transpose(2, 0, 1))
    assert (dataset.resolution, dataset.skipped, dataset.val_folder) == (8, [], "val")


def test_order_within_a_class_is_that_of_the_names(root: Path) -> None:
    for name in ("10", "A", "nested/deep/x", "9"):
        picture(root / "train/cat" / f"{name}.png", seed=len(name) + 50)
    dataset = collect(root)
    names = ["0", "1", "10", "2", "9", "A", "nested/deep/x"]
    expected = [np.asarray(Image.open(root / "train/cat" / f"{name}.png")).transpose(2, 0, 1) for name in names]
    assert dataset.train.images is not None
    np.testing.assert_array_equal(dataset.train.images[:7], expected)


def test_hidden_and_other_files_are_passed_over(root: Path) -> None:
    for name in (
        "train/.cache/x.png",
        "train/cat/._0.png",
        "train/cat/boxes.txt",
        "train/readme.md",
        "val/cat/.d/x.png",
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("not a picture")
    dataset = collect(root)
    assert (len(dataset.train.labels), len(dataset.val.labels)) == (6, 4)


@pytest.mark.parametrize("name", ["x.JPG", "x.jpeg", "x.JPEG", "x.bmp", "x.gif", "x.webp", "x.tif", "x.tiff", "x.ppm"])
def test_extensions(root: Path, name: str) -> None:
    picture(root / "train/cat" / name)
    assert len(collect(root).train.labels) == 7


@pytest.mark.parametrize(("present", "chosen"), [("val test", "val"), ("test validation", "test"), ("validation",) * 2])
def test_validation_folder(root: Path, present: str, chosen: str) -> None:
    (root / "val").rename(root / "kept")
    for folder in present.split():
        for name in ("cat", "dog"):
            picture(root / folder / name / f"{folder}.png")
    dataset = collect(root)
    assert dataset.val_folder == data.to_meta(dataset)["val_folder"] == chosen
    assert len(dataset.val.labels) == 2


def test_readable_names(root: Path) -> None:
    (root / "classes.txt").write_text("dog\tdomestic dog, hound\nbird\trobin\ncat\n")
    dataset = collect(root)
    assert dataset.names == ["cat", "domestic dog, hound"]
    assert dataset.classes == ["cat", "dog"]


def test_images_per_class_keeps_the_first_readable_ones_of_the_training_split(root: Path) -> None:
    (root / "train/cat/0.png").write_bytes(b"")
    dataset = collect(root, images_per_class=2, on_corrupt="skip")
    assert dataset.train.labels.tolist() == [0, 0, 1, 1]
    assert len(dataset.val.labels) == 4
    assert dataset.train.images is not None
    np.testing.assert_array_equal(
        dataset.train.images[:2, 0, 0, 0], [noise(8, 8, 3, seed=s)[0, 0, 0] for s in (15, 25)]
    )


def test_pictures_that_are_not_kept_may_be_unreadable(root: Path) -> None:
    (root / "train/cat/2.png").write_bytes(b"")
    assert len(collect(root, images_per_class=2).train.labels) == 4


def test_many_pictures_stay_in_order(root: Path) -> None:
    for index in range(600):
        path = root / "train/dog" / f"m{index:03}.png"
        Image.new("RGB", (8, 8), (index % 256, index // 256, 7)).save(path)
    dataset = collect(root)
    assert dataset.train.images is not None
    seen = dataset.train.images[6:, :, 0, 0]
    np.testing.assert_array_equal(seen[:, 1].astype(int) * 256 + seen[:, 0], np.arange(600))


# Statistics


def test_statistics_are_those_of_the_training_pixels(root: Path) -> None:
    dataset = collect(root)
    assert dataset.train.images is not None
    values = dataset.train.images.astype(np.float64) / 255
    np.testing.assert_allclose(dataset.mean, values.mean((0, 2, 3)), atol=5e-7)
    np.testing.assert_allclose(dataset.std, values.std((0, 2, 3)), atol=5e-7)
    assert dataset.mean == [round(value, 6) for value in dataset.mean]


def test_statistics_of_two_values_in_closed_form(root: Path) -> None:
    for path in root.rglob("*.png"):
        Image.new("RGB", (8, 8), (0, 51, 255) if path.name == "0.png" else (255, 51, 255)).save(path)
    dataset = collect(root)  # a third of the training pictures is black in the first channel
    assert dataset.mean == [0.666667, 0.2, 1.0]
    assert dataset.std == [round(np.sqrt(2) / 3, 6), 1.0, 1.0]  # a constant channel is left as it is


# Storage


def test_both_storages_give_equal_pixels(root: Path, tmp_path: Path) -> None:
    for index, (height, width) in enumerate(((20, 13), (9, 31), (12, 12), (5, 40))):
        picture(root / "train/cat" / f"x{index}.jpg", height, width, index)
    Image.fromarray(noise(11, 17, 4)).save(root / "val/dog/z.png")
    pixels, files = (collect(root, storage=storage, resolution=10) for storage in ("pixels", "encoded"))
    assert files.train.images is None
    assert pixels.train.files is None
    assert (pixels.mean, pixels.std) == (files.mean, files.std)
    for split in ("train", "val"):
        a, b = (data.load_images(stored(kind, tmp_path / "data.h5"), split) for kind in (pixels, files))
        torch.testing.assert_close(a[0], b[0], rtol=0, atol=0)
        torch.testing.assert_close(a[1], b[1], rtol=0, atol=0)
        assert a[0].dtype == torch.uint8
        assert a[0].shape[1:] == (3, 10, 10)
    assert files.train.files is not None
    assert files.train.files[3] == (root / "train/cat/x0.jpg").read_bytes()


@pytest.mark.parametrize(
    ("split", "odd", "storage"), [("train", 8, "pixels"), ("train", 9, "encoded"), ("val", 9, "encoded")]
)
def test_auto_stores_pixels_where_the_sizes_agree(root: Path, split: str, odd: int, storage: str) -> None:
    picture(root / split / "dog/9.png", 8, odd)
    meta = data.to_meta(collect(root, resolution=4))
    assert meta["storage"] == storage
    assert meta["resolution"] == 4


def test_auto_looks_only_at_the_pictures_that_are_kept(root: Path) -> None:
    picture(root / "train/dog/9.png", 8, 9)
    assert data.to_meta(collect(root, images_per_class=3))["storage"] == "pixels"


def test_meta(root: Path) -> None:
    picture(root / "train/dog/9.png")
    meta = data.to_meta(collect(root))
    assert meta["counts"] == {"train": [3, 4], "val": [2, 2]}
    assert (meta["source"], meta["classes"], meta["skipped"]) == ("imagefolder", ["cat", "dog"], [])


@pytest.mark.parametrize("storage", ["pixels", "encoded"])
def test_load_a_range_of_classes(root: Path, tmp_path: Path, storage: str) -> None:
    for split in ("train", "val"):
        picture(root / split / "eel/0.png", seed=77)
    dataset = collect(root, storage=storage, classes=3)
    path = stored(dataset, tmp_path / "data.h5")
    everything, labels, meta = data.load_images(path, "train")
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert meta == artifacts.load_meta(path)
    for first, last, expected in (
        (0, 0, slice(0, 3)),
        (1, 1, slice(3, 6)),
        (1, 2, slice(3, 7)),
        (2, None, slice(6, 7)),
    ):
        images, some, _ = data.load_images(path, "train", first, last)
        torch.testing.assert_close(images, everything[expected], rtol=0, atol=0)
        assert some.tolist() == labels[expected].tolist()


def test_load_refuses_what_is_not_there(root: Path, tmp_path: Path) -> None:
    path = stored(collect(root), tmp_path / "data.h5")
    refusal(str(path), "0..1", "1..2", call=lambda: data.load_images(path, "train", 1, 2))
    refusal(str(path), "'test'", call=lambda: data.load_images(path, "test"))
    refusal("none.h5", call=lambda: data.load_images(tmp_path / "none.h5", "train"))


def test_load_refuses_a_damaged_picture(root: Path, tmp_path: Path) -> None:
    dataset = collect(root, storage="encoded")
    assert dataset.train.files is not None
    dataset.train.files[4] = dataset.train.files[4][:60]
    path = stored(dataset, tmp_path / "data.h5")
    assert len(data.load_images(path, "train", 0, 0)[1]) == 3
    refusal(str(path), "run again", call=lambda: data.load_images(path, "train"))


# Faults


def test_no_folder(tmp_path: Path) -> None:
    refusal(str(tmp_path / "none"), "data.root", call=lambda: collect(tmp_path / "none"))
    refusal("data.root", call=lambda: data.collect(DataSettings(source="imagefolder")))


def test_no_split(root: Path) -> None:
    (root / "val").rename(root / "aside")
    refusal(str(root), "val/", "test/", call=lambda: collect(root))
    (root / "train").rename(root / "other")
    refusal(str(root), "train/", call=lambda: collect(root))


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("content", [None, "notes.txt"])
def test_empty_class(root: Path, split: str, content: str | None) -> None:
    for path in (root / split / "dog").iterdir():
        path.unlink()
    if content:
        (root / split / "dog" / content).touch()
    refusal(str(root / split / "dog"), "no pictures", call=lambda: collect(root))


@pytest.mark.parametrize("split", ["train", "val"])
def test_class_without_a_readable_picture(root: Path, split: str) -> None:
    for path in (root / split / "dog").iterdir():
        path.write_bytes(b"junk")
    refusal(str(root / split / "dog"), "none of the", call=lambda: collect(root, on_corrupt="skip"))


def damaged(path: Path, fault: str) -> Path:
    path = path.with_suffix(".jpg")
    picture(path, 64, 64)
    content = path.read_bytes()
    changed = {"truncated": content[: len(content) // 2], "empty": b"", "text": b"hello", "header": content[:30]}
    path.write_bytes(changed[fault])
    return path


@pytest.mark.parametrize("storage", ["pixels", "encoded", "auto"])
@pytest.mark.parametrize("fault", ["truncated", "empty", "text", "header"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_corrupt_pictures(root: Path, fault: str, split: str, storage: str) -> None:
    path = damaged(root / split / "cat/1x", fault)
    refusal(str(path), "data.on_corrupt", call=lambda: collect(root, resolution=8, storage=storage))
    dataset = collect(root, resolution=8, storage=storage, on_corrupt="skip")
    assert dataset.skipped == [f"{split}/cat/1x.jpg"] == data.to_meta(dataset)["skipped"]
    path.unlink()
    clean = data.to_arrays(collect(root, resolution=8, storage=storage))
    if storage != "auto":  # a damaged file may still have a size, and so decide on the storage
        for name, array in data.to_arrays(dataset).items():
            np.testing.assert_array_equal(array, clean[name])


def test_damaged_png(root: Path) -> None:
    path = picture(root / "train/cat/x.png", 32, 32)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    refusal(str(path), "data.on_corrupt", call=lambda: collect(root, resolution=8))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [11, 20])  # Pillow warns above its limit and raises above twice its limit
def test_decompression_bomb(root: Path, monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    picture(root / "train/cat/bomb.png", side, 10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refusal("bomb.png", "limit", call=lambda: collect(root, resolution=8))
    assert collect(root, resolution=8, on_corrupt="skip").skipped == ["train/cat/bomb.png"]


def test_classes_differ(root: Path) -> None:
    for name in ("ant", "bee", "elk", "fox", "gnu"):
        picture(root / "train" / name / "0.png")
    picture(root / "val/hen/0.png")
    message = refusal("val/ lacks 'ant', 'bee', 'elk' and 2 more", "train/ lacks 'hen'", call=lambda: collect(root))
    assert "gnu" not in message


@pytest.mark.parametrize("classes", [1, 3])
def test_number_of_classes(root: Path, classes: int) -> None:
    refusal("2 classes", f"data.classes is {classes}", call=lambda: collect(root, classes=classes))


@pytest.mark.parametrize(("height", "width", "said"), [(9, 9, "differs"), (8, 9, "not square")])
def test_sizes_without_a_resolution(root: Path, height: int, width: int, said: str) -> None:
    path = picture(root / "val/dog/9.png", height, width)
    said_all = (str(path), f"{width} x {height}", said, "data.resolution")
    refusal(*said_all, call=lambda: collect(root, storage="pixels"))
    refusal(*said_all, call=lambda: collect(root, storage="encoded"))


@as_root
@pytest.mark.parametrize("name", ["train/cat", "train/cat/0.png", "val", "."])
def test_permissions(root: Path, name: str) -> None:
    path = root / name
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        refusal(str(path), "permissions", call=lambda: collect(root))
    finally:
        path.chmod(mode)


# Links


@pytest.mark.parametrize("name", ["train/cat/x.png", "train/cat/deep", "train/eel", "val", "classes.txt"])
def test_links_that_leave_the_root_are_refused(root: Path, tmp_path: Path, name: str) -> None:
    outside = picture(tmp_path / "outside/x.png")
    if name == "val":
        (root / "val").rename(tmp_path / "moved")
    link = root / name
    link.symlink_to(tmp_path / "moved" if name == "val" else outside if link.suffix else outside.parent)
    refusal(str(link), "outside of data.root", call=lambda: collect(root))


def test_links_within_the_root_are_followed(root: Path) -> None:
    (root / "val").rename(root / "held-out")
    (root / "val").symlink_to(root / "held-out")
    (root / "train/cat/3.png").symlink_to("../dog/0.png")
    dataset = collect(root)
    assert dataset.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_the_root_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert len(collect(tmp_path / "link").train.labels) == 6


def test_broken_links_and_links_to_folders(root: Path) -> None:
    (root / "train/cat/loop").symlink_to(root)
    refusal("train/cat/loop", "folder", call=lambda: collect(root))
    (root / "train/cat/loop").unlink()
    for target in ("nowhere", "self.png"):
        (root / "train/cat/self.png").symlink_to(target)
        refusal("self.png", "broken link", call=lambda: collect(root))
        (root / "train/cat/self.png").unlink()


def test_a_pipe_with_the_name_of_a_picture_is_not_read(root: Path) -> None:
    os.mkfifo(root / "train/cat/x.png")
    assert len(collect(root).train.labels) == 6


# Digits


def digits(seed: int = 0, **options: Any) -> data.Dataset:
    return data.collect(DataSettings(source="digits", **options), seed)


def test_digits() -> None:
    dataset = digits()
    total = np.bincount(load_digits().target)
    train, val = (np.bincount(split.labels) for split in (dataset.train, dataset.val))
    np.testing.assert_array_equal(train + val, total)
    np.testing.assert_array_less(np.abs(val - total / 5), 0.51)
    for split in (dataset.train, dataset.val):
        assert split.images is not None
        assert split.images.dtype == np.uint8
        assert split.images.shape[1:] == (3, 32, 32)
        assert (np.diff(split.labels) >= 0).all()
        np.testing.assert_array_equal(split.images[:, 0], split.images[:, 2])
    assert dataset.classes == dataset.names == list("0123456789")
    assert (dataset.resolution, dataset.val_folder, data.to_meta(dataset)["source"]) == (32, "", "digits")


def test_digits_at_their_own_size_are_the_originals() -> None:
    dataset = digits(resolution=8)
    assert dataset.train.images is not None
    assert dataset.val.images is not None
    found = np.concatenate([dataset.train.images, dataset.val.images])[:, 0].reshape(-1, 64)
    expected = (load_digits().data * 255 / 16).round().astype(np.uint8)
    np.testing.assert_array_equal(np.unique(found, axis=0), np.unique(expected, axis=0))
    assert found.max() == 255


def test_digits_keep_their_brightness_when_enlarged() -> None:
    assert digits(resolution=8).mean == pytest.approx(digits(resolution=32).mean, abs=0.01)


def test_the_seed_decides_on_the_split() -> None:
    same, other = digits(0), digits(1)
    for a, b in zip(data.to_arrays(digits(0)).values(), data.to_arrays(same).values(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert same.train.images is not None
    assert other.train.images is not None
    np.testing.assert_array_equal(same.train.labels, other.train.labels)
    assert (same.train.images != other.train.images).any()


def test_digits_limited_and_miscounted() -> None:
    dataset = digits(images_per_class=3, resolution=8)
    assert np.bincount(dataset.train.labels).tolist() == [3] * 10
    assert len(dataset.val.labels) > 300
    refusal("10 classes", "data.classes is 7", call=lambda: digits(classes=7))
    refusal("data.storage", call=lambda: digits(storage="encoded"))


# Real data


@pytest.mark.skipif(not os.environ.get("WMDD_DATA"), reason="WMDD_DATA names no folder of data sets")
def test_real_cifar10_tree() -> None:
    dataset = collect(Path(os.environ["WMDD_DATA"]) / "cifar10", classes=10, images_per_class=20)
    assert np.bincount(dataset.train.labels).tolist() == [20] * 10
    assert np.bincount(dataset.val.labels).tolist() == [1000] * 10
    assert dataset.resolution == 32
    assert dataset.classes[0] == "airplane"
    np.testing.assert_allclose(dataset.mean, [0.4914, 0.4822, 0.4465], atol=0.05)
    np.testing.assert_allclose(dataset.std, [0.2470, 0.2435, 0.2616], atol=0.05)
