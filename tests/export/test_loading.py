"""Every layout gives the bits of images.h5 back, or one line that says what is wrong with it."""

import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

import wmdd
from tests.export.test_export import (
    HERE,
    IPC,
    LAYOUTS,
    NAMES,
    SIDE,
    exported,
    here,  # noqa: F401
    learn_labels,
    make_float,
    read_set,
)
from wmdd.artifacts.hdf5 import load_meta
from wmdd.artifacts.hdf5_writer import save
from wmdd.base.errors import WmddError
from wmdd.export.layout_writers import png
from wmdd.export.loading import load
from wmdd.networks.models import normalise
from wmdd.networks.normalisation import Normalisation


def refused(path):
    """The one line that says why a set is not read."""
    with pytest.raises(WmddError) as error:
        load(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def changed(out, **changes):
    """Write a manifest that another program might write, which has no seal."""
    path = out / "manifest.json"
    content = json.loads(path.read_text()) | changes
    content.pop("seal", None)
    path.write_text(json.dumps(content))


@pytest.mark.usefixtures("here")
def test_a_manifest_that_was_edited_is_refused(run):
    path = exported(run, "hdf5") / "manifest.json"
    path.write_text(path.read_text().replace("bee", "wasp"))
    assert refused(path.parent) == f"{path} has changed since it was written; export the set again"


# ---- the set


@pytest.mark.usefixtures("here")
def test_all_layouts_give_the_same_bits(run):
    images, weights = read_set()
    sets = [load(f"{HERE}/images.h5"), *(load(exported(run, layout, output=layout)) for layout in LAYOUTS)]
    first = sets[1]
    for found in sets:
        assert found.images.dtype == torch.uint8
        assert torch.equal(found.images, torch.from_numpy(images))
        assert torch.equal(found.weights, torch.from_numpy(weights))
        assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert found.classes == ["n02", "n01", "a/../b"]
        assert found.names == NAMES
        assert (found.mean, found.std) == ([0.5, 0.4, 0.3], [0.25, 0.2, 0.3])
        assert found.meta["images"] == first.meta["images"]
        assert found.meta["images"]["digest"] == load_meta(Path(f"{HERE}/images.h5"))["digest"]
    for found in sets[1:]:
        assert found.soft_labels.dtype == torch.float32
        assert torch.equal(found.soft_labels, first.soft_labels)
        assert found.card.startswith("---\n")
    assert sets[0].soft_labels is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exports_of_the_first_version_load(tmp_path, layout):
    """What wmdd wrote before there were soft logits: the same six images as `here` has, with the mean labels at T = 4."""
    with tarfile.open(Path(__file__).with_name("version1.tar.xz")) as tar:
        tar.extractall(tmp_path, filter="data")
    found = load(tmp_path / layout)
    rng = np.random.default_rng(0)
    assert np.array_equal(found.images, rng.integers(0, 256, (6, 3, SIDE, SIDE), dtype=np.uint8))
    assert np.array_equal(found.weights, rng.dirichlet(np.ones(2), 3).astype(np.float32).flatten())
    torch.testing.assert_close((found.soft_logits / 4).softmax(1), found.soft_labels)


@pytest.mark.usefixtures("here")
def test_float_images_are_items_as_they_are_and_learned_labels_have_logits(run):
    images, learned = make_float(), learn_labels()
    for found in load(f"{HERE}/images.h5"), load(exported(run, "hdf5", more="")):
        assert np.array_equal(found.images, images)
        assert torch.equal(
            found[2]["image"], normalise(torch.from_numpy(images[2]), Normalisation(found.mean, found.std))
        )
        torch.testing.assert_close(found.soft_logits.exp(), torch.from_numpy(learned))


@pytest.mark.usefixtures("here")
def test_items_are_normalised_and_batched(run):
    found = load(exported(run, "hdf5"))
    batch = next(iter(DataLoader(found, batch_size=4)))
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "image": ((4, 3, SIDE, SIDE), torch.float32),
        "label": ((4,), torch.int64),
        "weight": ((4,), torch.float32),
        "soft_label": ((4, 3), torch.float32),
    }
    pixel = (found.images[0, 1, 0, 0] / 255 - 0.4) / 0.2
    torch.testing.assert_close(batch["image"][0, 1, 0, 0], pixel)
    assert len(list(found)) == len(found) == 6
    flipped = load("out/distilled.h5", transform=lambda image: image.flip(-1))  # the file stands for the export
    assert torch.equal(flipped[2]["image"], found.images[2].flip(-1))
    without = load(exported(run, "hdf5", output="without", more=""))
    assert without.soft_labels is None
    assert without[0].keys() == {"image", "label", "weight"}


def test_importing_the_package_is_light():
    script = "import sys, wmdd; assert 'torch' not in sys.modules; assert callable(wmdd.load)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
    assert wmdd.load is load
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = wmdd.lode


# ---- what is refused


@pytest.mark.usefixtures("here")
def test_what_is_no_set(run):
    out = exported(run, "imagefolder")
    assert "does not exist" in refused("nowhere")
    assert "no manifest.json" in refused(".")
    Path("empty.h5").touch()
    for path in (out / "README.md", f"{HERE}/labels.h5", "empty.h5"):
        assert "is no distilled set" in refused(path)
    arrays = {"images": np.zeros((2, IPC, 3, 8, 8), np.uint8), "weights": np.ones((2, IPC), np.float32)}
    save(Path("block.h5"), arrays, load_meta(Path(f"{HERE}/images.h5")))
    assert "names 3 classes" in refused("block.h5")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("here")
def test_a_file_that_is_cut_short_or_missing_is_named(run, layout):
    out = exported(run, layout)
    path = next(path for path in sorted(out.rglob("*")) if path.suffix in (".png", ".h5", ".tar", ".parquet"))
    half = path.stat().st_size // 2 + 600 * (
        layout == "webdataset"
    )  # between two members tarfile takes a cut for the end
    path.write_bytes(path.read_bytes()[:half])
    assert str(path) in refused(out)
    path.unlink()
    assert re.search(rf"{re.escape(str(path))} (is missing|does not exist)", refused(out))


def replaced(path, name, content):
    """Replace a member of a tar."""
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w") as tar:
        for member, data in members:
            data = content if member.name == name else data
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def spoil(out, layout, picture):
    """Replace the third picture of an export by other bytes; return what should be named."""
    if layout == "imagefolder":
        path = out / "train/1-n01/00000.png"
        path.write_bytes(picture)
        return str(path)
    if layout == "webdataset":
        path = out / "train-000000.tar"
        replaced(path, "00000002.png", picture)
        return f"{path} (00000002)"
    path = out / "data/train-00000-of-00001.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[2]["image"]["bytes"] = picture
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    return f"{path} (00000002.png)"


@pytest.mark.parametrize("layout", ["imagefolder", "webdataset", "parquet"])
@pytest.mark.usefixtures("here")
def test_a_corrupt_picture_is_named_and_other_pixels_are_noticed(run, layout):
    out = exported(run, layout)
    whole = png(np.zeros((3, SIDE, SIDE), np.uint8))
    assert f"{spoil(out, layout, whole[:45])} is damaged" in refused(out)
    spoil(out, layout, whole)
    assert "images of out are not those that were exported" in refused(out)
    spoil(out, layout, png(np.zeros((3, SIDE, 2 * SIDE), np.uint8)))
    assert "shape" in refused(out)


@pytest.mark.usefixtures("here")
def test_folders_and_tables_that_were_changed(run):
    out = exported(run, "imagefolder")
    (out / "train/0-a").mkdir()
    assert "the folder '0-a' is none of a class" in refused(out)
    (out / "train/0-a").rmdir()
    table = out / "train/metadata.jsonl"
    rows = table.read_text()
    for text, said in (
        (rows * 2, "metadata.jsonl is damaged (its pictures or their order"),
        (rows.replace("soft_label", "x"), "lacks soft labels"),
        (rows.replace('"weight": 0.', '"weight": 1.', 1), "weights of out are not those that were exported"),
        ("[]\n" * 6, "metadata.jsonl is damaged"),
    ):
        table.write_text(text)
        assert said in refused(out)


@pytest.mark.usefixtures("here")
def test_a_manifest_of_other_classes(run):
    out = exported(run, "webdataset")
    classes = json.loads((out / "manifest.json").read_text())["classes"]
    for others in (classes[:2], [*classes, classes[0] | {"index": 3, "folder": "3"}]):
        changed(out, classes=others)
        assert "where the manifest has place for" in refused(out)


@pytest.mark.usefixtures("here")
def test_a_manifest_that_is_none_or_leaves_the_folder(run):
    out = exported(run, "imagefolder")
    classes = json.loads((out / "manifest.json").read_text())["classes"]
    for folder in ("../..", "..", "/etc", "a/b", "a\\b", ""):
        changed(out, classes=[classes[0] | {"folder": folder}, *classes[1:]])
        assert "classes.0.folder: the name of a folder" in refused(out)
    for text in ("{", "[]", '{"kind": "something else"}', "\xff"):
        (out / "manifest.json").write_bytes(text.encode("latin-1"))
        assert str(out / "manifest.json") in refused(out)


@pytest.mark.usefixtures("here")
def test_nothing_is_unpickled_and_no_link_of_a_tar_followed(run):
    out = exported(run, "webdataset")
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    replaced(out / "train-000000.tar", "00000000.npy", buffer.getvalue())
    assert "allow_pickle=False" in refused(out)
    with tarfile.open(out / "train-000000.tar", "w") as tar:
        member = tarfile.TarInfo("00000000.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    assert "00000000.png is no file" in refused(out)
