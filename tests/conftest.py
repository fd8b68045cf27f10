"""Shared by the tests: one thread, a tiny teacher, and a keeper of checkpoints that dies as a killed job does."""

import gc
import io
import re
import shlex
import shutil
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image
from xdist.scheduler import LoadScopeScheduling

from tests.cli.artifacts import write_all
from wmdd.__main__ import main
from wmdd.base.rng import generator
from wmdd.cli.commands import app
from wmdd.networks.models import build
from wmdd.settings.network import NetworkSettings

torch.set_num_threads(1)
settings.register_profile("wmdd", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # no test is about time
settings.load_profile("wmdd")


# Of tests/workflow, the files whose tests start from the same finished run.
FINISHED = ("extending", "page", "rebuild", "resume", "status", "workflow")


def together(nodeid: str) -> str:
    """Return what the tests are called that one process runs: a file, which may share something slow, or several."""
    file = nodeid.partition("::")[0]
    return "finished run" if file in [f"tests/workflow/test_{name}.py" for name in FINISHED] else file


class _Shared(LoadScopeScheduling):
    """Lets one process run the tests that go together. (xdist's marks of groups are without effect under pytest 9.)"""

    def _split_scope(self, nodeid: str) -> str:
        return together(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Divide the tests among the processes of `pytest -n`, in the order of `pytest_collection_modifyitems`."""
    config.option.loadscopereorder = False
    return _Shared(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let those with many slow tests go first, so that all processes end at the same time."""
    slow = Counter(together(item.nodeid) for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[together(item.nodeid)])


class Killed(Exception):
    """Stands for the end of a job by a signal."""


class DyingKeeper:
    """Saves at its `save_at`-th chance and dies at its `die_at`-th; states go through the bytes of a file."""

    Killed = Killed

    def __init__(self, save_at: int = 0, die_at: int = 0) -> None:
        self.save_at, self.die_at = save_at, die_at
        self.chances = 0
        self.content: bytes | None = None

    @classmethod
    def after(cls, run: Callable[["DyingKeeper"], Any], save_at: int, die_at: int) -> "DyingKeeper":
        """Return the keeper of a job that goes on with what `run` had kept when it was killed."""
        keeper, again = cls(save_at, die_at), cls()
        with pytest.raises(Killed):
            run(keeper)
        again.content = keeper.content
        return again

    def load(self):
        return None if self.content is None else torch.load(io.BytesIO(self.content), weights_only=True)

    def due(self) -> bool:
        self.chances += 1
        if self.chances == self.die_at:
            raise Killed
        return self.chances == self.save_at

    def save(self, state, *_) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.content = buffer.getvalue()


@pytest.fixture
def dying_keeper():
    return DyingKeeper


@pytest.fixture
def closed(monkeypatch):
    """Let no connection be made; return the addresses that were tried."""
    tried = []

    def connect(_, address):
        tried.append(address)
        raise ConnectionRefusedError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    return tried


@pytest.fixture
def tiny_teacher():
    """A ResNet-18 of width 4 for five classes at 16 px, whose running statistics are those of some noise."""
    network = build(NetworkSettings(architecture="resnet18", width=4), 5, 16, generator("tiny teacher"))
    network.train()
    with torch.no_grad():
        for step in range(20):
            network(1 + 2 * torch.randn(8, 3, 16, 16, generator=generator("noise", step)))
    return network.eval()


@pytest.fixture(scope="module")
def chained(tmp_path_factory):
    """Run commands in a new folder that has pictures of three classes, eight of 8 px each in either split."""

    def chained(name, lines):
        folder = tmp_path_factory.mktemp(name)
        draws = generator("pictures")
        for split, (label, name) in [(s, c) for s in ("train", "val") for c in enumerate(("ant", "bee", "cat"))]:
            place = folder / "pictures" / split / name
            place.mkdir(parents=True)
            for number in range(8):
                noise = torch.randint(0, 80, (8, 8, 3), generator=draws) + 80 * label
                Image.fromarray(noise.numpy().astype(np.uint8)).save(place / f"{number}.png")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setenv("WANDB_MODE", "disabled")
            for line in lines:
                app(shlex.split(line), result_action="return_value")
        return folder

    return chained


@pytest.fixture
def linked(tmp_path, monkeypatch):
    """Work in a folder that has links to the files of another."""

    def linked(made):
        for path in made.iterdir():
            (tmp_path / path.name).symlink_to(path)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return linked


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory):
    """A folder with one small artifact of each kind, which belong together. Never to be changed: use `here`."""
    write_all(folder := tmp_path_factory.mktemp("artifacts"))
    return folder


@pytest.fixture
def here(artifacts, tmp_path, monkeypatch):
    """A folder with a copy of these artifacts, to work in."""
    shutil.copytree(artifacts, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _untracked(monkeypatch):
    """No test tracks its jobs unless it asks for it; subprocesses inherit this."""
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture
def run(monkeypatch, capfd):
    """Run a command line as `python -m wmdd` does; return exit code, standard output and standard error."""

    def run(line):
        monkeypatch.setattr(sys, "argv", ["wmdd", *shlex.split(line)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:  # of a text, the interpreter prints it and exits with 1
            code = 1 if isinstance(end.code, str) else end.code or 0
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        if code:
            gc.collect()  # a loop that failed ends its progress here, not in the output of a later command
        out, err = capfd.readouterr()
        return code, out, err

    before = signal.getsignal(signal.SIGINT)
    yield run
    signal.signal(signal.SIGINT, before)  # which an interrupted command takes no more


@pytest.fixture
def mistake(run):
    """The one line that a mistake gives; `begun` if it shows only after the job has said that it began."""

    def mistake(line, begun=False):
        code, out, err = run(line)
        stage = line.split()[0]
        assert (code, out) == (1, "")
        assert "Traceback" not in err
        usual = rf"wmdd {stage}: \S+ on cpu with|[\w ]+: +\d+/\d+ |$"  # the job's first line, and its progress
        lines = [text for text in err.splitlines() if not (begun and re.match(usual, text))]
        assert len(lines) == 1, err
        assert lines[0].startswith(f"wmdd {stage}: error: ")
        return lines[0].removeprefix(f"wmdd {stage}: error: ")

    return mistake
