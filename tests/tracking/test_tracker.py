"""Runs are tracked by wandb without a network, or by nobody without wandb; never with a key on disk."""

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from wmdd.artifacts import hdf5_writer
from wmdd.base.preemption import AGAIN
from wmdd.tracking import tracker as tracking
from wmdd.tracking.artifact import artifact_name, describe, kind_of, parts_of
from wmdd.tracking.tracker import WandbTracker, run_id, start, without_key

ROOT = Path(__file__).parents[2]
KEY = "0123456789abcdef" * 2 + "deadbeef"  # 40 hexadecimal digits, as a real one has


def python(source, folder, **variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(folder), **variables}
    command = [sys.executable, "-c", source]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


# Without wandb

DISABLED = """
from pathlib import Path
from wmdd.tracking import tracker as tracking
from wmdd.jobs.job import job
from wmdd.settings.select import SelectSettings

tracker = tracking.start(Path("x.h5"), "select", {"a": 1}, "key")
tracker.log({"loss": 1.0}, 3)
tracker.log_images("images", [], [])
tracker.log_table("scores", [], [])
tracker.log_code({})
tracker.log_artifact(Path("x.h5"), {})
tracker.alert("a", "b")
tracker.finish()
with job("select", Path("out/images.h5"), [SelectSettings()], {}, seed=0) as stage_job:
    stage_job.tracker.log({"loss": 1.0})
    stage_job.output.write_text("made")
print(type(tracker).__name__, [name for name in sys.modules if name.startswith("wandb")])
"""


def test_disabled_means_that_wandb_is_not_even_imported(tmp_path):
    (tmp_path / "out").mkdir()
    done = python("import sys\n" + DISABLED, tmp_path, WANDB_MODE="disabled")
    assert (done.returncode, done.stdout) == (0, "NullTracker []\n"), done.stderr
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["images.cost.json", "images.h5", "out"]


# With wandb, offline: a whole chain of which one output is made twice

CHAIN = """
from pathlib import Path
import numpy as np
from wmdd.artifacts import hdf5, hdf5_writer
from wmdd.jobs.job import job
from wmdd.settings.barycenter import BarycenterSettings
from wmdd.settings.engine import EngineSettings
from wmdd.settings.recover import RecoverSettings
from wmdd.settings.student import StudentSettings
from wmdd.settings.teacher import TeacherSettings

CELL = Path("results/digits/resnet18-w8/wmdd/ipc10/seed3")
TEACHER = Path("results/digits/resnet18-w8/teacher/seed1")
CPU = EngineSettings(device="cpu", precision="fp32")

def run(stage, output, settings, inputs, engine=None, **identity):
    with job(stage, output, settings, inputs, engine, **identity) as stage_job:
        hdf5_writer.save(output, {"x": np.full(8, len(stage))}, stage_job.meta)
        if stage == "barycenter":
            stage_job.tracker.log({"mean/cost": 0.5, "mean/explained": 0.75})
        if stage == "recover":
            for step in range(3):
                stage_job.tracker.log({"loss": 1 / (step + 1)}, step)
            stage_job.tracker.log_images("images", np.zeros((2, 4, 4, 3), np.uint8), ["cat", "dog"])
    return hdf5.load_meta(output)["digest"]

teacher = run("teacher", TEACHER / "model.h5", [TeacherSettings()], {"data": "d" * 64}, CPU, seed=1)
features = run("features", TEACHER / "features.h5", [], {"teacher": teacher})
atoms = run("barycenter", CELL / "barycenter/classes0-9.h5", [BarycenterSettings()], {"features": features}, k=10, seed=3)
for attempt in range(2):
    block = run("recover", CELL / "recover/classes0-9.h5", [RecoverSettings()], {"barycenter": atoms}, CPU, ipc=10, seed=3)
for iterations in (5, 6):
    run("recover", CELL / "recover/classes10-19.h5", [RecoverSettings(iterations=iterations)], {}, CPU, ipc=10, seed=3)
images = run("images", CELL / "images.h5", [], {"0": block})
for name, runs in (("quick", [0]), ("many", [0, 1])):
    output = CELL / f"student/convnet3/{name}/run0.json"
    with job("student", output, [StudentSettings()], {"images": images}, CPU, seed=3, run=runs) as stage_job:
        for number in runs:
            stage_job.tracker.log({(f"{number}/" if len(runs) > 1 else "") + "final/top1": 0.25 + number / 2})
        output.write_text("{}")
"""
SET = "wmdd/ipc10/seed3"
RECOVER, STUDENT = f"{SET}/recover/classes0-9", f"{SET}/student/convnet3"
CHANGED = f"{SET}/recover/classes10-19"


def records(folder):
    """The records of an offline run, read back by wandb's own tool, by type."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(folder)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    by_type = {}
    for record in map(json.loads, lines):
        by_type.setdefault(record["type"], []).append(record.get(record["type"]))
    return by_type


def runs_of(folder):
    """The records of all offline runs of a folder."""
    return [records(path) for path in sorted(folder.glob("wandb/offline-run-*")) if path.is_dir()]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A folder in which a whole chain was made, and by name the records of the runs of each output."""
    folder = tmp_path_factory.mktemp("chain")
    variables = {"WANDB_MODE": "offline", "WANDB_PROJECT": "a-project", "WANDB_RUN_GROUP": "a-group"}
    done = python(CHAIN, folder, WANDB_API_KEY=KEY, **variables)
    assert (done.returncode, "wandb can't" in done.stderr) == (0, False), done.stderr
    runs = {}
    for by_type in runs_of(folder):
        name = by_type["run"][0]["display_name"].removeprefix("results/digits/resnet18-w8/")
        runs.setdefault(name, []).append(by_type)
    return folder, runs


def config_of(chain, name):
    return chain[1][name][0]["run"][0]["config"]["update"]


def summary_of(chain, name):
    return {key: value for record in chain[1][name][0]["summary"] for key, value in record["update"].items()}


def artifact_of(chain, name):
    (artifact,) = chain[1][name][0]["artifact"]
    return artifact | {"metadata": json.loads(artifact["metadata"])}


def test_a_run_says_where_it_belongs_and_keeps_its_metrics_and_pictures(chain):
    folder, runs = chain
    first = runs[RECOVER][0]
    (run,) = first["run"]
    assert (run["run_group"], run["job_type"], run["project"]) == ("a-group", "recover", "a-project")
    assert [end["exit_code"] for end in first["exit"]] == [0]
    items = [record["item"] for record in first["history"]]
    losses = {item["step"]: item["loss"] for item in items if "loss" in item}
    assert losses == pytest.approx({0: 1, 1: 1 / 2, 2: 1 / 3})
    assert [metric["step_metric"] for metric in first["metric"] if metric.get("glob_name") == "*"] == ["step"]
    (shown,) = [item for item in items if "images.captions" in item]
    assert shown["images.captions"] == ["cat", "dog"]
    assert all(list(folder.glob(f"wandb/*/files/{name}")) for name in shown["images.filenames"])


def test_the_same_job_continues_its_run_and_a_changed_setting_makes_another(chain):
    ids = {name: [each["run"][0]["run_id"] for each in several] for name, several in chain[1].items()}
    assert (len(ids[RECOVER]), len(set(ids[RECOVER]))) == (2, 1)
    assert (len(ids[CHANGED]), len(set(ids[CHANGED]))) == (2, 2)
    assert len(set().union(*ids.values())) == len(ids) + 1 == 9


def test_settings_the_place_of_an_output_and_digests_of_inputs_become_columns(chain):
    place = {"dataset": "digits", "teacher": "resnet18-w8", "method": "wmdd", "ipc": 10, "seed": 3}
    place |= {"student": "convnet3", "protocol": "quick", "cell": "wmdd ipc10", "stage": "student"}
    config = config_of(chain, f"{STUDENT}/quick/run0")
    assert place | {"device": "cpu", "temperature": 20} == {
        name: config[name] for name in [*place, "device", "temperature"]
    }
    assert len(config["input/images"]) == len(config_of(chain, f"{SET}/images")["input/parts"]) == 64
    assert config_of(chain, RECOVER)["block"] == "classes0-9"
    assert config_of(chain, "teacher/seed1/features")["seed"] == 1


def test_the_scores_and_the_cost_end_in_the_summary_under_one_name(chain):
    assert summary_of(chain, f"{STUDENT}/quick/run0")["final/top1"] == 0.25
    many = summary_of(chain, f"{STUDENT}/many/run0")
    assert (many["0/final/top1"], many["1/final/top1"], many["final/top1"]) == (0.25, 0.75, 0.5)
    found = summary_of(chain, f"{SET}/barycenter/classes0-9")
    cost = json.loads((chain[0] / f"results/digits/resnet18-w8/{SET}/barycenter/classes0-9.cost.json").read_text())
    assert found["mean/explained"] == 0.75
    assert found["cost/peak_memory_mb"] == cost["peak_memory_mb"] > 0


def test_each_stage_says_what_it_made_and_from_what(chain):
    names = ["teacher/seed1/model", "teacher/seed1/features", f"{SET}/barycenter/classes0-9", RECOVER, f"{SET}/images"]
    artifacts = [artifact_of(chain, name) for name in [*names, f"{STUDENT}/quick/run0"]]
    kinds = ["teacher", "features", "barycenter", "recover", "images", "student"]
    assert [artifact["type"] for artifact in artifacts] == kinds
    for before, after in pairwise(artifacts):
        inputs, digest = after["metadata"]["inputs"], before["metadata"]["digest"]
        assert digest in [*inputs.values(), *inputs.get("parts", [])]
        assert digest[:16] in before["aliases"]
    assert artifacts[3]["metadata"]["settings"]["iterations"] == 2000
    assert artifacts[3]["name"] == "digits.resnet18-w8.wmdd.ipc10.seed3.recover.classes0-9"


def test_only_the_distilled_set_takes_its_file_along_and_nothing_is_copied(chain):
    folder, runs = chain
    files = {name: artifact_of(chain, name)["manifest"]["contents"] for name in runs}
    assert {name for name, contents in files.items() if len(contents) > 1} == {f"{SET}/images"}
    (images,) = [entry for entry in files[f"{SET}/images"] if entry["path"] == "images.h5"]
    assert images["local_path"] == str(folder / "results/digits/resnet18-w8" / SET / "images.h5")
    assert list((folder / "wandb").rglob("*.h5")) == []
    assert not (folder / ".local").exists()


def test_no_key_is_written_anywhere(chain):
    files = [path for path in chain[0].rglob("*") if path.is_file()]
    assert {".wandb", ".log"} <= {path.suffix for path in files}
    keys = KEY.encode(), KEY[::-1].encode()
    assert [path for path in files for content in [path.read_bytes()] if any(key in content for key in keys)] == []


TERMINATED = """
import os, signal
from pathlib import Path
from wmdd.jobs.job import job
from wmdd.settings.select import SelectSettings

with job("select", Path("killed.h5"), [SelectSettings()], {}, seed=0) as stage_job:
    stage_job.tracker.log({"loss": 0.125}, 7)
    os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_terminated_job_loses_nothing(tmp_path):
    done = python(TERMINATED, tmp_path, WANDB_MODE="offline")
    assert done.returncode == AGAIN, done.stderr
    (by_type,) = runs_of(tmp_path)
    assert [(record["item"]["step"], record["item"]["loss"]) for record in by_type["history"]] == [(7, 0.125)]
    assert [end["exit_code"] for end in by_type["exit"]] == [AGAIN]
    assert not (tmp_path / "killed.cost.json").exists()


GATED = """
from pathlib import Path
from wmdd.base.errors import WmddError
from wmdd.jobs.job import job
from wmdd.settings.teacher import TeacherSettings

try:
    with job("teacher", Path("model.safetensors"), [TeacherSettings()], {}, seed=0):
        raise WmddError("the teacher reaches 10.0%, below min_accuracy 90.0%")
except WmddError:
    pass
"""


def test_a_teacher_that_stops_the_run_sends_an_alert(tmp_path):
    done = python(GATED, tmp_path, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    (alert,) = runs_of(tmp_path)[0]["alert"]
    assert (alert["level"], alert["text"]) == ("ERROR", "the teacher reaches 10.0%, below min_accuracy 90.0%")


@pytest.mark.parametrize(("device", "recorded"), [("NVIDIA H200", True), ("cpu", False), (None, False)])
def test_jobs_on_a_gpu_record_the_metrics_of_the_machine(here, monkeypatch, device, recorded):
    settings = []
    run = SimpleNamespace(define_metric=lambda *_, **__: None)
    wandb = SimpleNamespace(
        init=lambda **named: settings.append(named["settings"]) or run, Settings=lambda **named: named
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setenv("WANDB_MODE", "offline")
    start(Path("x.h5"), "recover", {"device": device} if device else {}, "key")
    assert [not each["x_disable_stats"] for each in settings] == [recorded]


# What an artifact says of itself


def test_an_artifact_says_the_same_whenever_it_was_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    meta = {"stage": "gather", "settings": {}, "identity": {}, "inputs": {"0": "a"}, "code": "c", "revision": "r"}
    assert describe(Path("features.h5"), meta) is None
    for name in ("features", "statistics"):
        hdf5_writer.save(Path(f"{name}.h5"), {name: np.zeros(3)}, {"time": name})
    facts = describe(Path("features.h5"), meta)
    assert facts == describe(Path("features.h5"), meta | {"revision": "other"})
    assert (facts["kind"], set(facts["outputs"])) == ("features", {"features.h5", "statistics.h5"})


def test_places_kinds_and_names():
    place = {"dataset": "d", "teacher": "t", "method": "m", "ipc": 1, "seed": 0, "protocol": "paper"}
    assert parts_of(Path("/far/results/d/t/m/ipc1/seed0/labels/paper.h5")) == place
    assert parts_of(Path("x.h5")) == {}
    kinds = {"gather": "features", "features": "features", "select": "images", "images": "images", "relabel": "relabel"}
    assert {stage: kind_of(stage) for stage in kinds} == kinds
    long = [artifact_name(Path("results") / ("a" * 90) / (letter * 90) / "images.h5") for letter in "bc"]
    assert long[0] != long[1]
    assert all(re.fullmatch(r"[\w.-]{1,128}", name) for name in [*long, artifact_name(Path("/a b/c:d/images.h5"))])


# wandb may fail


class Broken:
    """A run of a wandb that has lost its service."""

    dir, id, project, summary = "wandb/x/files", "id", "p", None

    def __getattr__(self, name):
        raise ConnectionError(f"the service is gone\nkey {KEY}")


def test_what_wandb_cannot_do_ends_no_job(capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracker = WandbTracker.__new__(WandbTracker)
    tracker._stage, tracker._complained, tracker._run = "recover", False, Broken()
    tracker.log({"loss": 1.0}, 3)
    tracker.log_images("images", [], [])
    tracker.log_artifact(ROOT / "README.md", {"stage": "x"})
    tracker.finish()
    said = capsys.readouterr().err
    assert said == "wmdd recover: wandb can't log (ConnectionError: the service is gone key ***); goes on without\n"


def test_a_wandb_that_does_not_start_ends_no_job(tmp_path):
    done = python("import sys; sys.modules['wandb'] = None\n" + DISABLED, tmp_path, WANDB_MODE="offline")
    assert done.stdout.startswith("NullTracker"), done.stderr
    assert "wmdd select: wandb can't start (ModuleNotFoundError" in done.stderr


def test_nothing_like_a_key_is_said(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "local-secret")
    assert without_key(f"a {KEY} b local-secret c wandb_v1_abc") == "a *** b *** c ***"
    monkeypatch.delenv("WANDB_API_KEY")
    assert without_key("x\ny") == "x y"


def test_run_ids_differ_by_folder_path_and_what_the_result_depends_on(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = Path("results/a/images.h5")
    first = run_id(path, "key")
    assert first == run_id(Path("results//a/./images.h5"), "key")
    assert len({first, run_id(path, "other"), run_id(Path("results/b/images.h5"), "key")}) == 3
    shutil.rmtree("wandb")
    assert run_id(path, "key") != first, "a folder of the same path on another machine has other runs"


def test_the_mode_is_offline_unless_set(monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(tracking, "WandbTracker", lambda *arguments: arguments)
    assert start(Path("x"), "recover", {"a": 1}, "key") == (Path("x"), "recover", {"a": 1}, "key")
    assert os.environ["WANDB_MODE"] == "offline"


def test_only_jobs_of_the_tracked_stages_are_runs(monkeypatch):
    monkeypatch.setattr(tracking, "WandbTracker", lambda output, stage, settings, key: stage)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WMDD_TRACKED_STAGES", "teacher student")
    assert start(Path("x"), "student", {}, "") == "student"
    assert isinstance(start(Path("x"), "recover", {}, ""), tracking.NullTracker)
    monkeypatch.setenv("WMDD_TRACKED_STAGES", "")
    assert isinstance(start(Path("x"), "student", {}, ""), tracking.NullTracker)
