"""The data stage: pictures of every kind become the same pixels however they are stored, and faults are one line."""

import hashlib
import io
import json
import os
import tarfile
import urllib.error
from collections.abc import Callable
from dataclasses import replace
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


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


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


def test_many_pictures_cross_the_batches_in_order(root: Path) -> None:
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


# Pixels


def rgb(file: bytes) -> np.ndarray:
    return data.decode(file, 0).transpose(1, 2, 0)


def test_grey() -> None:
    grey = noise(6, 6)
    np.testing.assert_array_equal(rgb(encoded(Image.fromarray(grey))), np.stack([grey] * 3, -1))


def test_one_bit() -> None:
    bits = noise(6, 6) > 127
    np.testing.assert_array_equal(rgb(encoded(Image.fromarray(bits))), np.stack([bits * 255] * 3, -1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    deep = np.array([[0, 257, 128 * 257], [255 * 257, 65535, 300], [127 * 257 + 100, 1000, 256]], np.uint16)
    expected = [[0, 1, 128], [255, 255, 1], [127, 4, 1]]
    np.testing.assert_array_equal(rgb(encoded(Image.fromarray(deep), kind))[..., 1], expected)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_without_a_range_are_refused(dtype: type) -> None:
    file = encoded(Image.fromarray(np.full((4, 4), 70000, dtype)), "TIFF")
    with pytest.raises(data.UnreadableError, match="range"):
        data.decode(file, 0)


@pytest.mark.parametrize(
    ("mode", "pixels", "solid"),
    [
        ("RGBA", [(10, 20, 30, 0), (10, 20, 30, 255), (0, 0, 0, 51)], [10, 20, 30]),
        ("LA", [(10, 0), (10, 255), (0, 51)], [10, 10, 10]),
    ],
)
def test_transparency_is_laid_on_white(mode: str, pixels: list[tuple[int, ...]], solid: list[int]) -> None:
    image = Image.new(mode, (3, 1))
    for x, pixel in enumerate(pixels):
        image.putpixel((x, 0), pixel)
    np.testing.assert_array_equal(rgb(encoded(image)), [[[255] * 3, solid, [204] * 3]])


@pytest.mark.parametrize("transparency", [None, 1, b"\xff\x00\xff"])
def test_palette(transparency: int | bytes | None) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    options: dict[str, Any] = {} if transparency is None else {"transparency": transparency}
    middle = [40, 50, 60] if transparency is None else [255] * 3
    np.testing.assert_array_equal(rgb(encoded(image, **options)), [[[10, 20, 30], middle, [70, 80, 90]]])


def test_a_transparent_colour_without_an_alpha_channel() -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    np.testing.assert_array_equal(rgb(encoded(image, transparency=(9, 9, 9))), [[[1, 2, 3], [255] * 3]])


def test_cmyk() -> None:
    ink = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    np.testing.assert_allclose(rgb(encoded(ink, "JPEG", quality=100))[0, 0], [0, 255, 255], atol=2)
    np.testing.assert_array_equal(rgb(encoded(ink, "TIFF"))[0, 0], [0, 255, 255])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(1, lambda x: x), (3, lambda x: x[::-1, ::-1]), (6, lambda x: np.rot90(x, -1)), (8, lambda x: np.rot90(x))],
)
def test_orientation(kind: str, orientation: int, turn: Callable[[np.ndarray], np.ndarray]) -> None:
    image = Image.fromarray(np.kron(noise(2, 3), np.ones((8, 8), np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = rgb(encoded(image, kind))
    np.testing.assert_array_equal(rgb(encoded(image, kind, exif=exif)), turn(upright))


@pytest.mark.parametrize(("height", "width"), [(32, 48), (48, 32), (32, 32), (33, 70)])
def test_the_shorter_side_is_resized_and_the_centre_cropped(height: int, width: int) -> None:
    image = Image.fromarray(noise(height, width, 3))
    side = min(height, width)
    size = (round(16 * width / side), round(16 * height / side))
    left, top = (size[0] - 16) // 2, (size[1] - 16) // 2
    whole = np.asarray(image.resize(size, Image.Resampling.BILINEAR), float)
    expected = whole[top : top + 16, left : left + 16]
    found = data.decode(encoded(image), 16).transpose(1, 2, 0)
    # Where the long side is not a whole number of pixels, a rounded size moves every sample a little.
    np.testing.assert_allclose(found, expected, atol=1 if height % 16 == width % 16 == 0 else 30)
    assert np.abs(found - expected).mean() < 6


def test_a_sliver_needs_no_memory_for_the_whole() -> None:
    assert data.decode(encoded(Image.new("RGB", (60000, 1), (1, 2, 3))), 64).shape == (3, 64, 64)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_make_a_picture_unreadable(kind: str) -> None:
    image = Image.fromarray(noise(8, 8, 3))
    for exif in (b"Exif\x00\x00junk", b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff" + b"\x12\x01" * 9):
        np.testing.assert_array_equal(rgb(encoded(image, kind, exif=exif)), rgb(encoded(image, kind)))


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    file = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(rgb(file)[0, 0], [255, 0, 0])


def test_formats_that_run_programs_are_not_tried() -> None:
    with pytest.raises(data.UnreadableError, match="not a picture"):
        data.decode(encoded(Image.new("RGB", (4, 4)), "EPS"), 0)


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
    assert [path.name for path in data._pictures(root, "train/cat")] == ["0.png", "1.png", "2.png"]


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


# CIFAR, in small: the same files with few rows


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An archive of 40 training and 20 test rows at tmp_path/raw, with its own checksum."""
    spec, classes = data._CIFAR[request.param], 10 if request.param == "cifar10" else 100
    folder = tmp_path / spec.folder
    folder.mkdir()
    for index, name in enumerate((*spec.train, *spec.test)):
        count = 20 if name in spec.test else 40 // len(spec.train)
        rows = noise(count, spec.label_bytes + 3072, seed=index)
        rows[:, spec.label_bytes - 1] = np.arange(count)[::-1] % classes
        rows.tofile(folder / name)
    (folder / spec.names).write_text("\n".join(f"class{label:02}" for label in range(classes)) + "\n\n")
    (tmp_path / "raw").mkdir()
    archive = tmp_path / "raw" / spec.archive
    with tarfile.open(archive, "w:gz") as content:
        content.add(folder, spec.folder)
    monkeypatch.setitem(data._CIFAR, request.param, replace(spec, md5=hashlib.md5(archive.read_bytes()).hexdigest()))
    return str(request.param)


def read_cifar(source: str, root: Path, **options: Any) -> data.Dataset:
    classes = {"cifar10": 10, "cifar100": 100}[source]
    return data.collect(DataSettings(**{"source": source, "root": str(root), "classes": classes} | options))


def no_network(*_: Any) -> None:
    raise urllib.error.URLError("Name or service not known")


def test_cifar(cifar: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "download_url", no_network)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.delattr(f"pickle.{name}")
    dataset = read_cifar(cifar, tmp_path / "raw")
    spec = data._CIFAR[cifar]
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
    assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == sorted([spec.folder, spec.archive])


def test_cifar_already_unpacked(cifar: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "download_url", no_network)
    above, itself = (read_cifar(cifar, root) for root in (tmp_path, tmp_path / data._CIFAR[cifar].folder))
    np.testing.assert_array_equal(above.train.labels, itself.train.labels)
    small = read_cifar(cifar, tmp_path, resolution=8, images_per_class=1)
    assert data.to_arrays(small)["train/images"].shape[1:] == (3, 8, 8)
    assert np.bincount(small.train.labels).max() == 1


def test_cifar_without_network(cifar: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "download_url", no_network)
    spec = data._CIFAR[cifar]
    named = (f"https://www.cs.toronto.edu/~kriz/{spec.archive}", spec.md5, str(tmp_path / "new" / spec.archive))
    refusal(*named, "not known", call=lambda: read_cifar(cifar, tmp_path / "new"))
    refusal(*named, "data.download", call=lambda: read_cifar(cifar, tmp_path / "new", download=False))


def test_cifar_with_a_wrong_checksum(cifar: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(data, "download_url", failing)
    archive = tmp_path / "raw" / data._CIFAR[cifar].archive
    archive.write_bytes(archive.read_bytes()[:-100])
    refusal(data._CIFAR[cifar].url, str(archive), "corrupted", call=lambda: read_cifar(cifar, tmp_path / "raw"))
    refusal("wrong checksum", str(archive), call=lambda: read_cifar(cifar, tmp_path / "raw", download=False))


def test_cifar_damaged(cifar: str, tmp_path: Path) -> None:
    spec = data._CIFAR[cifar]
    path = tmp_path / spec.folder / spec.train[-1]
    whole = path.read_bytes()
    for content in (whole[:-5], b"\xff" * len(whole)):
        path.write_bytes(content)
        refusal(path.name, spec.folder, "damaged", call=lambda: read_cifar(cifar, tmp_path))
    path.unlink()
    refusal(spec.folder, "lacks", call=lambda: read_cifar(cifar, tmp_path))


def test_a_cifar_archive_that_writes_elsewhere_is_refused(
    cifar: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = data._CIFAR[cifar]
    archive = tmp_path / "raw" / spec.archive
    with tarfile.open(archive, "w:gz") as content:
        content.add(tmp_path / spec.folder / spec.names, "../../escaped")
    monkeypatch.setitem(data._CIFAR, cifar, replace(spec, md5=hashlib.md5(archive.read_bytes()).hexdigest()))
    refusal(str(archive), "cannot unpack", call=lambda: read_cifar(cifar, tmp_path / "raw"))
    assert [path.name for path in (tmp_path / "raw").iterdir()] == [spec.archive]
    assert not list(tmp_path.rglob("escaped"))


def test_cifar_number_of_classes(cifar: str, tmp_path: Path) -> None:
    refusal("data.classes is 7", call=lambda: read_cifar(cifar, tmp_path, classes=7))


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
