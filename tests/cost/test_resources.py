"""What jobs ask a scheduler for: enough by what was measured, more for larger work and at each retry, and always a number."""

import json
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from benchmarks.dag import EXPERIMENT
from wmdd import data, engine, features, feeding, rates, recover, work
from wmdd.config import Experiment
from wmdd.plan import ORDER, estimate
from wmdd.resources import WILDCARDS, Request, Requests, render
from wmdd.work import Job

ROOT = Path(__file__).parents[1]
FILES = sorted(set((ROOT / "config").glob("**/*.yaml")) - {ROOT / "config/published.yaml"})  # which is no experiment
ON_GPU = {
    "teacher", "features", "features_part", "recover", "relabel", "student", "autoencoder", "encode", "diffusion", "decode",
    "distance", "expert", "match",
}  # fmt: skip


def requests(content=None, **cell):
    cell = {"datasets": ["cifar10"], "teachers": ["resnet18-w8"], "methods": ["wmdd"], "ipc": [2]} | cell
    return Requests(Experiment({"matrix": [{"students": ["resnet18-w8"], **cell}], **(content or {})}))


def asked(rule, content=None, threads=1, **cell):
    """What the largest job of a rule asks for."""
    found = requests(content, **cell)
    every = [found.asked(job, threads) for job in found.jobs.values() if job.rule == rule]
    return Request(*map(max, zip(*every, strict=True)))


ON_CPU = {"engine": {"device": "cpu"}}


# Always a number


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_job_of_every_file_asks_for_whole_numbers(path):
    experiment = Experiment.read(path)
    found = Requests(experiment)
    for key, job in found.jobs.items():
        wildcards = dict(zip(WILDCARDS[key[0]], key[1:], strict=True))
        for attempt in 1, 2, 3:
            request = found.of(job.rule, wildcards, attempt)
            assert all(type(number) is int for number in request)
            assert request.runtime >= 10
            assert request.mem_mb >= 1000
            patches = False
            if key[0] == "select":
                patches = experiment.resolve("select", dataset=key[1], method=key[3]).strategy == "patches"
            assert request.gpu == (job.rule in ON_GPU or patches)


def test_every_rule_asks():
    """Those that run a network for GPUs too; and of what is SLURM's nothing."""
    text = "".join(path.read_text() for path in sorted((ROOT / "rules").glob("*.smk")))
    named = Counter(re.findall(r'(mem_mb|runtime|gpu)=asked\("(\w+)", "\1"\)', text))
    assert named == dict.fromkeys(
        [
            (what, rule)
            for rule in ORDER
            for what in ("mem_mb", "runtime", "gpu")
            if what != "gpu" or rule in ON_GPU | {"select"}  # whose strategy patches asks a teacher
        ],
        1,
    )
    assert set(WILDCARDS) == set(ORDER)
    assert set(re.findall(r"^ +(\w+)=asked\(", text, re.MULTILINE)) == {"mem_mb", "runtime", "gpu"}
    assert "slurm" not in text.lower()


def test_what_is_not_known_gets_a_default():
    unknown = {"datasets": {"own": {"data": {"classes": 4}}}, "teachers": {"own": {"architecture": "timm:resnet9999"}}}
    found = requests(unknown, datasets=["own"], teachers=["own"], methods=["wmdd", "kmeans-medoid", "sre2l"])
    for job in found.jobs.values():
        assert all(type(number) is int for number in found.asked(job))
    stated = {"resolution": 224, "train_images": 4000, "val_images": 400}
    same = requests(
        unknown | {"datasets": {"own": {"data": {"classes": 4} | stated}}}, datasets=["own"], teachers=["own"]
    )
    assert {key: job for key, job in found.jobs.items() if key in same.jobs and key[0] not in ("report", "page")} == {
        key: job for key, job in same.jobs.items() if key[0] not in ("report", "page")
    }


def test_a_job_without_an_estimate_gets_a_default():
    default = rates.table()["asked"]["time"]["unknown"]
    solver = {"barycenter": {"solver": "cuturi-doucet", "weights": "free"}}
    assert asked("barycenter", solver).runtime == default
    elsewhere = {"dataset": "x", "teacher": "y", "method": "z", "ipc": "7", "seed": "3", "block": "classes0-1"}
    found = requests(dataset(), **OF_D | {"ipc": [50]})
    assert found.of("recover", elsewhere)[:2] == (default, max(j.mem_mb for j in map(found.asked, found.jobs.values())))
    assert found.of("gather", elsewhere).runtime == default  # of which the matrix has none
    assert requests().asked(Job("student", seconds=math.nan, memory=math.nan, flop=math.nan)).runtime == default


def test_neither_torch_nor_any_file_is_asked():
    line = (
        "import sys; from wmdd.config import Experiment; from wmdd.resources import Requests; from pathlib import Path;"
        "found = Requests(Experiment.read(Path('config/imagenet.yaml')));"
        "[found.asked(job) for job in found.jobs.values()];"
        "print({'torch', 'h5py', 'pandas', 'snakemake'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", line], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_constants_are_those_of_the_stages():
    assert work.RESIDENT_MB == feeding.RESIDENT_MB
    assert work.PIXELS == data.PIXELS
    assert (work.SHARD, work.CACHED) == (features.SHARD, features.CACHED)
    assert engine.AT_ONCE["cpu"] == work.AT_ONCE
    assert work.LARGEST == recover.LARGEST


# Enough


def measured():
    """Peaks in MB and seconds of a job of the study of CIFAR-10, the largest of each stage."""
    text, found = (ROOT / "docs/studies/cifar10/cost.md").read_text(), {}
    for row in re.findall(r"^\| cifar10 .*$", text, re.MULTILINE):
        _, method, _, stage, _, _, seconds, peak = (cell.strip() for cell in row.strip("| ").split("|"))
        rule = "select" if stage == "images" else stage
        assert method or stage in ("data", "features", "teacher")
        found[rule] = tuple(map(max, found.get(rule, (0, 0)), (float(seconds), float(peak))))
    return found


@pytest.mark.parametrize(("rule", "seconds", "peak"), [(rule, *figures) for rule, figures in measured().items()])
def test_the_study_of_cifar10_would_have_fitted(rule, seconds, peak):
    """With a fifth to spare, and no more than three times what it took."""
    content = yaml.safe_load((ROOT / "config/cifar10.yaml").read_text()) | ON_CPU
    found = Requests(Experiment(content))
    jobs = [found.asked(job) for job in found.jobs.values() if job.rule == rule]
    most = max(job.mem_mb for job in jobs)
    assert 1.2 * peak <= most <= 3 * peak
    assert 60 * max(job.runtime for job in jobs) >= 1.2 * seconds


@pytest.mark.parametrize(
    ("dataset", "resolution", "peaks"),
    [  # docs/studies/datasets.md
        ("imagenette", 128, {"data": 674, "teacher": 1985, "features": 646}),
        ("tiny-imagenet", 64, {"data": 658, "teacher": 1169, "features": 686}),
    ],
)
def test_the_study_of_datasets_would_have_fitted(dataset, resolution, peaks):
    content = {"datasets": {dataset: {"data": {"resolution": resolution}}}, **ON_CPU}
    for rule, peak in peaks.items():
        assert asked(rule, content, datasets=[dataset], teachers=["resnet18-w16"]).mem_mb >= 1.2 * peak


@pytest.mark.parametrize(("classes", "images"), [(1000, 160), (10_000, 16)])
def test_many_classes_would_have_fitted(classes, images, monkeypatch):
    """Streamed, of 16 px and width 8: benchmarks/results/scale-cpu-*.json."""
    monkeypatch.setenv("WMDD_RESIDENT_MB", "16")
    rows = json.loads((ROOT / f"benchmarks/results/scale-cpu-{classes}.json").read_text())["rows"]
    about = {"classes": classes, "resolution": 16, "train_images": classes * images, "val_images": classes}
    content = {"datasets": {"d": {"data": about | {"source": "imagefolder", "root": "x"}}}, **ON_CPU}
    for name, row in rows[f"{classes} x {images}"].items():
        rule, _, ipc = name.partition(", IPC ")
        found = asked(rule, content, datasets=["d"], ipc=[int(ipc or 1)])
        assert found.mem_mb >= 1.2 * row["peak_memory_mb"]


# More for more


def larger(rule, more, content=None, **cell):
    """By how much more time and memory a rule's largest job asks for."""
    before, after = asked(rule, content, **cell), asked(rule, **({"content": content} | cell | more))
    return after.runtime - before.runtime, after.mem_mb - before.mem_mb


def dataset(**about):
    entry = {"classes": 1000, "resolution": 128, "train_images": 100_000, "val_images": 10_000} | about
    return {"datasets": {"d": {"data": {"source": "imagefolder", "root": "x"} | entry}}}


OF_D = {"datasets": ["d"], "teachers": ["resnet18"], "students": ["resnet18"]}


@pytest.mark.parametrize("rule", ["data", "teacher", "features"])
def test_more_pictures_take_longer(rule):
    longer, _ = larger(rule, {"content": dataset(train_images=2_000_000)}, dataset(), **OF_D)
    assert longer > 0


def test_what_is_held_in_memory_is_asked_for_and_what_is_streamed_is_not(monkeypatch):
    few, some, many = (dataset(train_images=n) for n in (10_000, 80_000, 1_000_000))
    memory = [asked("teacher", content, **OF_D).mem_mb for content in (few, some, many)]
    assert memory[1] - memory[0] == pytest.approx(1.3 * 70_000 * 3 * 128**2 / 2**20, abs=200)
    assert memory[2] < memory[0]
    monkeypatch.setenv("WMDD_RESIDENT_MB", "100000")
    assert asked("teacher", many, **OF_D).mem_mb > 40_000
    monkeypatch.setenv("WMDD_RESIDENT_MB", "lots")  # which the stage refuses
    assert asked("teacher", many, **OF_D).mem_mb == memory[2]


@pytest.mark.parametrize("rule", ["recover", "relabel", "student", "images"])
def test_more_images_per_class_take_longer_and_more_memory(rule):
    content = dataset()
    content["datasets"]["d"]["classes_per_block"] = 100
    longer, more = larger(rule, {"ipc": [200]}, content, **OF_D | {"ipc": [10]})
    assert longer > 0
    assert more > 0


@pytest.mark.parametrize("size", [10, 100])
def test_larger_blocks_take_longer_and_more_memory(size):
    small, large = dataset(), dataset()
    small["datasets"]["d"]["classes_per_block"] = size
    large["datasets"]["d"]["classes_per_block"] = 10 * size
    longer, more = larger("recover", {"content": large}, small, **OF_D | {"ipc": [50]})
    assert longer > 0
    assert more == pytest.approx(1.3 * 16 * 3 * 128**2 * 9 * size * 50 / 2**20, rel=0.4)


def test_the_minutes_of_a_block_are_covered_by_its_limit():
    found = requests(dataset(), **OF_D | {"ipc": [50]})
    jobs = [job for job in found.jobs.values() if job.rule == "recover"]
    for job in jobs:
        assert estimate(job, found.device).seconds / 60 < 15.1
        assert 3 * estimate(job, found.device).seconds / 60 - 1 < found.asked(job).runtime < 60


@pytest.mark.parametrize("rule", ["teacher", "recover", "student"])
def test_wider_networks_of_larger_images_take_more_memory_on_a_cpu(rule):
    for more in (
        dataset(resolution=224),
        {"teachers": {"resnet18": {"width": 128}}, "students": {"resnet18": {"width": 128}}},
    ):
        _, needs = larger(rule, {"content": dataset() | ON_CPU | more}, dataset() | ON_CPU, **OF_D | {"ipc": [10]})
        assert needs > 0


def test_a_retry_asks_for_more_but_never_more_than_a_node_could_have():
    found = requests()
    wildcards = {"dataset": "cifar10", "teacher": "resnet18-w8", "seed": "0"}
    first, second, third, late = (found.of("teacher", wildcards, attempt) for attempt in (1, 2, 3, 20))
    assert second == (2 * first.runtime, 2 * first.mem_mb, 1)
    assert third == late == (4 * first.runtime, 4 * first.mem_mb, 1)


def test_threads_decode_and_compute():
    content = dataset(train_images=2_000_000)
    one, eight = (asked("teacher", content, threads, **OF_D) for threads in (1, 8))
    assert one.runtime > 2 * eight.runtime  # a GPU that waits for pictures
    one, eight = (asked("teacher", content | ON_CPU, threads, **OF_D) for threads in (1, 8))
    assert one.runtime == pytest.approx(8 * eight.runtime, rel=0.1)


MTT = {"methods": ["mtt-cifar10-ipc1"]}


def test_longer_experts_take_longer_and_more_memory():
    longer, more = larger("expert", {"content": {"expert": {"epochs": 500}} | ON_CPU}, ON_CPU, **MTT)
    assert longer > 0
    assert more >= 1.3 * 450 * 4 * 320_010 / 2**20  # what is kept after each epoch


@pytest.mark.parametrize(("method", "name"), [("dm", "iterations"), ("mtt", "student_steps"), ("mtt", "iterations")])
def test_matching_for_longer_takes_longer(method, name):
    short, long = ({"methods": {method: {"match": {name: number}}}} for number in (100, 1000))
    longer, _ = larger("match", {"content": long | ON_CPU}, short | ON_CPU, methods=[method])
    assert longer > 0


@pytest.mark.parametrize("rule", ["expert", "match", "student"])
def test_whitening_takes_a_matrix_of_all_pairs_of_numbers(rule):
    content = {"expert": {"whiten": True}, "student": {"whiten": True}, **ON_CPU}
    _, more = larger(rule, {"content": content}, ON_CPU, **MTT)
    assert more >= 1.2 * 449  # MB, measured at 32 px


def test_whitening_of_larger_images_takes_its_time():
    of = {"content": {"student": {"whiten": True}}, "datasets": ["tiny-imagenet"]}
    assert 60 * asked("student", **of).runtime > 5e-10 * (3 * 64**2) ** 3


@pytest.mark.parametrize("method", ["dm", "datadam", "mtt"])
def test_matching_more_images_takes_longer_and_more_memory(method):
    content = {"match": {"init": "noise", "student_steps": 5}, **ON_CPU}
    longer, more = larger("match", {"ipc": [50]}, content, methods=[method], ipc=[1])
    assert longer > 0
    assert more > 0


# GPUs


def test_gpus_are_asked_for_unless_the_engine_is_told_not_to():
    gpus = {"teachers": {"resnet18-w8": {"gpus": 4}}}
    for rule in sorted(set(ORDER) - {"table"}):  # of which no matrix has one unless it is named
        share = {"datasets": {"cifar10": {"features_jobs": 2 if rule in ("features_part", "gather") else 1}}}
        share["embedding"] = rule == "embedding"
        methods = ["random"] if rule == "select" else ["wmdd", "ddoq", "mtt-cifar10-ipc1"]
        wanted = 4 if rule == "teacher" else int(rule in ON_GPU)
        assert asked(rule, gpus | share, methods=methods).gpu == wanted
        assert asked(rule, gpus | share | ON_CPU, methods=methods).gpu == 0
    assert asked("teacher", ON_CPU).mem_mb < asked("teacher").mem_mb


def test_a_teacher_on_several_gpus_needs_its_share_of_the_time(tmp_path):
    content = dataset(train_images=2_000_000, storage="pixels")
    one, four = (asked("teacher", content | {"teachers": {"resnet18": {"gpus": n}}}, **OF_D) for n in (1, 4))
    assert one.runtime == pytest.approx(4 * four.runtime, rel=0.1)
    (tmp_path / "t.pt").touch()
    adopted = {"teachers": {"resnet18": {"gpus": 4, "weights": str(tmp_path / "t.pt")}}}
    assert asked("teacher", content | adopted, **OF_D).gpu == 1


# The plan, and the largest experiment


def test_the_plan_tells_what_is_asked_for():
    made = Experiment.read(ROOT / "config/imagenet.yaml")
    found, planned = Requests(made), work.work(made)
    lines = render(found, planned, rates.device("h200")).splitlines()
    assert lines[0].endswith("(for a100):")
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:])
    assert head == ["job", "jobs", "classes a job", "longest on h200", "time limit", "memory", "GPUs"]
    counts = Counter(job.rule for job in planned.jobs.values())
    assert {row[0]: int(row[1]) for row in rows} == counts
    of = {row[0]: row[2:] for row in rows}
    assert of["features_part"][0] == "125"
    assert of["recover"][0] == "50 to 1000"
    longest = max(estimate(job, rates.device("h200")).seconds for job in planned.jobs.values() if job.rule == "recover")
    assert of["recover"][1] == f"{longest / 60:.1f} min"
    largest = max(found.asked(job).runtime for job in found.jobs.values() if job.rule == "recover")
    assert of["recover"][2] == f"{largest} min"
    assert [name for name, cells in of.items() if cells[-1]] == [
        rule for rule in ORDER if rule in of and rule in ON_GPU
    ]


def test_the_largest_experiment_is_not_a_thousand_jobs():
    counts = Counter(job.rule for job in work.work(Experiment(EXPERIMENT), assume=True).jobs.values())
    assert sum(counts.values()) + 1 <= 1000  # and `all`
    kept = json.loads((ROOT / "benchmarks/results/dag.json").read_text())
    assert kept["by rule"] == counts | {"all": 1}
    assert kept["experiment"] == EXPERIMENT
