"""Lineage: which file was made from which, by the digests that each carries, and whether the chain still holds."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from wmdd.report.results import set_of
from wmdd.workflow.layout import CELL, Cell, place_of
from wmdd.workflow.stages import BLOCKS, STAGES, makers_of

Meta = dict[str, Any]

# Inputs that are not named as the file they are.
FILES = {"statistics": "features", "atoms": "quantize", "start": "images"}


class Graph(NamedTuple):
    """The stages that made the results."""

    nodes: dict[str, int]  # stage -> files
    edges: dict[tuple[str, str], int]  # (stage, stage that used it) -> how often
    broken: list[str]  # what is wrong, a line each


def graph(files: Iterable[tuple[str, Meta]]) -> Graph:
    """Join the files of an experiment by digest.

    A file says by name and digest what it was made from; the digest leads to the file. Where no file has the digest of an
    input, the input was made anew since, or is not among the files.

    Args:
        files: path and meta data of each.
    """
    artifacts = list(_with_blocks(files))
    makers: dict[str, set[str]] = {}  # stages by digest; a set joined from one block has the digest of that block
    for _, meta in artifacts:
        makers.setdefault(str(meta.get("digest")), set()).add(meta["stage"])
    nodes = Counter(meta["stage"] for _, meta in artifacts)
    edges: Counter[tuple[str, str]] = Counter()
    broken = []
    for path, meta in artifacts:
        for name, digest in meta.get("inputs", {}).items():
            candidates = makers.get(digest, set()) - {meta["stage"]}
            kind = name.rstrip("0123456789") or name  # expert0, expert1 and so on are experts
            usual = makers_of(FILES.get(kind, kind)) or (kind,)
            if candidates:
                edges[min(candidates, key=lambda maker: (maker not in usual, maker)), meta["stage"]] += 1
            elif any(maker in nodes for maker in usual):
                broken.append(f"{path} was made from other {kind} than are there now; run the workflow again")
    return Graph(dict(nodes), dict(edges), list(dict.fromkeys(broken)))


def made_from(files: Iterable[tuple[str, Meta]]) -> dict[Cell, set[Cell]]:
    """Return for each distilled set the cells of all that it was made from: data, teacher, generator, experts; and itself.

    The digests that files carry tell. Where several files have one content, as a barycenter of two methods, the one that has
    most in common with its user counts.

    Args:
        files: path and meta data of each.
    """
    makers: dict[str, set[Cell]] = {}
    inputs: dict[Cell, set[str]] = {}
    for path, meta in _with_blocks(files):
        place, stage = place_of(path), STAGES.get(meta["stage"])
        if place is not None and stage is not None and not stage.after:
            makers.setdefault(str(meta.get("digest")), set()).add(set_of(place.cell))
            inputs.setdefault(set_of(place.cell), set()).update(map(str, meta.get("inputs", {}).values()))
    sources = {
        user: {max(makers[digest], key=lambda maker: (_shared(maker, user), str(maker))) for digest in digests & makers.keys()}
        for user, digests in inputs.items()
    }  # fmt: skip
    return {cell: _reached(cell, sources) for cell in inputs if cell.method is not None}


def _with_blocks(files: Iterable[tuple[str, Meta]]) -> Iterator[tuple[str, Meta]]:
    """Return the files, and the blocks of distilled sets that were deleted once joined, as the sets tell of them."""
    metas = list(files)
    yield from metas
    present = {meta.get("digest") for _, meta in metas if meta["stage"] in BLOCKS}
    for path, meta in metas:
        for stage in (stage for stage in BLOCKS if stage in meta):
            inputs = meta[stage].get("inputs", {})
            for number, digest in meta["inputs"].items():
                if digest not in present:
                    block_inputs = {name: digests[int(number)] for name, digests in inputs.items()}
                    yield path, {"stage": stage, "digest": digest, "inputs": block_inputs}


def _shared(one: Cell, other: Cell) -> int:
    return sum(getattr(one, name) == getattr(other, name) for name in CELL)


def _reached(cell: Cell, sources: dict[Cell, set[Cell]]) -> set[Cell]:
    """Return a cell, its sources, theirs, and so on."""
    reached, ahead = {cell}, [cell]
    while ahead:
        more = sources.get(ahead.pop(), set()) - reached
        reached |= more
        ahead += more
    return reached
