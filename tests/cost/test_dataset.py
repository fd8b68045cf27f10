"""What is known of a dataset before it is made."""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from wmdd.artifacts import hdf5_writer
from wmdd.cost.dataset import DIGITS, pictures
from wmdd.settings.data import DataSettings
from wmdd.stages.data import digits


def told(settings):
    notes = []
    return pictures("own", settings, notes.append), notes


def test_digits_are_split_as_the_data_stage_splits_them():
    assert {"train": len(digits(0)[0][0]), "val": len(digits(0)[1][0])} == DIGITS


def test_the_side_of_a_dataset_as_far_as_it_is_stated():
    sides = [DataSettings(source="cifar10"), DataSettings(source="digits", resolution=16), DataSettings(resolution=64)]
    assert [settings.side for settings in [*sides, DataSettings()]] == [32, 16, 64, 0]


def test_folders_of_ones_own_are_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split, number in ("train", 3), ("val", 2):
        for label in "ab":
            Path(f"own/{split}/{label}").mkdir(parents=True)
            for n in range(number):
                Image.new("RGB", (16, 16)).save(f"own/{split}/{label}/{n}.png")
    found, notes = told(DataSettings(root="own", classes=2))
    assert (found.train, found.val, found.resolution, found.disk, notes) == (6, 4, 16, 10 * 3 * 16**2, [])
    found, _ = told(DataSettings(root="own", classes=2, images_per_class=2, resolution=8, storage="encoded"))
    assert (found.train, found.resolution, found.disk) == (4, 8, 8 * Path("own/train/a/0.png").stat().st_size)


def test_a_data_file_is_believed_if_it_is_of_these_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = DataSettings(root="own", classes=2)
    meta = {"resolution": 24, "storage": "pixels", "counts": {"train": [3, 4], "val": [1, 1]}}
    hdf5_writer.save(Path("data/own.h5"), {"x": np.zeros(1)}, meta | {"settings": settings.model_dump(mode="json")})
    found, notes = told(settings)
    assert (found.train, found.val, found.resolution, notes) == (7, 2, 24, [])
    assert found.disk == Path("data/own.h5").stat().st_size
    found, notes = told(settings.model_copy(update={"classes": 3}))
    assert math.isnan(found.train)
    assert notes[0].startswith("own: its pictures are not known yet (there is no folder")


def test_what_nothing_tells_is_assumed_without_a_look():
    found = pictures("own", DataSettings(root="own", classes=3), None)
    assert (found.train, found.val, found.resolution) == (3000, 300, 224)
    assert not math.isnan(found.disk)
