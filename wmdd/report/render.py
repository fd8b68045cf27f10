"""Render: a table as Markdown, CSV, LaTeX or HTML, by one function."""

import math
from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

from wmdd.report.intervals import with_minus
from wmdd.workflow.layout import CELL

TEMPLATES = Path(__file__).parent / "page" / "templates"
TITLES = {"ipc": "images per class"}
Form = Literal["markdown", "csv", "latex", "html"]


class Value(NamedTuple):
    """A cell of a table."""

    text: str
    order: float | str | None = None  # by which rows are sorted
    note: str = ""  # what the page says when one points at it
    quiet: bool = False  # shown in grey
    url: str = ""


EMPTY = Value("", -math.inf)


def number(value: float, form: str = ".4g") -> Value:
    """Return the cell of a number, which is empty where it is not known."""
    return EMPTY if pd.isna(value) else Value(with_minus(f"{value:{form}}"), float(value))


class Table(NamedTuple):
    """A table."""

    name: str  # of its element on the page
    columns: list[str]  # titles
    rows: list[list[Value]]
    caption: str = ""  # what the numbers are
    wide: bool = False  # it has many rows, among which one can search
    shared: str = ""  # what all rows have in common and no column repeats
    numbers: pd.DataFrame | None = None  # what CSV has in place of the texts
    on_demand: tuple[str, ...] = ()  # titles of columns that the page shows when it is asked to

    @property
    def fixed(self) -> str:
        """The title of the column that stays in place when the others are scrolled sideways."""
        return "method" if "method" in self.columns else self.columns[0]

    @property
    def text(self) -> pd.DataFrame:
        """The texts of all cells."""
        return pd.DataFrame([[value.text for value in row] for row in self.rows], columns=self.columns)


class Column(NamedTuple):
    """A column of a table that is made from a data frame: its title, and its cell in a row."""

    title: str
    cell: Callable[[dict[str, Any]], Value]


def table(
    name: str,
    rows: Sequence[dict[str, Any]],
    columns: Sequence[Column],
    keep: Collection[str] = (),
    caption: str = "",
    wide: bool = False,
    numbers: pd.DataFrame | None = None,
) -> Table:
    """Return a table with a cell for each row and column.

    A column without any text is left out. One with the same text in every row is said once above the table in its place, unless
    its title is among `keep`.
    """
    cells = {column.title: [column.cell(row) for row in rows] for column in columns}
    texts = {title: {value.text for value in values} for title, values in cells.items()}
    shared = [title for title, values in texts.items() if title not in keep and len(values) == 1 and values != {""}]
    shown = [title for title, values in texts.items() if title not in shared and values - {""}]
    said = ", ".join(f"{title} {cells[title][0].text}" for title in shared)
    lines = [list(row) for row in zip(*(cells[title] for title in shown), strict=True)]
    return Table(name, shown, lines, caption, wide, f"In all rows: {said}." if said else "", numbers)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a data frame, each by column."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def given(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a data frame without the parts of a cell that no row has."""
    return frame.drop(columns=[name for name in CELL if name in frame and (frame[name] == "").all()])


def plain(key: str) -> Column:
    """Return a column that shows a text or a whole number as it is."""

    def cell(row: dict[str, Any]) -> Value:
        value = row[key]
        return Value(str(value), None if isinstance(value, str) else int(value))

    return Column(TITLES.get(key, key), cell)


def render(table: Table, form: Form) -> str:
    """Return a table as Markdown, CSV, LaTeX (booktabs) or HTML.

    Markdown has the caption above it; LaTeX has the table alone, for a caption of one's own.
    """
    if form == "html":
        from markupsafe import Markup

        return Markup(environment().get_template("table.html").render(t=table, infinity=math.inf))
    if form == "csv":
        return (table.text if table.numbers is None else given(table.numbers).round(4)).to_csv(index=False)
    if form == "latex":
        shared = f"% {table.shared}\n" if table.shared else ""
        text = table.text.to_latex(index=False, escape=True)
        return shared + text.replace("±", r"$\pm$").replace("−", "$-$")
    words = " ".join(filter(None, (table.caption, table.shared)))
    return (f"{words}\n\n" if words else "") + str(table.text.to_markdown(index=False, disable_numparse=True)) + "\n"


@cache
def environment() -> Any:
    """Return where the templates of pages are."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATES)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
