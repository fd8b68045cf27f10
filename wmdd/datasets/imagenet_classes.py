"""ImageNet-1K's classes: their WordNet ids in index order, and readable names."""

from functools import cache
from importlib.resources import files


@cache
def _names() -> dict[str, str]:
    """Return the readable name of each class by its WordNet id, in index order."""
    lines = files("wmdd.datasets").joinpath("imagenet_classes.txt").read_text("utf-8").splitlines()
    return dict(line.split("\t") for line in lines if not line.startswith("#"))


def wnids() -> list[str]:
    """Return the 1,000 WordNet ids in the order of the indices of pretrained networks, which is that of the ids."""
    return list(_names())


def indices(classes: list[str]) -> list[int] | None:
    """Return the positions of class folders among the 1,000 of ImageNet-1K; None if any is not one of them."""
    if not _names().keys() >= set(classes):
        return None
    positions = {wnid: index for index, wnid in enumerate(_names())}
    return [positions[name] for name in classes]


def readable(name: str) -> str:
    """Return the words of a WordNet id, e.g. `tench, Tinca tinca` of `n01440764`; any other name as it is."""
    return _names().get(name, name)
