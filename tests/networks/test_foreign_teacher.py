"""Weights from outside compute in our networks what they compute in their own, and what does not fit is refused in a line."""

import argparse
import hashlib
import io
import json
import re
import shlex
import socket
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from wmdd.__main__ import main
from wmdd.artifacts.hdf5_writer import save
from wmdd.artifacts.model_files import load_model, save_model
from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.cli.readers import read_teacher
from wmdd.datasets import imagenet_classes
from wmdd.networks.foreign_checkpoint import of_file
from wmdd.networks.foreign_teacher import names_outside, pretrained, translated
from wmdd.networks.models import ResNet, build, normalise
from wmdd.settings.base import flags
from wmdd.settings.network import NetworkSettings
from wmdd.settings.teacher import TeacherSettings
from wmdd.workflow.experiment import Experiment

CLASSES = ["ant", "bee", "cat"]
FAMILIES = ["mobilenet_v3_small", "densenet121", "shufflenet_v2_x0_5", "mnasnet0_5", "regnet_x_400mf", "convnext_tiny"]
FAMILIES += ["swin_t", "vit_b_32", "efficientnet_b0"]


def shaken(network: nn.Module) -> nn.Module:
    """Give every BatchNorm numbers of its own, and heads that begin at zero some, so that none is mistaken for another."""
    for index, module in enumerate(network.modules()):
        if isinstance(module, nn.BatchNorm2d):
            draws = generator("shaken", index)
            for tensor, low in (
                (module.weight, 0.5),
                (module.running_var, 0.5),
                (module.bias, -0.2),
                (module.running_mean, -0.2),
            ):
                tensor.data.copy_(low + 0.4 * torch.rand(tensor.shape, generator=draws))
        if isinstance(module, nn.Linear) and not module.weight.any():
            module.weight.data.copy_(0.1 * torch.randn(module.weight.shape, generator=generator("shaken", index)))
    return network.eval()


def theirs(name: str = "resnet18", classes: int = 3, **options) -> nn.Module:
    """A network of torchvision with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return shaken(models.get_model(name, weights=None, num_classes=classes, **options))


def small(classes: int = 3, stride: int = 1) -> nn.Module:
    """A ResNet-18 of torchvision with the stem that most take for CIFAR."""
    network = theirs(classes=classes)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, stride, 1, bias=False), nn.Identity()
    return network


def settings(weights, architecture: str = "resnet18", **changes) -> TeacherSettings:
    return TeacherSettings(weights=str(weights), architecture=architecture, **changes)


def taken(weights, architecture: str = "resnet18", classes=CLASSES, resolution: int = 64, **changes):
    return pretrained(settings(weights, architecture, **changes), classes, resolution)


def refused(*arguments, **options) -> str:
    """The one line that a mistake gives."""
    with pytest.raises(WmddError) as error:
        taken(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def logits(network: nn.Module, resolution: int, count: int = 2) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(torch.randn(count, 3, resolution, resolution, generator=generator("x")))


def same(ours: nn.Module, other: nn.Module, resolution: int) -> None:
    expected = logits(other, resolution)
    assert expected.std() > 1e-3
    torch.testing.assert_close(logits(ours, resolution), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def file(tmp_path):
    """Save something under a name, and return where."""

    def write(content, name: str = "weights.pt") -> Path:
        path = tmp_path / name
        (save_file if path.suffix == ".safetensors" else torch.save)(content, path)
        return path

    return write


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty hub folder, and no way to any hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "home/hub/checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def closed(monkeypatch):
    """No connection at all."""

    def connect(*_):
        raise ConnectionRefusedError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", connect)


# The same numbers


@pytest.mark.parametrize("resolution", [64, 224])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_of_torchvision_computes_the_same_here(file, name, resolution):
    other = theirs(name)
    found = taken(file(other.state_dict()), name, resolution=resolution)
    assert isinstance(found.network, ResNet)
    assert found.settings.stem == "imagenet"
    same(found.network, other, resolution)


@pytest.mark.parametrize("name", ["resnet34", "resnet101"])
def test_the_names_of_every_resnet_are_those_of_torchvision(name):
    with torch.device("meta"):
        ours = build(NetworkSettings(architecture=name), 3, 224, torch.Generator())
        expected = {
            key: tuple(value.shape) for key, value in models.get_model(name, num_classes=3).state_dict().items()
        }
    called = names_outside(ours, name)
    assert {called[key]: tuple(value.shape) for key, value in ours.state_dict().items()} == expected


def test_the_usual_code_for_cifar_has_names_of_its_own(file):
    other = small()
    renamed = {re.sub("downsample", "shortcut", re.sub("^fc", "linear", k)): v for k, v in other.state_dict().items()}
    assert renamed.keys() != other.state_dict().keys()
    found = taken(file({"net": renamed, "acc": 95.1, "epoch": 200}), resolution=32)
    assert found.settings.stem == "cifar"
    same(found.network, other, 32)


@pytest.mark.parametrize(("stem", "stride"), [("cifar", 1), ("tiny", 2)])
def test_the_stride_of_a_small_stem_is_asked_for_where_it_is_not_clear(file, stem, stride):
    other = small(stride=stride)
    path = file(other.state_dict())
    assert "set stem: cifar (1) or tiny (2)" in refused(path)
    same(taken(path, stem=stem).network, other, 64)


@pytest.mark.parametrize("name", FAMILIES)
def test_any_classifier_of_torchvision_is_its_embedding_and_its_head(file, name):
    other = theirs(name, **({"image_size": 64} if name.startswith("vit") else {}))
    network = taken(file(other.state_dict()), f"torchvision:{name}").network
    same(network, other, 64)
    x = torch.randn(2, 3, 64, 64, generator=generator("x"))
    with torch.no_grad():
        features = network.eval().embed(x)
        assert features.shape == (2, network.head.in_features)
        assert torch.equal(network.head(features), network(x))
    (last,) = {id(m) for m in network.modules() if isinstance(m, nn.Linear) and m.out_features == 3}
    assert last == id(network.head)


@pytest.mark.parametrize("name", timm.list_models("test_*"))
def test_any_small_network_of_timm_is_its_embedding_and_its_head(file, name):
    other = shaken(timm.create_model(name, num_classes=3))
    resolution = 160
    network = taken(file(other.state_dict(), "w.safetensors"), f"timm:{name}", resolution=resolution).network
    same(network, other, resolution)
    x = torch.randn(1, 3, resolution, resolution, generator=generator("x"))
    with torch.no_grad():
        assert torch.equal(network.head(network.embed(x)), network(x))


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
    found, _ = translated(network, architecture, renamed)
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in network.state_dict().items()}


def test_files_without_counters_are_understood(file):
    """Torchvision's oldest files have none."""
    other = theirs()
    state = {k: v for k, v in other.state_dict().items() if "num_batches" not in k}
    same(taken(file(state)).network, other, 64)


# The many ways to save


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 90, "best_acc1": torch.tensor(70.0), "arch": "resnet18"},
        lambda s: {"model": s, "optimizer": {"state": {}, "param_groups": []}, "args": argparse.Namespace(lr=0.1)},
        lambda s: {"model_state_dict": s},
        lambda s: {"teacher": {"network": s}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"net": {f"module._orig_mod.model.{k}": v for k, v in s.items()}},
        lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
    ],
    ids=["flat", "imagenet example", "torchvision's script", "tutorial", "twice", "parallel", "three prefixes", "half"],
)
@pytest.mark.parametrize("suffix", [".pt", ".pth.tar", ".bin"])
def test_a_state_dict_is_found_wherever_it_is(file, wrap, suffix):
    state = theirs("mnasnet0_5").state_dict()
    found = of_file(file(wrap(state), f"weights{suffix}"))
    assert found.state.keys() == state.keys()
    assert all(torch.allclose(found.state[k].float(), v.float(), atol=1e-3) for k, v in state.items())
    assert (found.mean, found.std, found.meta) == (None, None, {})


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_the_digest_and_the_origin_are_of_the_file(file, name):
    path = file(theirs("mnasnet0_5").state_dict(), name)
    found = of_file(path)
    assert found.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.origin == f"{name} (sha256 {found.digest[:12]})"


# Refused, in a line


class Custom(nn.Module):
    """Something that can't be had without running code."""


def truncated(content, share: float, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()[: int(share * len(buffer.getvalue()))]


@pytest.mark.parametrize(
    "content",
    [
        *(truncated({"a": torch.zeros(999)}, share, zipped) for share in (0.01, 0.3, 0.9) for zipped in (True, False)),
        b"",
        b"<!DOCTYPE html><html>Not found</html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00",
    ],
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_half_a_file_or_no_checkpoint_at_all(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    said = refused(tmp_path / name)
    assert said.startswith(f"{tmp_path / name} is no")


def test_a_checkpoint_that_is_code(file, tmp_path):
    for content in Custom(), {"state_dict": theirs().state_dict(), "config": Path("x")}:
        said = refused(file(content))
        assert said.startswith(f"{tmp_path}/weights.pt holds more than tensors (")
        assert said.endswith("save its weights alone: torch.save(model.state_dict(), 'weights.pt')")


def test_a_checkpoint_never_runs_what_it_holds(file, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "was here",))

    assert "is not unpickled" in refused(file({"state_dict": Evil()}))
    assert not (tmp_path / "was here").exists()


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, {"state_dict": {"epoch": 3}}, torch.zeros(3)])
def test_a_checkpoint_without_weights(file, content):
    assert "holds no state dict (" in refused(file(content))


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("nowhere/weights.pt", "weights: there is no file nowhere/weights.pt; paths are from "),
        (
            "weights.onnx/1",
            "weights: weights.onnx/1 is no checkpoint; it must end in .pt, .pth, .bin, .tar, .safetensors",
        ),
        ("ResNet18_Weight.IMAGENET1K_V1", "did you mean ResNet18_Weights.IMAGENET1K_V1?"),
        ("ResNet50_Weights.IMAGENET1K_V2", "is of resnet50, not of resnet18; set architecture: resnet50"),
        (
            "DenseNet121_Weights.DEFAULT",
            "is of densenet121, not of resnet18; set architecture: torchvision:densenet121",
        ),
        ("pretrained", "needs architecture: timm:NAME, not resnet18"),
        ("pretrain", "did you mean pretrained?"),
    ],
)
def test_weights_that_there_are_not(weights, said):
    assert said in refused(weights)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet_18", "timm has no network 'resnet_18'; did you mean timm:resnet18?"),
        ("resnet18.nobody", "timm has no weights for resnet18.nobody; see timm.list_pretrained()"),
        ("vit_giant_patch14_224", "timm has no weights for vit_giant_patch14_224;"),
        ("deit_tiny_distilled_patch16_224", "has several last layers"),
    ],
)
def test_networks_of_timm_without_usable_weights(closed, name, said):
    assert said in refused("pretrained", f"timm:{name}")


def changed(name: str, tensor: torch.Tensor | None):
    state = theirs().state_dict()
    if tensor is None:
        del state[name]
    else:
        state[name] = tensor
    return state


@pytest.mark.parametrize(
    ("state", "options", "said"),
    [
        (changed("layer2.0.conv1.weight", None), {}, "it lacks layer2.0.conv1.weight"),
        (changed("layer9.bias", torch.zeros(1)), {}, "its layer9.bias is not part of the network"),
        (changed("fc.bias", torch.zeros(4)), {}, "fc.bias is [4] in it but [3] in the network"),
        (changed("fc.weight", None), {}, "it lacks fc.weight"),
        (theirs().state_dict(), {"width": 32}, "conv1.weight is [64, 3, 7, 7] in it but [32, 3, 7, 7] in the network"),
        (theirs().state_dict(), {"stem": "cifar"}, "conv1.weight is [64, 3, 7, 7] in it but [64, 3, 3, 3] in the network"),
        (theirs().state_dict(), {"architecture": "resnet34"}, "it lacks layer1.2.conv1.weight"),
        (theirs().state_dict(), {"architecture": "torchvision:mobilenet_v2"}, "it lacks features.0.0.weight"),
        (theirs().state_dict(), {"architecture": "timm:test_resnet"}, "it lacks conv1.0.weight"),
        (theirs().state_dict(), {"architecture": "convnet3"}, "it lacks layers.0.weight"),
    ],
)  # fmt: skip
def test_the_first_tensor_that_does_not_fit_is_named(file, state, options, said):
    message = refused(file(state), **options)
    assert re.match(r"weights\.pt \(sha256 \w{12}\) does not fit \S+( of width \d+)? at 64 px: ", message)
    assert message.endswith(said)


def test_a_network_that_refuses_the_size_of_the_pictures(file):
    path = file(timm.create_model("vit_tiny_patch16_224", num_classes=3).state_dict())
    said = refused(path, "timm:vit_tiny_patch16_224")
    assert said.startswith("timm:vit_tiny_patch16_224 refuses pictures of 64 px (Input height (64)")
    other = file(theirs("vit_b_32", image_size=96).state_dict())
    assert "encoder.pos_embedding is [1, 10, 768] in it but [1, 5, 768]" in refused(other, "torchvision:vit_b_32")


# Classes


@pytest.mark.parametrize("classes", [CLASSES, ["zebra", "yak", "ape"]])
def test_as_many_rows_as_classes_are_taken_in_order(file, classes):
    other = theirs()
    found = taken(file(other.state_dict()), classes=classes)
    assert found.about["head_rows"] is None
    same(found.network, other, 64)


def test_of_a_thousand_rows_those_of_the_classes_are_taken(file):
    """The restricted network is the original one given that the class is one of them."""
    other = theirs(classes=1000)
    rows = [999, 3, 500]
    found = taken(file(other.state_dict()), classes=[imagenet_classes.wnids()[row] for row in rows])
    assert found.about["head_rows"] == rows
    full, ours = logits(other, 64), logits(found.network, 64)
    torch.testing.assert_close(ours, full[:, rows], rtol=1e-5, atol=1e-5)
    chance = full.softmax(1)[:, rows]
    torch.testing.assert_close(ours.softmax(1), chance / chance.sum(1, keepdim=True))


def test_a_head_without_bias_is_restricted_too(file):
    rows = [7, 8]
    other = theirs("maxvit_t", classes=1000, input_size=(224, 224))
    assert "classifier.5.bias" not in other.state_dict()
    classes = [imagenet_classes.wnids()[row] for row in rows]
    network = taken(file(other.state_dict()), "torchvision:maxvit_t", classes, 224).network
    torch.testing.assert_close(logits(network, 224, 1), logits(other, 224, 1)[:, rows], rtol=1e-5, atol=1e-5)


def test_all_of_imagenet_is_taken_as_it_is(file):
    other = theirs("mnasnet0_5", classes=1000)
    path = file(other.state_dict())
    assert taken(path, "torchvision:mnasnet0_5", imagenet_classes.wnids()).about["head_rows"] is None
    assert taken(path, "torchvision:mnasnet0_5", imagenet_classes.wnids()[::-1]).about["head_rows"] == [
        *range(999, -1, -1)
    ]
    named = [f"class{i}" for i in range(1000)]
    assert taken(path, "torchvision:mnasnet0_5", named).about["head_rows"] is None


@pytest.mark.parametrize(("rows", "classes"), [(1000, CLASSES), (4, CLASSES), (4, imagenet_classes.wnids()[:3])])
def test_another_number_of_classes_is_refused_with_both(file, rows, classes):
    said = refused(file(theirs(classes=rows).state_dict()), classes=classes)
    assert f"has {rows} classes but the data have 3;" in said


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
    found = taken(tmp_path / "model.safetensors", width=4, resolution=resolution)
    assert found.settings.stem == stem
    assert (found.about["mean"], found.about["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    same(found.network, network, resolution)


def test_a_teacher_of_ours_is_of_the_same_classes(tmp_path):
    path = tmp_path / "model.safetensors"
    artifact(path)
    said = refused(path, width=4, classes=["ant", "cat", "bee"])
    assert re.fullmatch(
        r"class 1 is 'cat' in the data but 'bee' in model\.safetensors \(.*\); rebuild one of them", said
    )
    assert "has 3 classes but the data have 2" in refused(path, width=4, classes=["ant", "bee"])


def test_of_a_teacher_of_ours_for_imagenet_some_rows_are_taken(tmp_path):
    path, rows = tmp_path / "model.safetensors", [10, 20]
    network = artifact(path, imagenet_classes.wnids())
    found = taken(path, width=4, classes=[imagenet_classes.wnids()[row] for row in rows])
    assert found.about["head_rows"] == rows
    torch.testing.assert_close(logits(found.network, 64), logits(network, 64)[:, rows])
    artifact(path, [f"class{i}" for i in range(1000)])
    assert "has 1000 classes but the data have 2" in refused(path, width=4, classes=imagenet_classes.wnids()[:2])


# Torchvision's and timm's own, without a network


@pytest.fixture
def entry(monkeypatch):
    """Torchvision's weights of ResNet-18, at a closed port."""
    found = models.ResNet18_Weights.IMAGENET1K_V1

    def at(name: str):
        monkeypatch.setattr(found.value, "url", f"http://127.0.0.1:9/models/{name}")
        return str(found)

    return at


def test_without_a_network_it_is_said_which_file_to_put_where(hub, entry):
    said = refused(entry("resnet18-f37072fd.pth"))
    assert said.startswith("cannot download http://127.0.0.1:9/models/resnet18-f37072fd.pth (<urlopen error")
    assert said.endswith(f"fetch it by hand and put it into {hub}")
    assert list(hub.iterdir()) == []


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "DEFAULT"])
def test_a_file_in_the_hub_folder_is_taken(hub, entry, file, closed, name):
    other = theirs(classes=1000)
    path = file(other.state_dict())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry(f"resnet18-{digest[:8]}.pth")
    path.rename(hub / f"resnet18-{digest[:8]}.pth")
    found = taken(f"ResNet18_Weights.{name}", classes=imagenet_classes.wnids())
    same(found.network, other, 64)
    assert found.digest == digest
    assert found.about == {
        "origin": f"torchvision ResNet18_Weights.IMAGENET1K_V1 (sha256 {digest[:12]})",
        "head_rows": None,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }


def test_a_file_in_the_hub_folder_is_what_its_name_says(hub, entry, file):
    path = file(theirs(classes=1000).state_dict())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    weights = entry("resnet18-f37072fd.pth")
    path.rename(hub / "resnet18-f37072fd.pth")
    expected = f"resnet18-f37072fd.pth is not the file of that name (its SHA-256 begins with {digest[:8]}); delete it"
    assert refused(weights).endswith(expected)


def test_every_name_of_torchvision_holds_a_hash_and_a_normalisation():
    for builder in models.list_models(module=models):
        for found in models.get_model_weights(builder):
            assert re.search(r"-[0-9a-f]{8,}\.pth$", found.url)
            assert len(found.transforms().mean) == len(found.transforms().std) == 3


def test_without_a_network_timms_file_is_named_too(hub, closed):
    said = refused("pretrained", "timm:test_resnet")
    assert said.startswith("cannot download timm's test_resnet.r160_in1k (")
    assert said.endswith(
        f"put model.safetensors of huggingface.co/timm/test_resnet.r160_in1k into {hub} as test_resnet.r160_in1k.safetensors"
    )


def test_timms_file_in_the_hub_folder_is_taken(hub, closed):
    other = shaken(timm.create_model("test_resnet"))
    save_file(other.state_dict(), hub / "test_resnet.r160_in1k.safetensors")
    rows = [5, 6, 7]
    found = taken("pretrained", "timm:test_resnet", [imagenet_classes.wnids()[row] for row in rows])
    torch.testing.assert_close(logits(found.network, 64), logits(other, 64)[:, rows], rtol=1e-5, atol=1e-5)
    assert found.about["mean"] == found.about["std"] == [0.5, 0.5, 0.5]
    assert found.about["origin"] == f"timm test_resnet.r160_in1k (sha256 {found.digest[:12]})"
    again = taken("pretrained", "timm:test_resnet.r160_in1k", [imagenet_classes.wnids()[row] for row in rows])
    assert again.digest == found.digest
    (hub / "test_resnet.r160_in1k.safetensors").write_bytes(b"nothing")
    assert "does not hold timm's test_resnet.r160_in1k (" in refused("pretrained", "timm:test_resnet")


# The command


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with data of three classes at 32 px."""
    monkeypatch.chdir(tmp_path)
    labels = np.repeat(np.arange(3), 20)
    draws = np.random.default_rng(0)
    arrays = {f"{split}/images": draws.integers(0, 255, (60, 3, 32, 32), dtype=np.uint8) for split in ("train", "val")}
    about = {"classes": CLASSES, "names": CLASSES, "resolution": 32, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3]}
    save(tmp_path / "data.h5", arrays | {f"{s}/labels": labels for s in ("train", "val")}, about | {"inputs": {}})
    return arrays["val/images"], labels


@pytest.fixture
def wmdd(monkeypatch):
    """Run a command line as `python -m wmdd` does."""

    def run(line: str) -> None:
        monkeypatch.setattr(sys, "argv", ["wmdd", *shlex.split(line)])
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise

    return run


TEACHER = "teacher --data data.h5 --output model.safetensors --seed 0 --device cpu --precision fp32"


@pytest.mark.parametrize("name", ["weights.pt", "ours/model.safetensors"])
def test_a_teacher_from_outside_is_measured_and_says_where_it_is_from(here, wmdd, file, tmp_path, name):
    (tmp_path / "ours").mkdir()
    other = artifact(tmp_path / name) if "ours" in name else theirs()
    if "ours" not in name:
        file(other.state_dict())
    width = 4 if "ours" in name else 64
    wmdd(f"{TEACHER} --architecture resnet18 --width {width} --weights {name} --epochs 7")
    _, meta = load_model(tmp_path / "model.safetensors")
    digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    images, labels = here
    mean, std = ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]) if "ours" in name else ([0.4, 0.5, 0.6], [0.2, 0.2, 0.3])
    with torch.no_grad():
        guesses = other.eval()(normalise(torch.from_numpy(images), mean, std)).argmax(1).numpy()
    top1 = float((guesses == labels).mean())
    assert 0 < top1 < 1
    assert meta["accuracy"] == {"top1": pytest.approx(top1), "top5": 1.0}
    assert (meta["mean"], meta["std"]) == (mean, std)
    assert meta["inputs"]["weights"] == digest
    assert meta["origin"] == f"{Path(name).name} (sha256 {digest[:12]})"
    assert meta["settings"] | {"weights": name, "stem": "imagenet", "width": width} == meta["settings"]
    assert "epochs" not in meta["settings"]
    assert pd.read_csv("model.csv").to_dict("records") == [{"epoch": 0, "top1": pytest.approx(top1), "top5": 1.0}]


@pytest.mark.parametrize("architecture", ["resnet18", "torchvision:mnasnet0_5", "timm:test_resnet"])
def test_the_artifact_is_rebuilt_from_itself_alone(here, wmdd, file, tmp_path, closed, architecture):
    kind, _, name = architecture.rpartition(":")
    other = shaken(timm.create_model(name, num_classes=3)) if kind == "timm" else theirs(name)
    path = file(other.state_dict())
    wmdd(f"{TEACHER} --architecture {architecture} --weights {path.name}")
    path.unlink()
    network, _ = read_teacher(tmp_path / "model.safetensors")
    same(network, other, 32)
    line = "features --data data.h5 --teacher model.safetensors --output f.h5 --statistics s.h5 --device cpu"
    wmdd(line)
    assert json.loads((tmp_path / "f.cost.json").read_text())["stage"] == "features"


@pytest.mark.parametrize("minimum", [0.0, 0.99])
def test_the_gate_is_that_of_a_trained_teacher(here, wmdd, file, tmp_path, minimum):
    file(theirs().state_dict())
    if minimum:
        with pytest.raises(SystemExit, match=r"wmdd teacher: error: the teacher reaches .* below min_accuracy 99\.0%"):
            wmdd(f"{TEACHER} --weights weights.pt --min-accuracy {minimum}")
    else:
        wmdd(f"{TEACHER} --weights weights.pt")
    assert (tmp_path / "model.safetensors").exists() == (not minimum)


# The experiment file


def experiment(**teacher) -> Experiment:
    matrix = [{"datasets": ["digits"], "teachers": ["mine"], "methods": ["wmdd"]}]
    return Experiment({"matrix": matrix, "teachers": {"mine": teacher}})


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ({"weights": "pretrained", "architecture": "resnet18"}, "needs architecture: timm:NAME, not resnet18"),
        ({"weights": "pretrained", "architecture": "timm:resnet_18"}, "did you mean timm:resnet18?"),
        ({"weights": "ResNet18_Weights.V1"}, "did you mean ResNet18_Weights"),
        ({"weights": "ResNet34_Weights.DEFAULT"}, "is of resnet34, not of resnet18"),
        ({"weights": "a/b.pt"}, "there is no file a/b.pt"),
    ],
)
def test_a_mistake_shows_before_anything_runs(teacher, said):
    with pytest.raises(WmddError, match=r"^teacher mine on digits: (weights: |timm )") as error:
        experiment(**{"architecture": "resnet18"} | teacher)
    assert said in str(error.value)


def test_settings_of_a_training_that_there_is_not_change_no_flag(file):
    def flags_of(**changes):
        return flags(experiment(**changes).resolve("teacher", dataset="digits", teacher="mine"))

    weights = str(file({"a": torch.zeros(1)}))
    assert flags_of(weights=weights, epochs=3, ema=0.5) == flags_of(weights=weights)
    assert flags_of(weights=weights, width=3) != flags_of(weights=weights)
    assert flags_of(weights=weights, min_accuracy=0.5) != flags_of(weights=weights)
    assert flags_of(epochs=3) != flags_of()


@pytest.mark.parametrize(
    ("weights", "path"),
    [
        ("", ""),
        ("pretrained", ""),
        ("ResNet18_Weights.DEFAULT", ""),
        ("a.pt", "a.pt"),
        ("b/c.safetensors", "b/c.safetensors"),
    ],
)
def test_a_file_is_told_from_a_name(weights, path):
    assert TeacherSettings(weights=weights).checkpoint == path
