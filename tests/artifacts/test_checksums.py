"""Bytes that changed since they were written are refused by the name of the array; only what is read is checked."""

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wmdd.artifacts import checksums
from wmdd.artifacts.atomic_files import read_json, write_json
from wmdd.artifacts.checkpoint import Checkpoint
from wmdd.artifacts.hdf5 import checked_weights, dataset_of, load, load_meta, opened, reading
from wmdd.artifacts.hdf5_writer import save, writing
from wmdd.artifacts.model_files import load_model, save_model
from wmdd.base.errors import WmddError

ROWS = 50
ARRAYS = {
    "images": np.arange(ROWS * 6, dtype=np.uint8).reshape(ROWS, 2, 3),
    "group/weights": np.linspace(0, 1, ROWS, dtype=np.float32),
    "scalar": np.array(3.5),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """A block has 7 rows of images."""
    monkeypatch.setattr(checksums, "BLOCK", 42)


@pytest.fixture
def path(tmp_path):
    save(tmp_path / "x.h5", ARRAYS, {"names": ["a"]}, chunked=("images",))
    return tmp_path / "x.h5"


def edit(path, name, value, place=()):
    with h5py.File(path, "r+") as file:
        file[name][place] = value


@given(st.data())
def test_any_part_is_what_numpy_gives(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "parts.h5"
    if not path.exists():
        save(path, ARRAYS, {})
    row = st.integers(-ROWS, ROWS - 1)
    end = st.none() | row
    rising = st.lists(st.integers(0, ROWS - 1), min_size=1, unique=True).map(sorted)
    part = st.one_of(
        row, st.builds(slice, end, end, st.none() | st.integers(1, 9)), rising,
        st.tuples(rising, st.integers(0, 1)), st.just(()), st.just(Ellipsis), st.tuples(row, st.slices(2)),
        st.lists(st.booleans(), min_size=ROWS, max_size=ROWS).map(np.array),
    )  # fmt: skip
    key = data.draw(part.filter(lambda key: not (isinstance(key, tuple) and len(key) == 2 and _backward(key[1]))))
    with reading(path) as file:
        np.testing.assert_array_equal(file["images"][key], ARRAYS["images"][key])


def _backward(key):
    return isinstance(key, slice) and (key.step or 1) < 0


def test_a_changed_array_is_refused_by_name_where_it_is_read_and_only_there(path):
    edit(path, "images", 99, (30, 0, 0))
    with reading(path) as file:
        np.testing.assert_array_equal(file["images"][:28], ARRAYS["images"][:28])  # blocks 0 to 3
        np.testing.assert_array_equal(file["images"][[2, 40]], ARRAYS["images"][[2, 40]])
        for key in (slice(28, 29), 30, [2, 34], (), slice(None, None, 17)):
            with pytest.raises(
                WmddError, match=re.escape(f"images of {path} has changed since it was written; delete it")
            ):
                file["images"][key]
        np.testing.assert_array_equal(file["group/weights"][()], ARRAYS["group/weights"])
    with pytest.raises(WmddError, match=r"images of .* has changed"):
        load(path)


@pytest.mark.parametrize("name", ["group/weights", "scalar"])
def test_arrays_in_groups_and_single_numbers_are_checked(path, name):
    edit(path, name, 0.25)
    with pytest.raises(WmddError, match=f"{name} of .* has changed"):
        load(path)


def _without_a_row(file):
    images = file["images"][1:]
    del file["images"]
    file["images"] = images


def _as_other_type(file):
    images = file["images"][()].astype(np.int8)
    del file["images"]
    file["images"] = images


def _other_names(file):
    text = np.frombuffer(json.dumps({"names": ["b"]}).encode(), np.uint8)
    del file["meta"]
    file["meta"] = text


@pytest.mark.parametrize(
    "change",
    [
        _without_a_row,
        _as_other_type,
        _other_names,
        lambda file: file.__delitem__("scalar"),
        lambda file: file.attrs.__setitem__("digest", "0" * 64),
        lambda file: file["checksums/images"].__setitem__((0, 0), 0),
    ],
)
def test_what_a_file_says_of_itself_is_sealed(path, change):
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(WmddError, match=r"x\.h5 (is damaged|lacks scalar)"):
        load_meta(path)


def test_an_array_that_was_added_is_not_read(path):
    with h5py.File(path, "r+") as file:
        file["more"] = np.zeros(3)
    with pytest.raises(WmddError, match="lacks more"):
        load(path, "more")


def test_a_file_of_an_earlier_version_is_read_with_a_warning(path, capsys):
    with h5py.File(path, "r+") as file:
        del file["checksums"], file.attrs["seal"]
    assert load(path)[0].keys() == ARRAYS.keys()
    assert "x.h5 has no checksums, as an earlier version wrote it; it is not checked" in capsys.readouterr().err


def test_rows_that_come_in_any_portions_have_the_same_checksums(tmp_path, path):
    for count in (1, 5, 7, 20):
        with writing(tmp_path / "y.h5") as writer:
            writer.meta = {"names": ["a"]}
            for first in range(0, ROWS, count):
                writer.append("images", ARRAYS["images"][first : first + count])
        with h5py.File(tmp_path / "y.h5") as y, h5py.File(path) as x:
            np.testing.assert_array_equal(y["checksums/images"], x["checksums/images"])
            assert y["checksums/images"].shape == (-(-ROWS // 7), 32)


def _linked(file, tmp_path):
    file["images"] = h5py.SoftLink("/other")


def _elsewhere(file, tmp_path):
    file["images"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/images")


def _external(file, tmp_path):
    (tmp_path / "secret").write_bytes(b"TOPSECRET" * 9)
    file.create_dataset("images", (81,), "u1", external=[(str(tmp_path / "secret"), 0, 81)])


def _virtual(file, tmp_path):
    layout = h5py.VirtualLayout((3,), "u1")
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "images", (3,))
    file.create_virtual_dataset("images", layout)


def _huge(file, tmp_path):
    file.create_dataset("images", (10**6, 10**6), "u1", chunks=(1, 10**6), compression="gzip")


@pytest.mark.parametrize("content", [_linked, _elsewhere, _external, _virtual, _huge])
def test_nothing_outside_a_file_is_read_and_no_size_believed(tmp_path, content):
    save(tmp_path / "secret.h5", {"images": np.arange(3, dtype=np.uint8)}, {})
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["other"] = np.zeros(3)
        content(file, tmp_path)
    with (
        opened(tmp_path / "x.h5") as file,
        pytest.raises(WmddError, match=r"images of .*x\.h5 (is a link|lies in|claims)"),
    ):
        dataset_of(tmp_path / "x.h5", file, "images")


def test_weights_that_changed_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(path, {"a": torch.arange(100.0)}, {"classes": ["x"]})
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(WmddError, match=r"the weights of .*m\.safetensors have changed"):
        load_model(path)
    save_model(path, {"a": torch.arange(100.0)}, {"classes": ["x"]})
    path.write_bytes(path.read_bytes().replace(b'[\\"x\\"]', b'[\\"y\\"]'))
    with pytest.raises(WmddError, match=r"what .*m\.safetensors says of itself has changed"):
        load_model(path)


def test_a_json_file_that_changed_is_refused_and_one_without_a_seal_is_not(tmp_path):
    path = tmp_path / "run0.json"
    write_json(path, {"result": {"top1": 0.5}})
    assert read_json(path) == {"result": {"top1": 0.5}}
    path.write_text(path.read_text().replace("0.5", "0.9"))
    with pytest.raises(WmddError, match=r"run0\.json has changed since it was written; delete it and run again"):
        read_json(path)
    path.write_text('{"result": {"top1": 0.9}}')
    assert read_json(path) == {"result": {"top1": 0.9}}


def test_a_checkpoint_that_changed_is_set_aside(tmp_path, capsys):
    checkpoint = Checkpoint(tmp_path / "c", "key")
    checkpoint.save({"x": torch.arange(1000.0)})
    content = bytearray((tmp_path / "c").read_bytes())
    place = content.index(torch.arange(1000.0).numpy().tobytes()[400:440])
    content[place] ^= 1
    (tmp_path / "c").write_bytes(content)
    assert checkpoint.load() is None
    assert "cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1, 0])
def test_weights_that_are_no_masses_are_refused(wrong):
    good = np.ones((3, 2), np.float32)
    assert checked_weights(Path("images.h5"), good) is good
    bad = good.copy()
    bad[1] = wrong
    with pytest.raises(WmddError, match=r"the weights of class 1 in images\.h5 are"):
        checked_weights(Path("images.h5"), bad)
