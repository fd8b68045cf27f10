"""A job goes on from its checkpoint, how far it is can be seen from outside, and what a dead job left is told from the rest."""

import os
import pickle
import socket

import pytest
import torch

from wmdd.artifacts.atomic_files import HOUR, abandoned, owner
from wmdd.artifacts.checkpoint import Checkpoint, peek, seconds_between
from wmdd.base.errors import WmddError
from wmdd.base.preemption import AGAIN, Notice, Preempted

# Going on


def test_a_checkpoint_goes_on(tmp_path, capsys):
    weight = torch.ones(3, requires_grad=True)
    adam = torch.optim.AdamW([weight], lr=0.1)
    weight.sum().backward()
    adam.step()
    given = {"x": torch.arange(3), "epoch": 4, "history": [{"loss": 0.5}], "name": "a"}
    keeper = Checkpoint(tmp_path / "c", "key")
    assert keeper.load() is None
    assert capsys.readouterr().out == ""
    keeper.save(given | {"adam": adam.state_dict()})
    kept = Checkpoint(tmp_path / "c", "key").load()
    assert kept.pop("x").tolist() == [0, 1, 2]
    other = torch.optim.AdamW([torch.ones(3, requires_grad=True)], lr=0.1)
    other.load_state_dict(kept.pop("adam"))
    assert torch.equal(other.state_dict()["state"][0]["exp_avg"], adam.state_dict()["state"][0]["exp_avg"])
    assert kept == {"epoch": 4, "history": [{"loss": 0.5}], "name": "a"}
    assert "going on from" in capsys.readouterr().out
    keeper.remove()
    keeper.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_stale_checkpoint_is_set_aside(tmp_path, capsys):
    Checkpoint(tmp_path / "c", "old key").save({"x": 1})
    later = Checkpoint(tmp_path / "c", "key")
    assert later.load() is None
    assert later.earlier == 0
    assert f"checkpoint {tmp_path}/c is of other settings, code or inputs; starting over" in capsys.readouterr().out
    later.save({"x": 2})
    assert Checkpoint(tmp_path / "c", "key").load() == {"x": 2}


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


# Seen from outside


def test_how_far_a_job_is_can_be_seen_from_outside(tmp_path):
    keeper = Checkpoint(tmp_path / "c", "key")
    keeper.earlier = 100.0
    keeper.save({"x": torch.ones(3)}, 1200, 4000, "iteration")
    done, total, unit, seconds = peek(tmp_path / "c")
    assert (done, total, unit) == (1200, 4000, "iteration")
    assert 100 <= seconds < 110
    keeper.save({"x": torch.ones(3)}, 2.5, 9, "epoch")
    assert peek(tmp_path / "c")[:3] == (2.5, 9, "epoch")
    later = Checkpoint(tmp_path / "c", "key")
    assert later.load()["x"].tolist() == [1, 1, 1]
    assert later.earlier >= seconds


OTHERS = (
    3,
    [1, 2],
    {"state": {}},
    {"key": "key"},
    {"key": "key", "state": 1, "seconds": 1.0},
    {"seconds": 1.0, "progress": 3},
)


@pytest.mark.parametrize("change", [0, 0.5, 0.9, 0.999, *OTHERS])
def test_a_checkpoint_that_is_cut_short_or_of_something_else_is_set_aside(tmp_path, capsys, change):
    Checkpoint(tmp_path / "c", "key").save({"x": torch.ones(1000)}, 1, 2, "epoch")
    whole = (tmp_path / "c").read_bytes()
    if change in OTHERS:
        torch.save(change, tmp_path / "c")
    else:
        (tmp_path / "c").write_bytes(whole[: int(change * len(whole))])
    assert peek(tmp_path / "c") is peek(tmp_path / "none") is None
    assert Checkpoint(tmp_path / "c", "key").load() is None
    assert "cannot be read" in capsys.readouterr().out


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
    assert abandoned(tmp_path / f"{name}.elsewhere.12.part"), "what is gone already is"


def test_seconds_between_checkpoints(monkeypatch):
    monkeypatch.delenv("WMDD_CHECKPOINT_SECONDS", raising=False)
    assert seconds_between() == 60
    for text, seconds in {"0": 0, "1.5": 1.5}.items():
        monkeypatch.setenv("WMDD_CHECKPOINT_SECONDS", text)
        assert seconds_between() == seconds
    for text in "a minute", "-1", "nan", "":
        monkeypatch.setenv("WMDD_CHECKPOINT_SECONDS", text)
        with pytest.raises(WmddError, match=f"^WMDD_CHECKPOINT_SECONDS is {text!r}; set it to a number of seconds"):
            seconds_between()
