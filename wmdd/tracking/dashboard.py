"""The wandb dashboard as code: a workspace and a report that compare methods, built and printed without a network.

Those of one experiment show its runs alone, which are a group of wandb's; those without one all runs of the project. Saving
them again replaces them.

`METRICS` is what the stages log (a test runs them); the panels name nothing else.
"""

import hashlib
from typing import TYPE_CHECKING, Any, Literal

from wmdd.base.errors import WmddError
from wmdd.tracking.sync import TAG
from wmdd.tracking.tracker import without_key
from wmdd.workflow.stages import ATOMS, BLOCKS

if TYPE_CHECKING:
    from wandb_workspaces.reports import v2 as wr
    from wandb_workspaces.workspaces import Workspace

NAME = "wmdd: methods compared"
SCORES = ("final/top1", "final/top5", "final/best_top1", "final/best_epoch")
QUALITY = ("cost", "explained", "min_mass", "max_mass", "effective_atoms", "iterations", "gap", "points")
COST = ("cost/seconds", "cost/peak_memory_mb")  # of every stage
TRAINING = ("loss", "lr", "top1", "top5")
METRICS: dict[str, tuple[str, ...]] = {
    "teacher": (*TRAINING, *COST),
    "barycenter": (*(f"mean/{name}" for name in QUALITY), *COST),
    "recover": ("loss", "feature", "batchnorm", "cross_entropy", "images", *COST),
    "select": ("images", *COST),
    "student": (*TRAINING, *SCORES, *COST),
}
CONFIG = ("stage", "dataset", "teacher", "method", "ipc", "seed", "student", "protocol", "cell")


def sections() -> dict[str, tuple[str, list[Any]]]:
    """Return by section the stages, joined by |, whose runs it is of (none: of all), and its panels.

    In a workspace every panel sees the runs of all stages: what several log, as the loss, is grouped by stage.
    """
    from wandb_workspaces.reports import v2 as wr

    def bars(title: str, metric: str, by: str, how: Literal["mean", "sum", "max"] = "mean") -> "wr.BarPlot":
        return wr.BarPlot(
            title=title, metrics=[metric], groupby=wr.Config(by), groupby_aggfunc=how, groupby_rangefunc="stddev"
        )

    def lines(title: str, metric: str, by: str, **more: Any) -> "wr.LinePlot":
        return wr.LinePlot(
            title=title, x="step", y=[metric], groupby=wr.Config(by), groupby_aggfunc="mean", groupby_rangefunc="stddev",
            max_runs_to_show=100, **more,
        )  # fmt: skip

    accuracy = [
        bars("top-1 by method and IPC", "final/top1", "cell"),
        bars("top-5 by method and IPC", "final/top5", "cell"),
        bars("top-1 by method", "final/top1", "method"),
        bars("top-1 by protocol", "final/top1", "protocol"),
        wr.ScatterPlot(
            title="top-1 over IPC", x=wr.Config("ipc"), y=wr.SummaryMetric("final/top1"), log_x=True, running_ymean=True
        ),
    ]
    learning = [
        lines("top-1 while learning", "top1", "cell", metric_regex=r"^(\d+/)?top1$"),
        lines("loss of each stage", "loss", "stage", metric_regex=r"^(\d+/)?loss$"),
    ]
    losses = [
        lines(f"recover: {name}", name, "method", log_y=True) for name in ("feature", "batchnorm", "cross_entropy")
    ]
    transport = [
        bars("W2^2 to the features", "mean/cost", "cell"),
        bars("share of the variance explained", "mean/explained", "cell"),
        bars("effective atoms", "mean/effective_atoms", "cell"),
    ]
    cost = [
        bars("seconds in all", "cost/seconds", "stage", "sum"),
        bars("seconds a job", "cost/seconds", "stage"),
        bars("peak memory, MB", "cost/peak_memory_mb", "stage", "max"),
    ]
    pictures = [wr.MediaBrowser(title="distilled images", media_keys=["images"], num_columns=5)]
    return {
        "Accuracy": ("student", accuracy),
        "Learning curves": ("teacher|student", learning),
        "Distilled images": ("|".join(["select", *BLOCKS]), pictures),
        "Recover": ("recover", losses),
        "Barycenters": ("|".join(ATOMS), transport),
        "Cost": ("", cost),
    }


def workspace(entity: str, project: str, group: str = "") -> "Workspace":
    """Return the saved view of a project, or of the runs of a group of it; its name in wandb is always the same."""
    from wandb_workspaces import workspaces as ws

    view = ws.Workspace(
        entity=entity,
        project=project,
        name=_title(group),
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, (_, panels) in sections().items()],
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=_condition(group),
            pinned_columns=[*(f"config:{name}.value" for name in CONFIG), "summary:final/top1", "summary:final/top5"],
        ),
    )
    view._internal_name = f"nw-{hashlib.sha256(_title(group).encode()).hexdigest()[:11]}-v"  # as wandb names views
    return view


def _title(group: str) -> str:
    return f"{NAME} in {group}"[:128] if group else NAME  # wandb's limit


def _condition(group: str, stages: str = "") -> str:
    """Return the filter for the runs of a group and of stages, joined by |; "" lets all through that are not outdated."""
    of_stages = " or ".join(f"Config('stage') = '{stage}'" for stage in stages.split("|") if stage)
    conditions = [
        f"Tags not in ['{TAG}']",
        f"Group = {group!r}" if group else "",
        f"({of_stages})" if of_stages else "",
    ]
    return " and ".join(filter(None, conditions))


def report(entity: str, project: str, group: str = "", known: bool = False) -> "wr.Report":
    """Return the report; each grid shows the runs of the stages that it is of.

    Args:
        entity: user or team.
        project: of the runs.
        group: of the runs; "" for all.
        known: the project exists and wandb may be asked for it; else the grids leave it open.
    """
    from wandb_workspaces.reports import v2 as wr

    where: dict[str, Any] = {"entity": entity, "project": project} if known else {}
    blocks: list[Any] = [wr.TableOfContents()]
    for name, (stages, panels) in sections().items():
        runs = wr.Runset(name=stages or "all stages", filters=_condition(group, stages), **where)
        blocks += [wr.H1(name), wr.PanelGrid(runsets=[runs], panels=panels)]
    about = "Distilled sets by method and images per class; made by `wmdd dashboard`."
    return wr.Report(
        project=project, entity=entity, title=_title(group), description=about, blocks=blocks, width="fluid"
    )


def dump(entity: str, project: str, group: str = "") -> dict[str, Any]:
    """Return both as they are sent to wandb.

    Raises:
        ModuleNotFoundError: wandb-workspaces is not installed.
    """
    view, page = workspace(entity, project, group)._to_model(), report(entity, project, group)._to_model()
    models = {"workspace": view, "report": page}
    return {name: model.model_dump(mode="json", by_alias=True, exclude_none=True) for name, model in models.items()}


def save(entity: str, project: str, group: str = "") -> list[str]:
    """Save both to wandb, in place of those of an earlier call; return their addresses.

    Args:
        entity: user or team; that of the key where it is "".
        project: of the runs.
        group: of the runs; "" for all.

    Raises:
        ModuleNotFoundError: wandb or wandb-workspaces is not installed.
        WmddError: wandb refused.
    """
    import wandb
    import wandb_workspaces  # noqa: F401  # that it is missing is no refusal of wandb's

    try:
        entity = entity or str(wandb.Api().default_entity)
        view, page = workspace(entity, project, group), report(entity, project, group, known=True)
        view._internal_id = _id_of_view(view)
        saved = [each.id for each in wandb.Api().reports(f"{entity}/{project}") if each.display_name == page.title]
        page.id = saved[0] if saved else ""
        return [str(view.save().url), str(page.save().url)]
    except Exception as error:  # of wandb's many kinds
        reason = without_key(f"{type(error).__name__}: {error}")
        raise WmddError(
            f"wandb did not take the dashboard ({reason}); upload runs with `wmdd sync` first, and see that "
            f"the key may write to {entity or 'your entity'}/{project}"
        ) from None


def _id_of_view(view: "Workspace") -> str:
    """Return the id that a view has in wandb; "" if it was never saved."""
    from wandb_workspaces.workspaces import internal

    try:
        return str(internal.get_view_dict(view.entity, view.project, view._internal_name[3:-2])["id"])
    except ValueError:  # no such view
        return ""
