"""What the benchmarks compare with computes the same, and what they keep is put together as it should be."""

import inspect
import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from benchmarks import circles, machine, published, published_students, stages, stages_labels, stages_recover, transport
from benchmarks.rows import merged
from benchmarks.stages_student import compared
from wmdd.base.rng import generator
from wmdd.cost.rates import read
from wmdd.networks import augment
from wmdd.networks.batchnorm import layers
from wmdd.networks.models import build, normalise
from wmdd.networks.normalisation import Normalisation
from wmdd.settings.network import NetworkSettings
from wmdd.settings.student import AugmentationSettings, StudentSettings
from wmdd.stages import relabel

ROOT = Path(__file__).parents[1]
MEAN, STD = [0.5, 0.4, 0.6], [0.2, 0.3, 0.25]
SIDE, WIDTH = 8, 4
CPU = torch.device("cpu")


@pytest.fixture
def files(tmp_path):
    """Pictures of noise, three of each of two classes."""
    pixels = torch.randint(256, (6, SIDE, SIDE, 3), generator=generator("pictures"), dtype=torch.uint8)
    paths = [tmp_path / f"{index}.png" for index in range(6)]
    for path, picture in zip(paths, pixels, strict=True):
        Image.fromarray(picture.numpy()).save(path)
    return paths


@pytest.fixture
def measured(monkeypatch):
    """The peaks of a machine, which take seconds to measure."""
    monkeypatch.setattr(stages, "matrix_rates", lambda _: {"fp32": 1e10, "bf16": 2e10})
    monkeypatch.setattr(stages, "copy_rate", lambda _: 5e9)


# ---- published ways


@pytest.mark.parametrize("loop", ["wmdd", "wmdd weighted", "sre2l without priors"])
def test_published_recover_has_the_losses_of_ours(loop):
    options = stages.parsed(["recover", "--threads", "1"])
    problem = stages_recover.Problem.of(SIDE, WIDTH, 3, 2)
    for changes in ({}, {"first_layer_weight": 3.0, "jitter": 2}, {"crop_scale": (1, 1), "flip": False}):
        settings = stages_recover.SAME_LOSS[loop] | changes | {"iterations": 5}
        ours = problem.ours(options, stages_recover.every, {"precision": "fp32", "mode": "plain"}, **settings)
        theirs = problem.published(options, stages_recover.every, loop, **settings)
        torch.testing.assert_close(torch.tensor(theirs), torch.tensor(ours), rtol=1e-4, atol=0)
        assert len(set(theirs)) == 5


def test_published_recover_clamps_and_takes_its_hooks_off():
    network = stages_recover.Problem.of(SIDE, WIDTH, 3, 2).network
    settings = machine.settings("RecoverSettings", iterations=2)
    images, _ = published.sre2l(network, torch.arange(3), 2, SIDE, MEAN, STD, settings, 0, CPU)
    pixels = images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    torch.testing.assert_close(pixels.aminmax(), (torch.tensor(0.0), torch.tensor(1.0)))
    assert not any(layer._forward_hooks for layer in layers(network).values())


def test_the_priors_are_of_neighbours_in_four_directions():
    image = torch.zeros(1, 1, 3, 3)
    image[..., 1, 1] = 2.0  # has two neighbours in each
    absolute, squared = published.priors(image)
    assert squared == pytest.approx(4 * 8**0.5)
    assert absolute == pytest.approx(4 / 6 + 4 / 6 + 4 / 4 + 4 / 4)


@pytest.mark.parametrize("side", [SIDE, 32])
def test_published_views_are_ours(tmp_path, side):
    # Smooth, so that what is compared is where the pixels come from; Pillow rounds to whole numbers after each direction.
    grid = torch.linspace(0, 3, side)
    waves = [grid.sin()[:, None] * grid.cos(), grid[:, None].cos() * grid.sin(), (grid[:, None] - grid).sin()]
    picture = (127.5 * (1 + torch.stack(waves))).round().to(torch.uint8)
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / "x.png")
    views = relabel.views_of(AugmentationSettings(mix="none"), 12, 5)
    ours = augment.apply(normalise(picture.expand(12, -1, -1, -1), Normalisation(MEAN, STD)), views, torch.arange(12))
    drawn = zip(views.crop.tolist(), views.flip.tolist(), strict=True)
    theirs = [published_students.view_of(tmp_path / "x.png", crop, flip, MEAN, STD) for crop, flip in drawn]
    torch.testing.assert_close(torch.stack(theirs), ours, rtol=0, atol=1.5 / 255 / min(STD))
    assert 0 < views.flip.sum() < 12


def test_published_labels_are_the_logits_of_what_the_student_sees(tmp_path, files):
    network = build(NetworkSettings(width=WIDTH), 2, SIDE, generator("teacher")).eval()
    published_students.relabel(network, files, tmp_path, 2, 4, AugmentationSettings(), MEAN, STD, 7, CPU)
    for epoch in range(2):
        order = published_students.batches_in(6, 4, 7, epoch)
        assert sorted(torch.cat(order).tolist()) == list(range(6))
        data = published_students.Batches(files, tmp_path, epoch, order, MEAN, STD)
        for images, (partner, (top, left, bottom, right)), logits in (data[batch] for batch in range(len(data))):
            inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
            inside[top:bottom, left:right] = True
            expected = torch.where(inside, images[partner], images)
            seen = published_students.mixed(images, (partner, (top, left, bottom, right)))
            torch.testing.assert_close(seen, expected)
            with torch.no_grad():
                torch.testing.assert_close(logits.float(), network(seen), rtol=2e-3, atol=1e-3)


def test_published_student_learns_its_labels(tmp_path, files):
    names = ("teacher", "student")
    teacher, student = (build(NetworkSettings(width=WIDTH), 2, SIDE, generator(name)) for name in names)
    whole = AugmentationSettings(crop_scale=(1, 1), mix="none")
    published_students.relabel(teacher.eval(), files, tmp_path, 8, 6, whole, MEAN, STD, 7, CPU)
    settings = StudentSettings(width=WIDTH, epochs=8, batch_size=6, temperature=1.0, lr=0.01)
    history = published_students.student(student, files, tmp_path, settings, MEAN, STD, 7, CPU, 0)
    assert history[-1] < 0.5 * history[0]
    with torch.no_grad():
        images = torch.stack([published_students.opened(file, MEAN, STD) for file in files])
        classes = student.eval()(images).argmax(1).tolist()
    data = published_students.Files(files, classes, MEAN, STD)
    assert published_students.evaluate(student, data, CPU, 0, 4) == 1


# ---- what is measured


def test_settings_without_pydantic_have_the_same_values():
    for name in ("EngineSettings", "RecoverSettings", "RelabelSettings", "StudentSettings", "TeacherSettings"):
        checked, unchecked = machine.settings(name), machine.unchecked(name)
        assert vars(unchecked) == {field: getattr(checked, field) for field in type(checked).model_fields}
        for field, value in inspect.getmembers(type(checked)):
            if isinstance(value, property) and not field.startswith(("_", "model_")) and field != "checkpoint":
                assert getattr(unchecked, field) == getattr(checked, field)


def test_a_clock_ends_a_stage_and_times_what_follows_the_warm_up():
    readings = iter([0, 10, 20, 50, 60, 70, 100])  # made; a batch begins, is warm, ends; the next likewise
    clock = stages_recover.Clock(2, 3, lambda: next(readings))
    assert list(clock(range(100), "what", 100, 0)) == [0, 1, 2, 3, 4]
    assert (clock.start, clock.each) == (20, 10 / 100 + (50 - 20) / 3)
    list(clock(range(100)))
    assert (clock.start, clock.each) == (20 + 20, pytest.approx(20 / 100 + (50 - 20 + 100 - 70) / 3))  # of all batches


def test_stores_of_labels_are_as_large_as_they_should_be():
    sizes = {row["way"]: row["bytes an image and epoch"] for row in stages_labels.time_stores(1000, 1, 4, 1)}
    assert 2000 <= sizes["stored"] < 2 * 2000
    assert 2000 + 16 <= sizes[stages_labels.FILES] < 1.1 * 2000
    assert sizes["pruned"] < 2000 / 40
    assert sizes["online"] == 0


# ---- what is kept


def row(way: str, resolution: int, value: float):
    return {"way": way, "resolution": resolution, "width": 64, "flops": value}


def test_rows_replace_those_of_the_same_size_and_machine():
    def section(*rows, machine="A"):
        return {"machine": machine, "torch": "2", "threads": 1, "options": {}, "rows": list(rows)}

    kept = merged({}, "recover", section(row("a", 32, 1), row("a", 64, 2)))
    kept = merged(kept, "labels", section(row("b", 32, 3)))
    kept = merged(kept, "recover", section(row("a", 64, 4)))
    assert kept["sections"]["recover"]["rows"] == [row("a", 32, 1), row("a", 64, 4)]
    kept = merged(kept, "recover", section(row("a", 64, 5), machine="B"))
    assert kept["sections"]["recover"]["rows"] == [row("a", 64, 5)]
    assert kept["sections"]["labels"] == section(row("b", 32, 3))


def test_ratios_are_against_the_faster_published_way_by_median():
    rows = compared("train", {"a": [2.0, 4.0, 6.0], "b": [9.0, 3.0, 1.0], "ours": [1.0, 1.0, 1.0]}, ["a", "b"])
    assert rows["ours"] == {
        "train seconds": [1, 1, 1], "train times published": [3, 2, 6], "train against": "b",
        "train times the slower": [4, 3, 5],
    }  # fmt: skip
    assert rows["b"]["train times published"] == [1, 1, 1]


def test_the_command_keeps_rates_that_the_plan_reads(tmp_path, measured, monkeypatch):
    rows = [row(way, side, rate) for way in ("wmdd, fp32", "wmdd, bf16") for side, rate in ((32, 3e9), (224, 2e9))]
    monkeypatch.setattr(stages, "default_ways", lambda _: {"recover": "wmdd, bf16", "student": "wmdd, auto"})
    sections = {"recover": lambda *_: rows, "labels": lambda *_: [row("stored", 32, 1)]}
    monkeypatch.setattr(stages, "SECTIONS", stages.SECTIONS | sections)
    path = tmp_path / "results" / "stages.json"
    for name in "recover", "labels":
        stages.main([name, "--output", str(path), "--data", "/some/where"])
    content = json.loads(path.read_text())
    assert content["sections"]["recover"]["options"]["data"] == "where"
    device = read(path)
    assert (device.kind, device.peak.flops, device.peak.bytes_per_s) == ("cpu", 2e10, 5e9)
    assert device.rates == {"recover": {32: 3e9, 224: 2e9}}
    stages.main(["labels", "--output", str(path), "--threads", "1"])
    content = json.loads(path.read_text())
    assert (content["threads"], content["rates"]) == (1, {})  # the rates that were kept are of another machine
    assert content["sections"]["recover"]["threads"] == 2


def test_students_learn_both_ways_from_a_folder(tmp_path, measured, monkeypatch):
    draws = generator("folder")
    for split, label, index in product(("train", "val"), range(2), range(4)):
        picture = torch.randint(128 * label, 128 * (label + 1), (SIDE, SIDE, 3), generator=draws).to(torch.uint8)
        path = tmp_path / split / str(label) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.numpy()).save(path)
    monkeypatch.setattr(stages_labels, "LABELS", {10: 4})
    path = tmp_path / "results.json"
    stages.main([
        "student", "labels", "--data", str(tmp_path), "--output", str(path), "--threads", "1", "--ipc", "2", "--seeds", "2",
        "--epochs", "2", "--teacher-epochs", "1", "--student-width", str(WIDTH), "--workers", "1",
        "--repeats", "1", "--together", "2",
    ])  # fmt: skip
    content = json.loads(path.read_text())
    rows = content["sections"]["student"]["rows"]
    ours = ["wmdd, fp32", "wmdd, auto", "wmdd, auto, 2 together"]
    assert [row["way"] for row in rows] == ["published, no workers", "published, 1 worker", *ours]
    assert rows[0]["top1"] == rows[1]["top1"]
    assert [row["students"] for row in rows] == [2, 2, 2, 2, 4]
    assert all(min(row["train seconds"] + row["evaluate seconds"]) > 0 for row in rows)
    assert content["rates"]["student"] == {str(SIDE): rows[3]["flops"]}
    assert content["preliminary"] == ["student"]
    stores = [row["way"] for row in content["sections"]["labels"]["rows"]]
    assert stores[4:] == ["student, stored", "student, pruned", "student, online"]


def test_recover_runs_as_a_file_and_without_what_runs_no_network(tmp_path):
    without = f"""
import runpy, sys
sys.modules |= dict.fromkeys(("pydantic", "cyclopts", "snakemake", "ot", "wandb"))
from benchmarks import machine
machine.matrix_rates, machine.copy_rate = lambda _: dict(fp32=1, bf16=1), lambda _: 1
sys.argv += "recover --threads 1 --width 4 --iterations 1 --repeats 1 --resolutions 8 --clock cpu --ways".split()
sys.argv += ["published wmdd, fp32", "wmdd, fp32", "--output", "{tmp_path}/x.json"]
runpy.run_path("{stages.__file__}", run_name="__main__")
"""
    subprocess.run([sys.executable, "-c", without], check=True, cwd=ROOT, capture_output=True, timeout=300)
    theirs, ours = json.loads((tmp_path / "x.json").read_text())["sections"]["recover"]["rows"]
    assert (theirs["way"], ours["way"]) == ("published wmdd, fp32", "wmdd, fp32")
    assert ours["times published wmdd"][0] == pytest.approx(theirs["ms"][0] / ours["ms"][0], rel=1e-2)


def test_a_student_needs_data(capsys):
    for section, said in (("student", "needs --data"), ("studnet", "unknown section 'studnet'")):
        with pytest.raises(SystemExit):
            stages.parsed([section])
        assert said in capsys.readouterr().err
    assert stages.parsed([]).sections == ["recover", "labels"]


def test_densities_and_growth_are_pictures(tmp_path):
    density = torch.zeros(4, 3)
    density[0, 2] = 1.0  # the lowest row: drawn upright, and darkest where it is highest
    pixels = circles.heat(density).load()
    assert (pixels[2, 3], pixels[0, 0]) == ((0x3F, 0, 0x7D), (0xFC, 0xFB, 0xFD))
    rows = json.loads((ROOT / "benchmarks/results/transport-cpu.json").read_text())["growth"]
    transport.draw_growth(pd.DataFrame(rows), tmp_path / "growth.png")
    with Image.open(tmp_path / "growth.png") as picture:
        assert len(picture.convert("RGB").getcolors(2**20)) > 50
