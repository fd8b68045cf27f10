"""Status agrees with Snakemake on the real workflow: before it runs, after it, when a job fails; and it changes nothing."""

import re
import subprocess
import time
from pathlib import Path

import pytest

from .conftest import Workspace
from .test_resume import STAGES, job_of, kill_in_the_middle

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

RESULT = "results/digits/nano/random/ipc2/seed0/student/nano/short/run0"
ERROR = "wmdd student: error: the loss is not a number after epoch 3; lower lr (9.0) or set precision: fp32\n"


def status(place: Workspace) -> str:
    """Run the command as a person would, in a process of its own."""
    return place.python("-m", "wmdd", "status", "tiny.yaml")


def times(root: Path) -> dict[Path, int]:
    """When every file and folder was changed, the interpreter's own left out."""
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if "__pycache__" not in str(path)}


def test_before_anything_ran(fresh: Workspace) -> None:
    text = status(fresh)
    assert text.splitlines()[0].endswith("no snakemake runs here")
    count = sum(fresh.pending().values())
    assert text.endswith(f"\n0 of {count - 1} jobs done, {count - 1} left\n")  # `all` makes nothing
    assert re.search(r"\| digits +\| student +\| +5 \| +\| +5 \|", text)


def test_after_it_ran(run: Workspace) -> None:
    for lock in "input", "output":  # as if Snakemake were at work
        (run.root / f".snakemake/locks/0.{lock}.lock").parent.mkdir(exist_ok=True)
        (run.root / f".snakemake/locks/0.{lock}.lock").write_text(f"data/digits.h5\n{RESULT}.json\n")
    before = times(run.root)
    text = status(run)
    assert times(run.root) == before
    assert re.search(r"\n(\d+) of \1 jobs done\n$", text)
    assert "snakemake runs (it is not known where)" in text
    assert run.pending() == {}


def lose(run: Workspace, target: str) -> None:
    """Delete an output, and the report, without which Snakemake would not miss it."""
    (run.root / target).unlink()
    (run.root / "results/report/table.md").unlink()


def test_a_job_has_failed(run: Workspace) -> None:
    lose(run, f"{RESULT}.json")
    log = f"{RESULT.replace('results', 'logs')}.log"
    assert re.search(r"\n\d+ of \d+ jobs done, 1 out of date, 2 left\n$", status(run)), "an old log is no sign of life"
    (run.root / log).write_text(ERROR)
    text = status(run)
    assert f"Failed:\n  student {RESULT}.json\n    {log}, " in text
    assert f"    | {ERROR}    → lower lr of this stage" in text
    assert re.search(r"\n\d+ of \d+ jobs done, 1 failed, 1 out of date, 1 left\n$", text)
    assert run.pending() == {"all": 1, "student": 1, "report": 1, "page": 1}


def test_a_job_was_killed(run: Workspace) -> None:
    """Snakemake has seen it die, and its log ends in the middle."""
    target, log, _ = STAGES["student"]
    lose(run, target)
    kill_in_the_middle(run, "student")
    text = status(run)
    assert f"Stopped:\n  student {target}\n    {log}, " in text
    assert re.search(r"→ it fell silent: .* \([\d.]+/12 epoch are kept\)\n", text)
    assert re.search(r"\n\d+ of \d+ jobs done, 1 stopped, 1 out of date, 1 left\n$", text)


def test_a_job_runs(run: Workspace) -> None:
    """Looked at once its log says that it began; the folder's lock does not matter."""
    target, log, _ = STAGES["recover"]
    (run.root / log).unlink()
    run.change("datasets.digits.recover.iterations", 100_000)
    snakemake = subprocess.Popen(
        run.command(target), cwd=run.root, env=run.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 300
        while not ((run.root / log).exists() and "batch 1 of 1: 0/" in (run.root / log).read_text()):
            assert time.monotonic() < deadline
            assert snakemake.poll() is None
            time.sleep(0.1)
        text = status(run)
        assert snakemake.poll() is None
    finally:
        if (job := job_of(run, "recover")) is not None:
            job.kill()
        snakemake.wait(300)
    assert "snakemake runs" in text
    assert re.search(rf"Running:\n  recover {target}\n    .*[\d,]+/100,000 it.*, last heard of \S+ s ago", text)
