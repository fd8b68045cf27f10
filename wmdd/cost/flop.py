"""FLOP and sizes of a network at a resolution, counted by hand, without torch, so that a workflow can ask cheaply.

The networks of `wmdd.networks.models` are counted by hand; those of libraries are built and counted. A convolution from a to b
channels with k x k weights and h x h outputs is 2 a b k^2 h^2 FLOP; nothing but convolutions and products counts.
Tests compare all of it with `torch.utils.flop_counter` and with the networks' own parameters.
"""

import math
from functools import cache
from typing import NamedTuple

from wmdd.cost import rates
from wmdd.networks.architectures import CONVNETS, RESNETS, stem_of
from wmdd.settings.latent import AutoencoderSettings, DiffusionSettings
from wmdd.settings.network import NetworkSettings
from wmdd.settings.recover import RecoverSettings

VIT = (192, 12, 3)  # vit-tiny: width, layers, heads
FINE = 16  # channels at the full resolution: wmdd.generators.vae
NAN = math.nan


class Counts(NamedTuple):
    """What is counted of a network at a resolution."""

    flop: float  # of the forward pass of one image
    features: float  # D
    channels: float  # of all BatchNorm layers
    bytes: float  # of parameters and buffers
    outputs: float  # numbers that the convolutions and products of one image make
    width: int = 0  # by which the rates of a device are scaled; 0 where it has none


UNKNOWN = Counts(NAN, NAN, NAN, NAN, NAN)
NOTHING = Counts(0, 0, 0, 0, 0)  # of a network that a job does not have


class _Tally:
    """Adds up the layers of a network."""

    def __init__(self) -> None:
        self.flop = self.outputs = self.numbers = self.channels = self.norms = 0

    def convolution(self, inputs: int, outputs: int, size: int, side: int, bias: bool = False) -> None:
        self.flop += 2 * inputs * outputs * size**2 * side**2
        self.outputs += outputs * side**2
        self.numbers += inputs * outputs * size**2 + outputs * bias

    def batchnorm(self, channels: int) -> None:
        self.channels += channels
        self.norms += 1

    def linear(self, inputs: int, outputs: int, rows: int = 1) -> None:
        self.flop += 2 * rows * inputs * outputs
        self.outputs += rows * outputs
        self.numbers += inputs * outputs + outputs

    def counts(self, features: int) -> Counts:
        """Return the sums; a BatchNorm has four numbers a channel and counts its batches in eight bytes."""
        stored = 4 * (self.numbers + 4 * self.channels) + 8 * self.norms
        return Counts(self.flop, features, self.channels, stored, self.outputs)


def counts(settings: NetworkSettings, classes: int, resolution: int, assume: bool = False) -> Counts:
    """Count a network by hand, or a library's on itself, built without its numbers.

    Args:
        settings: of the network, or of a stage that has one.
        classes: it tells apart.
        resolution: side of its images; 0: it is not known, and neither are the counts.
        assume: build nothing: the network of `unknown` in rates.yaml stands for a library's.

    Raises:
        WmddError: there is no such network, or it does not take images of this size.
    """
    own = NetworkSettings(**{name: getattr(settings, name) for name in NetworkSettings.model_fields})
    return _counts(own, classes, resolution, assume)


@cache
def _counts(settings: NetworkSettings, classes: int, resolution: int, assume: bool) -> Counts:
    counted = by_hand(settings, classes, resolution)
    if counted is None and assume:
        other = NetworkSettings(architecture=rates.table()["asked"]["unknown"]["architecture"])
        counted = by_hand(other, classes, resolution)
    elif counted is None and resolution:
        counted = on_network(settings, classes, resolution)
    return (counted or UNKNOWN)._replace(width=rated_width(settings))


def on_network(settings: NetworkSettings, classes: int, resolution: int) -> Counts:
    """Build a network without its numbers and count: 2 FLOP a multiplication with addition, in convolutions and products.

    Raises:
        WmddError: there is no such network, or it does not take images of this size.
    """
    try:
        return _built(settings, classes, resolution, "meta")
    except (NotImplementedError, RuntimeError):  # it does something that needs numbers
        return _built(settings, classes, resolution, "cpu")


def _built(settings: NetworkSettings, classes: int, resolution: int, device: str) -> Counts:
    import torch

    from wmdd.networks.batchnorm import layers
    from wmdd.networks.engine import flop
    from wmdd.networks.models import build

    with torch.device(device):
        network = build(settings, classes, resolution, torch.Generator("cpu"))
    channels = sum(layer.num_features for layer in layers(network).values())
    stored = sum(tensor.nbytes for tensor in network.state_dict().values())
    return Counts(flop(network, resolution), network.head.in_features, channels, stored, NAN)


def by_hand(settings: NetworkSettings, classes: int, resolution: int) -> Counts | None:
    """Count a network, or return None if it is a library's, unknown, or does not take images of this side."""
    name = settings.architecture
    if resolution and name in RESNETS:
        return _resnet(settings, classes, resolution)
    if resolution and name in CONVNETS and (resolution >> CONVNETS[name] or settings.pooling == "none"):
        return _convnet(settings, classes, resolution)
    if resolution > 1 and name == "vit-tiny":
        return _vit(classes, resolution)
    return None


def _resnet(settings: NetworkSettings, classes: int, resolution: int) -> Counts:
    bottleneck, depth = RESNETS[settings.architecture]
    stem = stem_of(resolution) if settings.stem == "auto" else settings.stem
    size, stride = {"cifar": (3, 1), "tiny": (3, 2), "imagenet": (7, 2)}[stem]
    tally, side, inputs = _Tally(), -(-resolution // stride), settings.width
    tally.convolution(3, inputs, size, side)
    tally.batchnorm(inputs)
    side = -(-side // 2) if stem == "imagenet" else side
    for stage, blocks in enumerate(depth):
        width = settings.width << stage
        outputs = 4 * width if bottleneck else width
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            after = -(-side // stride)
            layers = [(inputs, width, 3, after), (width, width, 3, after)]
            if bottleneck:
                layers = [(inputs, width, 1, side), (width, width, 3, after), (width, outputs, 1, after)]
            if stride > 1 or inputs != outputs:
                layers.append((inputs, outputs, 1, after))
            for a, b, k, h in layers:
                tally.convolution(a, b, k, h)
                tally.batchnorm(b)
            side, inputs = after, outputs
    tally.linear(inputs, classes)
    return tally.counts(inputs)


def _convnet(settings: NetworkSettings, classes: int, resolution: int) -> Counts:
    tally, width, halved = _Tally(), settings.width, settings.pooling != "none"
    for layer in range(CONVNETS[settings.architecture]):
        tally.convolution(width if layer else 3, width, 3, resolution >> layer * halved, bias=True)
        if settings.norm == "batch":
            tally.batchnorm(width)
        elif settings.norm != "none":
            tally.numbers += 2 * width
    features = width * (resolution >> CONVNETS[settings.architecture] * halved) ** 2
    tally.linear(features, classes)
    return tally.counts(features)


def _vit(classes: int, resolution: int) -> Counts:
    width, layers, heads = VIT
    patch = next(p for p in range(max(2, math.ceil(resolution / 16)), resolution + 1) if resolution % p == 0)
    tokens, tally = (resolution // patch) ** 2 + 1, _Tally()
    tally.convolution(3, width, patch, resolution // patch, bias=True)
    tally.numbers += (1 + tokens) * width  # of the class and of places
    for _ in range(layers):
        tally.linear(width, 3 * width, tokens)
        tally.flop += 2 * 2 * tokens**2 * width
        tally.outputs += tokens**2 * heads + tokens * width
        for inputs, outputs in (width, width), (width, 4 * width), (4 * width, width):
            tally.linear(inputs, outputs, tokens)
        tally.numbers += 2 * 2 * width
    tally.numbers += 2 * width
    tally.linear(width, classes)
    return tally.counts(width)


def autoencoder(settings: AutoencoderSettings, resolution: int) -> tuple[Counts, Counts]:
    """Count encoder and decoder of `wmdd.generators.vae`; `features` is the size of a latent."""
    sides = [resolution >> level for level in range(1, int(math.log2(settings.factor)) + 1)]
    widths = [settings.width] + [2 * settings.width] * (len(sides) - 1)
    down, up = _Tally(), _Tally()
    for inputs, outputs, side in zip([3, *widths], widths, sides, strict=False):
        down.convolution(inputs, outputs, 4, side, bias=True)
        _residual(down, outputs, side)
    down.convolution(widths[-1], 2 * settings.channels, 3, sides[-1], bias=True)
    up.convolution(settings.channels, widths[-1], 3, sides[-1], bias=True)
    _residual(up, widths[-1], sides[-1])
    for inputs, outputs, side in zip(widths[::-1], [*widths[-2::-1], 0], sides[::-1], strict=True):
        up.convolution(inputs, 4 * (outputs or FINE), 3, side, bias=True)
        if outputs:
            _residual(up, outputs, 2 * side)
    up.convolution(FINE, 3, 3, resolution, bias=True)
    up.numbers += 2 * settings.channels
    size = settings.channels * sides[-1] ** 2
    return down.counts(size), up.counts(size)


def _residual(tally: _Tally, width: int, side: int) -> None:
    for _ in range(2):
        tally.convolution(width, width, 3, side, bias=True)


def denoiser(settings: DiffusionSettings, channels: int, side: int, classes: int) -> Counts:
    """Count the UNet of `wmdd.generators.denoiser` for latents of some channels and side."""
    tally, width, layers = _Tally(), settings.width, settings.layers
    embedded, half = 4 * width, side // 2

    def block(inputs: int, outputs: int, side: int, attention: bool = False) -> None:
        tally.convolution(inputs, outputs, 3, side, bias=True)
        tally.linear(embedded, outputs)
        tally.convolution(outputs, outputs, 3, side, bias=True)
        tally.numbers += 2 * (inputs + outputs)
        if inputs != outputs:
            tally.convolution(inputs, outputs, 1, side, bias=True)
        if attention:
            for _ in range(4):
                tally.linear(outputs, outputs, side**2)
            tally.flop += 2 * 2 * side**4 * outputs
            tally.outputs += side**4 + side**2 * outputs
            tally.numbers += 2 * outputs

    tally.convolution(channels, width, 3, side, bias=True)
    tally.linear(width, embedded)
    tally.linear(embedded, embedded)
    tally.numbers += (classes + 1) * embedded
    for _ in range(layers):
        block(width, width, side)
    tally.convolution(width, width, 3, half, bias=True)
    for layer in range(layers):
        block(2 * width if layer else width, 2 * width, half, attention=True)
    for _ in range(2):
        block(2 * width, 2 * width, half)
    for skipped in [2 * width] * layers + [width]:
        block(2 * width + skipped, 2 * width, half, attention=True)
    tally.convolution(2 * width, 2 * width, 3, side, bias=True)
    for layer in range(layers + 1):
        block(2 * width if layer else 3 * width, width, side)
    tally.numbers += 2 * width
    tally.convolution(width, channels, 3, side, bias=True)
    return tally.counts(channels * side**2)


def rated_width(settings: NetworkSettings) -> int:
    """Return the width by which the rates of a device are scaled; 0 for networks that have none."""
    return settings.width if settings.architecture in (*RESNETS, *CONVNETS) else 0


def recovering(settings: RecoverSettings, images: float, flop: float, resolution: int) -> tuple[float, float]:
    """Return FLOP and bytes that move through memory (at least) of recovering some images.

    Each iteration is a forward pass and the gradient of the image, of a network whose forward pass is `flop`; float32 pixels
    and Adam's two moments are read and written.
    """
    passes = settings.iterations * images
    return 2 * passes * flop, 24 * passes * (3 * resolution**2 or NAN)
