"""The documentation says what is so: links, pictures, examples, commands, names, numbers and messages."""

import ast
import importlib
import math
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from wmdd.networks.architectures import stem_of
from wmdd.settings.catalogue import Known
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.experiment_file import ExperimentFile, parse, presets
from wmdd.workflow.stages import SETTINGS

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("**/*.md"))
PAGES = [*(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "config/README.md")), *DOCS]
GENERATED = ("cifar10", "factors", "imagenette", "protocols", "steps")  # tables as the workflow wrote them
REFERENCE = "reference/"  # made from docstrings, beside the pages (make docs)
MARKDOWN = MarkdownIt("commonmark").enable("table")


@cache
def tokens(page: Path) -> tuple[Token, ...]:
    """Return what a page is made of, the parts of its lines behind each line."""
    found = MARKDOWN.parse(page.read_text())
    return tuple(part for token in found for part in (token, *(token.children or ())))


def blocks(page: Path, language: str) -> list[str]:
    return [token.content for token in tokens(page) if token.type == "fence" and token.info == language]


def codes(page: Path) -> list[str]:
    return [token.content for token in tokens(page) if token.type == "code_inline"]


def targets(page: Path) -> list[str]:
    """Return where the links and pictures of a page lead, without the ones that leave the repository."""
    found = [str(token.attrGet("href") or token.attrGet("src") or "") for token in tokens(page)]
    return [unquote(target) for target in found if target not in ("", REFERENCE) and not re.match(r"[a-z]+:", target)]


@cache
def anchors(page: Path) -> set[str]:
    """Return the names that GitHub gives to the headings of a page."""
    counts: Counter[str] = Counter()
    names = set()
    for before, token in pairwise(tokens(page)):
        if before.type == "heading_open":
            text = "".join(part.content for part in token.children or () if part.type in ("text", "code_inline"))
            name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            names.add(f"{name}-{counts[name]}" if counts[name] else name)
            counts[name] += 1
    return names


class Table(NamedTuple):
    """A table, its cells as they are written."""

    head: list[str]
    rows: list[list[str]]


def tables(page: Path) -> list[Table]:
    found, cells = [], []
    for before, token in pairwise(tokens(page)):
        if before.type in ("th_open", "td_open"):
            cells.append(token.content)
        elif before.type == "tr_close":
            found[-1].append(cells)
            cells = []
        elif before.type == "table_open":
            found.append([])
    return [Table(rows[0], rows[1:]) for rows in found]


def plain(cell: str) -> str:
    return cell.replace("`", "")


def test_links_and_pictures() -> None:
    for page in PAGES:
        for target in targets(page):
            path, _, name = target.partition("#")
            other = (page.parent / path).resolve() if path else page
            assert other.exists(), f"{page}, {target}: there is no {other}"
            assert other.is_relative_to(ROOT)
            assert not name or name in anchors(other), f"{page}, {target}: no such heading among {anchors(other)}"
        for token in tokens(page):
            assert token.type != "image" or token.content.strip(), f"{page}, {token.attrGet('src')}: no alt text"


def test_every_page_is_reachable_from_the_index() -> None:
    seen, todo = set(), [ROOT / "docs/README.md"]
    while todo:
        page = todo.pop()
        if page not in seen and page.exists():
            seen.add(page)
            todo += [(page.parent / target.partition("#")[0]).resolve() for target in targets(page) if ".md" in target]
    assert set(DOCS) <= seen, f"no way to {sorted(str(page.relative_to(ROOT)) for page in set(DOCS) - seen)}"


def test_lines_of_prose_are_short() -> None:
    """At most 110 characters; tables, pictures and code may be longer, and what a command wrote."""
    readme = (ROOT / "README.md").read_text().splitlines()
    assert len(readme) <= 150
    assert max(map(len, readme)) <= 110
    for page in DOCS:
        prose = re.sub(r"^ *```.*?^ *```$|^<!-- python.*?<!-- end -->$", "", page.read_text(), flags=re.M | re.S)
        long = [line for line in prose.splitlines() if len(line) > 110 and not re.match(r"\s*(\||!\[|<|#)", line)]
        assert page.parent.name in GENERATED or not long, f"{page.relative_to(ROOT)}: {long[0]}"


def test_spelling() -> None:
    where = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs", "wmdd", "rules", "config", "Snakefile"]
    found = subprocess.run(
        [sys.executable, "-m", "codespell_lib", *where], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_experiments_can_be_run() -> None:
    for content in (yaml.safe_load(block) for page in PAGES for block in blocks(page, "yaml")):
        if isinstance(content, dict) and content.keys() & ExperimentFile.model_fields.keys():
            assert parse(content)
            assert "matrix" not in content or list(Experiment(content).runs())


def test_commands_exist(run: Any) -> None:
    pages = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which tells of what is gone
    texts = [text for page in pages for text in (*codes(page), *blocks(page, ""))]
    names = {
        name for text in texts for name in re.findall(r"(?:^|[$&] |bin/|python -m )wmdd ([a-z][\w-]*)", text, re.M)
    }
    assert len(names) > 15
    for name in sorted(names):
        code, out, err = run(f"{name} --help")
        assert code == 0, err
        assert f"wmdd {name}" in out


def test_targets_stand_before_configfile() -> None:
    """Snakemake takes all that follows --configfile, up to the next option, for experiment files."""
    written = [*PAGES, ROOT / "Makefile", *(ROOT / "config").glob("**/*.yaml"), *(ROOT / "profiles").glob("**/*.yaml")]
    for page in written:
        for command in re.findall(r"snakemake [^`\n]*--configfile ([^`\n#)|]*)", page.read_text()):
            files = re.split(r" --| -[a-z]|[;:,]", command)[0].split()
            others = [name for name in files if not re.fullmatch(r"[\w./-]*\.yaml[.]?|\$?\(?[A-Z]+\)?\.?", name)]
            assert not others, f"{page}: {command}"


def test_modules_and_files_exist() -> None:
    names = {
        name for page in PAGES if page.name != "CHANGELOG.md" for name in codes(page)
    }  # which tells of what is gone
    for name in names:
        if re.fullmatch(r"wmdd(\.[A-Za-z_]\w*)+", name):
            assert exists(name), f"there is no {name}"
        if re.fullmatch(r"(wmdd|rules|config|tests|benchmarks|docs|envs|profiles)/(?!results/)[\w./+-]*", name):
            assert (ROOT / name).exists(), f"there is no {name}"


def test_the_rooms_of_the_architecture_are_those_of_the_package() -> None:
    page = ROOT / "docs/develop/architecture.md"
    (picture,) = [text for text in blocks(page, "") if text.startswith("wmdd/cli/")]
    package, rest = picture.split("\n\n")
    rooms = [re.split(r" {2,}", line.removeprefix("wmdd/").strip())[0].rstrip("/") for line in package.splitlines()]
    assert sorted(rooms) == sorted(path.parent.name for path in (ROOT / "wmdd").glob("*/__init__.py"))
    for name in re.findall(r"^(\w[\w/]*)", rest, re.M):
        assert (ROOT / name).exists(), name


def exists(name: str) -> bool:
    """Return whether a dotted name is that of a module, or of what stands in one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):  # the longest module first: a package may have a function of a module's name
        try:
            found: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part, None)
        return found is not None
    return False


# --- docs/use/protocols.md and docs/understand/match.md ---------------------------------------------------------------


def setting(protocol: str, key: str) -> Any:
    """Return what a setting of students, or else of their labels, is under a protocol; the side of the images is not known."""
    labels, student = (Experiment({}).resolve(stage, protocol=protocol) for stage in ("relabel", "student"))
    return getattr(student if hasattr(student, key) else labels, key)


def chosen(entry: Any) -> dict[str, Any]:
    """Return what an entry, or its part for small images, sets itself of labels and students; what both have must agree."""
    settings: dict[str, Any] = {}
    for section in filter(None, (entry.relabel, entry.student)):
        own = section.model_dump(exclude_none=True)
        assert all(settings.get(key, value) == value for key, value in own.items())
        settings |= own
    return settings


def pairs(cell: str) -> dict[str, str]:
    """Return the settings of a cell such as "`ema` 0.99; `mix` none"."""
    return dict(re.findall(r"`(\w+)` ([^;`]+?)(?=[;,] *`|;|$)", cell))


def written(value: Any) -> str:
    """Return a setting as the tables have it."""
    if isinstance(value, tuple):
        return ", ".join(map(written, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def test_the_numbers_of_the_protocols_are_those_of_the_presets() -> None:
    _, numbers, small, variants, counted, departures, *_ = tables(ROOT / "docs/use/protocols.md")
    keys = [plain(cell) for cell in numbers.head[1:-2]]
    protocols, of_small = presets().protocols, {}
    for name, *cells, further, source in numbers.rows:
        name = plain(name)
        assert cells == [written(setting(name, key)) for key in keys], name
        assert pairs(further) == {key: written(setting(name, key)) for key in pairs(further)}
        assert chosen(protocols[name]).keys() <= {*keys, *pairs(further), "labels"}, name
        assert source
    for name, side, differs, source in small.rows:
        part = chosen(getattr(protocols[plain(name)], f"up_to_{side.removesuffix(' px')}px"))
        assert pairs(differs) == {key: written(value) for key, value in part.items()}, name
        assert source
        of_small.setdefault(plain(name), []).append(side)
    assert of_small == {
        name: [f"{side} px" for side in (64, 32) if getattr(entry, f"up_to_{side}px")]
        for name, entry in protocols.items()
        if entry.up_to_64px or entry.up_to_32px
    }
    for name, base, differs, why in variants.rows:
        assert protocols[plain(name)].base == plain(base)
        assert {key: written(value) for key, value in chosen(protocols[plain(name)]).items()} == pairs(differs)
        assert why
    of_matching = set(re.findall(r"`(dsa[\w-]*)`", (ROOT / "docs/understand/match.md").read_text()))
    names = [plain(row[0]) for row in numbers.rows]
    assert {*(plain(row[0]) for row in variants.rows), *names, *of_matching} == set(protocols)
    assert [plain(row[0]) for row in counted.rows] == [name for name in names if name != "no-augmentation"]
    assert [plain(row[0]) for row in departures.rows] == [n for n in names if n not in ("paper", "no-augmentation")]


def test_the_published_settings_of_mtt_are_those_of_the_presets() -> None:
    (published,) = [table for table in tables(ROOT / "docs/understand/match.md") if table.head[0] == "preset"]
    assert {plain(row[0]) for row in published.rows} == {name for name in presets().methods if name.startswith("mtt-")}
    for name, ipc, *cells, source in published.rows:
        assert f"-ipc{ipc}" in name
        assert source
        resolved = Experiment({}).resolve("match", method=plain(name))
        keys = ("student_steps", "expert_epochs", "start_epochs", "lr", "rate_lr", "student_lr")
        numbers = [float(re.match(r"\d[\d,]*(?:\.\d+)?(?:e-\d+)?", cell)[0].replace(",", "")) for cell in cells]
        assert numbers == [getattr(resolved, key) for key in keys]
        batch = re.search(r"on (\d+) images", cells[0])
        assert resolved.student_batch == (int(batch[1]) if batch else 0)


def test_the_steps_of_the_protocols() -> None:
    text = " ".join((ROOT / "docs/use/protocols.md").read_text().split())
    (said,) = re.findall(r"At 10 images per class of 10 classes of 32 px: ([^.]*)\.", text)
    steps = dict(re.findall(r"`([\w-]+)` ([\d,]*\d)", said))
    assert {"paper", "rectified", "rded", "bps", "fadrm"} <= steps.keys()
    for name, number in steps.items():
        of = Experiment({}).resolve("student", dataset="cifar10", protocol=name)
        assert int(number.replace(",", "")) == of.epochs * math.ceil(100 / of.batch_size)
    for name, said in (("paper", "300 at 10 images per class on 10 classes"), ("rectified", "800 steps")):
        assert said in text
        assert said.startswith(f"{steps[name]} ")


# --- docs/develop/adding-a-dataset.md ---------------------------------------------------------------------------------

DATASET_PAGE = ROOT / "docs/develop/adding-a-dataset.md"


def test_the_datasets_of_the_page_resolve() -> None:
    contents = [yaml.safe_load(block) for block in blocks(DATASET_PAGE, "yaml")]
    experiments = [Experiment(content) for content in contents if "datasets" in content]
    assert len(experiments) == 2
    for experiment in experiments:
        (name,) = experiment.file.datasets
        assert experiment.resolve("data", dataset=name).source == "imagefolder"
        for stage in SETTINGS:
            experiment.resolve(stage, dataset=name)
    (entry,) = [content for content in contents if "datasets" not in content]
    for name, known in entry.items():
        assert Known.model_validate(known).data["source"] == name


def test_settings_and_defaults_of_the_dataset_page() -> None:
    data, depends = tables(DATASET_PAGE)
    assert {name for row in data.rows for name in re.findall(r"`(\w+)", row[0])} <= SETTINGS["data"].model_fields.keys()
    said = {plain(row[0]): plain(row[1]) for row in depends.rows}
    recover, relabel, teacher = (Experiment({}).resolve(stage) for stage in ("recover", "relabel", "teacher"))
    assert {
        "recover: {crop_scale}": "-".join(map(written, recover.crop_scale)),
        "relabel: {crop_scale}": "-".join(map(written, relabel.crop_scale)),
        "recover: {jitter}": f"{recover.jitter} px",
        "recover: {lr, regularisation}": f"{written(recover.lr)}, {written(recover.regularisation)}",
        "teacher: {crop}": teacher.crop,
        "teacher: {min_accuracy}": written(teacher.min_accuracy),
    }.items() <= said.items()
    (stem,) = [row[2] for row in depends.rows if row[0].startswith("`stem`")]
    first, second = (int(side) for side in re.findall(r"up to (\d+) px", stem))
    assert [stem_of(side) for side in (first, first + 1, second, second + 1)] == ["cifar", "tiny", "tiny", "imagenet"]


# --- docs/use/troubleshooting.md --------------------------------------------------------------------------------------


@cache
def messages() -> tuple[str, ...]:
    """Return all texts in the sources, with … where something is put in."""
    found = []
    for path in sorted((ROOT / "wmdd").glob("**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return (*found, *(path.read_text() for path in sorted((ROOT / "rules").glob("*.smk"))))


def stands_in_the_sources(message: str) -> bool:
    """Return whether the parts of a message between … stand in one text, in their order."""
    parts = [part.strip() for part in message.split("…") if len(part.strip()) > 2]
    pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
    return any(pattern.search(text) for text in messages())


def test_messages_of_the_troubleshooting_page_are_those_of_the_code() -> None:
    page = ROOT / "docs/use/troubleshooting.md"
    quoted = [plain(row[0]) for table in tables(page) if table.head[0] == "message" for row in table.rows]
    beside_those_of_others = [
        "this folder is held by …", "checkpoint written, going on from it when started again",
        "--sdm apptainer needs an image", "DUE TO TIME LIMIT",
    ]  # fmt: skip
    assert len(quoted) > 30
    for message in quoted + beside_those_of_others:
        assert message in plain(page.read_text())
        assert stands_in_the_sources(message), message
    assert not stands_in_the_sources("a message … that nobody gives")


def test_threads_that_are_cited_have_a_number_and_an_address() -> None:
    page = " ".join((ROOT / "docs/use/troubleshooting.md").read_text().split())
    cited = re.findall(r"\[[\w &-]+ #(\d+)\]\(https://github\.com/[\w.-]+/[\w.-]+/(?:issues|pull)/(\d+)\)", page)
    assert len(cited) > 8
    assert page.count("](https://") == len(cited)
    assert all(said == linked for said, linked in cited)
