"""Every architecture builds, repeats and refuses what does not fit."""

import pytest
import torch
from torch import nn

from wmdd.errors import WmddError
from wmdd.models import RESNETS, build, normalise, restore, stem_of
from wmdd.rng import generator
from wmdd.settings import NetworkSettings

EVERY = [*RESNETS, "convnet3", "convnet4", "vit-tiny", "timm:test_resnet", "timm:mobilenetv3_small_050"]
EVERY += ["torchvision:mobilenet_v3_small", "torchvision:mnasnet0_5"]


def settings(architecture: str = "resnet18", **changes) -> NetworkSettings:
    return NetworkSettings(architecture=architecture, **{"width": 4} | changes)


def fresh(architecture: str = "resnet18", classes: int = 7, resolution: int = 32, seed: int = 0, **changes):
    return build(settings(architecture, **changes), classes, resolution, generator("weights", seed))


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("resolution", [32, 64])
@pytest.mark.parametrize("architecture", EVERY)
def test_logits_are_the_head_of_the_embedding(architecture, resolution):
    network = fresh(architecture, 7, resolution).eval()
    x = torch.randn(2, 3, resolution, resolution, generator=generator("x"))
    with torch.no_grad():
        features, logits = network.embed(x), network(x)
    assert features.shape == (2, network.head.in_features)
    assert logits.shape == (2, 7)
    assert torch.equal(logits, network.head(features))
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_convnet_has_the_norm_asked_for(norm):
    network = fresh("convnet3", norm=norm)
    kinds = {"batch": nn.BatchNorm2d, "instance": nn.GroupNorm}
    assert [sum(isinstance(m, kind) for m in network.modules()) for kind in kinds.values()] == (
        [3, 0] if norm == "batch" else [0, 3]
    )


def test_instance_norm_is_that_of_each_image_and_channel():
    network = fresh("convnet3", norm="instance")
    layer = next(m for m in network.modules() if isinstance(m, nn.GroupNorm))
    x = 3 + 2 * torch.randn(2, 4, 8, 8, generator=generator("norm"))
    torch.testing.assert_close(layer(x), torch.nn.functional.instance_norm(x))


# Parameters as in torchvision's documentation.
@pytest.mark.parametrize(
    ("architecture", "features", "parameters"),
    [
        ("resnet18", 512, 11_689_512),
        ("resnet34", 512, 21_797_672),
        ("resnet50", 2048, 25_557_032),
        ("resnet101", 2048, 44_549_160),
    ],
)
def test_at_224_pixels_a_resnet_is_the_published_one(architecture, features, parameters):
    with torch.device("meta"):
        network = fresh(architecture, 1000, 224, width=64)
    assert network.head.in_features == features
    assert count(network) == parameters


def test_a_resnet_computes_what_torchvision_computes():
    from torchvision.models import resnet18

    theirs, ours = resnet18(num_classes=7).eval(), fresh(resolution=224, width=64).eval()
    for kind in (nn.Conv2d, nn.BatchNorm2d, nn.Linear):  # both declare each kind in the same order
        mine, other = ([m for m in network.modules() if isinstance(m, kind)] for network in (ours, theirs))
        for a, b in zip(mine, other, strict=True):
            a.load_state_dict(b.state_dict())
    x = torch.randn(1, 3, 64, 64, generator=generator("x"))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("resolution", [28, 32, 48, 49, 64, 96, 112, 113, 128, 160, 224])
def test_the_stem_leaves_a_last_map_of_four_to_seven_pixels(resolution):
    network = fresh(resolution=resolution, width=1).eval()
    with torch.no_grad():
        last = network.blocks(network.stem(torch.zeros(1, 3, resolution, resolution)))
    assert last.shape[2] == last.shape[3]
    assert 4 <= last.shape[2] <= 7


def test_a_stem_can_be_asked_for():
    assert stem_of(64) == "tiny"
    found = {stem: fresh(resolution=64, stem=stem).stem[0] for stem in ("auto", "cifar", "tiny", "imagenet")}
    assert {stem: (c.kernel_size[0], c.stride[0]) for stem, c in found.items()} == {
        "auto": (3, 2),
        "cifar": (3, 1),
        "tiny": (3, 2),
        "imagenet": (7, 2),
    }


@pytest.mark.parametrize(
    "architecture", ["resnet18", "convnet3", "vit-tiny", "timm:test_resnet", "torchvision:mnasnet0_5"]
)
def test_weights_are_those_of_the_generator_and_nobody_else_is_disturbed(architecture):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = fresh(architecture).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = fresh(architecture).state_dict(), fresh(architecture, seed=1).state_dict()
    assert all(torch.equal(v, again[name]) for name, v in one.items())
    assert not all(torch.equal(v, other[name]) for name, v in one.items())


@pytest.mark.parametrize(
    "architecture",
    ["resnet19", "timm:", "timm:resnet_of_nobody", "timm:hf-hub:timm/resnet18", "torchvision:", "torchvision:res", ""],
)
def test_an_unknown_architecture_is_refused(architecture):
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


@pytest.mark.parametrize("architecture", ["resnet18", "convnet3", "timm:test_resnet", "torchvision:mnasnet0_5"])
def test_a_restored_network_is_the_same(architecture):
    network = fresh(architecture).train()
    network(torch.randn(8, 3, 32, 32, generator=generator("x")))  # moves the running statistics
    again = restore(settings(architecture), network.state_dict(), 7, 32, "here")
    assert all(torch.equal(v, again.state_dict()[name]) for name, v in network.state_dict().items())


def test_another_number_of_classes_is_refused_with_both_numbers():
    with pytest.raises(WmddError, match=r"model\.safetensors has 7 classes .* have 10"):
        restore(settings(), fresh().state_dict(), 10, 32, "model.safetensors")


@pytest.mark.parametrize(
    ("wanted", "resolution"),
    [
        (settings(width=8), 32),
        (settings("resnet34"), 32),
        (settings(), 224),  # another stem
        (settings("convnet3"), 32),
    ],
    ids=["width", "architecture", "stem", "family"],
)
def test_another_network_is_refused_and_the_origin_named(wanted, resolution):
    with pytest.raises(WmddError, match=r"model\.safetensors does not fit") as error:
        restore(wanted, fresh().state_dict(), 7, resolution, "model.safetensors")
    assert f"{wanted.architecture} of width {wanted.width}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["head.weight", "head.bias", "stem.1.running_mean"])
def test_a_checkpoint_that_lacks_something_is_refused(missing):
    state = fresh().state_dict()
    del state[missing]
    with pytest.raises(WmddError, match="does not fit"):
        restore(settings(), state, 7, 32, "model.safetensors")


# ---- normalisation


def test_pixels_are_normalised_per_channel():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)[:, None, None, None].expand(3, 3, 2, 2)
    found = normalise(images, [0.0, 0.2, 0.5], [1.0, 0.1, 0.25])
    assert found.dtype == torch.float32
    expected = torch.tensor([[0.0, -2.0, -2.0], [0.2, 0.0, -1.2], [1.0, 8.0, 2.0]])
    torch.testing.assert_close(found, expected[..., None, None].expand(3, 3, 2, 2))
