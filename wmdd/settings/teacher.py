"""Settings of the stages teacher and features."""

import os
from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field

from wmdd.settings.base import Count, Fraction, Settings, Shares
from wmdd.settings.network import NetworkSettings, TrainingSettings

CHECKPOINTS = (".pt", ".pth", ".bin", ".tar", ".safetensors")


class AdoptedSettings(NetworkSettings):
    """A teacher whose weights come from outside: nothing of a training, but the same gate."""

    weights: str = Field(
        "",
        description="empty: train one; else a name of torchvision (ResNet18_Weights.IMAGENET1K_V1), pretrained "
        "(timm's, for architecture timm:NAME), or a file: .pt, .pth, .bin, .tar, .safetensors",
    )
    min_accuracy: Fraction = Field(0.0, description="gate: stop the run when the teacher's validation top-1 is below")

    @property
    def checkpoint(self) -> str:
        """The file that the weights are taken from, or nothing."""
        is_file = "/" in self.weights or self.weights.endswith(CHECKPOINTS)
        return os.path.expanduser(self.weights) if is_file else ""


class TeacherSettings(TrainingSettings, AdoptedSettings):
    """The squeeze stage: one network trained on the real training set, gated on its validation accuracy."""

    crop: Literal["none", "pad", "resized"] = Field("resized", description="pad: shift by up to `pad` px")
    pad: int = Field(4, ge=0, description="pixels")
    crop_scale: Shares = Field((0.08, 1.0), description="share of the area (resized)")
    flip: bool = Field(True, description="mirror left-right with probability 1/2")
    label_smoothing: Fraction = 0.0
    accumulate: Count = Field(
        1, description="parts of a step, computed one after another to save memory; BatchNorm sees one at a time"
    )
    sync_batchnorm: bool = Field(
        True,
        description="on several GPUs: BatchNorm over the images of all of them (torch's SyncBatchNorm), or of each",
    )
    progressive_from: float = Field(
        1.0,
        gt=0,
        le=1,
        description="side of the images in the first epoch as a share of the full one, which is reached at 3/4 of the epochs "
        "(fastai's entry to DAWNBench 2018; FFCV); 1: off",
    )

    @classmethod
    def unused(cls, values: dict[str, Any]) -> Collection[str]:
        """Return the settings of the training, where weights come from outside."""
        return cls.model_fields.keys() - AdoptedSettings.model_fields.keys() if values.get("weights") else ()


class FeaturesSettings(Settings):
    """One pass of the teacher over the training set."""

    batch_size: Count = Field(
        256, description="images a forward pass, at most; does not change the result, but with variance: batches"
    )
    variance: Literal["class", "batches"] = Field(
        "class",
        description="of the BatchNorm inputs of a class: over all its images; or the mean over batches of batch_size of the "
        "variance within each (WMDD's released code)",
    )
    exact: bool = Field(
        False,
        description="float32 whatever the engine's precision. bf16 is two times faster, with features within 1 % and "
        "statistics within 0.2 % of a class's standard deviation (docs/results/datasets.md)",
    )
