"""The workflow on a real SLURM: the bits of a local run, whatever happens to its jobs, to Snakemake and to the cluster."""

import itertools
import random
import re
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from .conftest import STAGES, Campaign, campaigning, results
from .slurm import DEAD, Cluster, Record

pytestmark = [pytest.mark.workflow, pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(1800)]

GPU_RULES = {"teacher", "features", "recover", "relabel", "student"}
BITS = dict[str, bytes]


def assert_same(found: BITS, alone: BITS) -> None:
    assert found.keys() == alone.keys()
    assert [name for name in found if found[name] != alone[name]] == []


def most_at_once(records: list[Record]) -> int:
    """Return how many jobs ran at the same time at most."""
    events = sorted([(r.start, 1) for r in records] + [(r.end, -1) for r in records])
    return max(itertools.accumulate(step for _, step in events), default=0)


def test_same_bits_and_never_more_jobs_than_gpus(campaign: Campaign, alone: BITS) -> None:
    """2 GPUs, three blocks of recover and more: jobs wait for a GPU while others use the processor alone."""
    campaign.start()
    assert_same(campaign.finish(), alone)
    records = campaign.records()
    assert {r.state for r in records} == {"COMPLETED"}
    assert {r.rule for r in records} == set(STAGES), "what takes seconds stays beside Snakemake"
    with_gpu = [r for r in records if r.gpus]
    assert {r.rule for r in with_gpu} == GPU_RULES
    assert most_at_once(with_gpu) == 2
    assert any(a.start < b.end and b.start < a.end for a in with_gpu for b in records if not b.gpus)
    assert all(r.memory >= 600 and r.minutes >= 10 for r in records)
    assert len({r.id for r in records}) == len(records), "nothing ran twice"


def test_a_cancelled_and_a_preempted_job_and_a_killed_snakemake(campaign: Campaign, alone: BITS) -> None:
    """What more urgent jobs drive away keeps its state in time; the jobs of a killed Snakemake run on beside the next."""
    scavenging = ("--default-resources", "slurm_partition=scavenge")
    campaign.start(*scavenging)
    campaign.process_of("teacher")
    cancelled = campaign.job("teacher")
    campaign.cluster.cancel(cancelled)

    campaign.process_of("recover")
    preempted = campaign.job("recover")
    assert re.search(r"^Running:\n  recover .*\n    .*iteration", said := campaign.status(), re.MULTILINE), said
    urgent = ["sbatch", "-p", "urgent", "-c", "16", "-o", "/dev/null", "--wrap", "sleep 5"]
    subprocess.run(urgent, check=True, capture_output=True)
    campaign.until("the end of the preempted jobs", lambda: "recover" not in campaign.cluster.jobs().values())

    campaign.process_of("student")
    campaign.kill()
    campaign.start(*scavenging)
    assert_same(campaign.finish(), alone)
    assert "is gone; its lock is removed" in campaign.log.read_text()
    assert re.search(r"^(\d+) of \1 jobs done", campaign.status(), re.MULTILINE)
    hurt = {(record.id, record.state in DEAD) for record in campaign.records()}
    assert {(cancelled, True), (preempted, True)} <= hurt
    assert "going on from" in campaign.logs("recover")


@pytest.mark.campaign
def test_cancelled_jobs_of_every_stage_and_25_kills_in_one_run(campaign: Campaign, alone: BITS) -> None:
    """The first job of each stage is cancelled; where several run at once, some of them come to any kind of end."""
    draw = random.Random(0)
    campaign.start("--retries", "30")
    to_cancel, killed = set(STAGES), 0
    while campaign.running and (killed < 25 or to_cancel):
        time.sleep(draw.uniform(0, 4))
        jobs = {job: rule for job, rule in campaign.cluster.jobs().items() if job not in campaign.seen}
        first = {rule: job for job, rule in jobs.items() if rule in to_cancel}
        for job in first.values():
            campaign.cluster.cancel(job)
        others = [job for job in jobs if job not in first.values()] if len(jobs) > 1 and killed < 25 else []
        for job in draw.sample(others, draw.randint(min(1, len(others)), len(others))):
            campaign.cluster.cancel(job, *draw.choice([(), ("-s", "KILL"), ("-s", "KILL", "-b"), ("-s", "USR1")]))
            killed += 1
        to_cancel -= first.keys()
        killed += len(first)
    assert_same(campaign.finish(), alone)
    assert killed >= 25
    assert not to_cancel, f"never seen running: {to_cancel}"
    hurt = [r for r in campaign.records() if r.state in DEAD]
    assert {r.rule for r in hurt} >= {"teacher", "recover"}
    again = {r.rule: r for r in campaign.records() if r.state == "COMPLETED"}
    assert any(again[r.rule].memory > r.memory and again[r.rule].minutes > r.minutes for r in hurt if r.rule in again)


@pytest.mark.campaign
def test_time_and_memory_that_do_not_suffice(campaign: Campaign, alone: BITS) -> None:
    """A job that hangs until its time limit goes on from its checkpoint with more time, one over its memory with more."""
    campaign.start(
        "--set-resources", "recover:runtime=2 ** (attempt - 1)", "recover:slurm_extra='--signal=USR1@10'",
        "select:mem_mb=150 * 4 ** (attempt - 1)",
    )  # fmt: skip
    campaign.process_of("recover").suspend()
    assert_same(campaign.finish(), alone)
    ends = {rule: [r for r in campaign.records() if r.rule == rule] for rule in ("select", "recover")}
    assert [r.state in DEAD for r in ends["select"]] == [True] * (len(ends["select"]) - 1) + [False], ends
    assert ends["select"][0].memory < ends["select"][-1].memory
    assert any(r.state in DEAD and r.minutes == 1 for r in ends["recover"]), ends
    assert "going on from" in campaign.logs("recover")


@pytest.mark.campaign
def test_a_requeued_job_is_started_again_by_slurm_itself(campaign: Campaign, alone: BITS) -> None:
    campaign.start()
    campaign.process_of("student")
    job = campaign.job("student")
    subprocess.run(["scontrol", "requeue", str(job)], check=True)
    assert_same(campaign.finish(), alone)
    assert len([r for r in campaign.records() if r.id == job]) == 2


@pytest.mark.campaign
def test_daemons_that_come_and_go(campaign: Campaign, alone: BITS) -> None:
    """The node's daemon is stopped and started; the controller restarted; then out of reach for a minute."""
    cluster = campaign.cluster
    campaign.start()
    campaign.job("teacher")
    cluster.stop_daemon("slurmd")
    time.sleep(5)
    cluster.start_node()
    campaign.job("recover")
    cluster.stop_daemon("slurmctld")
    cluster.start_controller()
    campaign.job("student")
    cluster.stop_daemon("slurmctld")
    time.sleep(60)
    cluster.start_controller()
    assert_same(campaign.finish(), alone)


@pytest.mark.campaign
def test_full_disk(small_disk: Path, cluster: Cluster, alone: BITS) -> None:
    """Jobs, or Snakemake itself, end with a line that says so; with room the same command completes what was begun."""
    with campaigning(small_disk / "run", cluster) as campaign:
        campaign.start("--retries", "0")
        campaign.process_of("recover", checkpoint=False)
        ballast = small_disk / "ballast"
        fill(ballast)
        assert re.search("disk full|No space left on device", campaign.fail())
        done = results(campaign.run)
        assert any(name.endswith("features.h5") for name in done)
        ballast.unlink()
        campaign.start("--retries", "0")
        assert_same(campaign.finish(), alone)
        assert [r.rule for r in campaign.records()].count("teacher") == 1, "what was finished ran again"


def fill(ballast: Path) -> None:
    """Write until nothing more fits."""
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(2**16))
