"""The resolved settings of an experiment, as `wmdd config` prints them."""

from typing import Any

from wmdd.base.errors import WmddError
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.stages import KEYS, SETTINGS


def resolved(experiment: Experiment, stage: str | None = None) -> dict[str, Any]:
    """Return the settings of each stage of each dataset, teacher, method and protocol of the matrix.

    Raises:
        WmddError: there is no such stage.
    """
    if stage not in (None, *SETTINGS):
        raise WmddError(f"unknown stage {stage!r}; one of {', '.join(SETTINGS)}")
    content: dict[str, Any] = {"experiment": experiment.file.experiment, "engine": experiment.file.engine.model_dump()}

    for run in experiment.runs():
        for name in SETTINGS if stage is None else (stage,):
            for cell in experiment.cells(name, run):
                settings = experiment.settings(name, cell).model_dump(mode="json")
                content.setdefault(name, {})[" ".join(getattr(cell, key) for key in KEYS[name])] = settings
    content["runs"] = len(list(experiment.runs()))
    return content
