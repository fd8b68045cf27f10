"""Settings of the stage select."""

from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field

from wmdd.settings.base import Count, Fraction, Settings, Shares


class SelectSettings(Settings):
    """Real images, the controls: whole, several in one, or the crops that the teacher is surest of (RDED)."""

    strategy: Literal["random", "whole", "kmeans-medoid", "margins", "patches"] = Field(
        "random",
        description="random: uniformly; whole: all images, of which an epoch shows the next few of each class; kmeans-medoid: "
        "nearest to each atom of the barycenter with free weights; margins: from each cell of such a barycenter as many as its "
        "mass asks for, some nearest to its atom and some of which the teacher is least sure; patches: the crops of random "
        "images that the teacher is surest of",
    )
    cell_images: Count = Field(2, description="margins: images of a cell, on average")
    margin: Fraction = Field(
        0.5, description="margins: share of a cell's images of which the teacher is least sure (BPS: a half)"
    )
    tiles: Count = Field(
        1,
        description="m: a distilled image consists of m x m chosen ones of 1/m its side (RDED: 2; 1 at 32 px and with a codec)",
    )
    codec: Literal["none", "webp"] = Field(
        "none",
        description="webp: as many images as fit, in WebP files, into the bytes of the raw images per class (3 a pixel); an "
        "epoch shows as many as of raw ones; none: raw images. For the strategies random, kmeans-medoid and margins",
    )
    quality: int = Field(50, ge=0, le=100, description="of these files")
    candidates: Count = Field(300, description="patches: random images of a class that are cropped (RDED: 300)")
    crops: Count = Field(5, description="patches: of each of these images; the best may be chosen (RDED: 5)")
    crop_scale: Shares = Field((0.08, 1.0), description="patches: share of the area of a crop (RDED's code)")

    @classmethod
    def unused(cls, values: dict[str, Any]) -> Collection[str]:
        """Return the settings that only other strategies look at."""
        strategy = values.get("strategy")
        only = {"patches": ("candidates", "crops", "crop_scale"), "margins": ("cell_images", "margin")}
        unused = [name for other, names in only.items() if other != strategy for name in names]
        raw = strategy in ("whole", "patches") or values.get("codec", "none") == "none"
        unused += ["codec", "quality"] if raw else ["tiles"]
        return [*unused, "tiles"] if strategy == "whole" else unused

    @property
    def holds_more(self) -> bool:
        """Whether a set holds more images than an epoch shows."""
        return self.strategy == "whole" or self.codec != "none"

    @property
    def judged(self) -> bool:
        """Whether a teacher says how sure it is of images or parts of them."""
        return self.strategy in ("margins", "patches")

    @property
    def drawn(self) -> bool:
        """Whether images are drawn without a look at them."""
        return self.strategy in ("random", "whole")
