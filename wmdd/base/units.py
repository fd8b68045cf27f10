"""Units: how numbers, times and bytes are written, in plans, tables and messages.

A number is rounded first and its unit chosen after, so that 999,999 bytes are 1 MB and 119.7 seconds 2.0 min. What is not known
(NaN) is "?", and 0 is nothing, so that its cell of a table stays empty.
"""

import math

BYTES = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
Format = tuple[float, str]  # the number that is too large for it, and how it writes a number


def _first(value: float, *formats: Format) -> str | None:
    """Write a number in the first format that it is not too large for once it is rounded; None if there is none."""
    written = (f"{value:{how}}" for limit, how in formats if float(f"{value:{how}}".replace(",", "")) < limit)
    return next(written, None)


def _special(value: float) -> str | None:
    return "?" if math.isnan(value) else None if value else ""


def count(value: float) -> str:
    """Write a number: whole with commas below ten million, above as 1.45e17."""
    if (text := _special(value)) is not None:
        return text
    return _first(value, (1e7, ",.0f")) or f"{value:.2e}".replace("e+", "e")


def seconds(value: float) -> str:
    """Write a time in s, min or h, of which the last two begin at 2."""
    if (text := _special(value)) is not None:
        return text
    if text := _first(value, (10, ".2g"), (120, ".0f")):
        return f"{text} s"
    text = _first(value / 60, (10, ".1f"), (120, ".0f"))
    return f"{text} min" if text else f"{hours(value)} h"


def hours(value: float) -> str:
    """Write a time in seconds as hours, without the unit."""
    if (text := _special(value)) is not None:
        return text
    return _first(value / 3600, (1, ".2g"), (100, ".1f")) or f"{value / 3600:,.0f}"


def size(value: float) -> str:
    """Write bytes in units of powers of a thousand, three digits at most."""
    if (text := _special(value)) is not None:
        return text
    for power, unit in enumerate(BYTES):
        if text := _first(value / 1000**power, (1000, ".3g")):
            return f"{text} {unit}"
    return f"{value / 1000**power:,.0f} {unit}"
