"""Which extra a module needs: each is imported where only the packages of the core and of that extra can be."""

import ast
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import wmdd
from tests.test_environment import CORE, EXTRAS, PROJECT
from wmdd.base import extras
from wmdd.base.errors import WmddError

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in ROOT.glob("wmdd/**/*.py")
)
# What is imported needs the core alone, but for these. Other extras (latent, timm, wandb, export) are imported when used.
NEEDS = {
    "workflow": ["wmdd.workflow.lock", "wmdd.report.status", "wmdd.cli.workflow"],
    "report": [
        *(name for name in MODULES if name.startswith("wmdd.report.") and name != "wmdd.report.status"),
        *(f"wmdd.cli.{name}" for name in ("tables", "kept_results", "page", "scoreboard")),
    ],
}
IMPORT = """
import importlib, sys

class Blocked:
    def find_spec(name, path=None, target=None):
        if name in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

blocked = set(sys.argv[1].split())
sys.meta_path.insert(0, Blocked)
for name in sys.argv[2].split():
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(name, error.name)
"""


@cache
def brought(line: str) -> frozenset[str]:
    """The packages that a requirement installs, by their normalised names."""
    packages, waiting = set[tuple[str, str]](), [(Requirement(line), "")]
    while waiting:
        requirement, _ = waiting.pop()
        for extra in ("", *requirement.extras):
            if (key := (canonicalize_name(requirement.name), extra)) in packages:
                continue
            packages.add(key)
            if key[0] == "wmdd":
                needed = PROJECT["optional-dependencies"][extra] if extra else []
            else:
                needed = metadata.requires(requirement.name) or []
            for other in map(Requirement, needed):
                if other.marker is None or other.marker.evaluate({"extra": extra}):
                    waiting.append((other, extra))
    return frozenset(name for name, _ in packages)


def missing(extra: str, modules: list[str]) -> dict[str, str]:
    """The modules that cannot be imported with the core and an extra, and the package that each lacks."""
    lines = [*CORE, *([f"wmdd[{extra}]"] if extra else [])]
    there = {name for line in lines for name in brought(line)} | {"wmdd"}
    blocked = [
        package
        for package, distributions in metadata.packages_distributions().items()
        if not there & {canonicalize_name(name) for name in distributions}
    ]
    command = [sys.executable, "-c", IMPORT, " ".join(blocked), " ".join(modules)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(line.split() for line in done.stdout.splitlines())


def test_all_but_the_report_and_the_workflow_needs_the_core_alone():
    lacking = missing("", MODULES)
    assert {*lacking} <= {name for names in NEEDS.values() for name in names}
    assert {*lacking.values()} == {"snakemake", "pandas", "altair"}


@pytest.mark.parametrize("extra", NEEDS)
def test_a_module_needs_no_more_than_its_extra(extra):
    assert missing(extra, NEEDS[extra]) == {}


def test_every_package_that_is_imported_is_named_by_the_core_or_an_extra():
    sources = [ast.parse(path.read_text("utf-8")) for path in ROOT.glob("wmdd/**/*.py")]
    nodes = [node for source in sources for node in ast.walk(source)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    packages = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"wmdd"}
    assert {"torch", "timm", "pyarrow"} <= packages
    distributions = metadata.packages_distributions()
    needed = {package: {canonicalize_name(name) for name in distributions[package]} for package in packages}
    lines = [*CORE, *(line for lines in EXTRAS.values() for line in lines)]
    named = {canonicalize_name(Requirement(line).name) for line in lines}
    assert {package for package in packages if not needed[package] & named} == {
        "urllib3",
        "markupsafe",
    }  # of requests, jinja2


METADATA = ["torch>=2.11"] + [
    f"{line}; extra == '{extra}'"
    for name, lines in EXTRAS.items()
    for line in lines
    for extra in dict.fromkeys([name, "all"])
]


@pytest.mark.parametrize(
    ("package", "extra"),
    [("pandas", "report"), ("vl_convert", "report"), ("wandb", "wandb"), ("huggingface_hub", "export"), ("torch", "")],
)
def test_the_extra_of_a_package(monkeypatch, package, extra):
    monkeypatch.setattr(extras, "requires", lambda name: METADATA)
    assert extras.extra_of(package) == extra


def test_what_is_missing_is_one_line_and_a_trace_where_no_extra_has_it(monkeypatch):
    """Of a command: tests/workflow/test_package.py."""
    monkeypatch.setattr(extras, "requires", lambda name: METADATA)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(WmddError) as caught:
        wmdd.evaluate(np.zeros(1), np.zeros(1), "digits")
    assert str(caught.value) == 'pandas is not installed; run `pip install "wmdd[report]"`'
    with pytest.raises(ModuleNotFoundError), extras.named():
        raise ModuleNotFoundError("No module named 'tomatoes'", name="tomatoes")
