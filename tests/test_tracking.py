"""Runs are tracked by wandb without a network, or by nobody without wandb; never with a key on disk."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from wmdd import tracking
from wmdd.checkpoint import Checkpoint
from wmdd.errors import WmddError
from wmdd.job import cost_path, job
from wmdd.preemption import AGAIN
from wmdd.settings import EngineSettings, SelectSettings
from wmdd.tracking import NullTracker, WandbTracker, run_id, start

ROOT = Path(__file__).parents[1]
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
from wmdd import tracking
from wmdd.job import job
from wmdd.settings import SelectSettings

tracker = tracking.start(Path("x.h5"), "select", {"a": 1})
tracker.log({"loss": 1.0}, 3)
tracker.log_images("images", [], [])
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
    assert set(methods(NullTracker)) == {"log", "log_images", "finish"}


# With wandb, offline

OFFLINE = """
from pathlib import Path
import numpy as np
from wmdd import tracking
from wmdd.job import job
from wmdd.settings import RecoverSettings, SelectSettings

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
from wmdd.job import job
from wmdd.settings import SelectSettings

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
    monkeypatch.setattr("wmdd.job.code_digest", lambda _: "other code")
    keys.append(key(seed=0))
    assert len(set(keys)) == len(keys)


def test_the_provenance_of_a_job(tmp_path, memory, monkeypatch):
    monkeypatch.setattr("wmdd.job.git_revision", lambda: "abc-dirty")
    with job("select", tmp_path / "x", [SelectSettings()], {"data": "d"}, EngineSettings(device="cpu"), seed=4) as this:
        meta = json.loads(json.dumps(this.meta))
    assert (meta["stage"], meta["identity"], meta["inputs"]) == ("select", {"seed": 4}, {"data": "d"})
    assert meta["settings"] == {"strategy": "random"}
    assert meta["revision"] == "abc-dirty"
    assert meta["engine"]["device"] == "cpu"
    assert {"torch", "numpy", "python", "wmdd"} <= set(meta["versions"])
    assert re.fullmatch("[0-9a-f]{16}", meta["code"])
