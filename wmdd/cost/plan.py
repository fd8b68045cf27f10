"""Plan: seconds, GPU-hours and bytes of an experiment before it runs, each beside what it can't be less than.

A job takes start + FLOP / rate seconds, with the rate that its stage was measured to reach, and never less than
max(FLOP / peak, bytes moved / bandwidth). On N devices at once the jobs take, in whatever order they become ready,

    max(S / N, L)  to  S / N + (1 - 1 / N) L,       S their sum, L the longest chain of jobs that need each other

(Graham 1969, Bounds on multiprocessing timing anomalies). Which jobs there are, Snakemake says. See docs/use/cost.md.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from wmdd.base.errors import WmddError
from wmdd.base.units import count, hours, seconds, size
from wmdd.cost import rates
from wmdd.cost.laws import work
from wmdd.cost.rates import Device
from wmdd.cost.scene import Shapes, Work
from wmdd.workflow.dag import Job
from wmdd.workflow.stages import ORDER, rank


@dataclass(frozen=True)
class Cost:
    """What a job takes on a device, or some jobs together; NaN is what is not known."""

    images: float = 0.0
    steps: float = 0.0
    flop: float = 0.0
    disk: float = 0.0
    seconds: float = 0.0  # on one device, or one CPU core for what runs no network
    gpu: float = 0.0  # of them on a GPU
    at_peak: float = 0.0  # FLOP / peak: they can't be less
    at_bandwidth: float = 0.0  # bytes moved / bandwidth: nor than this
    decoding: float = 0.0  # seconds of a core that decodes pictures beside them
    passing: float = 0.0  # seconds of the passes through a network alone
    passed_flop: float = 0.0  # FLOP of these
    chained: float = 0.0  # seconds from its begin to its end, where several GPUs share it
    how: str = ""  # the rate is known: measured, scaled, preliminary, assumed


def estimate(job: Work, on: Device) -> Cost:
    """Return what a job takes on a device, or if it runs no network on a core of the CPU."""
    start, core = float(rates.table()["start"]), on if on.kind == "cpu" else rates.device("cpu-core")
    size: dict[str, Any] = {"images": job.images, "steps": job.steps, "flop": job.flop, "disk": job.disk}
    if not job.rated:
        moving = job.moved / core.peak.bytes_per_s
        spent = start + max(job.seconds, moving)
        return Cost(**size, seconds=spent, chained=spent, at_peak=job.flop / core.peak.flops, at_bandwidth=moving)
    rate, how = on.rate(job.rated, job.resolution, job.width)
    passing, moving = job.flop / rate, job.moved / on.peak.bytes_per_s
    decoding = job.decoded / rates.nearest(rates.table()["cpu"]["data"], job.resolution) if job.decoded else 0
    inline = decoding if on.kind == "cpu" and job.rated != "features" else 0  # whose rate was measured with decoding
    spent = start + max(passing, moving, job.seconds) + inline
    return Cost(
        **size, seconds=spent, gpu=spent if on.kind == "cuda" else 0, at_peak=job.flop / on.peak.flops, at_bandwidth=moving,
        decoding=decoding, passing=passing, passed_flop=job.flop, chained=spent / job.gpus, how=how,
    )  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Some jobs of a stage together."""

    dataset: str
    method: str
    ipc: str
    stage: str
    jobs: int
    cost: Cost


@dataclass(frozen=True)
class Plan:
    """What an experiment costs on a device."""

    jobs: tuple[tuple[Job, Cost], ...]
    rows: tuple[Row, ...]  # of each dataset and stage, and of each method and IPC if in detail
    total: Row  # the sum of what is known
    chain: float  # seconds of the longest chain of jobs that need each other
    device: Device
    notes: tuple[str, ...]  # what is to be said

    @property
    def partial(self) -> bool:
        """Whether something is not known, so that the totals are more than they say."""
        return any(math.isnan(row.cost.seconds + row.cost.flop + row.cost.disk) for row in self.rows)

    def with_devices(self, count: int) -> tuple[float, float]:
        """Return the least and the most seconds with so many devices at once."""
        share = self.total.cost.seconds / count
        return max(share, self.chain), share + (1 - 1 / count) * self.chain


def plan(jobs: Sequence[Job], shapes: Shapes, on: Device, detail: bool = False) -> Plan:
    """Return what the jobs of an experiment cost on a device; what runs no network, on a core of a CPU.

    Raises:
        WmddError: the experiment has no jobs, or a network is unknown or does not take the images.
    """
    if not jobs:
        raise WmddError("the experiment has no jobs; list datasets, methods and ipc under `matrix:`")
    costs = [(job, estimate(work(shapes, job.stage, job.cell, job.inputs), on)) for job in jobs]
    groups: dict[tuple[str, str, int, str], list[Cost]] = {}
    for job, cost in costs:
        method, ipc = (job.cell.method or "", job.cell.ipc or 0) if detail else ("", 0)
        groups.setdefault((job.cell.dataset or "", method, ipc, job.stage), []).append(cost)
    order = sorted(groups, key=lambda g: (not g[0], g[0], rank(g[3]), g[1], g[2]))
    rows = [Row(g[0], g[1], str(g[2] or ""), g[3], len(groups[g]), _sum(groups[g])) for g in order]
    total = Row("total", "", "", "", len(jobs), _sum([cost for _, cost in costs], _least))
    return Plan(tuple(costs), tuple(rows), total, _chain(costs), on, tuple(shapes.notes))


def _sum(costs: list[Cost], add: Callable[[list[float]], float] = sum) -> Cost:
    """Return the cost of some jobs together."""
    numbers = [field.name for field in fields(Cost) if field.name != "how"]
    sums = {name: add([getattr(cost, name) for cost in costs]) for name in numbers}
    return Cost(**sums, how=", ".join(sorted({cost.how for cost in costs} - {""})))


def _least(values: list[float]) -> float:
    """Return the sum of what is known; nan where that is 0 and something is not known."""
    return sum(value for value in values if not math.isnan(value)) or sum(values)


def _chain(costs: Iterable[tuple[Job, Cost]]) -> float:
    """Return the seconds of the longest chain of jobs, as far as they are known."""
    by_output = {job.outputs[0]: (job, cost) for job, cost in costs}

    @cache
    def until(output: Path) -> float:
        job, cost = by_output[output]
        return (0.0 if math.isnan(cost.chained) else cost.chained) + max(map(until, job.needs), default=0.0)

    return max(map(until, by_output))


def numbers(plan: Plan) -> dict[str, Any]:
    """Return a plan for programs: rows and total with their sizes, seconds and bytes; None is what is not known."""

    def known(row: Row) -> dict[str, Any]:
        values = asdict(row.cost) | {name: getattr(row, name) for name in ("dataset", "method", "ipc", "stage", "jobs")}
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()
        }

    return {
        "device": plan.device.name, "rows": list(map(known, plan.rows)), "total": known(plan.total),
        "chain": None if math.isnan(plan.chain) else plan.chain, "notes": list(plan.notes),
    }  # fmt: skip


def render(plan: Plan, name: str, parallel: int = 1) -> str:
    """Return the plan of an experiment file as a table in Markdown, with its totals in words."""
    from tabulate import tabulate

    on, rows = plan.device, [*plan.rows, plan.total]
    costs = [row.cost for row in rows]
    numbers = {
        "images": [count(cost.images) for cost in costs],
        "steps": [count(cost.steps) for cost in costs],
        "FLOP": [count(cost.flop) for cost in costs],
        "FLOP/s": [*map(_rate, costs[:-1]), ""],
        "time": [seconds(cost.seconds) for cost in costs],
        "GPU-h": [hours(cost.gpu) for cost in costs],
        "at peak": [seconds(cost.at_peak) for cost in costs],
        "at bandwidth": [seconds(cost.at_bandwidth) for cost in costs],
        "disk": [size(cost.disk) for cost in costs],
    }
    if plan.partial:
        for head in numbers.keys() - {"FLOP/s"}:
            numbers[head][-1] = _more("> ", numbers[head][-1])
    labels = {
        "dataset": [row.dataset for row in rows],
        "method": [row.method for row in rows],
        "IPC": [row.ipc for row in rows],
        "job": [row.stage for row in rows],
        "jobs": [count(row.jobs) for row in rows],
    }
    columns = {head: texts for head, texts in (labels | numbers).items() if any(texts)}
    align = ["left" if head in ("dataset", "method", "job") else "right" for head in columns]
    table = tabulate(columns, "keys", "pipe", colalign=align, disable_numparse=True)
    title = f"{name} on {on.name}: {on.machine}; as if nothing were done yet"
    return "\n".join([title, "", table, "", *_words(plan, parallel)])


def _rate(cost: Cost) -> str:
    """Return the FLOP/s of a row, and how they are known; nothing of what runs no network."""
    rate = cost.passed_flop / cost.passing if cost.passing else math.nan
    return f"{count(rate)} {cost.how}" if cost.how else ""


def _words(plan: Plan, parallel: int) -> list[str]:
    """Return the totals and notes, a line each."""
    on, total, more = plan.device, plan.total.cost, "more than " if plan.partial else ""
    device = f"one {on.name}" if on.kind == "cpu" else f"one {on.name} and one CPU core, in turn"
    lines = [
        f"{plan.total.jobs:,} jobs (and snakemake's target `all`): {_more(more, seconds(total.seconds))} on {device}; "
        f"longest chain {_more(more, seconds(plan.chain))}; {_more(more, size(total.disk))} on disk before compression."
    ]
    if parallel > 1:
        least, most = plan.with_devices(parallel)
        bound = "" if plan.partial else f", {seconds(most)} at most"
        lines.append(f"With {parallel} at once: {_more(more, seconds(least))}{bound}.")
    if on.kind == "cuda":
        spent = _more(more, hours(total.gpu) or "0")
        lines.append(f"{spent} GPU-hours. Jobs without them run on a CPU core (cpu-core).")
        beside = {stage: sum(row.cost.decoding for row in plan.rows if row.stage == stage) for stage in ORDER}
        if decoding := [f"{stage} {seconds(spent)}" for stage, spent in beside.items() if spent]:
            lines.append(
                f"Decoding, not in the times: {', '.join(decoding)} of CPU cores; give these jobs threads to keep up with "
                "the GPU, or store pixels (data.storage)."
            )
    if "assumed" in total.how:
        what = "the slowest measured rate" if on.rates else f"{rates.table()['share']:.0%} of the peak"
        lines.append(f"Assumed: {what} of {on.name}; nothing was measured of that stage.")
    return [line[0].upper() + line[1:] for line in lines] + [f"? {note}" for note in plan.notes]


def _more(prefix: str, text: str) -> str:
    """Put a prefix before a number, if it is one."""
    return f"{prefix}{text}" if text not in ("", "?") else text
