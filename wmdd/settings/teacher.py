"""Settings of the stages teacher and features."""

from typing import Any, Literal

from pydantic import Field, model_validator

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
        return self.weights if "/" in self.weights or self.weights.endswith(CHECKPOINTS) else ""


class TeacherSettings(TrainingSettings, AdoptedSettings):
    """The squeeze stage: one network trained on the real training set, gated on its validation accuracy."""

    crop: Literal["none", "pad", "resized"] = Field("resized", description="pad: shift by up to `pad` px")
    pad: int = Field(4, ge=0, description="pixels")
    crop_scale: Shares = Field((0.08, 1.0), description="share of the area (resized)")
    flip: bool = Field(True, description="mirror left-right with probability 1/2")
    label_smoothing: Fraction = 0.0
    accumulate: Count = Field(
        1, description="parts of a step, computed one after the other to need less memory; BatchNorm sees one at a time"
    )
    sync_batchnorm: bool = Field(
        True,
        description="on several GPUs, BatchNorm over the images of all (as torch's SyncBatchNorm); else each its own",
    )
    progressive_from: float = Field(
        1.0,
        gt=0,
        le=1,
        description="side of the images in the first epoch, as a share of the full side that is reached at 3/4 of the epochs "
        "(fastai's entry to DAWNBench 2018; FFCV); 1: off",
    )

    @model_validator(mode="before")
    @classmethod
    def _untrained(cls, values: Any) -> Any:
        """Leave settings of the training at their defaults where there is none, so that changing them reruns nothing."""
        if not isinstance(values, dict) or not values.get("weights"):
            return values
        unused = cls.model_fields.keys() - AdoptedSettings.model_fields.keys()
        return {name: value for name, value in values.items() if name not in unused}


class FeaturesSettings(Settings):
    """One pass of the teacher over the training set."""

    batch_size: Count = Field(
        256, description="images a forward pass, at most; does not change the result, but with variance: batches"
    )
    variance: Literal["class", "batches"] = Field(
        "class",
        description="of the BatchNorm inputs of a class: over all its images, or the mean of those within batches of "
        "batch_size, which leaves out what differs between batches (WMDD's released code)",
    )
    exact: bool = Field(
        False,
        description="always in float32; else in the engine's precision: in bf16 two times faster, features within 1 % and "
        "statistics within 0.2 % of a class's standard deviation (docs/studies/datasets.md)",
    )
