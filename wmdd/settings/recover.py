"""Settings of the stage recover."""

from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field

from wmdd.settings.base import NAME, Count, Fraction, NonNegative, Positive, Shares, StartSettings


class RecoverSettings(StartSettings):
    """Images optimised to match the barycenter under BatchNorm statistics (WMDD, Eq. 5-7)."""

    init: str = Field(
        "noise",
        pattern=f"^(noise|method:{NAME})$",
        description="where to start: noise (WMDD, SRe2L), or method:NAME, the images of another method of the same cell",
    )
    anchor: Fraction = Field(
        0.0,
        description="share of the images that each began as, its anchor, when they are mixed back (FADRM: 0.5); 0: never",
    )
    anchor_times: Count = Field(
        3,
        description="how often they are, at equal distances; Adam begins anew each time (FADRM: 3 of 2,000 iterations)",
    )
    iterations: Count = Field(2000, description="Adam steps (WMDD and SRe2L: 2,000)")
    batch_size: Count = Field(
        100, description="images a step of a loss that couples them (below); for others see engine.images_at_once"
    )
    lr: Positive = Field(
        0.1, description="Adam, in units of normalised pixels; cosine to 0 (WMDD: 0.1 Tiny, 0.25 others)"
    )
    betas: tuple[Fraction, Fraction] = Field((0.5, 0.9), description="Adam (WMDD and SRe2L)")
    feature_weight: NonNegative = Field(1.0, description="weight of the distance to the barycenter's atoms, Eq. 5")
    feature_loss: Literal["mean", "squared", "norm"] = Field(
        "mean",
        description="mean: of the squared distances by the barycenter's weights, so that lambda suits any number of images per "
        "class; squared: their sum (paper); norm: of the whole batch's residual (released code; couples)",
    )
    regularisation: NonNegative = Field(
        10.0, description="lambda, weight of the BatchNorm term, Eq. 7 (WMDD: 10 or 500)"
    )
    statistics: Literal["per-class", "global"] = Field(
        "per-class",
        description="BatchNorm statistics of the class (WMDD) or the teacher's running ones (SRe2L; couples)",
    )
    first_layer_weight: NonNegative = Field(1.0, description="factor of the first BatchNorm layer (SRe2L's code: 10)")
    cross_entropy: NonNegative = Field(0.0, description="weight of the classification loss (SRe2L: 1)")
    composition: Literal["within", "across"] = Field(
        "within",
        description="batches of a loss that couples: all images of few classes, or few images of as many classes as fit",
    )
    crop_scale: Shares = Field((0.08, 1.0), description="RandomResizedCrop, share of the area; 1 1: none")
    flip: bool = Field(True, description="mirror with probability 1/2")
    jitter: int = Field(32, ge=0, description="cyclic shift by up to this many pixels (32 at 224 px)")
    draws: Literal["iteration", "image"] = Field(
        "iteration",
        description="of crop, flip and shift: once an iteration for all images (WMDD, SRe2L), or for each image",
    )
    jpeg: int = Field(
        0,
        ge=0,
        le=100,
        description="quality of the JPEG files that the images pass through at the end (released code: 75); 0: none",
    )

    @classmethod
    def unused(cls, values: dict[str, Any]) -> Collection[str]:
        """Return the settings of the mixing, where nothing is mixed back."""
        return () if values.get("anchor") else ("anchor_times",)

    @property
    def coupled(self) -> bool:
        """Whether the images of a batch depend on each other beyond their class, so that batches are part of the method."""
        return self.statistics == "global" or self.feature_loss == "norm"
