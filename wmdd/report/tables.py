"""Tables of all but accuracy: what is published, what it cost, and where it is from: data, teachers, settings, machines."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from wmdd.base.units import size
from wmdd.report.render import EMPTY, Column, Table, Value, number, plain, records, table
from wmdd.report.results import GROUP
from wmdd.workflow.stages import rank

Meta = dict[str, Any]


def published(numbers: pd.DataFrame, names: set[str]) -> Table | None:
    """Return all published numbers of some datasets."""
    place = ["dataset", "ipc", "method", "student", "protocol", "labels"]
    rows = numbers[numbers["dataset"].isin(names)].drop_duplicates([*place, "published"]).sort_values(place)
    if rows.empty:
        return None
    columns = [plain(name) for name in place]
    columns += [Column("top-1, %", lambda row: Value(f"{row['published']:.1f}", float(row["published"]), quiet=True))]
    columns += [Column("source", lambda row: Value(str(row["source"]), url=str(row["url"]), quiet=True))]
    caption = "As published; what is under a protocol of others stands beside no number of ours."
    return table("published", records(rows), columns, [column.title for column in columns], caption, wide=True)


class Price(NamedTuple):
    """What an hour of a GPU costs, if anybody said."""

    hour: float | None = None
    currency: str = "USD"


UNPRICED = Price()


def cost(costs: pd.DataFrame, price: Price = UNPRICED) -> Table:
    """Return seconds, GPU-hours, memory and bytes by stage, and by all parts of a cell but seed, run and block.

    Args:
        costs: `results.jobs`, with the column bytes where it is known.
        price: of GPU-hours, for a column of money.
    """
    place = [name for name in GROUP if name not in ("labels", "block")]
    costs = costs.reindex(columns=[*dict.fromkeys([*costs.columns, "peak_gpu_memory_mb", "bytes"])])
    lines = []
    for key, rows in costs.groupby([*place, "stage"], sort=False, dropna=False):
        on_gpu = rows[rows["peak_gpu_memory_mb"].notna()]
        lines.append(
            dict(zip([*place, "stage"], key, strict=True))
            | {"jobs": len(rows), "seconds": rows["seconds"].sum(), "each": rows["seconds"].median()}
            | {"memory": rows["peak_memory_mb"].max(), "gpu": on_gpu["peak_gpu_memory_mb"].max()}
            | {"hours": (hours := on_gpu["seconds"].sum(min_count=1) / 3600), "money": hours * (price.hour or math.nan)}
            | {"bytes": rows["bytes"].sum(min_count=1)}
        )
    columns = [plain(name) for name in (*place, "stage", "jobs")]
    columns += [
        _amount("seconds", "seconds", ",.0f"),
        _amount("seconds a job", "each", ",.1f"),
        _amount("GPU-hours", "hours", ".3f"),
        *([_amount(price.currency, "money", ",.2f")] if price.hour is not None else []),
        _amount("peak memory, MB", "memory", ",.0f"),
        _amount("peak GPU memory, MB", "gpu", ",.0f"),
        Column("on disk", lambda row: EMPTY if math.isnan(row["bytes"]) else Value(size(row["bytes"]), float(row["bytes"]))),
    ]  # fmt: skip
    caption = (
        "What was computed, by stage: wall seconds of all attempts of a job, and the largest memory of a single process. The "
        "stages of a dataset and of a teacher have no method. GPU-hours are wall hours of jobs that use a GPU; several GPUs "
        "of a job count as one."
    )
    keep = ("dataset", *(column.title for column in columns[len(place) :]))
    return table("cost", lines, columns, keep, caption, wide=True)


def spent(costs: pd.DataFrame, price: Price) -> str:
    """Say what all jobs took: hours, GPU-hours and, with a price, money."""
    on_gpu = costs["peak_gpu_memory_mb"].notna() if "peak_gpu_memory_mb" in costs else pd.Series(False, costs.index)
    others, hours = (costs.loc[chosen, "seconds"].sum() / 3600 for chosen in (~on_gpu, on_gpu))
    said = f"{len(costs):,} jobs took {others:,.2f} hours on CPUs and {hours:,.2f} GPU-hours"
    if price.hour is not None:
        return (
            f"{said}, which cost {hours * price.hour:,.2f} {price.currency} at {price.hour:g} {price.currency} an hour."
        )
    return f"{said}. With price_per_gpu_hour under report: in the experiment file the page says what these cost."


def chain(nodes: Mapping[str, int], edges: Mapping[tuple[str, str], int]) -> Table | None:
    """Return what was made from what, a row a stage: its files, and the stages whose files it used.

    Args:
        nodes: files by stage.
        edges: how often a stage (second) used the files of another (first).
    """
    lines = []
    for stage in sorted(nodes, key=rank):
        sources = sorted((before for before, after in edges if after == stage), key=rank)
        lines.append([Value(stage), *_counts(nodes[stage]), Value(", ".join(sources))])
    return Table("chain", ["stage", "files", "made from"], lines) if edges else None


def _amount(title: str, key: str, form: str) -> Column:
    return Column(title, lambda row: number(row[key], form))


def numbers(name: str, frame: pd.DataFrame) -> Table | None:
    """Return a table of numbers as it is, without the columns that are empty."""
    shown = frame.dropna(axis=1, how="all")
    if shown.empty:
        return None
    lines = [[_plain(value) for value in row] for row in shown.itertuples(index=False)]
    return Table(name, [str(column).replace("_", " ") for column in shown.columns], lines)


def _plain(value: Any) -> Value:
    if isinstance(value, float):
        return number(value)
    return Value(str(value), None if isinstance(value, str) else float(value))


def datasets(metas: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    """Return which data were used: source and variant, pictures, what was noticed in them.

    Args:
        metas: name and meta data of each.
    """
    lines = []
    for name, meta in metas:
        train, val = (sum(meta["counts"][split]) for split in ("train", "val"))
        noticed = [
            meta["duplicates"]["val in train"],
            len(meta["skipped"]) + len(meta.get("other_formats", ())),
            meta["enlarged"]["count"],
        ]
        moments = [" ".join(f"{value:.3f}" for value in meta[moment]) for moment in ("mean", "std")]
        counts = _counts(len(meta["classes"]), train, val, meta["resolution"])
        lines.append([Value(name), Value(str(meta["variant"])), *counts, *map(Value, moments), *_counts(*noticed)])
    columns = ["dataset", "variant", "classes", "training pictures", "validation pictures", "px", "mean", "std"]
    columns += ["validation in training", "left out", "enlarged"]
    caption = (
        "Mean and std are those of the normalisation. Validation in training counts validation pictures that stand in the "
        "training set too; left out, unreadable ones and those in other formats; enlarged, those smaller than the resolution."
    )
    return Table("datasets", columns, lines, caption)


def _counts(*numbers: int) -> list[Value]:
    return [Value(f"{number:,}", number) for number in numbers]


def teachers(metas: dict[str, Meta]) -> Table:
    """Return what the teachers reach, by path."""
    lines = []
    for path, meta in sorted(metas.items()):
        accuracy = float(meta["accuracy"]["top1"])
        origin = str(meta.get("origin", "trained here"))
        architecture = str(meta["settings"].get("architecture", ""))
        lines.append([Value(path), Value(f"{100 * accuracy:.2f}", accuracy), Value(architecture), Value(origin)])
    return Table("teachers", ["teacher", "top-1, %", "architecture", "weights"], lines)


def classes(metas: list[tuple[str, Meta]]) -> dict[str, Table]:
    """Return the manifest of classes of each dataset, by name."""
    columns = ["index", "folder", "name", "training pictures"]
    manifests = {}
    for place, (name, meta) in enumerate(metas):
        rows = zip(meta["classes"], meta["names"], meta["counts"]["train"], strict=True)
        lines = [[Value(str(i), i), Value(a), Value(b), *_counts(n)] for i, (a, b, n) in enumerate(rows)]
        manifests[name] = Table(f"classes-{place}", columns, lines, wide=len(lines) > 20)
    return manifests


def differing(settings: dict[str, dict[str, Any]]) -> Table | None:
    """Return the settings in which methods differ that have them at all.

    Args:
        settings: by method and name.
    """
    methods, lines = sorted(settings), []
    for name in sorted({name for values in settings.values() for name in values}):
        values = [settings[method].get(name) for method in methods]
        if len({json.dumps(value) for value in values if value is not None}) > 1:
            lines.append([Value(name), *(Value(_setting(value)) for value in values)])
    return Table("settings", ["setting", *methods], lines) if lines else None


def _setting(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def machines(metas: list[Meta], costs: pd.DataFrame) -> dict[str, list[str]]:
    """Return what files say of where they come from: revisions, machines, versions. More than one of a kind is worth a look.

    Args:
        metas: meta data of the files.
        costs: a row a job.
    """
    origins = {
        "revision": {str(meta.get("revision", "unknown")) for meta in metas},
        "machine": set(costs["machine"].dropna()) if "machine" in costs else {"not recorded"},
        "device": {f"{meta['engine']['device']}, {meta['engine']['dtype']}" for meta in metas if meta.get("engine")},
    }
    for meta in metas:
        for package, version in meta.get("versions", {}).items():
            origins.setdefault(package, set()).add(version)
    return {name: sorted(values) for name, values in origins.items()}
