"""ImageNet-1K's classes: their WordNet ids in index order, and readable names."""

import re
from functools import cache
from typing import Any

_WNID = re.compile(r"n\d{8}")


@cache
def _info() -> Any:
    from timm.data import ImageNetInfo  # takes seconds

    return ImageNetInfo()


@cache
def _positions() -> dict[str, int]:
    return {wnid: index for index, wnid in enumerate(wnids())}


def wnids() -> list[str]:
    """Return the 1,000 WordNet ids in the order of the indices of pretrained networks, which is that of the ids."""
    return list(_info().label_names())


def indices(classes: list[str]) -> list[int] | None:
    """Return the positions of class folders among the 1,000 of ImageNet-1K; None if any is not one of them."""
    if not all(map(_WNID.fullmatch, classes)):
        return None
    found = [_positions().get(name) for name in classes]
    return None if None in found else [index for index in found if index is not None]


def readable(wnid: str) -> str:
    """Return the words of a WordNet id, e.g. `tench, Tinca tinca` of `n01440764`; any other name as it is."""
    if not _WNID.fullmatch(wnid):
        return wnid
    try:
        return str(_info().label_name_to_description(wnid))
    except KeyError:  # of none of ImageNet's classes
        return wnid
