"""Files of one cell, beside each other."""

from pathlib import PurePath

import pytest

from wmdd.base.errors import WmddError
from wmdd.workflow.layout import Cell, beside, path_of

CELL = Cell("d", "t", "m", 10, 0, "s", "p", 3, block="classes0-9")


@pytest.mark.parametrize("folder", ["", "out/", "/a/results/b/", "../results/"])
@pytest.mark.parametrize("kind", ["images", "labels", "student"])
def test_a_file_of_the_same_cell_lies_in_the_same_results(folder, kind):
    path = PurePath(folder + path_of("student", CELL))
    assert beside(path, kind) == PurePath(folder + path_of(kind, CELL))


def test_a_part_that_is_missing_and_a_path_of_nothing_are_refused():
    with pytest.raises(WmddError, match="needs block, which this cell lacks"):
        beside(path_of("student", CELL), "barycenter")
    with pytest.raises(WmddError, match=r"x/run0\.json is not where"):
        beside("x/run0.json", "images")
