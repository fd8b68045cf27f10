"""Runs are tracked by wandb without a network, or by nobody without wandb; never with a key on disk."""

import inspect
import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from wmdd.artifacts import hdf5_writer
from wmdd.artifacts.checkpoint import Checkpoint
from wmdd.base.errors import WmddError
from wmdd.base.preemption import AGAIN
from wmdd.jobs.job import cost_path, job
from wmdd.settings.engine import EngineSettings
from wmdd.settings.recover import SelectSettings
from wmdd.tracking import tracker as tracking
from wmdd.tracking.tracker import (
    NullTracker,
    WandbTracker,
    artifact_name,
    describe,
    kind_of,
    parts_of,
    run_id,
    start,
    without_key,
)

ROOT = Path(__file__).parents[2]
KEY = "0123456789abcdef" * 2 + "deadbeef"  # 40 hexadecimal digits, as a real one has


def python(source, folder, **variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(folder), **variables}
    command = [sys.executable, "-c", source]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


# Without wandb

DISABLED = """
import sys
from pathlib import Path
from wmdd.tracking import tracker as tracking
from wmdd.jobs.job import job
from wmdd.settings.recover import SelectSettings

tracker = tracking.start(Path("x.h5"), "select", {"a": 1})
tracker.log({"loss": 1.0}, 3)
tracker.log_images("images", [], [])
tracker.log_artifact(Path("x.h5"), {})
tracker.finish()
with job("select", Path("out/images.h5"), [SelectSettings()], {}, seed=0) as this:
    this.tracker.log({"loss": 1.0})
    this.output.write_text("made")
print(type(tracker).__name__, "wandb" in sys.modules, [name for name in sys.modules if name.startswith("wandb")])
"""


def test_disabled_means_that_wandb_is_not_even_imported(tmp_path):
    (tmp_path / "out").mkdir()
    done = python(DISABLED, tmp_path, WANDB_MODE="disabled")
    assert (done.returncode, done.stdout) == (0, "NullTracker False []\n"), done.stderr
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["images.cost.json", "images.h5", "out"]


def test_nobody_and_wandb_have_the_same_methods():
    def methods(kind):
        functions = inspect.getmembers(kind, inspect.isfunction)
        return {name: str(inspect.signature(f)) for name, f in functions if not name.startswith("_")}

    assert methods(NullTracker) == methods(WandbTracker) == methods(tracking.Tracker)
    assert set(methods(NullTracker)) == {"log", "log_images", "log_artifact", "finish"}


# With wandb, offline

OFFLINE = """
from pathlib import Path
import numpy as np
from wmdd.tracking import tracker as tracking
from wmdd.jobs.job import job
from wmdd.settings.recover import RecoverSettings, SelectSettings

for attempt in range(2):
    tracker = tracking.start(Path("results/d/images.h5"), "recover", {"lr": 0.25, "crop_scale": [0.08, 1.0], "seed": 3})
    for step in range(3):
        tracker.log({"loss": 1 / (step + 1), "attempt": attempt}, step)
    tracker.log_images("images", np.zeros((2, 4, 4, 3), np.uint8), ["cat", "dog"])
    tracker.finish()
with job("select", Path("results/d/other.h5"), [SelectSettings()], {}, seed=0) as this:
    this.tracker.log({"explained": 0.5})
"""
TERMINATED = """
import os, signal
from pathlib import Path
from wmdd.jobs.job import job
from wmdd.settings.recover import SelectSettings

with job("select", Path("killed.h5"), [SelectSettings()], {}, seed=0) as this:
    this.tracker.log({"loss": 0.125}, 7)
    os.kill(os.getpid(), signal.SIGTERM)
"""


def records(folder):
    """The records of an offline run, read back by wandb's own tool, by type."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(folder)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = {}
    for record in map(json.loads, lines):
        found.setdefault(record["type"], []).append(record.get(record["type"]))
    return found


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """A folder in which an output was made twice and another once, and the records of these runs in order."""
    folder = tmp_path_factory.mktemp("offline")
    done = python(
        OFFLINE, folder, WANDB_MODE="offline", WANDB_RUN_GROUP="a-group", WANDB_PROJECT="a-project", WANDB_API_KEY=KEY
    )
    assert done.returncode == 0, done.stderr
    runs = [p for p in folder.glob("wandb/offline-run-*") if p.is_dir()]
    made = [records(path) for path in runs]
    return folder, sorted(made, key=lambda found: found["run"][0]["start_time"])


def test_an_offline_run_says_where_it_belongs(offline):
    _, runs = offline
    (run,) = runs[0]["run"]
    assert (run["run_group"], run["job_type"], run["project"]) == ("a-group", "recover", "a-project")
    assert run["display_name"] == "results/d/images"
    config = {name: value for name, value in run["config"]["update"].items() if name != "_wandb"}
    assert config == {"lr": 0.25, "crop_scale": [0.08, 1], "seed": 3}
    assert [end["exit_code"] for end in runs[0]["exit"]] == [0]


def test_an_offline_run_keeps_its_metrics(offline):
    _, runs = offline
    items = [record["item"] for record in runs[0]["history"]]
    losses = {item["step"]: item["loss"] for item in items if "loss" in item}
    assert losses == pytest.approx({0: 1, 1: 1 / 2, 2: 1 / 3})
    assert {"name": "step", "options": {"defined": True}} in runs[0]["metric"]
    assert [metric["step_metric"] for metric in runs[0]["metric"] if metric.get("glob_name") == "*"] == ["step"]


def test_an_offline_run_keeps_its_pictures(offline):
    folder, runs = offline
    (shown,) = [record["item"] for record in runs[0]["history"] if "images.captions" in record["item"]]
    assert shown["images.captions"] == ["cat", "dog"]
    assert all(list(folder.glob(f"wandb/*/files/{name}")) for name in shown["images.filenames"])


def test_the_same_output_continues_the_same_run(offline):
    _, runs = offline
    first, again, other = (found["run"][0]["run_id"] for found in runs)
    assert first == again == run_id("a-group", Path("results/d/images.h5"))
    assert other == run_id("a-group", Path("results/d/other.h5")) != first
    assert runs[1]["history"][0]["item"]["attempt"] == 1


def test_a_job_tracks_its_settings_and_its_cost(offline):
    folder, runs = offline
    config = runs[2]["run"][0]["config"]["update"]
    assert config["strategy"] == SelectSettings().strategy
    assert config["seed"] == 0
    items = {name: value for record in runs[2]["history"] for name, value in record["item"].items()}
    cost = json.loads((folder / "results/d/other.cost.json").read_text())
    assert items["explained"] == 0.5
    assert items["cost/peak_memory_mb"] == cost["peak_memory_mb"] > 0


def test_no_key_is_written_anywhere(offline):
    folder, _ = offline
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert any(p.suffix == ".wandb" for p in files)
    assert any(p.suffix == ".log" for p in files)
    assert [str(p) for p in files if KEY.encode() in p.read_bytes() or KEY[::-1].encode() in p.read_bytes()] == []


def test_a_terminated_job_loses_nothing(tmp_path):
    done = python(TERMINATED, tmp_path, WANDB_MODE="offline")
    assert done.returncode == AGAIN, done.stderr
    (run,) = [p for p in tmp_path.glob("wandb/offline-run-*") if p.is_dir()]
    found = records(run)
    assert [(r["item"]["step"], r["item"]["loss"]) for r in found["history"]] == [(7, 0.125)]
    assert [end["exit_code"] for end in found["exit"]] == [AGAIN]
    assert not (tmp_path / "killed.cost.json").exists()


# What runs are compared by, and the lineage of what they made

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

def made(stage, output, settings, inputs, engine=None, **identity):
    with job(stage, output, settings, inputs, engine, **identity) as this:
        hdf5_writer.save(output, {"x": np.full(8, len(stage))}, this.meta)
        if stage == "barycenter":
            this.tracker.log({"mean/cost": 0.5, "mean/explained": 0.75})
        if stage == "recover":
            this.tracker.log({"loss": 2.0, "feature": 1.5}, 0)
            this.tracker.log_images("images", np.zeros((2, 4, 4, 3), np.uint8), ["cat", "dog"])
    return hdf5.load_meta(output)["digest"]

teacher = made("teacher", TEACHER / "model.h5", [TeacherSettings()], {"data": "d" * 64}, CPU, seed=1)
features = made("features", TEACHER / "features.h5", [], {"teacher": teacher})
atoms = made("barycenter", CELL / "barycenter/classes0-9.h5", [BarycenterSettings()], {"features": features}, k=10, seed=3)
block = made("recover", CELL / "recover/classes0-9.h5", [RecoverSettings()], {"barycenter": atoms}, CPU, ipc=10, seed=3)
images = made("images", CELL / "images.h5", [], {"0": block})
for name, runs in (("quick", [0]), ("many", [0, 1])):
    output = CELL / f"student/convnet3/{name}/run0.json"
    with job("student", output, [StudentSettings()], {"images": images}, CPU, seed=3, run=runs) as this:
        for run in runs:
            this.tracker.log({(f"{run}/" if len(runs) > 1 else "") + "final/top1": 0.25 + run / 2})
        output.write_text("{}")
"""


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A folder in which a whole chain was made, and the records of each run by its name."""
    folder = tmp_path_factory.mktemp("chain")
    done = python(CHAIN, folder, WANDB_MODE="offline", WANDB_PROJECT="a-project", WANDB_API_KEY=KEY)
    assert (done.returncode, "wandb can't" in done.stderr) == (0, False), done.stderr
    found = [records(path) for path in folder.glob("wandb/offline-run-*") if path.is_dir()]
    return folder, {each["run"][0]["display_name"].removeprefix("results/digits/resnet18-w8/"): each for each in found}


def config_of(records):
    return records["run"][0]["config"]["update"]


def summary_of(records):
    return {name: value for record in records["summary"] for name, value in record["update"].items()}


def artifact_of(records):
    (artifact,) = records["artifact"]
    return artifact | {"metadata": json.loads(artifact["metadata"])}


CELL = "wmdd/ipc10/seed3"


def test_the_place_of_an_output_becomes_columns(chain):
    _, runs = chain
    config = config_of(runs[f"{CELL}/student/convnet3/quick/run0"])
    expected = {
        "stage": "student",
        "dataset": "digits",
        "teacher": "resnet18-w8",
        "method": "wmdd",
        "ipc": 10,
        "seed": 3,
    }
    expected |= {"student": "convnet3", "protocol": "quick", "cell": "wmdd ipc10", "device": "cpu", "temperature": 20}
    assert {name: config[name] for name in expected} == expected
    assert len(config["input/images"]) == 64
    assert config_of(runs[f"{CELL}/recover/classes0-9"])["block"] == "classes0-9"
    assert len(config_of(runs[f"{CELL}/images"])["input/parts"]) == 64
    assert config_of(runs["teacher/seed1/features"])["seed"] == 1


def test_the_scores_end_in_the_summary_under_one_name(chain):
    _, runs = chain
    assert summary_of(runs[f"{CELL}/student/convnet3/quick/run0"])["final/top1"] == 0.25
    many = summary_of(runs[f"{CELL}/student/convnet3/many/run0"])
    assert (many["0/final/top1"], many["1/final/top1"], many["final/top1"]) == (0.25, 0.75, 0.5)
    assert summary_of(runs[f"{CELL}/barycenter/classes0-9"])["mean/explained"] == 0.75
    assert summary_of(runs[f"{CELL}/recover/classes0-9"])["cost/seconds"] >= 0


def test_each_stage_says_what_it_made_and_from_what(chain):
    _, runs = chain
    names = [
        "teacher/seed1/model",
        "teacher/seed1/features",
        *(f"{CELL}/{n}/classes0-9" for n in ("barycenter", "recover")),
    ]
    made = [artifact_of(runs[name]) for name in [*names, f"{CELL}/images", f"{CELL}/student/convnet3/quick/run0"]]
    kinds = ["teacher", "features", "barycenter", "recover", "images", "student"]
    assert [each["type"] for each in made] == kinds
    for before, after in pairwise(made):
        inputs = after["metadata"]["inputs"]
        assert before["metadata"]["digest"] in [*inputs.values(), *inputs.get("parts", [])]
        assert before["metadata"]["digest"][:16] in before["aliases"]
    assert made[3]["metadata"]["settings"]["iterations"] == 2000
    assert made[3]["name"] == "digits.resnet18-w8.wmdd.ipc10.seed3.recover.classes0-9"


def test_only_the_distilled_set_takes_its_file_along_and_nothing_is_copied(chain):
    folder, runs = chain
    files = {name: artifact_of(found)["manifest"]["contents"] for name, found in runs.items()}
    assert {name for name, contents in files.items() if len(contents) > 1} == {f"{CELL}/images"}
    (images,) = [each for each in files[f"{CELL}/images"] if each["path"] == "images.h5"]
    assert images["local_path"] == str(folder / "results/digits/resnet18-w8" / CELL / "images.h5")
    assert list((folder / "wandb").rglob("*.h5")) == []
    assert not (folder / ".local").exists()


def test_no_key_is_in_the_runs_of_a_chain(chain):
    test_no_key_is_written_anywhere(chain)


def test_an_output_of_the_workflow_tells_its_place_and_another_nothing():
    assert parts_of(Path("/far/results/d/t/m/ipc1/seed0/labels/paper.h5")) == {
        "dataset": "d", "teacher": "t", "method": "m", "ipc": 1, "seed": 0, "protocol": "paper"
    }  # fmt: skip
    assert parts_of(Path("x.h5")) == {}


def test_stages_that_make_the_same_file_have_artifacts_of_one_kind():
    kinds = {"gather": "features", "features": "features", "select": "images", "images": "images", "relabel": "relabel"}
    assert {stage: kind_of(stage) for stage in kinds} == kinds


def test_an_artifact_says_the_same_whenever_it_was_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    meta = {"stage": "gather", "settings": {}, "identity": {}, "inputs": {"0": "a"}, "code": "c", "revision": "r"}
    assert describe(Path("features.h5"), meta) is None
    for name in ("features", "statistics"):
        hdf5_writer.save(Path(f"{name}.h5"), {name: np.zeros(3)}, {"time": name})
    first = describe(Path("features.h5"), meta)
    assert first == describe(Path("features.h5"), meta | {"revision": "other"})
    assert (first["kind"], set(first["outputs"])) == ("features", {"features.h5", "statistics.h5"})


def test_names_of_artifacts_are_as_wandb_wants_them():
    long = artifact_name(Path("results") / ("a" * 90) / ("b" * 90) / "images.h5")
    assert len(long) <= 128
    assert long != artifact_name(Path("results") / ("a" * 90) / ("c" * 90) / "images.h5")
    assert re.fullmatch(r"[\w.-]+", artifact_name(Path("/a b/c:d/images.h5")))


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
    source = "import sys; sys.modules['wandb'] = None\n" + DISABLED
    done = python(source.replace("import sys\nfrom", "from"), tmp_path, WANDB_MODE="offline")
    assert done.stdout.startswith("NullTracker"), done.stderr
    assert "wmdd select: wandb can't start (ModuleNotFoundError" in done.stderr


def test_nothing_like_a_key_is_said(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "local-secret")
    assert without_key(f"a {KEY} b local-secret c wandb_v1_abc") == "a *** b *** c ***"
    monkeypatch.delenv("WANDB_API_KEY")
    assert without_key("x\ny") == "x y"


# Identity


def test_run_ids_differ_by_group_and_path_and_by_nothing_else():
    path = Path("results/a/images.h5")
    assert run_id("g", path) == run_id("g", Path("results//a/./images.h5"))
    assert len({run_id("g", path), run_id("h", path), run_id("g", Path("results/b/images.h5"))}) == 3
    assert re.fullmatch("[0-9a-f]{16}", run_id("g", path))


def test_the_mode_is_offline_unless_set(monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(tracking, "WandbTracker", lambda *arguments: arguments)
    assert start(Path("x"), "recover", {"a": 1}) == (Path("x"), "recover", {"a": 1})
    assert os.environ["WANDB_MODE"] == "offline"


# What a job does with its tracker, its checkpoint and its cost


class Memory(NullTracker):
    def __init__(self):
        self.logged, self.codes = {}, []

    def log(self, metrics, step=None):
        self.logged |= metrics

    def finish(self, exit_code=0):
        self.codes.append(exit_code)


@pytest.fixture
def memory(monkeypatch):
    found = Memory()
    monkeypatch.setattr(tracking, "start", lambda *_: found)
    return found


def test_a_job_that_succeeds(tmp_path, memory, capsys):
    with job("select", tmp_path / "a/x.h5", [SelectSettings()], {"data": "abc"}, seed=3) as this:
        this.checkpoint.save({"x": 1})
        this.figures["bytes_per_image"] = 12
    assert memory.codes == [0]
    assert not this.checkpoint.path.exists()
    cost = json.loads(cost_path(tmp_path / "a/x.h5").read_text())
    assert cost["bytes_per_image"] == memory.logged["cost/bytes_per_image"] == 12
    assert cost["seconds"] >= 0
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"wmdd select: {tmp_path}/a/x.h5 on cpu")
    assert said[-1].startswith("wmdd select: done in ")


@pytest.mark.parametrize("error", [WmddError, ValueError, KeyboardInterrupt, SystemExit])
def test_a_job_that_fails_keeps_its_checkpoint(tmp_path, memory, error):
    def failing():
        with job("select", tmp_path / "x.h5", [SelectSettings()], {}, seed=3) as this:
            this.checkpoint.save({"x": 1})
            raise error("reason")

    with pytest.raises(error):
        failing()
    assert memory.codes == [1]
    assert [p.name for p in tmp_path.iterdir()] == [".x.h5.checkpoint"]


def test_a_resumed_job_counts_the_time_of_both(tmp_path, memory):
    output = tmp_path / "x.h5"
    with job("select", output, [SelectSettings()], {}, seed=3) as this:
        key = this.checkpoint.key
    earlier = Checkpoint(tmp_path / ".x.h5.checkpoint", key)
    earlier.earlier = 500.0
    earlier.save({"x": 1})
    with job("select", output, [SelectSettings()], {}, seed=3) as this:
        assert this.checkpoint.load() == {"x": 1}
    assert json.loads(cost_path(output).read_text())["seconds"] >= 500


def test_the_checkpoint_belongs_to_settings_inputs_identity_engine_and_code(tmp_path, memory, monkeypatch):
    def key(settings=None, inputs=None, engine=None, **identity):
        with job("select", tmp_path / "x", [settings or SelectSettings()], inputs or {}, engine, **identity) as this:
            return this.checkpoint.key

    cpu = EngineSettings(device="cpu", precision="fp32")
    keys = [
        key(seed=0),
        key(seed=1),
        key(seed=0, inputs={"data": "abc"}),
        key(SelectSettings(strategy="kmeans-medoid"), seed=0),
        key(seed=0, engine=cpu),
        key(seed=0, engine=EngineSettings(device="cpu", precision="bf16")),
    ]
    assert key(seed=0) == keys[0]
    assert key(seed=0, threads=1) == keys[0]
    monkeypatch.setattr("wmdd.jobs.job.code_digest", lambda _: "other code")
    keys.append(key(seed=0))
    assert len(set(keys)) == len(keys)


def test_the_provenance_of_a_job(tmp_path, memory, monkeypatch):
    monkeypatch.setattr("wmdd.jobs.job.git_revision", lambda: "abc-dirty")
    with job("select", tmp_path / "x", [SelectSettings()], {"data": "d"}, EngineSettings(device="cpu"), seed=4) as this:
        meta = json.loads(json.dumps(this.meta))
    assert (meta["stage"], meta["identity"], meta["inputs"]) == ("select", {"seed": 4}, {"data": "d"})
    assert meta["settings"] == SelectSettings().model_dump(mode="json")
    assert meta["revision"] == "abc-dirty"
    assert meta["engine"]["device"] == "cpu"
    assert {"torch", "numpy", "python", "wmdd"} <= set(meta["versions"])
    assert re.fullmatch("[0-9a-f]{16}", meta["code"])
