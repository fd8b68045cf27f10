r"""DD-Ranking's measures, computed from accuracies that an experiment has (Li et al. 2025, arXiv 2505.13300; package 0.2.0).

With A the accuracy, a share, of students under a row's protocol, under one with hard labels, or under one without augmentation;
and of a method's set, of random real images, and of the whole training set:

    HLR = A_hard(whole) - A_hard(method)                  hard-label recovery: the less, the better
    IOR = A(method) - A(random)                           improvement over random
    LRS = s(w IOR - (1 - w) HLR)                          label-robust score
    ARS = s(w IOR + (1 - w) (A_still(method) - A_still(random)))      augmentation-robust score
    s(x) = (e^x - e^-1) / (e - e^-1),  w = 1/2

All go by seed of the distillation. The names of protocols tell which belong together (`_partner`).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from operator import sub
from typing import Any

import pandas as pd

from wmdd.report import intervals
from wmdd.report.render import EMPTY, Column, Table, Value, plain, table
from wmdd.report.results import SETTING, scores_of
from wmdd.workflow.stages import RANDOM, WHOLE

WEIGHT = 0.5  # w of the package
HARD, STILL = "hard", "no-augmentation"  # names of protocols, or ends of them
RECOVERY, IMPROVEMENT = "hard-label recovery", "improvement over random"
LABEL_ROBUST, AUGMENTATION_ROBUST = "label-robust score", "augmentation-robust score"
CAPTION = (
    "Mean ± standard deviation (n seeds). In points of accuracy: hard-label recovery (whole training "
    "set minus method under hard labels; the less, the better) and improvement over random images. From 0 to 1: the "
    "label-robust score, made of these two, and the augmentation-robust one, of the improvements with and without augmentation."
)
PLACE = [name for name in SETTING if name not in ("protocol", "labels")]  # where protocols are compared
Kind = tuple[str, str]  # a protocol and its labels
Shares = Mapping[int, float]  # accuracies by seed, or what is made of them


def normalised(x: float) -> float:
    """Return (e^x - e^-1) / (e - e^-1): 0 to 1 for x from -1 to 1."""
    return (math.exp(x) - math.exp(-1)) / (math.exp(1) - math.exp(-1))


def label_robust(recovery: float, improvement: float, weight: float = WEIGHT) -> float:
    """Return the label-robust score of hard-label recovery and improvement over random, both shares."""
    return normalised(weight * improvement - (1 - weight) * recovery)


def augmentation_robust(augmented: float, still: float, weight: float = WEIGHT) -> float:
    """Return the augmentation-robust score of the improvements over random with and without augmentation, both shares."""
    return normalised(weight * augmented + (1 - weight) * still)


def measures(cells: pd.DataFrame) -> Table | None:
    """Return the measures of the methods, for protocols with the controls that one of the scores needs; None without any.

    Args:
        cells: `results.rows`.
    """
    lines = [
        dict(zip(PLACE, key, strict=True)) | line
        for key, students in cells.groupby(PLACE, dropna=False)
        for line in _lines(students)
    ]
    columns = [plain(name) for name in (*PLACE, "method", "protocol", "labels")]
    columns += [_column(title, 100, ".1f") for title in (RECOVERY, IMPROVEMENT)]
    columns += [_column(title, 1, ".3f") for title in (LABEL_ROBUST, AUGMENTATION_ROBUST)]
    keep = ["dataset", "images per class", *(column.title for column in columns[len(PLACE) :])]
    return table("dd-ranking", lines, columns, keep, CAPTION, wide=len(lines) > 20) if lines else None


def _lines(students: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield the measures of each protocol and method, of students that differ in nothing else but seeds and runs."""
    accuracies: dict[Kind, dict[str, Shares]] = {}
    for (protocol, labels, method), rows in students.groupby(["protocol", "labels", "method"]):
        shares = {seed: score / 100 for seed, score in scores_of(rows).items()}
        accuracies.setdefault((str(protocol), str(labels)), {})[str(method)] = shares
    for kind, own in accuracies.items():
        if kind[0].endswith(STILL):
            continue
        hard = own if kind[1] == HARD else _partner(accuracies, (kind[0], HARD), HARD)
        still = _partner(accuracies, kind, STILL)
        for method in sorted(own.keys() - {WHOLE}):
            recovery = _each(sub, hard.get(WHOLE), hard.get(method))
            improvement = _each(sub, own.get(method), own.get(RANDOM))
            unaugmented = _each(sub, still.get(method), still.get(RANDOM))
            scores = {
                LABEL_ROBUST: _each(label_robust, recovery, improvement),
                AUGMENTATION_ROBUST: _each(augmentation_robust, improvement, unaugmented),
            }
            if any(scores.values()):
                place = {"method": method, "protocol": kind[0], "labels": kind[1]}
                yield place | {RECOVERY: recovery, IMPROVEMENT: improvement} | scores


def _partner(accuracies: Mapping[Kind, dict[str, Shares]], kind: Kind, end: str) -> dict[str, Shares]:
    """Return the accuracies of methods under what belongs to a protocol: to `paper`, `paper-hard`, or else `hard`."""
    protocol, labels = kind
    return next((accuracies[k] for name in (f"{protocol}-{end}", end) if (k := (name, labels)) in accuracies), {})


def _each(function: Callable[..., float], *sides: Shares | None) -> Shares:
    """Return a function of several accuracies for each seed that all of them have."""
    given = [side or {} for side in sides]
    return {seed: function(*(side[seed] for side in given)) for seed in set.intersection(*map(set, given))}


def _column(title: str, scale: float, form: str) -> Column:
    """Return a column of a measure: mean ± standard deviation (n)."""

    def cell(row: dict[str, Any]) -> Value:
        if not row[title]:
            return EMPTY
        mean, std, n, *_ = intervals.mean(row[title])
        spread = "" if math.isnan(std) else f" ± {scale * std:{form}}"
        return Value(intervals.with_minus(f"{scale * mean:{form}}{spread} ({n})"), scale * mean)

    return Column(title, cell)
