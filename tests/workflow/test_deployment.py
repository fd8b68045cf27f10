"""Where jobs find their programs: beside the Snakefile, in a conda environment, in an image.

There is neither conda nor apptainer where these tests run: small scripts stand for them that answer as Snakemake expects.
"""

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from . import warm_python
from .conftest import REPOSITORY, TINY, Workspace, workspace

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

DATA = "data/digits.h5"
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
            self.script(name, text.format(base=base, python=warm_python.python()))
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
def sources(tmp_path: Path) -> Workspace:
    return workspace(tmp_path / "a folder")


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    """Another folder than that of the sources."""
    (tmp_path / "work").mkdir()
    work = Workspace(tmp_path / "work")
    work.config = TINY
    return work


def test_the_definition_of_the_image_is_up_to_date(tools, sources):
    """Else, with conda at hand: snakemake --containerize dockerfile > envs/Dockerfile; … apptainer > envs/wmdd.def."""
    for file, kind in ("Dockerfile", "dockerfile"), ("wmdd.def", "apptainer"):
        assert sources.snakemake("--containerize", kind).stdout == (REPOSITORY / "envs" / file).read_text()


def test_sources_that_snakemake_sends_to_a_node_are_complete_and_run_from_any_folder(sources, work, tmp_path):
    """As without a shared folder (`--shared-fs-usage` without `sources`): all that git tracks, unpacked elsewhere."""
    for command in (["init", "-q"], ["add", "--all"]):
        subprocess.run(["git", *command], cwd=sources.root, check=True)
    subprocess.run([sys.executable, "-c", ARCHIVE], cwd=sources.root, check=True, stdout=subprocess.DEVNULL)
    with tarfile.open(sources.root / "sources.tar.xz") as archive:
        archive.extractall(tmp_path / "node", filter="data")
    shutil.rmtree(sources.root)
    work.snakemake("--snakefile", str(tmp_path / "node/Snakefile"), DATA)
    assert (work.root / DATA).exists()
    assert not (tmp_path / "node/data").exists()


def test_the_environment_of_conda_wins(sources, work, tools):
    work.snakemake("--snakefile", str(sources.root / "Snakefile"), "--sdm", "conda", "--", DATA)
    (environment,) = work.root.glob(".snakemake/conda/*_")
    assert tools.asked("used") == [f"{environment}/bin/python {sources.root}"]
    assert (work.root / DATA).exists()


def test_the_image_has_the_environment_that_jobs_activate(sources, tools, monkeypatch):
    monkeypatch.setenv("WMDD_IMAGE", str(tools.base / "wmdd.sif"))
    (prefix,) = set(re.findall(r"(?<=mkdir -p )/conda-envs/\w+", (REPOSITORY / "envs/Dockerfile").read_text()))
    tools.script(f"{prefix[1:]}/bin/python", (tools.base / "python").read_text())
    sources.snakemake("--sdm", "conda", "apptainer", "--apptainer-args=--nv", "--", DATA)
    (call,) = [call for call in tools.asked("contained") if "wmdd data" in call]
    assert re.search(rf" --nv .*{tools.base}/wmdd\.sif ", call)
    assert tools.asked("used") == [f"{tools.base}{prefix}/bin/python {sources.root}"]
    assert (sources.root / DATA).exists()


def test_an_image_alone_is_used_where_it_is_asked_for(sources, tools, monkeypatch):
    assert "--sdm apptainer needs an image; build one from envs/" in sources.mistake("--sdm", "apptainer")
    before = sources.pending()
    monkeypatch.setenv("WMDD_IMAGE", str(tools.base / "wmdd.sif"))
    assert sources.pending() == before
    assert tools.asked("contained") == []
    tools.script("image/python", (tools.base / "python").read_text())
    sources.snakemake("--sdm", "apptainer", "--", DATA)
    (call,) = tools.asked("contained")
    assert f"{tools.base}/wmdd.sif" in call
    assert tools.asked("used") == [f"{tools.base}/image/python {sources.root}"]
    assert (sources.root / DATA).exists()
