"""Settings of the family match: expert and match."""

from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field

from wmdd.base.errors import WmddError
from wmdd.settings.base import NAME, Count, Fraction, NonNegative, Positive, StartSettings
from wmdd.settings.network import ConvNetSettings, OptimisationSettings


class ExpertSettings(ConvNetSettings, OptimisationSettings):
    """A network trained on the real data, of which every epoch is kept (MTT; its released code's defaults)."""

    batch_size: Count = Field(256, description="images a step")
    lr: Positive = Field(0.01, description="of plain gradient descent")
    momentum: Fraction = Field(0.0, description="SGD only, Nesterov")
    weight_decay: NonNegative = 0.0
    schedule: Literal["cosine", "step", "constant"] = Field("constant", description="of the learning rate")
    evaluate_every: Count = Field(1, description="epochs between two looks at the validation set")
    whiten: bool = Field(False, description="the network sees ZCA-whitened images, and so do students of MTT then")


class MatchSettings(StartSettings, ConvNetSettings):
    """Images optimised in their pixels, on which networks behave as on real ones (DM, DataDAM, MTT)."""

    objective: Literal["dm", "datadam", "mtt"] = Field(
        "dm", description="match mean features of untrained networks, their attention maps, or trajectories of training"
    )
    pixels: Literal["free", "picture"] = Field(
        "free",
        description="free: float32, which may leave the range from black to white (as the published codes score them); "
        "picture: within it, and rounded to 8 bits",
    )
    init: str = Field(
        "real",
        pattern=f"^(real|noise|method:{NAME})$",
        description="where to start: the images of `random`, noise, or method:NAME, the images of another method of the same "
        "cell",
    )
    iterations: Count = Field(20000, description="steps of the pixels (DM, DataDAM: 20,000; MTT: 5,000)")
    lr: NonNegative = Field(
        1.0,
        description="of gradient descent on normalised pixels (DM: 1; DataDAM: 100; MTT: 100 to 1,000); 0: images stay as they "
        "are, and the rate and learned labels of mtt are all that changes",
    )
    momentum: Fraction = Field(0.5, description="of the pixels' descent (all three: 0.5)")
    real_batch: Count = Field(
        256, description="dm, datadam: real images of a class a step (DM: 256; DataDAM's code: 64)"
    )
    pool: int = Field(0, ge=0, description="dm, datadam: untrained networks taken in turn; 0: a fresh one each step")
    attention_power: Positive = Field(4.0, description="datadam: p of the attention maps")
    task_balance: NonNegative = Field(0.01, description="datadam: weight of the last layer's term")
    trajectories: Count = Field(100, description="mtt: how many experts there are (published: 100)")
    expert_epochs: Count = Field(2, description="mtt: M, epochs of an expert that a student's steps are to match")
    start_epochs: Count = Field(20, description="mtt: a student begins at one of this many first epochs of an expert")
    student_steps: Count = Field(30, description="mtt: N, steps of a student")
    student_batch: int = Field(0, ge=0, description="mtt: distilled images a step of a student; 0: all")
    student_lr: Positive = Field(0.01, description="mtt: alpha, a student's learning rate at first; it is learned")
    rate_lr: NonNegative = Field(1e-5, description="mtt: learning rate of alpha; 0: it stays")
    labels: Literal["fixed", "learned"] = Field(
        "fixed", description="mtt: the classes, or probabilities learned with the pixels"
    )
    labels_lr: Positive = Field(1.0, description="mtt: learning rate of the logits of learned labels")

    @classmethod
    def unused(cls, values: dict[str, Any]) -> Collection[str]:
        """Return the settings that only other objectives look at."""
        objective = values.get("objective", "dm")
        return {name for objectives, names in _ONLY_OF.items() if objective not in objectives for name in names.split()}

    def check(self, where: str = "") -> None:
        """Refuse networks as for all that is matched, and a run that would change nothing; the message begins with `where`.

        Raises:
            WmddError: names the remedy.
        """
        super().check(where)
        if self.objective != "mtt" and not self.lr:
            raise WmddError(
                f"{where}lr 0 leaves the images as they are, and {self.objective} learns nothing else; raise lr"
            )


_ONLY_OF = {
    # MTT's students have the network of its experts.
    ("dm", "datadam"): "real_batch pool architecture width stem norm pooling",
    ("datadam",): "attention_power task_balance",
    ("mtt",): "trajectories expert_epochs start_epochs student_steps student_batch student_lr rate_lr labels labels_lr",
}
