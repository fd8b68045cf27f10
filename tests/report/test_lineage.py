"""Which file was made from which, by digests; and the order of stages."""

from wmdd.report import lineage
from wmdd.workflow.layout import Cell, path_of

from .page.material import files

EXPERTS = [(f"expert{n}", {"stage": "expert", "digest": f"e{n}", "inputs": {"data": "d"}}) for n in range(12)]
INPUTS = {"data": "d"} | {f"expert{n}": f"e{n}" for n in range(12)}
SET = Cell("d", "t", "m", 1, 0)
TEACHER_FILE = path_of("teacher", SET), {"stage": "teacher", "digest": "t", "inputs": {}}
JOINED = {"0": "a", "1": "b"}
MATCHED = ("block", {"stage": "match", "digest": "i", "inputs": INPUTS})


def test_a_chain_by_digests():
    """A set joined from one block has the digest of that block; that is no circle."""
    chain = lineage.graph(files())
    assert chain.nodes == {"data": 1, "teacher": 1, "features": 1, "recover": 1, "images": 1, "student": 1}
    assert set(chain.edges) == {
        ("data", "teacher"), ("data", "features"), ("teacher", "features"), ("features", "recover"), ("recover", "images"),
        ("images", "student"), ("data", "student"),
    }  # fmt: skip


def test_what_was_made_from_something_that_is_no_longer_there():
    (line,) = lineage.graph(files()).broken
    assert line == "block was made from other teacher than are there now; run the workflow again"
    assert lineage.graph([("x", {"stage": "student", "inputs": {"labels": "l", "3": "b"}})]).broken == []


def test_numbered_experts_are_one_stage():
    chain = lineage.graph([files()[0], *EXPERTS, MATCHED, files()[4]])
    assert set(chain.edges) == {("data", "expert"), ("data", "match"), ("expert", "match"), ("match", "images")}
    assert (chain.edges["expert", "match"], chain.broken) == (12, [])
    anew = [(path, meta | {"digest": meta["digest"] + "anew"}) for path, meta in EXPERTS]
    (line,) = lineage.graph([files()[0], *anew, MATCHED]).broken
    assert line == "block was made from other expert than are there now; run the workflow again"


def test_a_set_tells_of_its_blocks_what_their_files_would():
    blocks = [
        (path_of("recover", SET.having(block=name)), {"stage": "recover", "digest": digest, "inputs": {"teacher": "t"}})
        for name, digest in (("classes0-0", "a"), ("classes1-1", "b"))
    ]
    meta = {"stage": "images", "digest": "i", "inputs": JOINED, "recover": {"inputs": {"teacher": ["t", "t"]}}}
    images = path_of("images", SET), meta
    with_files, without = [TEACHER_FILE, *blocks, images], [TEACHER_FILE, images]
    assert lineage.graph(without) == lineage.graph(with_files)
    assert lineage.graph(without).edges == {("teacher", "recover"): 2, ("recover", "images"): 2}
    assert lineage.made_from(without) == lineage.made_from(with_files)
    other = images[0], meta | {"recover": {"inputs": {"teacher": ["old", "old"]}}}
    assert lineage.graph([TEACHER_FILE, other]).broken, "of another teacher than there is"
