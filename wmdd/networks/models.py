"""Networks: teachers and students. All take normalised images [B, 3, R, R] and have `embed` and `head`."""

import difflib
import math
import re
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from wmdd.base.errors import WmddError, one_line
from wmdd.networks.architectures import CONVNETS, RESNETS, stem_of
from wmdd.networks.normalisation import Normalisation

if TYPE_CHECKING:
    from wmdd.settings.network import NetworkSettings


class Network(nn.Module):
    """A network whose last layer is `head`: forward(x) = head(embed(x))."""

    head: nn.Linear

    def embed(self, x: Tensor) -> Tensor:
        """Return the features before the last linear layer, [B, D]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, C]."""
        return cast(Tensor, self.head(self.embed(x)))


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class Residual(nn.Module):
    """A basic (3x3, 3x3) or bottleneck (1x1, 3x3, 1x1) residual block."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        sizes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        if not bottleneck:
            sizes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        self.convolutions = nn.ModuleList(_convolution(a, b, k, s) for a, b, k, s in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b, _, _ in sizes)
        self.stride = stride
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(_convolution(inputs, outputs, 1), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(F(x) + shortcut(x))."""
        y = x
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            y = norm(convolution(y if index == 0 else y.relu_()))
        # The shortcut's 1x1 convolution of stride 2 is taken as a subsampling and a convolution of stride 1: the same
        # numbers, and the backward pass of the former corrupts memory on CPU (torch 2.13, channels_last, 2 threads).
        return y.add_(self.shortcut(x[..., :: self.stride, :: self.stride])).relu_()


class ResNet(Network):
    """A residual network (He et al. 2016) of any width, with a stem that suits the resolution."""

    def __init__(self, name: str, width: int, stem: str, classes: int) -> None:
        super().__init__()
        bottleneck, depth = RESNETS[name]
        size, stride = {"cifar": (3, 1), "tiny": (3, 2), "imagenet": (7, 2)}[stem]
        pool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        self.stem = nn.Sequential(
            _convolution(3, width, size, stride), nn.BatchNorm2d(width), nn.ReLU(inplace=True), pool
        )
        blocks: list[nn.Module] = []
        inputs = width
        for stage, count in enumerate(depth):
            for block in range(count):
                blocks.append(Residual(inputs, width << stage, 2 if stage and not block else 1, bottleneck))
                inputs = (width << stage) * (4 if bottleneck else 1)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Return the mean over the last feature map, [B, D]."""
        return cast(Tensor, self.blocks(self.stem(x)).mean((2, 3)))


class ConvNet(Network):
    """Blocks of 3x3 convolution, normalisation, ReLU and 2x2 pooling (Gidaris and Komodakis 2018; used by DM, DataDAM, MTT).

    `norm` is batch, instance, layer (one group of all channels), group (four channels each) or none; `pooling` is avg, max or
    none. The published networks have instance norm, mean pooling and 128 channels.
    """

    def __init__(self, depth: int, width: int, norm: str, pooling: str, classes: int, resolution: int) -> None:
        super().__init__()
        pooled = resolution >> depth if pooling != "none" else resolution
        if not pooled:
            raise WmddError(f"convnet{depth} halves pictures of {resolution} px to nothing; take a shallower one")
        if norm == "group" and width % 4:
            raise WmddError(f"norm group makes groups of 4 channels, but width is {width}; make it a multiple of 4")
        layers: list[nn.Module] = []
        for index in range(depth):
            layers += [
                nn.Conv2d(width if index else 3, width, 3, padding=1),
                _norm(norm, width),
                nn.ReLU(),
                _pool(pooling),
            ]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Linear(width * pooled**2, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Return the flattened last feature map, [B, D]."""
        return cast(Tensor, self.layers(x))

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return the rectified maps of every block, [B, width, h, w] each, and behind them what `embed` does, [B, D]."""
        maps = []
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                maps.append(x)
        return [*maps, x]


def _norm(name: str, width: int) -> nn.Module:
    groups = {"instance": width, "layer": 1, "group": width // 4}
    if name in groups:
        return nn.GroupNorm(groups[name], width)
    return nn.BatchNorm2d(width) if name == "batch" else nn.Identity()


def _pool(name: str) -> nn.Module:
    return {"avg": nn.AvgPool2d(2), "max": nn.MaxPool2d(2), "none": nn.Identity()}[name]


class Library(Network):
    """A network of a library, without its last layer, whose name in the library is `classifier`."""

    body: nn.Module
    classifier: str

    def embed(self, x: Tensor) -> Tensor:
        """Return what the library's last layer is given, [B, D]."""
        return cast(Tensor, self.body(x))


class Timm(Library):
    """A network of the timm library."""

    def __init__(self, name: str, classes: int, **options: Any) -> None:
        super().__init__()
        import timm

        try:
            body: Any = timm.create_model(name, pretrained=False, num_classes=0, **options)
        except RuntimeError as error:
            raise WmddError(f"timm has no network {name!r} ({error}); see timm.list_models()") from None
        width = getattr(body, "head_hidden_size", None) or body.num_features  # some widen after pooling
        self.body, self.classifier = body, body.pretrained_cfg.get("classifier")
        self.head = nn.Linear(width, classes)


class Torchvision(Library):
    """A classifier of torchvision whose last linear layer is taken out as the head."""

    def __init__(self, name: str, classes: int, resolution: int) -> None:
        super().__init__()
        from torchvision import models

        if name in RESNETS:
            raise WmddError(f"torchvision's {name} is the same network as ours; set architecture: {name}")
        names = [other for other in models.list_models(module=models) if other not in RESNETS]
        if name not in names:
            nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
            raise WmddError(f"torchvision has no network {name!r}; did you mean torchvision:{nearest}?")
        if name in ("googlenet", "inception_v3"):
            raise WmddError(f"{name} of torchvision has further outputs; take a timm:NAME in its place")
        self.body = models.get_model(name, weights=None, num_classes=classes, **_size_of(name, resolution))
        linear = [place for place, module in self.body.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise WmddError(f"{name} of torchvision does not end in a linear layer; take another network")
        self.classifier = linear[-1]
        self.head = cast(nn.Linear, self.body.get_submodule(self.classifier))
        self.body.set_submodule(self.classifier, nn.Identity())


def _size_of(name: str, resolution: int) -> dict[str, Any]:
    """Return the options of torchvision's networks that are made for one size of pictures."""
    if name.startswith("vit_"):
        return {"image_size": resolution}
    return {"input_size": (resolution, resolution)} if name.startswith("maxvit") else {}


def _tried(name: str, make: Callable[[], Network], resolution: int) -> Network:
    """Build a network of a library, and see that it takes pictures of this size.

    Raises:
        WmddError: it does not.
    """
    try:
        network = make()
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, resolution, resolution))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise WmddError(
            f"{name} refuses pictures of {resolution} px ({one_line(error)}); set data.resolution to its own"
        ) from None
    return network.train()


def build(settings: "NetworkSettings", classes: int, resolution: int, generator: torch.Generator) -> Network:
    """Build a network with fresh weights drawn from `generator`.

    Raises:
        WmddError: the architecture is unknown, or does not take pictures of this size.
    """
    name = settings.architecture
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        if name in RESNETS:
            stem = stem_of(resolution) if settings.stem == "auto" else settings.stem
            return ResNet(name, settings.width, stem, classes)
        if name in CONVNETS:
            return ConvNet(CONVNETS[name], settings.width, settings.norm, settings.pooling, classes, resolution)
        if name == "vit-tiny":  # 14 x 14 to 16 x 16 patches, as ViT-Tiny/16 has at 224 px
            patch = max(2, math.ceil(resolution / 16))
            patch = next(p for p in range(patch, resolution + 1) if resolution % p == 0)
            return Timm("vit_tiny_patch16_224", classes, img_size=resolution, patch_size=patch)
        library, _, chosen = name.partition(":")
        if library == "timm" and re.fullmatch(r"[\w.-]+", chosen):  # of a name with a colon timm would ask a hub
            return _tried(name, lambda: Timm(chosen, classes), resolution)
        if library == "torchvision" and chosen:
            return _tried(name, lambda: Torchvision(chosen, classes, resolution), resolution)
    names = ", ".join([*RESNETS, *CONVNETS, "vit-tiny", "torchvision:NAME", "timm:NAME"])
    raise WmddError(f"unknown architecture {name!r}; known: {names}")


def normalise(images: Tensor, normalisation: Normalisation) -> Tensor:
    """Turn images [..., P, H, W] into normalised float32: (x - mean) / std in each of the P channels, x in unit scale.

    Bytes 0..255 are divided by 255; floats are in unit scale already (black 0, white 1).
    """
    mean, std = (_per_channel(tuple(values), images.device) for values in normalisation)
    unit = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    return (unit - mean) / std


@cache  # a copy to a GPU waits for all that it is at
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(-1, 1, 1)


def bounds_of(normalisation: Normalisation, device: torch.device) -> list[Tensor]:
    """Return black and white as normalised pixels, [P, 1, 1] each."""
    mean, std = map(torch.tensor, normalisation)
    return [((value - mean) / std).view(-1, 1, 1).to(device) for value in (0.0, 1.0)]


def to_unit(images: Tensor, normalisation: Normalisation) -> Tensor:
    """Return the float32 images in unit scale of normalised ones [..., P, R, R]: what `normalise` takes back."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in normalisation)
    return images * std + mean


def to_pixels(images: Tensor, normalisation: Normalisation) -> Tensor:
    """Return uint8 images of normalised ones [..., P, R, R], rounded; stored as they are (WMDD's released code saves JPEG)."""
    return (to_unit(images, normalisation) * 255).round().clamp(0, 255).to(torch.uint8)
