"""Shared by the tests of weights from outside: networks of torchvision with random weights, files, and no network."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from wmdd.base.rng import generator


def shaken(network: nn.Module) -> nn.Module:
    """Give every BatchNorm numbers of its own, and heads that begin at zero some, so that none is mistaken for another."""
    for index, module in enumerate(network.modules()):
        draws = generator("shaken", index)
        if isinstance(module, nn.BatchNorm2d):
            for tensor in module.weight, module.running_var:
                tensor.data.copy_(0.5 + 0.4 * torch.rand(tensor.shape, generator=draws))
            for tensor in module.bias, module.running_mean:
                tensor.data.copy_(-0.2 + 0.4 * torch.rand(tensor.shape, generator=draws))
        if isinstance(module, nn.Linear) and not module.weight.any():
            module.weight.data.copy_(0.1 * torch.randn(module.weight.shape, generator=draws))
    return network.eval()


def theirs(name: str = "resnet18", classes: int = 3, **options) -> nn.Module:
    """A network of torchvision with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return shaken(models.get_model(name, weights=None, num_classes=classes, **options))


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
