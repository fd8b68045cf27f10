r"""Resources: the time, memory and GPUs that a job asks a scheduler for, from the estimate of its work (wmdd/work.py, plan.py).

At the a-th attempt a job asks, with r = 1, 2, 4, 4, ..., for

    runtime = r (3 T + start)                  minutes; T is its time on `jobs.device`, at least 10 in all
    mem_mb  = r 1.3 (base + cuda + A)          A is what it holds: data, images, labels, weights; on a CPU its passes too

(the numbers: `asked` in rates.yaml; docs/cost.md). T is that of the plan, but no less than the decoding of pictures takes on
the job's threads, nor than a GPU's steps take to be launched; and images are compressed. Memory is that of the CPU. All depends
on the settings alone: what they don't tell is assumed, and what has no estimate gets a default, so that nothing here ever stops
a workflow.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

from wmdd import rates
from wmdd.config import Experiment
from wmdd.plan import ORDER, estimate, seconds, size
from wmdd.rates import Device
from wmdd.work import Job, Key, Work, size_of, work

TEACHER = ("dataset", "teacher", "seed")
CELL = ("dataset", "teacher", "method", "ipc", "seed")
GENERATOR = ("dataset", "generator", "seed")
WILDCARDS = {  # of each rule, in the order of the keys of `wmdd.work`
    "data": ("dataset",),
    "teacher": TEACHER,
    "features": TEACHER,
    "features_part": (*TEACHER, "block"),
    "gather": TEACHER,
    "barycenter": (*CELL, "block"),
    "recover": (*CELL, "block"),
    "images": CELL,
    "select": CELL,
    "autoencoder": GENERATOR,
    "encode": (*GENERATOR, "block"),
    "diffusion": GENERATOR,
    "quantize": (*CELL, "block"),
    "decode": (*CELL, "block"),
    "expert": ("dataset", "expert", "seed"),
    "match": (*CELL, "block"),
    "distance": CELL,
    "decay": GENERATOR,
    "relabel": (*CELL, "protocol"),
    "student": (*CELL, "student", "protocol"),
    "grid": CELL,
    "distances": (),
    "report": (),
    "embedding": ("dataset", "teacher"),
    "page": (),
    "table": ("table",),
}
MOST = 2  # doublings: a job that is preempted again and again must stay one that a node can take
IMAGES = ("recover", "decode", "match", "images", "select")  # that write compressed images


class Request(NamedTuple):
    """What a job asks for."""

    runtime: int  # minutes
    mem_mb: int
    gpu: int


class Requests:
    """What the jobs of an experiment ask for."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment, self._found = experiment, dict[tuple[Any, ...], Request]()
        self.device = experiment.device

    @cached_property
    def jobs(self) -> dict[Key, Job]:
        """The jobs of the matrix, by the settings alone; of the jobs of a distilled set's students the first stands for all."""
        found = work(self._experiment, assume=True).jobs
        return {key[:-1] if key[0] == "student" else key: job for key, job in reversed(found.items())}

    def of(self, rule: str, wildcards: Mapping[str, str], attempt: int = 1, threads: int = 1) -> Request:
        """Return what a job asks for.

        Args:
            rule: of the job; student, whichever runs it trains.
            wildcards: of the job.
            attempt: 1, 2, 3, ...: once, twice and from then on four times as much.
            threads: of the CPU, that the job is given.
        """
        key = (rule, *(str(wildcards[name]) for name in WILDCARDS[rule]))
        if (found := self._found.get((key, threads))) is None:
            found = self._found[key, threads] = self.asked(self.jobs.get(key) or self._stranger(rule), threads)
        times = 2 ** min(attempt - 1, MOST)
        return Request(times * found.runtime, times * found.mem_mb, found.gpu)

    def _stranger(self, rule: str) -> Job:
        """Return what stands for a job that is not of the matrix: as large as the largest of its rule, of unknown length."""
        memory = max((job.memory for job in self.jobs.values() if job.rule == rule), default=0.0)
        return Job(rule, seconds=math.nan, flop=math.nan, memory=memory)

    def asked(self, job: Job, threads: int = 1) -> Request:
        """Return what a job asks for at the first attempt."""
        on_gpu = self._experiment.file.engine.device != "cpu" and job.stage is not None
        return Request(self._runtime(job, threads), self._memory(job, on_gpu, threads), job.gpus if on_gpu else 0)

    def _runtime(self, job: Job, threads: int) -> int:
        asked = rates.table()["asked"]["time"]
        start, minutes = float(rates.table()["start"]), asked["unknown"]
        cost = estimate(job, self.device)
        if not math.isnan(cost.seconds):
            spent, together = cost.seconds - start, max(1, threads)
            if job.stage is not None and self.device.kind == "cuda":
                steps = 0 if job.stage == "recover" else job.steps  # whose are as large as the device likes
                spent = max(spent, cost.decoding / together, asked["step"] * steps) / job.gpus
            elif job.stage is not None:
                spent /= together * job.gpus
            spent += job.disk / asked["gzip"] if job.rule in IMAGES else 0
            minutes = max(asked["least"], (asked["margin"] * spent + start) / 60)
        return _up(minutes, 5 if minutes <= 60 else 30)

    def _memory(self, job: Job, on_gpu: bool, threads: int) -> int:
        asked = rates.table()["asked"]["memory"]
        held = 0.0 if math.isnan(job.memory) else job.memory
        if job.stage is not None and self.device.kind == "cpu":
            # its threads run passes of their own, but in recover of one batch
            passed = job.passed * (1 if job.stage == "recover" else max(1, threads))
            held += 0.0 if math.isnan(passed) else passed
        more = asked.get(job.rule.removesuffix("_part"), 0) + (asked["cuda"] if on_gpu else 0)
        return _up(asked["margin"] * (asked["base"] + more + held / 2**20), 100)


def render(requests: Requests, planned: Work, on: Device) -> str:
    """Return the jobs of each rule as a table in Markdown: how long the longest takes on a device, and what is asked for."""
    from tabulate import tabulate

    rows = []
    for rule in ORDER:
        jobs = {key: job for key, job in planned.jobs.items() if job.rule == rule}
        asked = [requests.asked(job) for key, job in requests.jobs.items() if key[0] == rule]
        if not jobs:
            continue
        spent = [estimate(job, on).seconds / job.gpus for job in jobs.values()]
        rows.append(
            {
                "job": rule,
                "jobs": f"{len(jobs):,}",
                "classes a job": _sizes([key[-1] for key in jobs]),
                f"longest on {on.name}": seconds(math.nan if any(map(math.isnan, spent)) else max(spent)),
                "time limit": seconds(60.0 * max(each.runtime for each in asked)),
                "memory": size(1e6 * max(each.mem_mb for each in asked)),
                "GPUs": str(max(each.gpu for each in asked) or ""),
            }
        )
    align = ["left", *["right"] * (len(rows[0]) - 1)]
    title = f"The longest job of each rule, and what a scheduler is asked for at first, at most (for {requests.device.name}):"
    table = tabulate(rows, "keys", "pipe", colalign=align, disable_numparse=True)
    return f"{title}\n\n{table}"


def _sizes(blocks: list[str]) -> str:
    """Return from how many to how many classes blocks have, or nothing for what are none."""
    found = [size_of(block) for block in blocks if block.startswith("classes")]
    least, most = min(found, default=0), max(found, default=0)
    return "" if not found else str(most) if least == most else f"{least} to {most}"


def _up(value: float, step: int) -> int:
    """Return the multiple of a step that is not below a value."""
    return step * math.ceil(value / step - 1e-9)
