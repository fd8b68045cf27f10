"""The three places that name package versions agree: pyproject.toml, requirements.lock and envs/."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME = PROJECT["dependencies"]
EXTRAS = [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
ENVIRONMENTS = sorted((ROOT / "envs").glob("*.yaml"))


def name(line: str) -> str:
    return canonicalize_name(Requirement(line).name)


def pin(line: str) -> tuple[str, str]:
    """("===", "2.13.0") of "torch===2.13.0"."""
    (specifier,) = Requirement(line).specifier
    return specifier.operator, specifier.version


PINS = {name(line): pin(line) for line in LOCK}


def pip_lines(path: Path) -> list[str]:
    dependencies = yaml.safe_load(path.read_text())["dependencies"]
    return [line for entry in dependencies if isinstance(entry, dict) for line in entry["pip"]]


@pytest.mark.parametrize("line", LOCK)
def test_lock_line_is_a_plain_pin(line):
    assert re.fullmatch(r'[\w.-]+={2,3}[\w.]+(; platform_system == "Linux")?', line)


def test_lock_names_each_package_once():
    assert len(PINS) == len(LOCK)


def test_lock_refuses_local_builds_of_torch():
    assert PINS["torch"][0] == "==="


@pytest.mark.parametrize("line", LOCK)
def test_only_what_cuda_needs_is_left_out_elsewhere(line):
    assert (Requirement(line).marker is not None) == line.startswith(("nvidia-", "cuda-", "triton="))


@pytest.mark.parametrize("line", RUNTIME + EXTRAS)
def test_lock_satisfies_pyproject(line):
    _, version = PINS[name(line)]
    assert Requirement(line).specifier.contains(version)


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.name)
def test_environment_pins_equal_the_lock(path):
    lines = pip_lines(path)
    assert {name(line): pin(line) for line in lines} == {name(line): PINS.get(name(line)) for line in lines}


def imported(path: Path) -> set[str]:
    """The top-level packages that a module imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("folder", ["wmdd", "benchmarks"])
def test_altair_and_pillow_draw(folder):
    packages = set().union(*map(imported, (ROOT / folder).rglob("*.py")))
    assert "altair" in packages
    assert not packages & {"matplotlib", "networkx", "seaborn", "plotly"}


def test_conda_environment_has_every_runtime_package():
    assert {name(line) for line in pip_lines(ROOT / "envs/wmdd.yaml")} == {name(line) for line in RUNTIME}


@pytest.mark.parametrize("definition", ["Dockerfile", "wmdd.def"])
def test_images_hold_the_conda_environment(definition):
    """That they are what Snakemake makes of it: tests/workflow/test_deployment.py."""
    environment = (ROOT / "envs/wmdd.yaml").read_text().splitlines()
    found = (ROOT / "envs" / definition).read_text()
    assert "\n".join(f"#   {line}" for line in environment) in found
