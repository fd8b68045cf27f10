"""The data stage: pictures of every kind become the same pixels however they are stored, and faults are one line."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from wmdd.artifacts import hdf5, hdf5_writer
from wmdd.base.errors import WmddError
from wmdd.datasets.loader import opened, read
from wmdd.settings.data import DataSettings
from wmdd.stages import data
from wmdd.stages.data_summary import describe


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


@dataclass
class Split:
    labels: np.ndarray
    images: Any = None  # [N, 3, R, R], or
    files: Any = None


class Packed:
    """What the data stage has made: its arrays and its meta data, the latter as attributes."""

    def __init__(self, settings: DataSettings, seed: int = 0) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "data.h5"
            with hdf5_writer.writing(path) as writer:
                writer.meta = data.pack(settings, writer, seed)
            self.arrays, self.meta = hdf5.load(path)
        self.train, self.val = (self._split(name) for name in ("train", "val"))

    def _split(self, name: str) -> Split:
        labels, images = self.arrays[f"{name}/labels"], self.arrays.get(f"{name}/images")
        if images is not None:
            return Split(labels, images)
        offsets, content = self.arrays[f"{name}/offsets"].tolist(), self.arrays[f"{name}/bytes"].tobytes()
        return Split(labels, files=[content[a:b] for a, b in pairwise(offsets)])

    def __getattr__(self, name: str) -> Any:
        return self.meta[name]


def collect(root: Path, **options: Any) -> Packed:
    return Packed(DataSettings(**{"source": "imagefolder", "root": str(root), "classes": 2} | options))


def refusal(*named: str, call: Callable[[], Any]) -> str:
    """The message of the error, which is one line and holds everything that it should name."""
    with pytest.raises(WmddError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in named:
        assert part in message
    return message


def stored(dataset: Packed, path: Path) -> Path:
    meta = {name: value for name, value in dataset.meta.items() if name != "digest"}
    hdf5_writer.save(path, dataset.arrays, meta)
    return path


def loaded(path: Path, split: str, once: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    with opened(path, split, once) as (pictures, _):
        return read(pictures, torch.arange(len(pictures.labels))), pictures.labels


def told(dataset: Packed) -> str:
    lines: list[str] = []
    describe(dataset.meta, lines.append)
    assert all("\n" not in line for line in lines)
    return "\n".join(lines)


# An image folder


def test_folder(root: Path) -> None:
    dataset = collect(root)
    assert dataset.classes == dataset.names == ["cat", "dog"]
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.val.labels.tolist() == [0, 0, 1, 1]
    assert dataset.train.labels.dtype == np.int64
    assert dataset.train.images.shape == (6, 3, 8, 8)
    np.testing.assert_array_equal(dataset.train.images[5], noise(8, 8, 3, seed=125).transpose(2, 0, 1))
    assert (dataset.resolution, dataset.skipped, dataset.val_folder) == (8, [], "val")
    assert (dataset.source, dataset.counts) == ("imagefolder", {"train": [3, 3], "val": [2, 2]})
    values = dataset.train.images.astype(np.float64) / 255
    np.testing.assert_allclose([dataset.mean, dataset.std], [values.mean((0, 2, 3)), values.std((0, 2, 3))], atol=5e-7)


def test_order_within_a_class_is_that_of_the_names_whatever_their_extensions(root: Path) -> None:
    more = ["10.JPG", "A.bmp", "nested/deep/x.webp", "9.gif", "t.tif", "u.tiff", "v.ppm", "w.jpeg"]
    for name in more:
        picture(root / "train/cat" / name, seed=len(name) + 50)
    names = sorted(["0.png", "1.png", "2.png", *more], key=lambda name: name.rpartition(".")[0])
    dataset = collect(root, storage="encoded")
    assert dataset.train.files[: len(names)] == [(root / "train/cat" / name).read_bytes() for name in names]


@pytest.mark.parametrize(
    ("present", "chosen"),
    [("val test", "val"), ("test validation", "validation"), ("test valid", "valid"), ("test",) * 2],
)
def test_validation_folder(root: Path, present: str, chosen: str) -> None:
    (root / "val").rename(root / "kept")
    for folder in present.split():
        for name in ("cat", "dog"):
            picture(root / folder / name / f"{folder}.png")
    dataset = collect(root)
    assert dataset.val_folder == chosen
    assert len(dataset.val.labels) == 2


def test_images_per_class_keeps_the_first_readable_ones_of_the_training_split(root: Path) -> None:
    (root / "train/cat/0.png").write_bytes(b"")
    dataset = collect(root, images_per_class=2, on_corrupt="skip")
    assert dataset.train.labels.tolist() == [0, 0, 1, 1]
    assert len(dataset.val.labels) == 4
    (root / "train/dog/2.png").write_bytes(b"")  # is not kept, and not read
    assert collect(root, images_per_class=2, on_corrupt="skip").skipped == ["train/cat/0.png"]
    np.testing.assert_array_equal(
        dataset.train.images[:2, 0, 0, 0], [noise(8, 8, 3, seed=s)[0, 0, 0] for s in (15, 25)]
    )


def test_many_pictures_stay_in_order(root: Path) -> None:
    for index in range(300):
        Image.new("RGB", (8, 8), (index % 256, index // 256, 7)).save(root / "train/dog" / f"m{index:03}.png")
    dataset = collect(root)
    seen = dataset.train.images[6:, :, 0, 0]
    np.testing.assert_array_equal(seen[:, 1].astype(int) * 256 + seen[:, 0], np.arange(300))


# Statistics


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
        a, b = (loaded(stored(kind, tmp_path / "data.h5"), split) for kind in (pixels, files))
        torch.testing.assert_close(a[0], b[0], rtol=0, atol=0)
        torch.testing.assert_close(a[1], b[1], rtol=0, atol=0)
        assert a[0].dtype == torch.uint8
        assert a[0].shape[1:] == (3, 10, 10)
    assert files.train.files[3] == (root / "train/cat/x0.jpg").read_bytes()


def test_auto_stores_pixels_up_to_a_size_and_files_above(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert collect(root).storage == "pixels"
    monkeypatch.setattr(data, "PIXELS", 10 * 3 * 8 * 8 - 1)
    assert collect(root).storage == "encoded"
    assert collect(root, resolution=7).storage == "pixels"
    assert collect(root, images_per_class=2).storage == "pixels"


@pytest.mark.parametrize("once", [True, False])
def test_load_refuses_a_damaged_picture_and_a_split_that_is_not_there(root: Path, tmp_path: Path, once: bool) -> None:
    dataset = collect(root, storage="encoded")
    dataset.arrays["train/bytes"][:60] = 0
    path = stored(dataset, tmp_path / "data.h5")
    refusal(str(path), "run again", call=lambda: loaded(path, "train", once))
    refusal(str(path), "'test'", call=lambda: loaded(path, "test", once))
    refusal("none.h5", call=lambda: loaded(tmp_path / "none.h5", "train", once))


# Faults


def test_a_class_without_a_readable_picture(root: Path) -> None:
    for path in (root / "val/dog").iterdir():
        path.write_bytes(b"junk")
    refusal("val/dog", str(root), "none of the", call=lambda: collect(root, on_corrupt="skip"))


def damaged(path: Path, fault: str) -> Path:
    path = path.with_suffix(".jpg")
    picture(path, 64, 64)
    content = path.read_bytes()
    changed = {"truncated": content[: len(content) // 2], "empty": b"", "text": b"hello", "header": content[:30]}
    path.write_bytes(changed[fault])
    return path


@pytest.mark.parametrize("fault", ["truncated", "empty", "text", "header"])
def test_corrupt_pictures(root: Path, fault: str) -> None:
    for split, storage in (("train", "pixels"), ("val", "encoded"), ("val", "auto")):
        path = damaged(root / split / "cat/1x", fault)
        refusal(str(path), "data.on_corrupt", call=lambda storage=storage: collect(root, resolution=8, storage=storage))
        dataset = collect(root, resolution=8, storage=storage, on_corrupt="skip")
        assert dataset.skipped == [f"{split}/cat/1x.jpg"]
        assert f"1 unreadable pictures were left out; the first: {split}/cat/1x.jpg" in told(dataset)
        path.unlink()
        if storage != "auto":  # a damaged file may still have a size, and so decide on the storage
            for name, array in collect(root, resolution=8, storage=storage).arrays.items():
                np.testing.assert_array_equal(dataset.arrays[name], array)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [11, 20])  # Pillow warns above its limit and raises above twice its limit
def test_decompression_bomb(root: Path, monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    picture(root / "train/cat/bomb.png", side, 10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refusal("bomb.png", "limit", call=lambda: collect(root, resolution=8))
    assert collect(root, resolution=8, on_corrupt="skip").skipped == ["train/cat/bomb.png"]


@pytest.mark.parametrize(("height", "width", "said"), [(9, 9, "differs"), (8, 9, "not square")])
def test_sizes_without_a_resolution(root: Path, height: int, width: int, said: str) -> None:
    path = picture(root / "val/dog/9.png", height, width)
    said_all = (str(path), f"{width} x {height}", said, "data.resolution")
    for storage in ("pixels", "encoded"):
        refusal(*said_all, call=lambda storage=storage: collect(root, storage=storage))


def test_a_split_that_lies_elsewhere_is_refused_and_a_pipe_is_not_read(root: Path, tmp_path: Path) -> None:
    os.mkfifo(root / "train/cat/x.png")
    assert len(collect(root).train.labels) == 6
    (root / "val").rename(tmp_path / "moved")
    (root / "val").symlink_to(tmp_path / "moved")
    refusal(str(root / "val"), "outside of data.root", call=lambda: collect(root))


# Digits


def digits(seed: int = 0, **options: Any) -> Packed:
    return Packed(DataSettings(source="digits", **options), seed)


def test_digits() -> None:
    dataset = digits()
    total = np.bincount(load_digits().target)
    train, val = (np.bincount(split.labels) for split in (dataset.train, dataset.val))
    np.testing.assert_array_equal(train + val, total)
    np.testing.assert_array_less(np.abs(val - total / 5), 0.51)
    for split in (dataset.train, dataset.val):
        assert split.images.dtype == np.uint8
        assert split.images.shape[1:] == (3, 32, 32)
        assert (np.diff(split.labels) >= 0).all()
        np.testing.assert_array_equal(split.images[:, 0], split.images[:, 2])
    assert dataset.classes == dataset.names == list("0123456789")
    assert (dataset.resolution, dataset.val_folder, dataset.meta["source"]) == (32, "", "digits")


def test_digits_at_their_own_size_are_the_originals_divided_by_the_seed() -> None:
    same, again, other = (digits(seed, resolution=8) for seed in (0, 0, 1))
    pixels = [np.concatenate([kind.train.images, kind.val.images])[:, 0].reshape(-1, 64) for kind in (same, other)]
    expected = (load_digits().data * 255 / 16).round().astype(np.uint8)
    for found in pixels:
        np.testing.assert_array_equal(np.unique(found, axis=0), np.unique(expected, axis=0))
    for a, b in zip(again.arrays.values(), same.arrays.values(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(same.train.labels, other.train.labels)
    assert (pixels[0] != pixels[1]).any()
    assert same.duplicates == {"train": 0, "val": 0, "val in train": 0}


def test_digits_limited_and_miscounted(root: Path) -> None:
    dataset = digits(images_per_class=3, resolution=8)
    assert np.bincount(dataset.train.labels).tolist() == [3] * 10
    assert len(dataset.val.labels) > 300
    refusal("10 classes", "data.classes is 7", call=lambda: digits(classes=7))
    refusal("2 classes", "data.classes is 3", call=lambda: collect(root, classes=3))
    refusal("data.storage", call=lambda: digits(storage="encoded"))


# A part of the training set that validates


@pytest.mark.parametrize("storage", ["pixels", "encoded"])
def test_held_out_pictures_validate_in_place_of_the_validation_set(root: Path, storage: str) -> None:
    whole = collect(root, storage=storage)
    damaged(root / "val/dog/0.png", "text")  # is not read
    apart = collect(root, storage=storage, held_out=0.3)
    assert (np.bincount(apart.train.labels).tolist(), np.bincount(apart.val.labels).tolist()) == ([2, 2], [1, 1])

    def pictures(dataset: Packed, split: Split) -> list[bytes]:
        return [image.tobytes() for image in split.images] if split.images is not None else list(split.files or [])

    both = [*pictures(apart, apart.train), *pictures(apart, apart.val)]
    assert len(set(both)) == 6
    assert set(both) == set(pictures(whole, whole.train))
    assert apart.val_folder == ""
    assert apart.meta["variant"].endswith(", validated on 30 % of the training pictures")
    assert "validated on 30 %" in told(apart)
    for a, b in zip(apart.arrays.values(), collect(root, storage=storage, held_out=0.3).arrays.values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_seed_decides_on_what_is_held_out_and_other_images_do_not() -> None:
    plain, apart, other = digits(), digits(held_out=0.25), digits(1, held_out=0.25)
    assert len(apart.val.labels) == pytest.approx(len(plain.train.labels) / 4, abs=5)
    assert len(apart.train.labels) + len(apart.val.labels) == len(plain.train.labels)
    assert apart.val.images.tobytes() != other.val.images.tobytes()


@pytest.mark.parametrize("share", [0.05, 0.95])
def test_a_class_of_which_nothing_would_be_left_on_one_side(root: Path, share: float) -> None:
    refusal("'cat'", "3 training pictures", "data.held_out", call=lambda: collect(root, held_out=share))


# Before and while it is read


def test_a_disk_that_is_too_small_is_known_before_anything_is_read(root: Path, monkeypatch) -> None:
    (root / "train/cat/0.png").write_bytes(b"junk")
    usage = type(shutil.disk_usage(root))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10 * 3 * 64 - 1))
    refusal("disk full", "data.h5", call=lambda: collect(root, resolution=8))


@pytest.mark.parametrize(("split", "here", "count"), [("train", 6, 7), ("val", 4, 3)])
def test_another_number_of_pictures_than_the_dataset_has(root: Path, split: str, here: int, count: int) -> None:
    (root / "train/cat/0.png").write_bytes(b"junk")  # known before anything is decoded
    wrong, right = {f"{split}_images": count}, {f"{split}_images": here}
    refusal(str(root), f"{here} {split} pictures", f"has {count}", call=lambda: collect(root, **wrong))
    assert collect(root, on_corrupt="skip", **right).counts["train"] == [2, 3]


def test_the_normalisation_of_the_settings_wins(root: Path) -> None:
    measured = collect(root)
    dataset = collect(root, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert (dataset.mean, dataset.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert dataset.measured == {"mean": measured.mean, "std": measured.std}


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path) -> None:
    """The pieces that are written are all that is held."""
    import tracemalloc

    def peak(count: int) -> int:
        root = tmp_path / str(count)
        file = picture(root / "train/cat/0.png", 64, 64).read_bytes()
        for split in ("train", "val"):
            for name in ("cat", "dog"):
                (root / split / name).mkdir(parents=True, exist_ok=True)
                for index in range(count):
                    (root / split / name / f"{index:05}.png").write_bytes(file)
        with hdf5_writer.writing(root / "data.h5") as writer:
            tracemalloc.start()
            writer.meta = data.pack(DataSettings(root=str(root), classes=2, storage="pixels"), writer)
            used = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return used

    small, large = peak(200), peak(800)  # 10 and 39 MB of pixels
    assert large - small < 2e6
