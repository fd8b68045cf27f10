"""The commands of a study's folder: begin one, run it, and let Snakemake find the profile of a cluster."""

import os
import shutil
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from wmdd.artifacts import atomic_files
from wmdd.base.errors import WmddError
from wmdd.cli.arguments import command
from wmdd.workflow import launch

STUDY = launch.DEFAULTS[0]
WORKFLOW = """# The workflow of the installed package wmdd: `snakemake --configfile study.yaml` runs it here.
from wmdd.workflow.launch import sources


configfile: "study.yaml"


include: str(sources() / "Snakefile")


rule study:
    default_target: True
    input:
        rules.all.input,
"""


@command
def init(folder: Path, /) -> None:
    """Begin a study: a folder with an experiment file, that of the demo, and a Snakefile that runs the installed workflow.

    Args:
        folder: is made; what it holds stays.
    """
    files = {STUDY: (launch.sources() / "config/config.yaml").read_text("utf-8"), Path("Snakefile"): WORKFLOW}
    for name in files:
        if (folder / name).exists():
            raise WmddError(f"{folder / name} is there already; choose another folder")
    for name, text in files.items():
        atomic_files.write_text(folder / name, text)
    print(f"{folder / STUDY} is the experiment. Now: cd {folder} && wmdd run")


@command
def run(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    """Run an experiment in the current folder; what is done already is not done again.

    Args:
        arguments: the experiment file (study.yaml, or else config/config.yaml, unless given), and options of Snakemake, as in
            `wmdd run study.yaml --profile slurm`.
    """
    named = [] if not arguments or arguments[0].startswith("-") else [Path(arguments[0])]
    raise SystemExit(launch.snakemake(launch.experiment_files(named), arguments[len(named) :]))


@command
def profile(name: Literal["slurm"], /) -> None:
    """Let `snakemake --profile slurm` find the profile, which then takes your cluster's partitions.

    Args:
        name: of the profile.
    """
    ours = launch.sources() / "profiles" / name
    place = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config", "snakemake", name)
    in_clone = ours.parents[1] == launch.PACKAGE.parent
    if place.exists() and not (in_clone and place.samefile(ours)):
        raise WmddError(
            f"{place} is there already and is another profile, or a copy that you edited; rename it and call this again"
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    if in_clone:  # so that the profile is edited where it is kept
        place.unlink(missing_ok=True)
        place.symlink_to(ours)
    else:
        shutil.copytree(ours, place)
    print(f"{place}/config.v8+.yaml is the profile; write your cluster's partitions into it")
