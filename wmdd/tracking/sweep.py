"""A wandb sweep over the lists of an experiment file, whose agents run one cell of the matrix after another.

An entry of the matrix is the product of its lists, as is a sweep of wandb's method `grid`: each entry is a sweep. A cell is a
distilled set with a student and a protocol; all its runs go together. Its run in the sweep has its settings and mean scores,
the jobs that made them are runs of their own.
"""

import os
from pathlib import Path
from typing import Any

from wmdd.artifacts.atomic_files import read_json
from wmdd.tracking.tracker import WandbTracker, complain
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.experiment_file import Matrix
from wmdd.workflow.layout import Cell, path_of
from wmdd.workflow.stages import SETTINGS, STAGES

SCORES = ("top1", "top5")  # of 1; a run's are called cell/top1, so that no chart of students mixes them with final/top1
AGENT = (
    "WANDB_RUN_ID",
    "WANDB_SWEEP_ID",
    "WANDB_SWEEP_PARAM_PATH",
    "WANDB_SERVICE",
)  # what wandb tells an agent's command


def axes(experiment: Experiment, matrix: Matrix) -> dict[str, list[Any]]:
    """Return the values of each part of the cells of an entry of the matrix, but for the runs, which a cell has all of."""
    return {name: [*dict.fromkeys(values)] for name, values in experiment.axes(matrix).items() if name != "run"}


def cells(experiment: Experiment) -> dict[Cell, list[str]]:
    """Return the results of the students of each cell of the matrix, in their order."""
    students: dict[Cell, list[str]] = {}
    for run in experiment.runs():
        students.setdefault(run.having(run=None), []).append(path_of("student", run))
    return students


def sweep(experiment: Experiment, matrix: Matrix, command: list[str]) -> dict[str, Any]:
    """Return the sweep over an entry of the matrix, as `wandb sweep` reads it.

    Args:
        experiment: with the entry.
        matrix: the entry.
        command: runs a cell, whose parts come after it as flags.
    """
    tracking = experiment.file.tracking
    where = {"project": tracking.project} | ({"entity": tracking.entity} if tracking.entity else {})
    return where | {
        "name": " ".join(filter(None, [experiment.file.experiment, matrix.name])),
        "program": "wmdd",
        "method": "grid",
        "metric": {"name": f"cell/{SCORES[0]}", "goal": "maximize"},
        "parameters": {name: {"values": values} for name, values in axes(experiment, matrix).items()},
        "command": ["${env}", "${interpreter}", *command, "${args}"],
    }


class AgentsRun(WandbTracker):
    """The run of the sweep that wandb's agent has begun and told this process of."""

    def __init__(self, experiment: Experiment, cell: Cell) -> None:
        import wandb

        self._wandb = wandb
        self._stage, self._complained = "sweep", False
        self._run = wandb.init(
            group=experiment.file.experiment,
            job_type="sweep",
            mode="online",  # as the agent is, whatever the jobs are
            config={"stage": "sweep"} | cell.parts() | _settings(experiment, cell),
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )

    def score(self, students: list[str]) -> None:
        """Record the mean scores of the cell."""
        results = [read_json(Path(path))["result"] for path in students]
        self.log({f"cell/{name}": sum(result[name] for result in results) / len(results) for name in SCORES})


def _settings(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    """Return the settings of all stages of a cell."""
    return {
        f"{stage}/{name}": value
        for stage in SETTINGS
        if stage in STAGES
        for each in experiment.cells(stage, cell)
        for name, value in experiment.settings(stage, each).model_dump(mode="json").items()
    }


def begin(experiment: Experiment, cell: Cell) -> AgentsRun | None:
    """Return the run of the sweep, if an agent called this. Jobs, which have their own runs, aren't told what it told us."""
    run = None
    if "WANDB_SWEEP_ID" in os.environ:
        try:
            run = AgentsRun(experiment, cell)
        except Exception as error:
            complain("sweep", "start", error)
    for name in AGENT:
        os.environ.pop(name, None)
    return run
