"""Files are written whole or not at all, read with one clear line when they can't be, and never unpickled."""

import ast
import contextlib
import errno
import fcntl
import os
import pickle
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from wmdd.artifacts.atomic_files import atomic, make_room, write_json, write_text
from wmdd.artifacts.checkpoint import Checkpoint
from wmdd.artifacts.hdf5 import check_classes, load, load_meta, reading
from wmdd.artifacts.hdf5_writer import digest_of, save
from wmdd.artifacts.model_files import load_model, save_model
from wmdd.base.errors import WmddError

ROOT = Path(__file__).parents[2]


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "images": rng.integers(0, 255, (4, 3, 8, 8), dtype=np.uint8),
        "group/weights": rng.random((4, 3), dtype=np.float32),
        "logits": rng.random((2, 5)).astype(np.float16),
        "labels": np.arange(4),
        "none": np.zeros((0, 3)),
        "one": np.array(2.5),
    }


def state(seed=0):
    draws = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 4, generator=draws)
    return {"head.weight": weight, "norm.running_mean": torch.zeros(4), "norm.count": torch.tensor(3)}


WRITERS = {
    "hdf5": lambda path: save(path, {"a": np.random.default_rng(0).random((100, 100))}, {}),
    "model": lambda path: save_model(path, {"a": torch.rand(100, 100)}, {}),
    "checkpoint": lambda path: Checkpoint(path, "key").save({"a": torch.rand(100, 100)}),
    "text": lambda path: write_text(path, "x" * 80_000),
}


def refused(read, *arguments):
    """The message of the WmddError, which must be one line."""
    with pytest.raises(WmddError) as caught:
        read(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def content(folder):
    """Every file under a folder with its bytes; nothing hidden may be left either."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# Written whole or not at all


class Halted(BaseException):
    """Stands for anything that ends a job, such as a signal."""


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Halted, SystemExit, OSError, RuntimeError, KeyError])
@pytest.mark.parametrize("old", [None, "old"])
def test_an_exception_leaves_what_was_there(tmp_path, error, old):
    path = tmp_path / "x.txt"
    if old:
        path.write_text(old)
    before = content(tmp_path)

    def interrupted():
        with atomic(path) as part:
            part.write_text("half")
            assert part.parent == path.parent  # or the renaming would not be atomic
            assert content(tmp_path).get("x.txt") == before.get("x.txt")
            raise error

    with pytest.raises(error):
        interrupted()
    assert content(tmp_path) == before


def test_an_exception_before_anything_was_written(tmp_path):
    with pytest.raises(ValueError, match="early"), atomic(tmp_path / "x.txt"):
        raise ValueError("early")
    assert content(tmp_path) == {}


def test_success_replaces_the_old_content(tmp_path):
    write_text(tmp_path / "x.txt", "old")
    write_text(tmp_path / "x.txt", "new")
    assert content(tmp_path) == {"x.txt": b"new"}


def test_who_reads_the_old_file_goes_on_reading_it(tmp_path):
    write_text(tmp_path / "x.txt", "old")
    with (tmp_path / "x.txt").open() as reader:
        write_text(tmp_path / "x.txt", "new")
        assert reader.read() == "old"


def test_the_content_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    seen = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (fsync(handle), seen.append(sorted(content(tmp_path)))))
    write_text(tmp_path / "x.txt", "x")
    before, after = seen  # the file, and then the folder, so that the name survives as well
    assert "x.txt" not in before
    assert after == ["x.txt"]


def test_a_file_system_that_cannot_flush_folders(tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(22, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    write_text(tmp_path / "x.txt", "x")
    assert content(tmp_path) == {"x.txt": b"x"}


def test_folders_are_made(tmp_path):
    write_text(tmp_path / "a/b/x.txt", "x")
    assert (tmp_path / "a/b/x.txt").read_text() == "x"


@pytest.mark.parametrize("kind", WRITERS)
def test_a_failed_rewrite_keeps_the_old_file(tmp_path, kind, monkeypatch):
    path = tmp_path / "file"
    WRITERS[kind](path)
    before = content(tmp_path)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert "disk full" in refused(WRITERS[kind], path)
    assert content(tmp_path) == before


@pytest.mark.parametrize("kind", WRITERS)
def test_other_faults_of_the_machine_keep_their_trace(tmp_path, kind, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        WRITERS[kind](tmp_path / "file")
    assert content(tmp_path) == {}


# Jobs that make the same file at once


def test_processes_of_one_number_on_two_machines_do_not_meet(tmp_path, monkeypatch):
    with atomic(tmp_path / "x.txt") as here:
        monkeypatch.setattr(socket, "gethostname", lambda: "node7")
        with atomic(tmp_path / "x.txt") as there:
            here.write_text("the same")
            there.write_text("the same")
            assert there.name == f".x.txt.node7.{os.getpid()}.part"
    assert content(tmp_path) == {"x.txt": b"the same"}


def test_a_twin_changes_nothing(tmp_path):
    """The other job begins earlier and ends in the middle, or the other way round."""
    for first in (True, False):
        with atomic(tmp_path / "x.txt") as part:
            part.write_text("the same")
            twin = tmp_path / ".x.txt.node7.12.part"
            twin.write_text("the same")
            if first:
                twin.replace(tmp_path / "x.txt")
        if not first:
            twin.replace(tmp_path / "x.txt")
        assert content(tmp_path) == {"x.txt": b"the same"}


def rewritten_while_removed(kind, path, remove):
    """Write a file, of which another job removes what is written so far."""
    with atomic(path) as part:
        part.write_text("half")
        remove(part)
        if kind == "hdf5":
            part.open("w+b")
        elif kind == "model":
            save_file({"a": torch.rand(3)}, part)
        elif kind == "text":
            part.write_text("whole")


@pytest.mark.parametrize("kind", ["hdf5", "model", "text", "nothing more"])
def test_a_folder_that_another_job_removes(tmp_path, kind):
    path = tmp_path / "folder/file"
    message = refused(rewritten_while_removed, kind, path, lambda part: shutil.rmtree(part.parent))
    assert message.startswith(
        f"cannot write {path}: another job, or a person, removed what was being written; run again"
    )


def test_a_temporary_that_another_job_removes(tmp_path):
    (tmp_path / "file").write_text("old")
    assert "removed what was being written" in refused(
        rewritten_while_removed, "nothing more", tmp_path / "file", Path.unlink
    )
    assert content(tmp_path) == {"file": b"old"}


def test_a_handle_that_became_stale(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "fsync", fail)
    assert "removed what was being written" in refused(write_text, tmp_path / "file", "x")


def test_a_file_of_somebody_else_that_is_missing_keeps_its_trace(tmp_path):
    with pytest.raises(FileNotFoundError, match="other"), atomic(tmp_path / "file"):
        (tmp_path / "other").read_text()


# Network file systems


def calls(name):
    """Every call of a function in the package, with its module."""
    for path in (ROOT / "wmdd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
                yield path.name, node


def test_no_file_is_locked():
    """Some file systems have no locks. HDF5 takes none of a Python file object."""
    found = list(calls("h5py.File"))
    assert len(found) >= 2
    for module, call in found:
        unlocked = any(word.arg == "locking" and ast.unparse(word.value) == "False" for word in call.keywords)
        sink = module == "hdf5_writer.py" and ast.unparse(call.args[0]) == "sink"
        assert unlocked or sink, f"{module}: {ast.unparse(call)}"
    assert not list(calls("File"))


def test_what_another_has_locked_is_written_and_read(tmp_path, monkeypatch):
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)
    save(tmp_path / "x.h5", {"x": np.zeros(3)}, {})
    with (tmp_path / "x.h5").open("r+b") as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="lock"):
            h5py.File(tmp_path / "x.h5")
        assert load(tmp_path / "x.h5")[0]["x"].tolist() == [0, 0, 0]
        save(tmp_path / "x.h5", {"x": np.ones(3)}, {})
        assert load(tmp_path / "x.h5")[0]["x"].tolist() == [1, 1, 1]


# A full disk

FULL = """
import resource, signal, sys
from pathlib import Path
from tests.artifacts import test_artifacts
from wmdd.artifacts.checkpoint import Checkpoint
from wmdd.base.errors import WmddError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
for kind in test_artifacts.WRITERS:
    (path / f"old-{kind}").write_text("old")
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for kind, write in test_artifacts.WRITERS.items():
    for name in ("new", "old"):
        try:
            write(path / f"{name}-{kind}")
        except WmddError as error:
            print(kind, name, error)
"""


def python(*arguments, **options):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **options)


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    done = python("-c", FULL, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split(" disk full")[0] for line in lines] == [f"{k} {n}" for k in WRITERS for n in ("new", "old")]
    for line, (kind, name) in zip(lines, [(k, n) for k in WRITERS for n in ("new", "old")], strict=True):
        assert f"while writing {tmp_path}/{name}-{kind}; free some space" in line
    assert content(tmp_path) == {f"old-{kind}": b"old" for kind in WRITERS}


@contextlib.contextmanager
def tmpfs(folder, size):
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip(f"no permission to mount a small file system: {mount.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tmpfs is Linux's")
@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_system_that_is_really_full(tmp_path, kind):
    with tmpfs(tmp_path, "32k"):
        (tmp_path / "file").write_text("old")
        assert "disk full" in refused(WRITERS[kind], tmp_path / "file")
        assert content(tmp_path) == {"file": b"old"}
        write_text(tmp_path / "small", "fits")  # the space is free again


# Places that can't be written


@contextlib.contextmanager
def unprivileged():
    """Root may write anywhere, so be nobody for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("kind", WRITERS)
def test_no_permission(kind):
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is closed to everybody else
        os.chmod(folder, 0o555)
        with unprivileged():
            assert "no permission to write" in refused(WRITERS[kind], Path(folder) / "file")
            assert "no permission to write" in refused(WRITERS[kind], Path(folder) / "sub/file")
            assert "no permission to write" in refused(make_room, Path(folder) / "file")
            assert "no permission to write" in refused(make_room, Path(folder) / "sub/file")
        assert os.listdir(folder) == []
        os.chmod(folder, 0o755)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_stands_where_a_folder_is_needed(tmp_path, kind):
    (tmp_path / "file").write_text("old")
    for path in (tmp_path / "file/x", tmp_path / "file/sub/x"):
        assert "a file stands where a folder is needed" in refused(WRITERS[kind], path)
        assert "a file stands where a folder is needed" in refused(make_room, path)
    assert content(tmp_path) == {"file": b"old"}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_folder_stands_where_the_file_belongs(tmp_path, kind):
    (tmp_path / "file").mkdir()
    assert "a folder of that name is in the way" in refused(WRITERS[kind], tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]


# What was written comes back


def test_arrays_come_back(tmp_path):
    given, meta = arrays(), {"seed": 3, "names": ["ä", "b"], "nested": {"x": [1.5, None]}}
    save(tmp_path / "x.h5", given, meta, chunked=("images",))
    found, about = load(tmp_path / "x.h5")
    assert found.keys() == given.keys()
    for name, array in given.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)
    assert about == meta | {"digest": digest_of(given)} == load_meta(tmp_path / "x.h5")


def test_named_arrays_alone(tmp_path):
    save(tmp_path / "x.h5", arrays(), {})
    assert set(load(tmp_path / "x.h5", "labels", "group/weights")[0]) == {"labels", "group/weights"}


def test_only_the_named_arrays_are_compressed_and_cut_in_rows(tmp_path):
    save(tmp_path / "x.h5", arrays(), {}, chunked=("images",))
    with h5py.File(tmp_path / "x.h5") as file:
        assert (file["images"].chunks, file["images"].compression) == ((1, 3, 8, 8), "gzip")
        assert (file["logits"].chunks, file["logits"].compression) == (None, None)


def test_a_network_comes_back(tmp_path):
    save_model(tmp_path / "m.safetensors", state(), {"names": ["ä"], "seed": 1})
    found, meta = load_model(tmp_path / "m.safetensors")
    assert found.keys() == state().keys()
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in state().items())
    assert meta == {"names": ["ä"], "seed": 1, "digest": digest_of({k: v.numpy() for k, v in state().items()})}


def test_a_network_of_views_and_gradients_comes_back(tmp_path):
    weight = torch.arange(12.0).view(3, 4).requires_grad_()
    save_model(
        tmp_path / "m.safetensors",
        {"t": weight.T, "channels": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)},
        {},
    )
    found, _ = load_model(tmp_path / "m.safetensors")
    assert torch.equal(found["t"], weight.T.detach())


def test_text_and_json(tmp_path):
    write_json(tmp_path / "x.json", {"b": 1, "a": [1.5, None]})
    assert (tmp_path / "x.json").read_text() == '{\n  "a": [\n    1.5,\n    null\n  ],\n  "b": 1\n}\n'


@given(
    st.dictionaries(
        st.text("abc/", min_size=1, max_size=5).filter(lambda name: name.strip("/") == name and "//" not in name),
        st.lists(st.integers(-(2**40), 2**40), max_size=3),
        max_size=3,
    ).filter(lambda d: not any(a != b and b.startswith(a + "/") for a in d for b in d))
)
def test_any_arrays_come_back(given_lists):
    given = {name: np.array(values, np.int64) for name, values in given_lists.items()}
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "x.h5", given, {})
        found, meta = load(Path(folder) / "x.h5")
    assert {name: array.tolist() for name, array in found.items()} == given_lists
    assert meta["digest"] == digest_of(given)


# Equal content, equal bytes

TWICE = """
import sys
from pathlib import Path
from tests.artifacts import test_artifacts as t
t.save(Path("x.h5"), t.arrays(), {"b": 1, "a": 2}, chunked=("images",))
t.save_model(Path("m.safetensors"), t.state(), {"b": 1, "a": 2})
"""


def test_equal_content_gives_equal_bytes_in_any_process_and_order(tmp_path):
    found = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        done = python("-c", TWICE, cwd=tmp_path / name)
        assert (done.returncode, done.stderr) == (0, "")
        found.append(content(tmp_path / name))
    (tmp_path / "third").mkdir()
    backwards = {name: np.array(array, order="F") for name, array in reversed(arrays().items())}
    save(tmp_path / "third/x.h5", backwards, {"a": 2, "b": 1}, chunked=("images",))
    save_model(tmp_path / "third/m.safetensors", dict(reversed(state().items())), {"a": 2, "b": 1})
    assert found[0] == found[1] == content(tmp_path / "third")
    assert set(found[0]) == {"x.h5", "m.safetensors"}


def test_the_digest_is_of_names_types_shapes_and_values():
    a = np.arange(6)
    others = [
        {"a": a},
        {"a": a[0]},
        {"a": a[:1]},
        {"b": a},
        {"a": a.astype(np.int32)},
        {"a": a.reshape(2, 3)},
        {"a": a.reshape(3, 2)},
        {"a": a[::-1]},
        {"a": a, "b": a},
        {},
    ]
    assert len({digest_of(x) for x in others}) == len(others)
    assert digest_of({"a": a, "b": a + 1}) == digest_of({"b": a + 1, "a": a.copy()})
    assert digest_of({"a": a.reshape(2, 3).T.T}) == digest_of({"a": a.reshape(2, 3)})


# Files that can't be read


@pytest.mark.parametrize("read", [load, load_meta])
def test_a_missing_file(tmp_path, read):
    assert refused(read, tmp_path / "x.h5") == f"{tmp_path}/x.h5 does not exist; run the stage that makes it first"


def test_a_missing_network(tmp_path):
    assert refused(load_model, tmp_path / "m") == f"{tmp_path}/m does not exist; train the teacher first"


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999])
def test_a_file_that_is_cut_short(tmp_path, share):
    save(tmp_path / "x.h5", arrays(), {"a": 1}, chunked=("images",))
    save_model(tmp_path / "m", state(), {"a": 1})
    for name, read, says in (("x.h5", load, "is not a whole HDF5 file"), ("m", load_model, "not a whole safetensors")):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
        message = refused(read, tmp_path / name)
        assert message.startswith(f"{tmp_path}/{name} ")
        assert says in message
        assert "delete it and run again" in message


@pytest.mark.parametrize("junk", [b"", b"\0" * 4096, b"hello\n" * 100, b"\x89HDF\r\n\x1a\n" + b"\0" * 4096])
def test_a_file_of_something_else(tmp_path, junk):
    (tmp_path / "x").write_bytes(junk)
    assert "is not a whole HDF5 file" in refused(load, tmp_path / "x")
    assert "is not a whole safetensors file" in refused(load_model, tmp_path / "x")


def test_a_folder_instead_of_a_file(tmp_path):
    assert "is not a whole HDF5 file" in refused(load, tmp_path)
    assert "is not a whole safetensors file" in refused(load_model, tmp_path)


def test_damaged_values(tmp_path):
    path = tmp_path / "x.h5"
    save(path, arrays(), {}, chunked=("images",))
    with h5py.File(path) as file:
        chunk = file["images"].id.get_chunk_info(0)
    broken = bytearray(path.read_bytes())
    broken[chunk.byte_offset + chunk.size // 2] ^= 0xFF
    path.write_bytes(broken)
    assert "is damaged" in refused(load, path)
    assert load(path, "labels")[0]["labels"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({}, "was not written by wmdd"),
        ({"meta": "{}"}, "was not written"),
        ({"meta": "{", "digest": "x"}, "is damaged"),
    ],
)
def test_a_foreign_hdf5_file(tmp_path, attributes, says):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"] = 1
        if "meta" in attributes:
            file["meta"] = np.frombuffer(attributes.pop("meta").encode(), np.uint8)
        file.attrs.update(attributes)
    assert says in refused(load, tmp_path / "x.h5")
    assert says in refused(load_meta, tmp_path / "x.h5")


@pytest.mark.parametrize("metadata", [None, {}, {"other": "x"}, {"wmdd": "{"}])
def test_a_foreign_network(tmp_path, metadata):
    save_file({"a": torch.zeros(2)}, tmp_path / "m", metadata=metadata)
    assert "was not written by wmdd" in refused(load_model, tmp_path / "m")


def test_a_missing_array_is_named(tmp_path):
    save(tmp_path / "x.h5", arrays(), {})
    assert "lacks other, weights;" in refused(load, tmp_path / "x.h5", "labels", "weights", "other")


def test_a_bug_inside_a_reader_keeps_its_trace(tmp_path):
    save(tmp_path / "x.h5", arrays(), {})
    with pytest.raises(KeyError), reading(tmp_path / "x.h5") as file:
        file["nothing of the kind"]


def test_a_pickled_network_is_not_loaded(tmp_path):
    torch.save(state(), tmp_path / "m")
    assert "is not a whole safetensors file" in refused(load_model, tmp_path / "m")


# Classes


def test_equal_classes_pass():
    check_classes(["a", "b"], ["a", "b"], "x", "y")


def test_the_first_class_that_differs_is_named():
    message = refused(check_classes, ["a", "b", "c"], ["a", "c", "b"], "teacher.st", "data.h5")
    assert message == "class 1 is 'b' in teacher.st but 'c' in data.h5; rebuild one of them"


def test_a_different_number_of_classes_is_named():
    message = refused(check_classes, ["a", "b"], ["a", "b", "c"], "teacher.st", "data.h5")
    assert message.startswith("data.h5 has 3 classes but teacher.st has 2;")


# Checkpoints


def test_a_checkpoint_goes_on(tmp_path, capsys):
    Checkpoint(tmp_path / "c", "key").save({"x": torch.arange(3), "epoch": 4, "history": [{"loss": 0.5}], "name": "a"})
    later = Checkpoint(tmp_path / "c", "key")
    found = later.load()
    assert found["x"].tolist() == [0, 1, 2]
    assert (found["epoch"], found["history"], found["name"]) == (4, [{"loss": 0.5}], "a")
    assert "going on from" in capsys.readouterr().out


def test_the_state_of_an_optimizer_survives(tmp_path):
    weight = torch.ones(3, requires_grad=True)
    adam = torch.optim.AdamW([weight], lr=0.1)
    weight.sum().backward()
    adam.step()
    Checkpoint(tmp_path / "c", "key").save({"adam": adam.state_dict()})
    found = Checkpoint(tmp_path / "c", "key").load()["adam"]
    other = torch.optim.AdamW([torch.ones(3, requires_grad=True)], lr=0.1)
    other.load_state_dict(found)
    assert torch.equal(other.state_dict()["state"][0]["exp_avg"], adam.state_dict()["state"][0]["exp_avg"])


def test_the_time_of_earlier_jobs_adds_up(tmp_path):
    first = Checkpoint(tmp_path / "c", "key")
    first.earlier = 100.0
    first.save({})
    second = Checkpoint(tmp_path / "c", "key")
    assert second.earlier == 0
    second.load()
    assert second.earlier >= 100
    second.save({})
    third = Checkpoint(tmp_path / "c", "key")
    third.load()
    assert third.earlier >= second.earlier


def test_no_checkpoint_is_a_fresh_start(tmp_path, capsys):
    assert Checkpoint(tmp_path / "c", "key").load() is None
    assert capsys.readouterr().out == ""


def test_a_stale_checkpoint_is_set_aside(tmp_path, capsys):
    Checkpoint(tmp_path / "c", "old key").save({"x": 1})
    later = Checkpoint(tmp_path / "c", "key")
    assert later.load() is None
    assert later.earlier == 0
    assert f"checkpoint {tmp_path}/c is of other settings, code or inputs; starting over" in capsys.readouterr().out
    later.save({"x": 2})
    assert Checkpoint(tmp_path / "c", "key").load() == {"x": 2}


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
def test_a_checkpoint_that_is_cut_short_is_set_aside(tmp_path, capsys, share):
    Checkpoint(tmp_path / "c", "key").save({"x": torch.arange(1000)})
    whole = (tmp_path / "c").read_bytes()
    (tmp_path / "c").write_bytes(whole[: int(share * len(whole))])
    assert Checkpoint(tmp_path / "c", "key").load() is None
    assert "cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    "other", [[1, 2], 3, {"key": "key"}, {"key": "key", "state": 1, "seconds": 1.0}, {"state": {}}]
)
def test_a_checkpoint_of_something_else_is_set_aside(tmp_path, capsys, other):
    torch.save(other, tmp_path / "c")
    assert Checkpoint(tmp_path / "c", "key").load() is None
    assert "cannot be read" in capsys.readouterr().out


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_malicious_checkpoint_is_not_executed(tmp_path, capsys, how):
    trap = tmp_path / "executed"
    how({"key": "key", "state": {"x": Malicious(trap)}, "seconds": 0.0}, tmp_path / "c")
    assert Checkpoint(tmp_path / "c", "key").load() is None
    assert not trap.exists()
    assert "cannot be read" in capsys.readouterr().out
    with (tmp_path / "c").open("rb") as file:  # the trap itself works: a plain load would have sprung it
        torch.load(file, weights_only=False) if how is torch.save else pickle.load(file)
    assert trap.exists()


def test_due(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    always, seldom = Checkpoint(tmp_path / "a", "key", seconds=0), Checkpoint(tmp_path / "b", "key", seconds=60)
    assert (always.due(), seldom.due()) == (True, False)
    now[0] += 60
    assert seldom.due()
    seldom.save({})
    assert not seldom.due()
    always.save({})
    assert always.due()


def test_remove(tmp_path):
    keeper = Checkpoint(tmp_path / "c", "key")
    keeper.remove()
    keeper.save({})
    keeper.remove()
    assert content(tmp_path) == {}


def test_nothing_in_the_package_unpickles():
    """torch.load with weights_only; no unpickler, np.load without pickles, no joblib, no code from a hub."""
    source = "\n".join(path.read_text() for path in (ROOT / "wmdd").rglob("*.py"))
    source = source.replace("allow_pickle=False", "")
    assert source.count("torch.load(") == source.count("weights_only=True") == 2  # checkpoints, teachers from outside
    for word in ("pickle.load", "Unpickler(", "from pickle", "allow_pickle", "joblib", "import shelve", "yaml.load("):
        assert word not in source
    assert set(re.findall(r"torch\.hub\.(\w+)", source)) == {"get_dir", "download_url_to_file"}


def test_meta_data_of_many_classes_fit(tmp_path):
    names = [f"class number {i}" for i in range(20_000)]
    save(tmp_path / "many.h5", {"x": np.zeros(1)}, {"classes": names})
    assert load_meta(tmp_path / "many.h5")["classes"] == names
