"""Every architecture builds, repeats and refuses what does not fit."""

import pytest
import torch
from torch import nn

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.networks.models import bounds_of, build, normalise, to_pixels
from wmdd.networks.normalisation import Normalisation
from wmdd.networks.state_dicts import restore
from wmdd.settings.network import NetworkSettings

EVERY = ["resnet18", "resnet50", "convnet1", "convnet5", "vit-tiny"]
EVERY += ["timm:test_resnet", "timm:mobilenetv3_small_050", "torchvision:mnasnet0_5"]


def settings(architecture: str = "resnet18", **changes) -> NetworkSettings:
    return NetworkSettings(architecture=architecture, **{"width": 4} | changes)


def fresh(architecture: str = "resnet18", classes: int = 7, resolution: int = 32, seed: int = 0, **changes):
    return build(settings(architecture, **changes), classes, resolution, generator("weights", seed))


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("architecture", EVERY)
def test_logits_are_the_head_of_the_embedding(architecture):
    network = fresh(architecture).eval()
    x = torch.randn(2, 3, 32, 32, generator=generator("x"))
    with torch.no_grad():
        features, logits = network.embed(x), network(x)
    assert features.shape == (2, network.head.in_features)
    assert logits.shape == (2, 7)
    assert torch.equal(logits, network.head(features))
    assert not torch.equal(logits[0], logits[1])


# ---- ConvNets


@pytest.mark.parametrize("depth", [1, 6])
def test_a_convnet_halves_the_side_in_each_of_its_blocks(depth):
    network = fresh(f"convnet{depth}", resolution=64, norm="instance")
    *maps, last = (tuple(m.shape) for m in network.maps(torch.zeros(1, 3, 64, 64)))
    assert maps == [(1, 4, 64 >> i, 64 >> i) for i in range(depth)]
    assert last == (1, 4 * (64 >> depth) ** 2)


@pytest.mark.parametrize("norm", ["batch", "instance", "layer", "group", "none"])
def test_a_convnet_has_the_norm_asked_for(norm):
    network = fresh("convnet3", norm=norm, width=8)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]
    groups = {"instance": 8, "layer": 1, "group": 2, "batch": None}
    assert [getattr(m, "num_groups", None) for m in norms] == ([groups[norm]] * 3 if norm != "none" else [])


@pytest.mark.parametrize(("norm", "shape"), [("instance", (2, 8, 1)), ("layer", (2, 1, 8)), ("group", (2, 2, 4))])
def test_a_norm_is_over_the_channels_of_a_group_of_each_image(norm, shape):
    network = fresh("convnet3", norm=norm, width=8)
    layer = next(m for m in network.modules() if isinstance(m, nn.GroupNorm))
    x = 3 + 2 * torch.randn(2, 8, 8, 8, generator=generator("norm"))
    grouped = layer(x).reshape(*shape, 64)
    torch.testing.assert_close(grouped.mean((2, 3)), torch.zeros(shape[:2]), rtol=0, atol=1e-5)
    torch.testing.assert_close(grouped.var((2, 3), unbiased=False), torch.ones(shape[:2]), rtol=1e-4, atol=0)
    if norm == "instance":
        torch.testing.assert_close(layer(x), torch.nn.functional.instance_norm(x))


@pytest.mark.parametrize(
    ("pooling", "wanted"),
    [("avg", [[2.5, 0.0], [0.0, 0.0]]), ("max", [[4.0, 0.0], [0.0, 0.0]]), ("none", None)],
)
def test_a_convnet_has_the_pooling_asked_for(pooling, wanted):
    network = fresh("convnet1", resolution=4, pooling=pooling)
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, :2, :2] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = network.layers[3](x)
    assert torch.equal(found, x if wanted is None else torch.tensor([[wanted]]))
    assert network.head.in_features == 4 * (4 if pooling != "none" else 16)


def test_a_convnet_that_cannot_be_is_refused():
    with pytest.raises(WmddError, match=r"^convnet6 halves pictures of 32 px to nothing; take a shallower one$"):
        fresh("convnet6")
    assert fresh("convnet6", pooling="none", width=1).head.in_features == 32**2
    assert fresh("convnet5").head.in_features == 4
    with pytest.raises(
        WmddError, match=r"^norm group makes groups of 4 channels, but width is 6; make it a multiple of"
    ):
        fresh("convnet3", norm="group", width=6)


# Parameters as in torchvision's documentation.
@pytest.mark.parametrize(
    ("architecture", "features", "parameters"), [("resnet18", 512, 11_689_512), ("resnet101", 2048, 44_549_160)]
)
def test_at_224_pixels_a_resnet_is_the_published_one(architecture, features, parameters):
    with torch.device("meta"):
        network = fresh(architecture, 1000, 224, width=64)
    assert network.head.in_features == features
    assert count(network) == parameters


@pytest.mark.parametrize("resolution", [28, 48, 49, 112, 113, 224])
def test_the_stem_leaves_a_last_map_of_four_to_seven_pixels(resolution):
    network = fresh(resolution=resolution, width=1).eval()
    with torch.no_grad():
        last = network.blocks(network.stem(torch.zeros(1, 3, resolution, resolution)))
    assert 4 <= last.shape[2] == last.shape[3] <= 7


def test_a_stem_can_be_asked_for():
    expected = {"auto": (3, 2), "cifar": (3, 1), "tiny": (3, 2), "imagenet": (7, 2)}
    stems = {stem: fresh(resolution=64, stem=stem).stem[0] for stem in expected}
    assert {stem: (c.kernel_size[0], c.stride[0]) for stem, c in stems.items()} == expected


@pytest.mark.parametrize("architecture", ["resnet18", "convnet3", "timm:test_resnet", "torchvision:mnasnet0_5"])
def test_weights_are_those_of_the_generator_and_nobody_else_is_disturbed(architecture):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = fresh(architecture).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = fresh(architecture).state_dict(), fresh(architecture, seed=1).state_dict()
    assert all(torch.equal(v, again[name]) for name, v in one.items())
    assert not all(torch.equal(v, other[name]) for name, v in one.items())


def test_an_unknown_architecture_is_refused():
    unknown = ["resnet19", "convnet0", "convnet7", "", "timm:", "timm:resnet_of_nobody", "timm:hf-hub:timm/resnet18"]
    for architecture in [*unknown, "torchvision:", "torchvision:res"]:
        with pytest.raises(WmddError, match=r"unknown architecture|timm has no network|torchvision has no network"):
            fresh(architecture)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mobilenet_v3", "torchvision has no network 'mobilenet_v3'; did you mean torchvision:mobilenet_v2?"),
        ("resnet50", "torchvision's resnet50 is the same network as ours; set architecture: resnet50"),
        ("googlenet", "googlenet of torchvision has further outputs"),
        ("squeezenet1_0", "squeezenet1_0 of torchvision does not end in a linear layer"),
        ("vit_b_16", "torchvision:vit_b_16 refuses pictures of 40 px (Input shape indivisible by patch size!)"),
        ("alexnet", "torchvision:alexnet refuses pictures of 40 px ("),
    ],
)
def test_a_network_of_torchvision_that_will_not_do(name, said):
    with pytest.raises(WmddError) as error:
        fresh(f"torchvision:{name}", resolution=40)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


# ---- restoring


@pytest.mark.parametrize("architecture", ["resnet18", "timm:test_resnet", "torchvision:mnasnet0_5"])
def test_a_restored_network_is_the_same(architecture):
    network = fresh(architecture).train()
    network(torch.randn(8, 3, 32, 32, generator=generator("x")))  # moves the running statistics
    again = restore(settings(architecture), network.state_dict(), 7, 32, "here")
    assert all(torch.equal(v, again.state_dict()[name]) for name, v in network.state_dict().items())


@pytest.mark.parametrize(
    ("wanted", "resolution"),
    [(settings(width=8), 32), (settings("resnet34"), 32), (settings(), 224), (settings("convnet3"), 32)],
    ids=["width", "architecture", "stem", "family"],
)
def test_another_network_is_refused_and_the_origin_named(wanted, resolution):
    with pytest.raises(WmddError, match=r"model\.safetensors does not fit") as error:
        restore(wanted, fresh().state_dict(), 7, resolution, "model.safetensors")
    assert f"{wanted.architecture} of width {wanted.width}" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(WmddError, match=r"model\.safetensors has 7 classes .* have 10"):
        restore(wanted, fresh().state_dict(), 10, resolution, "model.safetensors")


# ---- normalisation

NORMALISATION = Normalisation([0.0, 0.2, 0.5], [1.0, 0.1, 0.25])


def test_pixels_are_normalised_per_channel():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)[:, None, None, None].expand(3, 3, 2, 2)
    found = normalise(images, NORMALISATION)
    assert found.dtype == torch.float32
    expected = torch.tensor([[0.0, -2.0, -2.0], [0.2, 0.0, -1.2], [1.0, 8.0, 2.0]])
    torch.testing.assert_close(found, expected[..., None, None].expand(3, 3, 2, 2))


def test_pixels_come_back_from_normalised_ones_rounded_and_within_range():
    images = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(256, 3, 2, 2)
    normalised = normalise(images, NORMALISATION)
    step = torch.tensor(NORMALISATION.std).view(3, 1, 1).reciprocal() / 255
    assert torch.equal(to_pixels(normalised + 0.4 * step, NORMALISATION), images)
    assert torch.equal(to_pixels(normalised[[0, 255]] * 2, NORMALISATION)[:, 0], images[[0, 255], 0])
    bounds = bounds_of(NORMALISATION, torch.device("cpu"))
    for bound, extreme in zip(bounds, normalised[[0, 255], :, :1, :1], strict=True):
        torch.testing.assert_close(bound, extreme)
