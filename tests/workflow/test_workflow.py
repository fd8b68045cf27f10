"""The real workflow on a tiny subset: results, determinism, blocks, provenance, report, mistakes."""

import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from wmdd.artifacts import hdf5, model_files

from .conftest import REPOSITORY, TINY, Workspace, workspace

pytestmark = [pytest.mark.workflow, pytest.mark.slow]


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


def test_students_beat_chance_under_soft_labels(finished: Workspace) -> None:
    result = json.loads(finished.path("results/digits/nano/random/ipc2/seed0/student/nano/short/run0.json").read_text())
    history = pd.read_csv(finished.path("results/digits/nano/random/ipc2/seed0/student/nano/short/run0.csv"))
    assert history["epoch"].tolist() == list(range(1, 13))
    assert result["result"]["top1"] == history["top1"].iloc[-1], "the last epoch counts, not the best"
    assert result["result"]["best_top1"] == history["top1"].max()


def test_same_settings_same_bytes(finished: Workspace, fresh: Workspace) -> None:
    patterns = ("data/*.h5", "results/**/*.h5", "results/**/*.safetensors", "results/**/run0.json", "results/**/*.png")
    student = "results/digits/nano/wmdd/ipc2/seed0/student/nano/short/run0.json"
    fresh.snakemake(student, "results/report/images/digits/nano/wmdd/ipc2-seed0.png")
    again, first = fresh.contents(*patterns), finished.contents(*patterns)
    assert len(again) >= 10
    assert {name: first[name] == content for name, content in again.items()} == dict.fromkeys(again, True)


def test_images_do_not_depend_on_the_block_size(finished: Workspace, tmp_path) -> None:
    config = json.loads(json.dumps(TINY))
    config["datasets"]["digits"] |= {"classes_per_block": 1, "recover": {"iterations": 4}}
    made = {}
    for size in (1, 5):
        config["datasets"]["digits"]["classes_per_block"] = size
        run = workspace(tmp_path / str(size), config)
        target = "results/digits/nano/wmdd/ipc2/seed0/images.h5"
        run.snakemake(target)
        assert len(list(run.root.glob("results/digits/nano/wmdd/ipc2/seed0/recover/*.h5"))) == 10 // size
        made[size], _ = hdf5.load(run.root / target)
    assert np.array_equal(made[1]["weights"], made[5]["weights"])
    difference = np.abs(made[1]["images"].astype(int) - made[5]["images"].astype(int))
    assert difference.max() <= 1, "more than a rounding step of a pixel"
    assert (difference > 0).mean() < 0.01


def test_students_of_a_job_are_those_of_jobs_of_their_own(finished: Workspace, run: Workspace) -> None:
    config = run.config
    config["matrix"][0] |= {"runs": 2, "methods": ["random"], "protocols": ["short"]}
    run.config = config | {"runs_per_job": 2}
    assert run.pending()["student"] == 1
    student = "results/digits/nano/random/ipc2/seed0/student/nano/short/run{}.json"
    run.snakemake()
    first, second = (json.loads((run.root / student.format(number)).read_text()) for number in (0, 1))
    alone = json.loads((finished.root / student.format(0)).read_text())
    assert [first["identity"]["run"], second["identity"]["run"]] == [0, 1]
    assert first["result"] == alone["result"]
    assert second["result"] != alone["result"]
    assert pd.read_csv(run.root / "results/report/table.csv")[["n", "students"]].values.tolist() == [[1, 2]]
    run.config = config | {"runs_per_job": 1}
    assert run.pending("--rerun-triggers", "mtime") == {}, "the files are the same ones"


def test_values_that_no_path_can_hold_may_be_swept(run: Workspace) -> None:
    run.config = run.config | {
        "matrix": [run.config["matrix"][0] | {"methods": ["start", "prompt"], "protocols": ["short"]}],
        "methods": {
            "start": {"base": "wmdd", "recover": {"init": ["noise", "method:random"]}},
            "prompt": {"base": "ddoq", "decode": {"prompt": ["a photo of {name}", "{name}"]}},
        },
    }
    pending = run.pending()
    assert {stage: pending[stage] for stage in ("recover", "decode", "student")} == {
        "recover": 4,  # two blocks each
        "decode": 4,
        "student": 4,
    }


def test_every_artifact_says_what_made_it(finished: Workspace) -> None:
    results = finished.root / "results/digits/nano"
    files = [finished.root / "data/digits.h5", *results.glob("**/*.h5")]
    metas = {file: hdf5.load_meta(file) for file in files}
    metas |= {file: model_files.load_model(file)[1] for file in results.glob("**/*.safetensors")}
    metas |= {file: json.loads(file.read_text()) for file in results.glob("**/run0.json")}
    assert len(metas) > 20
    for file, meta in metas.items():
        assert {"stage", "settings", "identity", "inputs", "versions", "revision", "code"} <= set(meta), file
        assert meta["revision"] == "test"
        assert re.fullmatch(r"\d+\.\d+.*", meta["versions"]["torch"])
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in meta["inputs"].values()), file
    seed = results / "wmdd/ipc2/seed0"
    model = model_files.load_model(results / "teacher/seed0/model.safetensors")[1]
    assert model["inputs"]["data"] == metas[finished.root / "data/digits.h5"]["digest"]
    assert metas[seed / "labels/short.h5"]["inputs"] == {
        "images": metas[seed / "images.h5"]["digest"],
        "teacher": model["digest"],
    }
    assert metas[seed / "student/nano/short/run0.json"]["inputs"]["labels"] == metas[seed / "labels/short.h5"]["digest"]
    assert metas[seed / "recover/classes0-4.h5"]["settings"]["iterations"] == 40


def test_logged_command_can_be_pasted(run: Workspace) -> None:
    target = "results/digits/nano/wmdd/ipc2/seed0/barycenter/classes0-4.h5"
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
    assert len(page) > 100_000


@pytest.mark.parametrize("folder", [".", "elsewhere"])
def test_another_workflow_may_have_this_one_as_a_module(fresh: Workspace, folder: str) -> None:
    """Beside its sources or in another folder, with a prefix of its own before all that it makes."""
    module = f'''
module wmdd:
    snakefile: "{fresh.root}/Snakefile"
    prefix: "out"
    config: config

use rule * from wmdd as w_*
'''
    (fresh.root / folder).mkdir(exist_ok=True)
    (fresh.root / folder / "Module").write_text(module)
    arguments = ("--dry-run", "--snakefile", f"{folder}/Module", "--directory", folder, "out/results/report/index.html")
    result = fresh.snakemake(*arguments)
    assert re.search(r"^w_student +8$", result.stdout + result.stderr, re.MULTILINE)


def test_rules_pass_the_linter(fresh: Workspace) -> None:
    result = fresh.snakemake("--lint", check=False)
    assert "Congratulations" in result.stdout + result.stderr, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matrix": []}, "the experiment has an empty matrix"),
        ({"matrx": []}, "unknown key matrx; did you mean 'matrix'?"),
        ({"methods": {"mine": {"base": "wmdd", "recover": {"regularization": 3}}}}, "did you mean 'regularisation'?"),
        ({"matrix": [TINY["matrix"][0] | {"ipc": [0]}]}, "matrix.0.ipc.0: Input should be greater than or equal to 1"),
        ({"matrix": [TINY["matrix"][0] | {"methods": ["wmd"]}]}, "unknown name 'wmd' in methods; did you mean 'wmdd'?"),
    ],
)
def test_mistake_in_the_configuration_is_one_line(fresh: Workspace, change: dict, message: str) -> None:
    fresh.config = fresh.config | change
    result = fresh.snakemake("--dry-run", check=False)
    assert result.returncode != 0
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_what_the_file_replaces_of_a_presets_method_is_a_warning(fresh: Workspace) -> None:
    says = "warning: sre2l on digits: recover.regularisation is 3.0 by a general section of the file"
    result = fresh.snakemake("--dry-run")
    assert says not in result.stdout + result.stderr
    fresh.config = fresh.config | {"recover": {"regularisation": 3}}
    result = fresh.snakemake("--dry-run")
    assert (result.stdout + result.stderr).count(says) == 1


def test_missing_folder_is_one_line_and_nothing_is_left(fresh: Workspace) -> None:
    config = fresh.config
    config["datasets"]["mine"] = {"data": {"source": "imagefolder", "root": "nowhere", "classes": 3}}
    config["matrix"][0]["datasets"] = ["mine"]
    fresh.config = config
    result = fresh.snakemake(check=False)
    assert result.returncode != 0
    log = (fresh.root / "logs/data/mine.log").read_text()
    assert "wmdd data: error: " in log
    assert "nowhere" in log
    assert "Traceback" not in log
    assert not list(fresh.root.glob("data/*"))


def test_weak_teacher_stops_the_run(fresh: Workspace) -> None:
    config = fresh.config
    config["teachers"]["nano"]["epochs"] = 1
    config["datasets"]["digits"]["teacher"]["min_accuracy"] = 0.99
    fresh.config = config
    result = fresh.snakemake("results/digits/nano/teacher/seed0/model.safetensors", check=False)
    assert result.returncode != 0
    log = (fresh.root / "logs/digits/nano/teacher/seed0/teacher.log").read_text()
    assert "below min_accuracy 99.0%" in log
    assert "Traceback" not in log
    config["datasets"]["digits"]["teacher"]["min_accuracy"] = 0
    fresh.config = config
    fresh.snakemake("results/digits/nano/teacher/seed0/model.safetensors")
    log = (fresh.root / "logs/digits/nano/teacher/seed0/teacher.log").read_text()
    assert "going on from" in log, "the trained teacher was thrown away with the gate's refusal"


def test_demo_and_study_configurations_build_their_dag() -> None:
    for config in sorted(set((REPOSITORY / "config").glob("*.yaml")) - {REPOSITORY / "config/published.yaml"}):
        command = [sys.executable, "-m", "snakemake", "--dry-run", "--forceall", "--configfile", str(config)]
        result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-2000:]
        assert "student" in result.stdout
