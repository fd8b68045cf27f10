"""What made a file: settings, code, versions, revision, machine. And the digest by which an edited stage is rebuilt."""

import json
import os
import platform
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import cache_from_source
from pathlib import Path

from wmdd.base.errors import WmddError
from wmdd.jobs.code_reach import Package

PACKAGE = Path(__file__).parents[1]
KEPT = Path(cache_from_source(str(PACKAGE / "code_digests.py"))).with_suffix(".json")  # beside the compiled modules
# The functions and classes that decide no number, nor does what only they reach; each name stands once in the package.
GROUND = {
    "job": "what a command does around its stage: provenance, checkpoint, tracker, cost; makes the StageJob that it hands out",
    "Checkpoint": "keeps the state of an unfinished stage, and gives it back as it was",
    "NullTracker": "logs nothing",
    "launch": "starts the same command in several processes",
    "progress": "shows how far a stage is",
    "Notice": "hears that a job is to end",
    "Preempted": "ends it",
    "Pieces": "keeps the rows that are done, and gives them back as they were",
    "staged": "copies a file to the disk of the node",
    "atomic": "gives a file its name when it is whole",
    "make_room": "refuses a folder that can't be written",
    "fetch": "downloads, against a checksum",
    "unpack": "unpacks what was downloaded",
    "pot": "imports POT",
}
HANDED = {"EngineSettings": "Engine"}  # made by `job` of the one: the other, by which a stage computes
VERSIONED = ("wmdd", "torch", "torchvision", "POT", "h5py", "numpy", "pillow", "diffusers", "transformers", "snakemake")


_package = cache(Package)


@cache
def code_digest(stage: str, root: Path = PACKAGE) -> str:
    """Return a digest of the code of this package that decides what a stage makes.

    It covers the stage's command and all functions, classes and constants that it refers to, directly or through others
    (`wmdd.jobs.code_reach`), up to those of `GROUND`. Of settings it covers methods and validators alone: values reach a stage
    as flags. It leaves out names of modules, imports, docstrings, comments, annotations, the words of errors, and files that
    are not Python: what of them decides a number is an input or another param of the stage's rule.

    Finding it takes 0.3 s. As long as no source changes, later processes read it from `KEPT`, where that can be written.

    Raises:
        WmddError: there is no such command, or more than one.
    """
    package = _package(root)
    digests = _kept(package.sources) if root == PACKAGE else {}
    if stage not in digests:
        commands = package.commands(stage)
        if len(commands) != 1:
            raise WmddError(f"{len(commands)} functions {stage} are marked as a command in {root}; a stage needs one")
        digests[stage] = package.digest(package.reached(commands[0], GROUND, HANDED))[:16]
        if root == PACKAGE and not sys.dont_write_bytecode:
            _keep(package.sources, digests)
    return digests[stage]


@cache
def _kept(sources: str) -> dict[str, str]:
    """Return the digests of stages that were computed from these sources before."""
    with suppress(OSError, ValueError, TypeError, KeyError):  # not there, or damaged
        kept = json.loads(KEPT.read_text(encoding="utf-8"))
        if kept["sources"] == sources:
            return dict(kept["digests"])
    return {}


def _keep(sources: str, digests: dict[str, str]) -> None:
    part = KEPT.with_suffix(f".{os.getpid()}.part")
    with suppress(OSError):
        part.write_text(json.dumps({"sources": sources, "digests": digests}), encoding="utf-8")
        part.replace(KEPT)


@cache
def git_revision() -> str:
    """Return the revision of the sources, with `-dirty` when tracked files differ from it; `unknown` outside git."""
    if "WMDD_REVISION" in os.environ:
        return os.environ["WMDD_REVISION"]
    try:
        command = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@cache
def processor() -> str:
    """Return the name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions() -> dict[str, str]:
    """Return the versions of the packages that a number may depend on."""
    from wmdd import __version__

    installed = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = __version__ if name == "wmdd" else "absent"
    return installed
