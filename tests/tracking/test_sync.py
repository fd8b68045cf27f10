"""Offline runs are uploaded once each, whatever ends it before; then what each used becomes an edge."""

import json
import os
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.tracking.server import serving
from tests.tracking.test_tracker import KEY, python
from wmdd.base.errors import WmddError
from wmdd.base.units import size
from wmdd.tracking import sync
from wmdd.tracking.artifact import RECORD
from wmdd.tracking.sync import LINKED, Run, check_server, find, link, mark, records, unlinked, upload

STAND_IN = """
import os, sys
from pathlib import Path

with open("calls.txt", "a") as calls:
    print(*(Path(each).name for each in sys.argv[2:]), os.environ.get("WANDB_MODE"), file=calls)
for folder in map(Path, sys.argv[2:]):
    (file,) = folder.glob("*.wandb")
    if "refused" in file.name:
        print("ERROR", file.name, os.environ.get("WANDB_API_KEY"), "refused", file=sys.stderr)
    else:
        file.with_name(file.name + ".synced").touch()
"""  # as wandb's, it ends with exit status 0 whether or not runs were refused


def offline_run(folder, name, ended=True, age=0.0, **facts):
    """A run's folder as wandb leaves it; `name` is its id."""
    start = len(list(folder.glob("*")))
    run = folder / f"offline-run-20260101_{start:06}-{name}"
    run.mkdir(parents=True)
    file = run / f"run-{name}.wandb"
    file.write_bytes(b"records")
    os.utime(file, (time.time() - age,) * 2)
    if ended:
        record = {"run": name, "project": "p", "name": f"of.{name}", "kind": "x", "path": "x.h5"}
        (run / RECORD).write_text(json.dumps(record | {"outputs": {"x.h5": name * 20}, "inputs": {}} | facts))
    return file


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty wandb folder, with a stand-in for wandb's command and a server that always answers."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(sync, "WANDB", [sys.executable, str(tmp_path / "stand_in.py")])
    monkeypatch.setattr(sync, "check_server", lambda: None)
    (tmp_path / "wandb").mkdir()
    return tmp_path / "wandb"


def calls(folder):
    path = folder.parent / "calls.txt"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def states(folder):
    return [run.state for run in find(folder)]


# What is there


def test_what_is_uploaded_runs_or_waits(folder):
    offline_run(folder, "a").with_name("run-a.wandb.synced").touch()
    offline_run(folder, "b")
    offline_run(folder, "c", ended=False)
    offline_run(folder, "d", ended=False, age=sync.QUIET + 60)
    offline_run(folder, "e")
    offline_run(folder, "e", ended=False)  # the same run goes on: no part of it is uploaded
    assert states(folder) == ["synced", "waiting", "running", "waiting", "running", "running"]


def test_the_distilled_set_counts_as_upload(folder, tmp_path):
    (tmp_path / "images.h5").write_bytes(bytes(10_000))
    plain, images = offline_run(folder, "a"), offline_run(folder, "b", kind="images", path="images.h5")
    assert 10_000 <= sync.size(Run(images, "")) - sync.size(Run(plain, "")) < 10_100


# Upload


def test_all_runs_are_uploaded_in_the_order_of_their_start_and_again_when_they_went_on(folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    files = [offline_run(folder, name) for name in "abza"]
    upload(find(folder))
    assert calls(folder) == [
        [*(file.parent.name for file in files), "None"]
    ]  # without the mode that keeps wandb offline
    assert set(states(folder)) == {"synced"}
    os.utime(files[1].with_name("run-b.wandb.synced"), (files[1].stat().st_mtime - 60,) * 2)
    assert states(folder) == ["synced", "waiting", "synced", "synced"]
    upload([run for run in find(folder) if run.state == "waiting"])
    assert set(states(folder)) == {"synced"}


def test_a_refused_run_stops_no_other_and_is_named_without_the_key(folder, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", "key-of-mine")
    for name in ["a", "refused", "b"]:
        offline_run(folder, name)
    with pytest.raises(WmddError, match=r"2 of 3 runs are uploaded, not .*-refused \(ERROR .* \*\*\* refused\)"):
        upload(find(folder))
    assert states(folder) == ["synced", "waiting", "synced"]
    assert capfd.readouterr().err == "ERROR run-refused.wandb *** refused\n"


OFFLINE = """
from pathlib import Path
from wmdd.tracking import tracker as tracking

for name in ("first", "refused", "last"):
    tracker = tracking.start(Path(name), "teacher", {"name": name}, "key")
    tracker.log({"loss": 0.5}, 1)
    tracker.alert("stopped", "too weak")
    tracker.finish()
"""


def test_wandb_itself_uploads_each_run_once_and_a_refusal_stops_no_other(tmp_path, monkeypatch, capfd):
    done = python(OFFLINE, tmp_path, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(sync, "QUIET", 0.0)  # they have made nothing, by which a job that ended is known
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        take = server.operations["UpsertBucket"]

        def refuse(variables):
            if variables["displayName"] == "refused":
                raise PermissionError("no access to this run")
            return take(variables)

        server.operations["UpsertBucket"] = refuse
        check_server()
        with pytest.raises(WmddError, match="2 of 3 runs are uploaded, not wandb/offline-run"):
            upload([run for run in find(Path("wandb")) if run.state == "waiting"])
        assert sorted(states(Path("wandb"))) == ["synced", "synced", "waiting"]
        assert {path.split("/")[-1] for path, _ in server.streamed} == {"file_stream"}
        assert len(server.variables("NotifyScriptableRunAlert")) == 2
        server.asked.clear()
        server.operations["UpsertBucket"] = take
        upload([run for run in find(Path("wandb")) if run.state == "waiting"])
        runs = {variables["name"] for variables in server.variables("UpsertBucket")}
        assert len(runs) == 1, "what is there is not sent again"
        assert set(states(Path("wandb"))) == {"synced"}
    assert KEY not in capfd.readouterr().err


# Lineage


class Api:
    """Stands for wandb.Api; remembers the edges."""

    def __init__(self, lacking=""):
        self.edges, self.lacking, self.tags = [], lacking, {}

    def run(self, path):
        run = SimpleNamespace(tags=self.tags.get(path, ["own"]))
        run.use_artifact = lambda artifact: self.edges.append((path, artifact))
        run.update = lambda: self.tags.update({path: run.tags})
        return run

    def artifact(self, name, type):
        if self.lacking and self.lacking in name:
            raise ValueError(f"no artifact {name}")
        return f"{type} {name}"


@pytest.fixture
def chain(folder):
    """teacher -> two blocks -> images -> student, all uploaded, a student online, and an input that nobody here made."""
    offline_run(folder, "t", kind="teacher")
    offline_run(folder, "b", kind="recover", inputs={"teacher": "t" * 20})
    offline_run(folder, "c", kind="recover", inputs={"teacher": "t" * 20})
    offline_run(folder, "i", kind="images", inputs={"parts": ["b" * 20, "c" * 20]})
    offline_run(folder, "s", kind="student", inputs={"images": "i" * 20, "data": "elsewhere"})
    upload(find(folder))
    offline_run(folder, "o", inputs={"images": "i" * 20}).parent.rename(folder / "run-20260101_000009-o")
    return folder


def test_what_a_run_used_becomes_an_edge_once(chain):
    api = Api()
    assert link(api, records(chain)) == 6
    assert api.edges == [
        ("p/b", f"teacher p/of.t:{'t' * 16}"),
        ("p/c", f"teacher p/of.t:{'t' * 16}"),
        ("p/i", f"recover p/of.b:{'b' * 16}"),
        ("p/i", f"recover p/of.c:{'c' * 16}"),
        ("p/s", f"images p/of.i:{'i' * 16}"),
        ("p/o", f"images p/of.i:{'i' * 16}"),
    ]
    assert unlinked(records(chain)) == []
    assert link(again := Api(), records(chain)) == 0
    assert again.edges == []


def test_an_edge_that_fails_is_tried_again(chain):
    with pytest.raises(WmddError, match=r"the inputs of 2 runs are not linked \(no artifact p/of.t"):
        link(Api(lacking="of.t"), records(chain))
    assert [path.parent.name[-1] for path in unlinked(records(chain))] == ["b", "c"]
    assert link(Api(), records(chain)) == 2


def test_other_projects_and_runs_not_uploaded_are_left_alone(folder):
    offline_run(folder, "t", project="other")
    offline_run(folder, "s", inputs={"teacher": "t" * 20})
    offline_run(folder, "u")
    upload(find(folder)[:2])
    api = Api()
    assert (link(api, records(folder)), api.edges) == (0, [])
    assert len(records(folder)) == 2
    assert not list(folder.glob(f"*-u/{LINKED}"))


def test_the_project_of_a_team_is_asked(folder):
    offline_run(folder, "t", entity="team", kind="teacher")
    offline_run(folder, "s", entity="team", inputs={"teacher": "t" * 20})
    upload(find(folder))
    api = Api()
    assert link(api, records(folder)) == 1
    assert api.edges == [("team/p/s", f"teacher team/p/of.t:{'t' * 16}")]


def test_a_run_whose_output_was_made_again_with_other_settings_is_tagged(folder):
    for name, output in (("a", "/x"), ("b", "/x"), ("b", "/x"), ("c", "/elsewhere/x")):
        offline_run(folder, name, output=output)
    offline_run(folder, "d")  # of an earlier version
    upload(find(folder))
    api = Api()
    assert (mark(api, records(folder)), api.tags) == (1, {"p/a": ["own", "outdated"]})
    assert mark(api, records(folder)) == 0
    offline_run(folder, "a", output="/x")  # the setting is set back
    upload(find(folder))
    mark(api, records(folder))
    assert api.tags == {"p/a": ["own"], "p/b": ["own", "outdated"]}


# The command


def test_the_command_uploads_links_and_does_nothing_twice(folder, run, monkeypatch):
    api = Api()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Api=lambda: api))
    offline_run(folder, "t")
    offline_run(folder, "s", inputs={"teacher": "t" * 20})
    code, out, _ = run("sync --dry-run")
    assert code == 0
    total = size(sum(map(sync.size, find(folder))))
    assert out.startswith(f"wandb: 2 offline runs, 0 uploaded, 0 still running, 2 to upload ({total})\n")
    assert "-s" in out
    assert calls(folder) == api.edges == []
    code, out, _ = run("sync")
    assert (code, out.splitlines()[-1]) == (0, "uploaded 2 runs, linked 1 inputs, tagged 0 runs as outdated")
    code, out, _ = run("sync")
    assert (code, out) == (0, "wandb: 2 offline runs, 2 uploaded, 0 still running, 0 to upload (0 B)\n")
    assert len(calls(folder)) == len(api.edges) == 1


def test_a_folder_that_is_not_there(mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = "there is no folder wandb; give --folder the one that wandb wrote its offline runs to"
    assert mistake("sync") == said


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A home without any key, and a server that does not answer."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    return tmp_path


def write_netrc(home, host):
    (home / ".netrc").write_text(f"machine {host}\n  login user\n  password key-of-mine\n")
    (home / ".netrc").chmod(0o600)


def test_without_a_key_of_the_server_or_without_a_network_one_line_says_so(bare, monkeypatch):
    def said():
        with pytest.raises(WmddError) as error:
            check_server()
        assert "key-of-mine" not in str(error.value)
        assert "\n" not in str(error.value)
        return str(error.value)

    for write in (lambda: None, lambda: write_netrc(bare, "elsewhere.org")):
        write()
        assert said().startswith("there is no API key for http://127.0.0.1:9; run `wandb login` once")
    without_network = r"does not answer \(.*refused\); run this where there is a network"
    write_netrc(bare, "127.0.0.1")
    assert re.search(without_network, said())
    (bare / ".netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "key-of-mine")
    assert re.search(without_network, said())


def test_the_command_without_a_key_leaves_all_as_it_is(bare, run, monkeypatch):
    monkeypatch.chdir(bare)
    file = offline_run(bare / "wandb", "a")
    code, _, err = run("sync")
    assert (code, len(err.splitlines())) == (1, 1)
    assert [path.name for path in file.parent.iterdir() if path.suffix != ".json"] == [file.name]
