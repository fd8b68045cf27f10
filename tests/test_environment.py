"""The three places that name package versions agree: pyproject.toml, requirements.lock and envs/."""

import ast
import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME = PROJECT["dependencies"]
EXTRAS = [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]


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


def test_the_lock_pins_each_package_once_and_marks_what_only_cuda_needs():
    for line in LOCK:
        assert re.fullmatch(r'[\w.-]+={2,3}[\w.]+(; platform_system == "Linux")?', line), line
        assert (Requirement(line).marker is not None) == line.startswith(("nvidia-", "cuda-", "triton=")), line
    assert len(PINS) == len(LOCK)
    assert PINS["torch"][0] == "==="  # no local builds


def test_the_lock_satisfies_pyproject():
    for line in RUNTIME + EXTRAS:
        assert Requirement(line).specifier.contains(PINS[name(line)][1]), line


def test_environments_have_the_pins_of_the_lock_and_images_the_environment():
    """That images are what Snakemake makes of the environment: tests/workflow/test_deployment.py."""
    paths = sorted((ROOT / "envs").glob("*.yaml"))
    assert ROOT / "envs/wmdd.yaml" in paths
    for path in paths:
        lines = pip_lines(path)
        assert {name(line): pin(line) for line in lines} == {name(line): PINS.get(name(line)) for line in lines}, path
    assert {name(line) for line in pip_lines(ROOT / "envs/wmdd.yaml")} == {name(line) for line in RUNTIME}
    environment = "\n".join(f"#   {line}" for line in (ROOT / "envs/wmdd.yaml").read_text().splitlines())
    for definition in ("Dockerfile", "wmdd.def"):
        assert environment in (ROOT / "envs" / definition).read_text(), definition


def imported(path: Path) -> set[str]:
    """The top-level packages that a module imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.partition(".")[0] for name in names}


def test_altair_and_pillow_draw():
    for folder in ("wmdd", "benchmarks"):
        packages = set().union(*map(imported, (ROOT / folder).rglob("*.py")))
        assert "altair" in packages
        assert not packages & {"matplotlib", "networkx", "seaborn", "plotly"}
