"""Where every file of the workflow lies, and which cell of the experiment it belongs to.

`FILES` is the one place where a path is written. `path_of` turns a cell into a path, `cell_of` a path into its cell. Paths are
read from their end, so folders before `results/` or `data/` (a module's `prefix:`, an absolute path) change nothing.
"""

import re
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import PurePath
from typing import Any, NamedTuple

from wmdd.base.errors import WmddError
from wmdd.settings.base import NAME

NUMBER = r"\d+"
WILDCARDS = {  # what each may be
    "dataset": NAME,
    "teacher": NAME,
    "method": NAME,
    "ipc": NUMBER,
    "seed": NUMBER,
    "student": NAME,
    "protocol": NAME,
    "run": NUMBER,
    "generator": NAME,
    "expert": NAME,
    "block": r"classes\d+-\d+",
}

TEACHER = "results/{dataset}/{teacher}/teacher/seed{seed}"
SET = "results/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}"
GENERATOR = "results/{dataset}/latent/{generator}/seed{seed}"
EXPERT = "results/{dataset}/expert/{expert}/seed{seed}"
# Names that would be folders with another meaning.
RESERVED = {"datasets": ("report",), "teachers": ("latent", "expert"), "methods": ("teacher",)}
REPORT = "results/report"  # the folder of all that is of the whole experiment

FILES = {
    "data": "data/{dataset}.h5",
    "teacher": f"{TEACHER}/model.safetensors",
    "features": f"{TEACHER}/features.h5",
    "statistics": f"{TEACHER}/statistics.h5",
    "features_part": f"{TEACHER}/features/{{block}}.h5",
    "barycenter": f"{SET}/barycenter/{{block}}.h5",
    "recover": f"{SET}/recover/{{block}}.h5",
    "autoencoder": f"{GENERATOR}/autoencoder.safetensors",
    "latents": f"{GENERATOR}/latents/{{block}}.h5",
    "diffusion": f"{GENERATOR}/diffusion.safetensors",
    "decay": f"{GENERATOR}/decay.json",
    "quantize": f"{SET}/quantize/{{block}}.h5",
    "decode": f"{SET}/decode/{{block}}.h5",
    "expert": f"{EXPERT}/trajectory.h5",
    "match": f"{SET}/match/{{block}}.h5",
    "images": f"{SET}/images.h5",
    "distance": f"{SET}/distance.json",
    "labels": f"{SET}/labels/{{protocol}}.h5",
    "student": f"{SET}/student/{{student}}/{{protocol}}/run{{run}}.json",
    "grid": f"{REPORT}/images/{{dataset}}/{{teacher}}/{{method}}/ipc{{ipc}}-seed{{seed}}.png",
    "map": f"{REPORT}/maps/{{dataset}}/{{teacher}}.json",
}
COST = ".cost.json"  # suffix of the file that says what a job took, beside what it made
HISTORY = ".csv"  # suffix of the file with the epochs of a training, beside the network or the result
ABSENT: Any = None  # a part that a cell lacks; typed so that code that knows of a part need not check for it


@dataclass(frozen=True, order=True)
class Cell:
    """A place in an experiment, to which a file or a job belongs. A part that it lacks is None (`ABSENT`).

    Tables group their rows by these fields, so that none can be forgotten.
    """

    dataset: str = ABSENT
    teacher: str = ABSENT
    method: str = ABSENT
    ipc: int = ABSENT
    seed: int = ABSENT
    student: str = ABSENT
    protocol: str = ABSENT
    run: int = ABSENT
    generator: str = ABSENT
    expert: str = ABSENT
    block: str = ABSENT

    @classmethod
    def of(cls, wildcards: Any) -> "Cell":
        """Return the cell of Snakemake's wildcards, or of any mapping that has some of them."""
        pairs = {name: value for name, value in dict(wildcards).items() if name in WILDCARDS}
        parts: dict[str, Any] = {
            name: int(value) if WILDCARDS[name] == NUMBER else value for name, value in pairs.items()
        }
        return cls(**parts)

    def parts(self) -> dict[str, Any]:
        """Return the parts that the cell has, by name."""
        return {name: value for name in CELL if (value := getattr(self, name)) is not None}

    def having(self, **parts: Any) -> "Cell":
        """Return the cell with other parts; None takes a part away."""
        return replace(self, **parts)

    @property
    def classes(self) -> range:
        """The classes of its block."""
        first, last = map(int, self.block.removeprefix("classes").split("-"))
        return range(first, last + 1)


CELL = tuple(field.name for field in fields(Cell))


def block_of(first: int, last: int) -> str:
    """Return the name of a block of classes, the last one included."""
    return f"classes{first}-{last}"


class Place(NamedTuple):
    """A file of the workflow: its kind, one of `FILES`, and its cell."""

    kind: str
    cell: Cell


def wildcards_of(kind: str) -> tuple[str, ...]:
    """Return the names of the wildcards in the path of a kind of file."""
    return tuple(dict.fromkeys(re.findall(r"{(\w+)}", FILES[kind])))


def path_of(kind: str, cell: Cell) -> str:
    """Return the path of a file.

    Args:
        kind: one of `FILES`.
        cell: has at least the parts that the path names.

    Raises:
        WmddError: the cell lacks a part.
    """
    try:
        return FILES[kind].format(**cell.parts())
    except KeyError as error:
        raise WmddError(f"the path of {kind} needs {error.args[0]}, which this cell lacks: {cell.parts()}") from None


@cache
def _readers() -> list[tuple[str, re.Pattern[str]]]:
    """Return a regular expression for each kind of file, which also reads its cost and history."""
    readers = []
    for kind, pattern in FILES.items():
        stem, _, end = pattern.removeprefix("results/").rpartition(".")
        text, seen = "", set[str]()
        for literal, name in re.findall(r"([^{]*)(?:{(\w+)})?", stem):
            text += re.escape(literal)
            if name:
                text += f"(?P={name})" if name in seen else f"(?P<{name}>{WILDCARDS[name]})"
                seen.add(name)
        beside = () if pattern.startswith(REPORT) else (COST, HISTORY)
        ends = "|".join(map(re.escape, (f".{end}", *beside)))
        readers.append((kind, re.compile(f"(?:^|/){text}(?:{ends})$")))
    return readers


def place_of(path: PurePath | str) -> Place | None:
    """Return the kind and the cell of a file of the workflow, or of its cost or history; None of any other file."""
    text = path.as_posix() if isinstance(path, PurePath) else path
    matches = [(match, kind) for kind, reader in _readers() if (match := reader.search(text))]
    if not matches:
        return None
    match, kind = min(matches, key=lambda pair: pair[0].start())  # a protocol may be called `data`: the longest counts
    return Place(kind, Cell.of(match.groupdict()))


def cell_of(path: PurePath | str) -> Cell:
    """Return the cell of a file of the workflow, or of its cost or history.

    Raises:
        WmddError: the path is none of the workflow's.
    """
    return _placed(path).cell


def _placed(path: PurePath | str) -> Place:
    if (place := place_of(path)) is None:
        raise WmddError(
            f"{path} is not where the workflow puts a file; keep the folders below results/ "
            f"({FILES['student'].removeprefix('results/')}, ...)"
        )
    return place


def beside(path: PurePath | str, kind: str) -> PurePath:
    """Return the path of another kind of file of the same cell, below the same folder.

    Raises:
        WmddError: the path is none of the workflow's, or its cell lacks a part of the other.
    """
    text = path.as_posix() if isinstance(path, PurePath) else path
    own_kind, cell = _placed(text)
    own = path_of(own_kind, cell).removeprefix("results/").rpartition(".")[0]
    return PurePath(text[: text.rindex(own)] + path_of(kind, cell).removeprefix("results/"))


def cost_of(path: str) -> str:
    """Return the path (or the pattern of it) of the cost of the job that makes a file."""
    return PurePath(path).with_suffix(COST).as_posix()


def history_of(path: str) -> str:
    """Return the path (or the pattern of it) of the history of the training that makes a file."""
    return PurePath(path).with_suffix(HISTORY).as_posix()


def of_run(pattern: str, run: int) -> str:
    """Return the pattern of a student's file with its run filled in: as a job trains several runs, they are no wildcard."""
    return pattern.replace("{run}", str(run))


def log_of(stage: str, path: str) -> str:
    """Return the pattern of the log of a stage: the path of what it makes below logs/, by the name of the stage.

    The stage's name replaces the name of the file, or where that is a wildcard the name of its folder.
    """
    folder, _, name = path.removeprefix("results/").rpartition("/")
    stem = name.rpartition(".")[0]
    above, _, last = folder.rpartition("/")
    if "{" not in stem:
        return "/".join(["logs", folder, f"{stage}.log"])
    if "{" not in last and above:
        return "/".join(["logs", above, stage, f"{stem}.log"])
    return "/".join(["logs", folder, f"{stem}.log"])
