"""The commands that ask Snakemake which jobs there are: the price of a run before it, and its state."""

import json as serial
from pathlib import Path

from wmdd.base.errors import WmddError
from wmdd.cli.arguments import Flag, Positive, command
from wmdd.cost import plan as costs
from wmdd.cost import rates as speeds
from wmdd.cost import resources
from wmdd.cost.scene import Shapes
from wmdd.report import status as states
from wmdd.workflow.dag import jobs
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.launch import experiment_files


@command
def plan(
    *files: Path,
    device: str | None = None,
    rates: Path | None = None,
    parallel: Positive = 1,
    detail: Flag = False,
    json: Flag = False,
) -> None:
    """Print what an experiment will cost before it runs: jobs, FLOP, time, GPU-hours, bytes; and what its jobs ask for.

    Args:
        files: the experiment file; of several the later ones count more, as for Snakemake.
        device: cpu-core, cpu-core-fp32, a100, h100, h200 (wmdd/cost/rates.yaml); a CPU core in the file's precision by default.
        rates: of a machine of your own in place of a device, JSON (docs/use/cost.md).
        parallel: devices that work at once.
        detail: a row for each method and number of images per class.
        json: numbers for programs.
    """
    if rates is not None and device is not None:
        raise WmddError("give --device or --rates, not both")
    paths = experiment_files(files)
    experiment = Experiment.read(*paths)
    default = "cpu-core-fp32" if experiment.file.engine.precision == "fp32" else "cpu-core"
    speed = speeds.device(device or default) if rates is None else speeds.read(rates)
    shapes = Shapes(experiment)  # before the slow question which jobs there are: it refuses a wrong jobs.device
    planned = costs.plan(jobs(*paths, forceall=True), shapes, speed, detail)
    if json:
        print(serial.dumps(costs.numbers(planned), indent=1))
        return
    requests = resources.render(resources.Requests(experiment), planned)
    print(costs.render(planned, _names(paths), parallel), "", requests, sep="\n")


@command
def status(*files: Path, detail: Flag = False, check: Flag = False, json: Flag = False) -> None:
    """Print what is done, runs, waits, has failed or stopped, from the current folder; also while the workflow runs.

    Args:
        files: the experiment file, or several as of `plan`; study.yaml, or else config/config.yaml, unless given.
        detail: all jobs that run or ended early, and why those out of date are.
        check: exit with status 1 if a job has failed or stopped.
        json: for programs.
    """
    paths = experiment_files(files)
    Experiment.read(*paths)
    workflow = states.holder()
    seen = states.look(jobs(*paths), states.markers(), bool(workflow))
    print(serial.dumps(states.facts(seen), indent=1) if json else states.render(seen, _names(paths), workflow, detail))
    if check and any(each.state in ("failed", "stopped") for each in seen):
        raise SystemExit(1)


def _names(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)
