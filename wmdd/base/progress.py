"""How far a long loop is: a bar on a terminal, a line a minute in a log, with the rate and the time left."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], what: str, total: int | None = None, start: int = 0, unit: str = "it") -> Iterator[T]:
    """Yield from `items` and show how far it is; `start` items were done by an earlier job."""
    terminal = sys.stderr.isatty()
    log_line = "{desc}: {n_fmt}/{total_fmt} {unit}, {rate_fmt}, {elapsed} gone, {remaining} left\n"
    bar = tqdm(
        items, what, total, initial=start, unit=unit, mininterval=0.2 if terminal else 60, maxinterval=60,
        bar_format=None if terminal else log_line, file=sys.stderr,
        position=None if terminal else 0,  # else tqdm moves the cursor of the log for the lines of other loops
    )  # fmt: skip
    return iter(bar)
