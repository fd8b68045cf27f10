"""What jobs ask a scheduler for: enough by what was measured, more for larger work and at each retry, and always a number."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from wmdd.cost import rates
from wmdd.cost.blocks import Blocks
from wmdd.cost.laws import UNKNOWN
from wmdd.cost.plan import plan
from wmdd.cost.resources import Requests, render
from wmdd.cost.scene import Shapes
from wmdd.workflow.dag import Job, jobs
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.layout import Cell
from wmdd.workflow.stages import ORDER, STAGES

ROOT = Path(__file__).parents[2]
FILES = [ROOT / f"config/{name}.yaml" for name in ("config", "imagenet", "latent", "match")]  # every family and size
ON_GPU = {stage for stage in STAGES if STAGES[stage].network}
ON_CPU = {"engine": {"device": "cpu"}}


def matrix(content=None, **cell):
    cell = {"datasets": ["cifar10"], "teachers": ["resnet18-w8"], "methods": ["wmdd"], "ipc": [2]} | cell
    return Experiment({"matrix": [{"students": ["resnet18-w8"], **cell}], **(content or {})})


def cell_of(stage, experiment):
    """The place of a stage's first job of the first run, whose block is as large as any."""
    run = next(experiment.runs())
    cell = run.having(run=None)
    if stage in ("features_part", "encode"):
        return cell.having(block=experiment.features_blocks(run.dataset)[0])
    if STAGES[stage].file and "block" in STAGES[stage].wildcards:
        return cell.having(block=Blocks(experiment).names(run)[0])
    return cell


def asked(stage, content=None, threads=1, **cell):
    """What the largest job of a stage asks for."""
    experiment = matrix(content, **cell)
    return Requests(experiment).first(stage, cell_of(stage, experiment), threads)


def dataset(**about):
    entry = {"classes": 1000, "resolution": 128, "train_images": 100_000, "val_images": 10_000} | about
    return {"datasets": {"d": {"data": {"source": "imagefolder", "root": "x"} | entry}}}


# Always a number


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_job_of_every_file_asks_for_whole_numbers(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    experiment = Experiment.read(path)
    requests = Requests(experiment)
    for job in jobs(path, forceall=True):
        request = requests.of(job.stage, job.cell.parts(), inputs=job.inputs)
        assert all(type(number) is int for number in request)
        assert (request.runtime >= 10, request.mem_mb >= 1000) == (True, True)
        if job.stage == "select":
            assert request.gpu == (experiment.settings("select", job.cell).strategy == "patches")
        else:
            assert request.gpu == (job.stage in ON_GPU)


def test_every_rule_asks():
    """By one helper, which asks for a GPU where a stage runs a network; and of what is SLURM's nothing."""
    text = "".join(path.read_text() for path in sorted((ROOT / "rules").glob("*.smk")))
    assert Counter(re.findall(r'\*\*request\("(\w+)"\)', text)) == dict.fromkeys(ORDER, 1)
    assert "slurm" not in text.lower()


def test_what_the_settings_do_not_tell_is_assumed():
    unknown = {"datasets": {"own": {"data": {"classes": 4}}}, "teachers": {"own": {"architecture": "timm:resnet9999"}}}
    stated = {"classes": 4, "resolution": 224, "train_images": 4000, "val_images": 400}
    of = {"datasets": ["own"], "teachers": ["own"]}
    for stage in ORDER:
        if STAGES[stage].families and "recover" not in STAGES[stage].families:
            continue
        request = asked(stage, unknown, **of)
        assert all(type(number) is int for number in request)
        assert request == asked(stage, unknown | {"datasets": {"own": {"data": stated}}}, **of)


def test_a_job_without_an_estimate_gets_a_default():
    default = rates.table()["asked"]["time"]["unknown"]
    assert asked("barycenter", {"barycenter": {"solver": "cuturi-doucet", "weights": "free"}}).runtime == default
    requests = Requests(matrix())
    assert requests.asked("student", UNKNOWN).runtime == default
    assert requests.of("polish", {"dataset": "cifar10"}).runtime == default
    nobody = {"dataset": "x", "teacher": "y", "method": "z", "ipc": "7", "seed": "3", "block": "classes0-1"}
    assert requests.of("recover", nobody).runtime == default


ASKING = """
import sys
from pathlib import Path
from wmdd.cost.resources import Requests
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.stages import ORDER
found = Requests(Experiment.read(Path("config/imagenet.yaml")))
place = dict(dataset="imagenet-1k", teacher="resnet18", method="wmdd", ipc="1", seed="0", block="classes0-9")
place |= dict(student="resnet18", protocol="paper", generator="vae", expert="convnet3")
print(sum(found.of(stage, place).mem_mb > 0 for stage in ORDER))
print({"torch", "h5py", "pandas", "snakemake"} & {*sys.modules})
"""


def test_neither_torch_nor_any_file_is_asked():
    done = subprocess.run([sys.executable, "-c", ASKING], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{len(ORDER)}\nset()\n"


# Enough


def test_the_study_of_cifar10_would_have_fitted(tmp_path):
    """With a fifth to spare, and no more than twice what it took, of the largest job of each stage."""
    text, measured = (ROOT / "docs/results/cifar10/cost.md").read_text(), {}
    for row in re.findall(r"^\| cifar10 .*$", text, re.MULTILINE):
        _, _, _, stage, _, _, seconds, peak = (cell.strip() for cell in row.strip("| ").split("|"))
        stage = "select" if stage == "images" else stage
        measured[stage] = tuple(map(max, measured.get(stage, (0, 0)), (float(seconds), float(peak))))
    assert {"data", "teacher", "features", "recover", "student"} <= measured.keys()
    path = tmp_path / "cifar10.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load((ROOT / "config/cifar10.yaml").read_text()) | ON_CPU))
    requests, every = Requests(Experiment.read(path)), jobs(path, forceall=True)
    for stage, (seconds, peak) in measured.items():
        several = [requests.first(job.stage, job.cell) for job in every if job.stage == stage]
        runtime, memory, _ = map(max, zip(*several, strict=True))
        assert 1.2 * peak <= memory <= 2 * peak, stage
        assert 60 * runtime >= 1.2 * seconds, stage


def test_other_measured_jobs_would_have_fitted(monkeypatch):
    """docs/results/datasets.md; and many classes, streamed, of 16 px and width 8: benchmarks/results/scale-cpu-*.json."""
    for name, resolution, peaks in (
        ("imagenette", 128, {"data": 674, "teacher": 1985, "features": 646}),
        ("tiny-imagenet", 64, {"data": 658, "teacher": 1169, "features": 686}),
    ):
        content = {"datasets": {name: {"data": {"resolution": resolution}}}, **ON_CPU}
        for stage, peak in peaks.items():
            assert asked(stage, content, datasets=[name], teachers=["resnet18-w16"]).mem_mb >= 1.2 * peak
    monkeypatch.setenv("WMDD_RESIDENT_MB", "16")
    for classes, images in (1000, 160), (10_000, 16):
        rows = json.loads((ROOT / f"benchmarks/results/scale-cpu-{classes}.json").read_text())["rows"]
        about = {"classes": classes, "resolution": 16, "train_images": classes * images, "val_images": classes}
        for name, row in rows[f"{classes} x {images}"].items():
            stage, _, ipc = name.partition(", IPC ")
            request = asked(stage, dataset(**about) | ON_CPU, datasets=["d"], ipc=[int(ipc or 1)])
            assert request.mem_mb >= 1.2 * row["peak_memory_mb"]


# More for more


OF_D = {"datasets": ["d"], "teachers": ["resnet18"], "students": ["resnet18"], "ipc": [10]}
MTT = {"methods": ["mtt-cifar10-ipc1"]}
WIDER = {"teachers": {"resnet18": {"width": 128}}, "students": {"resnet18": {"width": 128}}}
WHITENED = {"expert": {"whiten": True}, "student": {"whiten": True}}


def blocks(size):
    content = dataset()
    content["datasets"]["d"]["classes_per_block"] = size
    return content


def iterating(method, **settings):
    return {"methods": {method: {"match": settings}}} | ON_CPU


NOISE = {"match": {"init": "noise", "student_steps": 5}} | ON_CPU
MORE = [  # stages, two experiments, the cells of both; whether the second takes longer, and how many MB more it needs at least
    ("data teacher features", dataset(), dataset(train_images=2_000_000), OF_D, {}, True, float("-inf")),
    ("recover", blocks(10), blocks(100), OF_D | {"ipc": [50]}, {}, True, 0.6 * 1.3 * 4500 * 0.75),  # MB an image
    ("recover", blocks(100), blocks(1000), OF_D | {"ipc": [50]}, {}, True, 0.6 * 1.3 * 45_000 * 0.75),
    ("recover relabel student images", blocks(100), blocks(100), OF_D, {"ipc": [200]}, True, 1),
    ("teacher recover student", dataset() | ON_CPU, dataset(resolution=224) | ON_CPU, OF_D, {}, False, 1),
    ("teacher recover student", dataset() | ON_CPU, dataset() | ON_CPU | WIDER, OF_D, {}, False, 1),
    ("expert", ON_CPU, ON_CPU | {"expert": {"epochs": 500}}, MTT, {}, True, 1.3 * 450 * 1.22),  # MB an epoch
    ("expert match student", ON_CPU, ON_CPU | WHITENED, MTT, {}, False, 1.2 * 449),  # measured at 32 px
    ("match", iterating("dm", iterations=100), iterating("dm", iterations=1000), {"methods": ["dm"]}, {}, True, 0),
    ("match", iterating("mtt", iterations=100), iterating("mtt", iterations=1000), {"methods": ["mtt"]}, {}, True, 0),
    ("match", iterating("mtt", student_steps=9), iterating("mtt", student_steps=99), {"methods": ["mtt"]}, {}, True, 0),
    ("match", NOISE, NOISE, {"methods": ["dm"], "ipc": [1]}, {"ipc": [50]}, True, 1),
    ("match", NOISE, NOISE, {"methods": ["mtt"], "ipc": [1]}, {"ipc": [50]}, True, 1),
]


@pytest.mark.parametrize(("stages", "few", "many", "cell", "changed", "longer", "more"), MORE)
def test_more_takes_more(stages, few, many, cell, changed, longer, more):
    for stage in stages.split():
        less, most = asked(stage, few, **cell), asked(stage, many, **cell | changed)
        assert most.runtime > less.runtime or not longer
        assert most.mem_mb - less.mem_mb >= more


def test_what_is_held_in_memory_is_asked_for_and_what_is_streamed_is_not(monkeypatch):
    few, some, many = (dataset(train_images=n) for n in (10_000, 80_000, 1_000_000))
    memory = [asked("teacher", content, **OF_D).mem_mb for content in (few, some, many)]
    assert memory[1] - memory[0] == pytest.approx(1.3 * 70_000 * 3 * 128**2 / 2**20, abs=200)
    assert memory[2] < memory[0]
    monkeypatch.setenv("WMDD_RESIDENT_MB", "100000")
    assert asked("teacher", many, **OF_D).mem_mb > 40_000
    monkeypatch.setenv("WMDD_RESIDENT_MB", "lots")  # which the stage refuses
    assert asked("teacher", many, **OF_D).mem_mb == memory[2]


def test_a_retry_asks_for_more_but_never_more_than_a_node_could_have():
    found = Requests(matrix())
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


# GPUs


def test_gpus_are_asked_for_unless_the_engine_is_told_not_to():
    gpus = {"teachers": {"resnet18-w8": {"gpus": 4}}}
    of_family = {"latent": "ddoq", "match": "mtt-cifar10-ipc1", "select": "random"}
    for stage in ORDER:
        methods = [of_family.get(family, "wmdd") for family in STAGES[stage].families[:1]] or ["wmdd"]
        wanted = 4 if stage == "teacher" else int(stage in ON_GPU and stage != "select")
        assert asked(stage, gpus, methods=methods).gpu == wanted
        assert asked(stage, gpus | ON_CPU, methods=methods).gpu == 0
    assert asked("select", methods=["patches"]).gpu == 1
    assert asked("teacher", ON_CPU).mem_mb < asked("teacher").mem_mb, "what runs on a CPU needs no memory for a GPU"


def test_a_teacher_on_several_gpus_needs_its_share_of_the_time(tmp_path):
    content = dataset(train_images=2_000_000, storage="pixels")
    one, four = (asked("teacher", content | {"teachers": {"resnet18": {"gpus": n}}}, **OF_D) for n in (1, 4))
    assert one.runtime == pytest.approx(4 * four.runtime, rel=0.1)
    (tmp_path / "t.pt").touch()
    adopted = {"teachers": {"resnet18": {"gpus": 4, "weights": str(tmp_path / "t.pt")}}}
    assert asked("teacher", content | adopted, **OF_D).gpu == 1


# The plan


def test_more_files_make_a_larger_report():
    found = Requests(matrix())
    few, many = (found.of("report", {}, inputs=inputs).mem_mb for inputs in (10, 4000))
    assert many - few == pytest.approx(1.3 * 3990 / 4, abs=100)


def test_the_plan_tells_what_is_asked_for():
    experiment = Experiment.read(ROOT / "config/imagenet.yaml")
    blocks = [("recover", "classes0-49", 100), ("recover", "classes0-999", 1), ("features_part", "classes0-124", None)]
    cells = [Cell("imagenet-1k", "resnet18", "wmdd", ipc, 0, block=block) for _, block, ipc in blocks]
    every = [Job(rule, (Path(block, rule),), cell) for (rule, block, _), cell in zip(blocks, cells, strict=True)]
    every += [Job("report", (Path("table.md"),), inputs=100)]
    requests, planned = Requests(experiment), plan(every, Shapes(experiment), rates.device("h200"))
    lines = render(requests, planned).splitlines()
    assert lines[0].endswith("(for a100):")
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:])
    assert head == ["job", "jobs", "classes a job", "longest on h200", "time limit", "memory", "GPUs"]
    longest = max(cost.seconds for job, cost in planned.jobs if job.stage == "recover")
    limit = max(requests.first("recover", cell).runtime for cell in cells[:2])
    assert rows[0][:3] == ["features_part", "1", "125"]
    assert rows[1][:5] == ["recover", "2", "50 to 1000", f"{longest / 60:.1f} min", f"{limit} min"]
    assert rows[2][:3] == ["report", "1", ""]
    assert [row[-1] for row in rows] == ["1", "1", ""]
