"""Sweeps: a method with lists of values stands for one method for each combination of them."""

import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from wmdd.base.errors import WmddError
from wmdd.workflow.experiment_file import NAME_LENGTH, SWEPT_STAGES, MethodEntry, values_set

Axis = list[tuple[str, str, Any]]  # stage, setting and value of each point


def expand(methods: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Return the methods without lists of values, and the names of the members of each sweep.

    Each member is based on the method without its lists, which keeps its name (and with it a preset of that name).

    Raises:
        WmddError: two methods would have the same name, or one a name too long for a file.
    """
    flat: dict[str, Any] = {}
    sweeps: dict[str, list[str]] = {}
    for name, entry in methods.items():
        content = entry.model_dump(exclude_none=True)
        axes = list(_axes(entry, content))
        members = {name: MethodEntry.model_validate(content) if axes else entry}
        for point in itertools.product(*axes) if axes else ():
            member = "-".join([name, *(f"{key}{_label(value)}" for _, key, value in point)])
            problem = ""
            if len(member) > NAME_LENGTH:
                problem = f"makes a name of {len(member)} characters, more than {NAME_LENGTH}: {member[:60]}..."
            elif member in members:
                problem = f"makes the name {member} twice"
            if problem:
                raise WmddError(f"methods.{name}: its sweep {problem}; write a method for each value instead")
            overrides: dict[str, dict[str, Any]] = {}
            for stage, key, value in point:
                overrides.setdefault(stage, {})[key] = value
            members[member] = MethodEntry.model_validate({"base": name, **overrides})
            sweeps.setdefault(name, []).append(member)
        for taken in (flat.keys() | methods.keys() - {name}) & members.keys():
            raise WmddError(f"methods.{name}: its sweep makes {taken}, which stands there already; rename one of them")
        flat |= members
    return flat, sweeps


def _axes(entry: Any, content: dict[str, Any]) -> Iterator[Axis]:
    """Yield the values of each list in a method, and take the list out of its `content`."""
    for stage in SWEPT_STAGES:
        for key, values in values_set(getattr(entry, stage)).items():
            if isinstance(values, list):
                yield [(stage, key, value) for value in dict.fromkeys(content[stage].pop(key))]


def _label(value: Any) -> str:
    """Return a value as a part of a name: letters without accents, and `-` for what a name may not have."""
    label = "-".join(str(v).removesuffix(".0") for v in (value if isinstance(value, tuple) else (value,)))
    if re.fullmatch(r"[A-Za-z0-9_.+-]*", label):
        return label
    letters = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", letters).strip("-")
