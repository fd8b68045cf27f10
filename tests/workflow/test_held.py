"""Two workflows on one folder, and one that was killed: one wins, and the same command simply goes on."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, replace

import pytest

from wmdd.lock import NAME, Holder

from .conftest import TINY, Workspace, workspace

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

QUICK = deepcopy(TINY)
QUICK["matrix"][0] |= {"methods": ["random"], "protocols": ["short-hard"]}
RESULTS = ("results/digits/**/*.json", "results/**/images.h5", "results/report/table.*")


def start(at: Workspace) -> subprocess.Popen[str]:
    """Start the workflow in a session of its own, so that nothing of it outlives a test."""
    return subprocess.Popen(
        at.command(), cwd=at.root, env=at.environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def results(at: Workspace) -> dict[str, bytes]:
    found = at.contents(*RESULTS)
    return {name: content for name, content in found.items() if not name.endswith(".cost.json")}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, list[tuple[int, str]]]:
    """Two of the same workflow, started at once in one folder: where, and how each ended."""
    at = workspace(tmp_path_factory.mktemp("held") / "two", QUICK)
    processes = [start(at) for _ in range(2)]
    said = [process.communicate(timeout=600)[0] for process in processes]
    return at, [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


@pytest.fixture
def orphans() -> Iterator[list[int]]:
    """Process groups that are ended after the test."""
    groups: list[int] = []
    yield groups
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def test_of_two_at_once_one_wins(two):
    at, ended = two
    assert sorted(code for code, _ in ended) == [0, 1], ended
    _, refused = max(ended)
    assert "wmdd: this folder is held by `snakemake --configfile tiny.yaml" in refused
    assert "wait for it, stop it (kill -INT" in refused
    assert "Error: Directory cannot be locked." in refused
    assert "Traceback" not in refused
    assert at.pending() == {}
    assert not (at.root / ".snakemake" / NAME).exists()


def test_a_killed_one_is_simply_started_again(two, tmp_path, orphans):
    at = workspace(tmp_path / "killed", QUICK)
    process = start(at)
    orphans.append(process.pid)
    begun = time.monotonic()
    while not list(at.root.glob("results/**/.model.safetensors.checkpoint")):
        assert time.monotonic() - begun < 300
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.kill()  # what it has started goes on
    process.wait()
    assert list(at.root.glob(".snakemake/locks/*.lock"))
    assert at.pending()  # a dry run looks, and clears nothing away
    assert list(at.root.glob(".snakemake/locks/*.lock"))
    again = at.snakemake()
    (line,) = [line for line in again.stderr.splitlines() if line.startswith("wmdd: ")]
    assert f"(pid {process.pid} on " in line
    assert "is gone; its lock is removed." in line
    assert at.pending() == {}
    assert results(at) == results(two[0])


def lock_by(at: Workspace, holder: Holder) -> None:
    """Leave what a workflow leaves that was killed."""
    (at.root / ".snakemake/locks").mkdir(parents=True)
    (at.root / ".snakemake/locks/0.output.lock").write_text("data/digits.h5\n")
    (at.root / ".snakemake" / NAME).write_text(json.dumps(asdict(holder)))


def test_a_holder_elsewhere_is_unlocked_by_hand(tmp_path):
    at = workspace(tmp_path / "elsewhere", QUICK)
    lock_by(at, replace(Holder.here(), host="node7", pid=12))
    refused = at.snakemake("data/digits.h5", check=False)
    assert refused.returncode == 1
    assert "(`ps -p 12` on node7), run the same command with --unlock first" in refused.stderr
    assert (at.root / ".snakemake" / NAME).exists()
    at.snakemake("--unlock")
    assert not (at.root / ".snakemake" / NAME).exists()
    assert "wmdd: " not in at.snakemake("data/digits.h5").stderr


def test_jobs_of_a_workflow_do_not_ask_who_holds_the_folder(tmp_path):
    """As executors of clusters start them; that they run at all is what shows it, as this process holds the folder."""
    at = workspace(tmp_path / "job", QUICK)
    lock_by(at, Holder.here())
    job = ["--mode", "subprocess", "--nolock", "--no-hooks", "--force"]
    at.snakemake(*job, "--allowed-rules", "data", "--target-jobs", "data:dataset=digits")
    assert (at.root / "data/digits.h5").exists()
    assert Holder(**json.loads((at.root / ".snakemake" / NAME).read_text())).pid == os.getpid()
