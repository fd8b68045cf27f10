"""What of Snakemake's words is shown where it runs as a part of a command."""

import sys
from pathlib import Path

import pytest

from wmdd.workflow import launch

WORDS = "Building DAG of jobs...\n1 of 2 steps (50%) done\nFinished jobid: 1 (Rule: data)\n2 of 2 steps (100%) done\n"


@pytest.mark.parametrize(
    ("options", "status", "shown"),
    [
        ([], 0, "1 of 2 steps (50%) done\n2 of 2 steps (100%) done\n"),
        ([], 1, "1 of 2 steps (50%) done\n2 of 2 steps (100%) done\n" + WORDS),
        (["--verbose"], 0, WORDS),
    ],
)
def test_a_quiet_run_shows_its_progress_and_the_rest_if_it_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    options: list[str],
    status: int,
    shown: str,
) -> None:
    """A script stands for Python and Snakemake."""
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\nprintf '{WORDS.encode('unicode_escape').decode().replace('%', '%%')}' >&2\nexit {status}\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert launch.snakemake([Path("mine.yaml")], options, quiet=True) == status
    assert capfd.readouterr() == ("", shown)
