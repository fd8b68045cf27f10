"""By class: how many validation pictures of each class the students of a method get right, and what they take others for.

All students of a method in a setting are counted together. Results of earlier versions do not say; they are left out.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from wmdd.report.results import SETTING

MISTAKES = 1000  # pairs of classes of a method that a page has at most, the most frequent first


class Students(NamedTuple):
    """What the students of a method in a setting do: sums over them."""

    place: dict[str, Any]  # `results.SETTING`
    method: str
    right: np.ndarray  # [C]
    total: np.ndarray  # [C]
    confusion: np.ndarray | None  # [C, C]: pictures of a class (row) that are taken for a class (column)


def by_class(contents: Sequence[Mapping[str, Any]], cells: pd.DataFrame) -> list[Students]:
    """Return what the students of each method and setting do, in the order of the settings.

    Args:
        contents: of students' results.
        cells: `results.rows` of them.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for content, cell in zip(contents, cells.to_dict("records"), strict=True):
        if "by_class" in content:
            groups.setdefault(tuple(cell[name] for name in (*SETTING, "method")), []).append(content["by_class"])
    return [
        Students(
            dict(zip(SETTING, key, strict=False)),
            key[-1],
            np.sum([each["right"] for each in several], axis=0),
            np.sum([each["total"] for each in several], axis=0),
            np.sum([each["confusion"] for each in several], axis=0) if "confusion" in several[0] else None,
        )
        for key, several in sorted(groups.items())
    ]


def for_page(
    students: Sequence[Students], names: Mapping[str, Sequence[str]], title_of: Callable[[Mapping[str, Any]], str]
) -> dict[str, Any]:
    """Return what the page's scripts show, as small as it gets: names of classes, and by setting tenths of a percent.

    Args:
        students: `by_class`.
        names: of the classes, by dataset.
        title_of: returns the title of a setting.
    """
    settings: dict[str, dict[str, Any]] = {}
    for each in students:
        title = title_of(each.place)
        setting = settings.setdefault(title, {"title": title, "dataset": each.place["dataset"], "methods": []})
        rates = np.round(1000 * each.right / np.maximum(each.total, 1)).astype(int)
        method: dict[str, Any] = {"name": each.method, "top1": rates.tolist()}
        if each.confusion is not None:
            method |= {"confusion": _mistakes(each.confusion)}
        setting["methods"].append(method)
    shown = {setting["dataset"] for setting in settings.values()}
    return {"names": {name: _told_apart(names[name]) for name in sorted(shown)}, "settings": [*settings.values()]}


def _told_apart(names: Sequence[str]) -> list[str]:
    """Return names of classes, with the number of the class where several have one name (ImageNet has two cranes)."""
    counts = Counter(names)
    return [f"{name} ({number})" if counts[name] > 1 else name for number, name in enumerate(names)]


def _mistakes(confusion: np.ndarray) -> list[int]:
    """Return the most frequent mistakes, one after the other: class, what it is taken for, how often in tenths of a percent."""
    shares = np.round(1000 * confusion / np.maximum(confusion.sum(1, keepdims=True), 1)).astype(int)
    np.fill_diagonal(shares, 0)
    order = np.argsort(-shares, axis=None, kind="stable")[:MISTAKES]
    rows, columns = np.unravel_index(order, shares.shape)
    triples = np.stack([rows, columns, shares[rows, columns]], 1)
    return [int(value) for value in triples[triples[:, 2] > 0].ravel()]
