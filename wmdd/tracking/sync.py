"""Offline wandb runs to wandb's server, from a machine that has a network: what is not there yet, then the lineage.

`wandb sync` uploads, several runs at a time, and goes on where it was cut off. Offline no run can say what it used, so each
artifact carries the digests of its inputs (see `wmdd.tracking.artifact`); once all are uploaded they become wandb's edges. Both
leave a mark beside the run, so that a second call goes on where the first one ended.
"""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmdd.artifacts.atomic_files import read_json
from wmdd.base.errors import WmddError
from wmdd.tracking.artifact import RECORD
from wmdd.tracking.tracker import without_key

WANDB = [sys.executable, "-m", "wandb"]
LINKED = f"{RECORD}.linked"
OUTDATED = f"{RECORD}.outdated"
TAG = "outdated"  # of a run whose output was made again with other settings or inputs
QUIET = 900.0  # s without a change, after which a run without an end counts as dead
PATIENCE = 10.0  # s for the server's first answer


@dataclass(frozen=True)
class Run:
    """What an offline job left: its data, and the state of them: `synced`, `running` or `waiting`."""

    file: Path
    state: str

    @property
    def marker(self) -> Path:
        """Return the file by which wandb remembers that it has uploaded this."""
        return _marker(self.file)


def _marker(file: Path) -> Path:
    return file.with_name(f"{file.name}.synced")


def find(folder: Path) -> list[Run]:
    """Return the offline runs of a wandb folder in the order of their start.

    What a run has written after its upload is uploaded again. Parts of one run go together: none while it runs.

    Raises:
        WmddError: there is no such folder.
    """
    if not folder.is_dir():
        raise WmddError(f"there is no folder {folder}; give --folder the one that wandb wrote its offline runs to")
    files = sorted(folder.glob("offline-run-*/run-*.wandb"))
    running = {file.stem for file in files if _may_grow(file)}
    return [Run(file, _state(file, running)) for file in files]


def _state(file: Path, running: set[str]) -> str:
    marker = _marker(file)
    if marker.exists() and marker.stat().st_mtime >= file.stat().st_mtime:
        return "synced"
    return "running" if file.stem in running else "waiting"


def _may_grow(file: Path) -> bool:
    """Return whether a run may still be written to: it has not said what it made, and is not quiet for long."""
    return not (file.parent / RECORD).exists() and time.time() - file.stat().st_mtime < QUIET


def size(run: Run) -> int:
    """Return how many bytes a run has to upload, the distilled set that it refers to included."""
    total = sum(path.stat().st_size for path in run.file.parent.rglob("*") if path.is_file())
    record = run.file.parent / RECORD
    if record.exists() and (artifact := read_json(record))["kind"] == "images":
        images = Path(artifact["path"])
        total += images.stat().st_size if images.exists() else 0
    return total


def check_server() -> None:
    """Refuse to begin where wandb would ask for a key or wait for a network.

    Raises:
        WmddError: names the remedy.
    """
    url = os.environ.get("WANDB_BASE_URL") or _default_server()
    if not _has_key(url):
        raise WmddError(f"there is no API key for {url}; run `wandb login` once, or set WANDB_API_KEY")
    try:
        urllib.request.urlopen(url, timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return  # it has answered
    except (OSError, ValueError) as error:
        reason = without_key(str(getattr(error, "reason", error)))
        raise WmddError(
            f"{url} does not answer ({reason}); run this where there is a network, as on a login node, "
            "or set HTTPS_PROXY or WANDB_BASE_URL"
        ) from None


def _default_server() -> str:
    import wandb

    return str(wandb.setup().settings.base_url)


def _has_key(url: str) -> bool:
    from requests.utils import get_netrc_auth

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    return get_netrc_auth(url) is not None


def upload(runs: list[Run]) -> None:
    """Let `wandb sync` upload runs, several at a time and the parts of one in order, and print what it says.

    It is given each run's folder: in the folder of all, `latest-run` leads to one that may change meanwhile.

    Raises:
        WmddError: some were refused.
    """
    for run in runs:
        run.marker.unlink(missing_ok=True)  # of an earlier upload, since which the run went on
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    command = [*WANDB, "sync", *(str(run.file.parent) for run in runs)]
    reason = ""
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            if line.strip():
                reason = without_key(line)
                print(reason, file=sys.stderr, flush=True)
    refused = [run for run in runs if not run.marker.exists()]
    if refused:
        reason = reason or f"wandb sync ended with {process.returncode}"
        raise WmddError(
            f"{len(runs) - len(refused)} of {len(runs)} runs are uploaded, not {refused[0].file.parent} ({reason}); "
            "mend it and run this again: what is done stays done"
        )


def records(folder: Path) -> list[Path]:
    """Return what the runs of a folder have made, uploaded runs only, in the order of their start."""
    online = folder.glob(f"run-*/{RECORD}")
    offline = [run.file.parent / RECORD for run in find(folder) if run.state == "synced"]
    return sorted([*online, *(path for path in offline if path.exists())])


def unlinked(paths: Iterable[Path]) -> list[Path]:
    """Return those whose inputs are not wandb's edges yet."""
    return [path for path in paths if not path.with_name(LINKED).exists()]


def link(api: Any, paths: list[Path]) -> int:
    """Tell wandb which artifacts each run used; return how many edges there are.

    Inputs that no run of the folder made, as those of another machine, stay in the artifact's metadata alone.

    Args:
        api: wandb.Api().
        paths: of `records`.

    Raises:
        WmddError: at the end, when wandb refused some.
    """
    artifacts = {path: read_json(path) for path in paths}
    makers = {(_project(a), digest): a for a in artifacts.values() for digest in a["outputs"].values()}
    edges, failed, reason = 0, 0, ""
    for path in unlinked(paths):
        try:
            edges += _link(api, artifacts[path], makers)
            path.with_name(LINKED).touch()
        except Exception as error:  # of wandb's many kinds
            failed, reason = failed + 1, without_key(str(error))
    if failed:
        raise WmddError(f"the inputs of {failed} runs are not linked ({reason}); run this again")
    return edges


def _link(api: Any, artifact: dict[str, Any], makers: dict[tuple[str, str], dict[str, Any]]) -> int:
    """Link one run to the artifacts that it used."""
    inputs = dict(artifact["inputs"])
    digests = [
        digest for digest in [*inputs.pop("parts", []), *inputs.values()] if (_project(artifact), digest) in makers
    ]
    for digest in digests:
        maker = makers[_project(artifact), digest]
        run = api.run(f"{_project(artifact)}/{artifact['run']}")  # wandb keeps it
        run.use_artifact(api.artifact(f"{_project(maker)}/{maker['name']}:{digest[:16]}", type=maker["kind"]))
    return len(digests)


def _project(artifact: dict[str, Any]) -> str:
    """Return the project of a run, with the user or team that the experiment names."""
    return "/".join(filter(None, [artifact.get("entity"), artifact["project"]]))


def mark(api: Any, paths: list[Path]) -> int:
    """Tag the runs whose output a later run has made again, so that charts leave them out; return how many are new.

    A setting that is set back takes the tag from the run that it belongs to.

    Args:
        api: wandb.Api().
        paths: of `records`, in the order of their start.

    Raises:
        WmddError: wandb refused.
    """
    artifacts = {path: read_json(path) for path in paths}
    latest = {artifact.get("output"): artifact["run"] for artifact in artifacts.values()}
    tagged = 0
    for path, artifact in artifacts.items():
        marker, outdated = path.with_name(OUTDATED), latest[artifact.get("output")] != artifact["run"]
        if "output" not in artifact or marker.exists() == outdated:  # of an earlier version, or as it should be
            continue
        try:
            run = api.run(f"{_project(artifact)}/{artifact['run']}")
            run.tags = [tag for tag in run.tags if tag != TAG] + [TAG] * outdated
            run.update()
        except Exception as error:  # of wandb's many kinds
            raise WmddError(
                f"the tag of {path.parent} is not set ({without_key(str(error))}); run this again"
            ) from None
        if outdated:
            marker.touch()
        else:
            marker.unlink()
        tagged += outdated
    return tagged
