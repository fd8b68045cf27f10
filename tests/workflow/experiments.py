"""Small experiments for tests, and the line that a mistake in one gives."""

import copy

import pytest

from wmdd.base.errors import WmddError
from wmdd.workflow.experiment import Experiment


def experiment(content=None, **cell):
    """An experiment with one small cell, changed by `cell`, beside other content."""
    cell = {"datasets": ["digits"], "teachers": ["resnet18"], "methods": ["wmdd"], "ipc": [1]} | cell
    return Experiment({**(content or {}), "matrix": [cell]})


def mistake(content=None, **cell):
    """The one line that a mistake gives; with no cell, of an experiment without a matrix."""
    with pytest.raises(WmddError) as caught:
        experiment(content, **cell) if cell else Experiment(content)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def nested(path, value):
    """{"a": {"b": value}} of "a.b"."""
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


def merged(*contents):
    total = {}
    for content in copy.deepcopy(contents):
        for key, value in content.items():
            total[key] = merged(total[key], value) if isinstance(total.get(key), dict) else value
    return total
