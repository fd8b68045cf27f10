"""Shared by the tests of reports: one experiment with everything that they can show. Never to be changed."""

import pytest

from .page.material import material


@pytest.fixture(scope="session")
def all_of_it():
    return material()
