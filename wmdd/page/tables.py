"""Tables of the page, as what is shown in each cell and by what it is sorted."""

import json
import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from wmdd.units import size

CONTROL = "random"
CONTROLS = (CONTROL, "kmeans-medoid")  # real images
ABLATION = {  # preset -> cross-entropy, per-class statistics, barycenter
    "wmdd": (False, True, True),
    "wmdd-ce": (True, True, True),
    "sre2l-pcbn": (True, True, False),
    "barycenter-only": (False, False, True),
    "sre2l": (True, False, False),
}
Meta = dict[str, Any]
SAME = ["dataset", "ipc", "method", "student", "protocol"]  # of a row
SETTING = ["dataset", "ipc", "student", "protocol", "teacher"]  # in which methods are compared
PERCENT = "Students from soft labels; top-1 accuracy in %."


class Value(NamedTuple):
    """A cell of a table: what is shown, by what it is sorted, and what is said of it."""

    text: str
    order: float | str | None = None
    note: str = ""
    quiet: bool = False
    url: str = ""


EMPTY = Value("", -math.inf)


class Table(NamedTuple):
    """A table of the page."""

    name: str
    columns: list[str]
    rows: list[list[Value]]
    caption: str = ""
    wide: bool = False  # searchable, with many rows


def glance(cells: pd.DataFrame) -> list[str]:
    """Return what a reader should know first: in each setting the best distilled set beside random real images."""
    lines = []
    for of, rows in cells.groupby([*SETTING, "labels"]):
        dataset, ipc, student, protocol, _, labels = of
        scores = rows.groupby("method")["top1"].agg(["mean", "std", "size"])
        distilled = scores.drop(index=list(CONTROLS), errors="ignore")
        if distilled.empty:
            continue
        best = str(distilled["mean"].idxmax())
        line = f"{dataset}, {ipc} per class, {labels} labels ({student}, {protocol}): {best} {_score(scores.loc[best])}"
        real = [f"{name} {_score(scores.loc[name])}" for name in CONTROLS if name in scores.index]
        beaten = [name for name in CONTROLS if name in scores.index and scores["mean"][name] >= scores["mean"][best]]
        line += f"; real images: {', '.join(real)}" if real else ""
        lines.append(line + (", so distilling gained nothing here" if beaten else ""))
    return lines


def _score(row: Any) -> str:
    spread = f" ± {row['std']:.1f}" if row["size"] > 1 else ""
    return f"{row['mean']:.1f}{spread} %"


def main(cells: pd.DataFrame, known: pd.DataFrame) -> Table:
    """Return the main table: soft and hard labels side by side, their distance to random images, and what is published.

    Args:
        cells: `report.rows`.
        known: `published.read`.
    """
    kinds = [kind for kind in ("soft", "hard") if kind in set(cells["labels"])]
    several = ["teacher"] if cells["teacher"].nunique() > 1 else []
    rows = []
    for of, found in cells.groupby([*SAME, "teacher"]):
        dataset, ipc, method, student, protocol, teacher = of
        control = cells[
            (cells["method"] == CONTROL) & (cells[SETTING] == [dataset, ipc, student, protocol, teacher]).all(axis=1)
        ]
        line = [Value(str(dataset)), _count(ipc), Value(str(method)), Value(str(student)), Value(str(protocol))]
        line += [_mean(_top1(found, kind)) for kind in kinds]
        line += [_gain(_top1(found, kind), _top1(control, kind)) if method != CONTROL else EMPTY for kind in kinds]
        rows.append([*line, _known(known, *of[:-1]), *(Value(str(teacher)) for _ in several)])
    columns = ["dataset", "images per class", "method", "student", "protocol", *(f"{kind} labels" for kind in kinds)]
    columns += [*(f"{kind} − random" for kind in kinds), "published", *several]
    caption = (
        "Top-1 accuracy in % on the real validation set after the last epoch: mean ± standard deviation (number of students). "
        "− random: difference of the means ± its standard error."
    )
    return Table("results", columns, rows, caption, wide=True)


def _count(value: Any) -> Value:
    return Value(str(value), int(value))


def _top1(cells: pd.DataFrame, labels: str) -> np.ndarray:
    return cells.loc[cells["labels"] == labels, "top1"].to_numpy(float)


def _mean(values: np.ndarray) -> Value:
    if not len(values):
        return EMPTY
    spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
    return Value(f"{values.mean():.1f}{spread} ({len(values)})", float(values.mean()))


def _gain(values: np.ndarray, control: np.ndarray) -> Value:
    """Return the difference of two means with its standard error (Welch): sqrt(s_a^2 / n_a + s_b^2 / n_b)."""
    if not len(values) or not len(control):
        return EMPTY
    gain = float(values.mean() - control.mean())
    if min(len(values), len(control)) < 2:
        return Value(f"{gain:+.1f}", gain, "no standard error: a single student")
    error = math.sqrt(values.var(ddof=1) / len(values) + control.var(ddof=1) / len(control))
    return Value(f"{gain:+.1f} ± {error:.1f}", gain, "difference of the means ± its standard error")


def _known(known: pd.DataFrame, *of: Any) -> Value:
    """Return the published numbers of a dataset, IPC, method, student and protocol (`SAME`), those of soft labels first."""
    same = known[(known[SAME] == list(of)).all(axis=1)].drop_duplicates("labels").sort_values("labels", ascending=False)
    if same.empty:
        return EMPTY
    rows = same.to_dict("records")
    text = ", ".join(f"{row['published']:.1f}" + " (hard)" * (row["labels"] == "hard") for row in rows)
    return Value(text, float(rows[0]["published"]), str(rows[0]["source"]), True, str(rows[0]["url"]))


def ablation(cells: pd.DataFrame, known: pd.DataFrame) -> Table | None:
    """Return the ablation of WMDD: what its loss has, and what that reaches on each dataset; soft labels."""
    rows = cells[(cells["labels"] == "soft") & cells["method"].isin(ABLATION)]
    if rows["method"].nunique() < 3:
        return None
    datasets, lines = sorted(rows["dataset"].unique()), []
    for (ipc, student, protocol), group in rows.groupby(["ipc", "student", "protocol"]):
        if group["method"].nunique() < 3:
            continue
        for method in [name for name in ABLATION if name in set(group["method"])]:
            line = [_count(ipc), Value(method), *(Value("yes" if part else "no") for part in ABLATION[method])]
            for dataset in datasets:
                mine = group[(group["method"] == method) & (group["dataset"] == dataset)]
                line += [_mean(_top1(mine, "soft")), _known(known, dataset, ipc, method, student, protocol)]
            lines.append(line)
    columns = ["images per class", "method", "cross-entropy", "per-class statistics", "barycenter"]
    columns += [name for dataset in datasets for name in (dataset, f"{dataset}, published")]
    return Table("ablation", columns, lines, PERCENT) if lines else None


def architectures(cells: pd.DataFrame, known: pd.DataFrame) -> Table | None:
    """Return what other networks than the teacher's learn from the same sets; soft labels."""
    rows = cells[cells["labels"] == "soft"]
    of = ["dataset", "ipc", "method", "protocol", "teacher"]
    rows = rows[rows.groupby(of)["student"].transform("nunique") > 1]  # a set with one kind of student compares nothing
    students, lines = sorted(rows["student"].unique()), []
    for (dataset, ipc, method, protocol, _), group in rows.groupby(of):
        line = [Value(str(dataset)), _count(ipc), Value(str(method)), Value(str(protocol))]
        for student in students:
            found = _known(known, dataset, ipc, method, student, protocol)
            note = f"published: {found.text}" if found.text else ""
            line.append(_mean(_top1(group[group["student"] == student], "soft"))._replace(note=note))
        lines.append(line)
    columns = ["dataset", "images per class", "method", "protocol", *students]
    return Table("architectures", columns, lines, PERCENT, wide=True) if lines else None


def published(known: pd.DataFrame, names: set[str]) -> Table | None:
    """Return all published numbers of some datasets."""
    rows = known[known["dataset"].isin(names)].drop_duplicates([*SAME, "labels", "published"])
    if rows.empty:
        return None
    lines = [
        [
            *(Value(str(row[name]), int(row[name]) if name == "ipc" else None) for name in (*SAME, "labels")),
            Value(f"{row['published']:.1f}", float(row["published"]), quiet=True),
            Value(str(row["source"]), url=str(row["url"]), quiet=True),
        ]
        for row in rows.sort_values([*SAME, "labels"]).to_dict("records")
    ]
    columns = ["dataset", "images per class", "method", "student", "protocol", "labels", "top-1, %", "source"]
    caption = "As published; what is under a protocol of others stands beside no number of ours."
    return Table("published", columns, lines, caption, wide=True)


def cost(costs: pd.DataFrame) -> Table:
    """Return seconds, GPU-hours, memory and bytes by dataset, method, IPC and stage.

    Args:
        costs: a row a job.
    """
    gpus = costs["peak_gpu_memory_mb"] if "peak_gpu_memory_mb" in costs else pd.Series(math.nan, costs.index)
    lines = []
    for (dataset, method, ipc, stage), rows in costs.groupby(["dataset", "method", "ipc", "stage"], sort=False):
        gpu, seconds = gpus[rows.index].dropna(), rows["seconds"]
        hours = float(seconds[gpu.index].sum()) / 3600
        line = [
            Value(str(dataset)),
            Value(str(method)),
            _count(ipc) if ipc else Value("", 0),
            Value(str(stage)),
            _count(len(rows)),
        ]
        line += [_amount(seconds.sum(), ",.0f"), _amount(seconds.median(), ",.1f")]
        line += [_amount(hours, ".3f") if len(gpu) else Value("", 0), _amount(rows["peak_memory_mb"].max(), ",.0f")]
        line += [_amount(gpu.max(), ",.0f") if len(gpu) else Value("", 0)]
        lines.append([*line, Value(size(rows["bytes"].sum()), float(rows["bytes"].sum()))])
    columns = ["dataset", "method", "images per class", "stage", "jobs", "seconds", "seconds a job", "GPU-hours"]
    columns += ["peak memory, MB", "peak GPU memory, MB", "on disk"]
    caption = "What was computed, by stage. The stages of a dataset and of a teacher have no method."
    return Table("cost", columns, lines, caption, wide=True)


def _amount(value: float, how: str) -> Value:
    return Value(f"{value:{how}}", float(value))


def plain(name: str, table: pd.DataFrame) -> Table | None:
    """Return a table of numbers as it is, without the columns that are empty."""
    shown = table.dropna(axis=1, how="all")
    if shown.empty:
        return None
    lines = [[Value(_figure(value), _order(value)) for value in row] for row in shown.itertuples(index=False)]
    return Table(name, [str(column).replace("_", " ") for column in shown.columns], lines)


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def _order(value: Any) -> float | str | None:
    if isinstance(value, str):
        return None
    return -math.inf if math.isnan(value) else float(value)


def datasets(found: list[tuple[str, Meta]]) -> Table:
    """Return which pictures were used: name and meta data of each dataset."""
    lines = []
    for name, meta in found:
        counts = [sum(meta["counts"][split]) for split in ("train", "val")]
        numbers = [
            len(meta["classes"]),
            *counts,
            meta["resolution"],
            meta["duplicates"]["val in train"],
            len(meta["skipped"]),
        ]
        lines.append([Value(name), Value(str(meta["variant"])), *(Value(f"{number:,}", number) for number in numbers)])
    columns = [
        "dataset",
        "variant",
        "classes",
        "training pictures",
        "validation pictures",
        "px",
        "validation in training",
        "left out",
    ]
    return Table("datasets", columns, lines)


def teachers(found: dict[str, Meta]) -> Table:
    """Return what the teachers reach."""
    lines = [
        [
            Value(path),
            Value(f"{100 * meta['accuracy']['top1']:.2f}", float(meta["accuracy"]["top1"])),
            Value(str(meta["settings"].get("architecture", ""))),
            Value(str(meta.get("origin", "trained here"))),
        ]
        for path, meta in sorted(found.items())
    ]
    return Table("teachers", ["teacher", "top-1, %", "architecture", "weights"], lines)


def classes(found: list[tuple[str, Meta]]) -> dict[str, Table]:
    """Return the manifest of classes of each dataset."""
    columns = ["index", "folder", "name", "training pictures"]
    made = {}
    for place, (name, meta) in enumerate(found):
        rows = zip(meta["classes"], meta["names"], meta["counts"]["train"], strict=True)
        lines = [[_count(i), Value(a), Value(b), Value(f"{n:,}", n)] for i, (a, b, n) in enumerate(rows)]
        made[name] = Table(f"classes-{place}", columns, lines, wide=len(lines) > 20)
    return made


def differing(settings: dict[str, dict[str, Any]]) -> Table | None:
    """Return the settings in which methods differ that have them at all."""
    names = sorted({name for found in settings.values() for name in found})
    methods = sorted(settings)
    lines = []
    for name in names:
        values = [settings[method].get(name) for method in methods]
        if len({json.dumps(value) for value in values if value is not None}) > 1:
            lines.append([Value(name), *(Value("" if value is None else _setting(value)) for value in values)])
    return Table("settings", ["setting", *methods], lines) if lines else None


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def machines(metas: list[Meta], costs: pd.DataFrame) -> dict[str, list[str]]:
    """Return what files say of where they come from: revisions, machines, versions. More than one of a kind is worth a look.

    Args:
        metas: meta data of the files.
        costs: a row a job.
    """
    found = {
        "revision": {str(meta.get("revision", "unknown")) for meta in metas},
        "machine": set(costs["machine"].dropna()) if "machine" in costs else {"not recorded"},
        "device": {f"{meta['engine']['device']}, {meta['engine']['dtype']}" for meta in metas if meta.get("engine")},
    }
    for meta in metas:
        for package, version in meta.get("versions", {}).items():
            found.setdefault(package, set()).add(version)
    return {name: sorted(values) for name, values in found.items()}
