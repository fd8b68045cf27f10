"""Lineage: which file was made from which, by the digests that each carries, and whether the chain still holds."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

Meta = dict[str, Any]


MAKERS = {  # the stages that make an input, where it has another name
    "statistics": ("features",),
    "atoms": ("quantize",),
    "labels": ("relabel",),
    "images": ("images", "select"),
    "start": ("images", "select"),
}


class Graph(NamedTuple):
    """The stages that made the results."""

    nodes: dict[str, int]  # stage -> files
    edges: dict[tuple[str, str], int]  # (stage, stage that used it) -> how often
    broken: list[str]  # what is wrong, a line each


def graph(files: Iterable[tuple[str, Meta]]) -> Graph:
    """Join the files of an experiment by digest.

    A file says by name and digest what it was made from; the digest leads to the file. An input whose digest none of the files
    has was made anew since, or is not among them (such as the blocks that a distilled set was joined from).

    Args:
        files: path and meta data of each.
    """
    found = list(files)
    stages: dict[str, set[str]] = {}  # that made a content; a set joined from one block has the digest of that block
    for _, meta in found:
        stages.setdefault(str(meta.get("digest")), set()).add(meta["stage"])
    nodes = Counter(meta["stage"] for _, meta in found)
    edges: Counter[tuple[str, str]] = Counter()
    broken = []
    for path, meta in found:
        for name, digest in meta.get("inputs", {}).items():
            makers = stages.get(digest, set()) - {meta["stage"]}
            kind = name.rstrip("0123456789") or name  # expert0, expert1 and so on are experts
            usual = MAKERS.get(kind, (kind,))
            if makers:
                edges[min(makers, key=lambda maker: (maker not in usual, maker)), meta["stage"]] += 1
            elif any(maker in nodes for maker in usual):
                broken.append(f"{path} was made from other {kind} than are there now; run the workflow again")
    return Graph(dict(nodes), dict(edges), list(dict.fromkeys(broken)))
