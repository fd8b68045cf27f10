"""What is wrong in a file of settings, as one line that names the place and the remedy."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from wmdd.base.errors import WmddError


def as_json(value: Any, path: tuple[str, ...] = ()) -> Any:
    """Return the content of a YAML file as JSON has it; a float that is an integer becomes one (`epochs: 50.0`).

    Raises:
        WmddError: YAML reads a key as something else than text, or a value as a date or the like.
    """
    if isinstance(value, Mapping):
        for key in value:
            if not _is_text(key):
                raise WmddError(f"{_dotted((*path, str(key)))}: YAML does not read this key as text; put it in quotes")
        return {str(key): as_json(part, (*path, key)) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(part, (*path, str(place))) for place, part in enumerate(value)]
    if isinstance(value, float):
        return int(value) if value.is_integer() and 0 < abs(value) < 2**53 else value
    if value is None or isinstance(value, int) or _is_text(value):
        return value
    raise WmddError(f"{_dotted(path)}: YAML reads {str(value)!r} neither as text nor as a number; put it in quotes")


def _is_text(value: Any) -> bool:
    """Return whether a value is text that a command can take: without a null byte, and no half of a character."""
    return isinstance(value, str) and not re.search("[\0\ud800-\udfff]", value)


def _dotted(path: Iterable[str]) -> str:
    """Return a path as one line of text, whatever a key holds."""
    return repr(".".join(path))[1:-1]


def first_mistake(error: ValidationError, model: type[BaseModel]) -> str:
    """Return one line for the first mistake. Where several types are allowed, it speaks for the one that came furthest.

    Args:
        error: of the check.
        model: that was checked.
    """
    mistakes = [(*_place(mistake["loc"], model), mistake) for mistake in error.errors()]
    field = list(mistakes[0][0])
    while field and field[-1].isdigit():
        field.pop()
    of_field = [m for m in mistakes if m[0][: len(field)] == field and m[2]["type"] != "tuple_type"] or mistakes
    path, section, mistake = max(of_field, key=lambda m: len(m[0]))
    if mistake["type"] == "extra_forbidden":
        keys = sorted(section.model_fields)
        nearest = difflib.get_close_matches(path[-1], keys, n=1, cutoff=0.0)
        return f"unknown key {_dotted(path)}; did you mean {nearest[0]!r}? Known here: {', '.join(keys)}"
    reasons = dict.fromkeys(_reason(m[2]) for m in of_field if m[0] == path)
    return f"{_dotted(path)}: {', or: '.join(reasons)} (got {_short(mistake['input'])})"


def _short(value: Any) -> str:
    """Return a value as text, of 200 characters at most."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _reason(mistake: Any) -> str:
    if mistake["type"] in ("int_type", "float_type") and isinstance(mistake["input"], str):
        return "Input should be a number, but YAML reads this as text; write 0.001 or 1.0e-3, not 1e-3, without quotes"
    message = mistake["msg"].replace("an object", "a mapping of settings").replace("a valid array", "a valid list")
    return str(message.removeprefix("Value error, "))


def _place(location: tuple[int | str, ...], model: Any) -> tuple[list[str], Any]:
    """Return the path of a mistake as the user knows it, and the last model on it.

    Pydantic's names for the members of a union (`constrained-int`) and for a bad key (`[key]`) are left out.
    """
    kind: Any = model
    path: list[str] = []
    for part in location:
        members = [member for member in get_args(kind) if member is not type(None)]
        if get_origin(kind) not in (dict, list) and len(members) == 1:  # an optional section
            kind = members[0]
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            model = kind
            kind = kind.model_fields[str(part)].annotation if part in kind.model_fields else None
        elif get_origin(kind) in (dict, list):
            kind = members[-1]
        elif isinstance(part, str):
            continue
        if part != "[key]":
            path.append(str(part))
    return path, model
