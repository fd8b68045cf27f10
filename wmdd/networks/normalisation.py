"""How networks see pixels. Without torch, so that commands can hand it on."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Normalisation(NamedTuple):
    """Mean and standard deviation per channel: networks see (x / 255 - mean) / std."""

    mean: list[float]
    std: list[float]

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> "Normalisation":
        """Return that of an artifact, by its meta data."""
        return cls(meta["mean"], meta["std"])
