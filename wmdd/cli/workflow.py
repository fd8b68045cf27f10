"""The commands that ask Snakemake which jobs there are: the price of a run before it, and its state."""

from pathlib import Path

from wmdd.base.errors import WmddError
from wmdd.cli.arguments import Paths, Positive, command
from wmdd.cost import plan as costs
from wmdd.cost import rates as speeds
from wmdd.cost import resources
from wmdd.cost.scene import Shapes
from wmdd.report.status import holder, look, markers, render
from wmdd.workflow.dag import jobs
from wmdd.workflow.experiment import Experiment


@command
def plan(
    *,
    configfile: Paths,
    device: str | None = None,
    rates: Path | None = None,
    parallel: Positive = 1,
    detail: bool = False,
) -> None:
    """Print what an experiment will cost before it runs: jobs, FLOP, time, GPU-hours, bytes; and what its jobs ask for.

    Args:
        configfile: the experiment file; of several the later ones count more, as for Snakemake.
        device: cpu-core, cpu-core-fp32, a100, h100, h200 (wmdd/cost/rates.yaml); a CPU core in the file's precision by default.
        rates: of a machine of your own in place of a device, JSON (docs/cost.md).
        parallel: devices that work at once.
        detail: a row for each method and number of images per class.
    """
    if rates is not None and device is not None:
        raise WmddError("give --device or --rates, not both")
    experiment = Experiment.read(*configfile)
    default = "cpu-core-fp32" if experiment.file.engine.precision == "fp32" else "cpu-core"
    speed = speeds.device(device or default) if rates is None else speeds.read(rates)
    shapes = Shapes(experiment)  # before the slow question which jobs there are: it refuses a wrong jobs.device
    planned = costs.plan(jobs(*configfile, forceall=True), shapes, speed, detail)
    requests = resources.render(resources.Requests(experiment), planned)
    print(costs.render(planned, _names(configfile), parallel), "", requests, sep="\n")


@command
def status(*, configfile: Paths | None = None, detail: bool = False) -> None:
    """Print what is done, runs, waits, has failed or stopped, from the current folder; also while the workflow runs.

    Args:
        configfile: as of `plan`; config/config.yaml unless given.
        detail: all jobs that run or ended early, and why those out of date are.
    """
    files = configfile or [Path("config/config.yaml")]
    Experiment.read(*files)
    workflow = holder()
    print(render(look(jobs(*files), markers(), bool(workflow)), _names(files), workflow, detail))


def _names(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)
