"""The package as it is installed: built from the sources' archive, in an environment that has no clone on its path."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml

from .conftest import ENTRY, REPOSITORY, TINY

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

MODULE = """
from wmdd.workflow.launch import sources

module wmdd:
    snakefile: str(sources() / "Snakefile")
    prefix: "out"
    config: config
use rule * from wmdd as wmdd_*
rule everything:
    default_target: True
    input: rules.wmdd_all.input
"""


def call(*command: str | Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "WMDD_REVISION")}
    environment = kept | {"WANDB_MODE": "disabled"} | environment
    return subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def said(*command: str | Path, folder: Path) -> str:
    """What a command that must succeed prints, standard error behind the rest."""
    done = call(*command, folder=folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the archive of the sources, without a network."""
    folder = tmp_path_factory.mktemp("dist")
    build = (sys.executable, "-m", "hatchling", "build", "-d", folder, "-t")
    said(*build, "sdist", folder=REPOSITORY)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    said(*build, "wheel", folder=folder / archive.name.removesuffix(".tar.gz"))
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `python` and `wmdd` in an environment with the wheel, beside the packages of the lock."""
    environment = tmp_path_factory.mktemp("environment")
    said(sys.executable, "-m", "venv", "--without-pip", environment, folder=environment)
    python = environment / "bin/python"
    said(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        wheel,
        folder=environment,
    )
    (packages,) = environment.glob("lib/python*/site-packages")
    locked = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "locked.pth").write_text("\n".join(locked))
    return environment / "bin"


@pytest.fixture
def study(programs: Path, tmp_path: Path) -> Path:
    """A folder that `wmdd init` made, with a tiny experiment."""
    assert "cd study && wmdd run" in said(programs / "wmdd", "init", "study", folder=tmp_path)
    study = tmp_path / "study"
    tiny = TINY | {"matrix": [ENTRY | {"methods": ["random"]}]}
    (study / "study.yaml").write_text(yaml.safe_dump(tiny))
    return study


def test_the_wheel_has_the_workflow_and_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        (metadata,) = (file.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    folders = ("rules", "envs", "config", "profiles")
    tracked = subprocess.run(["git", "ls-files", "Snakefile", *folders], cwd=REPOSITORY, capture_output=True, text=True)
    if not tracked.returncode:  # not in an archive of the sources
        assert {f"wmdd/pipeline/{name}" for name in tracked.stdout.split()} <= {*names}
    assert {"wmdd/py.typed", "wmdd/report/page/templates/page.html", "wmdd/pipeline/config/published.yaml"} <= {*names}
    assert not [name for name in names if name.startswith(("tests", "docs", "benchmarks"))]
    for line in (
        "Project-URL: ",
        "Classifier: Typing :: Typed",
        "Provides-Extra: report",
        "License-Expression: Apache-2.0",
    ):
        assert f"\n{line}" in metadata


def test_the_installed_package_runs_a_study_without_a_clone(programs: Path, study: Path) -> None:
    assert "╭─ Commands" in said(programs / "wmdd", "--help", folder=study)
    where = said(programs / "python", "-c", "import wmdd; print(wmdd.__file__)", folder=study)
    assert where.startswith(str(programs.parent))
    assert "relabel" in said(programs / "wmdd", "run", "--dry-run", folder=study)
    said(programs / "wmdd", "run", "--cores", "2", folder=study)
    assert (study / "results/report/index.html").is_file()


def test_snakemake_runs_the_folder_and_another_workflow_has_the_installed_one_as_a_module(
    programs: Path, study: Path
) -> None:
    plan = (programs / "python", "-m", "snakemake", "-n", "--cores", "2", "--configfile", "study.yaml")
    assert "results/report/index.html" in said(*plan, folder=study)
    (study / "Snakefile").write_text(MODULE)
    jobs = said(*plan, folder=study)
    assert "wmdd_student" in jobs
    assert "out/results/report/index.html" in jobs


def test_snakemake_may_read_the_rules_from_a_server(programs: Path, study: Path) -> None:
    """As snakedeploy has it: of the repository only what Snakemake includes; the rest is the installed package's."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(REPOSITORY))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        module = MODULE.replace('str(sources() / "Snakefile")', f'"{address}/workflow/Snakefile"')
        (study / "Snakefile").write_text(module)
        plan = (programs / "python", "-m", "snakemake", "-n", "-p", "--cores", "2", "--configfile", "study.yaml")
        done = call(*plan, folder=study, XDG_CACHE_HOME=str(study / "cache"))
        server.shutdown()
    assert done.returncode == 0, done.stderr[-3000:]
    published = re.search(r"--published (\S+)", done.stdout + done.stderr)
    assert published
    assert Path(published[1]).is_relative_to(programs.parent)
    assert Path(published[1]).is_file()


def test_a_missing_extra_is_one_line_that_names_it(programs: Path, study: Path) -> None:
    code = "import sys; sys.modules[sys.argv.pop()] = None; from wmdd.__main__ import main; main()"
    for command, package, extra in ("table --help", "pandas", "report"), ("run -n", "snakemake", "workflow"):
        done = call(programs / "python", "-c", code, *command.split(), package, folder=study)
        name = command.split()[0]
        line = f'wmdd {name}: error: {package} is not installed; run `pip install "wmdd[{extra}]"`\n'
        assert (done.returncode, done.stdout, done.stderr) == (1, "", line)
