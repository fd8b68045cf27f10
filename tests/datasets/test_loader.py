"""Pictures come in the order asked for, the same ones from memory and from the file, decoded or not."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.stages.test_data import collect, noise, picture, root, stored  # noqa: F401
from wmdd.artifacts.hdf5_writer import save
from wmdd.base.errors import WmddError
from wmdd.datasets import loader
from wmdd.datasets.loader import Resident, Streamed, opened, read


@pytest.fixture(params=["pixels", "encoded"])
def packed(request, root: Path, tmp_path: Path) -> Path:  # noqa: F811
    """Plain JPEG files, others, and files of other sizes."""
    for index in range(5):
        picture(root / "train/cat" / f"x{index}.jpg", seed=index)
        picture(root / "train/dog" / f"y{index}.jpg", 9 + index, 8, seed=index)
    return stored(collect(root, storage=request.param, resolution=8), tmp_path / "data.h5")


ORDERS = {
    "a run": [torch.arange(3, 9)],
    "all": list(torch.arange(16).split(5)),
    "shuffled": list(torch.randperm(16, generator=torch.Generator().manual_seed(1)).split(3)),
    "repeated": [torch.tensor([4, 4, 1]), torch.tensor([4])],
    "backwards": [torch.arange(15, -1, -1)],
    "many small": [torch.tensor([i % 16]) for i in range(50)],
}


def test_streamed_pictures_are_those_in_memory(packed: Path) -> None:
    with opened(packed, "train") as (held, meta), opened(packed, "train", once=True) as (streamed, _):
        assert isinstance(held, Resident)
        assert isinstance(streamed, Streamed)
        assert meta["classes"] == ["cat", "dog"]
        assert torch.equal(held.labels, streamed.labels)
        assert held.resolution == streamed.resolution == 8
        for order, positions in ORDERS.items():
            for index, a, b in zip(positions, streamed.batches(positions), held.batches(positions), strict=True):
                assert a.dtype == torch.uint8, order
                assert torch.equal(a, b), order
                assert torch.equal(b, held.images[index]), order


def test_pictures_are_those_of_the_folder(packed: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(loader, "BATCH", 3)
    with opened(packed, "train", once=True) as (pictures, _):
        found = read(pictures, torch.tensor([15, 0, 1, 2]))
    np.testing.assert_array_equal(found[1], noise(8, 8, 3, seed=5).transpose(2, 0, 1))  # train/cat/0.png


def test_what_does_not_fit_is_streamed(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for pictures, kind in ((16, Resident), (15.9, Streamed)):
        monkeypatch.setenv("WMDD_RESIDENT_MB", str(pictures * 3 * 64 / 2**20))
        with opened(packed, "train") as (found, _):
            assert isinstance(found, kind)
    monkeypatch.setenv("WMDD_RESIDENT_MB", "4 GB")
    with pytest.raises(WmddError, match="WMDD_RESIDENT_MB is '4 GB'"), opened(packed, "train"):
        pass


def test_who_stops_early_waits_for_no_more_than_what_is_under_way(packed: Path, monkeypatch) -> None:
    loaded = []
    load = Streamed._load
    monkeypatch.setattr(Streamed, "_load", lambda self, index: (loaded.append(1), load(self, index))[1])
    with opened(packed, "train", once=True) as (pictures, _):
        batches = pictures.batches([torch.tensor([0])] * 1000)
        next(batches)
        batches.close()
    assert len(loaded) < 20


def test_files_of_another_stage_or_version_are_refused(tmp_path: Path) -> None:
    arrays = {"train/labels": np.zeros(3, int), "train/bytes": np.zeros(9, np.uint8), "train/offsets": np.arange(4)}
    for meta, said in (({"resolution": 8}, "earlier version"), ({}, "no split")):
        save(tmp_path / "x.h5", arrays, meta)
        with pytest.raises(WmddError, match=said), opened(tmp_path / "x.h5", "train"):
            pass
