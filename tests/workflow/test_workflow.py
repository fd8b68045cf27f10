"""The real workflow on a tiny subset: results, determinism, blocks, provenance, report, mistakes."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from wmdd.artifacts import hdf5, model_files
from wmdd.workflow.dag import jobs

from .conftest import ENTRY, REPOSITORY, Workspace

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
SEED = "results/digits/nano/wmdd/ipc2/seed0"
TEACHER = ("results", "model.safetensors"), ("logs", "teacher.log")


def test_tables_and_pictures_are_there(finished: Workspace) -> None:
    table = pd.read_csv(finished.root / "results/report/table.csv")
    assert set(table["method"]) == {"wmdd", "sre2l", "random", "kmeans-medoid"}
    assert set(table["labels"]) == {"soft", "hard"}
    assert table["mean"].between(0, 100).all()
    text = (finished.root / "results/report/table.md").read_text()
    assert "| soft " in text
    assert "| hard " in text
    assert "teacher `results/digits/nano/teacher/seed0/model.safetensors`" in text
    pictures = list(finished.root.glob("results/report/images/**/*.png"))
    assert len(pictures) == 4
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    costs = (finished.root / "results/report/cost.md").read_text()
    for stage in ("data", "teacher", "features", "barycenter", "recover", "relabel", "student"):
        assert f"| {stage} " in costs


def test_the_last_epoch_of_a_student_counts(finished: Workspace) -> None:
    student = finished.root / "results/digits/nano/random/ipc2/seed0/student/nano/short/run0.json"
    result, history = json.loads(student.read_text())["result"], pd.read_csv(student.with_suffix(".csv"))
    assert history["epoch"].tolist() == list(range(1, 13))
    assert result["top1"] == history["top1"].iloc[-1], "not the best"
    assert result["best_top1"] == history["top1"].max()


def test_same_settings_same_bytes(finished: Workspace, fresh: Workspace) -> None:
    patterns = ("data/*.h5", "results/**/*.h5", "results/**/*.safetensors", "results/**/run0.json", "results/**/*.png")
    fresh.snakemake(f"{SEED}/student/nano/short/run0.json", "results/report/images/digits/nano/wmdd/ipc2-seed0.png")
    again, first = fresh.contents(*patterns), finished.contents(*patterns)
    assert len(again) >= 10
    assert {name: first[name] == content for name, content in again.items()} == dict.fromkeys(again, True)


def test_images_do_not_depend_on_the_block_size(run: Workspace) -> None:
    sets = []
    run.change("datasets.digits.recover.iterations", 4)
    for size in (5, 10):
        run.change("datasets.digits.classes_per_block", size)
        assert run.pending(f"{SEED}/images.h5")["recover"] == 10 // size
        run.snakemake(f"{SEED}/images.h5")
        sets.append(hdf5.load(run.root / SEED / "images.h5")[0])
    assert np.array_equal(sets[0]["weights"], sets[1]["weights"])
    difference = np.abs(sets[0]["images"].astype(int) - sets[1]["images"].astype(int))
    assert difference.max() <= 1, "more than a rounding step of a pixel"
    assert (difference > 0).mean() < 0.01


def test_students_of_a_job_are_those_of_jobs_of_their_own(finished: Workspace, run: Workspace) -> None:
    run.change("matrix", [ENTRY | {"runs": 2, "methods": ["random"]}])
    assert run.changed("runs_per_job", 2)["student"] == 1
    student = "results/digits/nano/random/ipc2/seed0/student/nano/short/run{}.json"
    run.snakemake("results/report/table.csv")
    first, second = (json.loads((run.root / student.format(number)).read_text()) for number in (0, 1))
    alone = json.loads((finished.root / student.format(0)).read_text())
    assert [first["identity"]["run"], second["identity"]["run"]] == [0, 1]
    assert first["result"] == alone["result"]
    assert second["result"] != alone["result"]
    assert pd.read_csv(run.root / "results/report/table.csv")[["n", "students"]].values.tolist() == [[1, 2]]
    run.change("runs_per_job", 1)
    pending = run.pending("--rerun-triggers", "mtime", "--", "results/report/table.csv")
    assert pending == {}, "the files are the same ones"


def test_values_that_no_path_can_hold_may_be_swept(run: Workspace) -> None:
    run.change("matrix", [ENTRY | {"methods": ["start", "prompt"]}])
    methods = {
        "start": {"base": "wmdd", "recover": {"init": ["noise", "method:random"]}},
        "prompt": {"base": "ddoq", "decode": {"prompt": ["a photo of {name}", "{name}"]}},
    }
    pending = run.changed("methods", methods)
    assert (pending["recover"], pending["decode"], pending["student"]) == (4, 4, 4), "two blocks each"


def test_every_artifact_says_what_made_it(finished: Workspace) -> None:
    results = finished.root / "results/digits/nano"
    files = [finished.root / "data/digits.h5", *results.glob("**/*.h5")]
    metas = {file: hdf5.load_meta(file) for file in files}
    metas |= {file: model_files.load_model(file)[1] for file in results.glob("**/*.safetensors")}
    metas |= {file: json.loads(file.read_text()) for file in results.glob("**/run0.json")}
    assert len(metas) >= 18
    for file, meta in metas.items():
        assert {"stage", "settings", "identity", "inputs", "versions", "revision", "code"} <= set(meta), file
        assert meta["revision"] == "test"
        assert re.fullmatch(r"\d+\.\d+.*", meta["versions"]["torch"])
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in meta["inputs"].values()), file
    seed = finished.root / SEED
    model = model_files.load_model(results / "teacher/seed0/model.safetensors")[1]
    assert model["inputs"]["data"] == metas[finished.root / "data/digits.h5"]["digest"]
    assert metas[seed / "labels/short.h5"]["inputs"] == {
        "images": metas[seed / "images.h5"]["digest"],
        "teacher": model["digest"],
    }
    assert metas[seed / "student/nano/short/run0.json"]["inputs"]["labels"] == metas[seed / "labels/short.h5"]["digest"]
    images = metas[seed / "images.h5"]["recover"]
    assert images["settings"]["iterations"] == 40
    assert images["inputs"]["teacher"] == [model["digest"]] * 2, "of the blocks, which are deleted"


def test_logged_command_can_be_pasted(run: Workspace) -> None:
    target = f"{SEED}/barycenter/classes0-4.h5"
    output = run.root / target
    content = output.read_bytes()
    output.unlink()
    shown = run.snakemake("--dry-run", "--printshellcmds", target).stdout
    command = re.search(r"python -m wmdd barycenter .*", shown).group().split(" > ")[0]
    command = command.replace("python", sys.executable, 1)
    subprocess.run(command.split(), cwd=run.root, env=run.environment, check=True, capture_output=True)
    assert output.read_bytes() == content


def test_snakemake_report_has_tables_and_captions(run: Workspace) -> None:
    run.snakemake("--report", "report.html")
    page = (run.root / "report.html").read_text()
    assert "Distilled images" in page
    assert "images per class" in page
    assert "Top-1 accuracy of students that were trained from scratch" in page
    assert len(page) > 100_000


def test_the_workflow_is_found_where_the_catalogue_of_snakemake_looks(fresh: Workspace) -> None:
    (fresh.root / "workflow").mkdir()
    shutil.copy(REPOSITORY / "workflow/Snakefile", fresh.root / "workflow")
    (fresh.root / "Deployed").write_text(f'''
module wmdd:
    snakefile: "{fresh.root}/workflow/Snakefile"
    prefix: "out"
    config: config

use rule * from wmdd
''')
    jobs = fresh.pending()
    assert jobs.pop("all") == 1
    assert fresh.pending("--snakefile", "workflow/Snakefile") == jobs | {"everything": 1}
    target = "out/results/report/index.html"
    assert fresh.pending("--snakefile", "Deployed", target)["student"] == jobs["student"]


def test_another_workflow_may_have_this_one_as_a_module(fresh: Workspace) -> None:
    """Beside its sources or in another folder, with a prefix of its own before all that it makes."""
    module = f'''
module wmdd:
    snakefile: "{fresh.root}/Snakefile"
    prefix: "out"
    config: config

use rule * from wmdd as w_*
'''
    for folder in ".", "elsewhere":
        (fresh.root / folder).mkdir(exist_ok=True)
        (fresh.root / folder / "Module").write_text(module)
        arguments = ("--snakefile", f"{folder}/Module", "--directory", folder, "out/results/report/index.html")
        assert fresh.pending(*arguments)["w_student"] == 5
    fresh.config = fresh.config | {"matrix": [ENTRY | {"methods": ["wmdd", "random"]}]}
    fresh.snakemake(*arguments)
    assert (fresh.root / "elsewhere/out/results/report/index.html").is_file()
    made = {path.name for path in (fresh.root / "elsewhere").iterdir() if path.name[0] != "."}
    assert made == {"Module", "out"}


def test_any_folder_may_have_the_sources_and_the_demo_runs_where_no_file_is_named(fresh: Workspace) -> None:
    sources = fresh.root.with_name("it's {my} repo")
    fresh.root.rename(sources)
    work = Workspace(sources.with_name("elsewhere"))
    work.root.mkdir()
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(sources / "Snakefile"), "--cores", "1"]
    dry_run = [*command, "--config", "experiment=mine", "--dry-run", "--printshellcmds"]
    result = subprocess.run(dry_run, cwd=work.root, env=work.environment, capture_output=True, text=True, check=True)
    (page,) = [line for line in (result.stdout + result.stderr).splitlines() if "-m wmdd page" in line]
    flags = shlex.split(page.partition("Shell command: ")[2])
    assert flags[flags.index("--experiment") + 1] == "mine"
    assert flags[flags.index("--published") + 1] == str(sources / "config/published.yaml")


def test_all_that_a_job_reads_is_an_input(fresh: Workspace) -> None:
    """Files lie in a storage: jobs see copies of what their rules name, and of nothing else."""
    if shutil.which("rsync") is None:
        pytest.skip("no rsync here, by which the storage copies")
    storage = fresh.root.with_name("storage")
    fresh.config = fresh.config | {"matrix": [ENTRY | {"methods": ["wmdd", "random"]}]}
    fresh.snakemake("--default-storage-provider", "fs", "--default-storage-prefix", str(storage))
    assert (storage / "results/report/index.html").is_file()
    assert not (fresh.root / "results").exists()


def test_rules_pass_the_linter(fresh: Workspace) -> None:
    result = fresh.snakemake("--lint", check=False)
    assert "Congratulations" in result.stdout + result.stderr, result.stdout + result.stderr


def test_a_mistake_in_the_configuration_is_one_line_and_what_a_preset_loses_a_warning(fresh: Workspace) -> None:
    config = fresh.config
    fresh.change("recover", {"regularisation": 3})
    result = fresh.snakemake("--dry-run")
    says = "warning: sre2l on digits: recover.regularisation is 3.0 by a general section of the file"
    assert (result.stdout + result.stderr).count(says) == 1
    for change, message in (
        ({"matrix": []}, "the experiment has an empty matrix"),
        ({"matrx": []}, "unknown key matrx; did you mean 'matrix'?"),
    ):
        fresh.config = config | change
        assert message in fresh.mistake()


def refusal(place: Workspace, target: str, log: str) -> str:
    """Return the log of a job that is refused."""
    assert place.snakemake(target, check=False).returncode
    text = (place.root / log).read_text()
    assert "Traceback" not in text
    return text


def test_a_missing_folder_is_one_line_and_nothing_is_left(fresh: Workspace) -> None:
    fresh.change("matrix", [ENTRY | {"datasets": ["mine"]}])
    fresh.change("datasets.mine", {"data": {"source": "imagefolder", "root": "nowhere", "classes": 3}})
    assert re.search("wmdd data: error: .*nowhere", refusal(fresh, "all", "logs/data/mine.log"))
    assert not list(fresh.root.glob("data/*"))


def test_a_weak_teacher_stops_the_run_and_is_kept(fresh: Workspace) -> None:
    target, log = (f"{top}/digits/nano/teacher/seed0/{name}" for top, name in TEACHER)
    fresh.change("teachers.nano.epochs", 1)
    fresh.change("datasets.digits.teacher.min_accuracy", 0.99)
    assert "below min_accuracy 99.0%" in refusal(fresh, target, log)
    fresh.change("datasets.digits.teacher.min_accuracy", 0)
    fresh.snakemake(target)
    assert "going on from" in (fresh.root / log).read_text(), "the trained teacher was thrown away"


def test_the_shipped_experiments_whose_jobs_are_pinned_nowhere_build_their_dag(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    pinned = {"config", "cifar10", "imagenet", "imagenette", "latent", "match", "published"}  # in test_dag
    experiments = [path for path in (REPOSITORY / "config").glob("*.yaml") if path.stem not in pinned]
    for path in (*experiments, *(REPOSITORY / "config/studies").glob("*.yaml")):
        assert any(job.stage == "student" for job in jobs(path, forceall=True)), path
