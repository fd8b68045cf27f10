"""What is noticed in the pictures of a dataset, and how it is told."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.stages import test_data
from tests.stages.test_data import collect, noise, picture, refusal, told

root = test_data.root


def test_the_manifest_is_told(root: Path) -> None:
    (root / "classes.txt").write_text("dog\tdomestic dog\n")
    lines = told(collect(root)).splitlines()
    assert lines[0] == "class 0: cat, 3 + 2 pictures"
    assert lines[1] == "class 1: dog (domestic dog), 3 + 2 pictures"
    assert "6 training and 4 validation pictures (of val/), 8 x 8, as pixels" in lines[2]
    assert len(lines) == 3


@pytest.mark.parametrize("storage", ["pixels", "encoded"])
def test_duplicates_within_and_across_the_splits_are_counted(root: Path, storage: str) -> None:
    again = (root / "train/cat/0.png").read_bytes()
    for name in ("train/dog/copy.png", "val/dog/copy.png", "val/cat/copy.png"):
        (root / name).write_bytes(again)
    dataset = collect(root, storage=storage)
    assert dataset.duplicates == {"train": 1, "val": 1, "val in train": 2}
    assert "2 validation pictures stand in the training set too" in told(dataset)
    assert collect(root, images_per_class=3).duplicates["train"] == 0  # only what is kept counts


def test_conversions_are_counted(root: Path) -> None:
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(root / "train/cat/ink.jpg")
    Image.new("L", (8, 8), 7).save(root / "val/cat/grey.png")
    dataset = collect(root)
    assert dataset.modes == {"RGB": 10, "CMYK": 1, "L": 1}
    assert "converted to RGB: 1 CMYK, 1 L" in told(dataset)


def test_whether_all_training_pictures_are_grey(root: Path) -> None:
    for path in (root / "train").rglob("*.png"):
        Image.fromarray(noise(8, 8)).save(path)
    assert collect(root).grey  # those that validate are in colour
    assert "all training pictures are grey" in told(collect(root))
    picture(root / "train/dog/1.png")
    assert not collect(root).grey


def test_small_pictures_are_enlarged_and_counted_and_large_ones_have_a_limit(root: Path) -> None:
    picture(root / "train/cat/dot.png", 1, 1)
    picture(root / "val/cat/flat.png", 5, 30)
    Image.new("RGB", (20_000, 40), (1, 2, 3)).save(root / "train/cat/wide.png")
    dataset = collect(root, resolution=8)
    assert dataset.enlarged == {"count": 2, "smallest": [1, "train/cat/dot.png"]}
    assert "2 pictures are smaller than 8 px and were enlarged; the smallest: train/cat/dot.png, 1 px" in told(dataset)
    assert len(np.unique(dataset.train.images[3].reshape(3, -1), axis=1).T) == 1
    refusal("dot.png", "1 x 1", "data.resolution", call=lambda: collect(root))
