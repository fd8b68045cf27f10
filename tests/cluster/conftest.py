"""A real SLURM for the session, and a small workflow run on it; what the same workflow makes locally is the reference."""

import copy
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.workflow.conftest import ENTRY, TINY, Workspace, run_of, workspace

from . import slurm

SMALL = copy.deepcopy(TINY)
SMALL["matrix"] = [ENTRY | {"methods": ["wmdd"]}, ENTRY | {"methods": ["random"], "protocols": ["short-hard"]}]
SMALL["datasets"]["digits"] |= {"classes_per_block": 4, "recover": {"iterations": 250}}
SMALL["teachers"]["nano"] |= {"epochs": 60}
RESULTS = ("data/*.h5", "results/digits/**/*.h5", "results/digits/**/*.safetensors", "results/digits/**/run*.json",
           "results/report/table.csv")  # fmt: skip
RESULT = Path(__file__).with_name("RESULT.md")
STAGES = ("data", "teacher", "features", "barycenter", "recover", "join", "select", "relabel", "student")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Write down how the whole campaign went; a part of it, or one without SLURM, leaves the file as it is."""
    stats = terminalreporter.stats
    reports = [r for kind in ("passed", "failed") for r in stats.get(kind, []) if r.when == "call"]
    if config.option.markexpr != "slurm" or config.option.keyword or stats.get("skipped") or not reports:
        return
    git = ["git", "-C", str(RESULT.parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"]
    revision = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    version = subprocess.run(["/usr/sbin/slurmctld", "-V"], capture_output=True, text=True, check=False).stdout.strip()
    rows = [f"| {r.nodeid.partition('::')[2]} | {r.outcome} | {r.duration:.0f} |\n" for r in reports]
    RESULT.write_text(
        "# The last whole run of `make test-campaign`\n\n"
        f"{date.today().isoformat()}, revision {revision}, {version} on {os.cpu_count()} cores, "
        f"{sum(r.duration for r in reports):.0f} s.\n\n| test | result | seconds |\n| --- | --- | --- |\n{''.join(rows)}"
    )


@pytest.fixture(scope="session")
def cluster() -> Iterator[slurm.Cluster]:
    """SLURM on this machine, for all tests."""
    if reason := slurm.why_not():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="wmdd-slurm-", dir="/run"))
    try:
        with slurm.cluster(folder) as made:
            yield made
    except slurm.NoSlurmError as error:
        pytest.skip(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the workflow makes without a cluster and without a fault."""
    return results(run_of(SMALL, tmp_path_factory))


def results(of: Workspace) -> dict[str, bytes]:
    """Return what must not differ from run to run; costs do."""
    return {name: content for name, content in of.contents(*RESULTS).items() if ".cost." not in name}


class Campaign:
    """`snakemake --profile slurm` in a folder, while a test does harm to it."""

    def __init__(self, run: Workspace, cluster: slurm.Cluster) -> None:
        self.run, self.cluster = run, cluster
        self.log = run.root / "snakemake.log"
        self.process: subprocess.Popen[bytes] | None = None
        # of earlier campaigns: the queue forgets them after minutes, the accounts know of them a moment later
        self.seen = {*cluster.jobs("ALL"), *(record.id for record in cluster.records())}

    def command(self, *arguments: str) -> list[str]:
        """Poll faster than the profile does on a real cluster; otherwise the profile as it is."""
        quick = ("--slurm-init-seconds-before-status-checks", "3", "--max-status-checks-per-second", "1")
        every = ("--configfile", "tiny.yaml", "--profile", "profiles/slurm", *quick)
        return [sys.executable, "-m", "snakemake", *every, *arguments]

    def start(self, *arguments: str) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(*arguments), cwd=self.run.root, env=self.run.environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """End Snakemake as a power loss would."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def until(self, what: str, true: Callable[[], object], seconds: float = 300) -> None:
        """Wait while the workflow runs."""
        end = time.monotonic() + seconds
        while not true():
            if not self.running or time.monotonic() > end:
                pytest.fail(f"{what} did not happen:\n{self.tail()}")
            time.sleep(0.1)

    def job(self, rule: str) -> int:
        """Return a running job of a rule, once there is one."""
        found: list[int] = []

        def look() -> bool:
            found[:] = [job for job, of in self.cluster.jobs().items() if of == rule and job not in self.seen]
            return bool(found)

        self.until(f"a running job of {rule}", look)
        return found[0]

    def process_of(self, stage: str, checkpoint: bool = True) -> psutil.Process:
        """Return the process of a running stage, once it has kept something if `checkpoint`."""
        found: list[psutil.Process] = []

        def look() -> bool:
            for process in psutil.process_iter(["cmdline", "cwd"]):
                line = process.info["cmdline"] or []
                if line[1:4] == ["-m", "wmdd", stage] and process.info["cwd"] == str(self.run.root):
                    output = self.run.root / line[line.index("--output") + 1]
                    if not checkpoint or output.with_name(f".{output.name}.checkpoint").exists():
                        found[:] = [process]
            return bool(found)

        self.until(f"a checkpoint of {stage}" if checkpoint else f"a process of {stage}", look)
        return found[0]

    def fail(self, seconds: float = 300) -> str:
        """Wait for a bad end and return the log."""
        assert self.process is not None
        assert self.process.wait(seconds) != 0, self.tail()
        return self.log.read_text(errors="replace")

    def finish(self, seconds: float = 1200) -> dict[str, bytes]:
        """Wait for the end, which must be a good one, and return the results."""
        assert self.process is not None
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        assert not self.running, f"Snakemake hangs:\n{self.tail()}"
        assert self.process.returncode == 0, self.tail()
        left = [path for path in (self.run.root / "results").rglob(".*") if path.name != ".snakemake_timestamp"]
        assert not left, "checkpoints or temporary files were left"
        return results(self.run)

    def status(self) -> str:
        """Return what `python -m wmdd status` says."""
        return self.run.python("-m", "wmdd", "status", "tiny.yaml")

    def logs(self, stage: str) -> str:
        """Return the logs of a stage's blocks."""
        return "".join(path.read_text() for path in self.run.root.glob(f"logs/**/{stage}/*.log"))

    def records(self) -> list[slurm.Record]:
        """Return the accounts of this campaign's jobs."""
        return [r for r in self.cluster.records() if r.id not in self.seen]

    def tail(self) -> str:
        """Return the ends of the logs that tell what went wrong."""
        logs: list[Path] = sorted(
            self.run.root.glob(".snakemake/slurm_logs/**/*.log"), key=lambda p: p.stat().st_mtime
        )[-2:]
        return "\n".join(f"--- {p}\n{p.read_text(errors='replace')[-4000:]}" for p in (self.log, *logs))


@contextmanager
def campaigning(root: Path, cluster: slurm.Cluster) -> Iterator[Campaign]:
    """Lay out a fresh folder for one run on the cluster; stop whatever still runs at the end."""
    made = Campaign(workspace(root, SMALL), cluster)
    try:
        yield made
    finally:
        if made.running:
            made.kill()
        for job in cluster.jobs("RUNNING", "PENDING"):
            cluster.cancel(job, "--full")
        slurm.wait("the end of all jobs", lambda: not cluster.jobs("RUNNING", "PENDING", "COMPLETING"), 90)


@pytest.fixture
def campaign(cluster: slurm.Cluster, tmp_path: Path) -> Iterator[Campaign]:
    """One run on the cluster."""
    with campaigning(tmp_path / "run", cluster) as made:
        yield made


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
    if error := subprocess.run(mount, capture_output=True, text=True, check=False).stderr:
        pytest.skip(f"no disk of our own to fill: {error.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)
