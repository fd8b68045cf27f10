"""Tables of accuracy: the main table, and tables with a column for each dataset or student."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from wmdd.report import intervals
from wmdd.report.published import KEY
from wmdd.report.render import EMPTY, Column, Table, Value, number, plain, records, table
from wmdd.report.results import CLOSED, FIRST, GAIN, GROUP, Measure, kind_of, scores_of, titled

ABLATION = {  # preset -> cross-entropy, per-class statistics, barycenter
    "wmdd": (False, True, True),
    "wmdd-ce": (True, True, True),
    "sre2l-pcbn": (True, True, False),
    "barycenter-only": (False, False, True),
    "sre2l": (True, False, False),
}
LOSS = ("cross-entropy", "per-class statistics", "barycenter")
BY_SEED = "top-1 by seed, %"
SCORED = (
    "Top-1 accuracy in % on the real validation set after the last epoch: mean ± standard deviation (n). n counts seeds of the "
    "distillation; the students of a seed are averaged. Fewer sets than seeds: the method gave several seeds the same images."
)
GAINED = (
    "− random: difference to random real images under the same labels; in brackets its 95 % interval (Student's t) and the "
    "number of seeds that both have, by which it is paired."
)
CLOSING = (
    "gap closed: (method − random) / (whole training set − random) at as many steps, by the seeds that all three have, "
    "with its 95 % interval (Fieller); empty where these are fewer than two, or the gap is not above 0."
)
COUNTED = "Steps are those of the student's optimiser; images seen, those of all its epochs together."

HELD = "Images held: of a class, in a set of which an epoch shows a part."


def results(summary: pd.DataFrame, cells: pd.DataFrame | None = None) -> Table:
    """Return the main table: every group of students, its distance to random images, and what is published.

    What is sorted by stands first, then scores, then what else tells rows apart.

    Args:
        summary: `results.summary`, or `published.beside` of it.
        cells: `results.rows`, for a column with the score of each seed.
    """
    place = {name: plain(name) for name in GROUP}
    scores = [Column("top-1, %", _mean), Column("− random", _gain), Column("gap closed", _closed)]
    scores.append(Column("published", _published))
    scores.append(Column("students", _students))
    if cells is not None:
        each = {key: scores_of(students) for key, students in cells.groupby(GROUP, dropna=False)}
        scores.append(Column(BY_SEED, lambda row: _by_seed(each[tuple(row[name] for name in GROUP)])))
    kind = Column("images", lambda row: Value(kind_of(row["family"])))
    others = [place[name] for name in GROUP if name not in FIRST]
    columns = [*(place[name] for name in FIRST), *scores, kind, *others, *_measures(lambda row: [row])]
    keep = ("method", *(column.title for column in scores))
    notes = [GAINED, *([CLOSING] if summary["closed"].notna().any() else [])]
    main = table("results", records(summary), columns, keep, _caption(summary, *notes), wide=True, numbers=summary)
    return main._replace(on_demand=(BY_SEED,))


def _by_seed(scores: Mapping[int, float]) -> Value:
    """Return the score of each seed, the mean of its students."""
    return Value(", ".join(f"{seed}: {score:.1f}" for seed, score in scores.items()))


def _measures(groups: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> list[Column]:
    """Return a column for each measure with a title: of each group of a line, or once where it is the same in all of them."""

    def cell(row: dict[str, Any], measure: Measure) -> Value:
        values = [number(group[measure.name], measure.form) for group in groups(row)]
        if len({value.text for value in values}) > 1:
            return Value(" / ".join(value.text for value in values))
        return values[0] if values else EMPTY

    return [Column(measure.title, lambda row, m=measure: cell(row, m)) for measure in titled()]  # type: ignore[misc]


def _caption(summary: pd.DataFrame, *more: str) -> str:
    """Say what the numbers are; of steps and of images held where any row has them."""
    said = [text for name, text in (("steps", COUNTED), ("images_held", HELD)) if summary[name].notna().any()]
    return " ".join([SCORED, *more, *said])


def _mean(row: dict[str, Any]) -> Value:
    interval = intervals.interval_text(row["low"], row["high"])
    notes = [f"95 %: {interval}" if interval else "a single seed has no interval"]
    if not math.isnan(row["spread"]):
        whose = "this set" if row["n"] == 1 else f"{row['n']} seeds"
        notes.append(f"spread over {row['students']} students of {whose}: {row['spread']:.1f}")
    sets = None if pd.isna(row["sets"]) else int(row["sets"])
    return Value(intervals.mean_text(row["mean"], row["std"], row["n"], sets), float(row["mean"]), "; ".join(notes))


def _students(row: dict[str, Any]) -> Value:
    return Value("" if row["students"] == row["n"] else str(row["students"]), int(row["students"]))


def _gain(row: dict[str, Any]) -> Value:
    if math.isnan(row["gain"]):
        return EMPTY
    mean, low, high, p, pairs = (float(row[name]) for name in GAIN)
    gain = intervals.Difference(mean, low, high, p, int(pairs))
    return Value(intervals.difference_text(gain), gain.mean, intervals.verdict(gain))


def _closed(row: dict[str, Any]) -> Value:
    closed = intervals.Share(*(float(row[name]) for name in CLOSED))
    return Value(intervals.share_text(closed), closed.mean) if closed.mean == closed.mean else EMPTY


def _published(row: dict[str, Any]) -> Value:
    score = number(row.get("published", math.nan), ".1f")
    return score._replace(note=str(row["source"]), quiet=True, url=str(row["url"])) if score.text else EMPTY


def across(
    name: str, summary: pd.DataFrame, parts: Sequence[str], more: Sequence[Column] = (), order: Sequence[str] = ()
) -> Table:
    """Return a table with a column for each value of some parts of a group, and a row for each of the rest.

    Under a row of ours that has published numbers stand these, in a row of their own.

    Args:
        name: of the table.
        summary: `results.summary`, or `published.beside` of it.
        parts: of `GROUP`, whose values are columns.
        more: columns beside them.
        order: of methods; others stand below, by name.

    Raises:
        ValueError: two groups fall into one cell.
    """
    keys = [key for key in GROUP if key not in parts]
    alike = [key for key in keys if key in KEY or summary[key].nunique() == 1]  # what published numbers have, too
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    titles: dict[str, None] = {}
    for row in records(summary.sort_values(GROUP)):
        title = ", ".join(f"{row[part]} per class" if part == "ipc" else str(row[part]) for part in parts)
        titles[title] = None
        ours = {key: row[key] for key in keys} | {"who": ""}
        theirs = {key: row[key] if key in alike else "" for key in keys} | {"who": " (published)"}
        line = lines.setdefault(tuple(ours.values()), ours)
        if title in line:
            raise ValueError(f"two results for {ours} in the column {title}")
        line[title] = _mean(row)
        line.setdefault("groups", []).append(row)
        if (score := _published(row)).text:
            lines.setdefault(tuple(theirs.values()), theirs)[title] = score
    columns = [plain(key) for key in keys]
    columns[keys.index("method")] = Column("method", lambda row: Value(f"{row['method']}{row['who']}"))
    columns += [*more, *_measures(lambda row: row.get("groups", []))]
    columns += [Column(title, lambda row, title=title: row.get(title, EMPTY)) for title in titles]  # type: ignore[misc]
    ranks = {method: rank for rank, method in enumerate(order)}

    def rank(line: dict[str, Any]) -> tuple[Any, ...]:
        first = [(ranks.get(line[key], len(ranks)), line[key]) for key in keys if key in KEY]
        return (*first, line["who"], *(line[key] for key in keys))

    ordered = sorted(lines.values(), key=rank)
    keep = ("method", *titles)
    return table(name, ordered, columns, keep, _caption(summary), wide=len(ordered) > 20, numbers=summary)


def ablation(summary: pd.DataFrame) -> Table | None:
    """Return the ablation of WMDD: what its loss has, and what that reaches on each dataset; soft labels."""
    rows = summary[(summary["labels"] == "soft") & summary["method"].isin(ABLATION)]
    rows = rows[_different(rows, "method", but=("method", "dataset")) >= 3]
    parts = [
        Column(part, lambda row, place=place: Value("yes" if ABLATION[row["method"]][place] else "no"))  # type: ignore[misc]
        for place, part in enumerate(LOSS)
    ]
    return across("ablation", rows, ["dataset"], parts, list(ABLATION)) if len(rows) else None


def architectures(summary: pd.DataFrame) -> Table | None:
    """Return what other networks than the teacher's learn from the same sets; soft labels."""
    rows = summary[summary["labels"] == "soft"]
    rows = rows[_different(rows, "student", but=("student",)) > 1]  # one kind of student compares nothing
    return across("architectures", rows, ["student"]) if len(rows) else None


def _different(rows: pd.DataFrame, part: str, but: Sequence[str]) -> "pd.Series[int]":
    """Return for each row how many values of a part there are among the rows that are alike but for some parts."""
    alike = [key for key in GROUP if key not in but]
    return rows.groupby(alike, dropna=False)[part].transform("nunique")
