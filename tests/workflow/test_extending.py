"""The method and the stage that the pages docs/develop/adding-a-*.md add: a finished run takes their blocks."""

import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wmdd.artifacts import hdf5
from wmdd.base.rng import generator
from wmdd.jobs.provenance import code_digest

from .conftest import REPOSITORY, Workspace

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

METHOD = "k-center"
RESULTS = "results/digits/nano"

# What the copy is asked: the positions and weights that its k_center chooses for points from standard input.
ASK = """
import json, sys, torch
from wmdd.stages.select import k_center
asked = json.load(sys.stdin)
print(json.dumps([[part.tolist() for part in k_center(torch.tensor(points), k)] for points, k in asked]))
"""


def blocks(page: str) -> list[str]:
    """Return the changes that a page of the docs shows."""
    return re.findall(r"^```diff\n(.*?)^```$", (REPOSITORY / page).read_text(), re.MULTILINE | re.DOTALL)


def apply(diff: str, root: Path) -> None:
    """Apply a block of the page: what a hunk's lines without + say must stand in the file once."""
    head, *hunks = re.split(r"^@@.*\n", diff, flags=re.MULTILINE)
    (name,) = re.findall(r"^\+\+\+ b/(.+)$", head, re.MULTILINE)
    path = root / name
    text = path.read_text() if path.exists() else ""
    assert hunks
    for hunk in hunks:
        lines = hunk.splitlines()
        old, new = ("".join(f"{line[1:]}\n" for line in lines if line[:1] != sign) for sign in "+-")
        assert text.count(old) == 1 or text == old == "", f"a block of the page no longer fits {name}:\n{old}"
        text = text.replace(old, new) if text else new
    path.write_text(text)


def radius(points: Tensor, chosen: tuple[int, ...] | list[int]) -> float:
    """Return how far the farthest point is from those chosen."""
    return float(torch.cdist(points, points[list(chosen)]).amin(1).max())


def check_k_center(extended: Workspace) -> None:
    """Its choice is at most twice as far off as the best; images that coincide are chosen once each."""
    clouds = [torch.randn(9, 2, generator=generator("k-center", n)).double() for n in range(5)]
    asked = [(cloud.tolist(), k) for cloud in clouds for k in (1, 2, 3, 9)]
    *answers, (same, weights) = json.loads(
        extended.python("-c", ASK, given=json.dumps([*asked, ([[1.0, 2.0]] * 4, 3)]))
    )
    for (rows, k), (chosen, masses) in zip(asked, answers, strict=True):
        points = torch.tensor(rows)
        assert len(set(chosen)) == k
        assert sum(masses) == pytest.approx(1)
        assert chosen[0] == int((points - points.mean(0)).norm(dim=1).argmin())
        best = min(radius(points, each) for each in itertools.combinations(range(len(points)), k))
        assert radius(points, chosen) <= 2 * best + 1e-6
    assert (len(set(same)), sum(weights)) == (3, pytest.approx(1))


def test_a_method_is_a_few_lines_and_neither_teacher_nor_another_stage_notices(run: Workspace) -> None:
    diffs = blocks("docs/develop/adding-a-method.md")
    assert 10 < sum(bool(re.match(r"\+(?!\+\+ b/)", line)) for diff in diffs for line in diff.splitlines()) < 20
    for diff in diffs:
        apply(diff, run.root)
    rules = "\n".join(path.read_text() for path in sorted((REPOSITORY / "rules").glob("*.smk")))
    stages = set(re.findall(r'code_digest\("(\w+)"\)', rules))
    assert {stage for stage in stages if code_digest(stage) != code_digest(stage, run.root / "wmdd")} == {"select"}
    check_k_center(run)

    config = run.config
    config["matrix"][0]["methods"] += [METHOD]
    run.config = config
    (run.root / "typo.yaml").write_text(
        json.dumps(config | {"methods": {"typo": {"base": METHOD, "select": {"strategy": "k-centre"}}}})
    )
    assert f"strategy: {METHOD}" in run.python("-m", "wmdd", "config", "tiny.yaml")
    with pytest.raises(AssertionError, match=r"methods\.typo\.select\.strategy"):
        run.python("-m", "wmdd", "config", "typo.yaml")

    old, new = (f"{RESULTS}/{name}/ipc2/seed0/student/nano/short/run0.json" for name in ("kmeans-medoid", METHOD))
    before = run.contents("data/*.h5", "results/**/*.safetensors", "results/**/*.h5")
    pending = run.pending(old, new)
    assert pending == {"select": 2, "relabel": 2, "student": 2}, "also of the other strategy, whose module changed"
    assert run.pending("--rerun-triggers", "mtime", "--", old, new) == {"select": 1, "relabel": 1, "student": 1}
    run.snakemake("--rerun-triggers", "mtime", "--", old, new)
    images, meta = hdf5.load(run.root / RESULTS / METHOD / "ipc2/seed0/images.h5")
    assert images["images"].shape == (10, 2, 3, 16, 16)
    assert meta["settings"]["strategy"] == METHOD
    assert 0 <= json.loads((run.root / new).read_text())["result"]["top1"] <= 1
    after = run.contents("data/*.h5", "results/**/*.safetensors", "results/**/*.h5")
    assert {name: after[name] == content for name, content in before.items()} == dict.fromkeys(before, True)


def test_a_stage_is_a_path_a_row_a_function_a_command_and_a_rule(run: Workspace) -> None:
    diffs = blocks("docs/develop/adding-a-stage.md")
    assert len(diffs) == 5
    for diff in diffs:
        apply(diff, run.root)
    target = f"{RESULTS}/wmdd/ipc2/seed0/diversity.json"
    assert run.pending().keys() == {"report", "page", "all"}, "tables know the new stage; no job of before is touched"
    assert run.pending(target) == {"diversity": 1}
    run.snakemake(target)
    found = json.loads((run.root / target).read_text())
    assert (len(found["diversity"]), found["stage"]) == (10, "diversity")
    assert all(0 < value < 1 for value in found["diversity"])
    assert (run.root / "logs/digits/nano/wmdd/ipc2/seed0/diversity.log").is_file()
    assert json.loads((run.root / f"{RESULTS}/wmdd/ipc2/seed0/diversity.cost.json").read_text())["stage"] == "diversity"
    assert "diversity" in run.python("-m", "wmdd", "--help")
