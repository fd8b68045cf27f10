"""The commands around tracked runs: upload and dashboard."""

import json
import os
from pathlib import Path

from wmdd.base import units
from wmdd.cli.arguments import Flag, command
from wmdd.tracking import dashboard as views
from wmdd.tracking import sync as offline
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.launch import DEFAULTS


@command
def sync(*, folder: Path | None = None, dry_run: Flag = False) -> None:
    """Upload the offline wandb runs, from a machine with a network, and draw their lineage; again, to go on or for new ones.

    Runs whose output was made again with other settings get a tag, by which the dashboard leaves them out.

    Args:
        folder: that wandb wrote to; $WANDB_DIR/wandb unless given, or wandb.
        dry_run: only list what would be uploaded.
    """
    folder = folder or Path(os.environ.get("WANDB_DIR", ""), "wandb")
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

    api, records = wandb.Api(), offline.records(folder)
    edges, outdated = offline.link(api, records), offline.mark(api, records)
    print(f"uploaded {len(waiting)} runs, linked {edges} inputs, tagged {outdated} runs as {offline.TAG}")


@command
def dashboard(*files: Path, entity: str = "", project: str = "", save: Flag = False) -> None:
    """Print the wandb workspace and report that compare the runs of an experiment, as JSON, or save them to wandb.

    Args:
        files: the experiment file, or several as of `plan`; study.yaml, or else config/config.yaml, unless given. Where there
            is none, all runs of the project are compared.
        entity: user or team; WANDB_ENTITY, the file's, or the key's own by default.
        project: WANDB_PROJECT, the file's, or wmdd by default.
        save: upload them, in place of earlier ones; needs a network and a key.
    """
    paths = files or [path for path in DEFAULTS if path.is_file()][:1]
    file = Experiment.read(*paths).file
    flags = {"WANDB_ENTITY": entity, "WANDB_PROJECT": project}
    variables = file.tracking.environment() | {"WANDB_RUN_GROUP": file.experiment if paths else ""}
    where = [
        flags.get(name) or os.environ.get(name) or variables.get(name, "")
        for name in ("WANDB_ENTITY", "WANDB_PROJECT", "WANDB_RUN_GROUP")
    ]
    if save:
        offline.check_server()
        print(*views.save(*where), sep="\n")
    else:
        print(json.dumps(views.dump(*where), indent=1))
