"""What an experiment will cost: FLOP by hand, work that is proportional, the jobs of the DAG, sums, and what is not known."""

import json
import math
import os
import re
import shlex
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from wmdd import artifacts, rates
from wmdd.__main__ import main
from wmdd.config import Experiment
from wmdd.errors import WmddError
from wmdd.figures import autoencoder, denoiser
from wmdd.labels import prune
from wmdd.latent.denoiser import build as build_denoiser
from wmdd.latent.vae import build as build_vae
from wmdd.models import build
from wmdd.plan import count, estimate, hours, plan, render, seconds, size
from wmdd.rng import generator
from wmdd.settings import AutoencoderSettings, DataSettings, DiffusionSettings, NetworkSettings, RelabelSettings
from wmdd.work import DIGITS, LAUNCHED, bytes_of_view, figures, pictures, work

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs/cost.md"
CORE, H200 = rates.device("cpu-core"), rates.device("h200")


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    """No data of this checkout are found."""
    monkeypatch.chdir(tmp_path)


def experiment(content=None, **cell):
    cell = {"datasets": ["cifar10"], "teachers": ["resnet18-w8"], "methods": ["wmdd"], "ipc": [2]} | cell
    return Experiment({"matrix": [{"students": ["resnet18-w8"], **cell}], **(content or {})})


def jobs(rule, content=None, **cell):
    return [job for job in work(experiment(content, **cell)).jobs.values() if job.rule == rule]


def total(rule, figure, content=None, **cell):
    return sum(getattr(job, figure) for job in jobs(rule, content, **cell))


# FLOP of a network


def test_flop_of_a_convnet_by_hand():
    found = figures(NetworkSettings(architecture="convnet3", width=4), 5, 8)
    assert found.flop == 2 * (64 * 27 * 4 + 16 * 36 * 4 + 4 * 36 * 4 + 4 * 5)
    assert (found.features, found.channels) == (4, 12)
    assert found.bytes == 4 * (27 * 4 + 2 * 36 * 4 + 3 * 4 + 4 * 3 * 4 + 4 * 5 + 5) + 8 * 3


def test_a_convnet_too_deep_for_its_pictures_is_refused():
    with pytest.raises(WmddError, match="convnet6 halves pictures of 32 px to nothing"):
        figures(NetworkSettings(architecture="convnet6"), 10, 32)
    assert figures(NetworkSettings(architecture="convnet6", pooling="none"), 10, 32).features == 64 * 32**2


def test_flop_of_a_transformer_by_hand():
    t, d = 16 * 16 + 1, 192  # tokens, width; 12 layers of queries, keys and values, attention, projection, two products
    layer = 2 * t * d * 3 * d + 2 * 2 * t * t * d + 2 * t * d * d + 2 * 2 * t * d * 4 * d
    embedding, head = 2 * (t - 1) * 2 * 2 * 3 * d, 2 * d * 10
    assert figures(NetworkSettings(architecture="vit-tiny"), 10, 32).flop == embedding + 12 * layer + head


def test_flop_of_resnet18_as_published():
    found = figures(NetworkSettings(), 1000, 224)
    assert 2 * found.flop == pytest.approx(7.26e9, rel=1e-3)
    assert found.features == 512
    assert found.bytes == pytest.approx(4 * 11_689_512 + 4 * 2 * found.channels, rel=1e-4)


@pytest.mark.parametrize(("training", "times"), [(False, 2), (True, 3)])
def test_a_step_is_a_multiple_of_a_forward_pass(training, times):
    settings = NetworkSettings(architecture="resnet18", width=4)
    network = build(settings, 5, 16, generator("flop")).requires_grad_(training)
    image = torch.zeros(1, 3, 16, 16, requires_grad=not training)
    with FlopCounterMode(display=False) as counter:
        network.eval()(image).sum().backward()
    spared = 2 * 16 * 16 * 27 * 4 if training else 0  # nobody wants the gradient of a real image
    assert counter.get_total_flops() == times * figures(settings, 5, 16).flop - spared


def test_an_unknown_network_is_refused():
    with pytest.raises(WmddError, match="unknown architecture 'resnet19'"):
        work(experiment({"teachers": {"resnet18-w8": {"architecture": "resnet19"}}}))


# Work


@pytest.mark.parametrize(
    ("rule", "content", "times"),
    [
        ("recover", {"recover": {"iterations": 4000}}, 2),
        ("recover", {"recover": {"batch_size": 7}}, 1),
        ("relabel", {"relabel": {"epochs": 900}, "protocols": {"paper": {"relabel": {"epochs": 900}}}}, 3),
        ("features", {"datasets": {"cifar10": {"data": {"images_per_class": 2500}}}}, 0.5),
    ],
)
def test_work_is_proportional_to_images_and_iterations(rule, content, times):
    for figure in "flop", "images":
        assert total(rule, figure, content) == times * total(rule, figure)


@pytest.mark.parametrize("rule", ["recover", "relabel"])
def test_work_is_proportional_to_images_per_class(rule):
    for figure in "flop", "images", "disk":
        assert total(rule, figure, ipc=[6]) == 3 * total(rule, figure, ipc=[2])


def test_a_training_is_its_epochs_and_its_looks():
    f = figures(NetworkSettings(width=8), 10, 32).flop
    (teacher,) = jobs("teacher", {"teachers": {"resnet18-w8": {"epochs": 25, "evaluate_every": 10, "batch_size": 128}}})
    assert teacher.flop == 25 * 50_000 * 3 * f + 3 * 10_000 * f  # looks after 10, 20 and 25
    assert (teacher.images, teacher.steps) == (25 * 50_000 + 3 * 10_000, 25 * 391)
    (student,) = jobs("student")
    assert student.flop == 300 * 20 * 3 * f + 6 * 10_000 * f
    assert student.steps == 300


def test_growing_images_cost_what_each_side_costs():
    small = {"teachers": {"resnet18-w8": {"epochs": 4, "progressive_from": 0.5}}}
    sides = [16, 24, 24, 32]  # 16, 21 and 27 to multiples of 8, and the full side from 3/4 on
    f = {side: figures(NetworkSettings(width=8), 10, 32 if side == 32 else side).flop for side in set(sides)}
    assert total("teacher", "flop", small) == pytest.approx(50_000 * 3 * sum(f[s] for s in sides) + 10_000 * f[32])


def test_a_teacher_from_outside_is_only_looked_at():
    Path("teacher.pt").touch()
    adopted = {"teachers": {"resnet18-w8": {"weights": "./teacher.pt"}}}
    assert total("teacher", "images", adopted) == 10_000
    assert total("teacher", "steps", adopted) == 0


def test_labels_stored_pruned_and_online():
    f = figures(NetworkSettings(width=8), 10, 32).flop
    views = 300 * 20
    stored, pruned, online = ({"relabel": {"store": store, "top_k": 5}} for store in ("stored", "pruned", "online"))
    assert (total("relabel", "flop", stored), total("relabel", "disk", stored)) == (views * f, views * 2 * 10)
    assert (total("relabel", "flop", pruned), total("relabel", "disk", pruned)) == (views * f / 4, views / 4 * 16)
    assert not jobs("relabel", online)
    assert total("student", "flop", online) == total("student", "flop", stored) + views * f
    assert total("student", "flop", pruned) == total("student", "flop", stored)
    hard = {"student": {"labels": "hard"}}
    assert not jobs("relabel", protocols=["paper-hard"])
    assert total("student", "flop", hard | online, protocols=["paper-hard"]) == total("student", "flop", stored)


@pytest.mark.parametrize("classes", [10, 300])
@pytest.mark.parametrize("k", [0, 4, 500])
def test_bytes_of_labels_are_those_that_are_written(classes, k):
    code = prune(torch.randn(7, classes, generator=generator("labels")), k, 20.0)
    written = sum(array.nbytes for array in code.arrays().values())
    assert 7 * bytes_of_view(RelabelSettings(store="pruned", top_k=k), classes) == written
    assert bytes_of_view(RelabelSettings(), classes) == 2 * classes


def test_bytes_on_disk():
    assert total("data", "disk") == 60_000 * 3 * 32**2
    assert (
        total("features", "disk")
        == 50_000 * (4 * 64 + 8) + 16 * 10 * figures(NetworkSettings(width=8), 10, 32).channels
    )
    assert total("recover", "disk") == total("images", "disk") == 20 * 3 * 32**2
    assert total("barycenter", "disk") == 20 * 4 * 65
    (imagenet,) = jobs("data", datasets=["imagenet-1k"])
    assert imagenet.disk == pytest.approx(147_897_477_120 + 6_744_924_160)
    (part,) = jobs("data", datasets=["imagenet-100"])
    assert part.disk == pytest.approx(imagenet.disk * (126_689 + 5_000) / (1_281_167 + 50_000))


def test_what_is_shared_by_jobs_is_the_whole():
    shared = {"datasets": {"cifar10": {"features_jobs": 3}}}
    for figure in "flop", "images":
        assert total("features_part", figure, shared) == pytest.approx(total("features", figure))
    assert len(jobs("features_part", shared)) == 3
    assert len(jobs("gather", shared)) == 1


# The jobs of the DAG


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # of `snakemake -n --forceall`, but for `all`
        ("config", "data 1 select 4 teacher 1 features 1 grid 6 relabel 12 student 18 barycenter 4 "
         "recover 8 images 8 report 1 page 1"),
        ("imagenette", "data 1 select 6 teacher 1 features 1 grid 8 relabel 8 student 16 barycenter 2 "
         "recover 2 images 2 report 1 page 1"),
        ("cifar10", "data 1 select 12 teacher 1 features 1 grid 8 relabel 24 student 48 barycenter 6 "
         "recover 12 images 12 report 1 page 1"),
        ("imagenet", "data 1 teacher 1 features_part 8 gather 1 barycenter 33 recover 33 "
         "images 4 grid 4 relabel 4 student 4 report 1 page 1"),
        ("latent", "data 1 select 6 teacher 1 features 1 autoencoder 1 encode 1 diffusion 1 decay 1 quantize 6 decode 6 "
         "barycenter 3 recover 3 images 9 distance 15 grid 5 relabel 15 student 30 distances 1 report 1 page 1"),
        ("match", "data 1 teacher 1 features 1 expert 200 match 33 images 33 select 9 grid 14 relabel 36 student 114 "
         "report 1 page 1"),
    ],
)  # fmt: skip
def test_the_jobs_are_those_of_the_dag(name, expected):
    found = work(Experiment.read(ROOT / f"config/{name}.yaml")).jobs
    assert Counter(job.rule for job in found.values()) == {
        rule: int(number) for rule, number in re.findall(r"(\w+) (\d+)", expected)
    }
    assert all(need in found for job in found.values() for need in job.needs)


@pytest.mark.parametrize(("width", "channels", "factor"), [(8, 4, 4), (16, 3, 8), (8, 2, 2)])
def test_an_autoencoder_by_hand(width, channels, factor):
    settings = AutoencoderSettings(width=width, channels=channels, factor=factor)
    network = build_vae(settings, 32, generator("flop"))
    encoder, decoder = autoencoder(settings, 32)
    with FlopCounterMode(display=False) as counter:
        latents = network.encode(torch.zeros(1, 3, 32, 32))
    assert (counter.get_total_flops(), latents.numel()) == (encoder.flop, encoder.features)
    with FlopCounterMode(display=False) as counter:
        network.decode(latents)
    assert counter.get_total_flops() == decoder.flop
    assert sum(tensor.nbytes for tensor in network.state_dict().values()) == encoder.bytes + decoder.bytes


@pytest.mark.parametrize(("width", "layers", "side"), [(8, 1, 8), (16, 2, 4)])
def test_a_denoiser_by_hand(width, layers, side):
    settings = DiffusionSettings(width=width, layers=layers)
    network = build_denoiser(settings, (4, side, side), 10, generator("flop"))
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 4, side, side), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    attention = (
        (2 * layers + 1) * 2 * 2 * (side // 2) ** 4 * 2 * width
    )  # its two products, which the counter leaves out on CPU
    found = denoiser(settings, 4, side, 10)
    assert found.flop - attention == counter.get_total_flops()
    assert found.bytes == sum(tensor.nbytes for tensor in network.state_dict().values())


LATENT = {"methods": ["ddoq"]}


def test_the_work_of_the_latent_family():
    encoder, decoder = autoencoder(AutoencoderSettings(), 32)
    unet = denoiser(DiffusionSettings(), 4, 8, 10)
    assert total("encode", "flop", **LATENT) == 50_000 * encoder.flop
    assert total("autoencoder", "flop", **LATENT) == (10 * 3 * 50_000 + 10_000) * (encoder.flop + decoder.flop)
    assert total("diffusion", "flop", **LATENT) == (50 * 3 * 50_000 + 5 * 10_000) * unet.flop
    assert total("decode", "flop", **LATENT) == 20 * (
        35 * 2 * unet.flop + decoder.flop
    )  # 0.7 of 50 steps, with guidance
    unguided = {"generators": {"latent-diffusion": {"decode": {"guidance": 1, "strength": 1}}}}
    assert total("decode", "flop", unguided, **LATENT) == 20 * (50 * unet.flop + decoder.flop)
    assert total("decode", "flop", methods=["ddoq-vae"]) == 20 * decoder.flop
    assert not jobs("diffusion", methods=["ddoq-vae"])
    assert total("encode", "disk", **LATENT) == 50_000 * 2 * 4 * 8 * 8
    assert math.isnan(total("decode", "flop", methods=["ddoq-sd"]))
    assert not jobs("autoencoder", methods=["ddoq-sd"])


CONVNET = NetworkSettings(architecture="convnet3", width=128, norm="instance")
F3 = 2 * (1024 * 27 * 128 + (256 + 64) * 1152 * 128 + 2048 * 10)  # of it, at 32 px for ten classes


def test_the_work_of_matching_untrained_networks():
    assert figures(CONVNET, 10, 32).flop == F3
    for method, real in (("dm", 256), ("datadam", 64)):
        of = {"methods": [method], "ipc": [5]}
        (job,) = jobs("match", **of)
        assert job.flop == 20_000 * 10 * (real + 3 * 5) * F3  # no gradient of the real images
        assert (job.images, job.steps) == (20_000 * 10 * (real + 5), 20_000)
        assert job.disk == total("images", "disk", **of) == 50 * 3 * 32**2
        assert not jobs("expert", **of)
        assert not jobs("recover", **of)
        assert not jobs("barycenter", **of)
    cut = {"datasets": {"cifar10": {"classes_per_block": 4}}}
    assert len(jobs("match", cut, methods=["dm"])) == 3
    assert total("match", "flop", cut, methods=["dm"]) == total("match", "flop", methods=["dm"])


def test_the_work_of_matching_trajectories():
    of = {"methods": ["mtt-cifar10-ipc10"], "ipc": [10]}
    (job,) = jobs("match", datasets=["cifar10"], **of)
    assert job.flop == 5000 * 30 * 100 * 11 * F3
    assert (job.images, job.steps) == (5000 * 30 * 100, 5000)
    assert {key[0] for key in job.needs} == {"data", "expert"}
    part = {"methods": {"mtt-cifar10-ipc10": {"match": {"student_batch": 20}}}}
    assert total("match", "flop", part, **of) == job.flop / 5
    experts = jobs("expert", **of)
    assert len(experts) == 100
    assert {expert.flop for expert in experts} == {50 * 50_000 * 3 * F3 + 50 * 10_000 * F3}
    assert {expert.steps for expert in experts} == {50 * 196}
    assert {expert.disk for expert in experts} == {51 * figures(CONVNET, 10, 32).bytes}
    assert {expert.width for expert in experts} == {128}


def test_trajectories_are_matched_in_one_block():
    cut = {"datasets": {"cifar10": {"classes_per_block": 4}}}
    (key,) = [key for key in work(experiment(cut, methods=["mtt"])).jobs if key[0] == "match"]
    assert key[-1] == "classes0-9"


def test_experts_are_trained_once_for_all_that_follow_them():
    cell = {"methods": ["mtt-cifar10-ipc1", "mtt-cifar10-ipc10", "dm"], "ipc": [1, 10], "seeds": [0, 1]}
    count = Counter(job.rule for job in work(experiment(runs=2, **cell)).jobs.values())
    assert (count["expert"], count["match"], count["images"], count["student"]) == (100, 12, 12, 24)
    few = {"methods": {"mtt-cifar10-ipc1": {"match": {"trajectories": 3}}}}
    names = ["mtt-cifar10-ipc1", "mtt-cifar10-ipc10-whitened"]
    found = Counter(key[2] for key in work(experiment(few, methods=names)).jobs if key[0] == "expert")
    assert found == {"convnet3": 3, "convnet3-whitened": 100}


def test_what_recover_begins_with_may_be_matched():
    mine = {"methods": {"mine": {"base": "wmdd", "recover": {"init": "method:mtt"}}}}
    count = Counter(job.rule for job in work(experiment(mine, methods=["mine"])).jobs.values())
    assert (count["expert"], count["match"], count["recover"], count["images"]) == (100, 1, 1, 2)


def test_what_a_method_starts_from_is_made_once():
    both = Counter(job.rule for job in work(experiment(methods=["ddoq", "ddoq-recover"])).jobs.values())
    alone = Counter(job.rule for job in work(experiment(methods=["ddoq-recover"])).jobs.values())
    assert (both["decode"], both["recover"], both["images"], both["student"]) == (1, 1, 2, 2)
    assert (alone["decode"], alone["recover"], alone["images"], alone["student"]) == (1, 1, 2, 1)


def test_protocols_with_the_same_labels_share_them():
    weights = {f"w-{how}": {"base": "paper", "student": {"weights": how}} for how in ("mass", "uniform")}
    other = {"other": {"base": "paper", "relabel": {"mix": "none"}}}
    found = experiment({"protocols": weights | other}, protocols=["paper", *weights, *other])
    keys = [key for key in work(found).jobs if key[0] == "relabel"]
    assert sorted(key[-1] for key in keys) == ["other", "paper"]


def test_jobs_are_counted_once():
    same = experiment(runs=3, protocols=["paper", "paper-hard"], seeds=[0, 1])
    found = Counter(job.rule for job in work(same).jobs.values())
    assert (found["teacher"], found["recover"], found["relabel"], found["student"]) == (1, 2, 2, 12)
    own = experiment({"teacher_seed": "same"}, seeds=[0, 1])
    assert Counter(job.rule for job in work(own).jobs.values())["features"] == 2


def test_an_empty_matrix_is_refused():
    with pytest.raises(WmddError, match="empty matrix"):
        work(Experiment({}))


# What is known of the pictures


def told(name, settings):
    notes = []
    return pictures(name, settings, notes.append), notes


def test_digits_are_split_as_the_data_stage_splits_them():
    from wmdd.data import _digits

    assert {"train": len(_digits(0)[0][0]), "val": len(_digits(0)[1][0])} == DIGITS


def test_folders_of_ones_own_are_counted(tmp_path):
    for split, number in ("train", 3), ("val", 2):
        for label in "ab":
            (tmp_path / f"own/{split}/{label}").mkdir(parents=True)
            for n in range(number):
                Image.new("RGB", (16, 16)).save(tmp_path / f"own/{split}/{label}/{n}.png")
    found, notes = told("own", DataSettings(root="own", classes=2))
    assert (found.train, found.val, found.resolution, found.disk, notes) == (6, 4, 16, 10 * 3 * 16**2, [])
    found, _ = told("own", DataSettings(root="own", classes=2, images_per_class=2, resolution=8, storage="encoded"))
    each = (tmp_path / "own/train/a/0.png").stat().st_size
    assert (found.train, found.resolution, found.disk) == (4, 8, 8 * each)


def test_a_data_file_is_believed_if_it_is_of_these_settings():
    settings = DataSettings(root="own", classes=2)
    meta = {"resolution": 24, "storage": "pixels", "counts": {"train": [3, 4], "val": [1, 1]}}
    artifacts.save(Path("data/own.h5"), {"x": np.zeros(1)}, meta | {"settings": settings.model_dump(mode="json")})
    found, notes = told("own", settings)
    assert (found.train, found.val, found.resolution, notes) == (7, 2, 24, [])
    assert found.disk == Path("data/own.h5").stat().st_size
    assert math.isnan(told("own", settings.model_copy(update={"classes": 3}))[0].train)


def test_what_is_not_known_is_a_question_mark_and_the_rest_is_there():
    data = {"data": {"source": "imagefolder", "root": "own", "classes": 4, "resolution": 32}}
    found = plan(work(experiment({"datasets": {"own": data}}, datasets=["own"])), CORE)
    rows = {row.rule: row for row in found.rows}
    assert math.isnan(rows["teacher"].seconds)
    assert rows["recover"].seconds > 0
    assert found.partial
    assert found.total.seconds >= rows["recover"].seconds
    text = render(found, "mine.yaml")
    assert re.search(r"teacher .* \? ", text)
    assert "nan" not in text
    assert text.splitlines()[-1].startswith("? own: its pictures are not known yet (there is no folder")


def test_totals_of_what_nobody_knows_are_question_marks():
    data = {"data": {"source": "imagefolder", "root": "own", "classes": 4}}
    asked = work(
        experiment({"datasets": {"own": data}}, datasets=["own"], methods=["random"], protocols=["paper-online"])
    )
    for on in (CORE, H200):
        text = render(plan(asked, on), "mine.yaml", parallel=4)
        assert re.search(r"^With 4 at once: more than [^,]*\.$", text, re.MULTILINE), "no upper bound"
        assert re.search(r"\| total .* \? \|$", text, re.MULTILINE), "the bytes on disk"
        assert "; ? on disk before compression." in text
        assert not re.search(r"(>|more than) +([|?;]|on |GPU)", text), text


@pytest.mark.parametrize("solver", ["cuturi-doucet", "quantize"])
def test_a_solver_that_nobody_measured(solver):
    found = plan(work(experiment({"barycenter": {"solver": solver}})), CORE)
    assert found.partial == (solver != "quantize")
    assert any("nothing was measured of solver cuturi-doucet" in note for note in found.notes) == found.partial


# Rates and time


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
    assert total("barycenter", "seconds") == pytest.approx(10 * each)
    assert total("barycenter", "seconds", {"barycenter": {"restarts": 3}}) == pytest.approx(30 * each)


def test_the_nearest_side_in_logarithm_counts():
    table = {32: 1.0, 128: 2.0}
    assert [rates.nearest(table, side) for side in (8, 60, 66, 500)] == [1, 1, 2, 2]
    assert math.isnan(rates.nearest(table, 0))


def test_a_rate_says_how_it_is_known():
    device = rates.Device(
        "d", "m", "cpu", 100.0, 1.0, {"recover": {32: 8.0}, "student": {32: 4.0}}, ("student",), 64, 0.5
    )
    assert device.rate("recover", 32, 64) == device.rate("recover", 32, 128) == (8, "measured")
    assert device.rate("recover", 32, 0) == (8, "measured")  # of a transformer, which has no width
    assert device.rate("recover", 32, 16) == (4, "scaled")
    assert device.rate("student", 32, 64) == (4, "preliminary")
    assert device.rate("teacher", 32, 64) == (4, "assumed")


@pytest.mark.parametrize("name", ["a100", "h100", "h200"])
def test_of_gpus_everything_is_assumed_and_says_so(name):
    device = rates.device(name)
    assert not device.rates
    assert device.rate("recover", 224, 64) == (rates.table()["share"] * device.flops, "assumed")
    text = render(plan(work(experiment()), device), "mine.yaml")
    assert "measured" not in text.replace("nothing was measured", "")
    assert "Assumed: 30% of the peak" in text


@pytest.mark.parametrize("device", [CORE, H200, rates.device("cpu-core-fp32")])
def test_no_job_is_faster_than_its_floor(device):
    for job in work(experiment(methods=["wmdd", "sre2l", "kmeans-medoid", "random", "datadam", "mtt"])).jobs.values():
        found = estimate(job, device)
        assert found.seconds >= rates.table()["start"] + max(found.at_peak, found.at_bandwidth)


@pytest.mark.parametrize(("method", "passes"), [("dm", 20_000), ("mtt", 5000 * 30)])
def test_networks_too_small_for_a_gpu_wait_for_the_host(method, passes):
    (job,) = jobs("match", methods=[method], ipc=[1])
    assert estimate(job, H200).seconds >= passes * LAUNCHED


def test_totals_are_sums_and_details_sum_to_the_rows():
    found = work(experiment(methods=["wmdd", "kmeans-medoid"], ipc=[1, 2]))
    short, long = plan(found, H200), plan(found, H200, detail=True)
    assert len(long.rows) > len(short.rows)
    for name in "jobs", "images", "steps", "flop", "seconds", "gpu", "at_peak", "at_bandwidth", "disk":
        assert sum(getattr(row, name) for row in short.rows) == pytest.approx(getattr(short.total, name))
        for row in short.rows:
            parts = [getattr(part, name) for part in long.rows if part.rule == row.rule]
            assert sum(parts) == pytest.approx(getattr(row, name))
    assert 0 < short.total.gpu < short.total.seconds
    assert plan(found, CORE).total.gpu == 0


def test_several_devices_by_grahams_bound():
    found = plan(work(experiment(seeds=[0, 1, 2])), CORE)
    assert found.with_devices(1) == (found.total.seconds, found.total.seconds)
    for number in 2, 3, 1000:
        least, most = found.with_devices(number)
        assert max(found.chain, found.total.seconds / number) == least <= most <= found.total.seconds
    rows = {row.rule: row for row in found.rows}
    stages = "data", "teacher", "features", "barycenter", "recover", "images", "relabel", "student", "report", "page"
    assert found.chain == pytest.approx(sum(rows[stage].seconds / rows[stage].jobs for stage in stages))


def test_a_chain_counts_the_share_of_each_gpu():
    alone, together = (plan(work(experiment({"teachers": {"resnet18-w8": {"gpus": gpus}}})), H200) for gpus in (1, 4))
    teacher = next(row.seconds for row in alone.rows if row.rule == "teacher")
    assert alone.chain - together.chain == pytest.approx(teacher * 3 / 4)
    assert alone.total == together.total


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (seconds, 0.0314, "0.031 s"), (seconds, 45, "45 s"), (seconds, 145, "2.4 min"),
        (seconds, 600, "10 min"), (seconds, 7200, "2.0 h"),
        (seconds, 36e5, "1,000 h"), (seconds, math.nan, "?"), (seconds, 0, ""), (hours, 360, "0.1"),
        (size, 1.5e9, "1.5 GB"), (size, 999, "999 B"), (size, math.nan, "?"), (size, 0, ""),
        (count, 1234.0, "1,234"), (count, 1.452e17, "1.45e17"), (count, math.nan, "?"),
    ],
)  # fmt: skip
def test_numbers_have_units(write, value, text):
    assert write(value) == text


# The command


@pytest.fixture
def run(monkeypatch, capfd):
    """Run a command line as `python -m wmdd` does; return standard output, or the one line of a mistake."""

    def run(line):
        monkeypatch.setattr(sys, "argv", ["wmdd", *shlex.split(line)])
        try:
            main()
        except SystemExit as end:
            if end.code:
                return str(end.code)
        return capfd.readouterr().out

    return run


MINE = "experiment: mine\nmatrix: [{datasets: [digits], teachers: [resnet18-w8], methods: [wmdd], ipc: [1]}]\n"
OWN = {
    "machine": "mine", "torch": "2", "device": "cuda", "peak": {"flops": 1e12, "bytes_per_s": 1e11},
    "rates": {"recover": {"32": 5e11}, "student": {}, "teacher": {}, "features": {}, "relabel": {}},
}  # fmt: skip


def test_the_command_prints_a_plan(run):
    Path("mine.yaml").write_text(MINE)
    found = run("plan --configfile mine.yaml --parallel 3")
    assert found.startswith("mine.yaml on cpu-core: AMD EPYC")
    assert re.search(r"\| digits +\| recover +\| +1 \|", found)
    assert "With 3 at once" in found
    Path("mine.yaml").write_text(MINE + "engine: {precision: fp32}\n")
    assert run("plan --configfile mine.yaml").startswith("mine.yaml on cpu-core-fp32")


def test_rates_of_a_machine_of_ones_own(run):
    Path("mine.yaml").write_text(MINE)
    Path("own.json").write_text(json.dumps(OWN | {"sections": {"more": 1}}))
    found = run("plan --configfile mine.yaml --rates own.json")
    assert found.startswith("mine.yaml on own: mine")
    assert "5.00e11 measured" in found
    assert "Assumed: the slowest measured rate of own" in found
    assert "GPU-h" in found


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            "--device h300",
            "unknown device 'h300'; known: cpu-core, cpu-core-fp32, a100, h100, h200; for one of your own",
        ),
        ("--device h200 --rates own.json", "give --device or --rates, not both"),
        ("--rates none.json", "cannot read the rates none.json: No such file or directory"),
        ("--rates mine.yaml", "mine.yaml is not valid JSON: "),
    ],
)
def test_a_mistake_in_the_options(run, options, says):
    Path("mine.yaml").write_text(MINE)
    assert run(f"plan --configfile mine.yaml {options}").startswith(f"wmdd plan: error: {says}")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"peak": {"flops": 1e12}},
            "own.json does not hold the rates of a device ('bytes_per_s' is missing); docs/cost.md",
        ),
        (
            {"peak": {"flops": -1, "bytes_per_s": 1}},
            "own.json does not hold the rates of a device (-1 is not a number above",
        ),
        ({"rates": {"recover": {"large": 1e9}}}, "own.json does not hold the rates of a device (invalid literal"),
        (
            {"rates": {"recover": {"32": "fast"}}},
            "own.json does not hold the rates of a device ('fast' is not a number",
        ),
        (
            {"rates": {"barycenter": {"32": 1e9}}},
            "own.json: no stage 'barycenter' runs a network; give rates of teacher,",
        ),
        ({"device": "tpu"}, "own.json: device is 'tpu'; give cpu or cuda"),
    ],
)
def test_a_mistake_in_a_file_of_rates(change, says):
    Path("own.json").write_text(json.dumps(OWN | change))
    with pytest.raises(WmddError) as caught:
        rates.read(Path("own.json"))
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


def test_a_list_is_no_file_of_rates():
    Path("own.json").write_text("[1]")
    with pytest.raises(WmddError, match=r"own\.json does not hold the rates of a device"):
        rates.read(Path("own.json"))


def test_mistakes_in_the_experiment_are_those_of_config(run):
    Path("mine.yaml").write_text("recover: {iteration: 3}")
    assert "unknown key recover.iteration; did you mean 'iterations'?" in run("plan --configfile mine.yaml")
    Path("mine.yaml").write_text("experiment: mine")
    assert "the experiment has an empty matrix" in run("plan --configfile mine.yaml")


# The document


def test_the_docs_hold_what_the_command_prints(run):
    """With WMDD_REFRESH set, write it."""
    Path("config").symlink_to(ROOT / "config")
    text = DOCS.read_text()

    def refreshed(block):
        return f"<!-- python -m wmdd {block[1]} -->\n\n{run(block[1])}\n<!-- end -->"

    fresh = re.sub(r"<!-- python -m wmdd (.*?) -->\n.*?<!-- end -->", refreshed, text, flags=re.DOTALL)
    if os.environ.get("WMDD_REFRESH"):
        DOCS.write_text(fresh)
    else:
        assert text == fresh


def test_the_floor_of_recover_that_the_docs_name():
    content = work(Experiment.read(ROOT / "config/imagenet.yaml"))
    row = next(r for r in plan(content, H200, detail=True).rows if (r.rule, r.ipc) == ("recover", "10"))
    assert row.images == 10_000 * 2_000
    assert row.flop == pytest.approx(10_000 * 2_000 * 7.26e9, rel=1e-3)
    assert count(row.flop) == "1.45e17"
    assert "1.45e17 FLOP" in DOCS.read_text()
    assert row.at_peak == pytest.approx(row.flop / 9.89e14)  # 2.4 min
