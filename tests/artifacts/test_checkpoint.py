"""How far a job is can be seen from outside, and what is left by a job that is no more is told from what another writes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wmdd.artifacts.checkpoint import HOUR, Checkpoint, Progress, abandoned, owner, peek, seconds_between
from wmdd.base.errors import WmddError
from wmdd.base.preemption import AGAIN, Notice, Preempted


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    return int(subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True).stdout)


def test_how_far_a_job_is_can_be_seen_from_outside(tmp_path):
    keeper = Checkpoint(tmp_path / "c", "key")
    keeper.earlier = 100.0
    keeper.save({"x": torch.ones(3)}, 1200, 4000, "iteration")
    done, total, unit, seconds = peek(tmp_path / "c")
    assert (done, total, unit) == (1200, 4000, "iteration")
    assert 100 <= seconds < 110
    keeper.save({"x": torch.ones(3)}, 2.5, 9, "epoch")
    assert peek(tmp_path / "c")[:3] == (2.5, 9, "epoch")
    assert Checkpoint(tmp_path / "c", "key").load()["x"].tolist() == [1, 1, 1]


def resident() -> int:
    """Bytes that are resident in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel")
def test_a_glance_reads_no_tensor(tmp_path):
    Checkpoint(tmp_path / "c", "key").save({"x": torch.ones(2**22)}, 1, 2, "epoch")
    before = resident()
    found = peek(tmp_path / "c")
    assert isinstance(found, Progress)
    assert resident() - before < 2**22


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_damaged_checkpoint_says_nothing(tmp_path, share):
    Checkpoint(tmp_path / "c", "key").save({"x": torch.ones(1000)}, 1, 2, "epoch")
    whole = (tmp_path / "c").read_bytes()
    (tmp_path / "c").write_bytes(whole[: int(share * len(whole))])
    assert peek(tmp_path / "c") is None
    assert peek(tmp_path / "none") is None


@pytest.mark.parametrize(
    "other", [3, {"seconds": 1.0}, {"seconds": 1.0, "progress": 3}, {"seconds": "x", "progress": {"done": 1}}]
)
def test_a_checkpoint_of_another_version_says_nothing(tmp_path, other):
    torch.save(other, tmp_path / "c")
    assert peek(tmp_path / "c") is None


def test_a_warned_job_ends_with_its_next_checkpoint(tmp_path):
    notice = Notice()
    keeper = Checkpoint(tmp_path / "c", "key", 1e9, notice)
    keeper.load()
    keeper.save({"x": 1}, 1, 3, "epoch")
    assert not keeper.due()
    notice.give("SIGUSR1")
    notice.give("SIGTERM")  # a second one changes nothing
    assert keeper.due()
    with pytest.raises(Preempted) as end:
        keeper.save({"x": 2}, 2, 3, "epoch")
    assert (end.value.code, str(end.value)) == (
        AGAIN,
        "SIGUSR1: checkpoint written, going on from it when started again",
    )
    assert Checkpoint(tmp_path / "c", "key").load() == {"x": 2}


def test_of_processes_together_none_ends_by_what_it_alone_has_heard(tmp_path):
    notices = [Notice(keeps=True, together=True) for _ in range(2)]
    keepers = [Checkpoint(tmp_path / f"c{number}", "key", 1e9, notice) for number, notice in enumerate(notices)]
    notices[0].give("SIGUSR1")  # after they last asked each other, before the checkpoint that is due for another reason
    for number, keeper in enumerate(keepers):
        assert not keeper.due()
        keeper.save({"x": number}, 1, 3, "epoch")
    for notice in notices:
        notice.agree()
    for keeper, name in zip(keepers, ("SIGUSR1", "a signal to another process"), strict=True):
        assert keeper.due()
        with pytest.raises(Preempted, match=rf"^{name}: checkpoint written") as end:
            keeper.save({"x": 2}, 2, 3, "epoch")
        assert end.value.agreed


def test_before_it_keeps_anything_a_warned_job_ends_at_once(tmp_path):
    notice = Notice()
    keeper = Checkpoint(tmp_path / "c", "key", 1e9, notice)
    with pytest.raises(Preempted, match=r"^SIGTERM: nothing kept; starts over when started again$"):
        notice.give("SIGTERM")
    other = Notice()
    Checkpoint(tmp_path / "c", "key", 1e9, other).begin(5.0)
    other.give("SIGTERM")
    assert other.signal == "SIGTERM"
    assert keeper.notice is notice


def test_what_a_killed_job_left_is_taken_away_and_nothing_else(tmp_path, dead):
    checkpoint = Checkpoint(tmp_path / ".run.json.checkpoint", "key")
    checkpoint.save({"epoch": 1})
    host, name = socket.gethostname(), "..run.json.checkpoint"
    left = [f"{name}.{host}.{dead}.part", f"{name}.{owner()}.part", f"{name}.another.12.part", f"{name}.123.part"]
    young = [
        f"{name}.{host}.{os.getppid()}.part",  # of a job that runs
        f"{name}.elsewhere.{dead}.part",  # perhaps
        f"{name}2.{host}.{dead}.part",
        f".run.json.{host}.{dead}.part",
        "run.json",
    ]
    for path in [*left, *young]:
        (tmp_path / path).write_text("")
    for path in left[2:]:  # of another machine, and of an earlier version: told by their age
        os.utime(tmp_path / path, (0, os.stat(tmp_path).st_mtime - HOUR - 10))
    checkpoint.remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(young)


def test_what_is_gone_already_is_abandoned(tmp_path):
    assert abandoned(tmp_path / ".x.elsewhere.12.part")


@pytest.mark.parametrize("text", ["a minute", "-1", "nan", ""])
def test_seconds_that_are_no_number_are_refused(monkeypatch, text):
    monkeypatch.setenv("WMDD_CHECKPOINT_SECONDS", text)
    with pytest.raises(WmddError, match=f"^WMDD_CHECKPOINT_SECONDS is {text!r}; set it to a number of seconds"):
        seconds_between()


@pytest.mark.parametrize(("text", "expected"), [("0", 0), ("1.5", 1.5), (None, 60)])
def test_seconds_between_checkpoints(monkeypatch, text, expected):
    monkeypatch.delenv("WMDD_CHECKPOINT_SECONDS", raising=False)
    if text is not None:
        monkeypatch.setenv("WMDD_CHECKPOINT_SECONDS", text)
    assert seconds_between() == expected
