"""Students side by side in the terminal: what differs in their settings, and whether their accuracy does (`intervals`)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from tabulate import tabulate

from wmdd.artifacts import atomic_files, hdf5
from wmdd.base.errors import WmddError
from wmdd.report import intervals
from wmdd.report.results import NO_RESULT, set_digest, sets_of, top1_of
from wmdd.workflow.layout import CELL, COST, Cell, beside, place_of
from wmdd.workflow.stages import ATOMS, STAGES

PLACE = tuple(name for name in CELL if name not in ("seed", "run"))
NONE = "—"


@dataclass(frozen=True)
class Score:
    """One student."""

    seed: int
    run: int
    top1: float  # %
    cell: Cell  # empty where the file is not where the workflow puts it
    settings: dict[str, str]
    set: str  # digest of the distilled set


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

    def values(self, name: str) -> set[Any]:
        """Return what the students have for a part of their cell."""
        return {getattr(score.cell, name) for score in self.scores}

    def where(self, parts: dict[str, Any]) -> "Side":
        """Return the students of cells with these parts."""
        return replace(self, scores=[s for s in self.scores if all(getattr(s.cell, k) == v for k, v in parts.items())])

    def by_seed(self) -> dict[int, float]:
        """Return the mean of each seed."""
        return intervals.by_seed([score.seed for score in self.scores], [score.top1 for score in self.scores])


def _score(path: Path) -> Score:
    content = atomic_files.read_json(path)
    try:
        identity, top1 = content["identity"], top1_of(path, content)
        own, seed, run = content["settings"], int(identity["seed"]), int(identity["run"])
    except (KeyError, TypeError, ValueError):
        raise WmddError(NO_RESULT.format(path)) from None
    place = place_of(path.resolve())
    inherited = _beside(path.resolve(), content.get("inputs", {})) if place else {}
    cell = place.cell if place else Cell()
    return Score(seed, run, top1, cell, _settings("student", own) | inherited, set_digest(content))


def _settings(stage: str, values: dict[str, Any]) -> dict[str, str]:
    return {f"{stage}.{name}": json.dumps(value).strip('"') for name, value in values.items()}


def _beside(path: Path, inputs: dict[str, str]) -> dict[str, str]:
    """Return the settings of what a student learned from: its set, the blocks of it, and the labels, known by their digest."""
    images = Path(beside(path, "images"))
    blocks = [next(iter(sorted((images.parent / name).glob("*.h5"))), None) for name in ATOMS]
    labels = [
        file
        for file in sorted(Path(beside(path, "labels")).parent.glob("*.h5"))
        if _digest(file) == inputs.get("labels")
    ]
    return _of_artifacts(*(file for file in (images, *labels[:1], *blocks) if file))


@cache
def _digest(file: Path) -> str:
    return str(hdf5.load_meta(file)["digest"])


@cache
def _of_artifacts(*files: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in filter(Path.is_file, files):
        meta = hdf5.load_meta(file)
        found |= _settings(meta["stage"], meta["settings"])
        for stage in filter(meta.__contains__, STAGES):  # of which images.h5 was joined
            found |= _settings(stage, meta[stage]["settings"])
    return found


def render(sides: Sequence[Side]) -> str:
    """Return the comparison as Markdown: a table for each part that several sides share, and what only one side has."""
    varying = [name for name in PLACE if any(len(side.values(name)) > 1 for side in sides)]
    shared, alone = _cells(sides, varying)
    lines = []
    for cell in shared:
        parts = [side.where(cell) for side in sides]
        lines += [f"## {_title(cell)}", ""] if cell else []
        lines += [_differences(parts, set(cell)), "", _accuracy(parts), ""]
    if alone:
        lines += [f"Left out, as only one side has it: {'; '.join(map(_title, alone))}.", ""]
    return "\n".join(lines)


def _title(cell: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in cell.items())


def _cells(sides: Sequence[Side], varying: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the cells that several sides have, at least one, and those that only one side has."""
    values = {tuple(getattr(s.cell, name) for name in varying) for side in sides for s in side.scores}
    cells = [dict(zip(varying, each, strict=True)) for each in sorted(values, key=str)]
    shared = [cell for cell in cells if sum(bool(side.where(cell).scores) for side in sides) > 1]
    if not shared:
        missing = ", ".join(varying)
        raise WmddError(f"{sides[0].name} and the others share no {missing}; name folders further down")
    return shared, [cell for cell in cells if cell not in shared]


def _differences(sides: Sequence[Side], fixed: set[str]) -> str:
    """Return the table of the settings, and parts of the cell, in which sides differ."""
    rows = []
    told = [[_told(score, fixed) for score in side.scores] for side in sides]
    names = dict.fromkeys(name for side in told for each in side for name in each)
    for name in sorted(names, key=lambda name: ("." in name, name)):
        row = [", ".join(sorted({each.get(name, NONE) for each in side})) or NONE for side in told]
        rows += [[name, *row]] if len(set(row)) > 1 else []
    if not rows:
        return "No setting differs."
    return tabulate(rows, ["setting", *(side.name for side in sides)], tablefmt="pipe", disable_numparse=True)


def _told(score: Score, fixed: set[str]) -> dict[str, str]:
    where = {name: str(value) for name, value in score.cell.parts().items() if name in PLACE and name not in fixed}
    return where | score.settings


def _accuracy(sides: Sequence[Side]) -> str:
    """Return the table of the accuracies, and below it what they count and which interval there can't be."""
    seeds = [side.by_seed() for side in sides]
    rows = [
        [
            side.name,
            *_told_mean(scores, sets_of(score.set for score in side.scores)),
            *(_told_difference(seeds[0], scores) if place else [""] * 4),
        ]
        for place, (side, scores) in enumerate(zip(sides, seeds, strict=True))
    ]
    headers = ["", "top-1 %", "difference", "95 %", "p", "test"]
    lines = [tabulate(rows, headers, tablefmt="pipe", disable_numparse=True), ""]
    lines += ["n counts seeds of the distillation; students of the same seed are averaged."]
    for side, scores in zip(sides, seeds, strict=True):
        spread = intervals.spread([score.seed for score in side.scores], [score.top1 for score in side.scores])
        if len(scores) == 1 and len(side.scores) > 1:
            lines += [f"{side.name}: spread over {len(side.scores)} students of this set: {spread:.1f}."]
    few = [side.name for side, scores in zip(sides, seeds, strict=True) if len(scores) < 2]
    if few:
        lines += [f"No interval can be given with n < 2: {', '.join(few)}."]
    return "\n".join(lines)


def _told_mean(scores: dict[int, float], sets: int | None) -> list[str]:
    return [intervals.mean_text(*intervals.mean(scores)[:3], sets) if scores else f"{NONE} (0)"]


def _told_difference(first: dict[int, float], second: dict[int, float]) -> list[str]:
    """Return the difference, its interval, p, and by which test."""
    if not first or not second:
        return [NONE] * 4
    gain = intervals.difference(first, second)
    test = f"paired, {gain.pairs} seeds" if gain.pairs > 1 else "paired, 1 seed" if gain.pairs else "Welch, unpaired"
    interval = intervals.interval_text(gain.low, gain.high, "+")
    return [intervals.signed(gain.mean), interval or NONE, f"{gain.p:.2g}" if interval else NONE, test]
