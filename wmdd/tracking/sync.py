"""Offline wandb runs to wandb's server, from a machine that has a network: what is not there yet, then the lineage.

wandb's own `wandb sync` uploads. Offline no run can say what it used, so each artifact carries the digests of its inputs (see
`wmdd.tracking.tracker`); once all are uploaded they become wandb's edges. Both leave a mark beside the run, so that a second
call goes on where the first one ended.
"""

import netrc
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from wmdd.artifacts import atomic_files
from wmdd.base.errors import WmddError
from wmdd.tracking.tracker import RECORD, without_key

WANDB = [sys.executable, "-m", "wandb"]
LINKED = f"{RECORD}.linked"
QUIET = 900.0  # s without a change, after which a run without an end counts as dead
TOGETHER = 8  # runs that one call of `wandb sync` uploads
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
    running = {file.stem for file in files if _runs(file)}
    return [Run(file, _state(file, running)) for file in files]


def _state(file: Path, running: set[str]) -> str:
    marker = _marker(file)
    if marker.exists() and marker.stat().st_mtime >= file.stat().st_mtime:
        return "synced"
    return "running" if file.stem in running else "waiting"


def _runs(file: Path) -> bool:
    """Return whether a run may still be written to: it has not said what it made, and is not quiet for long."""
    return not (file.parent / RECORD).exists() and time.time() - file.stat().st_mtime < QUIET


def size(run: Run) -> int:
    """Return how many bytes a run has to upload, the distilled set that it refers to included."""
    total = sum(path.stat().st_size for path in run.file.parent.rglob("*") if path.is_file())
    record = run.file.parent / RECORD
    if record.exists() and (about := atomic_files.read_json(record))["kind"] == "images":
        images = Path(about["path"])
        total += images.stat().st_size if images.exists() else 0
    return total


def check_server() -> None:
    """Refuse to begin where wandb would ask for a key or wait for a network.

    Raises:
        WmddError: names the remedy.
    """
    url = os.environ.get("WANDB_BASE_URL") or _default_server()
    if not _has_key(urlsplit(url).hostname or ""):
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


def _has_key(host: str) -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    places = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for place in (Path(place).expanduser() for place in places if place):
        try:
            if netrc.netrc(place).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def upload(runs: list[Run]) -> Iterator[int]:
    """Upload runs, a few at a time, and yield how many are done.

    Raises:
        WmddError: at the end, when some were refused; at once, when all of those tried together were.
    """
    done, refused, reason = 0, [], ""
    for batch in _batches(runs):
        said = _sync(batch)
        failed = [run for run in batch if not run.marker.exists()]
        refused += failed
        reason = said if failed else reason
        done += len(batch) - len(failed)
        if len(failed) == len(batch):
            break
        yield done
    if refused:
        raise WmddError(
            f"{done} of {len(runs)} runs are uploaded, not {refused[0].file.parent} ({reason}); "
            "mend it and run this again: what is done stays done"
        )


def _batches(runs: list[Run]) -> Iterator[list[Run]]:
    """Yield a few runs at a time, the parts of one run together: wandb joins them in the order of their start."""
    parts: dict[str, list[Run]] = {}
    for run in runs:
        parts.setdefault(run.file.stem, []).append(run)
    batch: list[Run] = []
    for several in parts.values():
        batch += several
        if len(batch) >= TOGETHER:
            yield batch
            batch = []
    if batch:
        yield batch


def _sync(batch: list[Run]) -> str:
    """Let wandb upload some runs; return its last words."""
    for run in batch:
        run.marker.unlink(missing_ok=True)  # of an earlier upload, since which the run went on
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    command = [*WANDB, "sync", *(str(run.file.parent) for run in batch)]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    return without_key(lines[-1]) if lines else f"wandb sync ended with {done.returncode}"


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
    about = {path: atomic_files.read_json(path) for path in paths}
    makers = {(a["project"], value): a for a in about.values() for value in a["outputs"].values()}
    edges, failed, reason = 0, 0, ""
    for path in unlinked(paths):
        try:
            edges += _link(api, about[path], makers)
            path.with_name(LINKED).touch()
        except Exception as error:  # of wandb's many kinds
            failed, reason = failed + 1, without_key(str(error))
    if failed:
        raise WmddError(f"the inputs of {failed} runs are not linked ({reason}); run this again")
    return edges


def _link(api: Any, about: dict[str, Any], makers: dict[tuple[str, str], dict[str, Any]]) -> int:
    """Link one run to the artifacts that it used."""
    inputs = dict(about["inputs"])
    wanted = [*inputs.pop("parts", []), *inputs.values()]
    known = [(makers[key], value) for value in wanted if (key := (about["project"], value)) in makers]
    for maker, value in known:
        run = api.run(f"{about['project']}/{about['run']}")  # wandb keeps it
        run.use_artifact(api.artifact(f"{about['project']}/{maker['name']}:{value[:16]}", type=maker["kind"]))
    return len(known)
