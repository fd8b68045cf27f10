"""Status: which jobs of an experiment are done, run, wait, failed or stopped, read from the folder that all machines share.

Snakemake says which jobs there are and which it would run; it keeps a marker for each job that it has started or handed to
a cluster (.snakemake/incomplete), and a lock while it lives. The log and the checkpoint of a job say how far it is and how it
ended. Nothing is locked or changed, so that one may look while the workflow runs, from any machine.
"""

import binascii
import io
import re
import time
from base64 import urlsafe_b64decode
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from wmdd.artifacts.checkpoint import Progress, peek
from wmdd.base.units import seconds
from wmdd.workflow.dag import Job
from wmdd.workflow.lock import LOCKS, holders
from wmdd.workflow.stages import rank

MARKERS, SLURM_LOGS = Path(".snakemake/incomplete"), Path(".snakemake/slurm_logs")
STATES = ("done", "running", "queued", "failed", "stopped", "out of date", "ready", "waiting")
FRESH = 180.0  # seconds without a line, of which a job writes one a minute, after which it is taken for dead
PATIENCE = 7200.0  # the same while a Snakemake waits for it, which sees its end: one step of a large job may take long
TAIL = 8192  # bytes of a log that are read
WIDTH = 240  # characters of a log's line that are shown
LINES, SHOWN = 5, 20  # lines of a log, and jobs of a list

PROGRESS = re.compile(r"(?P<what>.+): (?P<done>\d+)/(?P<total>\d+) (?P<unit>\S+), .*, \S+ gone, (?P<left>\S+) left")
BEGUN = re.compile(r"wmdd \S+: .* on .* with .*thread|going on from ")
ENDED = re.compile(r"wmdd \S+: done in ")
BROKEN = re.compile(
    r"wmdd \S*: error: |Traceback \(most recent call last\)|.*command not found|.*: No module named |╭─ Error"
    r"|Segmentation fault|Bus error|Illegal instruction|Fatal Python error"
)
RAISED = re.compile(r"[\w.]+(Error|Exception)\b(:|$)")  # last line of a trace whose beginning is too far up
SIGNALLED = re.compile(r"\bSIG(TERM|USR1|INT|HUP|KILL)\b|^Terminated\b|^Killed\b")  # wmdd.base.preemption, a shell
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")

AGAIN = "run again: it goes on from its checkpoint"
HINTS = (  # what a log says -> what to do
    (
        r"CUDA out of memory|CUDA error: out of memory",
        "the memory of the GPU was too small: lower the batch size of this stage in the experiment, or ask for a larger GPU",
    ),
    (
        r"oom[_-]kill|(?i:out of memory|can't allocate memory|cannot allocate memory|has no memory left)|MemoryError",
        "it ran out of memory: a retry asks for more; or give it more at once in the profile, set-resources: {{{rule}: "
        "{{mem_mb: …}}}}",
    ),
    (r"DUE TO TIME LIMIT", f"it ran out of time: a retry asks for more; {AGAIN}"),
    (r"DUE TO PREEMPTION", f"its node was wanted by another job; {AGAIN}"),
    (r"CANCELLED", f"it was cancelled, by a person or by the cluster; {AGAIN}"),
    (
        r"disk full|No space left|Disk quota exceeded|file size limit",
        "free some space and run again: finished files are kept",
    ),
    (r"the loss is not a number", "lower lr of this stage in the experiment, or set precision: fp32, and run again"),
    (
        r"No module named|command not found",
        "the environment of the workflow is not active where the job ran: activate it before snakemake (docs/use/cluster.md)",
    ),
    (r"wmdd \S*: error: ", "the error says what to do; then run again"),
)


@dataclass(frozen=True)
class Seen:
    """A job with its state, one of `STATES`, and what its files say; times are seconds since 1970, 0 where there is no file."""

    job: Job
    state: str
    lines: tuple[str, ...] = ()  # the last of its log
    logged: float = 0.0  # when the log was written to
    kept: float = 0.0  # when the checkpoint was

    @property
    def heard(self) -> float:
        """When the job was last heard of."""
        return max(self.logged, self.kept)


def markers() -> dict[Path, float]:
    """Return the outputs of the jobs that Snakemake has started or handed to a cluster, with the time when it did."""
    started = {}
    for path in MARKERS.rglob("*"):
        name = "".join(part.removeprefix("@") for part in path.relative_to(MARKERS).parts)  # long names are split
        with suppress(OSError, ValueError, binascii.Error):  # another file, or the job has just ended
            if path.is_file():
                started[Path(urlsafe_b64decode(name).decode())] = path.stat().st_mtime
    return started


def holder() -> str:
    """Return which Snakemake runs the workflow here, or nothing; one that was killed on another machine can't be told."""
    if not any(LOCKS.glob("*.lock")):
        return ""
    for _, process in holders(LOCKS):
        return "" if process.gone else str(process)
    return "it is not known where"


def tail(path: Path) -> list[str]:
    """Return the last lines of a log that say something, without what a terminal would obey; of no log, none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(max(size - TAIL, 0))
            content = file.read(TAIL)
    except OSError:
        return []
    lines = re.split(r"[\r\n]+", content.decode(errors="replace"))
    if size > TAIL and len(lines) > 1:
        lines = lines[1:]  # of which the beginning is cut
    clean = (ESCAPES.sub("", line).rstrip() for line in lines)
    return [line if len(line) <= WIDTH else f"{line[:WIDTH]} …" for line in clean if line.strip()]


def _modified(path: Path | None) -> float:
    """Return when a file was written to, 0 where there is none."""
    try:
        return path.stat().st_mtime if path else 0.0
    except OSError:
        return 0.0


def _end(lines: Sequence[str]) -> str:
    """Return how a log ends: well, badly, by a signal, in the middle, or (empty) with nothing that tells."""
    going = [i for i, line in enumerate(lines) if PROGRESS.match(line) or BEGUN.match(line)]
    after = lines[going[-1] + 1 :] if going else lines
    if after and ENDED.match(after[-1]):
        return "well"
    if any(BROKEN.match(line) for line in after) or (after and RAISED.match(after[-1])):
        return "badly"
    if after and SIGNALLED.search(after[-1]):
        return "signal"
    return "middle" if going else ""


def look(jobs: Iterable[Job], started: dict[Path, float], lives: bool, now: float | None = None) -> list[Seen]:
    """Return the state of each job.

    Args:
        jobs: of the workflow.
        started: of `markers`.
        lives: whether a Snakemake runs the workflow.
        now: of `time.time()` by default; a log from the future means that the machines' clocks differ, and is the clock.
    """
    seen = []
    for job in jobs:
        if not job.wanted and job.outputs[0] not in started:
            seen.append(Seen(job, "done"))
        elif (logged := _modified(job.log)) and job.log is not None:
            seen.append(Seen(job, "", tuple(tail(job.log)), logged, _modified(job.checkpoint)))
        else:
            seen.append(Seen(job, ""))
    clock = max([time.time() if now is None else now, *(s.logged for s in seen)])
    return [s if s.state else replace(s, state=_state(s, started.get(s.job.outputs[0]), lives, clock)) for s in seen]


def _state(seen: Seen, since: float | None, lives: bool, now: float) -> str:
    """Return the state of a job that is wanted or that Snakemake has started, at `since`."""
    job, end = seen.job, _end(seen.lines)
    complete = all(path.exists() for path in job.outputs)
    if since is None and complete:
        return "out of date"
    if since is not None and lives and (seen.logged < since or end == "signal"):
        return "queued"  # of the attempt before there may be a log; after a warning, a cluster starts a job again by itself
    if end == "badly" and not complete:
        return "failed"
    if since is not None and seen.logged and end != "signal" and now - seen.heard < (PATIENCE if lives else FRESH):
        return "running"
    if complete:
        return "out of date"  # Snakemake was gone before it saw the job's end
    if seen.logged and (since is not None or end in ("middle", "signal") or scheduled(job, seen.logged)):
        return "stopped"
    # else it ended well, as it says or (grid, report) as nobody denies, and its output was deleted
    return "waiting" if job.waits else "ready"


def facts(jobs: Sequence[Seen]) -> dict[str, Any]:
    """Return the state of each job, and how many are in each, for programs."""
    rows = [
        {
            "stage": s.job.stage,
            **s.job.cell.parts(),
            "state": s.state,
            "outputs": list(map(str, s.job.outputs)),
            "log": str(s.job.log or ""),
        }
        for s in jobs
    ]
    return {"jobs": rows, "counts": dict(Counter(s.state for s in jobs))}


def render(jobs: Sequence[Seen], name: str, holder: str = "", detail: bool = False, now: float | None = None) -> str:
    """Return the table of an experiment file, the jobs that run or ended early, and the totals.

    Args:
        jobs: of `look`.
        name: of the file.
        holder: of `holder`.
        detail: say it of all jobs that run or ended early, and why others are out of date.
        now: of `time.time()` by default.
    """
    now = max([time.time() if now is None else now, *(seen.logged for seen in jobs)])
    by_state = {state: sorted((s for s in jobs if s.state == state), key=lambda s: -s.logged) for state in STATES}
    at_work = f"snakemake runs ({holder})" if holder else "no snakemake runs here"
    parts = [f"{name}, {time.strftime('%Y-%m-%d %H:%M')}: {at_work}", _table(jobs)]
    for state, told in (("running", _running), ("failed", _ended), ("stopped", _ended)):
        shown = by_state[state] if detail else by_state[state][:SHOWN]
        more = len(by_state[state]) - len(shown)
        lines = [told(seen, now) for seen in shown] + ([f"  and {more:,} more (--detail)"] if more else [])
        parts += ["\n".join([f"{state.capitalize()}:", *lines])] if lines else []
    reasons = [f"  {_first(s.job)}\n    {s.job.reason[:WIDTH]}" for s in jobs if s.state == "out of date"]
    if detail and reasons:
        parts += ["\n".join(["Out of date:", *reasons])]
    counts = {state: len(by_state[state]) for state in STATES[1:6]}
    counts["left"] = len(by_state["ready"]) + len(by_state["waiting"])
    totals = [f"{count:,} {state}" for state, count in counts.items() if count]
    return "\n\n".join([*parts, ", ".join([f"{len(by_state['done']):,} of {len(jobs):,} jobs done", *totals])])


def _table(jobs: Sequence[Seen]) -> str:
    """Return how many jobs of each dataset and rule are in each state; states in which none is are left out."""
    groups: dict[tuple[str, str], Counter[str]] = {}
    for seen in jobs:
        groups.setdefault((seen.job.cell.dataset or "", seen.job.stage), Counter())[seen.state] += 1
    order = sorted(groups, key=lambda g: (not g[0], g[0], rank(g[1]), g[1]))
    states = [state for state in STATES if any(groups[g][state] for g in order)]
    rows = [[*g, groups[g].total(), *(groups[g][state] or "" for state in states)] for g in order]
    heads = ["dataset", "job", "jobs", *states]
    return tabulate(rows, heads, "pipe", colalign=["left", "left", *["right"] * (len(heads) - 2)])


def _first(job: Job) -> str:
    return f"{job.stage} {job.outputs[0]}"


def _ago(then: float, now: float) -> str:
    return f"{seconds(max(round(now - then), 1))} ago"


def _running(seen: Seen, now: float) -> str:
    """Return how far a job is and what time it has left, of the log or the checkpoint, whichever is newer."""
    progress = next(filter(None, map(PROGRESS.match, reversed(seen.lines))), None)
    kept, left, parts = _kept(seen.job), 0.0, ["no progress to show yet"]
    if kept is not None and (progress is None or seen.kept > seen.logged):
        left = kept.seconds * (kept.total - kept.done) / kept.done if kept.done else 0
        parts = [_far(kept.done, kept.total, kept.unit)]
    elif progress is not None:
        clock = progress["left"].split(":")
        left = sum(60**i * int(part) for i, part in enumerate(reversed(clock))) if clock[0].isdigit() else 0
        left = max(left - (now - seen.logged), 0)
        parts = [f"{progress['what']}: {_far(int(progress['done']), int(progress['total']), progress['unit'])}"]
    parts += [f"{seconds(left)} left"] if left else []
    return f"  {_first(seen.job)}\n    {', '.join(parts)}, last heard of {_ago(seen.heard, now)}"


def _kept(job: Job) -> Progress | None:
    kept = peek(job.checkpoint)
    return kept if kept is not None and kept.total else None


def _far(done: float, total: float, unit: str) -> str:
    return f"{done:,.{0 if done == int(done) else 1}f}/{total:,.0f} {unit}"


def _ended(seen: Seen, now: float) -> str:
    """Return where a job that failed or stopped has its log, the last lines of it and of the scheduler's, and what to do."""
    job, lines = seen.job, list(seen.lines[-4 * LINES :])
    text = [f"  {_first(job)}", f"    {job.log}, {_ago(seen.logged, now)}:"]
    text += [f"    | {line}" for line in lines[-LINES:] or ["(empty)"]]
    if seen.state == "stopped" and (scheduler := scheduled(job, seen.logged)) is not None:
        ending = tail(scheduler)
        lines += ending
        text += [f"    {scheduler}:", *(f"    | {line}" for line in ending[-LINES:])]
    kept = _kept(job) if seen.kept else None
    saved = f" ({_far(kept.done, kept.total, kept.unit)} are kept)" if kept is not None else ""
    return "\n".join([*text, f"    → {hint(job.rule, lines, seen.state)}{saved}"])


def scheduled(job: Job, logged: float) -> Path | None:
    """Return the SLURM plugin's log of the attempt that wrote to its own log last at `logged`; it keeps those that failed."""
    logs = [path for path in (SLURM_LOGS / f"rule_{job.rule}" / job.wildcards).glob("*.log") if path.is_file()]
    newest = max(logs, key=_modified, default=None)
    return newest if newest is not None and _modified(newest) > logged - FRESH else None


def hint(rule: str, lines: Sequence[str], state: str) -> str:
    """Return what to do about a job that failed or stopped, by what its logs say."""
    text = "\n".join(lines)
    for pattern, remedy in HINTS:
        if re.search(pattern, text):
            return remedy.format(rule=rule)
    if state == "failed":
        return "the log has the whole of it; if it was a fault of the machine, run again"
    if not any(map(SIGNALLED.search, lines)):
        return (
            "it fell silent: killed, or out of memory or time? The cluster's own log says it (SLURM's: "
            f"{SLURM_LOGS}/rule_{rule}); {AGAIN}"
        )
    return AGAIN
