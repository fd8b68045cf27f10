"""The command that runs the cells of an experiment one after another, for wandb's agents or without them."""

import shlex
from pathlib import Path
from typing import Any

import yaml

from wmdd.artifacts import atomic_files
from wmdd.base.errors import WmddError
from wmdd.cli.arguments import Flag, command
from wmdd.tracking import sweep as sweeps
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.launch import experiment_files, snakemake
from wmdd.workflow.layout import Cell

WRITTEN = "# Written by `wmdd sweep`, which writes it anew.\n"


@command
def sweep(
    *files: Path,
    run: Flag = False,
    show: Flag = False,
    output: Path = Path("sweep.yaml"),
    options: str = "",
    dataset: str | None = None,
    teacher: str | None = None,
    method: str | None = None,
    ipc: int | None = None,
    seed: int | None = None,
    student: str | None = None,
    protocol: str | None = None,
) -> None:
    """Write the lists of an experiment file as a sweep of wandb's, or run or show its cells, each a set with its students.

    Args:
        files: the experiment file, or several as of `plan`; study.yaml, or else config/config.yaml, unless given.
        run: the cells, one after another, instead of writing the sweep. wandb's agents call this with the parts of one.
        show: the commands that run the cells, instead.
        output: the sweep (YAML); of several entries of the matrix each has its own, with its number.
        options: of Snakemake, as in --options "--profile slurm".
        dataset: of the cells to run or show; likewise the others. All unless given.
        teacher: see dataset.
        method: see dataset.
        ipc: see dataset.
        seed: see dataset.
        student: see dataset.
        protocol: see dataset.
    """
    paths = experiment_files(files)
    experiment = Experiment.read(*paths)
    parts = {"dataset": dataset, "teacher": teacher, "method": method, "ipc": ipc, "seed": seed}
    parts |= {"student": student, "protocol": protocol}
    wanted = {name: value for name, value in parts.items() if value is not None}
    cells = {cell: made for cell, made in sweeps.cells(experiment).items() if wanted.items() <= cell.parts().items()}
    if not cells:
        raise WmddError(f"the matrix has no cell {_flags(wanted)}; `wmdd sweep --show` lists those that it has")
    words = ["-m", "wmdd", "sweep", *map(str, paths), *([f"--options={options}"] if options else []), "--run"]
    if show:
        for cell in cells:
            print("python", shlex.join(words), _flags(cell.parts()))
    elif run:
        failed = [cell for cell, students in cells.items() if not _ran(experiment, paths, options, cell, students)]
        if failed:
            first = _flags(failed[0].parts())
            raise WmddError(f"{len(failed)} of {len(cells)} cells failed, the first with {first}; see above")
    else:
        _write(experiment, words, output, len(cells))


def _flags(parts: dict[str, Any]) -> str:
    return shlex.join(f"--{name}={value}" for name, value in parts.items())


def _ran(experiment: Experiment, paths: list[Path], options: str, cell: Cell, students: list[str]) -> bool:
    """Run a cell through Snakemake, and return whether it succeeded."""
    tracked = sweeps.begin(experiment, cell)
    status = snakemake(paths, [*shlex.split(options), "--", *students])
    if tracked:
        if not status:
            tracked.score(students)
        tracked.finish(status)
    return not status


def _write(experiment: Experiment, words: list[str], output: Path, cells: int) -> None:
    """Write the sweep of each entry of the matrix, and say how to go on."""
    entries = experiment.file.matrix
    for number, matrix in enumerate(entries, start=1):
        path = output.with_stem(f"{output.stem}-{number}") if len(entries) > 1 else output
        if path.exists() and not path.read_bytes().startswith(WRITTEN.encode()):
            raise WmddError(f"{path} is there already, and `wmdd sweep` did not write it; choose another --output")
        text = yaml.safe_dump(sweeps.sweep(experiment, matrix, words), sort_keys=False, allow_unicode=True)
        atomic_files.write_text(path, WRITTEN + text)
        print(f"wandb sweep {path}    # then start the agent that it names, one in this folder at a time")
    print(f"{cells} cells; without wandb: python {shlex.join(words)}")
