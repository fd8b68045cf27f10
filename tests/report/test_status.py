"""What the files of jobs say: each state from folders made by hand, tails of logs, progress, hints."""

import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.workflow.test_dag import SNAKEFILE
from wmdd.artifacts.checkpoint import Checkpoint
from wmdd.report.status import (
    HINTS,
    LINES,
    SHOWN,
    TAIL,
    WIDTH,
    Seen,
    hint,
    holder,
    look,
    markers,
    render,
    scheduled,
    tail,
)
from wmdd.workflow.dag import Job
from wmdd.workflow.layout import Cell
from wmdd.workflow.lock import Holder

NOW = 1.7e9
BEGUN = "wmdd recover: results/r.h5 on cpu with 1 thread(s), torch.float32\n"
GOING = f"{BEGUN}\rbatch 1 of 1: 1200/4000 it, 9.33it/s, 02:08 gone, 05:00 left\n"
ENDED = f"{GOING}\n\nwmdd recover: done in 428.8 s, peak memory 711 MB\n"
BROKEN = f"{GOING}wmdd recover: error: the loss is not a number at iteration 1201; lower lr (0.1)\n"
TRACE = f'{GOING}Traceback (most recent call last):\n  File "a.py", line 1, in f\nZeroDivisionError: division by zero\n'
WARNED = f"{GOING}wmdd recover: SIGUSR1: checkpoint written, going on from it when started again\n"
JOB = Job("recover", (Path("results/r.h5"), Path("results/r.cost.json")), Cell("d"), "d_t_5", log=Path("logs/r.log"))


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def put(path, content, age=0.0):
    """Write a file as if some seconds ago."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.utime(path, (NOW - age, NOW - age))
    return path


def keep(job=JOB, age=0.0, **progress):
    """Write the checkpoint of a job; 900 s were spent on it."""
    job.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint(job.checkpoint, "key")
    checkpoint.earlier = 900.0
    checkpoint.save({}, **progress)
    os.utime(job.checkpoint, (NOW - age, NOW - age))


def looked(job=JOB, marked=None, lives=False):
    """What is seen of a job; `marked` so many seconds ago."""
    return look([job], {} if marked is None else {job.outputs[0]: NOW - marked}, lives, NOW)


def state(job=JOB, marked=None, lives=False):
    return looked(job, marked, lives)[0].state


def shown(job=JOB, marked=None, lives=False):
    return render(looked(job, marked, lives), "mine.yaml", now=NOW)


# States


DEEP = "  x\n" * TAIL + "torch.OutOfMemoryError: CUDA out of memory.\n"
WITHOUT_OUTPUT = [  # its log, how old it is, when Snakemake began the job, whether that lives; the state
    (None, 0, None, True, "ready"),
    (None, 0, 5, True, "queued"),
    (None, 0, 5, False, "ready"),  # Snakemake was killed before a cluster began it
    (BROKEN, 300, 100, True, "queued"),  # the log is of the attempt before
    (WARNED, 20, 900, True, "queued"),  # the cluster will start it again
    ("", 1, 2, True, "running"),
    (GOING, 10, 900, True, "running"),
    (GOING, 10, 900, False, "running"),  # a cluster's jobs outlive Snakemake
    (GOING, 1000, 2000, True, "running"),  # a long step, and Snakemake would know if it had died
    (ENDED, 5, 900, True, "running"),  # Snakemake has not looked yet
    (f"{BROKEN}{BEGUN}", 10, 900, True, "running"),  # another attempt in the same log
    (GOING, 10, None, False, "stopped"),  # Snakemake saw it die, and has ended since
    (GOING, 10, None, True, "stopped"),  # Snakemake has seen it die
    (GOING, 200, 900, False, "stopped"),
    (GOING, 8000, 9000, True, "stopped"),
    ("", 200, 300, False, "stopped"),
    (WARNED, 20, None, True, "stopped"),
    (BROKEN, 10, 900, True, "failed"),
    (BROKEN, 9e6, None, False, "failed"),
    (TRACE, 10, None, False, "failed"),
    (DEEP, 9, None, False, "failed"),
    ("/bin/bash: line 1: python: command not found\n", 9, None, False, "failed"),
    ("/usr/bin/python: No module named wmdd\n", 9, None, False, "failed"),
    ("", 200, None, False, "ready"),
    (ENDED, 9e6, None, True, "ready"),  # the output was deleted
]
WITH_OUTPUT = [  # whether it would run again, and as above
    (False, ENDED, 10, None, True, "done"),
    (False, None, 0, None, False, "done"),
    (True, ENDED, 10, None, False, "out of date"),
    (True, BROKEN, 10, None, False, "out of date"),
    (False, ENDED, 10, 900, True, "running"),  # it has just ended
    (False, ENDED, 9000, 9900, False, "out of date"),  # nobody saw it end: it would be made anew
    (True, GOING, 10, 900, True, "running"),
]


def test_the_state_of_a_job():
    assert state(replace(JOB, wanted=False)) == "done", "its files were deleted, and nothing needs them"
    for wanted, log, age, marked, lives, expected in [(True, *case) for case in WITHOUT_OUTPUT] + WITH_OUTPUT:
        if (wanted, log) == WITH_OUTPUT[0][:2]:
            for path in JOB.outputs:
                put(path, "")
        JOB.log.unlink(missing_ok=True) if log is None else put(JOB.log, log, age)
        assert state(replace(JOB, wanted=wanted), marked, lives) == expected, (log, age, marked, lives)


def test_a_job_that_never_said_how_it_ended():
    """That the report's output was deleted is likelier than that it was killed, unless the scheduler's log is there."""
    put(JOB.log, "| a | table |", 9000)
    assert state() == "ready"
    assert state(replace(JOB, waits=True)) == "waiting"
    put(".snakemake/slurm_logs/rule_recover/d_t_5/7.log", "slurmstepd: error: oom_kill", 8990)
    assert state() == "stopped"


def test_signs_of_life():
    """A checkpoint is one. A log from the future is the clock: what is older than it by enough has stopped."""
    put(JOB.log, GOING, 1000)
    assert state(marked=2000) == "stopped"
    keep(age=30, done=1, total=2, unit="it")
    assert state(marked=2000) == "running"
    JOB.checkpoint.unlink()
    other = replace(JOB, outputs=(Path("results/s.h5"),), log=Path("logs/s.log"))
    put(JOB.log, GOING, -3600)
    put(other.log, GOING, 0)
    marked = {job.outputs[0]: NOW - 5000 for job in (JOB, other)}
    assert [f.state for f in look([JOB, other], marked, False, NOW)] == ["running", "stopped"]


# Logs


def test_the_tail_of_a_log(tmp_path):
    with (tmp_path / "log").open("wb") as file:
        file.truncate(10**12)  # a hole: reading it all would not end
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast line\n")
    assert tail(tmp_path / "log")[-1] == "last line"
    assert tail(put("whole", "first\nlast")) == ["first", "last"]
    assert tail(put("cut", "x" * 5 + "\n" + "abc\n" * TAIL))[0] == "abc"
    assert tail(Path("nowhere")) == tail(Path(".")) == tail(put("empty", "")) == []
    assert tail(put("odd", b"\xff\xfe\x00caf\xc3\xa9\r\r\n\n  \x1b[31mred\x1b[0m\x07 \n")) == ["��café", "  red"]
    (line,) = tail(put("long", "x" * (TAIL + 5)))
    assert len(line) < WIDTH + 5


# Progress


def test_progress_of_the_log():
    put(JOB.log, GOING, 60)
    text = shown(marked=100, lives=True)
    said = "recover results/r.h5\n    batch 1 of 1: 1,200/4,000 it, 4.0 min left, last heard of 60 s ago"
    assert said in text  # 5 min were left a minute ago
    assert text.endswith("0 of 1 jobs done, 1 running")
    for left, said in ("1:00:30", "1,200/4,000 it, 60 min left,"), ("?", "4,000 it, last"), ("00:05", "4,000 it, last"):
        put(JOB.log, GOING.replace("05:00", left), 30)
        assert said in shown(marked=100, lives=True)


@pytest.mark.parametrize(
    ("log", "age", "progress", "said"),
    [
        (GOING, 10, {"done": 3, "total": 12}, "3/12 epoch, 45 min left, last heard of 10 s ago"),
        (GOING, 30, {"done": 3, "total": 12}, "batch 1 of 1: 1,200/4,000 it, 4.7 min left, last heard of 20 s ago"),
        (BEGUN, 30, {"done": 2.5, "total": 12}, "2.5/12 epoch, 57 min left, last heard of 20 s ago"),
        (BEGUN, 30, {}, "no progress to show yet, last heard of 20 s ago"),
    ],
)
def test_progress_of_the_newer_of_log_and_checkpoint(log, age, progress, said):
    put(JOB.log, log, 20)
    keep(age=age, **progress, unit="epoch")
    assert f"    {said}" in shown(marked=100, lives=True)


def test_a_checkpoint_that_can_not_be_read_tells_no_progress():
    put(JOB.log, BEGUN, 20)
    put(JOB.checkpoint, b"no checkpoint", 10)
    assert "    no progress to show yet, last heard of" in shown(marked=100, lives=True)


# Jobs that ended early


def test_a_failed_job_with_its_log_and_hint():
    put(JOB.log, "".join(f"line {i}\n" for i in range(9)) + BROKEN, 7300)
    keep(age=7320, done=1150, total=4000, unit="it")
    text = shown()
    title, job, log, *lines = text[text.index("Failed:") :].splitlines()
    assert (title, job, log) == ("Failed:", "  recover results/r.h5", "    logs/r.log, 2.0 h ago:")
    assert [line for line in lines if line.startswith("    | ")] == lines[:LINES]
    assert (lines[0], lines[LINES - 1]) == ("    | line 7", f"    | {BROKEN.splitlines()[-1]}")
    assert lines[LINES].startswith("    → lower lr of this stage in the experiment")
    assert lines[LINES].endswith(" (1,150/4,000 it are kept)")
    assert text.endswith("0 of 1 jobs done, 1 failed")


def test_a_stopped_job_with_the_schedulers_log():
    put(JOB.log, GOING, 500)
    silent = shown()
    assert "Stopped:\n  recover results/r.h5\n    logs/r.log, 8.3 min ago:\n    | wmdd recover: results" in silent
    assert "it fell silent" in silent
    assert ".snakemake/slurm_logs/rule_recover" in silent
    folder = ".snakemake/slurm_logs/rule_recover/d_t_5"
    put(f"{folder}/41.log", "slurmstepd: error: *** STEP 41.0 CANCELLED AT 1 DUE TO TIME LIMIT ***", 9000)
    assert shown() == silent  # of an earlier attempt
    newest = put(f"{folder}/42.log", "a\nslurmstepd: error: Detected 1 oom_kill event in StepId=42.0.\n", 470)
    put(".snakemake/slurm_logs/rule_recover/d_t_50/43.log", "of another job", 0)
    assert scheduled(JOB, NOW - 500) == newest
    text = shown()
    assert f"    {newest}:\n    | a\n    | slurmstepd: error: Detected 1 oom_kill" in text
    assert "    → it ran out of memory: a retry asks for more" in text
    assert "set-resources: {recover: {mem_mb: …}}" in text


def test_a_job_that_was_warned_or_said_nothing():
    put(JOB.log, "", 500)
    assert "    | (empty)\n    → it fell silent" in shown(marked=600)
    put(JOB.log, WARNED, 500)
    keep(age=500, done=1201, total=4000, unit="it")
    assert "→ run again: it goes on from its checkpoint (1,201/4,000 it are kept)" in shown()


def test_hints():
    for line, says in (
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "memory of the GPU"),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=1.0. Some step tasks were OOM Killed", "mem_mb"),
        ("RuntimeError: [enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory", "mem_mb"),
        ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 1 TiB", "mem_mb"),
        ("slurmstepd: error: *** JOB 1 ON n CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***", "out of time"),
        ("slurmstepd: error: *** JOB 1 ON n CANCELLED AT 2026-01-01T00:00:00 DUE TO PREEMPTION ***", "another job"),
        ("slurmstepd: error: *** JOB 1 ON n CANCELLED AT 2026-01-01T00:00:00 ***", "it was cancelled"),
        ("wmdd data: error: disk full (or file size limit reached) while writing data/d.h5; free", "free some space"),
        ("OSError: [Errno 122] Disk quota exceeded", "free some space"),
        ("wmdd student: error: the loss is not a number after epoch 3; lower lr (9.0)", "lower lr"),
        ("/usr/bin/python: No module named wmdd", "docs/use/cluster.md"),
        ("bash: line 1: python: command not found", "docs/use/cluster.md"),
        ("wmdd teacher: error: top1 61.0% is below min_accuracy 65.0%", "the error says what to do"),
        ("ZeroDivisionError: division by zero", "the log has the whole of it"),
    ):
        assert says in hint("recover", ["before", line, "after"], "failed")
    assert not any("\n" in remedy.format(rule="recover") or remedy.endswith(".") for _, remedy in HINTS)


# The whole


@pytest.mark.parametrize("state", ["running", "failed", "stopped"])
def test_long_lists_are_cut(state):
    many = [Seen(replace(JOB, outputs=(Path(f"r{i}"),)), state, ("x",), NOW - i) for i in range(SHOWN + 2)]
    short, whole = (render(many, "f", detail=detail, now=NOW) for detail in (False, True))
    assert short.count("  recover r") == SHOWN
    assert "  recover r0\n" in short  # the latest first
    assert "\n  and 2 more (--detail)\n" in short
    assert whole.count("  recover r") == SHOWN + 2
    assert "more" not in whole


def test_the_table_and_the_totals():
    groups = [("student_3", "d", "done", 2), ("student", "d", "ready", 1), ("teacher", "d", "running", 1)]
    groups += [("report", "", "waiting", 1), ("grid", "a", "out of date", 1200)]
    jobs = [Seen(replace(JOB, rule=r, cell=Cell(d), reason="why"), s) for r, d, s, n in groups for _ in range(n)]
    text = render(jobs, "mine.yaml", "pid 7 on login", now=NOW)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == ["dataset", "job", "jobs", "done", "running", "out of date", "ready", "waiting"]
    assert rows[2:] == [
        ["a", "grid", "1200", "", "", "1200", "", ""],
        ["d", "teacher", "1", "", "1", "", "", ""],
        ["d", "student", "3", "2", "", "", "1", ""],
        ["", "report", "1", "", "", "", "", "1"],
    ]
    assert text.splitlines()[0].startswith("mine.yaml, ")
    assert text.splitlines()[0].endswith(": snakemake runs (pid 7 on login)")
    assert text.splitlines()[-1] == "2 of 1,205 jobs done, 1 running, 1,200 out of date, 2 left"
    assert "why" not in text
    assert "    why" in render(jobs, "mine.yaml", detail=True, now=NOW)
    assert "no snakemake runs here" in render(jobs, "mine.yaml", now=NOW).splitlines()[0]


# What Snakemake keeps


def test_markers_are_those_of_snakemake(tmp_path):
    persistence = pytest.importorskip("snakemake.persistence.file").FilePersistence(path=tmp_path / ".snakemake")
    names = ["results/d/r.h5", "results/" + "long/" * 100 + "é.h5"]
    for name in names:
        persistence._mark_incomplete(name, "4711")
    put(".snakemake/incomplete/migration_underway", "")
    found = markers()
    assert set(found) == set(map(Path, names))
    assert all(abs(age - time.time()) < 60 for age in found.values())
    persistence._unmark_incomplete(names[1])
    assert list(markers()) == [Path(names[0])]


def test_who_runs_the_workflow():
    assert holder() == ""
    put(".snakemake/locks/0.input.lock", "data/d.h5\n")
    assert holder() == "it is not known where"
    here = Holder()
    name = Path(".snakemake/locks/wmdd-1.json")
    put(name, json.dumps(asdict(here)))
    assert holder().startswith(f"pid {os.getpid()} on {here.machine[0]}, since 20")
    put(name, json.dumps(asdict(replace(here, command=["another process of that number"]))))
    assert holder() == ""
    put(name, "{")
    assert holder() == "it is not known where"
    Path(".snakemake/locks/0.input.lock").unlink()
    assert holder() == ""


# The command


def test_the_command(run, mistake):
    said = "there is no study.yaml or config/config.yaml here; name the experiment file"
    assert mistake("status").startswith(said)
    Path("Snakefile").write_text(SNAKEFILE.replace('"value"', '"experiment"'))
    Path("config").mkdir()
    Path("config/config.yaml").write_text("experiment: mine")
    put("logs/d/a.log", "wmdd a: error: it is wrong\n")
    code, text, err = run("status")
    assert (code, err) == (0, "")
    assert text.startswith("config.yaml, 20")
    assert "    | wmdd a: error: it is wrong\n    → the error says what to do" in text
    assert text.endswith("0 of 2 jobs done, 1 failed, 1 left\n")
    Path("other.yaml").write_text("experiment: other")
    for path in ("results/d/a.txt", "results/d/a2.txt", "results/b.txt"):
        put(path, "")
    assert run("status other.yaml --detail")[1].endswith("2 of 2 jobs done\n")
    Path("mine.yaml").write_text("recover: {iteration: 3}")
    says = "mine.yaml: unknown key recover.iteration; did you mean 'iterations'?"
    assert mistake("status mine.yaml").startswith(says)
