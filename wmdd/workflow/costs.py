"""The costs of all jobs that some files come from, found by asking Snakemake's rules for their inputs."""

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from wmdd.workflow.layout import cost_of, path_of, place_of

EXAMPLE = defaultdict(lambda: "0", block="classes0-0")  # of wildcards


def costs(rules: Iterable[Any], targets: Iterable[str]) -> list[str]:
    """Return the cost file of every job that Snakemake runs for some files, those of the jobs before included.

    A file that no rule makes, as one that somebody put there, has no cost; standard error names it.

    Args:
        rules: Snakemake's, each with `input`, `output` and `wildcard_constraints`.
        targets: paths of the layout. What is none of the layout's has no cost.
    """
    makers = _makers(rules)
    pending = [place for path in targets if (place := place_of(path))]
    reached, cost_files, without_rule = set(pending), set[str](), list[str]()
    while pending:
        kind, cell = pending.pop()
        wildcards = {name: str(value) for name, value in cell.parts().items()}
        fitting = [rule for rule in makers.get((kind, cell.run), []) if _fits(rule, wildcards)]
        without_rule += [] if fitting else [path_of(kind, cell)]
        for rule in fitting:
            if (cost := dict(rule.output.items()).get("cost")) and (place := place_of(_filled(cost, wildcards))):
                cost_files.add(cost_of(path_of(*place)))
            for needed in rule.input:
                paths = needed(wildcards) if callable(needed) else _filled(needed, wildcards)
                places = map(place_of, [paths] if isinstance(paths, str) else paths)
                new = {place for place in places if place and place not in reached}
                reached |= new
                pending += new
    for path in sorted(without_rule):
        print(f"no rule makes {path}: the report is without its cost", file=sys.stderr)
    return sorted(cost_files)


def _makers(rules: Iterable[Any]) -> dict[tuple[str, Any], list[Any]]:
    """Return the rules by the kind of file that they make, and for students the run."""
    makers: dict[tuple[str, Any], list[Any]] = {}
    for rule in rules:
        for output in rule.output:
            if place := place_of(_filled(output, EXAMPLE)):
                makers.setdefault((place.kind, place.cell.run), []).append(rule)
    return {key: list(dict.fromkeys(several)) for key, several in makers.items()}


def _fits(rule: Any, wildcards: dict[str, str]) -> bool:
    """Return whether a rule may make files of these wildcards."""
    constraints = rule.wildcard_constraints.items()
    return all(re.fullmatch(pattern, wildcards[name]) for name, pattern in constraints if name in wildcards)


def _filled(pattern: Any, wildcards: Mapping[str, str]) -> str:
    """Return a pattern with its wildcards filled in, their constraints left out."""
    from snakemake.io import strip_wildcard_constraints

    return str(strip_wildcard_constraints(str(pattern))).format_map(wildcards)
