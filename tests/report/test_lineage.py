"""Blocks of a distilled set that were deleted once they were joined keep their place in the chain of stages."""

from wmdd.report.lineage import graph, made_from
from wmdd.workflow.layout import Cell, path_of

SET = Cell("d", "t", "m", 1, 0)
TEACHER = path_of("teacher", SET), {"stage": "teacher", "digest": "t", "inputs": {}}
JOINED = {"0": "a", "1": "b"}


def test_a_set_tells_of_its_blocks_what_their_files_would():
    blocks = [
        (path_of("recover", SET.having(block=name)), {"stage": "recover", "digest": digest, "inputs": {"teacher": "t"}})
        for name, digest in (("classes0-0", "a"), ("classes1-1", "b"))
    ]
    meta = {"stage": "images", "digest": "i", "inputs": JOINED, "recover": {"inputs": {"teacher": ["t", "t"]}}}
    images = path_of("images", SET), meta
    with_files, without = [TEACHER, *blocks, images], [TEACHER, images]
    assert graph(without) == graph(with_files)
    assert graph(without).edges == {("teacher", "recover"): 2, ("recover", "images"): 2}
    assert made_from(without) == made_from(with_files)
    other = images[0], meta | {"recover": {"inputs": {"teacher": ["old", "old"]}}}
    assert graph([TEACHER, other]).broken, "of another teacher than there is"
