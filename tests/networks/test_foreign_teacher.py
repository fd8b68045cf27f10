"""Weights from outside compute in our networks what they compute in their own; what does not fit is refused in a line."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from tests.networks.conftest import shaken, theirs
from wmdd.artifacts.hdf5_writer import save
from wmdd.artifacts.model_files import load_model, save_model
from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.cli.tensor_readers import read_teacher
from wmdd.datasets import imagenet_classes
from wmdd.networks.foreign_teacher import pretrained, translated
from wmdd.networks.models import ResNet, build, normalise
from wmdd.networks.normalisation import Normalisation
from wmdd.settings.base import flags
from wmdd.settings.network import NetworkSettings
from wmdd.settings.teacher import TeacherSettings
from wmdd.workflow.experiment import Experiment

CLASSES = ["ant", "bee", "cat"]
FAMILIES = ["mobilenet_v3_small", "densenet121", "shufflenet_v2_x0_5", "swin_t"]
SMALL_OF_TIMM = ["test_resnet", "test_vit", "test_efficientnet", "test_maxvit"]


def small(stride: int = 1) -> nn.Module:
    """A ResNet-18 of torchvision with the stem that most take for CIFAR."""
    network = theirs()
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, stride, 1, bias=False), nn.Identity()
    return network


def taken(weights, architecture: str = "resnet18", classes=CLASSES, resolution: int = 64, **changes):
    return pretrained(TeacherSettings(weights=str(weights), architecture=architecture, **changes), classes, resolution)


def refused(*arguments, **options) -> str:
    """The one line that a mistake gives."""
    with pytest.raises(WmddError) as error:
        taken(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def logits(network: nn.Module, resolution: int, count: int = 2) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(torch.randn(count, 3, resolution, resolution, generator=generator("x")))


def same(ours: nn.Module, other: nn.Module, resolution: int, rows=slice(None)) -> None:
    expected = logits(other, resolution)[:, rows]
    assert expected.std() > 1e-3
    torch.testing.assert_close(logits(ours, resolution), expected, rtol=1e-5, atol=1e-5)


def wnids(*rows: int) -> list[str]:
    return [imagenet_classes.wnids()[row] for row in rows]


# The same numbers


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_of_torchvision_computes_the_same_here(file, name):
    other = theirs(name)
    state = {k: v for k, v in other.state_dict().items() if "num_batches" not in k}  # torchvision's oldest have none
    teacher = taken(file(state), name)
    assert isinstance(teacher.network, ResNet)
    assert (teacher.settings.stem, teacher.about["head_rows"]) == (
        "imagenet",
        None,
    )  # as many rows as classes, in order
    same(teacher.network, other, 64)


@pytest.mark.parametrize("last", ["linear", "classifier"])  # of pytorch-cifar, of DC and DD-Ranking
def test_the_usual_code_for_cifar_has_names_of_its_own(file, last):
    other = small()
    renamed = {re.sub("downsample", "shortcut", re.sub("^fc", last, k)): v for k, v in other.state_dict().items()}
    assert renamed.keys() != other.state_dict().keys()
    teacher = taken(file({"net": renamed, "acc": 95.1, "epoch": 200}), resolution=32)
    assert teacher.settings.stem == "cifar"
    same(teacher.network, other, 32)


@pytest.mark.parametrize(("stem", "stride"), [("cifar", 1), ("tiny", 2)])
def test_the_stride_of_a_small_stem_is_asked_for_where_it_is_not_clear(file, stem, stride):
    other = small(stride)
    path = file(other.state_dict())
    assert "set stem: cifar (1) or tiny (2)" in refused(path)
    same(taken(path, stem=stem).network, other, 64)


@pytest.mark.parametrize(
    ("library", "name"), [*(("torchvision", n) for n in FAMILIES), *(("timm", n) for n in SMALL_OF_TIMM)]
)
def test_any_classifier_of_a_library_is_its_embedding_and_its_head(file, library, name):
    side = 64 if library == "torchvision" else 160
    other = theirs(name) if library == "torchvision" else shaken(timm.create_model(name, num_classes=3))
    network = taken(file(other.state_dict(), "w.safetensors"), f"{library}:{name}", resolution=side).network
    same(network, other, side)
    x = torch.randn(2, 3, side, side, generator=generator("x"))
    with torch.no_grad():
        features = network.eval().embed(x)
        assert features.shape == (2, network.head.in_features)
        assert torch.equal(network.head(features), network(x))


@pytest.mark.parametrize(
    ("name", "new", "old"),
    [
        ("densenet121", r"(denselayer\d+\.(?:norm|conv))(\d)\.", r"\1.\2."),
        ("vit_b_16", r"\.mlp\.0\.", ".mlp.linear_1."),
        ("vit_b_16", r"\.mlp\.3\.", ".mlp.linear_2."),
    ],
)
def test_names_of_older_versions_are_understood(name, new, old):
    """Torchvision's own files have them."""
    architecture = f"torchvision:{name}"
    with torch.device("meta"):
        network = build(NetworkSettings(architecture=architecture), 3, 224, torch.Generator())
        state = models.get_model(name, num_classes=3).state_dict()
    renamed = {re.sub(new, old, key): value for key, value in state.items()}
    assert renamed.keys() != state.keys()
    ours, _ = translated(network, architecture, renamed)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in network.state_dict().items()}


# Refused


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({"layer2.0.conv1.weight": None}, {}, "it lacks layer2.0.conv1.weight"),
        ({"layer9.bias": torch.zeros(1)}, {}, "its layer9.bias is not part of the network"),
        ({"fc.bias": torch.zeros(4)}, {}, "fc.bias is [4] in it but [3] in the network"),
        ({"fc.weight": None}, {}, "it lacks fc.weight"),
        ({}, {"width": 32}, "conv1.weight is [64, 3, 7, 7] in it but [32, 3, 7, 7] in the network"),
        ({}, {"stem": "cifar"}, "conv1.weight is [64, 3, 7, 7] in it but [64, 3, 3, 3] in the network"),
        ({}, {"architecture": "resnet34"}, "it lacks layer1.2.conv1.weight"),
        ({}, {"architecture": "torchvision:mobilenet_v2"}, "it lacks features.0.0.weight"),
        ({}, {"architecture": "timm:test_resnet"}, "it lacks conv1.0.weight"),
        ({}, {"architecture": "convnet3"}, "it lacks features.0.weight"),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named(file, change, options, said):
    state = {k: v for k, v in (theirs().state_dict() | change).items() if v is not None}
    message = refused(file(state), **options)
    assert re.match(r"weights\.pt \(sha256 \w{12}\) does not fit \S+( of width \d+)? at 64 px: ", message)
    assert message.endswith(said)


def test_a_network_that_refuses_the_size_of_the_pictures(file):
    said = refused(file({"a": torch.zeros(1)}), "timm:vit_tiny_patch16_224")
    assert said.startswith("timm:vit_tiny_patch16_224 refuses pictures of 64 px (Input height (64)")


# Classes


def test_of_a_thousand_rows_those_of_the_classes_are_taken(file):
    """The restricted network is the original one given that the class is one of them."""
    other, rows = theirs(classes=1000), [999, 3, 500]
    teacher = taken(file(other.state_dict()), classes=wnids(*rows))
    assert teacher.about["head_rows"] == rows
    same(teacher.network, other, 64, rows)


def test_all_of_imagenet_is_taken_as_it_is(file):
    path = file(theirs("mnasnet0_5", classes=1000).state_dict())
    for classes, rows in (
        (imagenet_classes.wnids(), None),
        (imagenet_classes.wnids()[::-1], [*range(999, -1, -1)]),
        ([f"class{i}" for i in range(1000)], None),
    ):
        assert taken(path, "torchvision:mnasnet0_5", classes).about["head_rows"] == rows


@pytest.mark.parametrize(("rows", "classes"), [(1000, CLASSES), (4, imagenet_classes.wnids()[:3])])
def test_another_number_of_classes_is_refused_with_both(file, rows, classes):
    said = refused(file(theirs(classes=rows).state_dict()), classes=classes)
    assert f"has {rows} classes but the data have 3;" in said


def test_timms_file_in_the_hub_folder_is_taken(hub, closed):
    other, rows = shaken(timm.create_model("test_resnet")), [5, 6, 7]
    save_file(other.state_dict(), hub / "test_resnet.r160_in1k.safetensors")
    teacher = taken("pretrained", "timm:test_resnet", wnids(*rows))
    same(teacher.network, other, 64, rows)
    assert teacher.about["mean"] == teacher.about["std"] == [0.5, 0.5, 0.5]
    assert teacher.about["origin"] == f"timm test_resnet.r160_in1k (sha256 {teacher.digest[:12]})"
    assert taken("pretrained", "timm:test_resnet.r160_in1k", wnids(*rows)).digest == teacher.digest


# Our own artifacts


def artifact(path: Path, classes=CLASSES, resolution: int = 224, **changes) -> nn.Module:
    chosen = NetworkSettings(**{"architecture": "resnet18", "width": 4} | changes)
    network = shaken(build(chosen, len(classes), resolution, generator("artifact")))
    about = {"classes": classes, "resolution": resolution, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    save_model(path, network.state_dict(), about | {"settings": chosen.model_dump()})
    return network


@pytest.mark.parametrize(
    ("made", "stem", "resolution"),
    [({}, "imagenet", 64), ({"resolution": 32}, "cifar", 64), ({"stem": "tiny"}, "tiny", 224)],
)
def test_a_teacher_of_ours_says_its_stem_and_its_normalisation(tmp_path, made, stem, resolution):
    network = artifact(tmp_path / "model.safetensors", **made)
    teacher = taken(tmp_path / "model.safetensors", width=4, resolution=resolution)
    assert teacher.settings.stem == stem
    assert (teacher.about["mean"], teacher.about["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    same(teacher.network, network, resolution)


def test_a_teacher_of_ours_is_of_the_same_classes(tmp_path):
    path, rows = tmp_path / "model.safetensors", [10, 20]
    artifact(path)
    said = refused(path, width=4, classes=["ant", "cat", "bee"])
    assert re.fullmatch(
        r"class 1 is 'cat' in the data but 'bee' in model\.safetensors \(.*\); rebuild one of them", said
    )
    assert "has 3 classes but the data have 2" in refused(path, width=4, classes=["ant", "bee"])
    network = artifact(path, imagenet_classes.wnids())
    teacher = taken(path, width=4, classes=wnids(*rows))
    assert teacher.about["head_rows"] == rows
    same(teacher.network, network, 64, rows)
    artifact(path, [f"class{i}" for i in range(1000)])
    assert "has 1000 classes but the data have 2" in refused(path, width=4, classes=wnids(0, 1))


# The command


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Work in a folder with data of three classes at 32 px; return their validation images and labels."""
    monkeypatch.chdir(tmp_path)
    labels = np.repeat(np.arange(3), 20)
    draws = np.random.default_rng(0)
    arrays = {f"{split}/images": draws.integers(0, 255, (60, 3, 32, 32), dtype=np.uint8) for split in ("train", "val")}
    about = {"classes": CLASSES, "names": CLASSES, "resolution": 32, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3]}
    save(tmp_path / "data.h5", arrays | {f"{s}/labels": labels for s in ("train", "val")}, about | {"inputs": {}})
    return arrays["val/images"], labels


TEACHER = "teacher --data data.h5 --output model.safetensors --seed 0 --device cpu --precision fp32"


@pytest.mark.parametrize("name", ["weights.pt", "ours/model.safetensors"])
def test_a_teacher_from_outside_is_measured_gated_and_says_where_it_is_from(data, run, mistake, file, tmp_path, name):
    (tmp_path / "ours").mkdir()
    if name == "weights.pt":
        other, width, mean, std = theirs(), 64, [0.4, 0.5, 0.6], [0.2, 0.2, 0.3]
        file(other.state_dict())
    else:
        other, width, mean, std = artifact(tmp_path / name), 4, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    line = f"{TEACHER} --architecture resnet18 --width {width} --weights {name} --epochs 7"
    assert mistake(f"{line} --min-accuracy 0.99", begun=True).endswith("lower teacher.min_accuracy")
    assert not (tmp_path / "model.safetensors").exists()
    assert run(line)[0] == 0
    _, meta = load_model(tmp_path / "model.safetensors")
    digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    images, labels = data
    with torch.no_grad():
        guesses = other.eval()(normalise(torch.from_numpy(images), Normalisation(mean, std))).argmax(1).numpy()
    top1 = float((guesses == labels).mean())
    assert 0 < top1 < 1
    assert meta["accuracy"] == {"top1": pytest.approx(top1), "top5": 1.0}
    assert (meta["mean"], meta["std"]) == (mean, std)
    assert meta["inputs"]["weights"] == digest
    assert meta["origin"] == f"{Path(name).name} (sha256 {digest[:12]})"
    assert meta["settings"] | {"weights": name, "stem": "imagenet", "width": width} == meta["settings"]
    assert "epochs" not in meta["settings"]
    assert pd.read_csv("model.csv").to_dict("records") == [{"epoch": 0, "top1": pytest.approx(top1), "top5": 1.0}]


@pytest.mark.parametrize("architecture", ["torchvision:mnasnet0_5", "timm:test_resnet"])
def test_the_artifact_is_rebuilt_from_itself_alone(data, run, file, tmp_path, closed, architecture):
    kind, _, name = architecture.rpartition(":")
    other = shaken(timm.create_model(name, num_classes=3)) if kind == "timm" else theirs(name)
    path = file(other.state_dict())
    assert run(f"{TEACHER} --architecture {architecture} --weights {path.name}")[0] == 0
    path.unlink()
    same(read_teacher(tmp_path / "model.safetensors")[0], other, 32)
    assert closed == []


# The experiment file


def experiment(**teacher) -> Experiment:
    matrix = [{"datasets": ["digits"], "teachers": ["mine"], "methods": ["wmdd"]}]
    return Experiment({"matrix": matrix, "teachers": {"mine": teacher}})


@pytest.mark.parametrize("weights", ["a/b.pt", "pretrained", "ResNet18_Weights.V1"])
def test_a_mistake_shows_before_anything_runs(weights):
    with pytest.raises(WmddError, match=r"^teacher mine on digits: weights: "):
        experiment(weights=weights, architecture="resnet18")


def test_settings_of_a_training_that_there_is_not_change_no_flag(file):
    def flags_of(**changes):
        return flags(experiment(**changes).resolve("teacher", dataset="digits", teacher="mine"))

    weights = str(file({"a": torch.zeros(1)}))
    assert flags_of(weights=weights, epochs=3, ema=0.5) == flags_of(weights=weights)
    assert flags_of(weights=weights, width=3) != flags_of(weights=weights)
    assert flags_of(weights=weights, min_accuracy=0.5) != flags_of(weights=weights)
    assert flags_of(epochs=3) != flags_of()
