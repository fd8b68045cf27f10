"""A scheduler's warning ends a stage with exit code 75 and one line, and the same command goes on to the same bytes."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.artifacts import CPU, write_labels
from wmdd.__main__ import main
from wmdd.artifacts import hdf5_writer
from wmdd.artifacts.checkpoint import Checkpoint
from wmdd.base.preemption import AGAIN, SIGNALS, Notice, Preempted, listening
from wmdd.cli.commands import app
from wmdd.jobs.job import job
from wmdd.settings.select import SelectSettings

ROOT = Path(__file__).parents[2]
TRAINING = f"{CPU} --architecture resnet18 --width 4 --lr 0.01 --batch-size 4 --ema 0.9"
CONVNET = f"{CPU} --architecture convnet2 --width 4"
STAGES = {  # each keeps its state three times or more
    "teacher": f"--data data.h5 --output OUT.safetensors --seed 0 {TRAINING} --accumulate 2 --epochs 3",
    "features": f"--data data.h5 --teacher model.safetensors --output OUT.h5 --statistics OUT-2.h5 --batch-size 1 {CPU}",
    "recover": "--teacher model.safetensors --class-statistics statistics.h5 --output OUT.h5 --block classes0-2"
    f" --ipc 2 --seed 0 --feature-weight 0 --iterations 5 --images-at-once 2 {CPU}",
    "relabel": f"--images images.h5 --teacher model.safetensors --output OUT.h5 --seed 0 --epochs 4 {CPU}",
    "student": f"--images images.h5 --data data.h5 --soft-labels labels.h5 --output OUT.json --seed 0 --run 0 {TRAINING}"
    " --epochs 4 --evaluate-every 2",
    "expert": f"--data data.h5 --output OUT.h5 --seed 0 --epochs 4 --batch-size 4 {CONVNET}",
    "match": f"--data data.h5 --output OUT.h5 --block classes0-2 --ipc 2 --seed 0 --iterations 5 --real-batch 4 {CONVNET}",
}


def command(stage: str) -> str:
    return f"{stage} {STAGES[stage].replace('OUT', f'x-{stage}')}"


def content(folder: Path, stage: str) -> dict[str, bytes]:
    outputs = [path for path in folder.glob(f"x-{stage}*") if not path.name.endswith("cost.json")]
    return {path.name: path.read_bytes() for path in outputs}


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


def complaints(err: str) -> list[str]:
    """The lines on stderr that are neither the job's first and last nor its progress."""
    bars = r"(training|features|relabelling|matching|barycenters|batch \d+ of \d+): "
    usual = rf"wmdd \w+: \S+ on cpu with|wmdd \w+: done|{bars}|$"
    return [line for line in err.splitlines() if not re.match(usual, line)]


@pytest.fixture(scope="module")
def whole(artifacts, tmp_path_factory):
    """What undisturbed runs make."""
    folder = tmp_path_factory.mktemp("whole") / "artifacts"
    shutil.copytree(artifacts, folder)
    write_labels(folder / "labels.h5", folder / "images.h5", epochs=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "disabled")
        for stage in STAGES:
            app(shlex.split(command(stage)), result_action="return_value")
    return {stage: content(folder, stage) for stage in STAGES}


@pytest.fixture
def keeping(here, monkeypatch):
    """A folder with the inputs, in which stages keep their state at every chance."""
    write_labels(here / "labels.h5", here / "images.h5", epochs=4)
    monkeypatch.setenv("WMDD_CHECKPOINT_SECONDS", "0")
    return here


def at_the_second_save(monkeypatch, act):
    """Act once, before the state is kept for the second time."""
    save, saves = Checkpoint.save, []

    def watched(self, *arguments):
        saves.append(arguments[1:3])  # how much of the work is done
        if len(saves) == 2:
            act()
        save(self, *arguments)

    monkeypatch.setattr(Checkpoint, "save", watched)
    return saves


@pytest.mark.parametrize("stage", STAGES)
def test_a_warned_stage_goes_on_to_the_same_bytes(whole, keeping, stage, monkeypatch, run):
    line, done = command(stage), []
    for warning in (signal.SIGUSR1, signal.SIGTERM):
        with monkeypatch.context() as patch:
            saves = at_the_second_save(patch, lambda warning=warning: os.kill(os.getpid(), warning))
            code, out, err = run(line)
        kept = f"wmdd {stage}: {warning.name}: checkpoint written, going on from it when started again"
        assert (code, complaints(err)) == (AGAIN, [kept])
        assert ("going on from" in out) == (warning == signal.SIGTERM)
        assert not [name for name in hidden(keeping) if name.endswith(".part")]
        assert not (keeping / f"x-{stage}.cost.json").exists()
        done.append(saves[-1][0] / saves[-1][1])
    assert 0 < done[0] < done[1] <= 1
    code, out, err = run(line)
    assert (code, complaints(err), out.count("going on from")) == (0, [], 1)
    assert content(keeping, stage) == whole[stage]
    assert hidden(keeping) == []


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 100
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} is not there in time"
        time.sleep(0.01)


@pytest.mark.parametrize("stage", STAGES)
def test_two_jobs_that_make_the_same_file_end_with_it(whole, keeping, stage, monkeypatch, run):
    """The second begins with what the first has kept, and ends while the first waits in the middle."""
    if not (first := os.fork()):
        code = 1
        try:
            at_the_second_save(monkeypatch, lambda: ((keeping / "waits").touch(), wait_for(keeping / "goes on")))
            sys.argv = ["wmdd", *shlex.split(command(stage))]
            main()
        except SystemExit as end:
            code = 0 if end.code in (0, None) else 1
        finally:
            os._exit(code)
    wait_for(keeping / "waits")
    code, _, err = run(command(stage))
    assert (code, complaints(err)) == (0, [])
    assert content(keeping, stage) == whole[stage]
    (keeping / "goes on").touch()
    assert os.waitpid(first, 0)[1] == 0
    assert content(keeping, stage) == whole[stage]
    assert hidden(keeping) == []


# ---- jobs that keep nothing

BEFORE = """
import time
from wmdd import __main__ as command
command._run = lambda: (print(flush=True), time.sleep(60))
command.main()
"""


def test_a_warning_before_the_job_has_begun_is_one_line_too():
    process = subprocess.Popen(
        [sys.executable, "-c", BEFORE], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.readline()
    process.send_signal(signal.SIGUSR1)
    assert (
        process.communicate(timeout=120)[1] == "wmdd : SIGUSR1: ended before it began; starts anew when started again\n"
    )
    assert process.returncode == AGAIN


@pytest.mark.parametrize("warning", SIGNALS)
def test_a_stage_that_keeps_nothing_ends_at_once(here, warning, monkeypatch, run):
    monkeypatch.setattr(hdf5_writer, "writing", lambda _: os.kill(os.getpid(), warning))
    code, _, err = run("barycenter --features features.h5 --output x.h5 --block classes0-2 --k 2")
    said = f"wmdd barycenter: {warning.name}: nothing kept; starts over when started again"
    assert (code, complaints(err)) == (AGAIN, [said])
    assert list(here.glob("*x.h5*")) == []


def test_a_warning_at_any_moment_of_a_write_leaves_no_half_file(tmp_path):
    """Also in the middle of what HDF5 calls of ours, which makes something else of the exception."""
    rows = np.zeros((16, 2**16))

    def write(delay):
        with job("select", tmp_path / "x.h5", [SelectSettings()], {}, seed=0):
            threading.Timer(0.02 * delay / 30, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            with hdf5_writer.writing(tmp_path / "x.h5") as writer:
                for _ in range(1000):
                    writer.append("x", rows)

    for delay in range(30):
        with pytest.raises(Preempted, match=r"^SIGUSR1: nothing kept"):
            write(delay)
        assert list(tmp_path.iterdir()) == []


def test_a_second_warning_does_not_disturb_the_end(tmp_path):
    cleaned = []

    def work():
        with job("select", tmp_path / "x.h5", [SelectSettings()], {}, seed=0):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                for number in SIGNALS:
                    os.kill(os.getpid(), number)
                cleaned.append(True)

    with pytest.raises(Preempted, match=r"^SIGTERM: ") as end:
        work()
    assert (end.value.code, cleaned) == (AGAIN, [True])


def test_a_warned_job_that_keeps_its_state_finishes_or_shows_its_own_mistake(tmp_path):
    def work(mistake=None):
        with job("select", tmp_path / "x.h5", [SelectSettings()], {}, seed=0) as this:
            assert this.checkpoint.load() is None
            os.kill(os.getpid(), signal.SIGUSR1)
            assert this.checkpoint.due()
            if mistake:
                raise mistake
            hdf5_writer.save(tmp_path / "x.h5", {"x": np.zeros(3)}, {})

    with pytest.raises(ValueError, match="a bug"):
        work(ValueError("a bug"))
    work()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.cost.json", "x.h5"]


def test_handlers_are_put_back(tmp_path):
    mine = []
    before = {number: signal.signal(number, lambda *_: mine.append(1)) for number in SIGNALS}
    try:
        with job("select", tmp_path / "x.h5", [SelectSettings()], {}, seed=0):
            pass
        with pytest.raises(ZeroDivisionError), listening(Notice()):
            _ = 1 / 0
        for number in SIGNALS:
            os.kill(os.getpid(), number)
        assert mine == [1, 1]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_job_outside_of_the_main_thread_has_no_warnings(tmp_path):
    def work():
        with job("select", tmp_path / "x.h5", [SelectSettings()], {}, seed=0) as this:
            this.checkpoint.save({"x": torch.ones(1)})
        return True

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result()
