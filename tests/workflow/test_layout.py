"""Paths: each is written and read in one place, and reading undoes writing."""

import re
from dataclasses import fields
from pathlib import PurePath, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmdd.base.errors import WmddError
from wmdd.settings.base import NAME
from wmdd.workflow.layout import (
    FILES,
    NUMBER,
    REPORT,
    RESERVED,
    WILDCARDS,
    Cell,
    Place,
    beside,
    block_of,
    cell_of,
    cost_of,
    history_of,
    log_of,
    path_of,
    place_of,
    wildcards_of,
)
from wmdd.workflow.stages import STAGES

RESERVED_NAMES = {name for names in RESERVED.values() for name in names}
WORDS = sorted(
    {word for path in FILES.values() for word in re.findall(r"(?<!{)\b[a-z]+\b(?!})", path)} - RESERVED_NAMES
)
NAMES = st.sampled_from(WORDS) | st.from_regex(NAME, fullmatch=True).filter(
    lambda name: name not in RESERVED_NAMES and len(name) < 40
)
NUMBERS = st.integers(0, 10**6)
BLOCKS = st.tuples(NUMBERS, NUMBERS).map(lambda pair: block_of(*sorted(pair)))
CELLS = st.builds(
    Cell,
    **{
        field.name: BLOCKS if field.name == "block" else NUMBERS if WILDCARDS[field.name] == NUMBER else NAMES
        for field in fields(Cell)
    },
)
FOLDERS = st.sampled_from(["", "out/", "/somewhere/results/", "results/nette/"])  # before the workflow's own


def own(kind: str, cell: Cell) -> Cell:
    """Return the parts of a cell that the path of a kind of file names."""
    return Cell(**{name: getattr(cell, name) for name in wildcards_of(kind)})


@given(kind=st.sampled_from(sorted(FILES)), cell=CELLS, folder=FOLDERS)
def test_reading_a_path_undoes_writing_it_wherever_the_results_are(kind, cell, folder):
    path = folder + path_of(kind, cell)
    assert cell_of(path) == own(kind, cell)
    assert place_of(PurePosixPath(path)) == Place(kind, own(kind, cell))


@given(
    kind=st.sampled_from([k for k, path in FILES.items() if not path.startswith(REPORT)]), cell=CELLS, folder=FOLDERS
)
def test_cost_and_history_belong_to_the_cell_of_their_file(kind, cell, folder):
    for file_beside in cost_of, history_of:
        assert cell_of(folder + file_beside(path_of(kind, cell))) == own(kind, cell)


@given(cell=CELLS)
def test_a_cell_survives_its_wildcards(cell):
    assert Cell.of({name: str(value) for name, value in cell.parts().items()} | {"table": "mine"}) == cell


def test_a_protocol_may_be_called_as_the_folder_of_the_data():
    cell = Cell("digits", "resnet18", "wmdd", 1, 0, "resnet18", "data", 0)
    for file_beside in cost_of, history_of:
        assert place_of(file_beside(path_of("student", cell))) == Place("student", cell)


@pytest.mark.parametrize(
    "path", ["run0.json", "results/digits/images.h5", "data/raw/digits.h5/x", "results/a/b/c/ipc1/seedx/images.h5"]
)
def test_a_file_that_is_none_of_the_workflow_is_told_apart(path):
    assert place_of(path) is None
    with pytest.raises(WmddError, match="is not where the workflow puts a file"):
        cell_of(path)


def test_no_two_kinds_of_files_share_a_path_nor_two_stages_a_log_and_a_missing_part_is_named():
    assert list(Cell(block=block_of(3, 5)).classes) == [3, 4, 5]
    assert cost_of("a/v1.2/atoms") == "a/v1.2/atoms.cost.json", "of a file without a suffix too"
    assert len(set(FILES.values())) == len(FILES), "two kinds of files share a path"
    logs = [stage.log for stage in STAGES.values()]
    assert len(set(logs)) == len(logs), "two stages share a log"
    with pytest.raises(WmddError, match="the path of images needs seed"):
        path_of("images", Cell("digits", "resnet18", "wmdd", 1))


@pytest.mark.parametrize(
    ("stage", "file", "log"),
    [
        ("teacher", FILES["teacher"], "logs/{dataset}/{teacher}/teacher/seed{seed}/teacher.log"),
        ("encode", FILES["latents"], "logs/{dataset}/latent/{generator}/seed{seed}/encode/{block}.log"),
        ("data", FILES["data"], "logs/data/{dataset}.log"),
        ("grid", FILES["grid"], "logs/report/images/{dataset}/{teacher}/{method}/ipc{ipc}-seed{seed}.log"),
    ],
)
def test_a_log_has_the_name_of_its_stage(stage, file, log):
    assert log_of(stage, file) == log


# Beside each other

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
