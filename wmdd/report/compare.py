"""Compare: students side by side in the terminal. What differs in their settings, and whether their accuracy does."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from tabulate import tabulate

from wmdd.artifacts import atomic_files, hdf5
from wmdd.base.errors import WmddError
from wmdd.report import intervals
from wmdd.report.render import number
from wmdd.report.results import Measure, set_digest, sets_of, titled
from wmdd.report.scores import NO_RESULT, top1_of
from wmdd.workflow.layout import CELL, COST, Cell, beside, place_of
from wmdd.workflow.stages import ATOMS, STAGES

PLACE = tuple(name for name in CELL if name not in ("seed", "run"))
NONE = "—"
Settings = dict[str, str]  # "stage.name" -> value
Place = dict[str, Any]  # the parts of a cell in which students of one side differ


@dataclass(frozen=True)
class Score:
    """One student."""

    seed: int
    run: int
    top1: float  # %
    cell: Cell  # empty where the file is not where the workflow puts it
    settings: Settings
    set: str  # digest of the distilled set
    measures: dict[str, float]  # of `results.titled`, by title


@dataclass(frozen=True)
class Side:
    """What is compared: students under one name."""

    name: str
    scores: list[Score]

    @classmethod
    def read(cls, path: Path) -> "Side":
        """Read one result, or all below a folder.

        Raises:
            WmddError: there is none, or one of them is of something else.
        """
        files = [path] if path.is_file() else sorted(f for f in path.rglob("run*.json") if not f.name.endswith(COST))
        if not files:
            raise WmddError(f"there is no student's result at {path}; give a run0.json or a folder with some below it")
        return cls(path.as_posix(), [_score(file) for file in files])

    def values(self, part: str) -> set[Any]:
        """Return what the students have for a part of their cell."""
        return {getattr(score.cell, part) for score in self.scores}

    def at(self, place: Place) -> "Side":
        """Return the students whose cells have these parts."""
        return replace(self, scores=[s for s in self.scores if all(getattr(s.cell, k) == v for k, v in place.items())])

    def by_seed(self) -> dict[int, float]:
        """Return the mean of each seed."""
        return intervals.by_seed([score.seed for score in self.scores], [score.top1 for score in self.scores])


def _score(path: Path) -> Score:
    content = atomic_files.read_json(path)
    try:
        identity, top1 = content["identity"], top1_of(path, content)
        own, seed, run = content["settings"], int(identity["seed"]), int(identity["run"])
        measures = {measure.title: measure.read(content) for measure in titled()}
    except (KeyError, TypeError, ValueError):
        raise WmddError(NO_RESULT.format(path)) from None
    place = place_of(path.resolve())
    inherited = _inherited(path.resolve(), content.get("inputs", {}).get("labels")) if place else {}
    cell, settings = place.cell if place else Cell(), _flat("student", own) | inherited
    return Score(seed, run, top1, cell, settings, set_digest(content), measures)


def _flat(stage: str, settings: dict[str, Any]) -> Settings:
    return {f"{stage}.{name}": json.dumps(value).strip('"') for name, value in settings.items()}


def _inherited(student: Path, labels_digest: str | None) -> Settings:
    """Return the settings of what a student learned from: its set, the blocks of it, and the labels, known by their digest."""
    images = Path(beside(student, "images"))
    labels = sorted(Path(beside(student, "labels")).parent.glob("*.h5"))
    blocks = [block for name in ATOMS for block in sorted((images.parent / name).glob("*.h5"))[:1]]
    learned = [file for file in labels if _digest(file) == labels_digest][:1]
    return _of_artifacts(*filter(Path.is_file, (images, *learned, *blocks)))


@cache
def _digest(file: Path) -> str:
    return str(hdf5.load_meta(file)["digest"])


@cache
def _of_artifacts(*files: Path) -> Settings:
    settings: Settings = {}
    for meta in map(hdf5.load_meta, files):
        settings |= _flat(meta["stage"], meta["settings"])
        for stage in filter(meta.__contains__, STAGES):  # of which images.h5 was joined
            settings |= _flat(stage, meta[stage]["settings"])
    return settings


def _places(sides: Sequence[Side]) -> tuple[list[Place], list[Place]]:
    """Return the places that several sides share, and those of one side alone.

    Raises:
        WmddError: the sides share no place.
    """
    varying = [name for name in PLACE if any(len(side.values(name)) > 1 for side in sides)]
    values = {tuple(getattr(score.cell, name) for name in varying) for side in sides for score in side.scores}
    places = [dict(zip(varying, parts, strict=True)) for parts in sorted(values, key=str)]
    shared = [place for place in places if sum(bool(side.at(place).scores) for side in sides) > 1]
    if not shared:
        raise WmddError(f"{sides[0].name} and the others share no {', '.join(varying)}; name folders further down")
    return shared, [place for place in places if place not in shared]


def render(sides: Sequence[Side]) -> str:
    """Return the comparison as Markdown: two tables for each place that several sides share, and what only one side has.

    Raises:
        WmddError: the sides share no place.
    """
    shared, alone = _places(sides)
    lines = []
    for place in shared:
        students = [side.at(place) for side in sides]
        lines += [f"## {_title(place)}", ""] if place else []
        lines += [_differences(students, set(place)), "", _accuracy(students), ""]
    if alone:
        lines += [f"Left out, as only one side has it: {'; '.join(map(_title, alone))}.", ""]
    return "\n".join(lines)


def facts(sides: Sequence[Side]) -> dict[str, Any]:
    """Return the comparison as numbers for programs; None where a number needs more seeds.

    Raises:
        WmddError: the sides share no place.
    """
    shared, alone = _places(sides)
    places = []
    for place in shared:
        students = [side.at(place) for side in sides]
        rows = [_numbers(side, students[0]) for side in students]
        places.append({"place": place, "settings": _differing(students, set(place)), "sides": rows})
    return {"places": places, "left_out": alone}


def _numbers(side: Side, first: Side) -> dict[str, Any]:
    """Return the accuracy of a side, %, and its difference to the first."""
    row: dict[str, Any] = {"name": side.name, "students": len(side.scores)}
    if side.scores:
        row |= intervals.mean(side.by_seed())._asdict()
    if side.scores and first.scores and side is not first:
        row["difference"] = intervals.difference(first.by_seed(), side.by_seed())._asdict()
    return _json(row)


def _json(value: Any) -> Any:
    """Return a value with None in place of NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _json(each) for name, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _title(place: Place) -> str:
    return ", ".join(f"{name} {value}" for name, value in place.items())


def _differences(sides: Sequence[Side], fixed: set[str]) -> str:
    """Return the table of `_differing`."""
    rows = [[name, *(", ".join(values) or NONE for values in row)] for name, row in _differing(sides, fixed).items()]
    if not rows:
        return "No setting differs."
    return tabulate(rows, ["setting", *(side.name for side in sides)], tablefmt="pipe", disable_numparse=True)


def _differing(sides: Sequence[Side], fixed: set[str]) -> dict[str, list[list[str]]]:
    """Return the settings, and parts of the cell that are not `fixed`, in which sides differ: the values of each side."""
    students = [[_parts(score.cell, fixed) | score.settings for score in side.scores] for side in sides]
    names = {name for side in students for student in side for name in student}
    rows = {
        name: [sorted({student.get(name, NONE) for student in side}) for side in students]
        for name in sorted(names, key=lambda name: ("." in name, name))
    }
    return {name: row for name, row in rows.items() if any(values != row[0] for values in row)}


def _parts(cell: Cell, fixed: set[str]) -> Settings:
    return {name: str(value) for name, value in cell.parts().items() if name in PLACE and name not in fixed}


def _accuracy(sides: Sequence[Side]) -> str:
    """Return the table of the accuracies; below it, what n counts and which interval there can't be."""
    seeds = [side.by_seed() for side in sides]
    amounts = {measure.title: [_amounts(side, measure) for side in sides] for measure in titled()}
    amounts = {title: texts for title, texts in amounts.items() if any(texts)}
    rows = [
        [side.name, _mean(side), *(_difference(seeds[0], scores) if place else [""] * 4)]
        + [texts[place] for texts in amounts.values()]
        for place, (side, scores) in enumerate(zip(sides, seeds, strict=True))
    ]
    headers = ["", "top-1 %", "difference", "95 %", "p", "test", *amounts]
    lines = [tabulate(rows, headers, tablefmt="pipe", disable_numparse=True), ""]
    lines += ["n counts seeds of the distillation; students of the same seed are averaged."]
    for side, scores in zip(sides, seeds, strict=True):
        if len(scores) == 1 and len(side.scores) > 1:
            spread = intervals.spread([score.seed for score in side.scores], [score.top1 for score in side.scores])
            lines += [f"{side.name}: spread over {len(side.scores)} students of this set: {spread:.1f}."]
    few = [side.name for side, scores in zip(sides, seeds, strict=True) if len(scores) < 2]
    return "\n".join(lines + ([f"No interval can be given with n < 2: {', '.join(few)}."] if few else []))


def _amounts(side: Side, measure: Measure) -> str:
    """Return the different values of a measure that the students of a side have; empty where none is known."""
    values = sorted({value for score in side.scores if not math.isnan(value := score.measures[measure.title])})
    return ", ".join(number(value, measure.form).text for value in values)


def _mean(side: Side) -> str:
    if not side.scores:
        return f"{NONE} (0)"
    return intervals.mean_text(*intervals.mean(side.by_seed())[:3], sets_of(score.set for score in side.scores))


def _difference(first: dict[int, float], second: dict[int, float]) -> list[str]:
    """Return the difference, its interval, p, and by which test."""
    if not first or not second:
        return [NONE] * 4
    gain = intervals.difference(first, second)
    test = f"paired, {gain.pairs} seed{'s' * (gain.pairs > 1)}" if gain.pairs else "Welch, unpaired"
    interval = intervals.interval_text(gain.low, gain.high, "+")
    return [intervals.signed(gain.mean), interval or NONE, f"{gain.p:.2g}" if interval else NONE, test]
