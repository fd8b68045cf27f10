"""The law of each stage: proportional work, FLOP by hand, bytes that are written, and what is not known."""

import inspect
import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from wmdd.base.rng import generator
from wmdd.cost import dataset, latent_laws, laws, rates, scene
from wmdd.cost.flop import autoencoder, counts, denoiser
from wmdd.cost.laws import LAWS, bytes_of_view, work
from wmdd.cost.scene import Shapes
from wmdd.datasets import loader
from wmdd.networks import engine, training
from wmdd.settings.latent import AutoencoderSettings, DiffusionSettings
from wmdd.settings.network import NetworkSettings
from wmdd.settings.student import RelabelSettings
from wmdd.stages import data, embedding, features, recover
from wmdd.stages.labels import prune
from wmdd.transport import dimension
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.layout import Cell
from wmdd.workflow.stages import NETWORK, STAGES

ROOT = Path(__file__).parents[2]
CELL = Cell("cifar10", "resnet18-w8", "wmdd", 2, 0, "resnet18-w8", "paper")
F = counts(NetworkSettings(width=8), 10, 32).flop  # of these teachers and students
CONVNET = NetworkSettings(architecture="convnet3", width=128, norm="instance")
F3 = 2 * (1024 * 27 * 128 + (256 + 64) * 1152 * 128 + 2048 * 10)  # of it, at 32 px for ten classes


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    """No data of this checkout are found."""
    monkeypatch.chdir(tmp_path)


def job(stage, content=None, **cell):
    return work(Shapes(Experiment(content or {})), stage, CELL.having(**cell))


def test_every_stage_has_a_law_that_says_whether_it_runs_a_network():
    assert set(LAWS) | {"features_part"} == set(STAGES)
    methods = dict.fromkeys(("autoencoder", "encode", "diffusion", "quantize", "decode", "decay"), "ddoq")
    methods |= {"match": "dm", "expert": "mtt-cifar10-ipc1", "select": "patches"}
    for stage in STAGES:
        rated = job(stage, method=methods.get(stage, "wmdd"), block="classes0-4").rated
        assert rated == (stage.removesuffix("_part") if STAGES[stage].network else "")
    assert {stage.removesuffix("_part") for stage in STAGES if STAGES[stage].network} == set(NETWORK)
    assert not job("select", method="random").rated


def test_the_constants_are_those_of_the_stages():
    def default(function, name):
        return inspect.signature(function).parameters[name].default

    assert (dataset.RESIDENT_MB, dataset.PIXELS) == (loader.RESIDENT_MB, data.PIXELS)
    assert (scene.SHARD, laws.CACHED, laws.LARGEST) == (features.SHARD, features.CACHED, recover.LARGEST)
    assert engine.AT_ONCE["cpu"] == scene.AT_ONCE
    assert (embedding.CLASSES, embedding.MADE, embedding.REAL) == laws.MAPPED
    assert default(training.evaluate, "size") == scene.EVALUATED
    assert default(dimension.intrinsic_dimension, "most") == latent_laws.MEASURED


# The chain of recover


def test_work_is_proportional_to_images_and_iterations():
    longer = {"relabel": {"epochs": 900}, "protocols": {"paper": {"relabel": {"epochs": 900}}}}
    for stage, content, times in (
        ("recover", {"recover": {"iterations": 4000}}, 2),
        ("recover", {"recover": {"batch_size": 7}}, 1),
        ("relabel", longer, 3),
        ("features", {"datasets": {"cifar10": {"data": {"images_per_class": 2500}}}}, 0.5),
    ):
        more, less = job(stage, content), job(stage)
        assert (more.flop, more.images) == (times * less.flop, times * less.images)
    for stage in ("recover", "relabel", "join"):
        more, less = job(stage, ipc=6), job(stage, ipc=2)
        assert (more.flop, more.images, more.disk) == (3 * less.flop, 3 * less.images, 3 * less.disk)


def test_what_jobs_share_is_the_whole():
    for stage, method in ("features", "wmdd"), ("recover", "wmdd"), ("match", "dm"), ("encode", "ddoq"):
        whole = job(stage, method=method)
        parts = [job(stage, method=method, block=block) for block in ("classes0-2", "classes3-9")]
        for name in "flop", "images", "disk":
            assert sum(getattr(part, name) for part in parts) == pytest.approx(getattr(whole, name))


def test_a_training_is_its_epochs_and_its_looks():
    teacher = job("teacher", {"teachers": {"resnet18-w8": {"epochs": 25, "evaluate_every": 10, "batch_size": 128}}})
    assert teacher.flop == 25 * 50_000 * 3 * F + 3 * 10_000 * F  # looks after 10, 20 and 25
    assert (teacher.images, teacher.steps) == (25 * 50_000 + 3 * 10_000, 25 * 391)
    student = job("student")
    assert student.flop == 300 * 20 * 3 * F + 6 * 10_000 * F
    assert student.steps == 300
    assert job("student", {"runs_per_job": 3}).flop == 3 * student.flop


def test_students_of_the_whole_training_set_see_as_much_as_those_of_a_part_but_hold_it_all():
    for stage in "relabel", "student":
        whole, random = (job(stage, method=method) for method in ("whole", "random"))
        assert (whole.images, whole.flop, whole.steps) == (random.images, random.flop, random.steps)
        assert whole.memory - random.memory == pytest.approx(1.25 * (50_000 - 20) * 3 * 32**2)


def test_growing_images_cost_what_each_side_costs():
    small = {"teachers": {"resnet18-w8": {"epochs": 4, "progressive_from": 0.5}}}
    sides = [16, 24, 24, 32]  # 16, 21 and 27 to multiples of 8, and the full side from 3/4 on
    each = [counts(NetworkSettings(width=8), 10, side).flop for side in sides]
    assert job("teacher", small).flop == pytest.approx(50_000 * 3 * sum(each) + 10_000 * F)


def test_a_teacher_from_outside_is_only_looked_at():
    Path("teacher.pt").touch()
    adopted = job("teacher", {"teachers": {"resnet18-w8": {"weights": "./teacher.pt", "gpus": 4}}})
    assert (adopted.images, adopted.steps, adopted.gpus) == (10_000, 0, 1)


def test_labels_stored_pruned_and_online():
    views = 300 * 20
    stored, pruned, online = ({"relabel": {"store": store, "top_k": 5}} for store in ("stored", "pruned", "online"))
    assert (job("relabel", stored).flop, job("relabel", stored).disk) == (views * F, views * 2 * 10)
    assert (job("relabel", pruned).flop, job("relabel", pruned).disk) == (views * F / 4, views / 4 * 16)
    usual = job("student", stored).flop
    assert job("student", pruned).flop == job("student", online, protocol="paper-hard").flop == usual
    assert job("student", online).flop == usual + views * F


def test_every_teacher_of_the_labels_looks_at_every_view():
    several = {
        "relabel": {"teachers": ["c"]},
        "teachers": {"c": {"architecture": "convnet3", "width": 128, "norm": "instance"}},
    }
    asked = {"relabel": several["relabel"] | {"store": "online"}, "teachers": several["teachers"]}
    views, usual = 300 * 20, job("student").flop
    assert job("relabel", several).flop == views * (F + F3)
    assert (job("relabel", several).images, job("relabel", several).disk) == (2 * views, views * 2 * 10)
    assert job("student", asked).flop == usual + views * (F + F3)


def test_bytes_of_labels_are_those_that_are_written():
    for classes, k in itertools.product((10, 300), (0, 4, 500)):
        code = prune(torch.randn(7, classes, generator=generator("labels")), k, 20.0)
        written = sum(array.nbytes for array in code.arrays().values())
        assert 7 * bytes_of_view(RelabelSettings(store="pruned", top_k=k), classes) == written
        assert bytes_of_view(RelabelSettings(), classes) == 2 * classes


def test_bytes_on_disk():
    moments = 16 * 10 * counts(NetworkSettings(width=8), 10, 32).channels
    assert job("data").disk == 60_000 * 3 * 32**2
    assert job("features").disk == job("gather").disk == 50_000 * (4 * 64 + 8) + moments
    assert job("recover").disk == job("join").disk == 20 * 3 * 32**2
    assert job("barycenter").disk == 20 * 4 * 65
    assert job("select", method="random").disk == 20 * 3 * 32**2
    assert job("select", method="whole").disk == 50_000 * 3 * 32**2
    imagenet, part = (job("data", dataset=name) for name in ("imagenet-1k", "imagenet-100"))
    assert imagenet.disk == pytest.approx(147_897_477_120 + 6_744_924_160)
    assert part.disk == pytest.approx(imagenet.disk * (126_689 + 5_000) / (1_281_167 + 50_000))
    assert math.isnan(job("data", dataset="imagefruit").disk)  # of which no source says how many pictures it has


# Other families


def test_the_work_of_the_latent_family():
    of = {"method": "ddoq"}
    encoder, decoder = autoencoder(AutoencoderSettings(), 32)
    unet = denoiser(DiffusionSettings(), 4, 8, 10)
    assert job("encode", **of).flop == 50_000 * encoder.flop
    assert job("encode", **of).disk == 50_000 * 2 * 4 * 8 * 8
    assert job("autoencoder", **of).flop == (10 * 3 * 50_000 + 10_000) * (encoder.flop + decoder.flop)
    assert job("diffusion", **of).flop == (50 * 3 * 50_000 + 5 * 10_000) * unet.flop
    assert job("decode", **of).flop == 20 * (35 * 2 * unet.flop + decoder.flop)  # 0.7 of 50 steps, with guidance
    unguided = {"generators": {"latent-diffusion": {"decode": {"guidance": 1, "strength": 1}}}}
    assert job("decode", unguided, **of).flop == 20 * (50 * unet.flop + decoder.flop)
    assert job("decode", method="ddoq-vae").flop == 20 * decoder.flop
    assert math.isnan(job("decode", method="ddoq-sd").flop)


def test_the_work_of_matching_untrained_networks():
    assert counts(CONVNET, 10, 32).flop == F3
    for method, real in ("dm", 256), ("datadam", 64):
        matched = job("match", method=method, ipc=5)
        assert matched.flop == 20_000 * 10 * (real + 3 * 5) * F3  # no gradient of the real images
        assert (matched.images, matched.steps, matched.disk) == (20_000 * 10 * (real + 5), 20_000, 50 * 3 * 32**2)


def test_the_work_of_matching_trajectories():
    of = {"method": "mtt-cifar10-ipc10", "ipc": 10}
    matched = job("match", **of)
    assert matched.flop == 5000 * 30 * 100 * 11 * F3
    assert (matched.images, matched.steps) == (5000 * 30 * 100, 5000)
    part = {"methods": {"mtt-cifar10-ipc10": {"match": {"student_batch": 20}}}}
    assert job("match", part, **of).flop == matched.flop / 5
    expert = job("expert", **of)
    assert (expert.flop, expert.steps) == (50 * 50_000 * 3 * F3 + 50 * 10_000 * F3, 50 * 196)
    assert (expert.disk, expert.width) == (51 * counts(CONVNET, 10, 32).bytes, 128)


# Solvers


def measured(kind):
    """The measured rows of a solver: N, D, K, seconds of a class."""
    content = json.loads((ROOT / "benchmarks/results/transport-cpu.json").read_text())
    table, solver = {
        "free": ("free", "wmdd"), "uniform": ("uniform", "wmdd uniform"), "released-uniform": ("uniform", "POT from noise"),
    }[kind]  # fmt: skip
    for row in content["table"][table]:
        if row["solver"] == solver:
            n, d = map(int, re.search(r"(\d+) x (\d+)", row["input"]).groups())
            yield n, d, row["k"], row["ms"] / 1e3
    for row in content["imagenet"] if kind == "free" else ():
        yield 1300, 512, row["k"], row["seconds"] / row["classes"]


@pytest.mark.parametrize("kind", ["free", "uniform", "released-uniform"])
def test_the_law_of_barycenters_is_the_fit_of_what_was_measured(kind):
    law = rates.table()["cpu"]["barycenter"][kind]
    found = [law["scale"], law["points"], law["features"], law["atoms"]]
    sizes, spent = np.array([row[:3] for row in measured(kind)]), np.array([row[3] for row in measured(kind)])
    terms = np.column_stack([np.ones(len(sizes)), np.log(sizes)])
    fitted = np.linalg.lstsq(terms, np.log(spent), rcond=None)[0]
    np.testing.assert_allclose([math.log(found[0]), *found[1:]], fitted, atol=5e-3)
    off = np.abs(terms @ [math.log(found[0]), *found[1:]] - np.log(spent))
    assert 0.9 * law["within"] < math.exp(off.max()) <= law["within"]


def test_the_seconds_of_barycenters_are_the_laws():
    law = rates.table()["cpu"]["barycenter"]["uniform"]
    each = law["scale"] * 5000 ** law["points"] * 64 ** law["features"] * 2 ** law["atoms"]
    assert job("barycenter").seconds == pytest.approx(10 * each)
    assert job("barycenter", {"barycenter": {"restarts": 3}}).seconds == pytest.approx(30 * each)


def test_a_solver_that_nobody_measured_is_not_known():
    for solver, unknown in ("cuturi-doucet", True), ("quantize", False):
        shapes = Shapes(Experiment({"barycenter": {"solver": solver}}))
        assert math.isnan(work(shapes, "barycenter", CELL).seconds) == unknown
        assert any("nothing was measured of solver cuturi-doucet" in note for note in shapes.notes) == unknown
