"""Tables of all but accuracy: what is published, what it cost, and where it is from."""

import json
import math
from typing import Any

import pandas as pd

from wmdd.base.units import size
from wmdd.report.render import EMPTY, Column, Table, Value, plain, records, table
from wmdd.report.results import GROUP

Meta = dict[str, Any]


def published(known: pd.DataFrame, names: set[str]) -> Table | None:
    """Return all published numbers of some datasets."""
    place = ["dataset", "ipc", "method", "student", "protocol", "labels"]
    rows = known[known["dataset"].isin(names)].drop_duplicates([*place, "published"]).sort_values(place)
    if rows.empty:
        return None
    columns = [plain(name) for name in place]
    columns += [Column("top-1, %", lambda row: Value(f"{row['published']:.1f}", float(row["published"]), quiet=True))]
    columns += [Column("source", lambda row: Value(str(row["source"]), url=str(row["url"]), quiet=True))]
    caption = "As published; what is under a protocol of others stands beside no number of ours."
    return table("published", records(rows), columns, [column.title for column in columns], caption, wide=True)


def cost(costs: pd.DataFrame) -> Table:
    """Return seconds, GPU-hours, memory and bytes by stage, and by all parts of a cell but seed, run and block.

    Args:
        costs: `results.jobs`, with the column bytes where it is known.
    """
    place = [name for name in GROUP if name not in ("labels", "block")]
    lines = []
    for key, rows in costs.groupby([*place, "stage"], sort=False, dropna=False):
        line: dict[str, Any] = dict(zip([*place, "stage"], key, strict=True)) | {"jobs": len(rows)}
        gpu = rows["peak_gpu_memory_mb"].dropna() if "peak_gpu_memory_mb" in rows else pd.Series(dtype=float)
        line |= {
            "seconds": rows["seconds"].sum(),
            "each": rows["seconds"].median(),
            "memory": rows["peak_memory_mb"].max(),
        }
        line |= {"hours": rows.loc[gpu.index, "seconds"].sum() / 3600 if len(gpu) else math.nan, "gpu": gpu.max()}
        lines.append(line | {"bytes": rows["bytes"].sum() if "bytes" in rows else math.nan})
    columns = [plain(name) for name in (*place, "stage", "jobs")]
    columns += [
        _amount("seconds", "seconds", ",.0f"),
        _amount("seconds a job", "each", ",.1f"),
        _amount("GPU-hours", "hours", ".3f"),
        _amount("peak memory, MB", "memory", ",.0f"),
        _amount("peak GPU memory, MB", "gpu", ",.0f"),
        Column("on disk", lambda row: EMPTY if math.isnan(row["bytes"]) else Value(size(row["bytes"]), float(row["bytes"]))),
    ]  # fmt: skip
    caption = (
        "What was computed, by stage: wall seconds of all attempts of a job, and the largest memory of a single process. The "
        "stages of a dataset and of a teacher have no method."
    )
    keep = ("dataset", *(column.title for column in columns[len(place) :]))
    return table("cost", lines, columns, keep, caption, wide=True)


def _amount(title: str, key: str, how: str) -> Column:
    return Column(title, lambda row: EMPTY if math.isnan(row[key]) else Value(f"{row[key]:{how}}", float(row[key])))


def numbers(name: str, frame: pd.DataFrame) -> Table | None:
    """Return a table of numbers as it is, without the columns that are empty."""
    shown = frame.dropna(axis=1, how="all")
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
    """Return which data were used: source and variant, pictures, what was noticed in them.

    Args:
        found: name and meta data of each.
    """
    lines = []
    for name, meta in found:
        counts = [sum(meta["counts"][split]) for split in ("train", "val")]
        numbers = [len(meta["classes"]), *counts, meta["resolution"]]
        noticed = [meta["duplicates"]["val in train"], len(meta["skipped"]), meta["enlarged"]["count"]]
        line = [Value(name), Value(str(meta["variant"])), *(Value(f"{number:,}", number) for number in numbers)]
        line += [Value(" ".join(f"{value:.3f}" for value in meta[moment])) for moment in ("mean", "std")]
        lines.append([*line, *(Value(f"{number:,}", number) for number in noticed)])
    columns = ["dataset", "variant", "classes", "training pictures", "validation pictures", "px", "mean", "std"]
    columns += ["validation in training", "left out", "enlarged"]
    caption = (
        "Mean and std are those of the normalisation. Validation in training counts validation pictures that stand in the "
        "training set too; left out, unreadable ones; enlarged, those smaller than the resolution."
    )
    return Table("datasets", columns, lines, caption)


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
        lines = [[Value(str(i), i), Value(a), Value(b), Value(f"{n:,}", n)] for i, (a, b, n) in enumerate(rows)]
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
