"""The commands around tracked runs: upload, dashboard, comparison."""

import json
from pathlib import Path

from wmdd.base import units
from wmdd.base.errors import WmddError
from wmdd.cli.app import app


@app.command
def sync(*, folder: Path = Path("wandb"), dry_run: bool = False) -> None:
    """Upload the offline wandb runs, from a machine with a network, and draw their lineage; again, to go on or for new ones.

    Args:
        folder: that wandb wrote to.
        dry_run: only list what would be uploaded.
    """
    from wmdd.tracking import sync as offline

    runs = offline.find(folder)
    waiting = [run for run in runs if run.state == "waiting"]
    count = {state: sum(run.state == state for run in runs) for state in ("synced", "running")}
    total = units.size(sum(map(offline.size, waiting))) or "0 B"
    print(
        f"{folder}: {len(runs)} offline runs, {count['synced']} uploaded, {count['running']} still running, "
        f"{len(waiting)} to upload ({total})"
    )
    if dry_run:
        print(*(run.file.parent for run in waiting), sep="\n")
        return
    if not waiting and not offline.unlinked(offline.records(folder)):
        return
    offline.check_server()
    offline.upload(waiting)
    import wandb

    edges = offline.link(wandb.Api(), offline.records(folder))
    print(f"uploaded {len(waiting)} runs, linked {edges} inputs")


@app.command
def dashboard(*, entity: str = "", project: str = "", save: bool = False) -> None:
    """Print the wandb workspace and report that compare the runs, as JSON, or save them to wandb.

    Args:
        entity: user or team; WANDB_ENTITY, or the key's own, by default.
        project: WANDB_PROJECT, or wmdd, by default.
        save: upload them; needs a network and a key.
    """
    from wmdd.tracking import dashboard
    from wmdd.tracking.sync import check_server

    if save:
        check_server()
        print(*dashboard.save(entity, project), sep="\n")
    else:
        print(json.dumps(dashboard.dump(entity, project), indent=1))


@app.command
def compare(*results: Path) -> None:
    """Print how students differ in settings and accuracy: mean, standard deviation, difference to the first with its interval.

    Args:
        results: two or more; each a result file of a student or a folder of them, as results/digits/convnet2-w32/wmdd/ipc10.
    """
    from wmdd.report.compare import Side, render

    if len(results) < 2:
        raise WmddError("compare takes two results or more; name folders or run*.json of students")
    print(render([Side.read(path) for path in results]))
