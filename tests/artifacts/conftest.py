"""Shared by the tests of artifacts."""

import subprocess
import sys

import pytest


@pytest.fixture(scope="session")
def dead() -> int:
    """The number of a process that has ended."""
    return int(subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True).stdout)
