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

from wmdd.artifacts import hdf5_writer, model_files
from wmdd.artifacts.checkpoint import peek
from wmdd.base.preemption import AGAIN, SIGNALS, Notice, Preempted, listening
from wmdd.base.rng import generator
from wmdd.jobs.job import job
from wmdd.networks.models import build
from wmdd.settings.network import NetworkSettings
from wmdd.settings.select import SelectSettings

ROOT = Path(__file__).parents[2]
NAMES, SIDE, IMAGES = ["ant", "bee", "cat"], 8, 300
NETWORK = NetworkSettings(architecture="resnet18", width=4)
CPU = "--device cpu --precision fp32"
TRAINING = f"{CPU} --architecture resnet18 --width 4 --lr 0.01 --batch-size 30 --ema 0.9"
STAGES = {  # of about two seconds each
    "teacher": f"--data data.h5 --output OUT.safetensors --seed 0 {TRAINING} --accumulate 2 --epochs 8 --min-accuracy 0",
    "features": f"--data data.h5 --teacher model.safetensors --output OUT.h5 --statistics OUT-2.h5 --batch-size 1 {CPU}",
    "recover": "--teacher model.safetensors --class-statistics statistics.h5 --output OUT.h5 --block classes0-2"
    f" --ipc 2 --seed 0 --feature-weight 0 --iterations 200 --images-at-once 2 {CPU}",
    "relabel": f"--images images.h5 --teacher model.safetensors --output OUT.h5 --seed 0 --epochs 600 {CPU}",
    "student": f"--images images.h5 --data data.h5 --soft-labels labels.h5 --output OUT.json --seed 0 --run 0 {TRAINING}"
    " --epochs 300 --evaluate-every 100",
    "expert": f"--data data.h5 --output OUT.h5 --seed 0 --architecture convnet2 --width 4 --epochs 60 --batch-size 30 {CPU}",
    "match": "--data data.h5 --output OUT.h5 --block classes0-2 --ipc 2 --seed 0 --architecture convnet2 --width 4"
    f" --iterations 300 --real-batch 20 {CPU}",
}
FILES = {
    "teacher": ("OUT.safetensors", "OUT.csv"),
    "features": ("OUT.h5", "OUT-2.h5"),
    "student": ("OUT.json", "OUT.csv"),
    "expert": ("OUT.h5", "OUT.csv"),
}


def run(line: str, folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "WMDD_REVISION": "test", "WANDB_MODE": "disabled"}
    environment["WMDD_CHECKPOINT_SECONDS"] = "0.05"
    return subprocess.Popen(
        [sys.executable, "-m", "wmdd", *shlex.split(line)], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, str, list[str]]:
    """Return exit code, output, and the lines on stderr that are neither the job's first and last nor its progress."""
    out, err = process.communicate(timeout=120)
    usual = r"wmdd \w+: \S+ on cpu with|wmdd \w+: done|(training|features|relabelling|matching|batch \d+ of \d+): |$"
    return process.returncode, out, [line for line in err.splitlines() if not re.match(usual, line)]


def command(stage: str, name: str) -> str:
    return f"{stage} {STAGES[stage].replace('OUT', name)}"


def content(folder: Path, stage: str, name: str) -> list[bytes]:
    return [(folder / file.replace("OUT", name)).read_bytes() for file in FILES.get(stage, ("OUT.h5",))]


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The inputs of every stage, and what an undisturbed run makes of them."""
    folder = tmp_path_factory.mktemp("preemption")
    manifest = {"classes": NAMES, "names": NAMES, "resolution": SIDE, "mean": [0.5] * 3, "std": [0.25] * 3}
    labels = np.repeat(np.arange(3), IMAGES // 3)
    draws = np.random.default_rng(0)
    arrays = {f"{s}/images": draws.integers(0, 255, (IMAGES, 3, SIDE, SIDE), dtype=np.uint8) for s in ("train", "val")}
    hdf5_writer.save(folder / "data.h5", arrays | {f"{s}/labels": labels for s in ("train", "val")}, manifest)
    network = build(NETWORK, 3, SIDE, generator("teacher"))
    about = {"settings": NETWORK.model_dump(), "accuracy": {"top1": 0.5, "top5": 1.0}}
    model_files.save_model(folder / "model.safetensors", network.state_dict(), manifest | about)
    images = draws.integers(0, 255, (3, 2, 3, SIDE, SIDE), dtype=np.uint8)
    distilled = {"images": images, "labels": np.arange(3), "weights": np.full((3, 2), 0.5, np.float32)}
    hdf5_writer.save(folder / "images.h5", distilled, manifest)
    for name, line in (
        ("statistics", command("features", "whole-features").replace("whole-features-2", "statistics")),
        ("labels", command("relabel", "labels").replace("--epochs 600", "--epochs 300")),
    ):
        assert finish(run(line, folder))[0] == 0, name
    (folder / "whole-features-2.h5").write_bytes((folder / "statistics.h5").read_bytes())
    whole = {}
    for stage in STAGES:
        if stage != "features":
            assert finish(run(command(stage, f"whole-{stage}"), folder))[::2] == (0, [])
        whole[stage] = content(folder, stage, f"whole-{stage}")
    return folder, whole


@pytest.fixture
def here(made, tmp_path):
    folder, _ = made
    for name in ("data.h5", "model.safetensors", "images.h5", "statistics.h5", "labels.h5"):
        os.link(folder / name, tmp_path / name)
    return tmp_path


def under_way(folder: Path, name: str, process: subprocess.Popen[str]) -> float:
    """Wait until a job has kept something more; return how much of it is done."""
    output = process.args[process.args.index("--output") + 1]
    path = folder / f".{output}.checkpoint"
    before = path.stat().st_mtime_ns if path.exists() else 0
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if path.exists() and path.stat().st_mtime_ns > before and (found := peek(path)):
            return found.done / found.total
        assert process.poll() is None, finish(process)
        time.sleep(0.005)
    raise AssertionError("no checkpoint in time")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_warned_stage_goes_on_to_the_same_bytes(made, here, stage):
    line, done = command(stage, "x"), []
    for warning in (signal.SIGUSR1, signal.SIGTERM):
        process = run(line, here)
        done.append(under_way(here, stage, process))
        process.send_signal(warning)
        code, out, said = finish(process)
        kept = f"wmdd {stage}: {warning.name}: checkpoint written, going on from it when started again"
        assert (code, said) == (AGAIN, [kept])
        assert ("going on from" in out) == (len(done) > 1)
        assert not [name for name in hidden(here) if name.endswith(".part")]
        assert not (here / "x.cost.json").exists()
    assert 0 < done[0] < done[1] < 1
    code, out, said = finish(run(line, here))
    assert (code, said, out.count("going on from")) == (0, [], 1)
    assert content(here, stage, "x") == made[1][stage]
    assert hidden(here) == []


@pytest.mark.slow
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("stage", STAGES)
def test_two_jobs_that_make_the_same_file_end_with_it(made, here, stage, together):
    processes = [run(command(stage, "x"), here)]
    if not together:
        under_way(here, stage, processes[0])
    processes.append(run(command(stage, "x"), here))
    for process in processes:
        code, _, said = finish(process)
        assert (code, said) == (0, [])
    assert content(here, stage, "x") == made[1][stage]
    assert hidden(here) == []


# ---- stages that keep nothing


@pytest.mark.slow
def test_a_stage_that_keeps_nothing_ends_at_once(here, made):
    folder, _ = made
    line = "barycenter --features features.h5 --output x.h5 --block classes0-2 --k 50"
    shutil.copy(folder / "whole-features.h5", here / "features.h5")
    for warning in SIGNALS:
        process = run(line, here)
        assert "barycenter: x.h5 on cpu" in process.stderr.readline()
        process.send_signal(warning)
        code, _, said = finish(process)
        assert (code, said[-1:]) == (
            AGAIN,
            [f"wmdd barycenter: {warning.name}: nothing kept; starts over when started again"],
        )
        assert not any("Traceback" in line for line in said)
        assert sorted(path.name for path in here.glob("*x.h5*")) == []


BEFORE = """
import time
from wmdd import __main__ as command
command._run = lambda: (print(flush=True), time.sleep(60))
command.main()
"""


def test_a_warning_before_the_job_has_begun_is_one_line_too(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", BEFORE],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.readline()
    process.send_signal(signal.SIGUSR1)
    code, _, said = finish(process)
    assert (code, said) == (AGAIN, ["wmdd : SIGUSR1: ended before it began; starts anew when started again"])


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
