"""Design property 3: a job killed at any moment is resumed, and ends with the bytes of an undisturbed run."""

import subprocess
import time

import psutil
import pytest

from .conftest import Workspace

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

SEED = "results/digits/nano/wmdd/ipc2/seed0"
LOGS = "logs/digits/nano"
STAGES = {  # stage -> its output, its log, and what shows that it is under way
    "teacher": (
        "results/digits/nano/teacher/seed0/model.safetensors",
        f"{LOGS}/teacher/seed0/teacher.log",
        "checkpoint",
    ),
    "features": ("results/digits/nano/teacher/seed0/features.h5", f"{LOGS}/teacher/seed0/features.log", "log"),
    "recover": (f"{SEED}/recover/classes0-4.h5", f"{LOGS}/wmdd/ipc2/seed0/recover/classes0-4.log", "checkpoint"),
    "student": (
        f"{SEED}/student/nano/short/run0.json",
        f"{LOGS}/wmdd/ipc2/seed0/student/nano/short/run0.log",
        "checkpoint",
    ),
}


def job_of(run: Workspace, stage: str) -> psutil.Process | None:
    """Return the process of a stage's command in a folder."""
    for process in psutil.process_iter(["cmdline", "cwd"]):
        line, folder = process.info["cmdline"] or [], process.info["cwd"]
        if stage in line and line[: line.index(stage)][-2:] == ["-m", "wmdd"] and folder == str(run.root):
            return process
    return None


def kill_in_the_middle(run: Workspace, stage: str) -> None:
    """Start the workflow and kill the stage's job with SIGKILL once it shows that it is under way."""
    target, log, sign = STAGES[stage]
    output, log_file = run.root / target, run.root / log
    checkpoint = output.with_name(f".{output.name}.checkpoint")
    log_file.unlink()
    snakemake = subprocess.Popen(
        run.command(target), cwd=run.root, env=run.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and snakemake.poll() is None:
        started = log_file.exists() and f"wmdd {stage}: " in log_file.read_text()
        under_way = started if sign == "log" else checkpoint.exists()
        if under_way and (job := job_of(run, stage)) is not None:
            job.kill()
            break
        time.sleep(0.01)
    assert snakemake.wait(300) != 0, "the job was not killed in time"


@pytest.mark.parametrize("stage", STAGES)
def test_killed_job_is_resumed_with_the_same_bytes(run: Workspace, stage: str) -> None:
    target, log, sign = STAGES[stage]
    output = run.root / target
    result = run.root / (f"{SEED}/images.h5" if stage == "recover" else target)  # a block is deleted once it is joined
    undisturbed = result.read_bytes()
    result.unlink()
    kill_in_the_middle(run, stage)
    assert not output.exists(), "a killed job left something under the final name"
    run.snakemake(str(result.relative_to(run.root)))
    assert result.read_bytes() == undisturbed
    assert not list(output.parent.glob(".*")), "a checkpoint or a temporary file was left"
    if sign == "checkpoint":
        assert "going on from" in (run.root / log).read_text()


def test_stale_checkpoint_is_set_aside(run: Workspace) -> None:
    target, log, _ = STAGES["recover"]
    output = run.root / target
    kill_in_the_middle(run, "recover")
    run.config = run.config | {"methods": {"wmdd": {"recover": {"lr": 0.2}}}}
    run.snakemake(target)
    resumed = output.read_bytes()
    assert "of other settings, code or inputs; starting over" in (run.root / log).read_text()
    output.unlink()
    run.snakemake(target)
    assert output.read_bytes() == resumed
