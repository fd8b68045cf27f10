"""Students side by side in the terminal: what differs in their settings, and whether their accuracy does.

One seed is one observation: students of the same distilled set are averaged, because they share its luck. Only where all
have one and the same seed do the students themselves count; then the test says nothing of other seeds.

Welch's t test (unequal variances) of all observations, and the paired t test of the seeds that both have, each with its 95 %
interval. Both take the observations for normal; of two or three that is a guess.
"""

import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from wmdd import artifacts
from wmdd.errors import WmddError
from wmdd.tracking import parts_of as place

PLACE = ("dataset", "teacher", "method", "ipc", "student", "protocol")
RESULT = re.compile(r"run\d+\.json")
LEVEL = 0.95
NONE = "—"


@dataclass(frozen=True)
class Score:
    """One student."""

    seed: int
    run: int
    top1: float  # %
    place: dict[str, Any]
    settings: dict[str, str]


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
        files = [path] if path.is_file() else sorted(f for f in path.rglob("*.json") if RESULT.fullmatch(f.name))
        if not files:
            raise WmddError(f"there is no student's result at {path}; give a run0.json or a folder with some below it")
        return cls(path.as_posix(), [_score(file) for file in files])

    def values(self, name: str) -> set[Any]:
        """Return what the students have for a word of their place."""
        return {score.place.get(name) for score in self.scores}

    def where(self, cell: dict[str, Any]) -> "Side":
        """Return the students of a cell."""
        return replace(self, scores=[s for s in self.scores if all(s.place.get(k) == v for k, v in cell.items())])

    def by_seed(self) -> dict[int, float]:
        """Return the mean of each seed."""
        found: dict[int, list[float]] = {}
        for score in self.scores:
            found.setdefault(score.seed, []).append(score.top1)
        return {seed: float(np.mean(values)) for seed, values in sorted(found.items())}


def _score(path: Path) -> Score:
    content = artifacts.read_json(path)
    try:
        identity, top1 = content["identity"], 100 * float(content["result"]["top1"])
        own, seed, run = content["settings"], int(identity["seed"]), int(identity["run"])
    except (KeyError, TypeError, ValueError):
        raise WmddError(f"{path} is not the result of a student; give a run0.json of the student stage") from None
    where = place(path.resolve())
    return Score(seed, run, top1, where, _settings("student", own) | _beside(path, str(where.get("protocol"))))


def _settings(stage: str, values: dict[str, Any]) -> dict[str, str]:
    return {f"{stage}.{name}": json.dumps(value).strip('"') for name, value in values.items()}


def _beside(path: Path, protocol: str) -> dict[str, str]:
    """Return the settings of what a student learned from, as far as it lies where the workflow puts it."""
    if len(path.resolve().parents) < 4:
        return {}
    cell = path.resolve().parents[3]
    blocks = [next(iter(sorted((cell / name).glob("*.h5"))), None) for name in ("barycenter", "quantize")]
    return _of_artifacts(*(f for f in (cell / "images.h5", cell / "labels" / f"{protocol}.h5", *blocks) if f))


@cache
def _of_artifacts(*files: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in filter(Path.is_file, files):
        meta = artifacts.load_meta(file)
        found |= _settings(meta["stage"], meta["settings"])
        for stage in ("recover", "decode", "match"):  # of which images.h5 was joined
            found |= _settings(stage, meta[stage]["settings"]) if stage in meta else {}
    return found


def render(sides: Sequence[Side]) -> str:
    """Return the comparison as Markdown: a table for each place that all sides may share, as a protocol."""
    varying = [name for name in PLACE if any(len(side.values(name)) > 1 for side in sides)]
    lines = []
    for values in _cells(sides, varying):
        cell = dict(zip(varying, values, strict=True))
        parts = [side.where(cell) for side in sides]
        title = ", ".join(f"{name} {value}" for name, value in cell.items())
        lines += [f"## {title}", ""] if title else []
        lines += [_differences(parts, set(cell)), "", _accuracy(parts), ""]
    return "\n".join(lines)


def _cells(sides: Sequence[Side], varying: list[str]) -> list[tuple[Any, ...]]:
    """Return the cells in which there is something to compare; where there is none, all that any side has."""
    found = {tuple(s.place.get(name) for name in varying): 0 for side in sides for s in side.scores}
    for cell, side in product(found, sides):
        found[cell] += bool(side.where(dict(zip(varying, cell, strict=True))).scores)
    shared = [cell for cell, count in found.items() if count > 1]
    if not shared:
        missing = ", ".join(varying)
        raise WmddError(f"{sides[0].name} and the others share no {missing}; name folders further down")
    return sorted(shared, key=str)


def _differences(sides: Sequence[Side], fixed: set[str]) -> str:
    """Return the table of the settings, and words of the place, in which sides differ."""
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
    where = {name: str(score.place[name]) for name in PLACE if name in score.place and name not in fixed}
    return where | score.settings


def _accuracy(sides: Sequence[Side]) -> str:
    """Return the table of the accuracies, and below it what they count and which test can't be made."""
    seeds = {seed for side in sides for seed in side.by_seed()}
    single = len(seeds) == 1
    observed = [_observed(side, single) for side in sides]
    rows = [
        [side.name, score(values), *welch(observed[0], values), *paired(sides[0].by_seed(), side.by_seed())]
        for side, values in zip(sides, observed, strict=True)
    ]
    rows[0][2:] = [""] * 6
    headers = ["", "top-1 %", "difference", "95 %", "p (Welch)", "paired difference", "95 %", "p (paired)"]
    lines = [tabulate(rows, headers, tablefmt="pipe", disable_numparse=True), ""]
    if single:
        lines += [f"n counts students, all of seed {min(seeds)}: nothing is said of other seeds."]
    else:
        lines += ["n counts seeds; students of the same seed are averaged."]
    few = [side.name for side, values in zip(sides, observed, strict=True) if len(values) < 2]
    if few:
        lines += [f"No test can be made with n < 2: {', '.join(few)}."]
    return "\n".join(lines)


def _observed(side: Side, single: bool) -> list[float]:
    return [s.top1 for s in side.scores] if single else list(side.by_seed().values())


def score(values: Sequence[float]) -> str:
    """Return mean ± standard deviation (n)."""
    if len(values) < 2:
        return f"{values[0]:.2f} (1)" if values else f"{NONE} (0)"
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} ({len(values)})"


def welch(first: Sequence[float], second: Sequence[float]) -> list[str]:
    """Return the difference second - first, its interval and p by Welch's t test."""
    from scipy.stats import ttest_ind

    if not first or not second:
        return [NONE] * 3
    difference = float(np.mean(second) - np.mean(first))
    if min(len(first), len(second)) < 2 or (np.ptp(first) == 0 and np.ptp(second) == 0):
        return [f"{difference:+.2f}", NONE, NONE]
    with warnings.catch_warnings(action="ignore"):  # of nearly equal values
        return _told_test(difference, ttest_ind(second, first, equal_var=False))


def paired(first: dict[int, float], second: dict[int, float]) -> list[str]:
    """Return the same by the paired t test, of the seeds that both have."""
    from scipy.stats import ttest_rel

    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return [NONE] * 3
    a, b = ([side[seed] for seed in seeds] for side in (first, second))
    each = np.subtract(b, a)
    difference = float(each.mean())
    if len(seeds) < 2 or np.ptp(each) == 0:
        return [f"{difference:+.2f} ({len(seeds)})", NONE, NONE]
    with warnings.catch_warnings(action="ignore"):
        told = _told_test(difference, ttest_rel(b, a))
    return [f"{told[0]} ({len(seeds)})", *told[1:]]


def _told_test(difference: float, test: Any) -> list[str]:
    low, high = test.confidence_interval(LEVEL)
    return [f"{difference:+.2f}", f"{low:+.2f} to {high:+.2f}", f"{test.pvalue:.2g}"]
