"""The sheets of thumbnails."""

import numpy as np
import pytest

from tests.report.test_thumbnails import shown
from wmdd.report import overview
from wmdd.report.overview import ROWS, Thumbnails, overviews, thumbnail

from .page.material import noise

NAMES = [f"c{number}" for number in range(ROWS + 2)]


def sets(side: int, **kinds: str) -> list[Thumbnails]:
    return [Thumbnails("d", "t", m, kind, 1, NAMES, noise(len(NAMES), side, side, 3)) for m, kind in kinds.items()]


def test_a_row_is_a_class_and_a_column_a_set_real_ones_first():
    (found,) = overviews(sets(16, wmdd="distilled", random="real"))
    assert [each.method for each in found.sets] == ["random", "wmdd"]
    first, second = (np.asarray(shown(sheet)) for sheet in found.sheets)
    assert (first.shape, second.shape) == ((16 * ROWS, 32, 3), (32, 32, 3))
    assert np.array_equal(first[16:32, :16], found.sets[0].pixels[1])
    assert np.array_equal(second[16:, 16:], found.sets[1].pixels[ROWS + 1])


def test_thumbnails_are_smaller_where_a_page_has_no_room(monkeypatch):
    (whole,) = overviews(sets(64, wmdd="distilled"))
    size = sum(map(len, whole.sheets))
    monkeypatch.setattr(overview, "BYTES", size // 3)
    (smaller,) = overviews(sets(64, wmdd="distilled"))
    assert sum(map(len, smaller.sheets)) <= size // 3
    assert shown(smaller.sheets[0]).width < shown(whole.sheets[0]).width


@pytest.mark.parametrize(("given", "kept"), [(224, 64), (16, 16)])
def test_only_large_images_are_made_smaller(given, kept):
    image = noise(3, given, given)
    assert thumbnail(image).shape == (kept, kept, 3)
    if given == kept:
        assert np.array_equal(thumbnail(image), image.transpose(1, 2, 0))
