"""The lock of a workflow that is surely gone is removed, and no other."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from snakemake.exceptions import WorkflowError

from wmdd.workflow import lock
from wmdd.workflow.lock import Guard, Holder, clear, hold, holders, locking

RUN = {
    "is_main_process": True,
    "output_settings": SimpleNamespace(dryrun=False),
    "execution_settings": SimpleNamespace(lock=True),
}


@pytest.fixture
def other() -> Iterator[tuple[subprocess.Popen[bytes], Holder]]:
    """Another process that runs, and what it would write down."""
    process = subprocess.Popen(["sleep", "600"])
    while not psutil.Process(process.pid).cmdline():  # none in the instant of its start
        time.sleep(0.01)
    yield process, Holder(pid=process.pid, command=["sleep", "600"])
    process.kill()
    process.wait()


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Snakemake's lock of the current folder."""
    monkeypatch.chdir(tmp_path)
    lock.LOCKS.mkdir(parents=True)
    (lock.LOCKS / "0.input.lock").write_text("data/digits.h5\n")
    (lock.LOCKS / "0.output.lock").write_text("results/a.h5\n")
    return lock.LOCKS


def write(locks: Path, holder: Holder) -> Path:
    path = locks / "wmdd-1.json"
    path.write_text(json.dumps(asdict(holder)))
    return path


def names(locks: Path) -> set[str]:
    return {path.name for path in locks.iterdir()}


# Who is gone


def test_a_process_that_runs_is_not_gone(other, monkeypatch):
    assert not Holder().gone
    assert not other[1].gone
    assert replace(other[1], command=["snakemake"]).gone, "a number that another process has by now"
    monkeypatch.setattr(psutil.Process, "cmdline", lambda process: [])  # as in the instant of its start
    assert not other[1].gone


def test_a_killed_process_is_gone_but_for_one_of_another_machine_or_container(other):
    process, holder = other
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert holder.gone, "also before its parent waits for it"
    process.wait()
    assert holder.gone
    for part in range(len(lock.MACHINE)):
        machine = [*lock.MACHINE]
        machine[part] = "another"
        assert not replace(holder, machine=machine).gone


@pytest.mark.parametrize("hidden", [False, True])
def test_a_process_of_another_user_is_gone_only_if_its_command_can_be_read(other, monkeypatch, hidden):
    def refuse(*_):
        raise PermissionError

    def hide(pid):  # as /proc is mounted on some clusters
        raise psutil.NoSuchProcess(pid)

    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", refuse)
        if hidden:
            patch.setattr(psutil, "Process", hide)
        assert not other[1].gone
        assert replace(other[1], command=["snakemake"]).gone != hidden


# What is removed


def test_the_lock_of_a_process_that_is_gone_is_removed_in_one_line_but_for_a_younger_one(locks, caplog):
    path = write(locks, Holder(command=["snakemake", "-c2"], since="noon"))
    os.utime(locks / "0.input.lock", (path.stat().st_mtime + 1,) * 2)
    clear()
    assert names(locks) == {"0.input.lock"}
    (message,) = caplog.messages
    assert message.startswith(f"wmdd: `snakemake -c2` (pid {os.getpid()} on {lock.MACHINE[0]}, since noon) is gone; ")


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError])
def test_who_cannot_remove_the_name_does_not_remove_the_lock(locks, monkeypatch, error):
    """A faster one has removed the name and may hold the folder by now, or the folder is another user's."""
    unlink = Path.unlink

    def removed(path, missing_ok=False):
        if path.suffix == ".json" and not missing_ok:
            raise error
        unlink(path)

    write(locks, Holder(command=["snakemake"]))
    before = names(locks)
    monkeypatch.setattr(Path, "unlink", removed)
    clear()
    assert names(locks) == before


def test_of_a_holder_that_runs_it_is_said_who_it_is_and_nothing_is_removed(locks, other):
    write(locks, other[1])
    before = names(locks)
    held = rf"^this folder is held by `sleep 600` \(pid {other[0].pid} on .*--unlock$"
    with pytest.raises(WorkflowError, match=held):
        clear()
    assert names(locks) == before


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"id": 1}'])
def test_a_name_that_cannot_be_read_is_left_to_snakemake(locks, text):
    (locks / "wmdd-1.json").write_text(text)
    before = names(locks)
    clear()
    assert names(locks) == before


# When


@pytest.mark.parametrize(
    "change",
    [
        {"is_main_process": False},
        {"output_settings": SimpleNamespace(dryrun=True)},
        {"execution_settings": SimpleNamespace(lock=False)},
        {"execution_settings": None},
        {"output_settings": SimpleNamespace()},
        {"execution_settings": SimpleNamespace()},
    ],
)
def test_nothing_is_read_or_written_where_snakemake_does_not_lock(locks, other, change):
    workflow = SimpleNamespace(**RUN | change)
    hold(workflow)
    assert list(holders()) == []
    write(locks, other[1])
    Guard(workflow).emit(None)
    assert not locking(workflow)


def test_the_holder_is_looked_for_once_before_the_process_itself_holds_the_folder(locks):
    workflow = SimpleNamespace(**RUN)
    guard = Guard(workflow)
    guard.emit(None)
    hold(workflow)
    ((_, holder),) = holders()
    assert holder.pid == os.getpid()
    guard.emit(None)
    with pytest.raises(WorkflowError, match="this folder is held by"):
        Guard(workflow).emit(None)


def test_where_locks_are_in_a_database_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hold(SimpleNamespace(**RUN))
    assert list(tmp_path.iterdir()) == []
