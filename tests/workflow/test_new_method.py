"""The method that docs/adding-a-method.md adds: its blocks are applied to a copy of the sources, and then it works."""

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

from .conftest import ENTRY, REPOSITORY, TINY, Workspace, workspace


def blocks(page: str) -> list[str]:
    """Return the changes that a page of the docs shows."""
    return re.findall(r"^```diff\n(.*?)^```$", (REPOSITORY / page).read_text(), re.MULTILINE | re.DOTALL)


DIFFS = blocks("docs/adding-a-method.md")
METHOD = "k-center"

# What the copy is asked: the positions and weights that its k_center chooses for points from standard input.
ASK = """
import json, sys, torch
from wmdd.stages.select import k_center
asked = json.load(sys.stdin)
print(json.dumps([[part.tolist() for part in k_center(torch.tensor(points), k)] for points, k in asked]))
"""


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


def extend(root: Path) -> None:
    """Do all that the page says."""
    for diff in DIFFS:
        apply(diff, root)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Sources with the method added."""
    place = workspace(tmp_path_factory.mktemp("extended") / "sources")
    extend(place.root)
    return place


def test_it_is_as_short_as_the_page_says() -> None:
    added = [line for diff in DIFFS for line in diff.splitlines() if re.match(r"\+(?!\+\+ b/)", line)]
    assert 10 < len(added) < 20


def radius(points: Tensor, chosen: tuple[int, ...] | list[int]) -> float:
    """Return how far the farthest point is from those chosen."""
    return float(torch.cdist(points, points[list(chosen)]).amin(1).max())


def test_its_choice_is_at_most_twice_as_far_off_as_the_best(extended: Workspace) -> None:
    clouds = [torch.randn(9, 2, generator=generator("k-center", n)).double() for n in range(5)]
    asked = [(cloud.tolist(), k) for cloud in clouds for k in (1, 2, 3, 9)]
    answers = json.loads(extended.python("-c", ASK, given=json.dumps(asked)))
    for (rows, k), (chosen, weights) in zip(asked, answers, strict=True):
        points = torch.tensor(rows)
        assert len(set(chosen)) == k
        assert sum(weights) == pytest.approx(1)
        assert chosen[0] == int((points - points.mean(0)).norm(dim=1).argmin())
        best = min(radius(points, each) for each in itertools.combinations(range(len(points)), k))
        assert radius(points, chosen) <= 2 * best + 1e-6
    same, weights = json.loads(extended.python("-c", ASK, given=json.dumps([([[1.0, 2.0]] * 4, 3)])))[0]
    assert len(set(same)) == 3, "images that coincide are chosen once each"
    assert sum(weights) == pytest.approx(1)


def test_an_experiment_may_name_it_and_a_typo_is_told(extended: Workspace) -> None:
    config = extended.config
    config["matrix"][0]["methods"] = [METHOD]
    (extended.root / "named.yaml").write_text(json.dumps(config))
    assert f"strategy: {METHOD}" in extended.python("-m", "wmdd", "config", "named.yaml")
    config["methods"] = {"typo": {"base": METHOD, "select": {"strategy": "k-centre"}}}
    (extended.root / "typo.yaml").write_text(json.dumps(config))
    with pytest.raises(AssertionError, match=r"methods\.typo\.select\.strategy"):
        extended.python("-m", "wmdd", "config", "typo.yaml")


def test_no_other_stage_has_other_code_than_before(extended: Workspace) -> None:
    rules = "\n".join(path.read_text() for path in sorted((REPOSITORY / "rules").glob("*.smk")))
    stages = set(re.findall(r'code_digest\("(\w+)"\)', rules))
    assert {"data", "teacher", "features", "barycenter", "recover", "select", "relabel", "student"} <= stages
    changed = {stage for stage in stages if code_digest(stage) != code_digest(stage, extended.root / "wmdd")}
    assert changed == {"select"}


@pytest.mark.workflow
@pytest.mark.slow
def test_it_runs_in_the_workflow_and_the_teacher_does_not(tmp_path: Path) -> None:
    config = json.loads(json.dumps(TINY))
    config["matrix"] = [ENTRY | {"methods": ["kmeans-medoid"], "protocols": ["short-hard"]}]
    config["teachers"]["nano"]["epochs"] = 2
    config["protocols"]["short"]["student"] = {"epochs": 2}
    run = workspace(tmp_path / "run", config)
    student = "results/digits/nano/{}/ipc2/seed0/student/nano/short-hard/run0.json"
    old, new = student.format("kmeans-medoid"), student.format(METHOD)
    run.snakemake(old)
    before = run.contents("data/*.h5", "results/**/*.safetensors", "results/**/*.h5")
    assert len(before) == 5, "data, teacher, features, statistics, images"
    extend(run.root)
    config["matrix"][0]["methods"] += [METHOD]
    run.config = config
    pending = run.pending(old, new)
    assert pending == {"select": 2, "student": 2}, "its own, and those of the other strategy, whose module changed"
    assert run.pending("--rerun-triggers", "mtime", "--", old, new) == {"select": 1, "student": 1}
    run.snakemake("--rerun-triggers", "mtime", "--", old, new)
    images, meta = hdf5.load(run.path(f"results/digits/nano/{METHOD}/ipc2/seed0/images.h5"))
    assert images["images"].shape == (10, 2, 3, 16, 16)
    assert meta["settings"]["strategy"] == METHOD
    assert 0 <= json.loads((run.root / new).read_text())["result"]["top1"] <= 1
    after = run.contents("data/*.h5", "results/**/*.safetensors", "results/**/*.h5")
    assert {name: after[name] == content for name, content in before.items()} == dict.fromkeys(before, True)
