"""Files are written whole or not at all, read with one clear line when they can't be, and never unpickled."""

import contextlib
import errno
import fcntl
import json
import os
import re
import resource
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
from safetensors.torch import save_file

from wmdd.artifacts.atomic_files import atomic, make_room, read_json, write_json, write_text
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


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Halted, OSError])
def test_an_exception_leaves_what_was_there(tmp_path, error):
    def interrupted(name):
        with atomic(tmp_path / name) as part:
            part.write_text("half")
            assert part.parent == tmp_path  # or the renaming would not be atomic
            raise error

    (tmp_path / "old").write_text("old")
    for name in "old", "new":
        with pytest.raises(error):
            interrupted(name)
        assert content(tmp_path) == {"old": b"old"}


def test_the_content_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """And then the name, where a file system can flush folders, as this one can't."""
    seen = []

    def fsync(handle):
        seen.append(sorted(content(tmp_path)))
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "a/x.txt", "x")  # the folder is made
    before, after = seen
    assert "a/x.txt" not in before
    assert after == ["a/x.txt"]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_failed_rewrite_keeps_the_old_file(tmp_path, kind, monkeypatch):
    path = tmp_path / "file"
    WRITERS[kind](path)
    before = content(tmp_path)

    def fail_with(number: int) -> None:
        def fail(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fail)

    fail_with(errno.ENOSPC)
    assert "disk full" in refused(WRITERS[kind], path)
    fail_with(errno.ESTALE)
    assert "removed what was being written" in refused(WRITERS[kind], path)
    fail_with(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):  # another fault of the machine keeps its trace
        WRITERS[kind](path)
    assert content(tmp_path) == before


# Jobs that make the same file at once


def test_processes_of_one_number_on_two_machines_do_not_meet(tmp_path, monkeypatch):
    with atomic(tmp_path / "x.txt") as here:
        monkeypatch.setattr(socket, "gethostname", lambda: "node7")
        with atomic(tmp_path / "x.txt") as there:
            here.write_text("the same")
            there.write_text("the same")
            assert there.name == f".x.txt.node7.{os.getpid()}.part"
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
def test_what_another_job_removes_meanwhile(tmp_path, kind):
    path = tmp_path / "folder/file"
    message = refused(rewritten_while_removed, kind, path, lambda part: shutil.rmtree(part.parent))
    expected = f"cannot write {path}: another job, or a person, removed what was being written; run again"
    assert message.startswith(expected)
    (tmp_path / "file").write_text("old")
    if kind == "nothing more":  # the temporary file alone
        message = refused(rewritten_while_removed, kind, tmp_path / "file", Path.unlink)
        assert "removed what was being written" in message
    assert content(tmp_path) == {"file": b"old"}


# Network file systems


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


@contextlib.contextmanager
def no_file_above(size):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_leaves_nothing_half_written(tmp_path, kind):
    (tmp_path / "old").write_text("old")
    for name in "new", "old":
        with no_file_above(20_000):
            message = refused(WRITERS[kind], tmp_path / name)
        assert message.startswith("disk full (or file size limit reached)")
        assert f"while writing {tmp_path}/{name}; free some space" in message
    assert content(tmp_path) == {"old": b"old"}


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
            for write in WRITERS[kind], make_room:
                for name in "file", "sub/file":
                    assert "no permission to write" in refused(write, Path(folder) / name)
        assert os.listdir(folder) == []
        os.chmod(folder, 0o755)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_or_a_folder_stands_in_the_way(tmp_path, kind):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file/x", tmp_path / "file/sub/x"):
        for write in WRITERS[kind], make_room:
            assert "a file stands where a folder is needed" in refused(write, path)
    assert "a folder of that name is in the way" in refused(WRITERS[kind], tmp_path / "folder")
    assert content(tmp_path) == {"file": b"old"}


# What was written comes back


def test_arrays_come_back(tmp_path):
    given, meta = arrays(), {"seed": 3, "names": ["ä", *(f"class number {i}" for i in range(20_000))], "x": [1.5, None]}
    save(tmp_path / "x.h5", given, meta, chunked=("images",))
    read, about = load(tmp_path / "x.h5")
    assert read.keys() == given.keys()
    for name, array in given.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(read[name], array)
    assert about == meta | {"digest": digest_of(given)} == load_meta(tmp_path / "x.h5")
    assert set(load(tmp_path / "x.h5", "labels", "group/weights")[0]) == {"labels", "group/weights"}
    with h5py.File(tmp_path / "x.h5") as file:
        assert (file["images"].chunks, file["images"].compression) == ((1, 3, 8, 8), "gzip")
        assert (file["logits"].chunks, file["logits"].compression) == (None, None)


def test_a_network_comes_back(tmp_path):
    weight = torch.arange(12.0).view(3, 4).requires_grad_()
    images = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    given = state() | {"transposed": weight.T, "channels last": images}
    save_model(tmp_path / "m.safetensors", given, {"names": ["ä"], "seed": 1})
    read, meta = load_model(tmp_path / "m.safetensors")
    assert read.keys() == given.keys()
    assert all(torch.equal(read[k], v) and read[k].dtype == v.dtype for k, v in given.items())
    digest = digest_of({k: v.detach().numpy() for k, v in given.items()})
    assert meta == {"names": ["ä"], "seed": 1, "digest": digest}


def test_json_has_its_keys_in_order(tmp_path):
    write_json(tmp_path / "x.json", [{"b": 1, "a": [1.5, None]}])
    assert json.loads((tmp_path / "x.json").read_text()) == [{"a": [1.5, None], "b": 1}]
    assert "".join((tmp_path / "x.json").read_text().split()) == '[{"a":[1.5,null],"b":1}]'


# Equal content, equal bytes

WRITTEN = """
import sys
from pathlib import Path
from tests.artifacts import test_artifacts as t
t.save(Path("x.h5"), t.arrays(), {"b": 1, "a": 2}, chunked=("images",))
t.save_model(Path("m.safetensors"), t.state(), {"b": 1, "a": 2})
"""


def test_equal_content_gives_equal_bytes_in_any_process_and_order(tmp_path):
    for name in "there", "here":
        (tmp_path / name).mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WRITTEN]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path / "there", check=False)
    assert (done.returncode, done.stderr) == (0, "")
    backwards = {name: np.array(array, order="F") for name, array in reversed(arrays().items())}
    save(tmp_path / "here/x.h5", backwards, {"a": 2, "b": 1}, chunked=("images",))
    save_model(tmp_path / "here/m.safetensors", dict(reversed(state().items())), {"a": 2, "b": 1})
    assert content(tmp_path / "here") == content(tmp_path / "there")
    assert len(content(tmp_path / "here")) == 2


def test_the_digest_is_of_names_types_shapes_and_values():
    a = np.arange(6)
    others = [{"a": a}, {"a": a[0]}, {"a": a[:1]}, {"b": a}, {"a": a.astype(np.int32)}, {"a": a.reshape(2, 3)}]
    others += [{"a": a.reshape(3, 2)}, {"a": a[::-1]}, {"a": a, "b": a}, {}]
    assert len({digest_of(x) for x in others}) == len(others)
    assert digest_of({"a": a, "b": a + 1}) == digest_of({"b": a + 1, "a": a.copy()})
    assert digest_of({"a": a.reshape(2, 3).T.T}) == digest_of({"a": a.reshape(2, 3)})


# Files that can't be read


def test_a_missing_file(tmp_path):
    for read in load, load_meta, load_model:
        assert refused(read, tmp_path / "x") == f"{tmp_path}/x does not exist; run the stage that makes it first"


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in load, load_model, read_json:
        assert refused(read, tmp_path) == f"{tmp_path} is a folder; name a file"
        assert refused(read, tmp_path / "pipe") == f"{tmp_path}/pipe is a pipe or a device; name a file"


def test_a_file_of_others_is_not_called_broken(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"")
    monkeypatch.setattr(os, "access", lambda *arguments, **options: False)
    for read in load, load_model, read_json:
        assert refused(read, tmp_path / "x").startswith(f"no permission to read {tmp_path}/x; ask its owner")


def test_files_have_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        save(tmp_path / "x.h5", arrays(), {})
        save_model(tmp_path / "m", state(), {})
        write_json(tmp_path / "x.json", {})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


@pytest.mark.parametrize(("number", "says"), [(errno.EROFS, "read-only"), (errno.ENAMETOOLONG, "name is too long")])
def test_a_disk_or_name_that_cannot_be_written_is_one_line(tmp_path, number, says):
    with pytest.raises(WmddError, match=f"cannot write .*x.json: .*{says}"), atomic(tmp_path / "x.json"):
        raise OSError(number, os.strerror(number))


def test_a_name_that_is_too_long_is_known_before_the_work(tmp_path):
    with pytest.raises(WmddError, match="its name is too long for the disk"):
        make_room(tmp_path / f"{'n' * 240}.h5")


def test_what_killed_jobs_left_half_written_goes_with_the_next_writing(tmp_path):
    gone = tmp_path / f".x.json.{socket.gethostname()}.{2**22 + 1}.part"  # above the largest number of a process
    alive = tmp_path / f".x.json.{socket.gethostname()}.{os.getppid()}.part"
    elsewhere = tmp_path / ".x.json.other-host.17.part"
    for path in gone, alive, elsewhere:
        path.write_text("half")
    write_json(tmp_path / "x.json", {})
    assert {path.name for path in tmp_path.iterdir()} == {"x.json", alive.name, elsewhere.name}


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99, 0.9999])
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
    torch.save(state(), tmp_path / "pickled")
    for path in tmp_path / "x", tmp_path / "pickled":
        assert "is not a whole HDF5 file" in refused(load, path)
        assert "is not a whole safetensors file" in refused(load_model, path)


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


def test_a_file_of_another_program(tmp_path):
    for meta, digest, says in (
        (None, {}, "was not written"),
        ("{}", {}, "was not written"),
        ("{", {"digest": "x"}, "damaged"),
    ):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["a"] = 1
            if meta is not None:
                file["meta"] = np.frombuffer(meta.encode(), np.uint8)
            file.attrs.update(digest)
        assert says in refused(load, tmp_path / "x.h5")
        assert says in refused(load_meta, tmp_path / "x.h5")
    for metadata in None, {}, {"other": "x"}, {"wmdd": "{"}:
        save_file({"a": torch.zeros(2)}, tmp_path / "m", metadata=metadata)
        assert "was not written by wmdd" in refused(load_model, tmp_path / "m")


def test_a_missing_array_is_named(tmp_path):
    save(tmp_path / "x.h5", arrays(), {})
    assert "lacks other, weights;" in refused(load, tmp_path / "x.h5", "labels", "weights", "other")
    with pytest.raises(WmddError, match="lacks nothing of the kind;"), reading(tmp_path / "x.h5") as file:
        file["nothing of the kind"]


# Classes


def test_the_first_difference_of_classes_is_named():
    check_classes(["a", "b"], ["a", "b"], "x", "y")
    message = refused(check_classes, ["a", "b", "c"], ["a", "c", "b"], "teacher.st", "data.h5")
    assert message == "class 1 is 'b' in teacher.st but 'c' in data.h5; rebuild one of them"
    message = refused(check_classes, ["a", "b"], ["a", "b", "c"], "teacher.st", "data.h5")
    assert message.startswith("data.h5 has 3 classes but teacher.st has 2;")


def test_nothing_in_the_package_unpickles():
    """torch.load with weights_only; no unpickler, np.load without pickles, no joblib, no code from a hub."""
    source = "\n".join(path.read_text() for path in (ROOT / "wmdd").rglob("*.py"))
    source = source.replace("allow_pickle=False", "")
    assert source.count("torch.load(") == source.count("weights_only=True") == 2  # checkpoints, teachers from outside
    for word in ("pickle.load", "Unpickler(", "from pickle", "allow_pickle", "joblib", "import shelve", "yaml.load("):
        assert word not in source
    assert set(re.findall(r"torch\.hub\.(\w+)", source)) == {"get_dir", "download_url_to_file"}
