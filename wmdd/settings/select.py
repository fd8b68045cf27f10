"""Settings of the stage select."""

from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field

from wmdd.settings.base import Count, Settings, Shares


class SelectSettings(Settings):
    """Real images, the controls: whole, several in one, or the crops that the teacher is surest of (RDED)."""

    strategy: Literal["random", "whole", "kmeans-medoid", "patches"] = Field(
        "random",
        description="random: uniformly; whole: all images, of which an epoch shows the next few of each class; kmeans-medoid: "
        "nearest to each atom of the barycenter with free weights; patches: the crops of random images that the teacher is "
        "surest of",
    )
    tiles: Count = Field(
        1, description="m: a distilled image consists of m x m chosen ones of 1/m its side (RDED: 2; 1 at 32 px)"
    )
    candidates: Count = Field(300, description="patches: random images of a class that are cropped (RDED: 300)")
    crops: Count = Field(5, description="patches: of each of these images; the best may be chosen (RDED: 5)")
    crop_scale: Shares = Field((0.08, 1.0), description="patches: share of the area of a crop (RDED's code)")

    @classmethod
    def unused(cls, values: dict[str, Any]) -> Collection[str]:
        """Return the settings of the crops, where images are chosen whole, and the tiles, where all are."""
        tiles = ("tiles",) if values.get("strategy") == "whole" else ()
        return () if values.get("strategy") == "patches" else ("candidates", "crops", "crop_scale", *tiles)

    @property
    def drawn(self) -> bool:
        """Whether images are drawn without a look at them."""
        return self.strategy in ("random", "whole")
