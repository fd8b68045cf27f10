"""YAML of experiment files, in which nothing is read otherwise than it looks: no key twice, no `1:30` that is 90, no bombs."""

import re
from typing import Any

import yaml

from wmdd.base.errors import WmddError

LARGEST = 1_000_000  # values of a file, those of aliases counted where they stand
TRAPS = {  # integers of YAML 1.1 that are others than they look
    re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+"): "minutes or hours",
    re.compile(r"[-+]?0[0-7_]+"): "an octal number",
}


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, and numbers that are not what they look like."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[tuple[str, str]]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen and key.tag != "tag:yaml.org,2002:merge":
                    raise WmddError(f"has the key {key.value} twice, again in line {key.start_mark.line + 1}; keep one")
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        for trap, reading in TRAPS.items():
            if trap.fullmatch(node.value):
                value = super().construct_yaml_int(node)
                raise WmddError(
                    f"has {node.value} in line {node.start_mark.line + 1}, which YAML reads as {reading}, {value}; "
                    "write the number that you mean, or put it in quotes"
                )
        return int(super().construct_yaml_int(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def parsed(text: str) -> Any:
    """Return the content of a YAML document.

    Raises:
        WmddError: says what is wrong, to come after the name of the file: it is no YAML, a key stands twice, a number is
            another than it looks, or it is too deep or too large.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node, {}, set())
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise WmddError(f"is not valid YAML: {' '.join(str(error).split())[:500]}") from None
    except RecursionError:
        raise WmddError("is nested too deeply; no setting is below more than ten brackets") from None


def _check_size(node: yaml.Node, sizes: dict[int, int], above: set[int]) -> int:
    """Return the number of values in a node, aliases written out."""
    if id(node) in above:
        raise WmddError(f"refers to itself in line {node.start_mark.line + 1}; write it out")
    if id(node) not in sizes:
        parts = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
        children = [] if isinstance(node, yaml.ScalarNode) else parts
        sizes[id(node)] = 1 + sum(_check_size(child, sizes, above | {id(node)}) for child in children)
    if sizes[id(node)] > LARGEST:
        raise WmddError(f"has more than {LARGEST:,} values in line {node.start_mark.line + 1}; write fewer")
    return sizes[id(node)]
