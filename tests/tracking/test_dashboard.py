"""The dashboard is built without a network, and its panels name only what the stages really log."""

import json
import sys
from pathlib import Path

import pytest

from tests.cli.artifacts import COMMANDS
from tests.tracking.server import serving
from tests.tracking.test_tracker import KEY, python
from wmdd.base import extras
from wmdd.base.errors import WmddError
from wmdd.tracking import dashboard
from wmdd.tracking import tracker as tracking
from wmdd.tracking.artifact import columns
from wmdd.tracking.dashboard import CONFIG, METRICS, NAME, dump, sections
from wmdd.tracking.sync import TAG
from wmdd.tracking.tracker import NullTracker


class Names(NullTracker):
    """Remembers the names of what is logged."""

    def __init__(self):
        self.names = set()

    def log(self, metrics, step=None):
        self.names |= set(metrics)

    def log_images(self, name, images, captions):
        self.names.add(name)


@pytest.mark.parametrize("stage", METRICS)
def test_the_stages_log_what_the_dashboard_counts_on(here, run, monkeypatch, stage):
    tracker = Names()
    monkeypatch.setattr(tracking, "start", lambda *_: tracker)
    line = COMMANDS[stage] + (" --cross-entropy 1" if stage == "recover" else "")
    assert run(line)[0] == 0
    assert set(METRICS[stage]) <= tracker.names


def test_the_columns_are_those_of_a_student():
    output = Path("results/d/t/m/ipc1/seed0/student/s/p/run0.json")
    assert set(CONFIG) <= set(columns("student", output, {"inputs": {}, "engine": {}}))


def named(panel):
    """The metrics and the config keys that a panel's JSON names."""
    config = panel["config"]
    axes = [config[axis] for axis in ("xAxis", "yAxis") if axis in config]
    metrics = [*config.get("metrics", []), *config.get("mediaKeys", [])]
    metrics += [axis.removeprefix("summary:") for axis in axes if axis.startswith("summary:")]
    keys = [config["groupBy"], *axes] if "groupBy" in config else axes
    keys = [key.removeprefix("config:") for key in keys if key.endswith(".value")]
    return metrics, [key.removesuffix(".value") for key in keys]


def filters(model):
    """The conditions of a set of runs, by what they are of."""
    leaves = [leaf for each in model["filters"]["filters"] for leaf in each.get("filters", [each])]
    return [(leaf["key"]["name"], leaf["value"]) for leaf in leaves]


def test_panels_name_only_what_is_logged_and_grids_show_the_runs_of_their_stages():
    built = dump("team", "digits")
    shown = {
        part["name"]: part["panels"] for part in built["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]
    }
    grids = [block["metadata"] for block in built["report"]["spec"]["blocks"] if block["type"] == "panel-grid"]
    for (name, (stages, panels)), grid in zip(sections().items(), grids, strict=True):
        logged = {n for stage in stages.split("|") for n in METRICS.get(stage, set().union(*METRICS.values()))}
        for found in shown[name], grid["panelBankSectionConfig"]["panels"]:
            assert len(found) == len(panels) > 0
            for metrics, keys in map(named, found):
                assert metrics
                assert set(metrics) <= logged
                assert set(keys) <= set(CONFIG)
    assert filters(grids[0]["runSets"][0]) == [("tags", [TAG]), ("stage", "student")]


def test_the_command_prints_json_without_network_or_key(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    code, out, _ = run("dashboard --entity team --project digits")
    built = json.loads(out)
    assert code == 0
    assert (built["workspace"]["entity"], built["workspace"]["displayName"]) == ("team", NAME)
    assert built["report"]["project"]["name"] == "digits"


SAVE = "import sys; from wmdd.__main__ import main; sys.argv = ['wmdd', 'dashboard', *{words}]; main()"


def test_saving_replaces_what_an_earlier_call_saved_of_the_same_experiment(tmp_path):
    (tmp_path / "a.yaml").write_text("experiment: first\n")
    (tmp_path / "b.yaml").write_text("experiment: second\n")
    with serving() as server:
        for name in ("a.yaml", "b.yaml", "a.yaml"):
            source = SAVE.format(words=[name, "--save"])
            done = python(source, tmp_path, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
            assert done.returncode == 0, done.stderr
        views = server.views.values()
        assert [(view["type"], view["displayName"]) for view in views] == [
            (kind, f"{NAME} in {name}") for name in ("first", "second") for kind in ("project-view", "runs")
        ]
        assert done.stdout.splitlines()[0].startswith(f"{server.url}/team/wmdd?nw=")


def test_what_wandb_refuses_is_one_line_without_a_key(monkeypatch):
    def refuse(*_):
        raise PermissionError("no access\nwith key-of-mine")

    monkeypatch.setenv("WANDB_API_KEY", "key-of-mine")
    monkeypatch.setattr(dashboard, "workspace", refuse)
    with pytest.raises(WmddError, match=r"PermissionError: no access with \*\*\*.*may write to e/p"):
        dashboard.save("e", "p")


def test_the_runs_of_other_experiments_are_left_out(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text("experiment: mine\ntracking: {project: p, entity: team}\n")
    code, out, _ = run("dashboard")
    built = json.loads(out)
    assert (code, built["workspace"]["entity"], built["workspace"]["project"]) == (0, "team", "p")
    assert filters(built["workspace"]["spec"]["section"]["runSets"][0]) == [("tags", [TAG]), ("group", "mine")]
    grids = [block["metadata"] for block in built["report"]["spec"]["blocks"] if block["type"] == "panel-grid"]
    assert filters(grids[1]["runSets"][0]) == [
        ("tags", [TAG]),
        ("group", "mine"),
        ("stage", "teacher"),
        ("stage", "student"),
    ]
    monkeypatch.setenv("WANDB_RUN_GROUP", "it's ours")
    built = json.loads(run("dashboard")[1])
    assert filters(built["workspace"]["spec"]["section"]["runSets"][0]) == [("tags", [TAG]), ("group", "it's ours")]


def test_without_a_key_or_the_package_one_line_says_so(mistake, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert "there is no API key" in mistake("dashboard --save")
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setattr(extras, "requires", lambda _: ["wandb-workspaces>=0.4.10; extra == 'wandb'"])
    assert mistake("dashboard") == 'wandb_workspaces is not installed; run `pip install "wmdd[wandb]"`'
