"""Names: what code binds in a scope, and what of that is imported, by its syntax tree."""

import ast
from collections.abc import Iterable, Iterator
from typing import NamedTuple

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Import(NamedTuple):
    """What an import binds a name to: a module, or a name of it (`*`: all)."""

    module: str
    name: str = ""


Bound = dict[str, list[Import]]  # names of a scope, with the imports among what they are bound to


class Module:
    """A module: its definitions by name, its imports, and the statements that bind nothing."""

    def __init__(self, name: str, text: str, is_package: bool) -> None:
        self.name, self.is_package = name, is_package
        self.parent = name.rpartition(".")[0]
        self.package = name if is_package else self.parent
        self.definitions: dict[str, list[ast.stmt]] = {}
        self.imports: Bound = {}
        self.imported: list[str] = []  # modules
        self.others: list[ast.stmt] = []
        self._add(ast.parse(text).body)

    def _add(self, body: Iterable[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.If) and for_types(node):
                self._add(node.orelse)
                continue
            names = bound([node], self.package)
            for name, imports in names.items():
                self.imports.setdefault(name, []).extend(imports)
                if not isinstance(node, ast.Import | ast.ImportFrom):
                    self.definitions.setdefault(name, []).append(node)
            if not isinstance(node, FUNCTIONS):
                self.imported += imported(node, self.package)
            if not names:
                self.others.append(node)


def for_types(node: ast.If) -> bool:
    """Return whether it is `if TYPE_CHECKING:`."""
    return ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING"


def registers(decorator: ast.expr) -> bool:
    """Return whether a decorator makes a function a command: `@app.command`."""
    decorator = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(decorator, ast.Attribute) and decorator.attr == "command"


def is_command(node: ast.AST) -> bool:
    """Return whether it is a function that is registered as a command."""
    return isinstance(node, FUNCTIONS) and any(map(registers, node.decorator_list))


def bound(nodes: Iterable[ast.AST], package: str) -> Bound:
    """Return the names that code binds in its own scope, not in those of functions, classes and comprehensions within.

    Args:
        nodes: the code.
        package: that relative imports begin at.
    """
    names: Bound = {}
    outer: set[str] = set()
    todo = [*nodes]
    while todo:
        node = todo.pop(0)
        inside: Iterable[ast.AST] = ast.iter_child_nodes(node)
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.setdefault(name, [])
                continue
            case ast.Lambda():
                continue
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                inside = [each.target for each in ast.walk(node) if isinstance(each, ast.NamedExpr)]
            case ast.If() if for_types(node):
                inside = node.orelse
            case ast.Import() | ast.ImportFrom():
                for name, what in imports(node, package):
                    names.setdefault(name, []).append(what)
            case ast.Global() | ast.Nonlocal():
                outer |= set(node.names)
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()) | ast.arg(arg=name) | ast.MatchMapping(rest=str(name)):
                names.setdefault(name, [])
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                names.setdefault(name, [])
        todo += inside
    return {name: found for name, found in names.items() if name not in outer}


def imports(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[tuple[str, Import]]:
    """Yield the names that an import binds, and to what."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            top = alias.name.partition(".")[0]
            yield alias.asname or top, Import(alias.name if alias.asname else top)
        return
    base = package.rsplit(".", node.level - 1)[0] if node.level else ""
    for alias in node.names:
        yield alias.asname or alias.name, Import(".".join(filter(None, [base, node.module])), alias.name)


def imported(code: ast.AST, package: str) -> Iterator[str]:
    """Yield what may be modules among the imports in code."""
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for _, (module, name) in imports(node, package):
                yield from (module, f"{module}.{name}")
