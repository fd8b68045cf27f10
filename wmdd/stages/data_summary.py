"""What is told of a dataset's pictures: counted while they are read, kept as meta data, said line by line."""

from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from wmdd.datasets.decode import Decoded
from wmdd.settings.data import DataSettings

SPLITS = ("train", "val")


@dataclass
class Tally:
    """What is counted while the pictures of a split are read."""

    labels: array = field(default_factory=lambda: array("q"))
    moments: np.ndarray = field(default_factory=lambda: np.zeros((3, 3), np.int64))  # count, sum, squares per channel
    digests: array = field(default_factory=lambda: array("Q"))  # 8 bytes of each picture's
    grey: bool = True  # whether the three channels of every picture are equal
    modes: Counter[str] = field(default_factory=Counter)
    enlarged: list[tuple[int, str]] = field(default_factory=list)  # the smallest: shorter side, name
    enlarged_count: int = 0
    skipped: list[str] = field(default_factory=list)

    def add(self, label: int, pixels: np.ndarray, content: bytes) -> None:
        """Count a picture [3, R, R]; `content` is what tells it from others."""
        self.labels.append(label)
        values = pixels.reshape(3, -1)
        squares = np.square(values, dtype=np.uint16)
        count = np.full(3, values.shape[1])
        self.moments += np.stack([count, values.sum(1, dtype=np.int64), squares.sum(1, dtype=np.int64)])
        self.grey = self.grey and bool((pixels == pixels[:1]).all())  # looks at no picture after the first in colour
        self.digests.append(int.from_bytes(blake2b(content, digest_size=8).digest(), "big"))

    def note(self, decoded: Decoded, name: str, resolution: int) -> None:
        """Count what was done to a picture to make it square RGB of the resolution."""
        self.modes[decoded.mode] += 1
        if min(decoded.size) < resolution:
            self.enlarged_count += 1
            self.enlarged = sorted([*self.enlarged, (min(decoded.size), name)])[:1]


def summary(settings: DataSettings, tallies: dict[str, Tally], resolution: int, encoded: bool) -> dict[str, Any]:
    """Return the meta data that tell of the pictures; counts are per class in label order."""
    mean, std = _mean_std(tallies["train"].moments)
    both = tallies.values()
    labels = {split: np.bincount(tally.labels, minlength=settings.classes) for split, tally in tallies.items()}
    smallest = min((tally.enlarged[0] for tally in both if tally.enlarged), default=None)
    return {
        "source": settings.source,
        "resolution": resolution,
        "grey": tallies["train"].grey,
        "mean": list(settings.mean or mean),
        "std": list(settings.std or std),
        "measured": {"mean": mean, "std": std},
        "storage": "encoded" if encoded else "pixels",
        "counts": {split: counts.tolist() for split, counts in labels.items()},
        "skipped": [name for tally in both for name in tally.skipped],
        "modes": dict(sum((tally.modes for tally in both), Counter())),
        "enlarged": {"count": sum(tally.enlarged_count for tally in both), "smallest": smallest},
        "duplicates": _duplicates(tallies),
    }


def _duplicates(tallies: dict[str, Tally]) -> dict[str, int]:
    """Count the pictures of a split that stand in it before, and those of `val` that stand in `train` too."""
    train, val = (np.array(tallies[split].digests, np.uint64) for split in SPLITS)
    within = {name: len(split) - len(np.unique(split)) for name, split in zip(SPLITS, (train, val), strict=True)}
    return within | {"val in train": int(np.isin(val, train).sum())}


def _mean_std(moments: np.ndarray) -> tuple[list[float], list[float]]:
    count, total, squares = moments.astype(np.float64)
    mean = total / count / 255
    std = np.sqrt(np.maximum(squares / count / 255**2 - mean**2, 0)).round(6)
    return mean.round(6).tolist(), np.where(std == 0, 1.0, std).tolist()


def describe(meta: dict[str, Any], tell: Callable[[str], None]) -> None:
    """Tell the classes of a dataset and what was noticed in its pictures, line by line."""
    train, val = (meta["counts"][split] for split in SPLITS)
    for index, (folder, name) in enumerate(zip(meta["classes"], meta["names"], strict=True)):
        readable = f" ({name})" if name != folder else ""
        tell(f"class {index}: {folder}{readable}, {train[index]} + {val[index]} pictures")
    side, skipped = meta["resolution"], meta["skipped"]
    count = f"{sum(train)} training and {sum(val)} validation pictures"
    where = f" (of {meta['val_folder']}/)" if meta.get("val_folder") else ""
    tell(f"{meta['variant']}: {count}{where}, {side} x {side}, as {meta['storage']}")
    converted = ", ".join(f"{n} {mode}" for mode, n in sorted(meta["modes"].items()) if mode != "RGB")
    enlarged, duplicates = meta["enlarged"], meta["duplicates"]
    if meta.get("grey"):
        tell("all training pictures are grey, and so will be the images that recover makes")
    if converted:
        tell(f"converted to RGB: {converted}")
    if enlarged["count"]:
        small, smallest = enlarged["count"], "{1}, {0} px".format(*enlarged["smallest"])
        tell(f"warning: {small} pictures are smaller than {side} px and were enlarged; the smallest: {smallest}")
    if skipped:
        tell(f"warning: {len(skipped)} unreadable pictures were left out; the first: {skipped[0]}")
    if others := meta.get("other_formats"):
        tell(f"warning: {len(others)} pictures in formats that are not read were left out; the first: {others[0]}")
    if both := duplicates["val in train"]:
        tell(f"warning: {both} validation pictures stand in the training set too; scores are too high")
    if duplicates["train"] + duplicates["val"]:
        copies = f"{duplicates['train']} training and {duplicates['val']} validation pictures"
        tell(f"{copies} are copies of others of their split")
