"""One tiny run of the real workflow, from which each test starts with a copy of its own."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import yaml

from . import warm_python

REPOSITORY = Path(__file__).parents[2]
SOURCES = ("Snakefile", "rules", "envs", "profiles", "wmdd", "config")
ENTRY = {
    "datasets": ["digits"],
    "teachers": ["nano"],
    "methods": ["wmdd", "sre2l", "random", "kmeans-medoid"],
    "ipc": [2],
    "seeds": [0],
    "students": ["nano"],
    "protocols": ["short"],
}
TINY = {
    "experiment": "tiny",
    "tracking": {"mode": "disabled"},
    "delete_blocks": True,
    "matrix": [ENTRY, ENTRY | {"methods": ["random"], "protocols": ["short-hard"]}],
    "datasets": {
        "digits": {
            "data": {"resolution": 16, "images_per_class": 12},
            "classes_per_block": 5,
            "teacher": {"min_accuracy": 0},
            "recover": {"iterations": 40},
        }
    },
    "teachers": {"nano": {"architecture": "resnet18", "width": 4, "epochs": 12, "lr": 0.05, "batch_size": 60}},
    "students": {"nano": {"architecture": "resnet18", "width": 4}},
    "protocols": {
        "short": {"base": "paper", "relabel": {"epochs": 12}, "student": {"epochs": 12, "evaluate_every": 4}},
        "short-hard": {"base": "short", "student": {"labels": "hard"}},
    },
    "engine": {"precision": "fp32"},
}


@dataclass
class Workspace:
    """A folder with the sources, a configuration and whatever was run."""

    root: Path

    @property
    def config(self) -> dict:
        return yaml.safe_load((self.root / "tiny.yaml").read_text())

    @config.setter
    def config(self, content: dict) -> None:
        (self.root / "tiny.yaml").write_text(yaml.safe_dump(content))

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return kept | {"WANDB_MODE": "disabled", "WMDD_REVISION": "test", "WMDD_CHECKPOINT_SECONDS": "0"}

    def command(self, *arguments: str, python: str = "") -> list[str]:
        python = python or warm_python.python()
        return [python, "-m", "snakemake", "--configfile", "tiny.yaml", "--cores", "2", *arguments]

    def snakemake(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run Snakemake here; with `check`, a failure shows its output."""
        result = subprocess.run(
            self.command(*arguments), cwd=self.root, env=self.environment, capture_output=True, text=True, check=False
        )
        if check and result.returncode:
            pytest.fail(f"snakemake {arguments} failed:\n{result.stdout[-3000:]}\n{result.stderr[-6000:]}")
        return result

    def python(self, *arguments: str, given: str = "") -> str:
        """Return what the interpreter prints here, with the package of the copy."""
        environment = self.environment | {"PYTHONPATH": str(self.root)}
        command = [warm_python.python(), *arguments]
        result = subprocess.run(
            command, cwd=self.root, env=environment, input=given, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    def pending(self, *arguments: str) -> dict[str, int]:
        """Return the jobs that would run, by rule."""
        result = self.snakemake("--dry-run", *arguments)
        output = result.stdout + result.stderr
        if "Nothing to be done" in output:
            return {}
        table = output.split("Job stats:")[1].split("total")[0]
        jobs = {name: int(count) for name, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)}
        assert jobs, output
        return jobs

    def change(self, keys: str, value: object) -> None:
        """Change a setting, such as teachers.nano.epochs."""
        *sections, key = keys.split(".")
        config = place = self.config
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
        self.config = config

    def changed(self, keys: str, value: object) -> dict[str, int]:
        """Change a setting, and return the jobs that would run."""
        self.change(keys, value)
        return self.pending()

    def pending_after(self, changes: Iterable[tuple[str, object, object]]) -> list[dict[str, int]]:
        """Return for each change, made by itself, the jobs that would run. A change: keys, value, whatever it leads to."""
        config, pending = self.config, []
        for keys, value, _ in changes:
            self.config = config
            pending.append(self.changed(keys, value))
        return pending

    def mistake(self, *arguments: str) -> str:
        """Return what Snakemake says of a mistake, which it finds before anything runs."""
        result = self.snakemake("--dry-run", *arguments, check=False)
        said = result.stdout + result.stderr
        assert result.returncode
        assert "Traceback" not in said
        return said

    def copy(self, root: Path) -> "Workspace":
        """Return a copy of the folder, with the times of the files."""
        return Workspace(shutil.copytree(self.root, root, symlinks=True))

    def contents(self, *patterns: str) -> dict[str, bytes]:
        """Return the bytes of all files that match."""
        files = [file for pattern in patterns for file in self.root.glob(pattern) if file.is_file()]
        return {str(file.relative_to(self.root)): file.read_bytes() for file in files}


@cache
def sources() -> Path:
    """Return a folder with a compiled copy of the sources, of which all workspaces are copies."""
    place = Workspace(Path(warm_python.python()).with_name("sources"))
    place.root.mkdir()
    for name in SOURCES:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, place.root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, place.root / name)
    place.config = TINY
    place.pending()  # compiles them, and keeps the digests of the stages' code
    shutil.rmtree(place.root / ".snakemake")
    return place.root


def workspace(root: Path, config: dict = TINY) -> Workspace:
    """Lay out the sources and a configuration."""
    place = Workspace(root)
    shutil.copytree(sources(), root)
    place.config = config
    return place


def run_of(config: dict, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Return a folder in which a workflow was run to the end."""
    place = workspace(tmp_path_factory.mktemp("workflow") / "finished", config)
    place.snakemake()
    return place


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The tiny workflow, run to the end. Never to be changed: use `run`."""
    return run_of(TINY, tmp_path_factory)


@pytest.fixture
def run(finished: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the finished run, with its modification times."""
    return finished.copy(tmp_path / "run")


@pytest.fixture
def fresh(tmp_path: Path) -> Workspace:
    """The sources and the configuration, with nothing run."""
    return workspace(tmp_path / "fresh")
