"""Where jobs find their programs: beside the Snakefile, in a conda environment, in an image.

There is neither conda nor apptainer where these tests run: small scripts stand for them that answer as Snakemake expects.
"""

import re
import shutil
import subprocess
import sys
import tarfile
from copy import deepcopy
from pathlib import Path

import pytest

from .conftest import REPOSITORY, TINY, Workspace, workspace

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

CONDA = """#!/bin/sh
case "$*" in
    "info --json") echo '{{"conda_prefix": "{base}", "platform": "linux-64"}}' ;;
    --version) echo conda 24.9.2 ;;
    "config --get channel_priority --json") echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
    "env create"*)
        for prefix; do :; done
        mkdir -p "$prefix/bin"
        cp {base}/python "$prefix/bin/python"
        ;;
    clean*) ;;
    *) exit 1 ;;
esac
"""
PYTHON = """#!/bin/sh
echo "$0 $PYTHONPATH" >> {base}/used
exec {python} "$@"
"""
# Behind the rest, as conda does where a virtual environment is active beside one of its own.
ACTIVATE = """
export CONDA_PREFIX="$1" PATH="$PATH:$1/bin"
"""
# The image has its own PATH, and what it has under /conda-envs lies elsewhere here.
APPTAINER = """#!/bin/bash
if [ "$1" = --version ]; then echo apptainer version 1.3.4; exit; fi
printf '%s\\n' "$*" >> {base}/contained
export PATH={base}/image:/usr/bin:/bin
while [ "$1" != sh ] && [ "$1" != bash ]; do shift; done
exec "$1" -c "${{3//\\/conda-envs/{base}/conda-envs}}"
"""
ARCHIVE = """
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, ResourceSettings

with SnakemakeApi(OutputSettings()) as api:
    config = ConfigSettings(configfiles=(Path("tiny.yaml"),))
    workflow = api.workflow(ResourceSettings(cores=1), config, snakefile=Path("Snakefile"))
    workflow.dag(DAGSettings()).summary()
    workflow._workflow.write_source_archive(Path("sources.tar.xz"))
"""


class Tools:
    """Stand-ins for conda and apptainer, ahead in PATH, and what they were asked."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.base = base
        scripts = {"bin/conda": CONDA, "bin/activate": ACTIVATE, "bin/apptainer": APPTAINER, "python": PYTHON}
        for name, text in scripts.items() | {"image/conda": CONDA}.items():
            self.script(name, text.format(base=base, python=sys.executable))
        monkeypatch.setenv("PATH", f"{base}/bin", prepend=":")

    def script(self, name: str, text: str) -> None:
        path = self.base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def asked(self, name: str) -> list[str]:
        path = self.base / name
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    for name in ("WMDD_IMAGE", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    return Tools(tmp_path / "tools", monkeypatch)


@pytest.fixture
def at(tmp_path: Path) -> Workspace:
    return workspace(tmp_path / "a folder", TINY)


def prefix() -> str:
    """Where the image has the environment."""
    (found,) = set(re.findall(r"(?<=mkdir -p )/conda-envs/\w+", (REPOSITORY / "envs/Dockerfile").read_text()))
    return found


@pytest.mark.parametrize(("file", "kind"), [("Dockerfile", "dockerfile"), ("wmdd.def", "apptainer")])
def test_the_definition_of_the_image_is_up_to_date(tools, file, kind):
    """Else, with conda at hand: snakemake --containerize dockerfile > envs/Dockerfile; … apptainer > envs/wmdd.def."""
    at = workspace(tools.base / "sources")
    assert at.snakemake("--containerize", kind).stdout == (REPOSITORY / "envs" / file).read_text()


def test_another_folder_than_that_of_the_sources(at, tmp_path):
    """The nodes need nothing installed, and the working directory may be anywhere."""
    work = Workspace(tmp_path / "work")
    work.root.mkdir()
    work.config = deepcopy(TINY)
    work.snakemake("--snakefile", str(at.root / "Snakefile"), "data/digits.h5")
    assert (work.root / "data/digits.h5").exists()
    assert not (at.root / "data").exists()


def test_sources_that_snakemake_sends_to_a_node_are_complete(at, tmp_path):
    """As without a shared folder (`--shared-fs-usage` without `sources`): all that git tracks, unpacked elsewhere."""
    for command in (["init", "-q"], ["add", "--all"]):
        subprocess.run(["git", *command], cwd=at.root, check=True)
    subprocess.run([sys.executable, "-c", ARCHIVE], cwd=at.root, check=True, stdout=subprocess.DEVNULL)
    node = Workspace(tmp_path / "node")
    with tarfile.open(at.root / "sources.tar.xz") as archive:
        archive.extractall(node.root, filter="data")
    shutil.rmtree(at.root)
    node.snakemake("data/digits.h5")
    assert (node.root / "data/digits.h5").exists()


def test_the_environment_of_conda_wins(at, tmp_path, tools):
    work = Workspace(tmp_path / "work")
    work.root.mkdir()
    work.config = TINY
    work.snakemake("--snakefile", str(at.root / "Snakefile"), "--sdm", "conda", "--", "data/digits.h5")
    (environment,) = work.root.glob(".snakemake/conda/*_")
    assert tools.asked("used") == [f"{environment}/bin/python {at.root}"]
    assert (work.root / "data/digits.h5").exists()


def test_the_image_has_the_environment_that_jobs_activate(at, tools, monkeypatch):
    monkeypatch.setenv("WMDD_IMAGE", str(tools.base / "wmdd.sif"))
    tools.script(f"{prefix()[1:]}/bin/python", (tools.base / "python").read_text())
    at.snakemake("--sdm", "conda", "apptainer", "--apptainer-args=--nv", "--", "data/digits.h5")
    (call,) = [call for call in tools.asked("contained") if "wmdd data" in call]
    assert re.search(rf" --nv .*{tools.base}/wmdd\.sif ", call)
    assert tools.asked("used") == [f"{tools.base}{prefix()}/bin/python {at.root}"]
    assert (at.root / "data/digits.h5").exists()


def test_an_image_alone(at, tools, monkeypatch):
    tools.script("image/python", (tools.base / "python").read_text())
    monkeypatch.setenv("WMDD_IMAGE", str(tools.base / "wmdd.sif"))
    at.snakemake("--sdm", "apptainer", "--", "data/digits.h5")
    (call,) = tools.asked("contained")
    assert f"{tools.base}/wmdd.sif" in call
    assert tools.asked("used") == [f"{tools.base}/image/python {at.root}"]
    assert (at.root / "data/digits.h5").exists()


def test_without_an_image_nothing_runs_in_one(at, tools):
    refused = at.snakemake("--sdm", "apptainer", "--dry-run", check=False)
    assert refused.returncode == 1
    assert "--sdm apptainer needs an image; build one from envs/" in refused.stdout + refused.stderr


def test_an_image_that_is_not_asked_for_changes_nothing(at, tools, monkeypatch):
    before = at.pending()
    monkeypatch.setenv("WMDD_IMAGE", "docker://example.org/wmdd")
    assert at.pending() == before
    assert tools.asked("contained") == []
