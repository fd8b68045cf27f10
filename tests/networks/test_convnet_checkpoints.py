"""ConvNets of DC, MTT and DD-Ranking compute here what they compute there, and ours there: the same names, logits and bits."""

import re

import pytest
import torch
from torch import nn
from torchvision import models

from tests.networks.conftest import shaken
from wmdd.artifacts.model_files import save_model
from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.cli.tensor_readers import read_teacher
from wmdd.networks.foreign_teacher import pretrained
from wmdd.networks.models import build
from wmdd.settings.network import NetworkSettings
from wmdd.settings.teacher import TeacherSettings

CLASSES, SIDE, WIDTH = ["ant", "bee", "cat"], 16, 8
KINDS = [  # norm, pooling, and the numbers of the layers that have weights
    ("instance", "avg", [0, 1, 4, 5, 8, 9]),
    ("batch", "avg", [0, 1, 4, 5, 8, 9]),
    ("none", "avg", [0, 3, 6]),
    ("instance", "none", [0, 1, 3, 4, 6, 7]),
    ("batch", "max", [0, 1, 4, 5, 8, 9]),
]


class Reference(nn.Module):
    """The ConvNet as the others have it: what a block lacks takes no number (networks.py of DC and MTT)."""

    def __init__(self, norm: str, pooling: str, depth: int = 3) -> None:
        super().__init__()
        layers, inputs = [], 3
        for _ in range(depth):
            layers.append(nn.Conv2d(inputs, WIDTH, 3, padding=1))
            layers += {"instance": [nn.GroupNorm(WIDTH, WIDTH)], "batch": [nn.BatchNorm2d(WIDTH)], "none": []}[norm]
            layers.append(nn.ReLU())
            layers += {"avg": [nn.AvgPool2d(2, 2)], "max": [nn.MaxPool2d(2, 2)], "none": []}[pooling]
            inputs = WIDTH
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(WIDTH * (SIDE if pooling == "none" else SIDE >> depth) ** 2, len(CLASSES))

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def reference(norm: str, pooling: str) -> Reference:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return shaken(Reference(norm, pooling))


def settings(norm: str, pooling: str = "avg", **more) -> dict:
    return {"architecture": "convnet3", "width": WIDTH, "norm": norm, "pooling": pooling} | more


def logits(network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(torch.randn(4, 3, SIDE, SIDE, generator=generator("x")))


def artifact(path, norm: str, pooling: str = "avg"):
    network = shaken(build(NetworkSettings(**settings(norm, pooling)), len(CLASSES), SIDE, generator("ours")))
    about = {"classes": CLASSES, "resolution": SIDE, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    save_model(path, network.state_dict(), about | {"settings": settings(norm, pooling, stem="auto")})
    return network


@pytest.mark.parametrize(("norm", "pooling"), [kind[:2] for kind in KINDS])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_theirs_is_read(file, norm, pooling, prefix):
    other = reference(norm, pooling)
    path = file({f"{prefix}{name}": tensor for name, tensor in other.state_dict().items()})
    teacher = pretrained(TeacherSettings(weights=str(path), **settings(norm, pooling)), CLASSES, SIDE)
    assert torch.equal(logits(teacher.network), logits(other))


@pytest.mark.parametrize(("norm", "pooling", "numbers"), KINDS)
def test_ours_is_written_and_read_back_with_the_same_bits(run, tmp_path, norm, pooling, numbers):
    ours = artifact(tmp_path / "model.safetensors", norm, pooling)
    path = tmp_path / "teachers/CIFAR10/ConvNet-3/ckpt_best.pt"
    code, out, err = run(f"export-teacher --teacher {tmp_path}/model.safetensors --output {path}")
    assert code == 0, err
    assert "convnet3 of width 8 at 16 px" in out
    assert "mean 0.1, 0.2, 0.3, std 0.4, 0.5, 0.6" in out
    state = torch.load(path, weights_only=True)
    assert sorted({int(name.split(".")[1]) for name in state if name.startswith("features.")}) == numbers
    other = reference(norm, pooling)
    other.load_state_dict(state)
    assert torch.equal(logits(other), logits(ours))
    back = pretrained(TeacherSettings(weights=str(path), **settings(norm, pooling)), CLASSES, SIDE).network.state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_a_norm_that_means_something_else_there_is_refused_both_ways(mistake, file, tmp_path, norm):
    said = f"norm {norm} is another one in DC, MTT and DD-Ranking; only instance, batch and none are the same"
    path = file(reference("instance", "avg").state_dict())
    with pytest.raises(WmddError, match=re.escape(said)):
        pretrained(TeacherSettings(weights=str(path), **settings(norm)), CLASSES, SIDE)
    artifact(tmp_path / "model.safetensors", norm)
    assert said in mistake(f"export-teacher --teacher {tmp_path}/model.safetensors --output {tmp_path}/x.pt")
    assert not (tmp_path / "x.pt").exists()


def test_a_resnet_gets_the_names_of_torchvision(run, tmp_path):
    chosen = {"architecture": "resnet18", "width": 64, "stem": "imagenet", "norm": "batch", "pooling": "avg"}
    network = shaken(build(NetworkSettings(**chosen), 3, 32, generator("ours")))
    about = {"classes": CLASSES, "resolution": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "settings": chosen}
    save_model(tmp_path / "model.safetensors", network.state_dict(), about)
    assert run(f"export-teacher --teacher {tmp_path}/model.safetensors --output {tmp_path}/x.pt")[0] == 0
    other = models.resnet18(num_classes=3)
    other.load_state_dict(torch.load(tmp_path / "x.pt", weights_only=True))
    torch.testing.assert_close(
        logits(other), logits(read_teacher(tmp_path / "model.safetensors")[0]), rtol=1e-5, atol=1e-5
    )
