"""Reach: which definitions of a package some code refers to, directly or through others, read from the sources alone.

A definition is what a module binds at its top level: a function, a class with its methods, a constant. Its text says what it
does and nothing of where it stands: names are replaced by what they refer to, and imports, docstrings, comments and annotations
are left out. Annotations make no object but in two places, where they count: a command's arguments and a class's fields.
A method is reached with its class. Where a reference can't be followed, more is taken in, never less.
"""

import ast
import hashlib
from collections.abc import Container, Iterable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from wmdd.names import Bound, Import, Module, bound, for_types, imported, imports, is_command, registers

FLAGS = "Settings"  # base of the classes whose values reach a stage as flags: of these methods count, fields do not
ERROR = "WmddError"  # ends a job; its words decide no number
OWN_NAMES = ("globals", "eval", "exec")  # may refer to any definition of their module
ALL_MODULES = ("importlib.import_module", "sys.modules", "__import__")  # to any of the package


class Definition(NamedTuple):
    """A definition by its place; with the name `*` the whole module, with an empty one what runs when it is imported."""

    module: str
    name: str


class Text(NamedTuple):
    """What a definition says: a digest of it, the definitions it refers to in order, and the modules it imports."""

    digest: str
    references: tuple[Definition, ...]
    imports: tuple[str, ...] = ()


class Package:
    """The modules of a package, each read when it is asked for."""

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, root.name
        self.files = {self._name(path): path for path in sorted(root.rglob("*.py"))}
        self.module = cache(self._module)
        self.text = cache(self._text)

    def _name(self, path: Path) -> str:
        parts = path.relative_to(self.root).with_suffix("").parts
        return ".".join([self.name, *(parts[:-1] if parts[-1] == "__init__" else parts)])

    def _module(self, name: str) -> Module:
        return Module(name, self._sources[name], self.files[name].name == "__init__.py")

    @cached_property
    def _sources(self) -> dict[str, str]:
        return {name: path.read_text() for name, path in self.files.items()}

    def named(self, name: str) -> list[Definition]:
        """Return the definitions of a name."""
        modules = [each for each, text in self._sources.items() if name in text]
        return [Definition(each, name) for each in modules if name in self.module(each).definitions]

    def commands(self, name: str) -> list[Definition]:
        """Return the functions of a name that are registered as commands."""
        return [place for place in self.named(name) if any(map(is_command, self.nodes(place)))]

    def nodes(self, place: Definition) -> list[ast.stmt]:
        """Return the statements of a definition."""
        module = self.module(place.module)
        return module.definitions.get(place.name, []) if place.name else module.others

    def follow(self, what: Import, attributes: Sequence[str]) -> list[tuple[Definition | str, Sequence[str]]]:
        """Return what an imported name refers to, and which of its attributes are left; a text if it is of another package."""
        module, path = what.module, [*filter(None, [what.name]), *attributes]
        if module.partition(".")[0] != self.name:
            return [(".".join([module, *path]), ())]
        if module not in self.files:  # a folder without `__init__.py`, or not there
            return self.follow(Import(f"{module}.{path[0]}"), path[1:]) if path else [(Definition(self.name, "*"), ())]
        if not path:
            return [(Definition(module, "*"), ())]
        here, (first, *rest) = self.module(module), path
        found: list[tuple[Definition | str, Sequence[str]]] = []
        if first in here.definitions:
            found.append((Definition(module, first), rest))
        for each in here.imports.get(first, ()):
            if each != Import(module, first):  # a package's own module, imported by its name
                found += self.follow(each, rest)
        if not found and f"{module}.{first}" in self.files:
            found = self.follow(Import(f"{module}.{first}"), rest)
        return found or [(Definition(module, "__getattr__" if "__getattr__" in here.definitions else "*"), path)]

    def classes(self, node: ast.expr, module: str) -> list[tuple[ast.ClassDef, Definition]]:
        """Return the classes of the package that an expression at the top of a module names."""
        reader = _Reader(self, self.module(module))
        reader.read(node)
        found = [(each, place) for place in reader.references for each in self.nodes(place)]
        return [(each, place) for each, place in found if isinstance(each, ast.ClassDef)]

    def is_settings(self, node: ast.ClassDef, module: str) -> bool:
        """Return whether a class is `FLAGS`, or has it among its bases."""
        bases = [each for base in node.bases for each in self.classes(base, module)]
        return node.name == FLAGS or any(self.is_settings(each, place.module) for each, place in bases)

    def _text(self, place: Definition) -> Text:
        module = self.module(place.module)
        if place.name == "*":
            inside = [each for each in self.files if each.startswith(f"{module.name}.")] if module.is_package else []
            own = [Definition(module.name, name) for name in module.definitions]
            return Text("*", (*own, *(Definition(each, "*") for each in inside)))
        reader = _Reader(self, module)
        for node in self.nodes(place):
            reader.read(node)
        if not place.name:
            reader.references += [
                Definition(module.name, name) for name in module.definitions if self._handed(module, name)
            ]
            reader.references += [
                Definition(each.module, "*") for each in module.imports.get("*", ()) if each.module in self.files
            ]
            reader.imports += [module.parent, *module.imported]
        said = hashlib.sha256("\n".join(reader.tokens).encode()).hexdigest() if reader.tokens else ""
        return Text(said, tuple(reader.references), tuple(name for name in reader.imports if name in self.files))

    def _handed(self, module: Module, name: str) -> bool:
        """Return whether a definition is given to a decorator of this package, by which it is reached without its name."""
        reader = _Reader(self, module)
        nodes = module.definitions[name]
        reader.read([each for node in nodes for each in getattr(node, "decorator_list", ()) if not registers(each)])
        return bool(reader.references)

    def reached(self, start: Definition, stops: Container[str], brings: Mapping[str, str]) -> set[Definition]:
        """Return all that a definition reaches, itself included.

        Args:
            start: the definition.
            stops: names of definitions that are left out, with what only they reach.
            brings: name of a definition to that of another, which is reached with it.
        """
        found: set[Definition] = set()
        todo = [start]
        while todo:
            place = todo.pop()
            if place in found or place.name in stops:
                continue
            found.add(place)
            text = self.text(place)
            todo += [*text.references, *(Definition(name, "") for name in (place.module, *text.imports))]
            todo += self.named(brings[place.name]) if place.name in brings else []
        return found

    def digest(self, places: Iterable[Definition]) -> str:
        """Return a digest of definitions: of what each says, of what it refers to, and so on; not of where they stand."""
        texts = {place: text for place in places if (text := self.text(place)).digest}
        labels = {place: text.digest for place, text in texts.items()}
        kinds = 0
        while len(set(labels.values())) > kinds:  # until those of one text that refer to different ones are told apart
            kinds = len(set(labels.values()))
            labels = {place: _label(place, text, labels) for place, text in texts.items()}
        return hashlib.sha256("\n".join(sorted(labels.values())).encode()).hexdigest()


def _label(place: Definition, text: Text, labels: Mapping[Definition, str]) -> str:
    references = [labels.get(each, "") for each in text.references]
    said = "\n".join([text.digest, *(sorted(references) if place.name == "*" else references)])
    return hashlib.sha256(said.encode()).hexdigest()


class _Reader:
    """Reads code: its text as `tokens`, the definitions that it refers to, and the modules that it imports."""

    def __init__(self, package: Package, module: Module) -> None:
        self.package, self.module = package, module
        self.tokens: list[str] = []
        self.references: list[Definition] = []
        self.imports: list[str] = []
        self._scopes: list[Bound] = []
        self._is_command = False

    def read(self, code: Any) -> None:
        """Read a node, a list of them, or what else a node has."""
        if isinstance(code, list):
            self.tokens.append("[")
            for each in code:
                self.read(each)
            self.tokens.append("]")
        elif isinstance(code, ast.AST):
            _READ.get(type(code), _Reader._any)(self, code)
        else:
            self.tokens.append(repr(code))

    def _any(self, node: ast.AST) -> None:
        parts = [value for name, value in ast.iter_fields(node) if name not in ("ctx", "kind", "type_comment")]
        self._all(type(node).__name__, *parts)

    def _all(self, kind: str, *parts: Any) -> None:
        self.tokens.append(f"({kind}")
        for part in parts:
            self.read(part)
        self.tokens.append(")")

    def _nothing(self, node: ast.AST) -> None:
        """Leave out what does nothing by itself."""

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        self.imports += imported(node, self.module.package)

    def _expression(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # as docstrings are
            self._any(node)

    def _if(self, node: ast.If) -> None:
        if for_types(node):
            self.read(node.orelse)
        else:
            self._any(node)

    def _raise(self, node: ast.Raise) -> None:
        if isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func).rpartition(".")[2] == ERROR:
            self.tokens.append(f"raise {ERROR}")
        else:
            self._any(node)

    def _name(self, node: ast.Name | ast.Attribute) -> None:
        """Replace a name with its attributes by what they refer to."""
        attributes: list[str] = []
        base: ast.expr = node
        while isinstance(base, ast.Attribute):
            attributes.insert(0, base.attr)
            base = base.value
        if isinstance(base, ast.Name):
            self._refer(base.id, attributes)
        else:
            self._all(".".join(["", *attributes]), base)

    def _refer(self, name: str, attributes: Sequence[str]) -> None:
        here, package = self.module, self.package
        scope = next((scope for scope in reversed(self._scopes) if name in scope), None)
        found: list[tuple[Definition | str, Sequence[str]]] = []
        if scope is not None:
            found = [each for what in scope[name] for each in package.follow(what, attributes)]
        elif name in here.definitions or name in here.imports:
            found = package.follow(Import(here.name, name), attributes)
        elif name in OWN_NAMES:
            self.references.append(Definition(here.name, "*"))
        for target, rest in found or [(name, attributes)]:
            if isinstance(target, str):
                self.tokens.append(".".join(["from" if found else "", target, *rest]))
                if target.startswith(ALL_MODULES):
                    self.references.append(Definition(package.name, "*"))
            else:
                self.tokens.append(".".join(["here", target.name, *rest]))
                self.references.append(target)

    def _argument(self, node: ast.arg) -> None:
        self.tokens.append(node.arg)
        if self._is_command:
            self._annotation(node.annotation)

    def _annotation(self, node: ast.expr | None) -> None:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        self.read(node)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        """Read a function, whose own names hide those of the module."""
        decorators = (
            [] if isinstance(node, ast.Lambda) else [each for each in node.decorator_list if not registers(each)]
        )
        self._all(f"{type(node).__name__} {getattr(node, 'name', '')}", decorators)
        self._is_command = is_command(node)
        self.read(node.args)
        self._is_command = False
        parameters = [each for each in ast.iter_child_nodes(node.args) if isinstance(each, ast.arg)]
        body = [node.body] if isinstance(node, ast.Lambda) else node.body
        self._scopes.append(bound([*parameters, *body], self.module.package))
        self.read(body)
        self._scopes.pop()

    def _comprehension(self, node: Any) -> None:
        first, *others = node.generators
        self._all(type(node).__name__, first.iter)  # which is evaluated outside
        self._scopes.append(bound([each.target for each in node.generators], self.module.package))
        self.read([first.target, first.ifs, first.is_async, *others])
        self.read([node.key, node.value] if isinstance(node, ast.DictComp) else node.elt)
        self._scopes.pop()

    def _annotated(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.read(ast.Assign([node.target], node.value))

    def _class(self, node: ast.ClassDef) -> None:
        self._all(f"ClassDef {node.name}", node.decorator_list, node.bases, node.keywords)
        of_flags = self.package.is_settings(node, self.module.name)
        for each in node.body:
            if isinstance(each, ast.AnnAssign) and of_flags:
                self.references += [place for _, place in self.package.classes(each.annotation, self.module.name)]
            elif isinstance(each, ast.AnnAssign):
                self._all("field", each.target, each.value)
                self._annotation(each.annotation)
            else:
                self.read(each)
            if isinstance(each, ast.Import | ast.ImportFrom):
                found = [
                    to for _, what in imports(each, self.module.package) for to, _ in self.package.follow(what, ())
                ]
                self.references += [to for to in found if isinstance(to, Definition)]


_READ: dict[type[ast.AST], Any] = {
    ast.Pass: _Reader._nothing,
    ast.Global: _Reader._nothing,
    ast.Nonlocal: _Reader._nothing,
    ast.Import: _Reader._import,
    ast.ImportFrom: _Reader._import,
    ast.Expr: _Reader._expression,
    ast.If: _Reader._if,
    ast.Raise: _Reader._raise,
    ast.Name: _Reader._name,
    ast.Attribute: _Reader._name,
    ast.arg: _Reader._argument,
    ast.FunctionDef: _Reader._function,
    ast.AsyncFunctionDef: _Reader._function,
    ast.Lambda: _Reader._function,
    ast.ListComp: _Reader._comprehension,
    ast.SetComp: _Reader._comprehension,
    ast.DictComp: _Reader._comprehension,
    ast.GeneratorExp: _Reader._comprehension,
    ast.AnnAssign: _Reader._annotated,
    ast.ClassDef: _Reader._class,
}
