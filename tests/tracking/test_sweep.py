"""The cells of an experiment are run one after another: by wandb's own agent against a stand-in of its server, or without."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.tracking.server import serving
from tests.tracking.test_tracker import KEY, ROOT
from wmdd.tracking.sweep import axes, cells
from wmdd.workflow.experiment import Experiment

STUDY = {
    "experiment": "mine",
    "tracking": {"project": "wmdd", "entity": "team"},
    "matrix": [{"datasets": ["digits"], "methods": ["random", "wmdd"], "ipc": [1], "runs": 2}],
    "methods": {"wmdd": {"recover": {"iterations": [5, 6]}}},
}
SNAKEFILE = """
rule student:
    output:
        "results/{place}/ipc{ipc}/seed0/student/resnet18/paper/run{run}.json",
    shell:
        "env | grep -o '^WANDB_[A-Z_]*' >> variables.txt; "
        "echo '{{\\"result\\": {{\\"top1\\": 0.{wildcards.run}, \\"top5\\": 0.5}}}}' > {output}"
"""  # stands for the workflow, which has rules of that output


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a study, and a workflow that makes its results at once."""
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def results():
    return sorted(path.as_posix() for path in Path("results").rglob("run*.json"))


def test_without_wandb_the_cells_run_and_what_is_done_stays(folder, run, mistake):
    code, out, _ = run("sweep --show")
    lines = out.splitlines()
    assert (code, len(lines)) == (0, 3), "a method's list of values is a method for each"
    assert lines[0].startswith(
        "python -m wmdd sweep study.yaml --run --dataset=digits --teacher=resnet18 --method=random"
    )
    assert run("sweep --run --method=wmdd-iterations5")[0] == 0
    assert results() == [
        f"results/digits/resnet18/wmdd-iterations5/ipc1/seed0/student/resnet18/paper/run{number}.json"
        for number in (0, 1)
    ]
    before = Path(results()[0]).stat().st_mtime_ns
    assert run("sweep --run")[0] == 0
    assert len(results()) == 6
    assert Path(results()[2]).stat().st_mtime_ns == before
    assert mistake("sweep --run --method=wmd").startswith(
        "the matrix has no cell --method=wmd; `wmdd sweep --show` lists"
    )


def test_a_cell_that_fails_stops_no_other(folder, run):
    (folder / "Snakefile").write_text(
        SNAKEFILE.replace("shell:", "shell:\n        '[[ {wildcards.place} != *random ]]; '")
    )
    code, _, err = run("sweep --run")
    assert code == 1
    assert "1 of 3 cells failed, the first with --dataset=digits --teacher=resnet18 --method=random " in err
    assert len(results()) == 4


def test_an_entry_of_the_matrix_is_a_sweep_over_its_lists(folder, run, mistake):
    assert run("sweep")[0] == 0
    sweep = yaml.safe_load((folder / "sweep.yaml").read_text())
    assert (sweep["entity"], sweep["project"], sweep["method"]) == ("team", "wmdd", "grid")
    assert sweep["parameters"]["method"] == {"values": ["random", "wmdd-iterations5", "wmdd-iterations6"]}
    experiment = Experiment(STUDY)
    points = itertools.product(*(axis["values"] for axis in sweep["parameters"].values()))
    assert [tuple(cell.parts().values()) for cell in cells(experiment)] == [*points]
    assert [*sweep["parameters"]] == [*axes(experiment, experiment.file.matrix[0])]
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY | {"matrix": STUDY["matrix"] * 2}))
    assert run("sweep")[0] == 0
    assert sorted(path.name for path in folder.glob("sweep*.yaml")) == ["sweep-1.yaml", "sweep-2.yaml", "sweep.yaml"]
    (folder / "own.yaml").write_text("program: mine.py")
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    assert "own.yaml is there already" in mistake("sweep --output own.yaml")


def wandb(*words, server):
    variables = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    variables |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), variables["PATH"]])
    command = [sys.executable, "-m", "wandb", *words]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_wandbs_agent_runs_a_cell_and_scores_it(folder, run):
    assert run("sweep")[0] == 0
    with serving() as server:
        sweep = {"id": "s", "name": "sweep1", "project": {"name": "wmdd", "entity": {"name": "team"}}}
        made = {}

        def upsert(sent):
            made["config"] = sent["config"]
            return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}

        parameters = yaml.safe_load(Path("sweep.yaml").read_text())["parameters"]
        values = {name: axis["values"][-1] for name, axis in parameters.items()}
        todo = [{"type": "exit"}, {"type": "run", "run_id": "cell1", "program": "wmdd", "args": {}}]
        todo[1]["args"] = {name: {"value": value} for name, value in values.items()}

        def heartbeat(sent):
            idle = not json.loads(sent["runState"])
            return {"agentHeartbeat": {"agent": {"id": "a"}, "commands": json.dumps([todo.pop()] if idle else [])}}

        server.operations |= {
            "UpsertSweep": upsert,
            "SweepWithRuns": lambda _: {
                "project": {"sweep": sweep | {"config": made["config"], "runs": {"edges": []}}}
            },
            "CreateAgent": lambda _: {"createAgent": {"agent": {"id": "a"}}},
            "Heartbeat": heartbeat,
        }
        assert wandb("sweep", "sweep.yaml", server=server).returncode == 0
        done = wandb("agent", "team/wmdd/sweep1", server=server)
        assert done.returncode == 0, done.stderr
        assert todo == []
    assert results() == [
        f"results/digits/resnet18/wmdd-iterations6/ipc1/seed0/student/resnet18/paper/run{number}.json"
        for number in (0, 1)
    ]
    told = set(Path("variables.txt").read_text().split())
    assert not {"WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_SERVICE"} & told
    first, *_ = server.variables("UpsertBucket")
    assert (first["sweep"], first["name"], first["groupName"], first["jobType"]) == ("sweep1", "cell1", "mine", "sweep")
    config = {name: entry["value"] for name, entry in json.loads(first["config"]).items()}
    assert values.items() | {("recover/iterations", 6), ("stage", "sweep")} <= {
        (name, value) for name, value in config.items() if isinstance(value, int | str)
    }
    summaries = [content["files"].get("wandb-summary.json") for _, content in server.streamed if "files" in content]
    summary = json.loads([each for each in summaries if each][-1]["content"][-1])
    assert summary["cell/top1"] == pytest.approx(0.05)
