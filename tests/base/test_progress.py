"""Progress in a log is lines of plain text."""

from wmdd.base.progress import progress


def test_a_loop_in_a_loop_moves_no_cursor_of_a_log(capfd):
    """A loop that failed may still be open when the next begins, too."""
    outer = progress(range(2), "outer")
    next(outer)
    assert list(progress(range(3), "inner")) == [0, 1, 2]
    assert list(outer) == [1]
    said = capfd.readouterr().err
    assert "inner: 3/3 it" in said
    assert "\x1b" not in said
