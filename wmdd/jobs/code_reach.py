"""Reach: which definitions of a package some code refers to, directly or through others, read from the sources alone.

A definition is what a module binds at its top level: a function, a class with its methods, a constant. Its text is its syntax
tree without imports, docstrings, comments and annotations, each name replaced by what it refers to, so that the text doesn't
depend on where the definition stands. Annotations make an object, and count, in commands and in a class's fields.

In doubt more is taken in, never less: a name that is the module's in one place of a definition is the module's in all of it,
and where a reference can't be followed, the whole module is taken in.
"""

import ast
import hashlib
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import accumulate
from pathlib import Path
from symtable import SymbolTable, symtable
from typing import Any, NamedTuple

FLAGS = "Settings"  # ends the bases of classes whose values reach a stage as flags: their methods count, their fields do not
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
            names = [symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned()]
            if not names or not isinstance(node, (*DEFINING, ast.Assign, ast.AnnAssign)) or self._is_handed_on(node):
                names.append("")
            for bound in names:
                self.definitions.setdefault(bound, []).append(statement)
            self.imports += [] if isinstance(node, DEFINING) else statement.imports
        self.names = {*self.definitions, *(bound for bound, *_ in self.imports)}

    def _is_handed_on(self, node: ast.stmt) -> bool:
        """Return whether it is given to a decorator of this package, by which it may be reached without its name."""
        decorators = [each for each in getattr(node, "decorator_list", ()) if not _is_mark(each)]
        names = {part.id for decorator in decorators for part in ast.walk(decorator) if isinstance(part, ast.Name)}
        own = {bound for bound, module, _ in self.imports if module.split(".")[0] == self.name.split(".")[0]}
        return bool(names & {*own, *self.definitions})


class Package:
    """The modules of a package, each read when it is asked for."""

    def __init__(self, root: Path) -> None:
        self.name, self.files = root.name, dict[str, Path]()
        for path in sorted([*root.rglob("*.py"), *root.rglob("*/")]):  # a folder may do without `__init__.py`
            if path.name == "__pycache__":
                continue
            parts = path.relative_to(root.parent).with_suffix("").parts
            self.files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        self.texts = {
            name: "" if path.is_dir() else path.read_text(encoding="utf-8") for name, path in self.files.items()
        }
        self.sources = _hash([f"{name} {text}" for name, text in self.texts.items()])
        self.module = cache(self._module)
        self.text = cache(self._text)

    def _module(self, name: str) -> Module:
        path, folder = self.files[name], name.rpartition(".")[0]
        return Module(name, self.texts[name], name if path.name == "__init__.py" else folder)

    def named(self, name: str) -> list[Definition]:
        """Return the definitions of a name."""
        line = re.compile(rf"^(def |class |async def )?{name}\b", re.MULTILINE)
        likely = [module for module, text in self.texts.items() if line.search(text)]
        return [Definition(module, name) for module in likely if name in self.module(module).definitions]

    def nodes(self, place: Definition) -> list[ast.stmt]:
        """Return the statements of a definition."""
        return [statement.node for statement in self.module(place.module).definitions.get(place.name, ())]

    def commands(self, name: str) -> list[Definition]:
        """Return the functions of a name that are commands."""
        return [place for place in self.named(name) if any(map(is_command, self.nodes(place)))]

    def find(self, module: str, path: list[str]) -> list[tuple[Definition | None, str]]:
        """Return what a name in a module refers to, with attributes, and how that reads; without a name, the whole module."""
        if module not in self.files:
            inside = module.partition(".")[0] == self.name
            return [(Definition(self.name, "*") if inside else None, ".".join([f"from {module}", *path]))]
        source, targets = self.module(module), list[tuple[Definition | None, str]]()
        for name in path[:1]:
            if name in source.definitions:
                targets.append((Definition(module, name), ".".join(["here", *path])))
            for bound, origin, names in source.imports:
                if bound == name and (origin, names) != (module, [name]):  # which is a package's own module
                    targets += self.find(origin, names + path[1:])
            if not targets and f"{module}.{name}" in self.files:
                targets = self.find(f"{module}.{name}", path[1:])
        return targets or [(Definition(module, "*"), ".".join(["here *", *path]))]

    def _text(self, place: Definition) -> tuple[str, list[Definition], list[Definition]]:
        """Return what a definition says, what it refers to in order, and what else is taken in with it."""
        module = self.module(place.module)
        whole_modules = [target for bound, target, _ in module.imports if bound == "*" and target in self.files]
        if place.name == "*":
            whole_modules += [name for name in self.files if name.rpartition(".")[0] == module.name]
            own = [Definition(module.name, name) for name in sorted(module.definitions)]
            return "", own, [Definition(name, "*") for name in whole_modules]
        tokens, references, imported = list[str](), list[Definition](), [module.name]
        for statement in module.definitions.get(place.name, ()):
            _Reader(self, module, statement, tokens, references).read(statement.node)
            imported += [".".join([target, *names]) for _, target, names in statement.imports]
        prefixes = {prefix for name in imported for prefix in accumulate(name.split("."), "{}.{}".format)}
        taken = [Definition(name, "*") for name in whole_modules]
        taken += [Definition(name, "") for name in prefixes if name in self.files]  # what runs when it is imported
        return "\n".join(tokens), references, taken

    def reached(self, start: Definition, stops: Container[str], brings: Mapping[str, str]) -> set[Definition]:
        """Return all that a definition reaches but by the names `stops`; a name of `brings` reaches another."""
        places, todo = set[Definition](), [start]
        while todo:
            place = todo.pop()
            if place not in places and place.name not in stops:
                places.add(place)
                _, references, taken = self.text(place)
                todo += references + taken + (self.named(brings[place.name]) if place.name in brings else [])
        return places

    def digest(self, places: Iterable[Definition]) -> str:
        """Return a digest of definitions: of what each says and refers to, not of where they stand."""
        texts = {place: self.text(place)[:2] for place in places}
        labels = dict.fromkeys(texts, "")
        for _ in range(4):  # so that definitions of one name are told apart by what they say and refer to
            labels = {
                place: _hash([text, *(labels.get(target, "") for target in references)])
                for place, (text, references) in texts.items()
            }
        return _hash(sorted(labels[place] for place, (text, _) in texts.items() if text))


@dataclass
class _Reader:
    """Reads a statement of a module: its text as `tokens`, and the definitions that it refers to."""

    package: Package
    module: Module
    statement: Statement
    tokens: list[str]
    references: list[Definition]

    @cached_property
    def left_out(self) -> tuple[str, str]:
        """The parts of a node that say nothing."""
        return "ctx", "" if is_command(self.statement.node) else "annotation"

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
                    decorators = [each for each in code.decorator_list if not _is_mark(each)]
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
        fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
        others = [part for part in node.body if not isinstance(part, ast.AnnAssign)]
        aliases = [alias for part in others if isinstance(part, ast.ImportFrom) for alias in part.names]
        imported = [ast.Name(alias.asname or alias.name) for alias in aliases]
        self.read(f"class {node.name}", node.decorator_list, node.bases, node.keywords, imported, others)
        if node.name == FLAGS or any(ast.unparse(base).endswith(FLAGS) for base in node.bases):
            references = list[Definition]()  # of its fields only their classes count
            replace(self, tokens=[], references=references).read(*(field.annotation for field in fields))
            nodes = [(place, node) for place in references for node in self.package.nodes(place)]
            self.references += [place for place, node in nodes if isinstance(node, ast.ClassDef)]
        else:
            self.read(*([field.annotation, field.target, field.value] for field in fields))

    def _refer(self, path: list[str]) -> None:
        """Replace a name with its attributes by what they refer to."""
        package, module, (name, *rest) = self.package, self.module, path
        local = [(target, names + rest) for bound, target, names in self.statement.imports if bound == name]
        targets = [target for place in local for target in package.find(*place)]
        if name in self.statement.names and name in module.names:
            targets += package.find(module.name, path)
        for place, text in targets or [(None, ".".join(path))]:
            self.tokens.append(text)
            place = Definition(package.name, "*") if f"{text}.".startswith(ANYTHING) else place
            self.references += [place] if place else []


def is_command(node: ast.AST) -> bool:
    """Return whether it is a function that is marked as a command."""
    return any(map(_is_mark, getattr(node, "decorator_list", ())))


def _is_mark(decorator: ast.expr) -> bool:
    """Return whether a decorator marks a command: `@command`."""
    return isinstance(decorator, ast.Name) and decorator.id == "command"


def _imports(code: ast.AST, package: str) -> Imports:
    imports = Imports()
    for node in ast.walk(code):
        if isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            imports += [(alias.asname or alias.name, module, [alias.name]) for alias in node.names]
        elif isinstance(node, ast.Import):
            imports += [(alias.asname or alias.name, alias.name, []) for alias in node.names]
            imports += [(top, top, []) for alias in node.names for top in [alias.name.partition(".")[0]]]
    return imports


def _names(table: SymbolTable) -> set[str]:
    """Return the names that are the module's in any scope of code; in a class, all until they are bound."""
    in_class = table.get_type() == "class"
    symbols = [symbol for symbol in table.get_symbols() if symbol.is_global() or (in_class and symbol.is_referenced())]
    return {symbol.get_name() for symbol in symbols}.union(*map(_names, table.get_children()))


def _path(node: ast.expr) -> list[str]:
    """Return the names of `name.attribute.attribute`, none if it begins with anything else."""
    if isinstance(node, ast.Attribute):
        before = _path(node.value)
        return before and [*before, node.attr]
    return [node.id] if isinstance(node, ast.Name) else []


def _hash(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
