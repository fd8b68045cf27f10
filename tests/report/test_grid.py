"""Pictures of distilled sets."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wmdd.report.grid import GAP, LARGE, MARGIN, SMALL, draw, text

ROOT = Path(__file__).parents[2]


def picture(path, k=10, side=8, classes=3, seed=0):
    images = np.random.default_rng(seed).integers(0, 255, (classes, k, 3, side, side), dtype=np.uint8)
    draw(images, [f"class {i}" for i in range(classes)], path, "a title")
    return images


@pytest.mark.parametrize(("k", "side"), [(1, 1), (2, 112), (10, 224)])
def test_images_are_shown_as_large_as_one_can_see_them(tmp_path, k, side):
    picture(tmp_path / "x", k, side)
    with Image.open(tmp_path / "x") as image:
        assert k * SMALL <= image.width <= k * 1.1 * LARGE + 200
        assert 3 * SMALL <= image.height <= 3 * 1.1 * LARGE + 100


def test_small_images_are_enlarged_pixel_for_pixel(tmp_path):
    image = picture(tmp_path / "x", k=1, side=32, classes=1)[0, 0]
    enlarged = image.transpose(1, 2, 0).repeat(3, 0).repeat(3, 1)
    with Image.open(tmp_path / "x") as found:
        pixels = np.asarray(found)
    y = np.argwhere((pixels < 255).any((1, 2))).max() - 95
    row = np.lib.stride_tricks.sliding_window_view(pixels[y], (96, 3))[:, 0]
    (x,) = np.flatnonzero((row == enlarged[0]).all((1, 2)))
    assert (pixels[y : y + 96, x : x + 96] == enlarged).all()


def test_images_need_not_be_square(tmp_path):
    draw(np.zeros((1, 1, 3, 8, 16), np.uint8), ["a"], tmp_path / "x", "")
    with Image.open(tmp_path / "x") as image:
        y, x = np.nonzero(np.asarray(image.convert("L")) == 0)
    assert (np.ptp(y) + 1, np.ptp(x) + 1) == (48, 96)


NAMES = [
    "n01440764", "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias", "x" * 300,
    "crème brûlée", "Собака", "σκύλος", "כלב", "猫", "", " ", "<b>&amp;</b>", "tab\tnew\nline", "\x07\udcff\uffff",
]  # fmt: skip


def test_any_name_may_stand_at_a_row(tmp_path):
    draw(np.full((len(NAMES), 1, 3, 8, 8), 255, np.uint8), NAMES, tmp_path / "x", "")
    with Image.open(tmp_path / "x") as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[1] < 500, "long names are cut"
    step = SMALL + GAP
    rows = np.split(pixels[-(len(NAMES) * step - GAP + MARGIN) :][: len(NAMES) * step], len(NAMES))
    assert [bool((row < 200).any()) for row in rows] == [bool(name.strip()) for name in NAMES]


def test_letters_are_told_apart():
    """A font without a letter would write the same box for all."""
    letters = "aéßŁőΩπжא"
    assert len({text([letter]).tobytes() for letter in letters}) == len(letters)


def test_equal_images_give_equal_bytes_also_in_another_process(tmp_path):
    for name, seed in ("a", 0), ("b", 0), ("c", 1):
        picture(tmp_path / name, seed=seed)
    source = "import pathlib; from tests.report import test_grid; test_grid.picture(pathlib.Path('d'))"
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", source], check=True, cwd=tmp_path, env=environment)
    a, b, c, d = ((tmp_path / name).read_bytes() for name in "abcd")
    assert a == b == d != c


def test_every_image_stands_in_its_row_and_column(tmp_path):
    """Six plain colours: found again in reading order."""
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 0], [0, 255, 255], [255, 0, 255]]])
    images = np.broadcast_to(colours[..., None, None], (2, 3, 3, 8, 8)).astype(np.uint8)
    draw(images, ["a", "b"], tmp_path / "x", "")
    with Image.open(tmp_path / "x") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    centres = []
    for colour in colours.reshape(-1, 3):
        y, x = np.nonzero((abs(pixels - colour) < 3).all(2))
        assert len(y) > 50 * 50
        centres.append((round(y.mean(), -1), round(x.mean(), -1)))
    assert centres == sorted(centres)
    assert len({y for y, _ in centres}) == 2
    assert len({x for _, x in centres}) == 3
