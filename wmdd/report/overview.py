"""Overview: one image of every class by every method, as sheets of thumbnails that a page shows row by row."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from wmdd.artifacts.pixels import as_bytes
from wmdd.report.thumbnails import LOSSLESS, data_uri

SIDES = (64, 48, 32, 24, 16)  # px of a thumbnail: the largest with which all sheets together stay in their bytes
BYTES = 1_500_000  # of all sheets of a page, as data URIs
ROWS = 50  # classes on a sheet


class Thumbnails(NamedTuple):
    """The first image of every class of a distilled set."""

    dataset: str
    teacher: str
    method: str
    kind: str  # real or distilled; "" where it is not known
    ipc: int
    names: list[str]  # of the classes
    pixels: np.ndarray  # uint8 [C, S, S, 3]


class Overview(NamedTuple):
    """The classes of a dataset, a row each with a thumbnail of each set."""

    dataset: str
    teacher: str
    sets: list[Thumbnails]
    sheets: list[str]  # data URIs, of `ROWS` classes each


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Return an image [3, H, W], of bytes or in unit scale, as bytes [S, S, 3] of at most `SIDES[0]` pixels a side."""
    picture = Image.fromarray(as_bytes(image[None])[0].transpose(1, 2, 0))
    side = min(SIDES[0], max(picture.size))
    return np.asarray(
        picture if picture.size == (side, side) else picture.resize((side, side), Image.Resampling.LANCZOS)
    )


def overviews(thumbnails: Iterable[Thumbnails]) -> list[Overview]:
    """Return the overview of each dataset and teacher, real images first, with thumbnails as large as the page has room for."""
    groups: dict[tuple[str, str], list[Thumbnails]] = {}
    for each in sorted(thumbnails, key=lambda each: (each.kind != "real", each.method)):
        groups.setdefault((each.dataset, each.teacher), []).append(each)
    largest = (_drawn(groups, side, BYTES if side > SIDES[-1] else math.inf) for side in SIDES)
    return next(shown for shown in largest if shown is not None)


def _drawn(groups: Mapping[tuple[str, str], list[Thumbnails]], side: int, room: float) -> list[Overview] | None:
    """Return overviews with thumbnails of a side, or None as soon as their sheets have no room."""
    shown = []
    for place, sets in sorted(groups.items()):
        overview = Overview(*place, sets, [])
        for first in range(0, len(sets[0].names), ROWS):
            overview.sheets.append(_sheet([each.pixels[first : first + ROWS] for each in sets], side))
            room -= len(overview.sheets[-1])
            if room < 0:
                return None
        shown.append(overview)
    return shown


def _sheet(columns: Sequence[np.ndarray], side: int) -> str:
    """Return thumbnails, [R, S, S, 3] of each set, as a sheet of R rows."""
    side = min(side, max(pixels.shape[1] for pixels in columns))
    lossless = side <= LOSSLESS and all(pixels.shape[1] == side for pixels in columns)
    sheet = Image.new("RGB", (side * len(columns), side * len(columns[0])))
    for x, pixels in enumerate(columns):
        for y, image in enumerate(map(Image.fromarray, pixels)):
            small = image if image.size == (side, side) else image.resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(small, (x * side, y * side))
    return data_uri(sheet, lossless)
