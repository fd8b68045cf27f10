r"""Resources: the time, memory and GPUs that a job asks a scheduler for, from the estimate of its work (laws.py, plan.py).

At the a-th attempt a job asks, with r = 1, 2, 4, 4, ..., for

    runtime = r (3 T + start)                  minutes; T is its time on `jobs.device`, at least 10 in all
    mem_mb  = r 1.3 (base + cuda + A)          A is what it holds: data, images, labels, weights; on a CPU its passes too

(the numbers: `asked` in rates.yaml; docs/use/cost.md). T is that of the plan, but no less than the decoding of pictures takes
on the job's threads, nor than a GPU's steps take to be launched; and images are compressed. Memory is that of the CPU. All
depends on the settings alone: what they don't tell is assumed, and what has no estimate gets a default, so that nothing here
ever stops a workflow.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from wmdd.base.errors import WmddError
from wmdd.base.units import seconds, size
from wmdd.cost import rates
from wmdd.cost.laws import UNKNOWN, work
from wmdd.cost.plan import Plan, estimate
from wmdd.cost.scene import Shapes, Work
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.layout import Cell
from wmdd.workflow.stages import BLOCKS, makers_of, rank

MOST = 2  # doublings: a job that is preempted again and again must stay one that a node can take
IMAGES = (*BLOCKS, *makers_of("images"))  # that write compressed images


class Request(NamedTuple):
    """What a job asks for."""

    runtime: int  # minutes
    mem_mb: int
    gpu: int


class Requests:
    """What the jobs of an experiment ask for."""

    def __init__(self, experiment: Experiment) -> None:
        self._shapes, self._requests = Shapes(experiment, assume=True), dict[tuple[Any, ...], Request]()
        self.device = self._shapes.blocks.device
        self._cpu = experiment.file.engine.device == "cpu"

    def of(
        self, rule: str, wildcards: Mapping[str, str], attempt: int = 1, threads: int = 1, inputs: int = 0
    ) -> Request:
        """Return what a job asks for.

        Args:
            rule: of the job; student, whichever runs it trains.
            wildcards: of the job.
            attempt: 1, 2, 3, ...: once, twice and from then on four times as much.
            threads: of the CPU, that the job is given.
            inputs: how many files it reads; only reports ask for more memory then.
        """
        first = self.first(rule, Cell.of(wildcards), threads, inputs)
        times = 2 ** min(attempt - 1, MOST)
        return Request(times * first.runtime, times * first.mem_mb, first.gpu)

    def first(self, stage: str, cell: Cell, threads: int = 1, inputs: int = 0) -> Request:
        """Return what a job asks for at the first attempt."""
        key = stage, cell, threads, inputs
        if key not in self._requests:
            try:
                job = work(self._shapes, stage, cell, inputs)
            except WmddError:  # of a name that nobody knows; its own command will say so
                job = UNKNOWN
            self._requests[key] = self.asked(stage, job, threads)
        return self._requests[key]

    def asked(self, stage: str, job: Work, threads: int = 1) -> Request:
        """Return what a job of a stage asks for at the first attempt, by its work."""
        on_gpu = bool(job.rated) and not self._cpu
        return Request(
            self._runtime(stage, job, threads), self._memory(stage, job, on_gpu, threads), job.gpus if on_gpu else 0
        )

    def _runtime(self, stage: str, job: Work, threads: int) -> int:
        asked = rates.table()["asked"]["time"]
        start, minutes = float(rates.table()["start"]), asked["unknown"]
        cost = estimate(job, self.device)
        if not math.isnan(cost.seconds):
            spent, together = cost.seconds - start, max(1, threads)
            if job.rated and self.device.kind == "cuda":
                steps = 0 if stage == "recover" else job.steps  # whose are as large as the device likes
                spent = max(spent, cost.decoding / together, asked["step"] * steps) / job.gpus
            elif job.rated:
                spent /= together * job.gpus
            spent += job.disk / asked["gzip"] if stage in IMAGES else 0
            minutes = max(asked["least"], (asked["margin"] * spent + start) / 60)
        return _up(minutes, 5 if minutes <= 60 else 30)

    def _memory(self, stage: str, job: Work, on_gpu: bool, threads: int) -> int:
        asked = rates.table()["asked"]["memory"]
        held = job.memory
        if job.rated and self.device.kind == "cpu":
            # its threads run passes of their own, but in recover of one batch
            held += job.passed * (1 if stage == "recover" else max(1, threads))
        held = 0.0 if math.isnan(held) else held
        more = asked.get(stage.removesuffix("_part"), 0) + (asked["cuda"] if on_gpu else 0)
        return _up(asked["margin"] * (asked["base"] + more + held / 2**20), 100)


def render(requests: Requests, plan: Plan) -> str:
    """Return the jobs of each stage as a table in Markdown: how long the longest takes on a device, and what is asked for."""
    from tabulate import tabulate

    rows = []
    for stage in sorted({job.stage for job, _ in plan.jobs}, key=rank):
        jobs = {job: cost.chained for job, cost in plan.jobs if job.stage == stage}
        first = [requests.first(stage, job.cell, inputs=job.inputs) for job in jobs]
        sizes = {len(job.cell.classes) for job in jobs if job.cell.block}
        longest = math.nan if any(map(math.isnan, jobs.values())) else max(jobs.values())
        rows.append(
            {
                "job": stage,
                "jobs": f"{len(jobs):,}",
                "classes a job": " to ".join(map(str, sorted({min(sizes), max(sizes)}))) if sizes else "",
                f"longest on {plan.device.name}": seconds(longest),
                "time limit": seconds(60.0 * max(request.runtime for request in first)),
                "memory": size(1e6 * max(request.mem_mb for request in first)),
                "GPUs": str(max(request.gpu for request in first) or ""),
            }
        )
    align = ["left", *["right"] * (len(rows[0]) - 1)]
    title = f"The longest job of each rule, and what a scheduler is asked for at first, at most (for {requests.device.name}):"
    return f"{title}\n\n{tabulate(rows, 'keys', 'pipe', colalign=align, disable_numparse=True)}"


def _up(value: float, step: int) -> int:
    """Return the multiple of a step that is not below a value."""
    return step * math.ceil(value / step - 1e-9)
