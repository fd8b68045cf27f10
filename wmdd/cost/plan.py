"""Plan: seconds, GPU-hours and bytes of an experiment before it runs, each beside what it can't be less than.

A job takes start + FLOP / rate seconds, with the rate that its stage was measured to reach, and never less than
max(FLOP / peak, bytes moved / bandwidth). On N devices at once the jobs take, in whatever order they become ready,

    max(S / N, L)  to  S / N + (1 - 1 / N) L,       S their sum, L the longest chain of jobs that need each other

(Graham 1969, Bounds on multiprocessing timing anomalies). See docs/cost.md.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from wmdd import rates
from wmdd.rates import Device
from wmdd.work import Job, Key, Work

ORDER = (  # of the rules in the table
    "data", "teacher", "features_part", "gather", "features", "autoencoder", "encode", "diffusion", "quantize", "decode",
    "barycenter", "recover", "expert", "match", "images", "select", "distance", "decay", "relabel", "student", "grid",
    "distances", "report", "embedding", "page", "table",
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """Seconds of a job, and what they can't be less than.

    Attributes:
        seconds: on one device, or one CPU core for what runs no network.
        at_peak: FLOP / peak.
        at_bandwidth: bytes moved / bandwidth.
        passing: seconds of the passes through a network alone.
        decoding: seconds of a core that decodes pictures beside them.
        how: their rate is known.
    """

    seconds: float
    at_peak: float
    at_bandwidth: float
    passing: float = 0.0
    decoding: float = 0.0
    how: str = ""


def estimate(job: Job, on: Device) -> Estimate:
    """Return what a job takes on a device, or if it runs no network on a core of the CPU."""
    start, core = float(rates.table()["start"]), on if on.kind == "cpu" else rates.device("cpu-core")
    if job.stage is None:
        moving = job.moved / core.bandwidth
        return Estimate(start + max(job.seconds, moving), job.flop / core.flops, moving)
    rate, how = on.rate(job.stage, job.resolution, job.width)
    passing, moving = job.flop / rate, job.moved / on.bandwidth
    decoding = job.decoded / rates.nearest(rates.table()["cpu"]["data"], job.resolution) if job.decoded else 0
    inline = decoding if on.kind == "cpu" and job.stage != "features" else 0  # whose rate was measured with decoding
    spent = start + max(passing, moving, job.seconds) + inline
    return Estimate(spent, job.flop / on.flops, moving, passing, decoding, how)


@dataclass(frozen=True)
class Row:
    """Some jobs of a rule together; NaN is what is not known."""

    dataset: str
    method: str
    ipc: str
    rule: str
    jobs: int
    images: float
    steps: float
    flop: float
    rate: float  # FLOP/s
    how: str  # it is known
    seconds: float
    gpu: float  # of them on a GPU
    decoding: float  # of CPU cores, beside the GPU
    at_peak: float
    at_bandwidth: float
    disk: float


@dataclass(frozen=True)
class Plan:
    """What an experiment costs on a device.

    Attributes:
        rows: of each dataset and rule, and of each method and IPC if in detail.
        total: the sum of what is known.
        chain: seconds of the longest chain of jobs that need each other.
        device: the one.
        notes: what is to be said.
    """

    rows: tuple[Row, ...]
    total: Row
    chain: float
    device: Device
    notes: tuple[str, ...]

    @property
    def partial(self) -> bool:
        """Whether something is not known, so that the totals are more than they say."""
        return any(math.isnan(row.seconds + row.flop + row.disk) for row in self.rows)

    def with_devices(self, count: int) -> tuple[float, float]:
        """Return the least and the most seconds with so many devices at once."""
        share = self.total.seconds / count
        return max(share, self.chain), share + (1 - 1 / count) * self.chain


def plan(work: Work, on: Device, detail: bool = False) -> Plan:
    """Return what the jobs cost on a device; what runs no network, on a core of a CPU."""
    found = {key: (job, estimate(job, on)) for key, job in work.jobs.items()}
    groups: dict[tuple[str, str, str, str], list[Key]] = {}
    for key, job in work.jobs.items():
        dataset, method, ipc = (*job.of, "", "", "")[:3]
        groups.setdefault((dataset, method, ipc, job.rule) if detail else (dataset, "", "", job.rule), []).append(key)
    order = sorted(groups, key=lambda g: (not g[0], g[0], ORDER.index(g[3]), g[1], int(g[2] or 0)))
    rows = tuple(_row(group, [found[key] for key in groups[group]], on, sum) for group in order)
    total = _row(("total", "", "", ""), list(found.values()), on, _least)
    return Plan(rows, total, _chain(found), on, tuple(work.notes))


def _known(values: Iterable[float]) -> float:
    return sum(value for value in values if not math.isnan(value))


def _least(values: Iterable[float]) -> float:
    """Return the sum of what is known; nan where that is 0 and something is not known."""
    values = list(values)
    return _known(values) or sum(values)


Sum = Callable[[Iterable[float]], float]


def _row(group: tuple[str, str, str, str], members: list[tuple[Job, Estimate]], on: Device, total: Sum) -> Row:
    passing = total(cost.passing for job, cost in members if job.stage)
    flop = total(job.flop for job, _ in members if job.stage)
    return Row(
        *group,
        jobs=len(members),
        images=total(job.images for job, _ in members),
        steps=total(job.steps for job, _ in members),
        flop=total(job.flop for job, _ in members),
        rate=flop / passing if passing and group[-1] else math.nan,
        how=", ".join(sorted({cost.how for _, cost in members if cost.how})) if group[-1] else "",
        seconds=total(cost.seconds for _, cost in members),
        gpu=total(cost.seconds for job, cost in members if job.stage and on.kind == "cuda"),
        decoding=total(cost.decoding for _, cost in members) if on.kind == "cuda" else 0,
        at_peak=total(cost.at_peak for _, cost in members),
        at_bandwidth=total(cost.at_bandwidth for _, cost in members),
        disk=total(job.disk for job, _ in members),
    )


def _chain(found: dict[Key, tuple[Job, Estimate]]) -> float:
    """Return the seconds of the longest chain; a job that several GPUs share takes its share of them."""

    @cache
    def until(key: Key) -> float:
        job, cost = found[key]
        return _known([cost.seconds / job.gpus]) + max((until(need) for need in job.needs), default=0.0)

    return max(until(key) for key in found)


def render(plan: Plan, name: str, parallel: int = 1) -> str:
    """Return the plan of an experiment file as a table in Markdown, with its totals in words."""
    from tabulate import tabulate

    on, rows = plan.device, [*plan.rows, plan.total]
    known = {
        "dataset": [row.dataset for row in rows],
        "method": [row.method for row in rows],
        "IPC": [row.ipc for row in rows],
        "job": [row.rule for row in rows],
        "jobs": [count(row.jobs) for row in rows],
        "images": [count(row.images) for row in rows],
        "steps": [count(row.steps) for row in rows],
        "FLOP": [count(row.flop) for row in rows],
        "FLOP/s": [f"{count(row.rate)} {row.how}" if row.how else "" for row in rows],
        "time": [seconds(row.seconds) for row in rows],
        "GPU-h": [hours(row.gpu) for row in rows],
        "at peak": [seconds(row.at_peak) for row in rows],
        "at bandwidth": [seconds(row.at_bandwidth) for row in rows],
        "disk": [size(row.disk) for row in rows],
    }
    columns = {head: texts for head, texts in known.items() if any(texts)}
    if plan.partial:
        for head in columns.keys() & {"images", "steps", "FLOP", "time", "GPU-h", "at peak", "at bandwidth", "disk"}:
            columns[head][-1] = _more("> ", columns[head][-1])
    left = ("dataset", "method", "job")
    table = tabulate(
        columns, "keys", "pipe", colalign=["left" if head in left else "right" for head in columns],
        disable_numparse=True,
    )  # fmt: skip
    return "\n".join(
        [f"{name} on {on.name}: {on.machine}; as if nothing were done yet", "", table, "", *_words(plan, parallel)]
    )


def _words(plan: Plan, parallel: int) -> list[str]:
    """Return the totals and notes, a line each."""
    on, total, more = plan.device, plan.total, "more than " if plan.partial else ""
    place = f"one {on.name}" if on.kind == "cpu" else f"one {on.name} and one CPU core, in turn"
    lines = [
        f"{total.jobs:,} jobs (and snakemake's target `all`): {_more(more, seconds(total.seconds))} on {place}; "
        f"longest chain {_more(more, seconds(plan.chain))}; {_more(more, size(total.disk))} on disk before compression."
    ]
    if parallel > 1:
        least, most = plan.with_devices(parallel)
        bound = "" if plan.partial else f", {seconds(most)} at most"
        lines.append(f"With {parallel} at once: {_more(more, seconds(least))}{bound}.")
    if on.kind == "cuda":
        lines.append(
            f"{_more(more, hours(total.gpu) or '0')} GPU-hours. Jobs without them run on a CPU core (cpu-core)."
        )
        beside = {rule: sum(row.decoding for row in plan.rows if row.rule == rule) for rule in ORDER}
        if decoding := [f"{rule} {seconds(spent)}" for rule, spent in beside.items() if spent]:
            lines.append(
                f"Decoding, not in the times: {', '.join(decoding)} of CPU cores; give these jobs threads to keep up with "
                "the GPU, or store pixels (data.storage)."
            )
    if any("assumed" in row.how for row in plan.rows):
        what = "the slowest measured rate" if on.rates else f"{rates.table()['share']:.0%} of the peak"
        lines.append(f"assumed: {what} of {on.name}; nothing was measured of that stage.")
    return [line[0].upper() + line[1:] for line in lines] + [f"? {note}" for note in plan.notes]


def _more(prefix: str, text: str) -> str:
    """Put a prefix before a number, if it is one."""
    return f"{prefix}{text}" if text not in ("", "?") else text


def count(value: float) -> str:
    """Write a number: whole with commas below ten million, above as 1.45e17; nothing for 0."""
    if math.isnan(value):
        return "?"
    return "" if not value else f"{value:,.0f}" if value < 1e7 else f"{value:.2e}".replace("e+", "e")


def seconds(value: float) -> str:
    """Write a time in s, min or h."""
    if not 0 < value < 7200:
        return f"{hours(value)} h" if value >= 7200 else hours(value)
    if value >= 120:
        return f"{value / 60:.1f} min" if value < 600 else f"{value / 60:.0f} min"
    return f"{value:.0f} s" if value >= 10 else f"{value:.2g} s"


def hours(value: float) -> str:
    """Write a time as hours, without the unit."""
    if math.isnan(value):
        return "?"
    hours = value / 3600
    return "" if not value else f"{hours:,.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2g}"


def size(value: float) -> str:
    """Write bytes in units of powers of a thousand."""
    if math.isnan(value):
        return "?"
    power = min(int(math.log10(max(value, 1)) // 3), 5)
    return f"{value / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[power]}" if value else ""
