"""The jobs of an experiment, as Snakemake sees them through its API: which there are, and each once."""

import json
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from benchmarks.dag import EXPERIMENT
from wmdd.base.errors import WmddError
from wmdd.workflow.dag import Job, jobs
from wmdd.workflow.layout import Cell

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    """Nothing is done yet here."""
    monkeypatch.chdir(tmp_path)


def dag(content, forceall=True, **cell):
    """The jobs of an experiment of one entry of the matrix, of CIFAR-10 unless told otherwise."""
    cell = {"datasets": ["cifar10"], "teachers": ["resnet18-w8"], "methods": ["wmdd"], "ipc": [2]} | cell
    Path("mine.yaml").write_text(yaml.safe_dump({"matrix": [{"students": ["resnet18-w8"], **cell}]} | content))
    return jobs(Path("mine.yaml"), forceall=forceall)


def counted(content, **cell):
    return Counter(job.stage for job in dag(content, **cell))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("config", "data 1 select 12 teacher 1 features 1 grid 8 student 24 barycenter 6 recover 12 join 12 report 1 page 1"),
        ("imagenette", "data 1 select 6 teacher 1 features 1 grid 8 relabel 8 student 16 barycenter 2 "
         "recover 2 join 2 report 1 page 1 scoreboard 1"),
        ("cifar10", "data 1 select 12 teacher 1 features 1 grid 8 relabel 24 student 48 barycenter 6 "
         "recover 12 join 12 report 1 page 1 scoreboard 1"),
        ("imagenet", "data 1 teacher 1 features_part 8 gather 1 barycenter 33 recover 33 "
         "join 4 grid 4 relabel 4 student 4 report 1 page 1 scoreboard 1"),
        ("latent", "data 1 select 6 teacher 1 features 1 autoencoder 1 encode 1 diffusion 1 decay 1 quantize 6 decode 6 "
         "barycenter 3 recover 3 join 9 distance 15 grid 5 relabel 15 student 30 distances 1 report 1 page 1 scoreboard 1"),
        ("match", "data 1 teacher 1 features 1 expert 200 match 33 join 33 select 9 grid 14 relabel 36 student 114 "
         "report 1 page 1 scoreboard 1"),
    ],
)  # fmt: skip
def test_the_jobs_of_the_shipped_experiments(name, expected):
    found = jobs(ROOT / f"config/{name}.yaml", forceall=True)
    assert Counter(job.stage for job in found) == {
        rule: int(number) for rule, number in re.findall(r"(\w+) (\d+)", expected)
    }
    assert {need for job in found for need in job.needs} < {job.outputs[0] for job in found}


def test_what_is_done_makes_no_difference_where_nothing_counts_as_done():
    for path in ("results/cifar10/resnet18-w8/teacher/seed0/model.safetensors", "data/cifar10.h5"):
        Path(path).parent.mkdir(parents=True)
        Path(path).touch()
    assert {job.outputs: job.wanted for job in dag({})} == {job.outputs: True for job in dag({}, forceall=False)}


def test_jobs_are_counted_once():
    found = counted({}, runs=3, protocols=["paper", "paper-hard"], seeds=[0, 1])
    assert (found["teacher"], found["recover"], found["relabel"], found["student"]) == (1, 2, 2, 12)
    assert counted({"runs_per_job": 3}, runs=3)["student"] == 1
    assert counted({"teacher_seed": "same"}, seeds=[0, 1])["features"] == 2


def test_experts_are_trained_once_for_all_that_follow_them():
    found = counted({}, methods=["mtt-cifar10-ipc1", "mtt-cifar10-ipc10", "dm"], ipc=[1, 10], seeds=[0, 1], runs=2)
    assert (found["expert"], found["match"], found["join"], found["student"]) == (100, 12, 12, 24)
    few = {"methods": {"mtt-cifar10-ipc1": {"match": {"trajectories": 3}}}}
    names = ["mtt-cifar10-ipc1", "mtt-cifar10-ipc10-whitened"]
    experts = Counter(job.cell.expert for job in dag(few, methods=names) if job.stage == "expert")
    assert experts == {"convnet3": 3, "convnet3-whitened": 100}


def test_what_a_method_starts_from_is_made_once():
    for methods, expected in ((["ddoq", "ddoq-recover"], (1, 1, 2, 2)), (["ddoq-recover"], (1, 1, 2, 1))):
        found = counted({}, methods=methods)
        assert (found["decode"], found["recover"], found["join"], found["student"]) == expected
    mine = {"methods": {"mine": {"base": "wmdd", "recover": {"init": "method:mtt"}}}}
    found = counted(mine, methods=["mine"])
    assert (found["expert"], found["match"], found["recover"], found["join"]) == (100, 1, 1, 2)


def test_protocols_with_the_same_labels_share_them():
    weights = {f"w-{how}": {"base": "paper", "student": {"weights": how}} for how in ("mass", "uniform")}
    other = {"other": {"base": "paper", "relabel": {"mix": "none"}}}
    found = dag({"protocols": weights | other}, protocols=["paper", *weights, *other])
    assert sorted(job.cell.protocol for job in found if job.stage == "relabel") == ["other", "paper"]


def test_the_largest_experiment_is_not_a_thousand_jobs():
    Path("mine.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    counts = Counter(job.rule for job in jobs(Path("mine.yaml"), forceall=True)) | Counter(["all"])
    assert counts.total() <= 1000
    kept = json.loads((ROOT / "benchmarks/results/dag.json").read_text())
    counts -= Counter(["scoreboard"])  # which came after the measurement
    assert (kept["by rule"], kept["experiment"]) == (counts, EXPERIMENT)


# A workflow of two jobs

SNAKEFILE = """
rule all:
    input: "results/b.txt"
rule a:
    output: "results/{dataset}/a.txt", "results/{dataset}/a2.txt"
    log: "logs/{dataset}/a.log"
    params: config["value"]
    shell: "touch {output}"
rule b:
    input: "results/d/a.txt"
    output: "results/b.txt"
    shell: "touch {output}"
"""


@pytest.fixture
def small():
    """A workflow of two jobs."""
    Path("Snakefile").write_text(SNAKEFILE)
    Path("mine.yaml").write_text("value: 1")
    return Path("mine.yaml")


def touch(path, moment=1.7e9):
    """Make a file as if at a moment."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (moment, moment))


def test_jobs_are_those_of_snakemake(small):
    first, second = sorted(jobs(small), key=lambda job: job.rule)
    outputs = (Path("results/d/a.txt"), Path("results/d/a2.txt"))
    assert replace(first, reason="") == Job("a", outputs, Cell("d"), "d", log=Path("logs/d/a.log"))
    assert "results/d/a.txt" in first.reason
    assert replace(second, reason="") == Job("b", (Path("results/b.txt"),), inputs=1, needs=outputs[:1], waits=True)
    for path in (*outputs, "results/b.txt"):
        touch(path)
    assert [job.wanted for job in jobs(small)] == [False, False]
    touch("results/d/a.txt", 1.7e9 + 5)
    first, second = sorted(jobs(small), key=lambda job: job.rule)
    assert (first.wanted, second.wanted, second.waits) == (False, True, False)
    assert second.reason == "Updated input files: results/d/a.txt"


def test_looking_changes_nothing_and_needs_no_lock(small):
    jobs(small)  # makes the empty folders of .snakemake where nothing has run yet
    lock = Path(".snakemake/locks/0.output.lock")
    lock.parent.mkdir(exist_ok=True)
    lock.write_text("results/b.txt\nresults/d/a.txt\n")
    before = {path: path.stat().st_mtime_ns for path in Path(".").rglob("*")}
    assert len(jobs(small)) == 2
    assert {path: path.stat().st_mtime_ns for path in Path(".").rglob("*")} == before


def test_a_workflow_that_snakemake_can_not_read(small, capfd):
    for content, says in (
        ("rule all:\n    input: 'missing.txt'\n", "missing.txt"),
        ("raise WorkflowError('it is\\n wrong')\n", "it is wrong"),
        ("rule all\n", ""),
    ):
        Path("Snakefile").write_text(f"from snakemake.exceptions import WorkflowError\n{content}")
        with pytest.raises(WmddError) as error:
            jobs(small)
        assert str(error.value).startswith("snakemake can't read the workflow: ")
        assert says in str(error.value)
        assert "\n" not in str(error.value)
        assert capfd.readouterr() == ("", "")
