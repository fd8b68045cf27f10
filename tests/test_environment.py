"""The three places that name package versions agree: pyproject.toml, requirements.lock and envs/."""

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = PROJECT["dependencies"]
# Without the references of an extra to others.
EXTRAS = {
    extra: [line for line in lines if not line.startswith("wmdd[")]
    for extra, lines in PROJECT["optional-dependencies"].items()
}
RUNTIME = [*CORE, *(line for extra, lines in EXTRAS.items() if extra not in ("slurm", "dev") for line in lines)]
LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]


def name(line: str) -> str:
    return canonicalize_name(Requirement(line).name)


def pin(line: str) -> tuple[str, str]:
    """("===", "2.13.0") of "torch===2.13.0"."""
    (specifier,) = Requirement(line).specifier
    return specifier.operator, specifier.version


PINS = {name(line): pin(line) for line in LOCK}


def test_the_lock_pins_each_package_once_satisfies_pyproject_and_marks_what_only_cuda_needs():
    for line in LOCK:
        assert re.fullmatch(r'[\w.-]+={2,3}[\w.]+(; platform_system == "Linux")?', line), line
        assert (Requirement(line).marker is not None) == line.startswith(("nvidia-", "cuda-", "triton=")), line
    assert len(PINS) == len(LOCK)
    assert PINS["torch"][0] == "==="  # no local builds
    named = [*CORE, *(line for lines in EXTRAS.values() for line in lines)]
    for line in named:
        assert Requirement(line).specifier.contains(PINS[name(line)][1]), line
    assert len({name(line) for line in named}) == len(named)


def test_all_is_every_extra_for_users():
    (line,) = PROJECT["optional-dependencies"]["all"]
    assert Requirement(line).extras == {*EXTRAS} - {"all", "dev"}


def test_environments_have_the_pins_of_the_lock_and_images_the_environment():
    """That images are what Snakemake makes of the environment: tests/workflow/test_deployment.py."""
    for path in sorted((ROOT / "envs").glob("*.yaml")):
        dependencies = yaml.safe_load(path.read_text())["dependencies"]
        lines = [line for entry in dependencies if isinstance(entry, dict) for line in entry["pip"]]
        assert {name(line): pin(line) for line in lines} == {name(line): PINS.get(name(line)) for line in lines}, path
        if path.name == "wmdd.yaml":
            assert {name(line) for line in lines} == {name(line) for line in RUNTIME}
    environment = "\n".join(f"#   {line}" for line in (ROOT / "envs/wmdd.yaml").read_text().splitlines())
    for definition in ("Dockerfile", "wmdd.def"):
        assert environment in (ROOT / "envs" / definition).read_text(), definition


def test_no_second_library_draws():
    """Altair draws charts, Pillow pictures."""
    pattern = re.compile(r"^\s*(?:import|from) (?:matplotlib|networkx|seaborn|plotly)\b", re.MULTILINE)
    modules = [path for folder in ("wmdd", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert len(modules) > 100
    assert not [path for path in modules if pattern.search(path.read_text())]
