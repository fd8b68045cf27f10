"""Files with a few bytes changed, cut or moved: each reader gives what was written, or one line; never anything else.

`WMDD_FUZZ=1000 pytest tests/test_fuzz.py` tries that many of each in place of 300.
"""

import io
import json
import os
import random
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from wmdd.artifacts.atomic_files import read_json, write_json
from wmdd.artifacts.hdf5 import load
from wmdd.artifacts.hdf5_writer import save
from wmdd.artifacts.model_files import load_model, save_model
from wmdd.base.errors import WmddError
from wmdd.datasets.archives import unpack
from wmdd.datasets.decode import UnreadableError, decode
from wmdd.export.foreign import read as read_foreign
from wmdd.export.layout_writers import png
from wmdd.workflow.experiment_file import parse, read

FOREIGN = ("pt", "npz", "npy", "h5", "parquet", "tar")
TRIES = int(os.environ.get("WMDD_FUZZ", "300"))
ARRAYS = {"images": np.arange(600, dtype=np.uint8).reshape(10, 3, 20), "group/weights": np.linspace(0, 1, 10)}
EXPERIMENT = """
experiment: mine
matrix:
  - {datasets: [digits], methods: [wmdd, random], ipc: [1, 10], seeds: [0, 1]}
methods:
  mine: {base: wmdd, recover: {regularisation: [1, 10.5], iterations: 20}}
"""


def changed(content: bytes, draws: random.Random) -> bytes:
    """Return a content with some of its bytes changed, cut out, doubled or cut off."""
    data = bytearray(content)
    for _ in range(draws.choice((1, 1, 2, 8))):
        at, count = draws.randrange(len(data)), draws.choice((1, 1, 4, 64))
        way = draws.randrange(5)
        if way == 0:
            data[at : at + count] = draws.randbytes(len(data[at : at + count]))
        elif way == 1:
            data[at] ^= 1 << draws.randrange(8)
        elif way == 2:
            del data[at : at + count]
        elif way == 3:
            data[at:at] = data[at : at + count]
        else:
            del data[max(at, 1) :]
        if not data:
            return b""
    return bytes(data)


def _hdf5(path: Path) -> object:
    arrays, meta = load(path)
    return {name: array.tobytes() for name, array in arrays.items()}, dict(meta)


def _safetensors(path: Path) -> object:
    state, meta = load_model(path)
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}, dict(meta)


def _archive(path: Path) -> object:
    folder = path.with_name("top")
    unpack(path, folder)
    names = sorted(str(file.relative_to(folder.parent)) for file in folder.rglob("*"))
    assert all(name.startswith("top/") for name in names)
    return None  # checksums of archives are compared before they are unpacked


def _picture(path: Path) -> object:
    try:
        decode(path.read_bytes(), resolution=8)
    except UnreadableError:
        raise WmddError("as it should be") from None
    return None


def _experiment(path: Path) -> object:
    parse(read(path))
    return None  # another valid file is another experiment


def _foreign(path: Path) -> object:
    """Read a set of others; its pixels have no checksums."""
    read_foreign(path)


def _write_foreign(path: Path) -> None:
    pixels, labels = np.arange(96, dtype=np.uint8).reshape(2, 3, 4, 4), np.arange(2)
    if path.suffix == ".pt":
        pair = [torch.from_numpy(pixels), torch.from_numpy(labels)]
        torch.save({"data": [pair], "accs_all_exps": {"ConvNet": [np.float64(0.5)]}}, path)
    elif path.suffix == ".npz":
        np.savez_compressed(path, images=pixels, labels=labels)
    elif path.suffix == ".npy":
        np.save(path, pixels[None])
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["images"], file["labels"] = pixels, labels
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({"image": [{"bytes": png(p)} for p in pixels], "label": labels}), path)
    else:
        with tarfile.open(path, "w") as tar:
            for name, data in {"0.png": png(pixels[0]), "0.cls": b"0", "0.json": b'{"weight": 1}'}.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _write_archive(path: Path) -> None:
    content = b"picture" * 300
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("top/a/0.png", content)
        return
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        member = tarfile.TarInfo("top/a/0.png")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))


WRITERS: dict[str, tuple[str, Callable[[Path], object], Callable[[Path], object]]] = {
    "hdf5": ("x.h5", lambda path: save(path, ARRAYS, {"names": ["a"]}, chunked=("images",)), _hdf5),
    "safetensors": ("m.safetensors", lambda path: save_model(path, {"a": torch.arange(50.0)}, {"b": 1}), _safetensors),
    "json": (
        "run0.json",
        lambda path: write_json(path, {"result": {"top1": 0.5}, "settings": {"a": [1, None]}}),
        read_json,
    ),
    "yaml": ("mine.yaml", lambda path: path.write_text(EXPERIMENT), _experiment),
    "tar": ("x.tar", _write_archive, _archive),
    "tar.gz": ("x.tar.gz", _write_archive, _archive),
    "zip": ("x.zip", _write_archive, _archive),
    "png": ("x.png", lambda path: Image.new("RGB", (9, 7), (1, 2, 3)).save(path), _picture),
    **{f"foreign {ending}": (f"set.{ending}", _write_foreign, _foreign) for ending in FOREIGN},
    "jpeg": ("x.jpg", lambda path: Image.new("RGB", (9, 7), (1, 2, 3)).save(path), _picture),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_changed_file_is_read_as_it_was_or_refused_in_one_line(tmp_path, kind):
    name, write, read_file = WRITERS[kind]
    path, draws = tmp_path / name, random.Random(kind)
    write(path)
    content = path.read_bytes()
    expected = json.dumps(read_file(path), default=str)
    for attempt in range(TRIES):
        path = tmp_path / str(attempt) / name
        path.parent.mkdir()
        path.write_bytes(data := changed(content, draws))
        try:
            found = json.dumps(read_file(path), default=str)
        except WmddError as error:
            lines = str(error).splitlines()
            assert len(lines) == 1
        else:
            assert found == expected or (kind in ("json", "safetensors") and not re.search(rb'"seal\\*"', data)), data
