"""The command line itself: misspelt flags, help, settings and schema, ends of a process, and what reading arguments needs."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import wmdd
from tests.cli.artifacts import COMMANDS, IPC
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
        ("recove --seed 0", '"recover"'),
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
        ("matrix: [{datasets: [digts], methods: [wmdd]}]", "unknown name 'digts' in datasets; did you mean 'digits'?"),
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


def test_commands_are_defined_without_torch_and_pandas(tmp_path):
    loaded = "print([name for name in ('torch', 'pandas') if name in sys.modules])"
    done = process("-c", f"import sys, wmdd.cli.commands; {loaded}")
    assert done.stdout == "[]\n", done.stderr
