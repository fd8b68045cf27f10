"""The command that scores a distilled set which others made."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from wmdd.base.errors import WmddError
from wmdd.cli.arguments import Paths, Positive, command
from wmdd.export import evaluation
from wmdd.settings.imported import ImportSettings, MeaningSettings

Names = Annotated[tuple[str, ...], Parameter(consume_multiple=True)]
MEANING = MeaningSettings()
MOST = 500  # images of a class; more are taken for a whole training set
ANY_SIDE = 32  # px, at which pictures of several sizes are read to be counted


@command
def evaluate(
    path: Path,
    /,
    *snakemake: str,
    dataset: str,
    protocol: Names = ("paper",),
    students: Names = ("resnet18",),
    seeds: Positive = 3,
    teacher: str = "resnet18",
    controls: Names = evaluation.CONTROLS,
    ipc: Positive | None = None,
    name: str | None = None,
    configfile: Paths | None = None,
    settings: MeaningSettings = MEANING,
) -> None:
    """Score a distilled set that others made, beside random real images and medoids at as many images and steps.

    It writes evaluations/NAME.yaml, an experiment file, and runs the workflow on it in the current folder. Lists take blanks
    or commas between their names.

    Args:
        path: of the set's file or folder.
        snakemake: options of Snakemake, behind `--`, as in `-- --profile slurm`; `-- --verbose` shows all that it says.
        dataset: whose classes it has, of `wmdd config` or of --configfile.
        protocol: how students are trained; several are several rows.
        students: networks.
        seeds: of labels and students, and of the controls' images.
        teacher: that labels it, and by whose features controls are chosen.
        controls: methods beside it; `whole` is the whole training set at as many steps.
        ipc: its images per class; counted unless given.
        name: in tables; that of the file unless given.
        configfile: experiment files with datasets, teachers, protocols or students of your own.
    """
    from wmdd.export import foreign

    theirs = foreign.read(path, settings.layout, settings.label_kind, ANY_SIDE if settings.resize else 0)
    labels = theirs.labels if theirs.hard_labels is None else theirs.hard_labels
    counted = evaluation.images_per_class(labels)
    if ipc is None and counted > MOST:
        raise WmddError(
            f"{path} has {counted:,} images of a class: is it a whole training set? Name the distilled set, or say "
            f"--ipc {counted}"
        )
    source = ImportSettings(path=str(path), **settings.model_dump())
    content = evaluation.experiment_of(
        source,
        ipc or counted,
        dataset,
        name=name or evaluation.method_name(path),
        teacher=teacher,
        protocols=_names(protocol),
        students=_names(students),
        seeds=seeds,
        controls=_names(controls),
    )
    evaluation.run(content, theirs.images.shape[-1], configfile or [], snakemake)
    if not {"-n", "--dry-run", "--dryrun"} & {*snakemake}:
        print(Path(f"{evaluation.TABLE}.md").read_text("utf-8"), f"page: {evaluation.PAGE}", sep="\n")


def _names(values: tuple[str, ...]) -> list[str]:
    return [name for value in values for name in value.split(",") if name]
