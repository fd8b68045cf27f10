"""The script for a few minutes of a GPU, rehearsed on a CPU: it needs little, loses nothing, and has the presets right."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import gpu, gpu_checks, gpu_study
from wmdd.workflow.experiment import Experiment

ROOT = Path(__file__).parents[1]
MISSING = ("pydantic", "cyclopts", "snakemake", "ot", "wandb", "sklearn")


@pytest.fixture
def pictures(tmp_path):
    """Pictures of noise, 12 of each of two classes."""
    draws = np.random.default_rng(0)
    for split, count in ("train", 12), ("val", 4):
        for name in "ab":
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "pictures"


def test_a_rehearsal_without_the_packages_that_a_gpu_machine_may_lack(pictures, tmp_path):
    without = f"import sys; sys.modules.update(dict.fromkeys({MISSING!r})); from benchmarks.gpu import main; main()"
    given = f"--device cpu --toy --threads 1 --seeds 1 --modes eager --parts checks study --output {tmp_path / 'out'}"
    command = [sys.executable, "-c", without, *given.split(), "--data", str(pictures)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    content = json.loads((tmp_path / "out/gpu-cpu.json").read_text())
    assert content["finished"]
    assert "left out" not in content
    assert [row["check"] for row in content["checks"] if not row["right"]] == []
    assert len(content["checks"]) == 15
    rows = {(row["method"], row["optimizer"]): row for row in content["study"]}
    assert rows.keys() == {(method, optimizer) for method in gpu_study.METHODS for optimizer in gpu_study.OPTIMIZERS}
    assert all(0 <= row["top1"] <= 100 and row["steps"] == 1 for row in rows.values())


def test_what_there_was_no_time_for_is_named_and_the_file_is_whole(pictures, tmp_path):
    gpu.main(["--device", "cpu", "--toy", "--minutes", "0", "--data", str(pictures), "--output", str(tmp_path)])
    content = json.loads((tmp_path / "gpu-cpu.json").read_text())
    assert {"study", "stages student --data " + str(pictures)} < {*content["left out"]}
    assert "checks" not in content


def test_what_fails_among_the_stages_is_no_end(monkeypatch, pictures, tmp_path):
    called = []

    def main(arguments):
        called.append(arguments[0])
        if arguments[0] == "student":
            raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu.stages, "main", main)
    options = f"--device cpu --toy --parts stages --data {pictures} --output {tmp_path}"
    gpu.main(options.split())
    rows = json.loads((tmp_path / "gpu-cpu.json").read_text())["stages"]
    assert called == ["recover", "student", "labels"]
    assert [row.get("error") for row in rows] == [None, "RuntimeError: out of memory", None]


@pytest.mark.parametrize(("made", "said"), [(False, "there is no"), (True, "is no tar archive")])
def test_data_that_are_none_are_one_line(tmp_path, made, said):
    if made:
        (tmp_path / "data").write_text("no archive")
    with pytest.raises(SystemExit, match=said):
        gpu.main(["--device", "cpu", "--toy", "--data", str(tmp_path / "data"), "--output", str(tmp_path)])


def test_a_cut_off_loses_nothing(monkeypatch, tmp_path):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_checks.School, "answers", killed)
    with pytest.raises(KeyboardInterrupt):
        gpu.main(f"--device cpu --toy --threads 1 --modes eager --parts checks --output {tmp_path}".split())
    content = json.loads((tmp_path / "gpu-cpu.json").read_text())
    assert "finished" not in content
    assert [row["check"].split(":")[0] for row in content["checks"]] == ["recover"] * 3 + ["student"] * 3


def test_a_wrong_way_is_found_and_one_that_fails_is_no_end(monkeypatch, tmp_path, capsys):
    answers = gpu_checks.School.answers
    monkeypatch.setattr(
        gpu_checks.School, "answers", lambda self, engine: answers(self, engine) * (1.1 if engine.fast else 1)
    )
    monkeypatch.setattr(gpu_checks.School, "embedded", lambda *_: torch.zeros(0).max())
    gpu.main(f"--device cpu --toy --threads 1 --modes eager --parts checks --output {tmp_path}".split())
    rows = json.loads((tmp_path / "gpu-cpu.json").read_text())["checks"]
    wrong = {row["check"]: row for row in rows if not row["right"]}
    assert {name.split(":")[0] for name in wrong} == {"labels", "features"}
    assert wrong["labels: eager, fp32 against plain"]["difference"] == pytest.approx(0.1, rel=1e-3)
    assert "RuntimeError" in wrong["features: eager, fp32 against plain"]["error"]
    assert "wrong: labels: eager, fp32 against plain" in capsys.readouterr().out


@pytest.mark.parametrize("side", [32, 64, 224])
def test_protocols_are_those_of_the_presets(side):
    names = sorted({name for name, _ in gpu_study.CELLS} | {"rded", "edc", "paper-hard"})
    matrix = {
        "datasets": ["mine"], "teachers": ["resnet18"], "methods": ["random"], "ipc": [1], "seeds": [0],
        "students": ["resnet18"], "protocols": names,
    }  # fmt: skip
    datasets = {"mine": {"data": {"source": "imagefolder", "root": "nowhere", "resolution": side}}}
    experiment = Experiment({"matrix": [matrix], "datasets": datasets})
    plain = Experiment({"matrix": [matrix | {"protocols": ["mine"]}], "datasets": datasets, "protocols": {"mine": {}}})
    (other,) = plain.runs()
    for run in experiment.runs():
        views, learning = gpu_study.protocol(run.protocol, side)
        assert {"epochs", "batch_size", "lr", "optimizer"} <= learning.keys()
        for stage, values in ("relabel", views), ("student", learning):
            named, unnamed = experiment.settings(stage, run), plain.settings(stage, other)
            differing = {key for key in type(named).model_fields if getattr(named, key) != getattr(unnamed, key)}
            assert differing <= values.keys(), "nothing that the preset sets is left out"
        for stage, values in ("relabel", views), ("student", learning):
            resolved = experiment.settings(stage, run)
            assert {key: getattr(resolved, key) for key in values} == {
                key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
            }
