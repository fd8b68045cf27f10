"""A copy on the node's disk is read in place of the file, with the same numbers; when anything is wrong, the file itself is."""

import multiprocessing
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.artifacts.test_artifacts import tmpfs
from wmdd.artifacts import hdf5
from wmdd.artifacts.hdf5 import load
from wmdd.artifacts.hdf5_writer import save
from wmdd.cli import select, student, teacher
from wmdd.datasets.loader import opened, read
from wmdd.jobs import node_cache
from wmdd.jobs.node_cache import staged
from wmdd.settings.engine import EngineSettings
from wmdd.settings.network import NetworkSettings
from wmdd.settings.select import SelectSettings
from wmdd.settings.student import StudentSettings
from wmdd.settings.teacher import TeacherSettings

RNG = np.random.default_rng(0)
ARRAYS = {
    f"{split}/{name}": array
    for split in ("train", "val")
    for name, array in (("images", RNG.integers(0, 255, (6, 3, 8, 8), dtype=np.uint8)), ("labels", np.arange(6) // 2))
}
CLASSES = ["a", "b", "c"]
META = {"classes": CLASSES, "names": CLASSES, "resolution": 8, "mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    save(tmp_path / "data/digits.h5", ARRAYS, META)
    return tmp_path / "data/digits.h5"


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The node's disk."""
    (tmp_path / "node").mkdir()
    monkeypatch.setenv("WMDD_SCRATCH", str(tmp_path / "node"))
    return tmp_path / "node"


def own(node: Path) -> Path:
    return node / f"wmdd-{os.geteuid()}"


def files(node: Path) -> list[str]:
    return sorted(path.name for path in node.rglob("*") if path.is_file())


def refused(data: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Why the file itself is read: one line."""
    assert staged(data) == data
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("WMDD_SCRATCH cannot be used (")
    assert line.endswith(f"); {data} itself is read")
    return line


def test_the_copy_is_the_file(data, node, capsys):
    copy = staged(data)
    assert copy.parent == own(node)
    assert copy.read_bytes() == data.read_bytes()
    assert own(node).stat().st_mode & 0o777 == 0o700
    assert capsys.readouterr().err == f"copying {data} to {copy}\n"
    for split in ("train", "val"):
        with opened(copy, split, once=True) as (near, meta), opened(data, split, once=True) as (far, expected):
            assert meta == expected
            assert torch.equal(read(near, torch.arange(6)), read(far, torch.arange(6)))


def test_it_is_copied_once_and_not_by_who_reads_little(data, node, monkeypatch):
    assert staged(data, make=False) == data
    assert files(node) == []
    copy = staged(data)
    monkeypatch.setattr(node_cache, "_copy", lambda *_: pytest.fail("copied twice"))
    assert staged(data) == staged(data, make=False) == copy


def test_the_place_is_that_of_the_job_and_without_one_the_file_is_read(data, node, monkeypatch, capsys):
    monkeypatch.setenv("TMPDIR", str(node))
    monkeypatch.setenv("HOME", str(node))
    for place in ("$TMPDIR", "${TMPDIR}/", "~"):
        monkeypatch.setenv("WMDD_SCRATCH", place)
        assert staged(data).parent == own(node)
    capsys.readouterr()
    monkeypatch.setenv("WMDD_SCRATCH", "")
    assert staged(data) == data
    monkeypatch.delenv("WMDD_SCRATCH")
    assert staged(data) == data
    assert capsys.readouterr().err == ""
    monkeypatch.delenv("WMDD_NOWHERE", raising=False)
    for place in "relative", "$WMDD_NOWHERE", "$WMDD_NOWHERE/x", "/dev/null", "/nonexistent/folder":
        monkeypatch.setenv("WMDD_SCRATCH", place)
        refused(data, capsys)


# A stale copy is never used


def test_a_new_file_has_a_new_copy(data, node):
    copies = [staged(data)]
    other = ARRAYS | {"val/images": ARRAYS["val/images"] ^ 1}
    mean = [0.4] * 3  # as long as before, and not in the digest of the arrays
    for arrays, meta in (other, META), (other, META | {"mean": mean}):
        save(data, arrays, meta)
        copies.append(staged(data))
    assert len(set(copies)) == 3
    found, about = load(copies[-1])
    assert about["mean"] == mean
    np.testing.assert_array_equal(found["val/images"], other["val/images"])


def test_a_copy_that_is_not_whole_is_made_again_and_a_link_of_its_name_not_followed(data, node, tmp_path):
    copy, whole = staged(data), data.read_bytes()
    other = whole.replace(hdf5.load_meta(data)["digest"].encode(), b"0" * 64)
    assert other != whole
    for fault in whole[:-1], whole + b"x", other, bytes(len(whole)):
        copy.write_bytes(fault)
        assert staged(data, make=False) == data
        assert staged(data) == copy
        assert copy.read_bytes() == whole
    copy.unlink()
    (tmp_path / "victim").write_text("precious")
    copy.symlink_to(tmp_path / "victim")
    assert staged(data) == copy
    assert not copy.is_symlink()
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_file_that_is_no_artifact_is_left_to_its_reader(node, tmp_path, capsys):
    for path in (tmp_path / "missing.h5", tmp_path / "text.h5"):
        (tmp_path / "text.h5").write_text("text")
        refused(path, capsys)


# Room and rights


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tmpfs is Linux's")
def test_a_disk_that_is_too_small(data, node, capsys):
    with tmpfs(node, "8k"):
        assert "kB left" in refused(data, capsys)
        assert files(node) == []


def test_a_disk_that_fills_meanwhile(data, node, capsys, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(node_cache.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, 10**9))
    assert staged(data) == data
    assert "disk full" in capsys.readouterr().err.splitlines()[-1]
    assert files(node) == []


@pytest.mark.parametrize("fault", ["link", "file", "open to all", "another's"])
def test_a_folder_that_is_not_mine_alone(data, node, capsys, tmp_path, fault):
    if fault == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        own(node).symlink_to(tmp_path / "elsewhere")
    elif fault == "file":
        own(node).write_text("")
    else:
        own(node).mkdir()
        own(node).chmod(0o777 if fault == "open to all" else 0o700)
    if fault == "another's":
        if os.geteuid() != 0:
            pytest.skip("only root can give a folder away")
        os.chown(own(node), 65534, 65534)
    refused(data, capsys)
    assert not list(tmp_path.rglob("digits-*"))


# Several jobs of a node

FORK = multiprocessing.get_context("fork")  # another process imports torch for seconds


def test_of_several_at_once_one_copies(data, node, monkeypatch):
    ready, answers, copy = FORK.Barrier(4), FORK.SimpleQueue(), node_cache._copy

    def stage():
        copied = []
        monkeypatch.setattr(
            node_cache, "_copy", lambda *arguments: (copied.append(True), time.sleep(0.2), copy(*arguments))
        )
        ready.wait()
        answers.put((staged(data), bool(copied)))

    processes = [FORK.Process(target=stage) for _ in range(4)]
    for process in processes:
        process.start()
    said = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    assert {path for path, _ in said} == {own(node) / copy_name(data)}
    assert sorted(copied for _, copied in said) == [False, False, False, True]
    assert files(node) == [copy_name(data)]


def test_what_a_killed_job_left_goes_and_that_of_others_stays(data, node):
    own(node).mkdir(mode=0o700)
    (own(node) / f".{copy_name(data)}.node7.12.part").write_text("half")
    (own(node) / ".other.h5.node7.12.part").write_text("another's half")
    assert staged(data) == own(node) / copy_name(data)
    assert files(node) == [".other.h5.node7.12.part", copy_name(data)]


def copy_name(data: Path) -> str:
    return f"digits-{node_cache._digest(data)[:32]}-{data.stat().st_size}.h5"


def test_a_big_copy_of_any_artifact_shows_how_far_it_is(tmp_path, node, monkeypatch, capsys):
    save(tmp_path / "x.h5", {"x": np.arange(3)}, {})
    monkeypatch.setattr(node_cache, "BIG", 0)
    assert load(staged(tmp_path / "x.h5"))[0]["x"].tolist() == [0, 1, 2]
    assert "copying: 1/1 16 MB" in capsys.readouterr().err


# Commands


def outputs(folder: Path, data: Path) -> dict[str, bytes]:
    """What the stages that read a dataset make of it."""
    model, images, small = folder / "model.safetensors", folder / "images.h5", NetworkSettings(width=2).model_dump()
    engine = EngineSettings(device="cpu", precision="fp32")
    teacher.teacher(
        data=data, output=model, seed=0, engine=engine,
        settings=TeacherSettings(**small, epochs=1, batch_size=6, min_accuracy=0),
    )  # fmt: skip
    teacher.features(
        data=data, teacher=model, output=folder / "features.h5", statistics=folder / "statistics.h5", engine=engine
    )
    select.select(data=data, output=images, ipc=1, seed=0, settings=SelectSettings(strategy="random"))
    student.student(
        images=images, data=data, output=[folder / "student.json"], seed=0, run=[0], engine=engine,
        settings=StudentSettings(**small, epochs=1, labels="hard"),
    )  # fmt: skip
    files = [path for path in folder.iterdir() if not path.name.endswith(".cost.json")]
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.parametrize("resident", ["4096", "0"])
def test_results_and_what_they_say_of_themselves_are_the_same(tmp_path, data, node, monkeypatch, resident):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WMDD_RESIDENT_MB", resident)
    read = []
    reading = hdf5.opened
    monkeypatch.setattr(hdf5, "opened", lambda path: (read.append(path), reading(path))[1])
    near = outputs(tmp_path / "near", data)
    assert own(node) / copy_name(data) in read
    monkeypatch.delenv("WMDD_SCRATCH")
    read.clear()
    assert near == outputs(tmp_path / "far", data)
    assert not [path for path in read if node in path.parents]
    assert len(near) >= 7
