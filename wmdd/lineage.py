"""Lineage: which file was made from which, by the digests that each carries, and whether the chain still holds."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

Meta = dict[str, Any]


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
    by_digest = {meta["digest"]: meta["stage"] for _, meta in found if "digest" in meta}
    known = {name for _, meta in found for name in _kinds(meta["stage"])}
    nodes = Counter(meta["stage"] for _, meta in found)
    edges: Counter[tuple[str, str]] = Counter()
    broken = []
    for path, meta in found:
        for name, digest in meta.get("inputs", {}).items():
            if digest in by_digest:
                edges[by_digest[digest], meta["stage"]] += 1
            elif name in known:
                broken.append(
                    f"{path} was made from another {name} than the one that is there now; run the workflow again"
                )
    return Graph(dict(nodes), dict(edges), broken)


def _kinds(stage: str) -> set[str]:
    """Return under which names the files of a stage are inputs of others."""
    return {"relabel": {"labels"}, "select": {"images"}, "images": {"images"}}.get(stage, {stage})
