"""The command line itself: misspelt flags, help, settings and schema, ends of a process, and what reading arguments needs."""

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import wmdd
from tests.cli.artifacts import COMMANDS, IPC
from wmdd.cli.commands import app
from wmdd.workflow.experiment_file import schema

ROOT = Path(__file__).parents[2]
EXPERIMENT = """
experiment: tiny
matrix: [{datasets: [digits], teachers: [resnet18-w8], methods: [mine, random], ipc: [1]}]
methods:
  mine: {base: wmdd, recover: {lr: [0.1, 0.2]}}
"""


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (COMMANDS["recover"].replace("--iterations", "--iteration"), "--iterations"),
        (COMMANDS["student"] + " --temprature 3", "--temperature"),
        ("recove --seed 0", "unknown command 'recove'; did you mean 'recover'?"),
        (COMMANDS["recover"] + " --statistics globl", "global"),
        (COMMANDS["recover"].replace(f"--ipc {IPC}", "--ipc 0"), "Must be >= 1"),
        (COMMANDS["recover"].replace("--seed 0", ""), "--seed"),
        (COMMANDS["barycenter"].replace(f"--k {IPC}", "--k 0"), "Must be >= 1"),
    ],
)
def test_a_misspelt_command_line_exits_with_2_and_names_the_near_flag(here, run, line, says):
    code, out, err = run(line)
    assert (code, out) == (2, "")
    assert says in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert not (here / "o").exists()


def test_version_and_help(run):
    assert run("--version")[:2] == (0, f"{wmdd.__version__}\n")
    code, out, _ = run("recover --help")
    assert code == 0
    for words in "--regularisation", "of the teacher stage.", "images per class.", "of the features stage.":
        assert words in out


def test_a_bug_keeps_its_trace_and_an_interrupt_is_no_mistake(here, run, monkeypatch):
    monkeypatch.setattr("wmdd.cli.recover.optimise", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(COMMANDS["recover"])

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("wmdd.cli.recover.optimise", interrupt)
    code, _, err = run(COMMANDS["recover"])
    assert code == 130
    assert "Traceback" not in err


def _lacks_memory(*_):
    return torch.empty(2**46)


@pytest.mark.parametrize("lack", [_lacks_memory, lambda *_: np.empty(2**46), lambda *_: [0] * 2**60])
def test_a_lack_of_memory_is_one_line_with_a_remedy(here, run, monkeypatch, lack):
    monkeypatch.setattr("wmdd.cli.recover.optimise", lack)
    code, _, err = run(COMMANDS["recover"])
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert re.search(r"^wmdd recover: error: this machine, .* has no memory left \(.+\); ask for more", last)
    assert "Traceback" not in err


# config and schema


def test_config_prints_the_resolved_settings_of_all_stages_or_one(here, run, mistake):
    (here / "mine.yaml").write_text(EXPERIMENT)
    code, out, err = run("config mine.yaml")
    assert (code, err) == (0, "")
    settings = yaml.safe_load(out)
    rates = {name: entry["lr"] for name, entry in settings["recover"].items()}
    assert rates == {"digits mine-lr0.1": 0.1, "digits mine-lr0.2": 0.2}
    assert (settings["experiment"], settings["runs"]) == ("tiny", 3)
    one = yaml.safe_load(run("config mine.yaml --stage recover")[1])
    assert set(one) == {"experiment", "engine", "recover", "runs"}
    assert mistake("config mine.yaml --stage recovery").startswith("unknown stage 'recovery'; one of data, teacher")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("recover: {iteration: 3}", "mine.yaml: unknown key recover.iteration; did you mean 'iterations'?"),
        ("a: [", "mine.yaml is not valid YAML"),
        (None, "cannot read the experiment file mine.yaml: No such file or directory"),
    ],
)
def test_config_of_a_wrong_file(here, mistake, content, says):
    if content is not None:
        (here / "mine.yaml").write_text(content)
    assert mistake("config mine.yaml").startswith(says)


def test_schema_prints_json(run):
    code, out, err = run("schema")
    assert (code, err) == (0, "")
    assert json.loads(out) == schema()


# As a process


def process(*command):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, check=False)


def test_a_mistake_in_a_real_process(here):
    (here / "statistics.h5").unlink()
    done = process("-m", "wmdd", *shlex.split(COMMANDS["recover"]))
    expected = "wmdd recover: error: statistics.h5 does not exist; run the stage that makes it first\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)


HEAVY = {
    "torch", "torch._dynamo", "torchvision", "pandas", "pyarrow", "altair", "wandb", "diffusers", "transformers", "timm",
    "sklearn", "ot", "scipy", "snakemake", "PIL", "h5py", "numpy", "pydantic", "jinja2", "vl_convert", "requests",
}  # fmt: skip
FILES = {"pydantic", "numpy", "h5py"}
COMPUTING = {"teacher", "recover", "select", "student", "generator", "latent", "match", "measure", "export", "images"}
# The modules of the command line, and what they may import together: what reading the arguments of their commands takes.
MAY_IMPORT = [
    ({"commands"}, set()),
    ({"arguments", "workflow", "project"}, {"pydantic", "snakemake"}),
    ({"evaluate"}, FILES),
    ({"readers", "writers", "inspection", "join", "sweep", "tracking"}, FILES | {"requests"}),
    ({"grid"}, FILES | {"PIL"}),
    (
        {"tables", "kept_results", "page", "scoreboard"},
        FILES | {"PIL", "pandas", "pyarrow", "altair", "jinja2", "requests"},
    ),
    ({"data", "tensor_readers"} | COMPUTING, FILES | {"PIL", "torch", "requests"}),
]
IMPORT = """
import importlib, os, sys
for modules in sys.argv[1:]:
    if not (child := os.fork()):
        for module in modules.split():
            importlib.import_module(f"wmdd.cli.{module}")
        print(*sys.modules, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_what_a_command_may_import():
    names = [name for modules, _ in MAY_IMPORT for name in modules]
    assert sorted(names) == sorted(path.stem for path in (ROOT / "wmdd/cli").glob("*.py") if path.stem != "__init__")
    done = process("-c", IMPORT, *(" ".join(sorted(modules)) for modules, _ in MAY_IMPORT))
    assert done.stderr == ""
    imported = [HEAVY & set(line.split()) for line in done.stdout.splitlines()]
    assert [names - allowed for names, (_, allowed) in zip(imported, MAY_IMPORT, strict=True)] == [set()] * len(
        MAY_IMPORT
    )
    assert "torch" in imported[-1], "the list would see it"


def test_help_of_all_commands_imports_none_and_says_what_each_docstring_says(here):
    code = "import sys; from wmdd.__main__ import main\ntry:\n    main()\nfinally:\n    print(*sys.modules)"
    done = process("-c", code, "--help")
    out, _, modules = done.stdout.rpartition("\n╰")
    assert not HEAVY & set(modules.split())
    assert not [name for name in modules.split() if name.startswith("wmdd.cli.") and name != "wmdd.cli.commands"]
    text = " ".join(out.replace("│", " ").split())
    for name, command in app.resolved_commands().items():
        if not name.startswith("-"):
            summary = inspect.getdoc(command.default_command).splitlines()[0]
            assert f"{name} {summary.replace('`', '')}" in text
