"""Thumbnails: the images of sets on the page, those of a class side by side in a strip."""

import base64
import io
import itertools
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from wmdd.artifacts.pixels import as_bytes

SHOWN = 10  # images of a class, and classes
LOSSLESS = 48  # px: larger images are shown smaller and lossy, so that a page stays small
SIDE = 96  # px, of those
GAP = 2  # px


class Strip(NamedTuple):
    """Some images of a class of a distilled set, side by side."""

    dataset: str
    teacher: str
    method: str
    kind: str  # real or distilled; "" where it is not known
    ipc: int
    name: str  # of the class
    images: int
    side: int  # px of an image
    source: str  # a data URI
    nearest: str = ""  # the nearest real image of each of them, as a data URI, where that was measured


def chosen(classes: int) -> list[int]:
    """Return which classes are shown: all, or some from first to last."""
    return np.unique(np.linspace(0, classes - 1, min(SHOWN, classes)).round().astype(int)).tolist()


def strip(images: np.ndarray) -> tuple[str, int]:
    """Return images [K, 3, H, W] in a row as a data URI, with a transparent gap between them, and their height in it."""
    side = images.shape[-1]
    pictures = [
        Image.fromarray(image) for image in as_bytes(images).transpose(0, 2, 3, 1)
    ]  # [K, 3, H, W] -> [K, H, W, 3]
    if side > SIDE:
        pictures = [image.resize((SIDE, SIDE), Image.Resampling.LANCZOS) for image in pictures]
    width, height = pictures[0].size
    row = Image.new("RGBA", (len(pictures) * (width + GAP) - GAP, height))
    for place, picture in enumerate(pictures):
        row.paste(picture, (place * (width + GAP), 0))
    lossless = max(images.shape[-2:]) <= LOSSLESS
    return data_uri(row, lossless), height


def data_uri(picture: Image.Image, lossless: bool) -> str:
    """Return a picture as a data URI (WebP)."""
    with io.BytesIO() as file:
        picture.save(file, "WEBP", lossless=lossless, quality=80, method=4, exact=False)
        return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def galleries(strips: list[Strip]) -> list[dict[str, Any]]:
    """Return the images by dataset and teacher: the choices, and the strips by class."""
    shown = []
    for (dataset, teacher), group in itertools.groupby(strips, key=lambda strip: (strip.dataset, strip.teacher)):
        classes: dict[str, list[Strip]] = {}
        for strip in group:
            classes.setdefault(strip.name, []).append(strip)
        ipc = sorted({strip.ipc for strips in classes.values() for strip in strips})
        nearest = any(strip.nearest for strips in classes.values() for strip in strips)
        shown.append(
            {"title": f"{dataset}, teacher {teacher}", "ipc": ipc, "nearest": nearest, "classes": [*classes.items()]}
        )
    return shown
