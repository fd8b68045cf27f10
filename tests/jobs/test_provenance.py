"""A stage's digest follows the code that decides its numbers and nothing else; what made a file is on record."""

import ast
import json
import re
import shutil
import subprocess
import sys

import pytest

from tests.cli.artifacts import COMMANDS
from wmdd.base.errors import WmddError
from wmdd.cli.commands import app
from wmdd.jobs import provenance
from wmdd.jobs.code_reach import Definition, Module, Package, is_command
from wmdd.jobs.provenance import GROUND, HANDED, PACKAGE, code_digest, git_revision, versions

RULES = "\n".join(path.read_text() for path in sorted((PACKAGE.parent / "rules").glob("*.smk")))
STAGES = sorted(set(re.findall(r'code_digest\("(\w+)"\)', RULES)))
KNOWN = Package(PACKAGE)
TRAINED = {"autoencoder", "diffusion", "expert", "student", "teacher"}
NETWORKS = TRAINED | {"decode", "distance", "embedding", "encode", "features", "match", "recover", "relabel", "select"}
TABLES = {"page", "report", "table"}  # which know the table of stages, and with it all settings
# function or method -> the stages whose numbers it decides
DECIDES = {
    "RecoverSettings.coupled": {"recover"} | TABLES,
    "RelabelSettings.labelled": {"relabel"} | TABLES,
    "learned_labels": {"images", "student"},
    "check_classes": NETWORKS - {"autoencoder", "diffusion", "expert"} | {"images", "join"},
    "resized_crop": {"recover", "relabel", "student", "teacher", "select"},
    "Engine": NETWORKS,
    "learning_rate": TRAINED,
    "evaluate": {"expert", "student", "teacher"},
    "join_features": {"features", "gather"},
    "block_classes": {"barycenter", "encode", "features", "match", "quantize", "recover"},
    "read_quality": {"distances", "page", "report"},
}


def digests(root, stages=STAGES):
    """The digests of the files as they are now."""
    for cached in (code_digest, provenance._package, provenance._kept):
        cached.cache_clear()
    return {stage: code_digest(stage, root) for stage in stages}


def reach(package, stage):
    return package.reached(package.commands(stage)[0], GROUND, HANDED)


@pytest.fixture(scope="module")
def before():
    return digests(PACKAGE)


@pytest.fixture
def package(tmp_path):
    """A copy of the package to edit."""
    return shutil.copytree(PACKAGE, tmp_path / "wmdd", ignore=shutil.ignore_patterns("__pycache__"))


@pytest.fixture(scope="module")
def changed(before):
    """A function: the stages whose digest is another once a module is changed in a way that adds no reference."""
    reached = {stage: reach(KNOWN, stage) for stage in STAGES}

    def stages(module, change):
        tree = ast.parse(KNOWN.files[module].read_text())
        change(tree)
        edited = Package(PACKAGE)
        own, read = Module(module, ast.unparse(tree), module.rpartition(".")[0]), edited.text
        edited.module = lambda name: own if name == module else KNOWN.module(name)
        edited.text = lambda place: read(place) if place.module == module else KNOWN.text(place)
        return {stage for stage in STAGES if edited.digest(reached[stage])[:16] != before[stage]}

    return stages


def begin_differently(*names):
    """A change: another first statement of a function, a class, or a method of it."""

    def change(tree):
        node = tree
        for name in names:
            (node,) = [each for each in node.body if getattr(each, "name", "") == name]
        node.body.insert(0, ast.parse("added_by_a_test = 1").body[0])

    return change


def module_of(name):
    other = (
        "wmdd.cli.evaluate",
        "wmdd.export.evaluation",
    )  # the command, and what it calls, have a name of a network's
    (place,) = [place for place in KNOWN.named(name) if place.module not in other]
    return place.module


# The stages


def test_every_rule_has_a_digest_of_its_own_name(before):
    # rules made in a loop have no name in their first line, and that of the first one below their docstring
    named = re.findall(
        r'^rule (\w+):|^    rule:\n        """.*"""\n        name:\n            "(\w+)"', RULES, re.MULTILINE
    )
    rules = [
        (usual or looped).removesuffix("_part") for usual, looped in named if usual not in ("figures", "scoreboard")
    ]  # the one runs nothing, the other makes no number
    assert rules == re.findall(r'code_digest\("(\w+)"\)', RULES)
    assert {"data", "teacher", "features", "barycenter", "recover", "join", "select", "relabel", "student"} < set(rules)
    assert all(re.fullmatch(r"[0-9a-f]{16}", value) for value in before.values())
    assert len(set(before.values())) == len(before)
    with pytest.raises(WmddError, match="0 functions recovery are marked as a command"):
        code_digest("recovery")
    code = "import sys; from wmdd.jobs.provenance import code_digest; print(code_digest('recover'), 'torch' in sys.modules)"
    said = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=PACKAGE.parent)
    assert said.split() == [before["recover"], "False"], "another process has the same digest, and needs no torch"


# What changes nothing


def cosmetics(tree):
    """Other docstrings, order of functions, annotations, imports for types, words of errors, and fields of settings."""
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    tree.body = [node for node in tree.body if node not in functions] + functions[::-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, ast.FunctionDef) and not is_command(node):
            node.returns = None
            for each in ast.walk(node.args):
                each.annotation = None
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and "WmddError" in ast.unparse(node.exc):
            node.exc.args = [ast.Constant("other words")]
        if isinstance(node, ast.ClassDef) and node.name.endswith("Settings"):
            for field in [each for each in node.body if isinstance(each, ast.AnnAssign)]:
                field.value = ast.parse("Field(1, ge=7, description='other words')").body[0].value
            node.body += ast.parse("added_by_a_test: int = 3").body
    tree.body += ast.parse("if TYPE_CHECKING:\n    from wmdd.stages.student import train").body
    tree.body += ast.parse("def added_by_a_test():\n    from wmdd.stages.student import train\n    return train").body


def test_what_decides_no_number_changes_nothing(package, before):
    """Nor do comments and layout, which a syntax tree has not."""
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text())
        cosmetics(tree)
        path.write_text(ast.unparse(ast.fix_missing_locations(tree)))
    assert digests(package) == before


def test_moving_all_into_a_subpackage_and_renaming_a_module_changes_nothing(package, before):
    package.rename(package.parent / "moved")
    shutil.copytree(package.parent / "moved", package / "moved")
    (package / "__init__.py").write_text("")
    (package / "moved/networks/augment.py").rename(package / "moved/networks/distortions.py")
    for path in (package / "moved").rglob("*.py"):
        text = re.sub(r"^( *(?:from|import) wmdd)\b", r"\1.moved", path.read_text(), flags=re.MULTILINE)
        text = re.sub(
            r"^( *from wmdd.moved.networks import .*)\baugment\b", r"\1distortions as augment", text, flags=re.MULTILINE
        )
        path.write_text(text.replace("moved.networks.augment", "moved.networks.distortions"))
    assert digests(package) == before


def test_the_ground_exists_once_and_changes_nothing(changed):
    assert {name: changed(module_of(name), begin_differently(name)) for name in GROUND} == {
        name: set() for name in GROUND
    }


# What changes it


def test_a_function_changes_the_stages_that_use_it(changed):
    names = {name: name.split(".") for name in DECIDES}
    assert {name: changed(module_of(each[0]), begin_differently(*each)) for name, each in names.items()} == DECIDES
    modules = {stage: KNOWN.commands(stage)[0].module for stage in STAGES}
    assert all(changed(module, begin_differently(stage)) == {stage} for stage, module in modules.items())


def numbers(node):
    """The numbers in code, without those of annotations, of errors and of fields of settings."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield node
    settings = isinstance(node, ast.ClassDef) and node.name.endswith("Settings")
    for name, value in ast.iter_fields(node):
        for each in value if isinstance(value, list) else [value]:
            left_out = isinstance(each, ast.Raise) or (settings and isinstance(each, ast.AnnAssign))
            if isinstance(each, ast.AST) and not left_out and name not in ("annotation", "returns"):
                yield from numbers(each)


def test_every_number_that_a_stage_reaches_changes_it(changed):
    """In each module: other numbers in all that is reached of it change exactly the stages that reach one."""
    expected = {}
    for stage in STAGES:
        for place in reach(KNOWN, stage):
            if place.name != "*" and any(any(numbers(node)) for node in KNOWN.nodes(place)):
                expected.setdefault(place.module, set()).add(stage)

    def other_numbers(tree):
        for number in numbers(tree):
            number.value += 1

    assert len(expected) > 40
    assert {module: changed(module, other_numbers) for module in expected} == expected


@pytest.mark.parametrize("stage", COMMANDS)
def test_what_a_stage_runs_is_in_its_digest(here, run, stage):
    """Whatever code of the digest calls is in the digest too, or in `GROUND`, which hands out a StageJob."""
    counted = reach(KNOWN, stage)
    modules = {str(path): name for name, path in KNOWN.files.items()}
    calls = set()

    def place(frame):
        while frame is not None and frame.f_code.co_filename not in modules:
            frame = frame.f_back
        return frame and Definition(modules[frame.f_code.co_filename], frame.f_code.co_qualname.partition(".")[0])

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename in modules:
            calls.add((place(frame.f_back), place(frame)))

    app.resolved_commands()  # whose modules make default settings
    sys.setprofile(note)
    try:
        code, _, err = run(COMMANDS[stage])
    finally:
        sys.setprofile(None)
    assert code == 0, err
    ran = {called for caller, called in calls if caller in counted and KNOWN.nodes(called)}
    assert len(ran & counted) > 3
    plumbing = {*GROUND, "StageJob", "__getattr__"}  # the last, when a module is imported
    assert {called for called in ran - counted if called.name not in plumbing} == set()


def test_no_stage_has_settings_of_its_own():
    """Defaults of settings are in no digest: who makes settings takes all values from elsewhere."""
    places = set.union(*(reach(KNOWN, stage) for stage in STAGES))
    nodes = [each for place in places for node in KNOWN.nodes(place) for each in ast.walk(node)]
    calls = [each for each in nodes if isinstance(each, ast.Call) and ast.unparse(each.func).endswith("Settings")]
    assert len(calls) > 10
    assert [ast.unparse(each) for each in calls if each.args or any(word.arg for word in each.keywords)] == []


# What is followed, in a package of a few lines

STAGE = "@command\ndef stage():\n    "
SAME = [
    f"from wmdd.extra import one\n{STAGE}return one()",
    f"from .extra import one as two\n{STAGE}return two()",
    f"import wmdd.extra as e\n{STAGE}return e.one()",
    f"from . import extra as e\n{STAGE}return e.one()",
    f"from wmdd import several\n{STAGE}return several.one()",  # which hands it on
    f"{STAGE}from wmdd import extra\n    return extra.one()",
    f"{STAGE}import wmdd.extra\n    return wmdd.extra.one()",
]
FOLLOWED = [
    *SAME,
    f"from wmdd.extra import one\nX = []\nX.append(one)\n{STAGE}return X",
    f"from wmdd.extra import One\nclass A(Settings):\n    x: One = 1\n{STAGE}return A()",
    f"class A:\n    from wmdd.extra import one\n{STAGE}return A.one()",
    f"from wmdd.extra import one\nclass A:\n    one = one\n{STAGE}return A.one()",
    "from wmdd.extra import One\n@command\ndef stage(x: One):\n    pass",
    "from wmdd.extra import one\n@command\n@one\ndef stage():\n    pass",
    f"from wmdd.extra import one\n@one\ndef other():\n    pass\n{STAGE}pass",  # which may register it
    f"from wmdd.extra import *\n{STAGE}return one()",
    f"from wmdd import extra\n{STAGE}return getattr(extra, name)()",
    f"import importlib\n{STAGE}return importlib.import_module(name)",
    f"from wmdd.extra import one\ndef two():\n    return one()\n{STAGE}return globals()['two']",
    f"import wmdd.deed\n{STAGE}pass",  # whose import does something
]
LEFT_OUT = [
    f"from wmdd.extra import one\ndef other():\n    return one\n{STAGE}one = 1\n    return one",
    f"from wmdd.extra import one\nclass A(Settings):\n    x: int = one()\n{STAGE}return A()",
]


def small(folder, command, number=1):
    """The digest of a stage of a package that has a command and a few things that it may use."""
    texts = {
        "commands": f"class Settings:\n    pass\n{command}\n",
        "extra": f"def one():\n    return {number}\nclass One:\n    def one(self):\n        return {number}\n",
        "several/__init__": "from ..extra import one\n",
        "deed": "from wmdd.extra import one\none()\n",
        "__init__": "",
    }
    for name, text in texts.items():
        path = folder / f"wmdd/{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return digests(folder / "wmdd", ["stage"])["stage"]


def test_what_a_command_refers_to_counts_and_the_way_to_import_does_not(tmp_path):
    assert [command for command in FOLLOWED if small(tmp_path, command) == small(tmp_path, command, 2)] == []
    assert [command for command in LEFT_OUT if small(tmp_path, command) != small(tmp_path, command, 2)] == []
    assert len({small(tmp_path, command) for command in SAME}) == 1


def test_a_digest_is_read_where_it_was_kept_as_long_as_no_source_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "wmdd")
    monkeypatch.setattr(provenance, "KEPT", kept := tmp_path / "kept.json")
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    digest = small(tmp_path, SAME[0])
    whole = kept.read_text()
    assert json.loads(whole)["digests"] == {"stage": digest}
    kept.write_text(whole.replace(digest, "as it was kept"))
    assert small(tmp_path, SAME[0]) == "as it was kept"
    assert small(tmp_path, SAME[0], 2) not in (digest, "as it was kept")
    for damaged in (whole[:-1], "[]", '{"sources": 1}'):
        kept.write_text(damaged)
        assert small(tmp_path, SAME[0]) == digest
    assert [path.name for path in tmp_path.glob("kept*")] == ["kept.json"]


def test_the_same_name_of_something_else_changes_it(tmp_path):
    ways = ["import math", "import numpy as math", "from math import log as one", "from math import exp as one"]
    ways += ["from wmdd.extra import one", "from wmdd.cli.teacher import one"]
    assert len({small(tmp_path, f"{way}\n{STAGE}return one() + math.pi") for way in ways}) == len(ways)
    both = f"from wmdd import extra\ndef one():\n    return 7\n{STAGE}return "
    assert small(tmp_path, both + "extra.one() - one()") != small(tmp_path, both + "one() - extra.one()")


# Where it was made


def test_the_revision_is_that_of_git_and_says_when_files_differ_unless_it_is_given(tmp_path, monkeypatch):
    def revision():
        git_revision.cache_clear()
        return git_revision()

    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("WMDD_REVISION", "abc-container")
    assert revision() == "abc-container"
    monkeypatch.delenv("WMDD_REVISION")
    assert revision() == "unknown"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "x").write_text("1")
    for arguments in (["init", "-q"], ["add", "x"], ["commit", "-qm", "first"], ["tag", "v1"]):
        subprocess.run([*git, *arguments], check=True)
    head = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    assert revision() == head[:12]
    (tmp_path / "x").write_text("2")
    assert revision() == f"{head[:12]}-dirty"
    monkeypatch.setenv("PATH", "")
    assert revision() == "unknown"
    git_revision.cache_clear()


def test_versions():
    import torch

    import wmdd

    found = versions()
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert found["wmdd"] == wmdd.__version__
    assert set(found) == {"python", *provenance.VERSIONED}
    assert "absent" not in found.values()
