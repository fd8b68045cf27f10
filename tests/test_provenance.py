"""A stage's digest follows its code and nothing else; what made a file is on record."""

import ast
import re
import shutil
import subprocess
import sys

import pytest

from wmdd import provenance
from wmdd.provenance import GROUND, PACKAGE, code_digest, git_revision, versions

RULES = "\n".join(path.read_text() for path in sorted((PACKAGE.parent / "rules").glob("*.smk")))
STAGES = sorted(set(re.findall(r'code_digest\("(\w+)"\)', RULES)))

# stage -> modules that it must follow: its own, imported ones, imported inside a function, imported by its command alone
FOLLOWS = [
    ("recover", "recover"),
    ("recover", "augment"),
    ("recover", "batchnorm"),
    ("recover", "training"),  # which recover imports
    ("recover", "engine"),  # which training imports
    ("recover", "rng"),
    ("recover", "models"),
    ("barycenter", "transport/__init__"),
    ("barycenter", "points"),
    ("barycenter", "transport/quantization"),
    ("barycenter", "transport/cells"),  # which quantization imports
    ("barycenter", "transport/cuturi_doucet"),
    ("barycenter", "transport/released"),
    ("barycenter", "transport/stream"),
    ("select", "transport/quantization"),
    ("select", "transport/measure"),
    ("student", "relabel"),
    ("student", "labels"),
    ("relabel", "labels"),
    ("student", "feeding"),  # whose pictures it validates on; imported inside its command
    ("student", "pictures"),  # which feeding imports
    ("teacher", "distributed"),
    ("features", "shards"),
    ("gather", "shards"),
    ("select", "points"),
    ("grid", "report"),  # has no module of its own
    ("images", None),
    ("autoencoder", "latent/vae"),
    ("encode", "latent/ldm"),  # imported inside a helper of its command
    ("decode", "latent/denoiser"),
    ("quantize", "transport/quantization"),
    ("quantize", "barycenter"),
    ("distance", "transport/measure"),
    ("page", "charts"),
    ("page", "page/tables"),
    ("embedding", "distance"),
    ("expert", "expert"),
    ("expert", "siamese"),
    ("expert", "whitening"),
    ("expert", "models"),
    ("match", "match/__init__"),
    ("match", "match/distributions"),  # imported inside a helper of its command
    ("match", "match/trajectories"),
    ("match", "siamese"),
    ("match", "whitening"),
    ("student", "siamese"),  # views: dsa
    ("student", "whitening"),
    ("relabel", "siamese"),
]
# stage -> modules that are none of its business
IGNORES = [
    ("barycenter", "recover"),
    ("barycenter", "models"),
    ("barycenter", "augment"),
    ("barycenter", "report"),
    ("recover", "points"),
    ("recover", "feeding"),
    ("data", "download"),  # decides no number: what it fetches is checked
    ("student", "data"),
    ("student", "sources"),
    ("recover", "student"),
    ("recover", "select"),
    ("recover", "transport/quantization"),
    ("teacher", "relabel"),
    ("teacher", "recover"),
    ("teacher", "launch"),
    ("data", "teacher"),
    ("features", "recover"),
    ("relabel", "student"),
    ("student", "teacher"),
    ("student", "recover"),
    ("report", "recover"),
    ("images", "recover"),
    ("recover", "cost/plan"),
    ("student", "cost/laws"),
    ("autoencoder", "latent/ldm"),
    ("quantize", "latent/vae"),
    ("student", "decode"),
    ("expert", "match/trajectories"),
    ("expert", "relabel"),
    ("match", "recover"),
    ("match", "select"),
    ("match", "relabel"),
    ("recover", "match/distributions"),
    ("recover", "siamese"),
    ("teacher", "siamese"),
    ("student", "match/trajectories"),
    ("student", "expert"),
]
LATENT = {
    "autoencoder",
    "diffusion",
    "encode",
    "quantize",
    "decode",
    "distance",
    "decay",
    "distances",
}  # in commands_latent.py
MATCHED = {"expert", "match"}  # in commands_match.py
SHOWN = {"embedding", "page", "table"}  # in commands_report.py
MODULES = {
    **dict.fromkeys(LATENT, "commands_latent.py"),
    **dict.fromkeys(MATCHED, "commands_match.py"),
    **dict.fromkeys(SHOWN, "commands_report.py"),
}
FUNCTION = "\n\ndef added_by_a_test():\n    return 1\n"


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
    provenance._module.cache_clear()
    return {stage: code_digest(stage, root) for stage in stages}


def digest(stage, root):
    return digests(root, [stage])[stage]


def edit(path, change):
    old = path.read_text()
    new = change(old)
    assert new != old
    ast.parse(new)
    path.write_text(new)


def in_function(text, name, line):
    """Add a line at the start of a function, after its docstring."""
    (node,) = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef) and n.name == name]
    first = node.body[1] if ast.get_docstring(node) else node.body[0]
    lines = text.splitlines()
    lines.insert(first.lineno - 1, " " * first.col_offset + line)
    return "\n".join(lines) + "\n"


# Which stages there are


def test_every_rule_has_a_digest_of_its_own_name():
    # rules made in a loop have no name in their first line, and that of the first one in the next but one
    found = re.findall(r'^rule (\w+):|^    rule:\n        name:\n            "(\w+)"', RULES, re.MULTILINE)
    rules = [(usual or made).removesuffix("_part") for usual, made in found if usual != "figures"]  # which runs nothing
    assert rules == re.findall(r'code_digest\("(\w+)"\)', RULES)
    assert {"data", "teacher", "features", "barycenter", "recover", "images", "select", "relabel", "student"} < set(
        STAGES
    )


def test_every_stage_has_a_digest_and_no_two_share_one():
    found = digests(PACKAGE)
    assert all(re.fullmatch(r"[0-9a-f]{16}", value) for value in found.values())
    assert len(set(found.values())) == len(found)


def test_the_digest_depends_on_the_code_and_not_on_its_place(package):
    assert digests(package) == digests(PACKAGE)


def test_the_digest_is_the_same_in_another_process():
    command = [sys.executable, "-c", "from wmdd.provenance import code_digest; print(code_digest('recover'))"]
    assert subprocess.check_output(command, text=True, cwd=PACKAGE.parent).strip() == digest("recover", PACKAGE)


# What changes nothing


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "# a comment\n" + text.replace("\n\n\n", "\n\n\n# another\n\n\n") + "\n# the end\n",
        lambda text: text.replace("\n    return ", "\n    # why\n    return "),
        lambda text: text.replace("\n\n\n", "\n\n\n\n\n\n"),
        lambda text: ast.unparse(ast.parse(text)),
    ],
    ids=["comments", "comments in functions", "blank lines", "layout"],
)
def test_layout_and_comments_change_nothing(package, before, change):
    for path in ("recover.py", "augment.py", "commands.py", "transport/quantization.py"):
        edit(package / path, change)
    assert digests(package) == before


def reworded(text):
    """Other words in the docstring of the module, of each class, function and method."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body[0].value.value = "Other words."
    return ast.unparse(tree)


def undocumented(text):
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


@pytest.mark.parametrize("path", ["recover.py", "models.py", "training.py", "commands.py", "transport/quantization.py"])
def test_docstrings_change_nothing(package, before, path):
    edit(package / path, reworded)
    assert digests(package) == before


def test_taking_docstrings_away_changes_nothing(package, before):
    for path in ("recover.py", "augment.py"):  # where no class or function is a docstring alone
        edit(package / path, undocumented)
    assert digests(package) == before


@pytest.mark.parametrize("kind", ["module", "class", "function", "method"])
def test_one_docstring_of_each_kind(package, before, kind):
    words = {
        "module": "Random views of images",
        "class": "How each of N images is to be seen",
        "function": "Return the views that show every image",
        "method": "Return the views of some",
    }
    edit(package / "augment.py", lambda text: text.replace(words[kind], "Something else"))
    assert digests(package) == before


@pytest.mark.parametrize("module", GROUND)
def test_the_ground_changes_nothing(package, before, module):
    edit(package / f"{module}.py", lambda text: text + FUNCTION)
    assert digests(package) == before


def test_the_ground_exists():
    assert all((PACKAGE / f"{module}.py").is_file() for module in GROUND)


def test_an_import_for_types_alone_changes_nothing(package, before):
    imported = "if TYPE_CHECKING:\n    from wmdd.student import train\n"
    edit(package / "recover.py", lambda text: text.replace("if TYPE_CHECKING:\n", imported, 1))
    edit(package / "student.py", lambda text: text + FUNCTION)
    after = digests(package)
    assert {stage for stage in STAGES if after[stage] != before[stage]} == {"student"}


@pytest.mark.parametrize(("stage", "module"), IGNORES)
def test_the_module_of_another_stage_changes_nothing(package, before, stage, module):
    edit(package / f"{module}.py", lambda text: text + FUNCTION)
    assert digest(stage, package) == before[stage]


@pytest.mark.parametrize("other", STAGES)
def test_a_command_changes_its_own_stage_alone(package, before, other):
    edit(package / MODULES.get(other, "commands.py"), lambda text: in_function(text, other, "added_by_a_test = 1"))
    after = digests(package)
    assert {stage for stage in STAGES if after[stage] != before[stage]} == {other}


# What changes it


@pytest.mark.parametrize(("stage", "module"), [(s, m) for s, m in FOLLOWS if m])
def test_the_code_that_a_stage_runs_changes_it(package, before, stage, module):
    edit(package / f"{module}.py", lambda text: text + FUNCTION)
    assert digest(stage, package) != before[stage]


def first(tree, kind, wanted=lambda node: True):
    return next(node for node in ast.walk(tree) if isinstance(node, kind) and wanted(node))


def another_number(tree):
    first(tree, ast.Constant, lambda node: type(node.value) in (int, float)).value += 1


def another_operator(tree):
    first(tree, ast.BinOp).op = ast.FloorDiv()


def another_name(tree):
    first(tree, ast.Name).id += "_other"


def another_default(tree):
    first(tree, ast.FunctionDef).args.args[0].arg = "other"


def another_order(tree):
    body = first(tree, ast.FunctionDef, lambda node: len(node.body) > 2).body
    body[1], body[2] = body[2], body[1]


def one_line_less(tree):
    first(tree, ast.FunctionDef, lambda node: len(node.body) > 2).body.pop()


@pytest.mark.parametrize(
    "change", [another_number, another_operator, another_name, another_default, another_order, one_line_less]
)
def test_a_small_change_of_code_changes_the_digest(package, before, change):
    tree = ast.parse((package / "recover.py").read_text())
    change(tree)
    (package / "recover.py").write_text(ast.unparse(tree))
    assert digest("recover", package) != before["recover"]


def test_a_module_imported_inside_a_function_counts(package, before):
    edit(package / "barycenter.py", lambda text: in_function(text, "explained", "from wmdd.extra import extra"))
    between = digest("barycenter", package)
    (package / "extra.py").write_text("def extra():\n    return 1\n")
    with_it = digest("barycenter", package)
    (package / "extra.py").write_text("def extra():\n    return 2\n")
    assert len({before["barycenter"], between, with_it, digest("barycenter", package)}) == 4


@pytest.mark.parametrize(
    "line",
    ["import wmdd.extra", "import wmdd.extra as e", "from wmdd import extra", "from wmdd.extra import one as two"],
)
def test_every_way_to_import(package, line):
    (package / "extra.py").write_text("x = 1\n")
    edit(package / "barycenter.py", lambda text: text + line + "\n")
    before = digest("barycenter", package)
    (package / "extra.py").write_text("x = 2\n")
    assert digest("barycenter", package) != before


def test_modules_that_import_each_other_end(package):
    (package / "extra.py").write_text("import wmdd.barycenter\n")
    edit(package / "barycenter.py", lambda text: text + "import wmdd.extra\n")
    assert digest("barycenter", package)


@pytest.mark.parametrize(
    ("helper", "stages"),
    [
        ("_block", {"barycenter", "encode", "features", "match", "quantize", "recover"}),
        ("_statistics", {"recover"}),
        ("_save_barycenters", {"barycenter"}),
        ("_quality", {"distances", "page", "report"}),
        ("_check_labels", {"student"}),
        ("_save_images", {"decode", "match", "recover", "select"}),
        ("_experts", {"match"}),
        ("_matched", {"match"}),
        ("_own", {"student"}),
        ("_write_history", {"autoencoder", "diffusion", "expert", "student", "teacher"}),
        ("_start", {"recover"}),
        ("_coder", {"decode", "encode"}),
        ("_latents", {"decay", "quantize"}),
    ],
)
def test_a_helper_changes_the_commands_that_call_it(package, before, helper, stages):
    module = next(p for p in sorted(package.glob("commands*.py")) if f"def {helper}(" in p.read_text())
    edit(module, lambda text: in_function(text, helper, "added_by_a_test = 1"))
    after = digests(package)
    assert {stage for stage in STAGES if after[stage] != before[stage]} == stages


def test_the_digest_is_remembered_for_a_process(package):
    before = code_digest("recover", package)
    edit(package / "recover.py", lambda text: text + FUNCTION)
    assert code_digest("recover", package) == before
    code_digest.cache_clear()


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
