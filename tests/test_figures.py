"""What is counted by hand is what torch counts on the networks themselves."""

import math

import pytest
import torch
from torch import nn

from wmdd import figures, models
from wmdd.errors import WmddError
from wmdd.figures import by_hand, rated_width, recovering, stated_side
from wmdd.rng import generator
from wmdd.settings import DataSettings, NetworkSettings, RecoverSettings
from wmdd.work import counted

OURS = [*models.RESNETS, *models.CONVNETS, "vit-tiny"]
VARIANTS = [{}, {"width": 12, "norm": "instance", "stem": "tiny"}, {"width": 8, "stem": "imagenet"}, {"stem": "cifar"}]


@pytest.mark.parametrize("architecture", OURS)
@pytest.mark.parametrize("side", [16, 33, 64, 224])
@pytest.mark.parametrize("more", VARIANTS, ids=str)
def test_counting_by_hand_is_counting_on_the_network(architecture, side, more):
    settings = NetworkSettings(architecture=architecture, **more)
    if not side >> models.CONVNETS.get(architecture, 0):  # halved to nothing
        assert by_hand(settings, 7, side) is None
        with pytest.raises(WmddError, match="halves pictures of"):
            counted(settings, 7, side)
        return
    assert by_hand(settings, 7, side)[:4] == counted(settings, 7, side)[:4]


@pytest.mark.parametrize("pooling", ["avg", "max", "none"])
@pytest.mark.parametrize("norm", ["batch", "instance", "layer", "group", "none"])
@pytest.mark.parametrize(("depth", "side"), [(1, 16), (2, 17), (4, 16), (6, 64)])
def test_a_convnet_is_counted_with_its_norm_and_pooling(depth, side, norm, pooling):
    settings = NetworkSettings(architecture=f"convnet{depth}", width=4, norm=norm, pooling=pooling)
    assert by_hand(settings, 5, side)[:4] == counted(settings, 5, side)[:4]


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50", "convnet3"])
@pytest.mark.parametrize("side", [20, 40])
def test_outputs_are_what_convolutions_and_products_make(architecture, side):
    settings, made = NetworkSettings(architecture=architecture, width=4), []
    network = models.build(settings, 5, side, generator("outputs")).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda _, __, output: made.append(output.numel()))
    network(torch.zeros(1, 3, side, side))
    assert by_hand(settings, 5, side).outputs == sum(made)


def test_the_names_are_those_of_the_models():
    assert figures.RESNETS == models.RESNETS
    assert figures.CONVNETS == models.CONVNETS


@pytest.mark.parametrize("architecture", ["timm:resnet18", "torchvision:alexnet", "resnet19"])
def test_a_librarys_network_is_not_counted_by_hand(architecture):
    settings = NetworkSettings(architecture=architecture)
    assert by_hand(settings, 5, 32) is None
    assert rated_width(settings) == 0


def test_a_network_that_does_not_take_the_side_is_not_counted():
    for name, side in ("convnet3", 4), ("resnet18", 0), ("vit-tiny", 1):
        assert by_hand(NetworkSettings(architecture=name), 5, side) is None


def test_the_side_of_a_dataset_as_far_as_it_is_stated():
    sides = [DataSettings(source="cifar10"), DataSettings(source="digits", resolution=16), DataSettings(resolution=64)]
    assert [stated_side(settings) for settings in sides] == [32, 16, 64]
    assert stated_side(DataSettings()) == 0


def test_recovering_is_two_passes_an_image_and_iteration():
    flop, moved = recovering(RecoverSettings(iterations=7), 11, 100.0, 8)
    assert (flop, moved) == (2 * 7 * 11 * 100, 7 * 11 * 24 * 3 * 64)
    assert math.isnan(recovering(RecoverSettings(), 1, 1.0, 0)[1])
