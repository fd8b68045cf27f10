"""The dashboard is built without a network, and its panels name only what the stages really log."""

import json
from pathlib import Path

import pytest

from tests.cli.test_stages import COMMANDS, here, made  # noqa: F401
from wmdd.base.errors import WmddError
from wmdd.tracking import dashboard
from wmdd.tracking import tracker as tracking
from wmdd.tracking.dashboard import CONFIG, METRICS, NAME, dump, sections
from wmdd.tracking.tracker import NullTracker, columns


class Names(NullTracker):
    """Remembers the names of what is logged."""

    def __init__(self):
        self.names = set()

    def log(self, metrics, step=None):
        self.names |= set(metrics)

    def log_images(self, name, images, captions):
        self.names.add(name)


@pytest.mark.parametrize("stage", METRICS)
def test_the_stages_log_what_the_dashboard_counts_on(here, run, monkeypatch, stage):  # noqa: F811
    found = Names()
    monkeypatch.setattr(tracking, "start", lambda *_: found)
    line = COMMANDS[stage] + (" --cross-entropy 1" if stage == "recover" else "")
    assert run(line)[0] == 0
    assert set(METRICS[stage]) <= found.names


def test_the_columns_are_those_of_a_student():
    output = Path("results/d/t/m/ipc1/seed0/student/s/p/run0.json")
    found = columns("student", output, {"inputs": {}, "engine": {}})
    assert set(CONFIG) <= set(found)


def named(panel):
    """The metrics and the config keys that a panel's JSON names."""
    config = panel["config"]
    axes = [config[axis] for axis in ("xAxis", "yAxis") if axis in config]
    metrics = [*config.get("metrics", []), *config.get("mediaKeys", [])]
    metrics += [axis.removeprefix("summary:") for axis in axes if axis.startswith("summary:")]
    keys = [config["groupBy"], *axes] if "groupBy" in config else axes
    keys = [key.removeprefix("config:") for key in keys if key.endswith(".value")]
    return metrics, [key.removesuffix(".value") for key in keys]


@pytest.mark.parametrize("where", ["workspace", "report"])
def test_panels_name_only_what_is_logged(where):
    spec = dump("team", "digits")[where]["spec"]
    if where == "workspace":
        found = {each["name"]: each["panels"] for each in spec["section"]["panelBankConfig"]["sections"]}
    else:
        grids = [block["metadata"] for block in spec["blocks"] if block["type"] == "panel-grid"]
        found = dict(zip(sections(), [grid["panelBankSectionConfig"]["panels"] for grid in grids], strict=True))
    for name, (stages, panels) in sections().items():
        known = {n for stage in stages.split("|") for n in METRICS.get(stage, set().union(*METRICS.values()))}
        assert len(found[name]) == len(panels) > 0
        for metrics, keys in map(named, found[name]):
            assert metrics
            assert set(metrics) <= known
            assert set(keys) <= set(CONFIG)


def test_the_report_shows_each_stage_its_runs():
    blocks = dump("team", "digits")["report"]["spec"]["blocks"]
    (first, *_) = [block["metadata"]["runSets"] for block in blocks if block["type"] == "panel-grid"]
    (asked,) = first[0]["filters"]["filters"]
    assert (asked["key"], asked["value"]) == ({"section": "config", "name": "stage"}, "student")


def test_the_command_prints_json_without_network_or_key(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    code, out, _ = run("dashboard --entity team --project digits")
    found = json.loads(out)
    assert code == 0
    assert (found["workspace"]["entity"], found["workspace"]["displayName"]) == ("team", NAME)
    assert found["report"]["project"]["name"] == "digits"


def test_saving_without_a_key_is_one_line(run, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    code, _, err = run("dashboard --save")
    assert code == 1
    assert "there is no API key" in err
    assert len(err.splitlines()) == 1


class Saved:
    def __init__(self, url):
        self.url = url

    def save(self):
        return self


def test_saving_says_where(monkeypatch):
    monkeypatch.setattr(dashboard, "workspace", lambda *where: Saved(f"view of {where}"))
    monkeypatch.setattr(dashboard, "report", lambda *where, known: Saved(f"report of {where}"))
    assert dashboard.save("e", "p") == ["view of ('e', 'p')", "report of ('e', 'p')"]


def test_a_refusal_is_one_line_without_a_key(monkeypatch):
    def refuse(*_):
        raise PermissionError("no access\nwith key-of-mine")

    monkeypatch.setenv("WANDB_API_KEY", "key-of-mine")
    monkeypatch.setattr(dashboard, "workspace", refuse)
    with pytest.raises(WmddError, match=r"PermissionError: no access with \*\*\*.*may write to e/p"):
        dashboard.save("e", "p")


def test_without_the_package(run, monkeypatch):
    monkeypatch.setattr(dashboard, "find_spec", lambda _: None)
    code, _, err = run("dashboard")
    assert (code, "pip install wandb-workspaces" in err) == (1, True)
