"""Rows of measurements: quartiles, ratios of pairs, how they are printed and put together with those of earlier runs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

IDENTITY = ("way", "resolution", "width", "ipc", "classes")  # of a row within its section
Row = dict[str, Any]
Times = dict[str, list[float]]  # of each way, one a turn


def spread(values: Sequence[float], scale: float = 1) -> list[float]:
    """Return median, lower and upper quartile, of four digits."""
    return [float(f"{scale * value:.4g}") for value in np.quantile(values, (0.5, 0.25, 0.75))]


def ratios(base: list[float], values: list[float]) -> list[float]:
    """Return by how much `values` are smaller, of pairs."""
    return spread([b / v for b, v in zip(base, values, strict=True)])


def report(rows: Sequence[Row]) -> None:
    """Print rows as a table."""

    def cell(value: Any) -> Any:
        return "{:g} ({:g}-{:g})".format(*value) if isinstance(value, list) and len(value) == 3 else value

    table = pd.DataFrame([{name: cell(value) for name, value in row.items()} for row in rows])
    print(table.to_string(index=False, na_rep="", float_format="{:.4g}".format), flush=True)


def merged(kept: dict[str, Any], section: str, made: dict[str, Any]) -> dict[str, Any]:
    """Return results with a section's rows replaced.

    Rows of other sizes stay if they are of the same machine, version and threads; other sections stay as they are.
    """
    old = kept.get("sections", {}).get(section, {})
    new = {identity(row) for row in made["rows"]}
    rows = [row for row in old.get("rows", []) if identity(row) not in new] if same(old, made) else []
    return kept | {"sections": kept.get("sections", {}) | {section: made | {"rows": rows + made["rows"]}}}


def same(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Return whether rows can stand beside each other: of the same machine, version and threads."""
    return all(old.get(name) == new[name] for name in ("machine", "torch", "threads"))


def identity(row: Row) -> tuple[Any, ...]:
    """Return what tells a row from others of its section."""
    return tuple(row.get(name) for name in IDENTITY)


def rates_of(rows: Sequence[Row], way: str) -> dict[str, float]:
    """Return the FLOP/s of a way at each resolution, at the last row's width; of several IPC, of the largest."""
    mine = [row for row in rows if row["way"] == way]
    mine = sorted((row for row in mine if row["width"] == mine[-1]["width"]), key=lambda row: row.get("ipc", 0))
    return {str(row["resolution"]): row["flops"] for row in mine}
