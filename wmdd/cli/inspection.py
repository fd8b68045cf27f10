"""The commands that say what there is: classes of an artifact, settings, the schema, the price and the state of a run."""

import json
from pathlib import Path

from wmdd.base.errors import WmddError
from wmdd.cli.arguments import Positive, command
from wmdd.cli.readers import read_meta


@command
def manifest(file: Path) -> None:
    """Print the classes of any artifact: index, folder, readable name; and of a dataset how many pictures each has."""
    meta = read_meta(file)
    if "classes" not in meta:
        raise WmddError(f"{file} has no classes; give a file of the stages data to images")
    counts = meta.get("counts", {})
    print("index\tfolder\tname" + "".join(f"\t{split}" for split in counts))
    for index, row in enumerate(zip(meta["classes"], meta["names"], *counts.values(), strict=True)):
        print(index, *row, sep="\t")


@command
def config(file: Path, *, stage: str | None = None) -> None:
    """Print the merged, resolved settings of every run of an experiment file, as YAML."""
    import yaml

    from wmdd.cost.blocks import Blocks
    from wmdd.report.show_settings import resolved
    from wmdd.workflow.experiment import Experiment

    experiment = Experiment.read(file)
    Blocks(experiment)  # refuses a wrong jobs.device
    print(yaml.safe_dump(resolved(experiment, stage), sort_keys=False, width=120), end="")


@command
def schema() -> None:
    """Print the JSON schema of experiment files, for editors that complete and check YAML."""
    from wmdd.workflow import experiment_file

    print(json.dumps(experiment_file.schema(), indent=1))


@command
def plan(
    *,
    configfile: Path,
    device: str | None = None,
    rates: Path | None = None,
    parallel: Positive = 1,
    detail: bool = False,
) -> None:
    """Print what an experiment will cost before it runs: jobs, FLOP, time, GPU-hours, bytes; and what its jobs ask for.

    Args:
        configfile: the experiment file.
        device: cpu-core, cpu-core-fp32, a100, h100, h200 (wmdd/cost/rates.yaml); a CPU core in the file's precision by default.
        rates: of a machine of your own in place of a device, JSON (docs/cost.md).
        parallel: devices that work at once.
        detail: a row for each method and number of images per class.
    """
    from wmdd.cost import plan as costs
    from wmdd.cost import rates as speeds
    from wmdd.cost import resources
    from wmdd.cost.scene import Shapes
    from wmdd.workflow.dag import jobs
    from wmdd.workflow.experiment import Experiment

    if rates is not None and device is not None:
        raise WmddError("give --device or --rates, not both")
    experiment = Experiment.read(configfile)
    default = "cpu-core-fp32" if experiment.file.engine.precision == "fp32" else "cpu-core"
    speed = speeds.device(device or default) if rates is None else speeds.read(rates)
    shapes = Shapes(experiment)  # before the slow question which jobs there are: it refuses a wrong jobs.device
    planned = costs.plan(jobs(configfile, forceall=True), shapes, speed, detail)
    requests = resources.render(resources.Requests(experiment), planned)
    print(costs.render(planned, configfile.name, parallel), "", requests, sep="\n")


@command
def status(*, configfile: Path = Path("config/config.yaml"), detail: bool = False) -> None:
    """Print what is done, runs, waits, has failed or stopped, from the current folder; also while the workflow runs.

    Args:
        configfile: the experiment file.
        detail: all jobs that run or ended early, and why those out of date are.
    """
    from wmdd.report.status import holder, look, markers, render
    from wmdd.workflow.dag import jobs
    from wmdd.workflow.experiment import Experiment

    Experiment.read(configfile)
    workflow = holder()
    print(render(look(jobs(configfile), markers(), bool(workflow)), configfile.name, workflow, detail))
