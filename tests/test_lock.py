"""A folder has one holder at a time; the name of one that is surely gone is cleared away, of any other it is not."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from wmdd import lock
from wmdd.lock import HeldError, Holder, guard, held

ROOT = Path(__file__).parents[1]
HOLD = """
import os, sys
from pathlib import Path
from wmdd.lock import HeldError, held

path = Path(sys.argv[1])
sys.stdin.readline()
try:
    with held(path, lambda: path.with_name(f"cleared-{os.getpid()}").touch()):
        print("held", flush=True)
        sys.stdin.read()
except HeldError as error:
    print(error, flush=True)
"""


def start(path):
    """A process that holds a folder from the first line on that it is sent, until its input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def tell(process):
    process.stdin.write("\n")
    process.stdin.flush()


def killed(path):
    """A holder that was killed; its name stays."""
    process = start(path)
    tell(process)
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.communicate()
    return Holder(**json.loads(path.read_text()))


def write(path, holder):
    path.write_text(json.dumps(asdict(holder)))


def never():
    pytest.fail("nothing may be cleared")


# Who is gone


def test_a_process_that_runs_is_not_gone():
    assert not Holder.here().gone
    assert Holder.here().near


def test_a_killed_one_is_gone(tmp_path):
    assert killed(tmp_path / "holder").gone


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux tells")
def test_one_that_nobody_has_buried_yet_is_gone(tmp_path):
    process = start(tmp_path / "holder")
    tell(process)
    process.stdout.readline()
    holder = Holder(**json.loads((tmp_path / "holder").read_text()))
    assert not holder.gone
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{process.pid}").exists()
    assert holder.gone
    process.communicate()


def test_another_process_of_the_same_number_is_not_the_holder():
    assert replace(Holder.here(), started="another boot 17").gone


@pytest.mark.parametrize("field", ["host", "machine", "namespace"])
def test_of_another_machine_nothing_is_known(tmp_path, field):
    assert not replace(killed(tmp_path / "holder"), **{field: "another"}).gone


@pytest.mark.parametrize("hidden", [False, True])
def test_the_process_of_another_user_is_not_gone(monkeypatch, hidden):
    def refuse(*_):
        raise PermissionError

    holder = replace(Holder.here(), pid=os.getppid(), started=lock._started(os.getppid()))
    monkeypatch.setattr(os, "kill", refuse)
    if hidden:  # as /proc is mounted on some clusters
        monkeypatch.setattr(lock, "_started", lambda pid: None)
    assert not holder.gone
    assert replace(holder, started="another boot 17").gone != hidden


# One holder at a time


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_a_folder_is_held_until_the_end(tmp_path, error):
    path = tmp_path / ".snakemake" / lock.NAME
    try:
        with held(path, never):
            assert Holder(**json.loads(path.read_text())).pid == os.getpid()
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        assert error
    assert list(path.parent.iterdir()) == []


def test_a_second_one_is_told_who_is_first(tmp_path):
    with held(tmp_path / "holder", never):
        with pytest.raises(HeldError) as caught, held(tmp_path / "holder", never):
            pass
        assert f"(pid {os.getpid()} on " in str(caught.value)
        assert f"kill -INT {os.getpid()}" in str(caught.value)
        assert (tmp_path / "holder").exists()


def test_of_a_holder_elsewhere_it_is_told_where(tmp_path):
    write(tmp_path / "holder", replace(Holder.here(), host="node7", pid=12))
    with pytest.raises(HeldError, match=r"`ps -p 12` on node7\), run the same command with --unlock first"):
        held(tmp_path / "holder", never).__enter__()
    assert (tmp_path / "holder").exists()


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", '{"pid": 1}'])
def test_a_name_that_cannot_be_read_is_not_gone(tmp_path, text):
    (tmp_path / "holder").write_text(text)
    with pytest.raises(HeldError, match="cannot be told"):
        held(tmp_path / "holder", never).__enter__()


def test_what_a_killed_one_left_is_cleared_away(tmp_path, capsys):
    gone, cleared = killed(tmp_path / "holder"), []
    with held(tmp_path / "holder", lambda: cleared.append(True)):
        assert cleared == [True]
        assert Holder(**json.loads((tmp_path / "holder").read_text())).pid == os.getpid()
    (line,) = capsys.readouterr().err.splitlines()
    assert f"(pid {gone.pid} on {gone.host}, since {gone.since}), is gone; its lock is removed" in line
    assert list(tmp_path.iterdir()) == []


def test_where_there_are_no_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with held(tmp_path / "holder", never), pytest.raises(HeldError), held(tmp_path / "holder", never):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_a_later_holder_stays(tmp_path):
    with held(tmp_path / "holder", never):
        later = replace(Holder.here(), pid=1)  # after --unlock
        write(tmp_path / "holder", later)
    assert Holder(**json.loads((tmp_path / "holder").read_text())) == later


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_at_once_one_wins(tmp_path, stale):
    path = tmp_path / "holder"
    if stale:
        killed(path)
    processes = [start(path) for _ in range(6)]
    for process in processes:
        tell(process)
    said = [process.stdout.readline() for process in processes]
    assert said.count("held\n") == 1
    winner = processes[said.index("held\n")]
    assert all(f"(pid {winner.pid} on " in line for line in said if line != "held\n")
    assert len(list(tmp_path.glob("cleared-*"))) == stale
    for process in processes:
        process.communicate()
    assert not path.exists()


def test_a_name_that_came_since_is_put_back(tmp_path):
    """Two find the same holder gone; the slower one must not clear away the name of the faster."""
    gone = killed(tmp_path / "holder")
    write(tmp_path / "holder", Holder.here())
    assert not lock._put_aside(tmp_path / "holder", json.dumps(asdict(gone)))
    assert Holder(**json.loads((tmp_path / "holder").read_text())).pid == os.getpid()
    assert [path.name for path in tmp_path.iterdir()] == ["holder"]


# Snakemake


def test_snakemake_is_guarded_once(monkeypatch):
    from snakemake.persistence import PersistenceBase

    for name in ("lock", "cleanup_locks"):
        monkeypatch.setattr(PersistenceBase, name, getattr(PersistenceBase, name))
    monkeypatch.setattr(PersistenceBase, "wmdd_guarded", True, raising=False)
    del PersistenceBase.wmdd_guarded
    before = PersistenceBase.lock
    guard()
    after = PersistenceBase.lock
    assert after is not before
    guard()
    assert PersistenceBase.lock is after


def test_another_snakemake_is_left_alone(monkeypatch):
    import snakemake.persistence

    before = snakemake.persistence.PersistenceBase.lock
    monkeypatch.delattr(snakemake.persistence, "PersistenceBase")
    guard()
    monkeypatch.undo()
    assert snakemake.persistence.PersistenceBase.lock is before
