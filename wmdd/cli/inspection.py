"""The commands that say what there is: classes of an artifact, settings, the schema of experiment files."""

import json
from pathlib import Path

import yaml

from wmdd.base.errors import WmddError
from wmdd.cli.arguments import command
from wmdd.cli.readers import read_meta
from wmdd.cost.blocks import Blocks
from wmdd.report.show_settings import resolved
from wmdd.workflow import experiment_file
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.launch import experiment_files


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
def config(*files: Path, stage: str | None = None) -> None:
    """Print the merged, resolved settings of every run of an experiment, as YAML.

    Args:
        files: the experiment file, or several as of `plan`.
        stage: of which alone.
    """
    experiment = Experiment.read(*experiment_files(files))
    Blocks(experiment)  # refuses a wrong jobs.device
    print(yaml.safe_dump(resolved(experiment, stage), sort_keys=False, width=120), end="")


@command
def schema() -> None:
    """Print the JSON schema of experiment files, for editors that complete and check YAML."""
    print(json.dumps(experiment_file.schema(), indent=1))
