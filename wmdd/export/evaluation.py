"""Score a distilled set that others made: an experiment file with its controls, run by the workflow in the current folder."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from wmdd.artifacts import atomic_files
from wmdd.base import extras
from wmdd.base.errors import WmddError
from wmdd.settings.base import NAME
from wmdd.settings.imported import ImportSettings
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.experiment_file import NAME_LENGTH, presets
from wmdd.workflow.launch import snakemake
from wmdd.workflow.layout import REPORT

if TYPE_CHECKING:
    import pandas as pd

CONTROLS = ("random", "kmeans-medoid")
FOLDER = "evaluations"  # of the experiment files
TABLE, PAGE = f"{REPORT}/table", f"{REPORT}/index.html"


def method_name(path: Path) -> str:
    """Return the name of a set as a method: that of its file or folder, unless a method that comes with wmdd has it."""
    stem = path.stem if path.is_file() else path.resolve().name
    name = re.sub(r"[^A-Za-z0-9_.+-]+", "-", stem).strip("-.+_")[:NAME_LENGTH] or "set"
    return f"{name}-set" if name in presets().methods else name


def check_name(name: str) -> None:
    """Refuse a name that is a control's, whose images it would replace, or a path.

    Raises:
        WmddError: names it.
    """
    if name in presets().methods or not re.fullmatch(NAME, name):
        raise WmddError(
            f"the set cannot be called {name!r}: choose a name of letters, digits and -_.+ that no method has"
        )


def experiment_of(
    source: ImportSettings,
    ipc: int,
    dataset: str,
    *,
    name: str,
    teacher: str = "resnet18",
    protocols: Sequence[str] = ("paper",),
    students: Sequence[str] = ("resnet18",),
    seeds: int = 3,
    controls: Sequence[str] = CONTROLS,
) -> dict[str, Any]:
    """Return the content of an experiment file that scores a set beside its controls at the same images and steps.

    Args:
        source: where the set is, and how it is meant.
        ipc: its images per class.
        dataset: whose classes it has.
        name: of the set as a method, and of the experiment.
        teacher: that labels it, and by whose features controls are chosen.
        protocols: how students are trained.
        students: networks.
        seeds: of labels and students, and of the controls' images.
        controls: methods beside it.

    Raises:
        WmddError: a method that comes with wmdd has the name.
    """
    check_name(name)
    matrix = {
        "datasets": [dataset],
        "teachers": [teacher],
        "methods": [name, *controls],
        "ipc": [ipc],
        "seeds": list(range(seeds)),
        "students": list(students),
        "protocols": list(protocols),
    }
    images = source.model_dump(mode="json", exclude_defaults=True)
    return {"experiment": name, "matrix": [matrix], "methods": {name: {"family": "import", "images": images}}}


def run(content: dict[str, Any], side: int, configfiles: Sequence[Path] = (), options: Sequence[str] = ()) -> None:
    """Write an experiment file into `evaluations/`, and run the workflow on it.

    Args:
        content: of the file, checked before anything runs.
        side: of the set's images, px.
        configfiles: experiment files with datasets, teachers and so on of your own; the content counts more.
        options: of Snakemake; jobs run here, on all cores, unless they say where.

    Raises:
        WmddError: the experiment is wrong, or the workflow fails.
    """
    path = Path(FOLDER, f"{content['experiment']}.yaml")
    if not configfiles:  # which may say how runs are tracked
        content = content | {"tracking": {"mode": "disabled"}}
    dataset, images = content["matrix"][0]["datasets"][0], content["methods"][content["experiment"]]["images"]
    wanted = Experiment.read(*configfiles, over=content).resolve("data", dataset=dataset).side
    if wanted not in (0, side) and not images.get("resize"):
        raise WmddError(
            f"the set's images are {side} px and those of {dataset} {wanted} px; add --resize, or set data: {{resolution: "
            f"{side}}} for the dataset in a file of yours (--configfile)"
        )
    atomic_files.write_text(path, yaml.safe_dump(content, sort_keys=False))
    print(f"{images['path']} is the method {content['experiment']}; {path} is the experiment", flush=True)
    if snakemake([*configfiles, path], options, quiet=True):
        raise WmddError(
            f"the workflow of {path} failed; its own words stand above, and the same command goes on from there"
        )


@extras.named()
def evaluate(
    images: np.ndarray,
    labels: np.ndarray,
    dataset: str,
    protocol: str = "paper",
    *,
    name: str = "set",
    space: str = "auto",
    configfiles: Sequence[Path] = (),
    options: Sequence[str] = (),
    **choices: Any,
) -> "pd.DataFrame":
    """Score a distilled set that is in memory, beside random real images and medoids at the same number of images and steps.

    The arrays are kept as `evaluations/NAME.npz` in the current folder, where the workflow runs and leaves its results.

    Args:
        images: [N, 3, R, R], uint8, or floats in the given `space`.
        labels: classes [N], or what the set learned: probabilities or logits [N, C].
        dataset: whose classes it has.
        protocol: how students are trained.
        name: of the set as a method.
        space: of the pixels, as of `ImportSettings`; of floats `unit` unless given.
        configfiles: experiment files with datasets, teachers and so on of your own.
        options: of Snakemake.
        choices: teacher, students, seeds, controls, as of `experiment_of`.

    Returns:
        The table of results, a row a method, student and protocol.

    Raises:
        WmddError: the arrays or names are wrong, or the workflow fails.
    """
    import pandas as pd

    images, labels = np.asarray(images), np.asarray(labels)
    if len(images) != len(labels) or not len(images):
        raise WmddError(f"there are {len(images)} images and {len(labels)} labels; give one label an image")
    if space == "auto" and images.dtype != np.uint8:
        space = "unit"
    check_name(name)
    path = Path(FOLDER, f"{name}.npz")
    with atomic_files.atomic(path) as part, part.open("wb") as file:
        np.savez(file, images=images, labels=labels)
    source = ImportSettings(path=str(path), space=space)
    content = experiment_of(source, images_per_class(labels), dataset, name=name, protocols=[protocol], **choices)
    run(content, images.shape[-1], configfiles, options)
    return pd.read_csv(f"{TABLE}.csv")


def images_per_class(labels: np.ndarray) -> int:
    """Return how many images the largest class has, of labels [N] or what was learned [N, C]."""
    classes = labels if labels.ndim == 1 else labels.argmax(1)
    return int(np.unique(classes, return_counts=True)[1].max())
