"""Gallery: the distilled images of a report as strips, a class of a distilled set each, inside the page."""

import base64
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

SHOWN = 10  # images of a class, and classes
LOSSLESS = 48  # px: larger images are shown smaller and lossy, so that a page stays small
SIDE = 96  # px, of those
GAP = 2  # px


class Strip(NamedTuple):
    """Some images of a class of a distilled set, side by side."""

    dataset: str
    teacher: str
    method: str
    ipc: int
    name: str  # of the class
    images: int
    side: int  # px of an image
    source: str  # a data URI


def chosen(classes: int) -> list[int]:
    """Return which classes are shown: all, or some from first to last."""
    return np.unique(np.linspace(0, classes - 1, min(SHOWN, classes)).round().astype(int)).tolist()


def strip(images: np.ndarray) -> tuple[str, int]:
    """Return images [K, 3, H, W] uint8 in a row as a data URI, with a transparent gap between them, and their height in it."""
    side = images.shape[-1]
    pictures = [Image.fromarray(each) for each in images.transpose(0, 2, 3, 1)]  # [K, 3, H, W] -> [K, H, W, 3]
    if side > SIDE:
        pictures = [each.resize((SIDE, SIDE), Image.Resampling.LANCZOS) for each in pictures]
    width, height = pictures[0].size
    row = Image.new("RGBA", (len(pictures) * (width + GAP) - GAP, height))
    for place, picture in enumerate(pictures):
        row.paste(picture, (place * (width + GAP), 0))
    lossless = max(images.shape[-2:]) <= LOSSLESS
    with io.BytesIO() as file:
        row.save(file, "WEBP", lossless=lossless, quality=80, method=4, exact=False)
        return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}", height
