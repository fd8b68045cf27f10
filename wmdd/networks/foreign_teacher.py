"""Teachers from outside: weights that somebody else trained, put into our networks in place of a training; and ours for others.

The tensors get our names, and of the last layer the rows of the classes that the data have are taken. On the way out they get
the names that others have. Of ConvNets these are DC's, which MTT and DD-Ranking share (networks.py of
github.com/GeorgeCazenavette/mtt-distillation, utils/networks.py of ddranking 0.2.0).
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wmdd.artifacts.hdf5 import check_classes
from wmdd.base.errors import WmddError
from wmdd.networks.architectures import RESNETS, stem_of
from wmdd.networks.foreign_checkpoint import State, Weights, weights_of
from wmdd.networks.models import ConvNet, Library, Network, ResNet, build
from wmdd.networks.state_dicts import described, fill
from wmdd.settings.network import NetworkSettings
from wmdd.settings.teacher import AdoptedSettings

if TYPE_CHECKING:
    from wmdd.settings.teacher import TeacherSettings

# What older versions of torchvision (DenseNet, ViT), the usual code for CIFAR (ResNet) and DC's (ResNet) call their parameters.
RENAMED = (
    (r"(\.denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2."),
    (r"\.mlp\.linear_1\.", ".mlp.0."),
    (r"\.mlp\.linear_2\.", ".mlp.3."),
    (r"\.shortcut\.", ".downsample."),
    (r"^(?:linear|classifier)\.", "fc."),
)


@dataclass(frozen=True)
class Pretrained:
    """A teacher from outside: the network, the settings that rebuild it, the digest of its weights, what its artifact says."""

    network: Network
    settings: AdoptedSettings
    digest: str
    about: dict[str, Any]


def pretrained(settings: "TeacherSettings", classes: list[str], resolution: int) -> Pretrained:
    """Build the teacher that `settings.weights` names for these classes, folder names in the order of their labels.

    Of weights for the 1,000 classes of ImageNet and data of some of them, the rows of these are taken from the last layer:
    with W, b the layer and S the classes, logits(x) = W[S] h(x) + b[S]. So softmax(logits) is the distribution of the
    original network given that the class is in S. `about["head_rows"]` is S, or None where all rows are taken in order.

    Raises:
        WmddError: the weights can't be had or read, or are of another network, other classes or another size of pictures.
    """
    weights = weights_of(settings)
    kept = {name: getattr(settings, name) for name in AdoptedSettings.model_fields}
    chosen = AdoptedSettings(**kept | {"stem": _stem(settings, weights, resolution)})
    network = build(chosen, len(classes), resolution, torch.Generator())
    if "features.0.weight" in weights.state:
        check_norm(network, chosen.norm, weights.origin)
    state, called = translated(network, chosen.architecture, weights.state)
    rows = _rows(weights, len(state["head.weight"]), classes) if "head.weight" in state else None
    if rows is not None:
        state |= {name: state[name][rows] for name in ("head.weight", "head.bias") if name in state}
    fill(network, state, f"{weights.origin} does not fit {described(chosen, resolution)}", called)
    about: dict[str, Any] = {"origin": weights.origin, "head_rows": rows}
    if weights.normalisation is not None:
        about |= weights.normalisation._asdict()
    return Pretrained(network, chosen, weights.digest, about)


def outside_state(network: Network, settings: NetworkSettings, origin: str) -> State:
    """Return the state of a network by the names that others have for it (`names_outside`).

    Raises:
        WmddError: it is a ConvNet that others do not have.
    """
    check_norm(network, settings.norm, origin)
    names = names_outside(network, settings.architecture)
    return {names[name]: tensor for name, tensor in network.state_dict().items()}


def check_norm(network: Network, norm: str, origin: str) -> None:
    """Refuse a ConvNet whose normalisation DC has under another meaning: the weights would fit and compute something else.

    Its layer norm has a weight for each pixel, and its group norm four groups; ours have a weight for each channel, and groups
    of four channels.

    Raises:
        WmddError: says which are the same.
    """
    if isinstance(network, ConvNet) and norm in ("layer", "group"):
        raise WmddError(
            f"{origin}: norm {norm} is another one in DC, MTT and DD-Ranking; only instance, batch and none are the same"
        )


def translated(network: Network, architecture: str, state: State) -> tuple[State, dict[str, str]]:
    """Return a state by our names, and what the file calls each of them."""
    outside = names_outside(network, architecture)
    if any(name in state for name in outside.keys() - set(outside.values())):
        return state, {}  # by our names already
    ours = {theirs: name for name, theirs in outside.items()}
    modern = {name: name if name in ours else _modern(name) for name in state}
    return {ours.get(modern[name], name): tensor for name, tensor in state.items()}, outside


def _modern(name: str) -> str:
    for old, new in RENAMED:
        name = re.sub(old, new, name)
    return name


def names_outside(network: Network, architecture: str) -> dict[str, str]:
    """Return what others call each tensor: torchvision's names for ResNets, DC's for ConvNets, else the library's own."""
    if isinstance(network, ResNet):
        places = [f"layer{s}.{i}" for s, count in enumerate(RESNETS[architecture][1], 1) for i in range(count)]
        return {name: _resnet_name(name, places) for name in network.state_dict()}
    if isinstance(network, ConvNet):
        return {name: _convnet_name(name, network) for name in network.state_dict()}
    if isinstance(network, Library):
        head = str(network.classifier)
        return {name: _library_name(name, head) for name in network.state_dict()}
    return {name: name for name in network.state_dict()}


def _convnet_name(name: str, network: ConvNet) -> str:
    """Return DC's name: `layers.4.bias` is `features.4.bias`; what a block lacks, a norm or a pooling, has no number there."""
    if name.startswith("head."):
        return f"classifier.{name.removeprefix('head.')}"
    _, index, leaf = name.split(".")
    before = list(network.layers)[: int(index)]
    return f"features.{sum(not isinstance(layer, nn.Identity) for layer in before)}.{leaf}"


def _library_name(name: str, head: str) -> str:
    return name.removeprefix("body.") if name.startswith("body.") else f"{head}.{name.removeprefix('head.')}"


def _resnet_name(name: str, places: list[str]) -> str:
    """Return torchvision's name: `blocks.2.norms.1.bias` is `layer2.0.bn2.bias`, `stem.0` is `conv1`, `head` is `fc`."""
    for ours, theirs in ("stem.0.", "conv1."), ("stem.1.", "bn1."), ("head.", "fc."):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    _, block, kind, index, leaf = name.split(".")
    layer = {"convolutions": f"conv{int(index) + 1}", "norms": f"bn{int(index) + 1}", "shortcut": f"downsample.{index}"}
    return f"{places[int(block)]}.{layer[kind]}.{leaf}"


def _stem(settings: "TeacherSettings", weights: Weights, resolution: int) -> str:
    """Return the stem of a ResNet: as set; else as our own artifact says; else as the size of the first convolution says."""
    if settings.architecture not in RESNETS or settings.stem != "auto":
        return settings.stem
    if weights.meta:
        theirs = str(weights.meta["settings"]["stem"])
        return stem_of(weights.meta["resolution"]) if theirs == "auto" else theirs
    first = next((weights.state[name] for name in ("conv1.weight", "stem.0.weight") if name in weights.state), None)
    if first is None or first.shape[-1] == 7:
        return "imagenet"
    if stem_of(resolution) == "cifar":
        return "cifar"
    raise WmddError(
        f"{weights.origin} begins with a 3x3 convolution, and does not say of which stride; set stem: cifar (1) or tiny (2)"
    )


def _rows(weights: Weights, count: int, classes: list[str]) -> list[int] | None:
    """Return the rows of the last layer that belong to the classes of the data; None if it is all of them, in order."""
    trained_on = weights.meta.get("classes")
    if count == 1000 and (trained_on is None or len(classes) != count):
        from wmdd.datasets import imagenet_classes

        rows = imagenet_classes.indices(classes)
        if rows is not None and trained_on in (None, imagenet_classes.wnids()):
            return None if rows == list(range(count)) else rows
    if count != len(classes):
        raise WmddError(
            f"{weights.origin} has {count} classes but the data have {len(classes)}; only of ImageNet's 1,000 are some "
            "taken, by class folders that are their WordNet ids"
        )
    if trained_on is not None:
        check_classes(classes, trained_on, "the data", weights.origin)
    return None
