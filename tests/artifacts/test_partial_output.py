"""What is kept of an unfinished output: taken up by the next job, never taken from one that runs."""

import errno
import os
import shutil
import socket

import numpy as np
import pytest

from wmdd.artifacts.partial_output import Pieces, gathered
from wmdd.base.errors import WmddError


def row(value: float) -> dict[str, np.ndarray]:
    return {"b": np.full((1, 2), value), "a": np.array([[value]])}


def made(output, counts, host=None, process=None, key="key"):
    """Pieces of so many rows each, as a process of a host leaves them."""
    pieces, stop = Pieces(output, key), 0
    for number, count in enumerate(counts, 1):
        rows = [row(stop + i) for i in range(count)]
        pieces.add(stop, count, {name: np.concatenate([r[name] for r in rows]) for name in rows[0]}, 10.0 * number)
        stop += count
    if process is not None:
        pieces.folder.rename(output.with_name(f".{output.name}.{host or socket.gethostname()}.{process}.pieces"))
    return pieces


def values(pieces):
    return [float(rows["a"][0, 0]) for rows in pieces.rows()]


def folders(folder):
    return sorted(path.name for path in folder.iterdir())


def test_rows_come_back_one_at_a_time_however_they_were_cut(tmp_path):
    for counts in ([5], [1, 3, 1], [2, 3]):
        pieces = made(tmp_path / "x.h5", counts)
        assert values(pieces) == [0, 1, 2, 3, 4]
        assert all(rows["b"].shape == (1, 2) for rows in pieces.rows())
        pieces.remove()
    assert folders(tmp_path) == []


def test_a_job_takes_up_the_longest_of_what_earlier_ones_left(tmp_path, dead, capsys):
    made(tmp_path / "x.h5", [2, 1], process=dead)
    made(tmp_path / "x.h5", [2, 3], host="elsewhere", process=7)
    made(tmp_path / "x.h5", [9], host="elsewhere", process=8, key="another")
    made(tmp_path / "other.h5", [9], process=dead)
    pieces = Pieces(tmp_path / "x.h5", "key")
    assert pieces.restore() == 5
    assert pieces.seconds == 20
    assert values(pieces) == [0, 1, 2, 3, 4]
    said = capsys.readouterr().out
    assert "of other settings, code or inputs; it is left aside" in said
    assert "with 2 pieces of earlier work" in said
    assert not list(tmp_path.glob(f".x.h5.*.{dead}.pieces"))
    shutil.rmtree(tmp_path / ".x.h5.elsewhere.7.pieces")  # the other goes on to its end
    assert values(pieces) == [0, 1, 2, 3, 4]
    pieces.remove()
    assert folders(tmp_path) == [f".other.h5.{socket.gethostname()}.{dead}.pieces"]


def test_what_another_job_of_this_machine_keeps_stays_its_own(tmp_path):
    alive = os.getppid()
    made(tmp_path / "x.h5", [2, 3], process=alive)
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*")}
    pieces = Pieces(tmp_path / "x.h5", "key")
    assert pieces.restore() == 5
    pieces.add(5, 1, row(5), 30.0)
    assert values(pieces) == [0, 1, 2, 3, 4, 5]
    pieces.remove()
    assert {path: path.read_bytes() for path in tmp_path.glob("*/*")} == before


def test_without_hard_links_they_are_copied(tmp_path, dead, monkeypatch):
    def refused(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)
    made(tmp_path / "x.h5", [2, 3], process=dead)
    pieces = Pieces(tmp_path / "x.h5", "key")
    assert pieces.restore() == 5
    assert values(pieces) == [0, 1, 2, 3, 4]
    pieces.remove()
    assert folders(tmp_path) == []


def test_pieces_that_another_job_takes_away_meanwhile_are_made_again(tmp_path, dead, monkeypatch):
    link = os.link

    def raced(path, to):
        if path.name.startswith("000000000002"):
            path.unlink()
        link(path, to)

    monkeypatch.setattr(os, "link", raced)
    made(tmp_path / "x.h5", [2, 3, 1], process=dead)
    pieces = Pieces(tmp_path / "x.h5", "key")
    assert pieces.restore() == 2
    assert pieces.seconds == 10


def test_those_of_an_earlier_process_of_the_same_number_are_taken_up_or_away(tmp_path):
    made(tmp_path / "x.h5", [2, 3])
    assert Pieces(tmp_path / "x.h5", "key").restore() == 5
    other = Pieces(tmp_path / "x.h5", "another")
    assert other.restore() == 0
    assert folders(tmp_path) == []


def test_a_damaged_piece_is_made_again_and_pieces_that_are_gone_end_in_one_line(tmp_path, capsys):
    pieces = made(tmp_path / "x.h5", [2, 3, 1])
    pieces.files[1].write_bytes(pieces.files[1].read_bytes()[:-100])
    again = Pieces(tmp_path / "x.h5", "key")
    assert again.restore() == 2
    assert "going on from before it" in capsys.readouterr().out
    assert len(list(again.folder.iterdir())) == 1
    shutil.rmtree(pieces.folder)
    with pytest.raises(WmddError, match=r"what was kept of .*x\.h5 is gone; another job"):
        pieces.whole()


def test_rows_are_gathered_until_they_are_due_or_many(monkeypatch):
    rows = [row(i) for i in range(7)]
    calls = iter(range(7))
    found = list(gathered(rows, lambda: next(calls) in (0, 3)))
    assert [part["a"][:, 0].tolist() for part in found] == [[0], [1, 2, 3], [4, 5, 6]]
    monkeypatch.setattr("wmdd.artifacts.partial_output.SIZE", 3 * 24)
    found = list(gathered(rows, lambda: False))
    assert [len(part["a"]) for part in found] == [3, 3, 1]
    assert list(gathered([], lambda: True)) == []
