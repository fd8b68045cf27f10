"""The library `datasets` of Hugging Face reads each layout: images, labels, weights, soft labels and soft logits."""

import datasets
import numpy as np
import pytest

import wmdd
from tests.export.test_export import HERE, LAYOUTS, exported, here, make_float, read_set  # noqa: F401

COLUMNS = {  # of each layout: image, label, weight, soft label, soft logit
    "imagefolder": ("image", "label", "weight", "soft_label", "soft_logit"),
    "hdf5": ("images", "labels", "weights", "soft_labels", "soft_logits"),
    "webdataset": ("png", "cls", "json", "npy", "logits.npy"),
    "parquet": ("image", "label", "weight", "soft_label", "soft_logit"),
}


def read(folder, cache) -> datasets.Dataset:
    parts = datasets.load_dataset(str(folder), cache_dir=str(cache))
    assert list(parts) == ["train"]
    return parts["train"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_read_whole(here, run, closed, tmp_path, layout):  # noqa: F811
    out = exported(run, layout)
    rows = read(out, tmp_path / "cache")
    image, label, weight, soft_label, soft_logit = (rows[column] for column in COLUMNS[layout])
    images, weights = read_set()
    ours = np.asarray(image) if layout == "hdf5" else np.stack([np.asarray(each).transpose(2, 0, 1) for each in image])
    assert np.array_equal(ours, images)
    assert list(label) == [0, 0, 1, 1, 2, 2]
    weight = [each["weight"] for each in weight] if layout == "webdataset" else weight
    assert np.array_equal(np.array(weight, np.float32), weights)
    found = wmdd.load(out)
    assert np.array_equal(np.array(soft_label, np.float32), found.soft_labels)
    assert np.array_equal(np.array(soft_logit, np.float32), found.soft_logits)
    assert closed == []


def test_float_images_are_read_as_they_are(here, run, tmp_path):  # noqa: F811
    images = make_float()
    assert np.array_equal(np.asarray(read(exported(run, "hdf5", more=""), tmp_path / "cache")["images"]), images)
