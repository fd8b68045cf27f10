"""A workflow beside one that runs is refused; after one that was killed the same command simply goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import pytest

from wmdd.workflow.lock import LOCKS, MACHINE, Holder, holders

from .conftest import ENTRY, TINY, Workspace, workspace

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

QUICK = deepcopy(TINY)
QUICK["matrix"] = [ENTRY | {"methods": ["random"], "protocols": ["short-hard"]}]
DATA = "data/digits.h5"


def lines(text: str) -> list[str]:
    """Return what is said of who holds the folder."""
    return [line for line in text.splitlines() if "held by" in line or "is gone" in line or "cannot be locked" in line]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Workspace, int]]:
    """A workflow whose first job has begun, and its process; a session of its own, so that nothing outlives the test."""
    at = workspace(tmp_path / "running", QUICK)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            at.command(python=sys.executable),
            cwd=at.root,
            env=at.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    begun = time.monotonic()
    while not (list(holders(at.root / LOCKS)) and list(at.root.glob("logs/**/*.log"))):
        assert time.monotonic() - begun < 300
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.05)
    yield at, process.pid
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_run_beside_a_workflow_is_refused_and_one_after_a_killed_workflow_goes_on(running):
    at, pid = running
    refused = at.snakemake(check=False)
    assert refused.returncode == 1
    (line,) = lines(refused.stderr)
    assert f"snakemake --configfile tiny.yaml --cores 2` (pid {pid} on " in line
    assert "Traceback" not in refused.stderr
    assert at.pending()
    assert len(list(holders(at.root / LOCKS))) == 1

    os.kill(pid, signal.SIGKILL)  # what it has started goes on
    before = sorted((at.root / LOCKS).iterdir())
    assert at.pending()
    at.snakemake("--lint", check=False)
    at.snakemake("--dag")
    at.snakemake("--nolock", DATA)
    assert sorted((at.root / LOCKS).iterdir()) == before
    (line,) = lines(at.snakemake().stderr)
    assert f"(pid {pid} on " in line
    assert "is gone; its lock is removed" in line
    assert at.pending() == {}
    assert list((at.root / LOCKS).iterdir()) == []


def test_the_lock_of_another_machine_is_removed_by_hand_and_its_jobs_do_not_ask(tmp_path):
    at = workspace(tmp_path / "elsewhere", QUICK)
    (at.root / LOCKS).mkdir(parents=True)
    (at.root / LOCKS / "0.output.lock").write_text(f"{DATA}\n")
    (at.root / LOCKS / "wmdd-1.json").write_text(json.dumps(asdict(Holder(machine=["node7", *MACHINE[1:]]))))
    refused = at.snakemake(DATA, check=False)
    assert refused.returncode == 1
    (line,) = lines(refused.stderr)
    assert "on node7, since" in line
    assert line.endswith("first --unlock")
    job = ["--mode", "subprocess", "--nolock", "--no-hooks", "--force"]  # as executors of clusters start it
    at.snakemake(*job, "--allowed-rules", "data", "--target-jobs", "data:dataset=digits")
    assert (at.root / DATA).exists()
    assert (at.root / LOCKS / "wmdd-1.json").exists()
    assert "Unlocked working directory." in at.snakemake("--unlock").stderr
    assert lines(at.snakemake("--force", DATA).stderr) == []
