"""Reach: which definitions of a package some code refers to, directly or through others, read from the sources alone.

A definition is what a module binds at its top level: a function, a class with its methods, a constant. Its text is its syntax
tree without imports, docstrings, comments and annotations, with each name replaced by that of the definition it refers to: it
doesn't depend on where the definition stands. Annotations make an object, and count, in commands and in a class's fields. In
doubt more is taken in, never less: a name that is the module's in one place of a definition is so in all of it, and what can't
be followed is the whole module.
"""

import ast
import hashlib
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import accumulate
from pathlib import Path
from symtable import SymbolTable, symtable
from typing import Any, NamedTuple

FLAGS = (
    "Settings"  # ends the bases of classes whose values reach a stage as flags: of these methods count, fields do not
)
ERROR = "WmddError"  # ends a job; its words decide no number
ANYTHING = ("globals.", "eval.", "exec.", "__import__.", "from importlib.import_module.", "from sys.modules.")
DEFINING = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Definition(NamedTuple):
    """A definition by its place; with the name `*` the whole module, with an empty one what runs when it is imported."""

    module: str
    name: str


Imports = list[tuple[str, str, list[str]]]  # a name, the module that it is bound to, and names in that: one or none


class Statement(NamedTuple):
    """A statement at the top of a module, the names in it that are the module's, and the imports in it."""

    node: ast.stmt
    names: set[str]
    imports: Imports


class Module:
    """A module: the statements of each of its definitions, and its imports."""

    def __init__(self, name: str, text: str, package: str) -> None:
        lines, end = text.split("\n"), 0
        self.name, self.definitions, self.imports = name, dict[str, list[Statement]](), Imports()
        for node in ast.parse(text).body:
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") and not node.orelse:
                continue
            source = "\n".join(lines[min(end, node.lineno - 1) : node.end_lineno])  # with its decorators
            end = node.end_lineno or 0
            table = symtable(source, name, "exec")
            statement = Statement(node, _names(table), _imports(node, package) if "import" in source else [])
            bound = [each.get_name() for each in table.get_symbols() if each.is_assigned()]
            if not bound or not isinstance(node, (*DEFINING, ast.Assign, ast.AnnAssign)) or self._hands(node):
                bound.append("")
            for each in bound:
                self.definitions.setdefault(each, []).append(statement)
            self.imports += [] if isinstance(node, DEFINING) else statement.imports
        self.known = {*self.definitions, *(bound for bound, *_ in self.imports)}

    def _hands(self, node: ast.stmt) -> bool:
        """Return whether it is given to a decorator of this package, by which it may be reached without its name."""
        decorators = [each for each in getattr(node, "decorator_list", ()) if not _registers(each)]
        names = {each.id for decorator in decorators for each in ast.walk(decorator) if isinstance(each, ast.Name)}
        own = {bound for bound, module, _ in self.imports if module.split(".")[0] == self.name.split(".")[0]}
        return bool(names & {*own, *self.definitions})


class Package:
    """The modules of a package, each read when it is asked for."""

    def __init__(self, root: Path) -> None:
        self.name, self.files = root.name, dict[str, Path]()
        for path in sorted([*root.rglob("*.py"), *root.rglob("*/")]):  # a folder may do without `__init__.py`
            parts = path.relative_to(root.parent).with_suffix("").parts
            self.files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        self.texts = {name: "" if path.is_dir() else path.read_text() for name, path in self.files.items()}
        self.module = cache(self._module)
        self.text = cache(self._text)

    def _module(self, name: str) -> Module:
        path, folder = self.files[name], name.rpartition(".")[0]
        return Module(name, self.texts[name], name if path.name == "__init__.py" else folder)

    def named(self, name: str) -> list[Definition]:
        """Return the definitions of a name."""
        likely = [each for each, text in self.texts.items() if name in text]
        return [Definition(each, name) for each in likely if name in self.module(each).definitions]

    def nodes(self, place: Definition) -> list[ast.stmt]:
        """Return the statements of a definition."""
        return [each.node for each in self.module(place.module).definitions.get(place.name, ())]

    def commands(self, name: str) -> list[Definition]:
        """Return the functions of a name that are registered as commands."""
        return [place for place in self.named(name) if any(map(is_command, self.nodes(place)))]

    def find(self, module: str, path: list[str]) -> list[tuple[Definition | None, str]]:
        """Return what a name in a module refers to, with attributes, and how that reads; without a name, the whole module."""
        if module not in self.files:
            inside = module.partition(".")[0] == self.name
            return [(Definition(self.name, "*") if inside else None, ".".join([f"from {module}", *path]))]
        here, found = self.module(module), list[tuple[Definition | None, str]]()
        for name in path[:1]:
            if name in here.definitions:
                found.append((Definition(module, name), ".".join(["here", *path])))
            for bound, target, names in here.imports:
                if bound == name and (target, names) != (module, [name]):  # which is a package's own module
                    found += self.find(target, names + path[1:])
            if not found and f"{module}.{name}" in self.files:
                found = self.find(f"{module}.{name}", path[1:])
        return found or [(Definition(module, "*"), ".".join(["here *", *path]))]

    def _text(self, place: Definition) -> tuple[str, list[Definition], list[Definition]]:
        """Return what a definition says, what it refers to in order, and what else is taken in with it."""
        module = self.module(place.module)
        whole = [target for bound, target, _ in module.imports if bound == "*" and target in self.files]
        if place.name == "*":
            whole += [each for each in self.files if each.rpartition(".")[0] == module.name]
            own = [Definition(module.name, name) for name in sorted(module.definitions)]
            return "", own, [Definition(each, "*") for each in whole]
        tokens, references, imported = list[str](), list[Definition](), [module.name]
        for statement in module.definitions.get(place.name, ()):
            _Reader(self, module, statement, tokens, references).read(statement.node)
            imported += [".".join([target, *names]) for _, target, names in statement.imports]
        runs = {part for each in imported for part in accumulate(each.split("."), "{}.{}".format) if part in self.files}
        taken = [Definition(each, "*") for each in whole] + [Definition(each, "") for each in runs]
        return "\n".join(tokens), references, taken

    def reached(self, start: Definition, stops: Container[str], brings: Mapping[str, str]) -> set[Definition]:
        """Return all that a definition reaches but by the names `stops`; a name of `brings` reaches another."""
        found: set[Definition] = set()
        todo = [start]
        while todo:
            place = todo.pop()
            if place not in found and place.name not in stops:
                found.add(place)
                _, references, taken = self.text(place)
                todo += references + taken + (self.named(brings[place.name]) if place.name in brings else [])
        return found

    def digest(self, places: Iterable[Definition]) -> str:
        """Return a digest of definitions: of what each says and refers to, not of where they stand."""
        texts = {place: self.text(place)[:2] for place in places}
        labels = dict.fromkeys(texts, "")
        for _ in range(4):  # so that definitions of one name are told apart by what they say and refer to
            said = {place: [said, *(labels.get(each, "") for each in to)] for place, (said, to) in texts.items()}
            labels = {place: _hash(each) for place, each in said.items()}
        return _hash(sorted(labels[place] for place, (said, _) in texts.items() if said))


@dataclass
class _Reader:
    """Reads a statement of a module: its text as `tokens`, and the definitions that it refers to."""

    package: Package
    module: Module
    here: Statement
    tokens: list[str]
    references: list[Definition]

    @cached_property
    def left_out(self) -> tuple[str, str]:
        """The parts of a node that say nothing."""
        return "ctx", "" if is_command(self.here.node) else "annotation"

    def read(self, *codes: Any) -> None:
        for code in codes:
            match code:
                case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant()) | ast.Pass():
                    pass
                case ast.Name() | ast.Attribute() if path := _path(code):
                    self._refer(path)
                case ast.Raise(exc=ast.Call(func=ast.Name(id=name))) if name == ERROR:
                    self.tokens.append(f"raise {ERROR}")
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    decorators = [each for each in code.decorator_list if not _registers(each)]
                    self.read(f"def {code.name}", decorators, code.args, code.body)
                case ast.ClassDef():
                    self._class(code)
                case ast.AST():
                    parts = [part for name, part in ast.iter_fields(code) if name not in self.left_out]
                    self.read(type(code).__name__, parts)
                case list():
                    self.read("[", *code, "]")
                case _:
                    self.tokens.append(repr(code))

    def _class(self, node: ast.ClassDef) -> None:
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
        others = [each for each in node.body if not isinstance(each, ast.AnnAssign)]
        aliases = [alias for each in others if isinstance(each, ast.ImportFrom) for alias in each.names]
        own = [ast.Name(each.asname or each.name) for each in aliases]
        self.read(f"class {node.name}", node.decorator_list, node.bases, node.keywords, own, others)
        if node.name == FLAGS or any(ast.unparse(base).endswith(FLAGS) for base in node.bases):
            references = list[Definition]()  # of its fields only their classes count
            replace(self, tokens=[], references=references).read(*(each.annotation for each in fields))
            nodes = [(each, node) for each in references for node in self.package.nodes(each)]
            self.references += [each for each, node in nodes if isinstance(node, ast.ClassDef)]
        else:
            self.read(*([each.annotation, each.target, each.value] for each in fields))

    def _refer(self, path: list[str]) -> None:
        """Replace a name with its attributes by what they refer to."""
        package, module, (name, *rest) = self.package, self.module, path
        local = [(target, names + rest) for bound, target, names in self.here.imports if bound == name]
        found = [each for target in local for each in package.find(*target)]
        found += package.find(module.name, path) if name in self.here.names and name in module.known else []
        for place, text in found or [(None, ".".join(path))]:
            self.tokens.append(text)
            place = Definition(package.name, "*") if f"{text}.".startswith(ANYTHING) else place
            self.references += [place] if place else []


def is_command(node: ast.AST) -> bool:
    """Return whether it is a function that is registered as a command."""
    return any(map(_registers, getattr(node, "decorator_list", ())))


def _registers(decorator: ast.expr) -> bool:
    """Return whether a decorator makes a function a command: `@app.command`."""
    return getattr(getattr(decorator, "func", decorator), "attr", "") == "command"


def _imports(code: ast.AST, package: str) -> Imports:
    found = Imports()
    for node in ast.walk(code):
        if isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            found += [(alias.asname or alias.name, module, [alias.name]) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.asname or alias.name, alias.name, []) for alias in node.names]
            found += [(top, top, []) for alias in node.names for top in [alias.name.partition(".")[0]]]
    return found


def _names(table: SymbolTable) -> set[str]:
    """Return the names that are the module's in any scope of code; in a class, all until they are bound."""
    found = {each.get_name() for each in table.get_symbols() if each.is_global()}
    if table.get_type() == "class":
        found |= {each.get_name() for each in table.get_symbols() if each.is_referenced()}
    return found.union(*map(_names, table.get_children()))


def _path(node: ast.expr) -> list[str]:
    """Return the names of `name.attribute.attribute`, none if it begins with anything else."""
    if isinstance(node, ast.Attribute):
        before = _path(node.value)
        return before and [*before, node.attr]
    return [node.id] if isinstance(node, ast.Name) else []


def _hash(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
