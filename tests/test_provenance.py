"""A stage's digest follows the code that decides its numbers and nothing else; what made a file is on record."""

import ast
import re
import shutil
import subprocess
import sys

import pytest
from test_commands import COMMANDS, here, made  # noqa: F401

from wmdd import provenance
from wmdd.errors import WmddError
from wmdd.names import Import, Module, is_command
from wmdd.provenance import GROUND, HANDED, PACKAGE, code_digest, git_revision, versions
from wmdd.reach import Definition, Package

RULES = "\n".join(path.read_text() for path in sorted((PACKAGE.parent / "rules").glob("*.smk")))
STAGES = sorted(set(re.findall(r'code_digest\("(\w+)"\)', RULES)))
TRAINED = {"autoencoder", "diffusion", "expert", "student", "teacher"}
CLASSIFIERS = {"expert", "student", "teacher"}
NETWORKS = TRAINED | {"decode", "distance", "embedding", "encode", "features", "match", "recover", "relabel", "select"}

COUPLED = "RecoverSettings.coupled"
# function -> the stages whose numbers it decides
DECIDES = {
    COUPLED: {"recover"},
    "RelabelSettings.labelled": {"relabel"},
    "RelabelSettings._unpruned": {"relabel"},
    "learned_labels": {"student"},
    "check_classes": NETWORKS - {"autoencoder", "diffusion", "expert"} | {"images"},
    "through_jpeg": {"recover"},
    "resized_crop": {"recover", "relabel", "student", "teacher", "select"},
    "Engine": NETWORKS,
    "seeds_of": {"relabel"},
    "Confident": {"barycenter", "select"},
    "cuturi_doucet": {"barycenter", "quantize"},
    "quantize_all": {"barycenter", "decay", "quantize", "select"},
    "learning_rate": TRAINED,
    "evaluate": CLASSIFIERS,
    "parts_of": {"teacher"},
    "join_features": {"features", "gather"},
    "_block": {"barycenter", "encode", "features", "match", "quantize", "recover"},
    "_save_barycenters": {"barycenter"},
    "_quality": {"distances", "page", "report"},
    "_save_images": {"decode", "match", "recover", "select"},
    "_experts": {"match"},
    "_own": {"student"},
    "_write_history": TRAINED,
    "_coder": {"decode", "encode"},
    "draw_grid": {"grid"},
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A copy of the package that no test edits."""
    folder = tmp_path_factory.mktemp("pristine") / "wmdd"
    return shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))


@pytest.fixture(scope="module")
def before(pristine):
    """The digests of an unedited package."""
    return digests(pristine)


@pytest.fixture
def package(pristine, tmp_path):
    """A copy of the package to edit."""
    return shutil.copytree(pristine, tmp_path / "wmdd")


def digests(root, stages=STAGES):
    """The digests of the files as they are now."""
    code_digest.cache_clear()
    provenance._package.cache_clear()
    return {stage: code_digest(stage, root) for stage in stages}


def edit(path, change):
    """Change the syntax tree of a module."""
    tree = ast.parse(path.read_text())
    tree = change(tree) or tree
    path.write_text(ast.unparse(ast.fix_missing_locations(tree)))


@pytest.fixture(scope="module")
def changed(pristine, before):
    """A function: the stages whose digest is another once a module is changed in a way that adds no reference."""
    known = Package(pristine)
    reached = {stage: reach(known, stage) for stage in STAGES}

    def stages(module, change):
        tree = ast.parse(known.files[module].read_text())
        change(tree)
        edited = Package(pristine)
        own, read = Module(module, ast.unparse(tree), known.module(module).is_package), edited.text
        edited.module = lambda name: own if name == module else known.module(name)
        edited.text = lambda place: read(place) if place.module == module else known.text(place)
        return {stage for stage in STAGES if edited.digest(reached[stage])[:16] != before[stage]}

    return stages


def reach(package, stage):
    return package.reached(package.commands(stage)[0], GROUND, HANDED)


def begin_differently(name):
    """Return a change: another first statement of a function, a class, or a method `Class.method`."""

    def change(tree):
        node = tree
        for part in name.split("."):
            (node,) = [each for each in node.body if getattr(each, "name", "") == part]
        node.body.insert(0, ast.parse("added_by_a_test = 1").body[0])

    return change


def module_of(name):
    """The only module with a definition of the name."""
    (place,) = Package(PACKAGE).named(name.partition(".")[0])
    return place.module


# Which stages there are


def test_every_rule_has_a_digest_of_its_own_name():
    # rules made in a loop have no name in their first line, and that of the first one in the next but one
    found = re.findall(r'^rule (\w+):|^    rule:\n        name:\n            "(\w+)"', RULES, re.MULTILINE)
    rules = [
        (usual or looped).removesuffix("_part") for usual, looped in found if usual != "figures"
    ]  # which runs nothing
    assert rules == re.findall(r'code_digest\("(\w+)"\)', RULES)
    assert {"data", "teacher", "features", "barycenter", "recover", "images", "select", "relabel", "student"} < set(
        STAGES
    )


def test_every_stage_has_a_digest_and_no_two_share_one(before):
    assert all(re.fullmatch(r"[0-9a-f]{16}", value) for value in before.values())
    assert len(set(before.values())) == len(before)
    assert digests(PACKAGE) == before, "it depends on where the code is"


def test_no_stage_no_digest():
    with pytest.raises(WmddError, match="0 functions recovery are decorated as a command"):
        code_digest("recovery")


def test_the_digest_is_the_same_in_another_process_and_needs_no_torch(before):
    code = "import sys; from wmdd.provenance import code_digest; print(code_digest('recover'), 'torch' in sys.modules)"
    said = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=PACKAGE.parent)
    assert said.split() == [before["recover"], "False"]


def test_the_digest_is_remembered_for_a_process(package, before):
    assert digests(package) == before
    edit(Package(package).files[module_of(COUPLED)], begin_differently(COUPLED))
    assert code_digest("recover", package) == before["recover"]
    assert digests(package)["recover"] != before["recover"]


# What changes nothing


def documented(tree):
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None
    ]


def reworded(tree):
    for node in documented(tree):
        node.body[0].value.value = "Other words."


def undocumented(tree):
    for node in documented(tree):
        node.body = node.body[1:] or [ast.Pass()]


def in_another_order(tree):
    places = [i for i, node in enumerate(tree.body) if isinstance(node, ast.FunctionDef)]
    for place, node in zip(places, [tree.body[i] for i in reversed(places)], strict=True):
        tree.body[place] = node


def unannotated(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and "command" not in ast.unparse(node.decorator_list):
            node.returns = None
            for each in ast.walk(node.args):
                if isinstance(each, ast.arg):
                    each.annotation = None


def with_imports_for_types(tree):
    tree.body.append(
        ast.parse("if TYPE_CHECKING:\n    from wmdd.student import train\n    from wmdd import plan").body[0]
    )


def with_a_function_that_nobody_calls(tree):
    tree.body.append(ast.parse("def added_by_a_test():\n    from wmdd.student import train\n    return train").body[0])


def with_other_errors(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and "WmddError" in ast.unparse(node.exc):
            node.exc.args = [ast.Constant("other words")]


def with_other_fields_of_settings(tree):
    """Other defaults, bounds and descriptions, and a new field."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and re.search("Settings$", node.name):
            fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
            for field in fields:
                field.value = ast.parse("Field(1, ge=7, description='other words')").body[0].value
            node.body.append(ast.parse("added_by_a_test: int = 3").body[0])


@pytest.mark.parametrize(
    "change",
    [
        reworded,
        undocumented,
        in_another_order,
        unannotated,
        with_imports_for_types,
        with_a_function_that_nobody_calls,
        with_other_errors,
        with_other_fields_of_settings,
    ],
)
def test_what_decides_no_number_changes_nothing(package, before, change):
    """Nor do comments and layout, which a syntax tree has not."""
    for path in package.rglob("*.py"):
        edit(path, change)
    assert digests(package) == before


def test_moving_and_renaming_every_module_changes_nothing(package, before):
    known = Package(PACKAGE)
    files = {name: path for name, path in Package(package).files.items() if name not in ("wmdd", "wmdd.__main__")}

    def elsewhere(module):
        return (
            ".".join(["wmdd.moved", *(f"{part}_renamed" for part in module.split(".")[1:])])
            if module in files
            else module
        )

    class Moved(ast.NodeTransformer):
        def visit_ImportFrom(self, node):
            return [self.one(node.module, alias.name, alias.asname or alias.name) for alias in node.names]

        def one(self, module, name, bound):
            if known.follow(Import(module, name), ()) == [(Definition(f"{module}.{name}", "*"), ())]:
                module, _, name = elsewhere(f"{module}.{name}").rpartition(".")
            return ast.ImportFrom(elsewhere(module), [ast.alias(name, bound)], 0)

    for path in package.rglob("*.py"):
        edit(path, Moved().visit)
    for name, path in sorted(files.items(), reverse=True):
        place = package.joinpath(*elsewhere(name).split(".")[1:])
        place = place / path.name if path.name == "__init__.py" else place.with_suffix(".py")
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    assert {path.parent for path in package.glob("*.py")} == {package}
    assert len(list(package.glob("*.py"))) == 2
    assert digests(package) == before


@pytest.mark.parametrize("name", GROUND)
def test_the_ground_exists_once_and_changes_nothing(changed, name):
    assert changed(module_of(name), begin_differently(name)) == set()


# What changes it


@pytest.mark.parametrize("name", DECIDES)
def test_a_function_changes_the_stages_that_use_it(changed, name):
    assert changed(module_of(name), begin_differently(name)) == DECIDES[name]


@pytest.mark.parametrize("stage", STAGES)
def test_a_command_changes_its_own_stage_alone(pristine, changed, stage):
    def change(tree):
        (node,) = [node for node in tree.body if is_command(node) and node.name == stage]
        node.body.insert(0, ast.parse("added_by_a_test = 1").body[0])

    assert changed(Package(pristine).commands(stage)[0].module, change) == {stage}


def numbers(node):
    """The numbers in code, without those of annotations, of errors and of fields of settings."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield node
    settings = isinstance(node, ast.ClassDef) and node.name.endswith("Settings")
    for name, value in ast.iter_fields(node):
        for each in value if isinstance(value, list) else [value]:
            dropped = (
                isinstance(each, ast.Raise)
                or name in ("annotation", "returns")
                or (settings and isinstance(each, ast.AnnAssign))
            )
            if isinstance(each, ast.AST) and not dropped:
                yield from numbers(each)


def test_every_number_that_a_stage_reaches_changes_it(pristine, changed):
    """In each module: other numbers in all that is reached of it change exactly the stages that reach one."""
    known = Package(pristine)
    expected = {}
    for stage in STAGES:
        for place in reach(known, stage):
            if place.name != "*" and any(any(numbers(node)) for node in known.nodes(place)):
                expected.setdefault(place.module, set()).add(stage)

    def other_numbers(tree):
        for number in numbers(tree):
            number.value += 1

    assert len(expected) > 40
    assert {module: changed(module, other_numbers) for module in expected} == expected


@pytest.mark.parametrize("stage", COMMANDS)
def test_what_a_stage_runs_is_in_its_digest(here, run, stage):  # noqa: F811
    """Whatever code of the digest calls is in the digest too, or in `GROUND`, which hands out a Job."""
    known = Package(PACKAGE)
    counted = reach(known, stage)
    modules = {str(path): name for name, path in known.files.items()}
    calls = set()

    def place(frame):
        while frame is not None and frame.f_code.co_filename not in modules:
            frame = frame.f_back
        return frame and Definition(modules[frame.f_code.co_filename], frame.f_code.co_qualname.partition(".")[0])

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename in modules:
            calls.add((place(frame.f_back), place(frame)))

    sys.setprofile(note)
    try:
        code, _, err = run(COMMANDS[stage])
    finally:
        sys.setprofile(None)
    assert code == 0, err
    ran = {
        called
        for caller, called in calls
        if caller in counted and called.name in known.module(called.module).definitions
    }
    assert len(ran & counted) > 3
    plumbing = {*GROUND, "Job", "__getattr__"}  # the last, when a module is imported
    assert {called for called in ran - counted if called.name not in plumbing} == set()


def test_no_stage_has_settings_of_its_own(pristine):
    """Defaults of settings are in no digest: who makes settings takes all values from elsewhere."""
    known = Package(pristine)
    for place in set.union(*(reach(known, stage) for stage in STAGES)):
        for node in [node for each in known.nodes(place) for node in ast.walk(each)]:
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Settings"):
                assert not node.args
                assert all(keyword.arg is None for keyword in node.keywords), ast.unparse(node)


# What is followed, in a package of a few lines

STAGE = "@app.command\ndef stage():\n    "
SAME = [
    f"from wmdd.extra import one\n{STAGE}return one()",
    f"from wmdd.extra import one as two\n{STAGE}return two()",
    f"from .extra import one\n{STAGE}return one()",
    f"import wmdd.extra\n{STAGE}return wmdd.extra.one()",
    f"import wmdd.extra as e\n{STAGE}return e.one()",
    f"from wmdd import extra\n{STAGE}return extra.one()",
    f"from . import extra as e\n{STAGE}return e.one()",
    f"from wmdd.several import one\n{STAGE}return one()",  # which hands it on
    f"from wmdd import several\n{STAGE}return several.one()",
    f"{STAGE}from wmdd.extra import one\n    return one()",
    f"{STAGE}from wmdd import extra\n    return extra.one()",
    f"{STAGE}import wmdd.extra\n    return wmdd.extra.one()",
]
FOLLOWED = [
    *SAME,
    f"from wmdd.extra import one\n{STAGE}return [one() for one in [one]]",
    f"from wmdd.extra import one\n{STAGE}return list(map(lambda x: one(), []))",
    f"from wmdd.extra import one\n{STAGE}def inner():\n        return one()\n    return inner",
    f"from wmdd.extra import one\n{STAGE}def inner(one):\n        return one()\n    return inner(one)",
    f"from wmdd.extra import one\nX = {{'a': one}}\n{STAGE}return X",
    f"from wmdd.extra import one\nX: int = one()\n{STAGE}return X",
    f"from wmdd.extra import one\nX = []\nX.append(one)\n{STAGE}return X",
    f"from wmdd.extra import one\nclass A:\n    def f(self):\n        return one()\n{STAGE}return A().f()",
    f"from wmdd.extra import One\nclass A(One):\n    pass\n{STAGE}return A()",
    f"from wmdd.extra import One\nclass A:\n    x: One\n{STAGE}return A()",
    f"from wmdd.extra import One\nclass A:\n    x: 'One'\n{STAGE}return A()",
    f"from wmdd.extra import One\nclass A(Settings):\n    x: One = 1\n{STAGE}return A()",
    f"class A:\n    from wmdd.extra import one\n{STAGE}return A.one()",
    "from wmdd.extra import One\n@app.command\ndef stage(x: One):\n    pass",
    "from wmdd.extra import one\n@app.command(name='stage')\n@one\ndef stage():\n    pass",
    "from wmdd.extra import one\n@app.command\ndef stage(x=one()):\n    pass",
    "from wmdd.extra import one\nX = {}\n@one\ndef other():\n    pass\n@app.command\ndef stage():\n    pass",
    f"try:\n    from wmdd.extra import one\nexcept ImportError:\n    one = None\n{STAGE}return one()",
    f"from wmdd.extra import *\n{STAGE}return one()",
    f"from wmdd import extra\n{STAGE}return getattr(extra, name)()",
    f"from wmdd import extra\n{STAGE}return vars(extra)",
    f"from wmdd import extra\n{STAGE}return extra.__dict__",
    f"from wmdd import extra\nX = extra\n{STAGE}return X.one()",
    f"import wmdd\n{STAGE}return getattr(wmdd, name)",
    f"import importlib\n{STAGE}return importlib.import_module(name)",
    f"from importlib import import_module as load\n{STAGE}return load('wmdd.extra')",
    f"{STAGE}return __import__(name)",
    f"from wmdd.extra import one\ndef two():\n    return one()\n{STAGE}return globals()['two']",
    f"import wmdd.deed\n{STAGE}pass",  # whose import does something
    f"{STAGE}import wmdd.deed",
    f"from wmdd import lazy\n{STAGE}return lazy.one()",
]
LEFT_OUT = [
    f"from wmdd.extra import one\n{STAGE}pass",
    f"from wmdd.extra import one\n{STAGE}one = 1\n    return one",
    f"from wmdd.extra import one\n{STAGE}return [one for one in []]",
    f"from wmdd.extra import one\n{STAGE}return lambda one: one",
    f"from wmdd.extra import one\ndef other():\n    return one\n{STAGE}pass",
    f"from wmdd.extra import One\ndef other(x: One) -> One:\n    y: One = x\n{STAGE}return other",
    f"from wmdd.extra import one\nclass A(Settings):\n    x: int = one()\n{STAGE}return A()",
    f"from wmdd.extra import one\n{STAGE}raise WmddError(one())",
    f"if TYPE_CHECKING:\n    from wmdd.extra import One\n{STAGE}pass",
    "from wmdd.extra import one\n@app.command\ndef stage(one):\n    return one",
]


def small(folder, command, number=1):
    """The digest of a stage of a package that has a command and a few things that it may use."""
    extra = f"def one():\n    return {number}\nclass One:\n    def one(self):\n        return {number}\n"
    files = {
        "commands": f"class Settings:\n    pass\n{command}\n",
        "extra": extra,
        "several/__init__": "from ..extra import one\n",
        "lazy": "def __getattr__(name):\n    from wmdd.extra import one\n    return one\n",
        "deed": "from wmdd.extra import one\none()\n",
        "__init__": "",
    }
    for name, text in files.items():
        path = folder / f"wmdd/{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return digests(folder / "wmdd", ["stage"])["stage"]


@pytest.mark.parametrize("command", FOLLOWED)
def test_what_a_command_refers_to_counts(tmp_path, command):
    assert small(tmp_path, command) != small(tmp_path, command, 2)


@pytest.mark.parametrize("command", LEFT_OUT)
def test_what_it_does_not_refer_to_does_not(tmp_path, command):
    assert small(tmp_path, command) == small(tmp_path, command, 2)


def test_the_way_to_import_changes_nothing(tmp_path):
    assert len({small(tmp_path, command) for command in SAME}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("import math", "import numpy as math"),
        ("from math import log as one", "from math import exp as one"),
        ("from wmdd.extra import one", "from wmdd.commands import one"),
    ],
)
def test_the_same_name_of_something_else_changes_it(tmp_path, one, other):
    command = f"{{}}\n{STAGE}return one() + math.pi"
    assert small(tmp_path, command.format(one)) != small(tmp_path, command.format(other))


def test_two_definitions_of_one_name_are_told_apart(tmp_path):
    both = f"from wmdd import extra\ndef one():\n    return 7\n{STAGE}return "
    assert small(tmp_path, both + "extra.one() - one()") != small(tmp_path, both + "one() - extra.one()")
    assert small(tmp_path, both + "extra.one() - one()") != small(tmp_path, both + "extra.one() - one()", 2)


# Where it was made


@pytest.fixture
def _forgotten():
    git_revision.cache_clear()
    yield
    git_revision.cache_clear()


@pytest.mark.usefixtures("_forgotten")
def test_the_revision_can_be_given(monkeypatch):
    monkeypatch.setenv("WMDD_REVISION", "abc-container")
    assert git_revision() == "abc-container"


@pytest.mark.usefixtures("_forgotten")
def test_the_revision_is_that_of_git_and_says_when_files_differ(tmp_path, monkeypatch):
    monkeypatch.delenv("WMDD_REVISION", raising=False)
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "x").write_text("1")
    for arguments in (["init", "-q"], ["add", "x"], ["commit", "-qm", "first"], ["tag", "v1"]):
        subprocess.run([*git, *arguments], check=True)
    head = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    assert git_revision() == head[:12]
    (tmp_path / "x").write_text("2")
    git_revision.cache_clear()
    assert git_revision() == f"{head[:12]}-dirty"


@pytest.mark.usefixtures("_forgotten")
def test_the_revision_outside_git_is_unknown(tmp_path, monkeypatch):
    monkeypatch.delenv("WMDD_REVISION", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    assert git_revision() == "unknown"
    git_revision.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert git_revision() == "unknown"


def test_versions():
    import torch

    import wmdd

    found = versions()
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert found["wmdd"] == wmdd.__version__
    assert set(found) == {"python", *provenance.VERSIONED}
    assert "absent" not in found.values()
