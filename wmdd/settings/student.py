"""Settings of the stages relabel and student."""

import math
from collections.abc import Collection
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from pydantic import Field

from wmdd.settings.base import NAME, Count, NonNegative, Positive, Settings, Shares
from wmdd.settings.network import Optimizer, TrainingSettings


class AugmentationSettings(Settings):
    """The random views of the distilled images that teacher and student share."""

    views: Literal["crops", "dsa"] = Field(
        "crops",
        description="crop, mirror image and mix as below, or siamese augmentation, without them (DM, DataDAM, MTT)",
    )
    crop_scale: Shares = Field((0.08, 1.0), description="RandomResizedCrop, share of the area")
    flip: bool = Field(True, description="mirror with probability 1/2")
    mix: Literal["cutmix", "none"] = "cutmix"
    patches: Count = Field(
        1,
        description="before the crop, cut the image into so many rows and columns and put both in a random order (RDED's "
        "ShufflePatches); 1: as it is",
    )


class LabelSettings(AugmentationSettings):
    """What the relabel stage and the student must agree on: the views, whose soft labels they have, and where these are."""

    store: Literal["stored", "pruned", "online"] = Field(
        "stored",
        description="stored: the logits of all views, float16; pruned: the largest ones in 8 bits, of fewer epochs; online: no "
        "file, the student asks the teacher",
    )
    teachers: Annotated[
        tuple[Annotated[str, Field(pattern=f"^{NAME}$")], ...], Parameter(consume_multiple=True, negative=())
    ] = Field(
        (),
        description="further teachers beside the distillation's own; the labels are the mean of all logits (EDC, CV-DD)",
    )
    statistics: Literal["running", "batch"] = Field(
        "running",
        description="of the teachers' BatchNorm: running, or of the batch of views that is labelled together (BSSL of CV-DD "
        "and FADRM)",
    )
    statistics_batch: int = Field(
        8,
        ge=2,
        description="statistics batch: views of a batch, drawn anew each epoch; the labels depend on it (FADRM: 8)",
    )

    @classmethod
    def unused(cls, values: dict[str, Any]) -> Collection[str]:
        """Return the size of batches, where the teacher is asked about each view alone."""
        return () if values.get("statistics") == "batch" else ("statistics_batch",)


class RelabelSettings(LabelSettings):
    """Soft labels of augmented views (FKD, SRe2L's relabel stage), kept whole, pruned or not at all."""

    epochs: Count = Field(300, description="views of every image, one a student epoch; at least the student's epochs")
    batch_size: Count = Field(256, description="statistics running: images a forward pass; does not change the result")
    keep_epochs: float = Field(
        0.25,
        gt=0,
        le=1,
        description="pruned: share of the epochs whose views are labelled; the student repeats these in turn (Xiao and He "
        "2024, LPLD: a 40th of epochs and batches)",
    )
    top_k: int = Field(
        50,
        ge=0,
        description="pruned: logits kept a view; 0: all. 50 of 1,000 take 156 bytes (50 of values, 100 of classes, 6 of range "
        "and remainder) in place of 2,000. 8 bits a logit are this project's choice; LPQLD quantizes too",
    )
    temperature: Positive = Field(
        20.0, description="pruned: the student's, at which the logits that are left out keep their mass"
    )

    @property
    def labelled(self) -> int:
        """For how many epochs there are labels in the file."""
        return math.ceil(self.keep_epochs * self.epochs - 1e-9) if self.store == "pruned" else self.epochs

    @classmethod
    def unused(cls, values: dict[str, Any]) -> Collection[str]:
        """Return the settings of the pruning, where labels are not pruned, and those of labels of any store."""
        of_pruning = () if values.get("store") == "pruned" else ("keep_epochs", "top_k", "temperature")
        return (*of_pruning, *super().unused(values))


class WeightsSettings(Settings):
    """How much each distilled image counts in a student's loss, normalised to mean 1 over the distilled set."""

    weights: Literal["mass", "sqrt-mass", "variance-reduced", "uniform"] = Field(
        "mass",
        description="from the masses w of a method's atoms: w; their square roots; (w + 1/K) / 2; or all equal. Same where "
        "the masses are",
    )


class StudentSettings(TrainingSettings, WeightsSettings):
    """A network trained from scratch on the distilled images."""

    epochs: Count = Field(300, description="passes over the distilled set")
    batch_size: Count = Field(100, description="images a step, at most")
    optimizer: Optimizer = "adamw"
    lr: Positive = Field(1e-3, description="peak learning rate")
    weight_decay: NonNegative = 0.01
    labels: Literal["soft", "hard"] = Field(
        "soft", description="soft: the teacher's; hard: the class, or the labels that the method learned (MTT)"
    )
    loss: Literal["kl", "kl+sinkhorn", "mse", "mse+ce", "cosine"] = Field(
        "kl",
        description="soft labels: kl; kl+sinkhorn: that and the cost of moving a batch's logits to its labels (after OT-GDA); "
        "mse of the logits; mse+ce: that and the cross-entropy of the class (MSE-GT of EDC); cosine: of the logits and the "
        "class (GIFT)",
    )
    sinkhorn_weight: NonNegative = Field(1.0, description="kl+sinkhorn: of the transport cost")
    hard_weight: NonNegative = Field(
        0.025,
        description="of the class: in mse+ce the weight of the cross-entropy (EDC: 0.025), in cosine gamma (GIFT: 0.1)",
    )
    temperature: Positive = Field(20.0, description="kl: of the softmax on both sides (WMDD, SRe2L: 20)")
    student_temperature: Positive | None = Field(
        None, description="kl: of the student's side alone (LPQLD begins at 1); unless set, temperature"
    )
    temperature_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="kl: factor of the labels' temperature every temperature_epochs (LPQLD: 0.7); 1: it stays",
    )
    temperature_epochs: Count = Field(30, description="epochs between two falls of the temperature (LPQLD: 30)")
    temperature_floor: Positive = Field(2.0, description="it falls no further than this (LPQLD: 2)")
    learned_lr: bool = Field(
        False, description="take the learning rate that the method learned, if it did (MTT), as lr"
    )
    whiten: bool = Field(False, description="the student sees ZCA-whitened images (MTT's published numbers at 32 px)")
    evaluate_every: Count = Field(
        50, description="epochs between two looks at the validation set; the last always counts"
    )

    @classmethod
    def unused(cls, values: dict[str, Any]) -> Collection[str]:
        """Return the settings of soft labels, losses and temperatures that the labels and the loss leave without a use."""
        loss = None if values.get("labels") == "hard" else values.get("loss", "kl")
        divergence = loss in ("kl", "kl+sinkhorn")
        falls = divergence and values.get("temperature_decay", 1.0) != 1
        uses = {
            "loss": loss is not None,
            "hard_weight": loss in ("mse+ce", "cosine"),
            "sinkhorn_weight": loss == "kl+sinkhorn",
            "student_temperature": divergence,
            "temperature_decay": divergence,
            "temperature_epochs": falls,
            "temperature_floor": falls,
        }
        return [name for name, used in uses.items() if not used]
