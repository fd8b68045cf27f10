"""Strips of distilled images for the page."""

import base64
import io

import numpy as np
from PIL import Image

from wmdd.report import thumbnails
from wmdd.stages import embedding


def shown(source: str) -> Image.Image:
    head, _, data = source.partition(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_small_images_are_shown_pixel_for_pixel():
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)
    source, side = thumbnails.strip(images)
    row = np.asarray(shown(source).convert("RGBA"))
    assert side == 8
    assert row.shape == (8, 3 * 8 + 2 * thumbnails.GAP, 4)
    for place in range(3):
        left = place * (8 + thumbnails.GAP)
        assert np.array_equal(row[:, left : left + 8, :3], images[place].transpose(1, 2, 0))
    assert (row[:, 8 : 8 + thumbnails.GAP, 3] == 0).all(), "the gap shows the page"


def test_large_images_are_shown_smaller():
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 224, 224), dtype=np.uint8)
    source, side = thumbnails.strip(images)
    assert side == thumbnails.SIDE
    assert shown(source).size == (10 * thumbnails.SIDE + 9 * thumbnails.GAP, thumbnails.SIDE)
    assert len(source) < 150_000


def test_classes_from_first_to_last():
    for classes, count in (1, 1), (10, 10), (1000, 10):
        chosen = thumbnails.chosen(classes)
        assert (len(chosen), chosen[0], chosen[-1]) == (count, 0, classes - 1)
        assert embedding.chosen(classes) == chosen
