"""A coded set leaves as the files that its bytes are counted by, and shows the same pixels in every layout."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow.parquet import read_table
from torchvision.datasets import ImageFolder

import wmdd
from tests.export.test_export import CLASSES, HERE, LAYOUTS, SIDE, exported, line, write_images
from wmdd.artifacts.hdf5 import load
from wmdd.artifacts.hdf5_writer import save
from wmdd.stages.coded import coded


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files of a coded set of two images per class, which lies where a run has it."""
    monkeypatch.chdir(tmp_path)
    Path(HERE).mkdir(parents=True)
    write_images(f"{HERE}/images.h5", ipc=9)
    arrays, meta = load(f"{HERE}/images.h5")
    pixels, files = coded(torch.from_numpy(arrays["images"]), 2, 0)
    held, flat = pixels.shape[1], [file for of_class in files for file in of_class]
    assert 2 < held < 9
    content = np.frombuffer(b"".join(flat), np.uint8)
    arrays |= {"files/bytes": content, "files/offsets": np.cumsum([0, *map(len, flat)])}
    arrays |= {"images": pixels.numpy(), "weights": np.full((3, held), 1 / held, np.float32)}
    facts = {"format": "webp", "quality": 0, "bytes": len(content), "budget": 3 * 2 * 3 * SIDE**2}
    save(f"{HERE}/images.h5", arrays, meta | {"images_per_epoch": 2, "coded": facts}, chunked=("images",))
    return flat


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_comes_back_from_every_layout(files, run, layout):
    loaded = wmdd.load(exported(run, layout, more=""))
    images = load(f"{HERE}/images.h5")[0]["images"]
    assert np.array_equal(loaded.images.numpy(), images.reshape(-1, 3, SIDE, SIDE))
    assert loaded.meta["images"]["images_per_epoch"] == 2
    card = Path("out/README.md").read_text()
    verb = "are" if layout in ("imagefolder", "parquet") else "show what is in"
    assert f"The images {verb} WebP files of quality 0, which together have {sum(map(len, files)):,} bytes" in card
    assert "each epoch shows 2 images of each class in turn" in card


def test_an_image_folder_and_parquet_have_the_files_themselves(files, run):
    out = exported(run, "imagefolder", more="")
    pictures = [Path(path) for path, _ in ImageFolder(out / "train").samples]
    assert {path.suffix for path in pictures} == {".webp"}
    assert [path.read_bytes() for path in pictures] == files
    assert "train/*/*.webp" in (out / "README.md").read_text()
    assert "image/webp" in (out / "croissant.json").read_text()
    table = read_table(exported(run, "parquet", more="", output="table") / "data")
    assert [record["bytes"] for record in table["image"].to_pylist()] == files


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_example_runs(run, layout, capfd):
    runpy.run_path(str(exported(run, layout, more="") / "example.py"))
    held = load(f"{HERE}/images.h5")[0]["images"].shape[1]
    assert f"{held * len(CLASSES)} images" in capfd.readouterr().out


@pytest.mark.usefixtures("files")
def test_a_file_that_shows_something_else_is_named(mistake):
    arrays, meta = load(f"{HERE}/images.h5")
    arrays["images"][1, 0, 0, 0, 0] ^= 1
    save(f"{HERE}/images.h5", arrays, meta, chunked=("images",))
    said = mistake(line("imagefolder", more=""), begun=True)
    assert said == "a file of class 'crane' does not show its image; make the images again"
