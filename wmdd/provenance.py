"""What made a file: settings, code, versions, revision, machine. And the digest by which an edited stage is rebuilt."""

import ast
import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
# The modules that no number depends on.
GROUND = (  # decide no number: what is downloaded and unpacked is checked
    "artifacts", "checkpoint", "config", "download", "errors", "job", "launch", "lock", "pieces", "preemption", "progress",
    "provenance", "scratch", "settings", "status", "tracking", "unpack",
)  # fmt: skip
COMMANDS = (
    "commands",
    "commands_latent",
    "commands_match",
    "commands_report",
    "commands_export",
    "commands_tracking",
)  # of which each stage counts its own functions
VERSIONED = ("wmdd", "torch", "torchvision", "POT", "h5py", "numpy", "pillow", "diffusers", "transformers", "snakemake")


class _Strip(ast.NodeTransformer):
    """Drops docstrings; comments and layout are not in the tree to begin with."""

    def _strip(self, node: Any) -> Any:
        self.generic_visit(node)
        if node.body and isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant):
            node.body = node.body[1:]
        return node

    visit_Module = visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _strip


def _module_path(name: str, root: Path) -> Path | None:
    base = root.joinpath(*name.split(".")[1:])
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


def _imports(tree: ast.AST) -> set[str]:
    """Return the modules of this package that are imported anywhere in `tree`, type-checking imports left out."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "wmdd":
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.split(".")[0] == "wmdd"}
    return names


@cache
def _module(path: Path) -> tuple[ast.Module, str, set[str]]:
    """Return the code of a module without comments and docstrings, as a tree and as text, and the modules it imports."""
    tree = ast.parse(path.read_text())
    imports = _imports(tree)
    return _Strip().visit(tree), ast.dump(tree), imports


def _command(stage: str, root: Path) -> tuple[list[ast.FunctionDef], set[str]]:
    """Return the command of a stage with the helpers it calls (their names begin with `_`), and the modules they use."""
    body = [node for name in COMMANDS for node in _module(root / f"{name}.py")[0].body]
    functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    found: dict[str, ast.FunctionDef] = {}
    used: set[str] = set()
    todo = [stage]
    while todo:
        name = todo.pop()
        if name in functions and name not in found:
            found[name] = functions[name]
            names = {node.id for node in ast.walk(functions[name]) if isinstance(node, ast.Name)}
            used |= names
            todo += [name for name in names if name.startswith("_")]
    imports = [node for node in body if isinstance(node, ast.ImportFrom)]
    needed = [node for node in imports if used & {alias.asname or alias.name for alias in node.names}]
    return list(found.values()), set().union(*map(_imports, [*found.values(), *needed]))


@cache
def code_digest(stage: str, root: Path = PACKAGE) -> str:
    """Return a digest of all the code of this package that a stage runs, without comments and docstrings.

    It covers the stage's command (in `COMMANDS`) with its helpers, the module `wmdd.{stage}`, and what these import
    from `wmdd` (and so on); not the modules that no number depends on (`GROUND`; the settings' values reach a stage as flags).
    """
    functions, modules = _command(stage, root)
    parts = [ast.dump(function) for function in functions]
    todo, seen = [f"wmdd.{stage}", *modules], set()
    while todo:
        name = todo.pop()
        path = _module_path(name, root)
        if name in seen or path is None or path == root / "__init__.py" or name.split(".")[1] in (*GROUND, *COMMANDS):
            continue
        seen.add(name)
        _, text, imports = _module(path)
        todo += imports
        parts.append(f"{name} {text}")
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()[:16]


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
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions() -> dict[str, str]:
    """Return the versions of the packages that a number may depend on."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            from wmdd import __version__

            found[name] = __version__ if name == "wmdd" else "absent"
    return found
