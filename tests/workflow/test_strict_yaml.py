"""Experiment files say what they look like, and none takes long to refuse."""

import pytest
import yaml

from wmdd.base.errors import WmddError
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.strict_yaml import parsed

LAUGHS = "a0: &a0 [0,0,0,0,0,0,0,0,0,0]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", "has the key a twice, again in line 3; keep one"),
        ("a: {b: 1, c: 2, b: 1}", "has the key b twice, again in line 1"),
        ("seeds: [010]", "has 010 in line 1, which YAML reads as an octal number, 8; write"),
        ("a: 1:30", "has 1:30 in line 1, which YAML reads as minutes or hours, 90"),
        ("a: [1", "not valid YAML"),
        ("x: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        (LAUGHS + "seeds: *a8", "has more than 1,000,000 values"),
        ("a: &a [1, *a]", "refers to itself in line 1"),
        ("a: !!python/object:os.system []", "not valid YAML"),
    ],
)
def test_what_is_not_what_it_looks_like_is_refused_in_one_line(text, says):
    with pytest.raises(WmddError, match=r"^[^\n]{1,600}$") as error:
        parsed(text)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: 1",
        "a: '010'\nb: \"1:30\"\nc: 0\nd: -5",
        "a: &x {b: 1}\nc: {<<: *x, b: 2}\nd: {<<: *x}",
        "[1, 2.5, null, true]",
    ],
)
def test_anything_else_is_what_yaml_makes_of_it(text):
    assert parsed(text) == yaml.safe_load(text)


def test_of_several_files_the_later_ones_count_more(tmp_path):
    (tmp_path / "a.yaml").write_text("experiment: a\nrecover: {iterations: 5, lr: 0.5}\n")
    (tmp_path / "b.yaml").write_text("experiment: b\nrecover: {iterations: 7}\n")
    experiment = Experiment.read(tmp_path / "a.yaml", tmp_path / "b.yaml")
    assert experiment.file.experiment == "b"
    assert (experiment.file.recover.iterations, experiment.file.recover.lr) == (7, 0.5)
