"""A training on several processes: whatever ends one ends all; it goes on; and nobody but the main one speaks."""

import multiprocessing
import os
import re
import shlex
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from tests.networks.test_distributed import NORMALISATION, coloured
from wmdd.__main__ import main
from wmdd.artifacts.atomic_files import read_json
from wmdd.artifacts.hdf5_writer import save
from wmdd.artifacts.model_files import load_model
from wmdd.base.errors import WmddError
from wmdd.base.preemption import AGAIN
from wmdd.jobs.torchrun import check_gpus
from wmdd.settings.engine import EngineSettings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with a tiny dataset."""
    folder = tmp_path_factory.mktemp("distributed")
    arrays = {}
    for split in "train", "val":
        images, labels = coloured(split)
        arrays |= {f"{split}/images": images.numpy(), f"{split}/labels": labels.numpy()}
    names = ["ant", "bee", "cat"]
    counts = {split: np.bincount(arrays[f"{split}/labels"]).tolist() for split in ("train", "val")}
    meta = {"classes": names, "names": names, "resolution": 16, "storage": "pixels"} | NORMALISATION._asdict()
    save(folder / "data.h5", arrays, meta | {"counts": counts, "inputs": {}})
    return folder


FLAGS = "--epochs 20 --lr 0.02 --accumulate 2 --ema 0.9 --no-sync-batchnorm"
FORK = multiprocessing.get_context(
    "fork"
)  # the launcher is a copy of this process, as another imports torch for seconds
Launcher = multiprocessing.Process


def command(here: Path, output: str, flags: str) -> None:
    """Run the command `teacher` on two processes; what is printed goes to the files `out` and `err`."""
    (here / output).mkdir(exist_ok=True)
    for number, name in (1, "out"), (2, "err"):
        os.dup2(os.open(here / output / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    os.chdir(here)
    os.environ |= {"PYTHONPATH": str(ROOT), "WMDD_REVISION": "test", "WMDD_CHECKPOINT_SECONDS": "0"}
    line = (
        f"wmdd teacher --data data.h5 --output '{output}/model.safetensors' --seed 0 --architecture convnet3 --width 8"
        f" --batch-size 16 --device cpu --precision fp32 --processes 2 {flags}"
    )
    sys.argv = shlex.split(line)
    main()


def start(here: Path, output: str, flags: str = FLAGS) -> Launcher:
    launcher = FORK.Process(target=command, args=(here, output, flags))
    launcher.start()
    return launcher


def finish(here: Path, output: str, launcher: Launcher) -> tuple[int, str, list[str]]:
    """Wait; return the exit code, what was said, and the lines that are not usual: mistakes."""
    launcher.join(120)
    usual = r"wmdd teacher: \S+ on cpu with|wmdd teacher: done|training: |$"
    out, err = ((here / output / name).read_text() for name in ("out", "err"))
    assert err.count("wmdd teacher: done") <= err.count(" on cpu with ") <= 1, "but one of the processes speaks"
    return launcher.exitcode, out, [line for line in err.splitlines() if not re.match(usual, line)]


def under_way(here: Path, output: str, launcher: Launcher) -> list[psutil.Process]:
    """Wait until a training has written its next checkpoint; return its processes."""
    checkpoint = here / output / ".model.safetensors.checkpoint"
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if checkpoint.exists() and checkpoint.stat().st_mtime_ns > before:
            return psutil.Process(launcher.pid).children()
        assert launcher.is_alive(), finish(here, output, launcher)
        time.sleep(0.005)
    raise AssertionError("no checkpoint in time")


def two_children(_here: Path, _output: str, launcher: Launcher) -> list[psutil.Process]:
    while len(children := psutil.Process(launcher.pid).children()) < 2:
        time.sleep(0.01)
    return children


def ended(processes: list[psutil.Process]) -> bool:
    """Whether they are gone, or are zombies that nobody has asked after, within some seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in processes):
            return True
        time.sleep(0.05)
    return False


def warn(*processes: int) -> None:
    for process in processes:
        os.kill(process, signal.SIGUSR1)


@pytest.fixture(scope="module")
def undisturbed(here) -> Path:
    """The folder of a training that nothing disturbed."""
    assert finish(here, "undisturbed", start(here, "undisturbed")) == (0, "", [])
    return here / "undisturbed"


def test_a_training_on_two_processes_says_so_and_leaves_nothing_else(undisturbed):
    _, meta = load_model(undisturbed / "model.safetensors")
    assert meta["processes"] == read_json(undisturbed / "model.cost.json")["processes"] == 2
    history = pd.read_csv(undisturbed / "model.csv")
    assert history["epoch"].tolist() == list(range(1, 21))
    assert meta["accuracy"]["top1"] == history["top1"].iloc[-1] > 0.9
    expected = {"model.safetensors", "model.csv", "model.cost.json", "out", "err"}
    assert {path.name for path in undisturbed.iterdir()} == expected


@pytest.mark.slow
def test_a_training_on_two_processes_survives_anything(here, undisturbed):
    """Whatever ends it, a kill of any process or a warning to some, it goes on to the bytes of an undisturbed run."""
    again = "going on from its last checkpoint when started again"

    def disturbed(disturb, wait=under_way) -> tuple[int, list[str]]:
        """Start, disturb the launcher and its processes once they run, and return how it ended."""
        launcher = start(here, "killed")
        children = wait(here, "killed", launcher)
        disturb(launcher.pid, [child.pid for child in children])
        code, _, lines = finish(here, "killed", launcher)
        assert ended(children), "a process outlives its launcher"
        return code, lines

    code, lines = disturbed(lambda _, children: os.kill(children[1], signal.SIGKILL))
    assert (code, len(lines)) == (1, 1)
    assert re.match(r"wmdd teacher: error: process [12] of 2 was killed by SIGKILL; run again", lines[0])
    before_it_trains = disturbed(lambda launcher, _: os.kill(launcher, signal.SIGTERM), two_children)
    assert before_it_trains == (AGAIN, [f"wmdd teacher: SIGTERM: {again}"])
    to_all = disturbed(lambda launcher, children: warn(launcher, *children))
    assert to_all == (AGAIN, [f"wmdd teacher: SIGUSR1: {again}"])
    to_one = disturbed(lambda _, children: warn(children[1]))
    assert to_one == (AGAIN, [f"wmdd teacher: a signal to a process: {again}"])
    assert disturbed(lambda launcher, _: os.kill(launcher, signal.SIGKILL))[0] == -signal.SIGKILL
    assert not (here / "killed/model.safetensors").exists()

    code, out, lines = finish(here, "killed", start(here, "killed"))
    assert (code, out.count("going on from"), lines) == (0, 1, [])
    for name in "model.safetensors", "model.csv":
        assert (here / "killed" / name).read_bytes() == (undisturbed / name).read_bytes()


def test_a_mistake_that_all_processes_meet_is_one_line(here):
    code, out, lines = finish(here, "weak", start(here, "weak", "--epochs 1 --min-accuracy 1 --lr 1e-9"))
    assert (code, out, len(lines)) == (1, "", 1)
    assert re.match(r"wmdd teacher: error: the teacher reaches .* below min_accuracy", lines[0])
    assert not (here / "weak/model.safetensors").exists()


@pytest.mark.parametrize(
    ("processes", "gpus", "device", "refused"),
    [(8, 4, "cpu", False), (8, 0, "auto", False), (8, 0, "cuda", True), (4, 4, "auto", False), (8, 4, "auto", True)],
)
def test_more_processes_than_gpus_are_refused(monkeypatch, processes, gpus, device, refused):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    said = rf"{processes} processes need as many GPUs, but {gpus} are visible; lower the teacher's `gpus`"
    with pytest.raises(WmddError, match=said) if refused else nullcontext():
        check_gpus(processes, EngineSettings(device=device))
