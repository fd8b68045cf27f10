"""Files, torchvision and timm as sources of weights: the many ways to save them, and what is refused in a line."""

import argparse
import hashlib
import io
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from tests.networks.conftest import theirs
from wmdd.base.errors import WmddError
from wmdd.networks.foreign_checkpoint import of_file, weights_of
from wmdd.networks.foreign_weights import check
from wmdd.settings.teacher import TeacherSettings


def refused(weights, architecture: str = "resnet18") -> str:
    """The one line that a mistake gives."""
    with pytest.raises(WmddError) as error:
        weights_of(TeacherSettings(weights=str(weights), architecture=architecture))
    assert "\n" not in str(error.value)
    return str(error.value)


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
def test_a_state_dict_is_found_wherever_it_is(file, wrap):
    state = theirs("mnasnet0_5").state_dict()
    weights = of_file(file(wrap(state), "weights.pth.tar"))
    assert weights.state.keys() == state.keys()
    assert all(torch.allclose(weights.state[k].float(), v.float(), atol=1e-3) for k, v in state.items())
    assert (weights.normalisation, weights.meta) == (None, {})


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_the_digest_and_the_origin_are_of_the_file(file, name):
    path = file(theirs("mnasnet0_5").state_dict(), name)
    weights = of_file(path)
    assert weights.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert weights.origin == f"{name} (sha256 {weights.digest[:12]})"


# Refused


class Custom(nn.Module):
    """Something that can't be had without running code."""


def cut(share: float, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(999)}, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()[: int(share * len(buffer.getvalue()))]


@pytest.mark.parametrize(
    "content",
    [
        *(cut(share, zipped) for share in (0.01, 0.9) for zipped in (True, False)),
        b"",
        b"<!DOCTYPE html><html>Not found</html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00",
    ],
)
def test_half_a_file_or_no_checkpoint_at_all(tmp_path, content):
    for name in "w.pt", "w.safetensors":
        (tmp_path / name).write_bytes(content)
        assert refused(tmp_path / name).startswith(f"{tmp_path / name} is no")


def test_a_checkpoint_never_runs_what_it_holds(file, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "was here",))

    for content in Custom(), {"state_dict": theirs().state_dict(), "config": Path("x")}, {"state_dict": Evil()}:
        said = refused(file(content))
        assert said.startswith(f"{tmp_path}/weights.pt holds more than tensors (")
        assert said.endswith("save its weights alone: torch.save(model.state_dict(), 'weights.pt')")
    assert not (tmp_path / "was here").exists()


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, {"state_dict": {"epoch": 3}}, torch.zeros(3)])
def test_a_checkpoint_without_weights(file, content):
    assert "holds no state dict (" in refused(file(content))


@pytest.mark.parametrize(
    ("weights", "architecture", "said"),
    [
        ("nowhere/weights.pt", "resnet18", "weights: there is no file nowhere/weights.pt; paths are from "),
        ("a.onnx/1", "resnet18", "weights: a.onnx/1 is no checkpoint; it must end in .pt, .pth, .bin, .tar, .safetensors"),
        ("ResNet18_Weight.IMAGENET1K_V1", "resnet18", "did you mean ResNet18_Weights.IMAGENET1K_V1?"),
        ("ResNet50_Weights.IMAGENET1K_V2", "resnet18", "is of resnet50, not of resnet18; set architecture: resnet50"),
        ("DenseNet121_Weights.DEFAULT", "resnet18", "not of resnet18; set architecture: torchvision:densenet121"),
        ("pretrain", "resnet18", "did you mean pretrained?"),
        ("pretrained", "resnet18", "needs architecture: timm:NAME, not resnet18"),
        ("pretrained", "timm:resnet_18", "timm has no network 'resnet_18'; did you mean timm:resnet18?"),
        ("pretrained", "timm:vit_giant_patch14_224", "timm has no weights for vit_giant_patch14_224;"),
        ("pretrained", "timm:deit_tiny_distilled_patch16_224", "has several last layers"),
    ],
)  # fmt: skip
def test_weights_that_there_are_not_are_refused_before_anything_runs(closed, weights, architecture, said):
    with pytest.raises(WmddError) as error:
        check(TeacherSettings(weights=weights, architecture=architecture))
    assert said in str(error.value)
    assert refused(weights, architecture) == str(error.value)


# Torchvision's and timm's own, without a network


@pytest.fixture
def entry(monkeypatch):
    """Torchvision's weights of ResNet-18, at a closed port."""
    weights = models.ResNet18_Weights.IMAGENET1K_V1

    def at(name: str):
        monkeypatch.setattr(weights.value, "url", f"http://127.0.0.1:9/models/{name}")
        return str(weights)

    return at


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "DEFAULT"])
def test_a_file_in_the_hub_folder_is_taken(hub, entry, file, closed, name):
    state = theirs("mnasnet0_5").state_dict()
    path = file(state)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry(f"resnet18-{digest[:8]}.pth")
    path.rename(hub / f"resnet18-{digest[:8]}.pth")
    weights = weights_of(TeacherSettings(weights=f"ResNet18_Weights.{name}", architecture="resnet18"))
    assert all(torch.equal(weights.state[k], v) for k, v in state.items())
    assert weights.digest == digest
    assert weights.origin == f"torchvision ResNet18_Weights.IMAGENET1K_V1 (sha256 {digest[:12]})"
    assert weights.normalisation == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_a_file_of_torchvision_that_is_missing_or_another(hub, entry, file):
    said = refused(entry("resnet18-f37072fd.pth"))
    assert said.startswith("cannot download http://127.0.0.1:9/models/resnet18-f37072fd.pth (<urlopen error")
    assert said.endswith(f"fetch it by hand and put it into {hub}")
    assert list(hub.iterdir()) == []
    path = file({"a": torch.zeros(1)})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.rename(hub / "resnet18-f37072fd.pth")
    expected = f"resnet18-f37072fd.pth is not the file of that name (its SHA-256 begins with {digest[:8]}); delete it"
    assert refused(entry("resnet18-f37072fd.pth")).endswith(expected)


def test_every_name_of_torchvision_holds_a_hash_and_a_normalisation():
    for builder in models.list_models(module=models):
        for weights in models.get_model_weights(builder):
            assert re.search(r"-[0-9a-f]{8,}\.pth$", weights.url)
            assert len(weights.transforms().mean) == len(weights.transforms().std) == 3


def test_a_file_of_timm_that_is_missing_or_damaged(hub, closed):
    said = refused("pretrained", "timm:test_resnet")
    assert said.startswith("cannot download timm's test_resnet.r160_in1k (")
    assert said.endswith(
        f"put model.safetensors of huggingface.co/timm/test_resnet.r160_in1k into {hub} as test_resnet.r160_in1k.safetensors"
    )
    (hub / "test_resnet.r160_in1k.safetensors").write_bytes(b"nothing")
    assert "does not hold timm's test_resnet.r160_in1k (" in refused("pretrained", "timm:test_resnet")
