"""What a job does around its stage: provenance, checkpoint, tracker and cost."""

import json
import re

import pytest

from wmdd.artifacts.checkpoint import Checkpoint
from wmdd.base.errors import WmddError
from wmdd.jobs.job import cost_path, job
from wmdd.settings.engine import EngineSettings
from wmdd.settings.select import SelectSettings
from wmdd.tracking import tracker as tracking
from wmdd.tracking.tracker import NullTracker

SETTINGS = SelectSettings()


class Memory(NullTracker):
    def __init__(self):
        self.logged, self.codes = {}, []

    def log(self, metrics, step=None):
        self.logged |= metrics

    def finish(self, exit_code=0, reason=""):
        self.codes.append(exit_code)
        self.reason = reason


@pytest.fixture
def memory(monkeypatch):
    tracker = Memory()
    monkeypatch.setattr(tracking, "start", lambda *_: tracker)
    return tracker


def test_why_a_job_failed_is_in_its_run(tmp_path, memory):
    with pytest.raises(WmddError), job("teacher", tmp_path / "x.h5", [SETTINGS], {}):
        raise WmddError("the teacher is too weak")
    assert (memory.codes, memory.reason) == ([1], "the teacher is too weak")


def test_a_job_that_succeeds_writes_its_cost_and_removes_its_checkpoint(tmp_path, memory, capsys):
    output = tmp_path / "a/x.h5"
    with job("select", output, [SETTINGS], {"data": "abc"}, seed=3) as stage_job:
        stage_job.checkpoint.save({"x": 1})
        stage_job.cost["bytes_per_image"] = 12
    assert memory.codes == [0]
    assert not stage_job.checkpoint.path.exists()
    cost = json.loads(cost_path(output).read_text())
    assert cost["bytes_per_image"] == memory.logged["cost/bytes_per_image"] == 12
    assert cost["seconds"] >= 0
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"wmdd select: {output} on cpu")
    assert said[-1].startswith("wmdd select: done in ")


@pytest.mark.parametrize("error", [WmddError, KeyboardInterrupt, SystemExit])
def test_a_job_that_fails_keeps_its_checkpoint(tmp_path, memory, error):
    def failing():
        with job("select", tmp_path / "x.h5", [SETTINGS], {}, seed=3) as stage_job:
            stage_job.checkpoint.save({"x": 1})
            raise error("reason")

    with pytest.raises(error):
        failing()
    assert memory.codes == [1]
    assert [path.name for path in tmp_path.iterdir()] == [".x.h5.checkpoint"]


def test_a_resumed_job_counts_the_time_of_both(tmp_path, memory):
    output = tmp_path / "x.h5"
    with job("select", output, [SETTINGS], {}, seed=3) as stage_job:
        key = stage_job.checkpoint.key
    earlier = Checkpoint(tmp_path / ".x.h5.checkpoint", key)
    earlier.earlier = 500.0
    earlier.save({"x": 1})
    with job("select", output, [SETTINGS], {}, seed=3) as stage_job:
        assert stage_job.checkpoint.load() == {"x": 1}
    assert json.loads(cost_path(output).read_text())["seconds"] >= 500


def test_the_checkpoint_belongs_to_settings_inputs_identity_engine_and_code(tmp_path, memory, monkeypatch):
    def key(settings=SETTINGS, inputs=None, engine=None, **identity):
        with job("select", tmp_path / "x", [settings], inputs or {}, engine, **identity) as stage_job:
            return stage_job.checkpoint.key

    keys = [
        key(seed=0),
        key(seed=1),
        key(seed=0, inputs={"data": "abc"}),
        key(SelectSettings(strategy="kmeans-medoid"), seed=0),
        *(key(seed=0, engine=EngineSettings(device="cpu", precision=precision)) for precision in ("fp32", "bf16")),
    ]
    assert key(seed=0) == key(seed=0, threads=1) == keys[0]
    monkeypatch.setattr("wmdd.jobs.job.code_digest", lambda _: "other code")
    keys.append(key(seed=0))
    assert len(set(keys)) == len(keys)


def test_the_provenance_of_a_job(tmp_path, memory, monkeypatch):
    monkeypatch.setattr("wmdd.jobs.job.git_revision", lambda: "abc-dirty")
    with job("select", tmp_path / "x", [SETTINGS], {"data": "d"}, EngineSettings(device="cpu"), seed=4) as stage_job:
        meta = json.loads(json.dumps(stage_job.meta))
    assert (meta["stage"], meta["identity"], meta["inputs"]) == ("select", {"seed": 4}, {"data": "d"})
    assert meta["settings"] == SETTINGS.model_dump(mode="json")
    assert meta["revision"] == "abc-dirty"
    assert meta["engine"]["device"] == "cpu"
    assert {"torch", "numpy", "python", "wmdd"} <= set(meta["versions"])
    assert re.fullmatch("[0-9a-f]{16}", meta["code"])
