"""What is counted by hand is what torch counts on the networks themselves, and what was published of them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.cost.flop import autoencoder, by_hand, counts, denoiser, on_network, rated_width, recovering
from wmdd.generators.denoiser import build as build_denoiser
from wmdd.generators.vae import build as build_vae
from wmdd.networks import models
from wmdd.settings.latent import AutoencoderSettings, DiffusionSettings
from wmdd.settings.network import NetworkSettings
from wmdd.settings.recover import RecoverSettings

OURS = [*models.RESNETS, *models.CONVNETS, "vit-tiny"]
NETWORKS = st.builds(
    NetworkSettings,
    architecture=st.sampled_from(OURS),
    width=st.sampled_from([4, 8, 12]),
    norm=st.sampled_from(["batch", "instance", "layer", "group", "none"]),
    pooling=st.sampled_from(["avg", "max", "none"]),
    stem=st.sampled_from(["auto", "cifar", "tiny", "imagenet"]),
)


@settings(max_examples=30, deadline=None)
@given(NETWORKS, st.sampled_from([16, 17, 33, 64, 112]))
def test_counting_by_hand_is_counting_on_the_network(network, side):
    if network.pooling != "none" and not side >> models.CONVNETS.get(network.architecture, 0):  # halved to nothing
        assert by_hand(network, 7, side) is None
        with pytest.raises(WmddError, match="halves pictures of"):
            on_network(network, 7, side)
    else:
        assert by_hand(network, 7, side)[:4] == on_network(network, 7, side)[:4]


@pytest.mark.parametrize("architecture", ["resnet50", "convnet3"])
def test_outputs_are_what_convolutions_and_products_make(architecture):
    network, sizes = NetworkSettings(architecture=architecture, width=4), []
    built = models.build(network, 5, 20, generator("outputs")).eval()
    for module in built.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda _, __, output: sizes.append(output.numel()))
    built(torch.zeros(1, 3, 20, 20))
    assert by_hand(network, 5, 20).outputs == sum(sizes)


def test_what_is_not_counted_by_hand():
    """Networks of libraries, which have no width either; and sides that a network does not take."""
    for name in ("timm:resnet18", "torchvision:alexnet", "resnet19"):
        network = NetworkSettings(architecture=name)
        assert (by_hand(network, 5, 32), rated_width(network)) == (None, 0)
    for name, side in ("convnet3", 4), ("resnet18", 0), ("vit-tiny", 1):
        assert by_hand(NetworkSettings(architecture=name), 5, side) is None
    with pytest.raises(WmddError, match="convnet6 halves pictures of 32 px to nothing"):
        counts(NetworkSettings(architecture="convnet6"), 10, 32)
    assert counts(NetworkSettings(architecture="convnet6", pooling="none"), 10, 32).features == 64 * 32**2


def test_recovering_is_two_passes_an_image_and_iteration():
    assert recovering(RecoverSettings(iterations=7), 11, 100.0, 8) == (2 * 7 * 11 * 100, 7 * 11 * 24 * 3 * 64)
    assert math.isnan(recovering(RecoverSettings(), 1, 1.0, 0)[1])


def test_flop_of_a_transformer_by_hand():
    t, d = 16 * 16 + 1, 192  # tokens, width; 12 layers of queries, keys and values, attention, projection, two products
    layer = 2 * t * d * 3 * d + 2 * 2 * t * t * d + 2 * t * d * d + 2 * 2 * t * d * 4 * d
    embedding, head = 2 * (t - 1) * 2 * 2 * 3 * d, 2 * d * 10
    assert counts(NetworkSettings(architecture="vit-tiny"), 10, 32).flop == embedding + 12 * layer + head


def test_flop_of_resnet18_as_published():
    found = counts(NetworkSettings(), 1000, 224)
    assert 2 * found.flop == pytest.approx(7.26e9, rel=1e-3)
    assert found.features == 512
    assert found.bytes == pytest.approx(4 * 11_689_512 + 4 * 2 * found.channels, rel=1e-4)


@pytest.mark.parametrize(("training", "times"), [(False, 2), (True, 3)])
def test_a_step_is_a_multiple_of_a_forward_pass(training, times):
    settings = NetworkSettings(architecture="resnet18", width=4)
    network = models.build(settings, 5, 16, generator("flop")).requires_grad_(training)
    image = torch.zeros(1, 3, 16, 16, requires_grad=not training)
    with FlopCounterMode(display=False) as counter:
        network.eval()(image).sum().backward()
    spared = 2 * 16 * 16 * 27 * 4 if training else 0  # nobody wants the gradient of a real image
    assert counter.get_total_flops() == times * counts(settings, 5, 16).flop - spared


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
    attention = (2 * layers + 1) * 2 * 2 * (side // 2) ** 4 * 2 * width  # products that the counter leaves out on CPU
    found = denoiser(settings, 4, side, 10)
    assert found.flop - attention == counter.get_total_flops()
    assert found.bytes == sum(tensor.nbytes for tensor in network.state_dict().values())
