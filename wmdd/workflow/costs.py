"""The costs of all jobs that some files come from, found by asking Snakemake's rules for their inputs."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from wmdd.workflow.layout import Place, cost_of, path_of, place_of

EXAMPLE = defaultdict(lambda: "0", block="classes0-0")  # of wildcards


def costs(rules: Iterable[Any], targets: Iterable[str]) -> list[str]:
    """Return the cost file of every job that Snakemake runs for some files, those of the jobs before included.

    Args:
        rules: Snakemake's, each with `input`, `output` and `wildcard_constraints`.
        targets: paths of the layout. What is none of the layout's has no cost.
    """
    makers = _makers(rules)
    todo = [place for path in targets if (place := place_of(path))]
    seen, found = set(todo), set[str]()
    while todo:
        kind, cell = todo.pop()
        parts = {name: str(value) for name, value in cell.parts().items()}
        for rule in makers.get((kind, cell.run), []):
            if not _fits(rule, parts):
                continue
            if cost := dict(rule.output.items()).get("cost"):
                found.add(cost_of(path_of(*_place(cost, parts))))
            for wanted in rule.input:
                paths = wanted(parts) if callable(wanted) else _filled(wanted, parts)
                places = map(place_of, [paths] if isinstance(paths, str) else paths)
                fresh = {place for place in places if place and place not in seen}
                seen |= fresh
                todo += fresh
    return sorted(found)


def _makers(rules: Iterable[Any]) -> dict[tuple[str, Any], list[Any]]:
    """Return the rules by the kind of file that they make, and for students the run."""
    makers: dict[tuple[str, Any], list[Any]] = {}
    for rule in rules:
        for output in rule.output:
            if place := place_of(_filled(output, EXAMPLE)):
                makers.setdefault((place.kind, place.cell.run), []).append(rule)
    return {key: list(dict.fromkeys(several)) for key, several in makers.items()}


def _fits(rule: Any, parts: dict[str, str]) -> bool:
    """Return whether a rule may make files of these wildcards."""
    constraints = rule.wildcard_constraints
    return all(re.fullmatch(pattern, parts[name]) for name, pattern in constraints.items() if name in parts)


def _place(pattern: Any, parts: dict[str, str]) -> Place:
    place = place_of(_filled(pattern, parts))
    assert place is not None
    return place


def _filled(pattern: Any, parts: Mapping[str, str]) -> str:
    """Return a pattern with its wildcards filled in, their constraints left out."""
    from snakemake.io import strip_wildcard_constraints

    return str(strip_wildcard_constraints(str(pattern))).format_map(parts)
