"""The stage that docs/adding-a-stage.md adds: its blocks are applied to a finished workflow, and nothing else runs again."""

import json

import pytest

from .conftest import Workspace
from .test_new_method import apply, blocks

DIFFS = blocks("docs/adding-a-stage.md")
SET = "results/digits/nano/wmdd/ipc2/seed0"


@pytest.mark.workflow
def test_a_stage_is_a_path_a_row_a_function_a_command_and_a_rule(run: Workspace) -> None:
    assert len(DIFFS) == 5
    for diff in DIFFS:
        apply(diff, run.root)
    target = f"{SET}/diversity.json"
    assert run.pending().keys() == {"report", "page", "all"}, "tables know the new stage; no job of before is touched"
    assert run.pending(target) == {"diversity": 1}
    run.snakemake(target)
    found = json.loads((run.root / target).read_text())
    assert (len(found["diversity"]), found["stage"]) == (10, "diversity")
    assert all(0 < value < 1 for value in found["diversity"])
    assert (run.root / "logs/digits/nano/wmdd/ipc2/seed0/diversity.log").is_file()
    assert json.loads((run.root / f"{SET}/diversity.cost.json").read_text())["stage"] == "diversity"
    assert "diversity" in run.python("-m", "wmdd", "--help")
