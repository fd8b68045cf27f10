"""What an experiment will cost: sums over the jobs of the DAG, floors, chains, what is not known, and the command."""

import json
import math
import os
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from wmdd.base.errors import WmddError
from wmdd.cost import rates
from wmdd.cost.plan import plan, render
from wmdd.cost.scene import Shapes
from wmdd.workflow.dag import Job, jobs
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.layout import Cell

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs/use/cost.md"
CORE, H200 = rates.device("cpu-core"), rates.device("h200")


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    """No data of this checkout are found."""
    monkeypatch.chdir(tmp_path)


def planned(on, content=None, detail=False, **cell):
    cell = {"datasets": ["cifar10"], "teachers": ["resnet18-w8"], "methods": ["wmdd"], "ipc": [2]} | cell
    experiment = {"matrix": [{"students": ["resnet18-w8"], **cell}]} | (content or {})
    return plan(all_jobs(yaml.safe_dump(experiment)), Shapes(Experiment(experiment)), on, detail)


@cache
def all_jobs(experiment):
    Path("mine.yaml").write_text(experiment)
    return jobs(Path("mine.yaml"), forceall=True)


# What is not known


def test_what_is_not_known_is_a_question_mark_and_the_rest_is_there():
    data = {"data": {"source": "imagefolder", "root": "own", "classes": 4, "resolution": 32}}
    found = planned(CORE, {"datasets": {"own": data}}, datasets=["own"])
    costs = {row.stage: row.cost for row in found.rows}
    assert math.isnan(costs["teacher"].seconds)
    assert costs["recover"].seconds > 0
    assert found.partial
    assert found.total.cost.seconds >= costs["recover"].seconds
    assert found.chain >= costs["recover"].seconds
    text = render(found, "mine.yaml")
    assert re.search(r"teacher .* \? ", text)
    assert "nan" not in text
    assert text.splitlines()[-1].startswith("? own: its pictures are not known yet (there is no folder")


def test_totals_of_what_nobody_knows_are_question_marks():
    data = {"data": {"source": "imagefolder", "root": "own", "classes": 4}}
    for on in (CORE, H200):
        of = {"datasets": ["own"], "methods": ["random"], "protocols": ["paper-online"]}
        text = render(planned(on, {"datasets": {"own": data}}, **of), "mine.yaml", parallel=4)
        assert re.search(r"^With 4 at once: more than [^,]*\.$", text, re.MULTILINE), "no upper bound"
        assert re.search(r"\| total .* \? \|$", text, re.MULTILINE), "the bytes on disk"
        assert "; ? on disk before compression." in text
        assert not re.search(r"(>|more than) +([|?;]|on |GPU)", text), text


def test_a_stage_without_a_law_is_a_question_mark_in_the_last_row():
    new = [Job("data", (Path("d.h5"),), Cell("cifar10")), Job("polish", (Path("p.h5"),), Cell("cifar10"))]
    found = plan(new, Shapes(Experiment({})), CORE)
    assert [row.stage for row in found.rows] == ["data", "polish"]
    assert re.search(r"polish +\| +1 \| +\? \|", render(found, "mine.yaml"))


# Sums, floors and chains


def test_no_job_is_faster_than_its_floor():
    for device in CORE, H200, rates.device("cpu-core-fp32"):
        found = planned(device, methods=["wmdd", "sre2l", "kmeans-medoid", "random", "datadam", "mtt"])
        for _, cost in found.jobs:
            assert cost.seconds >= rates.table()["start"] + max(cost.at_peak, cost.at_bandwidth)


def test_totals_are_sums_and_details_sum_to_the_rows():
    of = {"methods": ["wmdd", "kmeans-medoid"], "ipc": [1, 2]}
    short, long = planned(H200, **of), planned(H200, detail=True, **of)
    assert len(long.rows) > len(short.rows)
    assert sum(row.jobs for row in long.rows) == sum(row.jobs for row in short.rows) == short.total.jobs
    for name in "images", "steps", "flop", "seconds", "gpu", "at_peak", "at_bandwidth", "disk":
        assert sum(getattr(row.cost, name) for row in short.rows) == pytest.approx(getattr(short.total.cost, name))
        for row in short.rows:
            parts = [getattr(part.cost, name) for part in long.rows if part.stage == row.stage]
            assert sum(parts) == pytest.approx(getattr(row.cost, name))
    assert 0 < short.total.cost.gpu < short.total.cost.seconds
    assert planned(CORE, **of).total.cost.gpu == 0


def test_several_devices_by_grahams_bound():
    found = planned(CORE, seeds=[0, 1, 2])
    spent = found.total.cost.seconds
    assert found.with_devices(1) == (spent, spent)
    for number in 2, 3, 1000:
        least, most = found.with_devices(number)
        assert max(found.chain, spent / number) == least <= most <= spent
    each = {row.stage: row.cost.seconds / row.jobs for row in found.rows}
    stages = "data", "teacher", "features", "barycenter", "recover", "join", "relabel", "student", "report", "page"
    assert found.chain == pytest.approx(sum(each[stage] for stage in stages))


def test_a_chain_counts_the_share_of_each_gpu():
    alone, together = (planned(H200, {"teachers": {"resnet18-w8": {"gpus": gpus}}}) for gpus in (1, 4))
    teacher = next(row.cost.seconds for row in alone.rows if row.stage == "teacher")
    assert alone.chain - together.chain == pytest.approx(teacher * 3 / 4)
    assert alone.total.cost.seconds == together.total.cost.seconds


def test_no_jobs_are_no_plan():
    with pytest.raises(WmddError, match="the experiment has no jobs"):
        plan([], Shapes(Experiment({})), CORE)


# The command

MINE = "experiment: mine\nmatrix: [{datasets: [digits], teachers: [resnet18-w8], methods: [wmdd], ipc: [1]}]\n"
PEAK = {"flops": 1e12, "bytes_per_s": 1e11}
OWN = {"machine": "mine", "device": "cuda", "peak": PEAK, "rates": {"recover": {"32": 5e11}}}


def test_the_command_prints_a_plan(run):
    Path("mine.yaml").write_text(MINE)
    _, shown, _ = run("plan mine.yaml --parallel 3")
    assert shown.startswith("mine.yaml on cpu-core: AMD EPYC")
    assert re.search(r"\| digits +\| recover +\| +1 \|", shown)
    assert "With 3 at once" in shown
    Path("mine.yaml").write_text(MINE + "engine: {precision: fp32}\n")
    assert run("plan mine.yaml")[1].startswith("mine.yaml on cpu-core-fp32")
    Path("own.json").write_text(json.dumps(OWN))
    _, shown, _ = run("plan mine.yaml --rates own.json")
    assert shown.startswith("mine.yaml on own: mine")
    for text in "5.00e11 measured", "Assumed: the slowest measured rate of own", "GPU-h":
        assert text in shown


def test_a_mistake_is_one_line(mistake):
    known = "known: cpu-core, cpu-core-fp32, a100, h100, h200; for one of your own"
    for options, content, says in (
        ("--device h300", MINE, f"unknown device 'h300'; {known}"),
        ("--device h200 --rates own.json", MINE, "give --device or --rates, not both"),
        ("--rates none.json", MINE, "cannot read the rates none.json: No such file or directory"),
        ("--rates mine.yaml", MINE, "mine.yaml is not valid JSON: "),
        ("", "recover: {iteration: 3}", "mine.yaml: unknown key recover.iteration; did you mean 'iterations'?"),
        ("", "experiment: mine", "the experiment has an empty matrix"),
    ):
        Path("mine.yaml").write_text(content)
        assert says in mistake(f"plan mine.yaml {options}")


# The document


def test_the_docs_hold_what_the_command_prints(run):
    """With WMDD_REFRESH set, write it."""
    Path("config").symlink_to(ROOT / "config")
    text = DOCS.read_text()

    def refreshed(block):
        return f"<!-- python -m wmdd {block[1]} -->\n\n{run(block[1])[1]}\n<!-- end -->"

    fresh = re.sub(r"<!-- python -m wmdd (.*?) -->\n.*?<!-- end -->", refreshed, text, flags=re.DOTALL)
    if os.environ.get("WMDD_REFRESH"):
        DOCS.write_text(fresh)
    else:
        assert text == fresh
