"""How numbers, times and bytes are written, in plans, tables and messages.

A number is rounded before its unit is chosen: 999,999 bytes are 1 MB, 119.7 seconds 2.0 min. NaN (not known) is "?", and 0 is
"", which leaves its cell of a table empty.
"""

import math

BYTES = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def _first(value: float, *formats: tuple[float, str]) -> str | None:
    """Write a number by the first of (limit, format) below whose limit it is once rounded; None if there is none."""
    texts = ((limit, f"{value:{spec}}") for limit, spec in formats)
    return next((text for limit, text in texts if float(text.replace(",", "")) < limit), None)


def _unknown_or_zero(value: float) -> str | None:
    """Return how a number that is not known, or 0, is written; None for any other."""
    return "?" if math.isnan(value) else None if value else ""


def count(value: float) -> str:
    """Write a number: whole with commas below ten million, above as 1.45e17."""
    if (special := _unknown_or_zero(value)) is not None:
        return special
    return _first(value, (1e7, ",.0f")) or f"{value:.2e}".replace("e+", "e")


def seconds(value: float) -> str:
    """Write a time in s, min or h, of which the last two begin at 2."""
    if (special := _unknown_or_zero(value)) is not None:
        return special
    if text := _first(value, (10, ".2g"), (120, ".0f")):
        return f"{text} s"
    text = _first(value / 60, (10, ".1f"), (120, ".0f"))
    return f"{text} min" if text else f"{hours(value)} h"


def hours(value: float) -> str:
    """Write a time in seconds as hours, without the unit."""
    if (special := _unknown_or_zero(value)) is not None:
        return special
    return _first(value / 3600, (1, ".2g"), (100, ".1f")) or f"{value / 3600:,.0f}"


def size(value: float) -> str:
    """Write bytes in units of powers of a thousand, three digits at most."""
    if (special := _unknown_or_zero(value)) is not None:
        return special
    for power, unit in enumerate(BYTES):
        if text := _first(value / 1000**power, (1000, ".3g")):
            return f"{text} {unit}"
    return f"{value / 1000**power:,.0f} {unit}"
