"""Results: every student and every job of an experiment as a data frame, and the summary of students that tables show.

A group is given by all parts of a cell but seed and run, and by the labels (`GROUP`), so that no teacher, protocol or student
is ever pooled or forgotten. A part that a cell does not have is "".
"""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from wmdd.artifacts import hdf5
from wmdd.base.errors import WmddError
from wmdd.report import intervals
from wmdd.report.render import records
from wmdd.report.scores import NO_RESULT, top1_of
from wmdd.workflow.layout import CELL, Cell, beside, cell_of, place_of
from wmdd.workflow.stages import CONTROLS, REAL, STAGES
from wmdd.workflow.stages import RANDOM as CONTROL

FIRST = ("dataset", "ipc", "method")  # how tables are sorted
GROUP = [*FIRST, *(name for name in CELL if name not in (*FIRST, "seed", "run")), "labels"]
SETTING = [name for name in GROUP if name != "method"]  # in which methods are compared
GAIN = ("gain", "gain_low", "gain_high", "gain_p", "gain_n")  # over it: the fields of `intervals.Difference`
CLOSED = (
    "closed",
    "closed_low",
    "closed_high",
)  # of the gap to the whole training set: the fields of `intervals.Share`
COLUMNS = [*CELL, "labels", "set", "family", "top1"]  # of a student, before `MEASURES`
# how much a student has done, and images of a class of its set, where these are more than an epoch shows: whole numbers
AMOUNTS = ("steps", "images_seen", "images_held")
Meta = Mapping[str, Any]


class Measure(NamedTuple):
    """What tables say of a student beside its top-1: to add a column, add a measure."""

    name: str  # of the column in data frames and CSV
    read: Callable[[Meta], float]  # from the content of a student's result
    title: str = ""  # of its column in tables, which has the mean over seeds; empty: it has none
    mean: bool = True  # the summary has its mean over seeds
    form: str = ".4g"  # of its numbers


def _amount(name: str) -> Callable[[Meta], float]:
    """Return what reads an amount of a result; NaN in results of earlier versions, which lack it."""
    return lambda content: float(content["result"].get(name, math.nan))


MEASURES = (
    Measure("top5", lambda content: 100 * content["result"]["top5"]),
    # The best of all looks is chosen by the validation set itself, so that no table has it.
    Measure("best_top1", lambda content: 100 * content["result"]["best_top1"], mean=False),
    *(Measure(name, _amount(name), name.replace("_", " "), form=",.0f") for name in AMOUNTS),
)
Results = list[tuple[Path, dict[str, Any]]]


def titled() -> list[Measure]:
    """Return the measures that have a column in tables."""
    return [measure for measure in MEASURES if measure.title and measure.mean]


def set_of(cell: Cell) -> Cell:
    """Return the distilled set that a file belongs to."""
    return cell.having(student=None, protocol=None, run=None, block=None)


def all_parts(cell: Cell) -> dict[str, Any]:
    """Return all parts of a cell, those that it lacks as ""."""
    return dict.fromkeys(CELL, "") | cell.parts()


def with_cells(frames: Iterable[tuple[Path, pd.DataFrame]], columns: Iterable[str]) -> pd.DataFrame:
    """Return data frames of files one below the other, each row with all parts of its file's cell; of none, these columns."""
    parts = [frame.assign(**all_parts(cell_of(path))) for path, frame in frames]
    return pd.concat(parts) if parts else pd.DataFrame(columns=[*CELL, *columns])


def family_of(meta: Meta) -> str:
    """Return the family of the method that made images.h5, from its meta data; "" if no family of ours did."""
    for stage in STAGES.values():
        if len(stage.families) == 1 and (stage.name == meta.get("stage") or stage.name in meta):
            return stage.families[0]
    return ""


def kind_of(family: str) -> str:
    """Return whether images are real or distilled; "" where the family is not known."""
    return "real" if family in REAL else "distilled" if family else ""


def families_of(images: Iterable[Path]) -> dict[Cell, str]:
    """Read from distilled sets (images.h5) which family made each."""
    return {cell_of(path): family_of(hdf5.load_meta(path)) for path in images}


def families_beside(students: Iterable[Path]) -> dict[Cell, str]:
    """Read the families of the sets that students learned from, of those that lie where the workflow puts them."""
    return families_of(filter(Path.is_file, {Path(beside(student, "images")) for student in students}))


def rows(results: Results, families: Mapping[Cell, str] | None = None) -> pd.DataFrame:
    """Return a row a student: its cell (from its path), labels, family and scores in percent.

    Args:
        results: file and content of each student.
        families: of distilled sets.

    Raises:
        WmddError: a file is not where the workflow puts a student's result, or of something else.
    """
    lines = []
    for path, content in results:
        cell = cell_of(path)
        if cell.student is None:
            raise WmddError(f"{path} is not where a student's result belongs; give run0.json of the student stage")
        line = all_parts(cell) | {"family": (families or {}).get(set_of(cell), "")}
        try:
            line |= {"labels": content["settings"]["labels"], "set": set_digest(content)}
            line |= {"top1": top1_of(path, content)} | {measure.name: measure.read(content) for measure in MEASURES}
        except (KeyError, TypeError, ValueError):
            raise WmddError(NO_RESULT.format(path)) from None
        lines.append(line)
    return pd.DataFrame(lines, columns=[*COLUMNS, *(measure.name for measure in MEASURES)])


def set_digest(content: Meta) -> str:
    """Return the digest of the distilled set that a student learned from; "" where its result does not say."""
    return str(content.get("inputs", {}).get("images", ""))[:16]


def sets_of(digests: Iterable[str]) -> int | None:
    """Return how many distilled sets there are, or None where it is not known of each."""
    different = set(digests)
    return None if "" in different else len(different)


def summary(cells: pd.DataFrame) -> pd.DataFrame:
    """Return a row a group of students: mean, deviation, seeds and interval of top-1, and the gain over random real images.

    The columns: `GROUP`, family; mean, std, n (seeds), low, high; sets (that differ, None where it is not known), students,
    spread (of the students of one set); the means of `MEASURES`; gain over `random` in the same setting, gain_low, gain_high,
    gain_p, gain_n (pairs of seeds, 0 where none pair); closed, the share of the gap between `random` and `whole` in the same
    setting, closed_low, closed_high; and the means of seconds and bytes where the students have them.
    """
    filled = cells.assign(**{name: cells[name].astype(object).where(cells[name].notna(), "") for name in GROUP})
    groups = dict(iter(filled.groupby(GROUP, dropna=False)))
    scores = {key: scores_of(students) for key, students in groups.items()}
    place = GROUP.index("method")
    averaged = [measure.name for measure in MEASURES if measure.mean]
    lines = []
    for key, students in groups.items():
        control, limit = (scores.get((*key[:place], name, *key[place + 1 :]), {}) for name in CONTROLS)
        families = students["family"].unique()
        line = dict(zip(GROUP, key, strict=True)) | {"family": str(families[0]) if len(families) == 1 else ""}
        line |= intervals.mean(scores[key])._asdict() | {"sets": sets_of(students["set"]), "students": len(students)}
        line |= {"spread": intervals.spread(students["seed"], students["top1"])}
        line |= {name: scored(students, name) for name in (*averaged, "seconds", "bytes") if name in students}
        line |= _gain({} if key[place] == CONTROL else control, scores[key])
        compared = key[place] not in CONTROLS
        closed = intervals.share(control, scores[key], limit) if compared else (math.nan,) * len(CLOSED)
        lines.append(line | dict(zip(CLOSED, closed, strict=True)))
    numbers = [*intervals.Mean._fields, "sets", "students", "spread", *averaged, *GAIN, *CLOSED]
    table = pd.DataFrame(lines, columns=None if lines else [*GROUP, "family", *numbers])
    table = table.astype(dict.fromkeys(("sets", "gain_n"), "Int64"))  # whole numbers, of which some are not known
    return table.assign(**{name: table[name].convert_dtypes() for name in AMOUNTS})


def over_seeds(table: pd.DataFrame, keys: list[str], name: str) -> pd.DataFrame:
    """Return mean, std and n of a column over seeds, by keys; the students of a seed are averaged first."""
    means = table.dropna(subset=name).groupby([*keys, "seed"])[name].mean()
    return means.groupby(keys).agg(mean="mean", std="std", n="size").reset_index()


def scores_of(students: pd.DataFrame, name: str = "top1") -> dict[int, float]:
    """Return the score of each seed, the mean of its students."""
    return intervals.by_seed(students["seed"], students[name])


def scored(students: pd.DataFrame, name: str) -> float:
    """Return the mean over seeds of a column."""
    return intervals.mean(scores_of(students, name)).mean


def _gain(control: Mapping[int, float], scores: Mapping[int, float]) -> dict[str, float]:
    gain = intervals.difference(control, scores) if control else (math.nan,) * len(GAIN)
    return dict(zip(GAIN, gain, strict=True))


def jobs(costs: Results) -> pd.DataFrame:
    """Return a row a job: its cell, from the path of its cost file, its stage, and what else that file says."""
    return pd.DataFrame([all_parts(cell_of(path)) | {"file": path.as_posix()} | cost for path, cost in costs])


def raw(results: Results, families: Mapping[Cell, str], teachers: Mapping[str, Meta], costs: Results) -> dict[str, Any]:
    """Return everything that tables are made of, to be kept with a study: each student, teacher and job, and the versions.

    Scores are in percent; a job has its cell, seconds, peak memory and machine.
    """
    versions = [content.get("versions", {}) | {"revision": content.get("revision", "")} for _, content in results]
    students = [
        {name: value for name, value in line.items() if value == value and (value != "" or name in ("family", "set"))}
        for line in records(rows(results, families).round(4))
    ]
    return {
        "runs": students,
        "teachers": {path: {k: 100 * v for k, v in about["accuracy"].items()} for path, about in teachers.items()},
        "costs": [{"file": path.as_posix()} | cell_of(path).parts() | cost for path, cost in costs],
        "versions": [each for number, each in enumerate(versions) if each not in versions[:number]],
    }


def of_raw(content: Mapping[str, Any]) -> pd.DataFrame:
    """Return the rows of `raw`; where these do not say their family, the jobs that made their sets do.

    Raises:
        KeyError: it is something else.
    """
    families: dict[Cell, str] = {}
    for cost in content.get("costs", []):
        if cost["stage"] == "images":  # of earlier versions, where it joined blocks
            continue
        if (place := place_of(cost["file"])) is not None and (family := family_of({"stage": cost["stage"]})):
            families.setdefault(set_of(place.cell), family)
    lines = []
    for line in content["runs"]:
        cell = Cell.of(line)
        missing = {"family": families.get(set_of(cell), ""), "set": ""}
        lines.append(missing | line | all_parts(cell) | {"labels": line["labels"]})
    return pd.DataFrame(lines, columns=[*COLUMNS, *(measure.name for measure in MEASURES)])
