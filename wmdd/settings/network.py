"""Settings of a network and of its training, which several stages share."""

import re
from typing import Literal

from pydantic import Field

from wmdd.base.errors import WmddError
from wmdd.settings.base import Count, Fraction, NonNegative, Positive, Settings

Optimizer = Literal["sgd", "adam", "adamw", "muon"]


class NetworkSettings(Settings):
    """A network; the number of classes and the input size come from the data."""

    architecture: str = Field(
        "resnet18", description="resnet18|34|50|101, convnet1 to 6, vit-tiny, torchvision:NAME or timm:NAME"
    )
    width: Count = Field(64, description="channels of the first stage (ResNet: 64 published; ConvNet: 128 published)")
    stem: Literal["auto", "cifar", "tiny", "imagenet"] = Field(
        "auto", description="cifar 3x3 stride 1; tiny 3x3 stride 2; imagenet 7x7 stride 2 + pool; auto by resolution"
    )
    norm: Literal["batch", "instance", "layer", "group", "none"] = Field(
        "batch", description="normalisation layers of a ConvNet (DM, DataDAM, MTT: instance)"
    )
    pooling: Literal["avg", "max", "none"] = Field("avg", description="of a ConvNet's blocks")


def has_batchnorm(network: NetworkSettings) -> bool:
    """Return whether a network of this package has BatchNorm; of one of another library it is assumed."""
    if network.architecture.startswith("convnet"):
        return network.norm == "batch"
    return network.architecture != "vit-tiny"


class OptimisationSettings(Settings):
    """Stochastic gradient descent, shared by all networks that are trained."""

    epochs: Count = Field(50, description="passes over the training set")
    batch_size: Count = Field(128, description="images a step, at most; over all GPUs")
    optimizer: Optimizer = Field("sgd", description="muon: for the matrices and filters, and AdamW for the rest")
    lr: Positive = Field(0.1, description="peak learning rate")
    momentum: Fraction = Field(0.9, description="SGD and Muon only, Nesterov (Muon published: 0.95)")
    weight_decay: NonNegative = 5e-4
    warmup_epochs: NonNegative = Field(0, description="linear rise of the learning rate")
    schedule: Literal["cosine", "step", "constant"] = Field(
        "cosine", description="of the learning rate; step: a tenth from half of the epochs on (DM, DataDAM, MTT)"
    )
    schedule_stretch: float = Field(
        1.0,
        ge=1,
        description="zeta: the cosine is stretched to zeta x epochs, so that the rate does not end at 0 (EDC, RD3)",
    )
    evaluate_every: Count = Field(
        10, description="epochs between two looks at the validation set; the last always counts"
    )
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay a step of the moving average of the weights, which is kept; 0: the last weights are",
    )


class TrainingSettings(NetworkSettings, OptimisationSettings):
    """A network and its optimisation, shared by teacher and student."""


class ConvNetSettings(NetworkSettings):
    """The network of the family match: a ConvNet, three blocks at 32 px and four at 64 (DM, DataDAM, MTT)."""

    architecture: str = Field("convnet3", description="convnet1 to 6; 3 for 32 px, 4 for 64 px published")
    width: Count = Field(128, description="channels of each block (published: 128)")
    norm: Literal["batch", "instance", "layer", "group", "none"] = Field(
        "instance", description="normalisation layers (published: instance); not batch, which ties images to each other"
    )
    views: Literal["dsa", "none"] = Field("dsa", description="dsa: siamese augmentation, one random distortion a step")

    def check(self, where: str = "") -> None:
        """Refuse a network that is no ConvNet, or whose features of an image depend on others; the message begins with `where`.

        Raises:
            WmddError: names the remedy.
        """
        if not re.fullmatch(r"convnet\d", self.architecture):
            raise WmddError(
                f"{where}the network must be a ConvNet, not {self.architecture}; set architecture: convnet3"
            )
        if self.norm == "batch":
            raise WmddError(f"{where}BatchNorm ties the images of a batch to each other; set norm: instance")
