"""Which files and flags jobs need, without Snakemake; what Snakemake makes of it is in the other tests of this folder."""

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from wmdd.cost.blocks import Blocks
from wmdd.workflow.costs import costs
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.inputs import Inputs, any_of
from wmdd.workflow.layout import FILES, Cell, cost_of, path_of

from .conftest import TINY

SET = Cell("digits", "nano", "wmdd", 2, 0, "nano", "short", block="classes0-4")


def inputs(**changes: Any) -> Inputs:
    experiment = Experiment(TINY | changes)
    return Inputs(experiment, Blocks(experiment).names)


def entries(*changes: dict[str, Any], **experiment: Any) -> Inputs:
    """Return the inputs of an experiment whose matrix has an entry for each change of the tiny one's."""
    return inputs(matrix=[TINY["matrix"][0] | {"protocols": ["short"]} | change for change in changes], **experiment)


def test_a_method_that_asks_no_teacher_has_no_such_input():
    found = inputs()
    assert found.teacher_if_confident(SET.parts()) == []
    assert found.features_if_chosen_by(SET.having(method="random").parts()) == []
    assert found.features_if_chosen_by(SET.having(method="kmeans-medoid").parts()).endswith(
        "/teacher/seed0/features.h5"
    )
    assert found.barycenter_if_matched(SET.having(method="sre2l").parts()) == []
    assert found.barycenter_if_matched(SET.parts()) == path_of("barycenter", SET)


@pytest.mark.parametrize(("teacher_seed", "seed"), [(3, 3), ("same", 7)])
def test_a_distillation_uses_the_teacher_of_its_experiment(teacher_seed, seed):
    found = inputs(teacher_seed=teacher_seed)
    assert found.of_teacher("statistics")(SET.having(seed=7).parts()) == path_of("statistics", SET.having(seed=seed))


@pytest.mark.parametrize(
    ("relabel", "student", "labels", "teacher"),
    [
        ({}, {}, 1, 0),
        ({"store": "online"}, {}, 0, 1),
        ({}, {"labels": "hard"}, 0, 0),
    ],
)
def test_a_student_has_labels_or_a_teacher_or_neither(relabel, student, labels, teacher):
    protocol = {"base": "paper", "relabel": {"epochs": 300} | relabel, "student": student}
    found = inputs(protocols=TINY["protocols"] | {"short": protocol})
    assert (len(found.labels_if_stored(SET.parts())) > 0, len(found.teacher_if_online(SET.parts())) > 0) == (
        labels,
        teacher,
    )


def test_protocols_that_make_the_same_labels_share_a_file():
    assert inputs().labels_if_stored(SET.having(protocol="short-hard").parts()) == []
    found = inputs(protocols=TINY["protocols"] | {"mine": {"base": "short", "student": {"lr": 0.1}}})
    assert found.labels_if_stored(SET.having(protocol="mine").parts()) == path_of("labels", SET)


def test_every_distilled_set_has_a_picture_of_its_first_seed():
    found = entries({"methods": ["wmdd"], "seeds": [1, 2]}, {"methods": ["random"], "seeds": [0]})
    assert found.grids() == sorted(
        path_of("grid", SET.having(method=method, seed=seed)) for method, seed in (("wmdd", 1), ("random", 0))
    )


def test_a_map_shows_the_largest_set_of_each_method():
    found = entries(
        {"methods": ["wmdd", "random"], "ipc": [1], "seeds": [0]},
        {"methods": ["wmdd"], "ipc": [10], "seeds": [1]},
        embedding=True,
    )
    images = {path_of("images", SET.having(ipc=10, seed=1)), path_of("images", SET.having(method="random", ipc=1))}
    assert set(found.mapped({"dataset": "digits", "teacher": "nano"})) == images
    assert found.of_map("features")({"dataset": "digits", "teacher": "nano"}) == path_of("features", SET)
    assert found.maps() == [path_of("map", SET)]
    assert entries({}).maps() == []


def test_every_map_has_a_set_whatever_the_entries_of_the_matrix():
    found = entries(
        {"ipc": [1], "seeds": [0]},
        {"ipc": [10], "seeds": [1]},
        {"teachers": ["resnet18"], "seeds": [5]},
        embedding=True,
    )
    for teacher in "nano", "resnet18":
        assert found.mapped({"dataset": "digits", "teacher": teacher})


def test_a_pattern_of_no_names_matches_nothing():
    assert re.fullmatch(any_of(["a.b", "c"]), "a.b")
    assert not re.fullmatch(any_of(["a.b"]), "axb")
    assert not re.fullmatch(any_of([]), "")


# ---- costs: rules as Snakemake has them


class Output(list):
    """Files, of which some have names."""

    def __init__(self, **named: str) -> None:
        super().__init__(named.values())
        self._named = named

    def items(self) -> Any:
        return self._named.items()


def rule(file: str, *wanted: str | Callable[[Any], Any], prefix: str = "", **constraints: str) -> SimpleNamespace:
    paths = [prefix + path if isinstance(path, str) else path for path in wanted]
    output = Output(file=prefix + file, cost=prefix + cost_of(file))
    return SimpleNamespace(input=paths, output=output, wildcard_constraints=constraints, __hash__=lambda: id(file))


class Rule(SimpleNamespace):
    __hash__ = object.__hash__


@pytest.mark.parametrize("prefix", ["", "module/"])
def test_the_costs_are_those_of_all_jobs_before(prefix):
    def chain(file: str, *wanted: Any, **constraints: str) -> Rule:
        return Rule(**vars(rule(file, *wanted, prefix=prefix, **constraints)))

    rules = [
        chain(FILES["data"].replace("{dataset}", "{dataset,[a-z]+}")),
        chain(
            FILES["images"],
            lambda wildcards: [path_of("recover", Cell.of(wildcards).having(block="classes0-1"))],
            method="mine",
        ),
        chain(FILES["images"], FILES["data"], method="random"),
        chain(FILES["recover"], FILES["data"]),
        chain(FILES["student"].replace("{run}", "0"), FILES["images"], FILES["data"]),
        chain("elsewhere/{dataset}.txt", FILES["decay"]),
    ]
    student = SET.having(method="mine", run=0, block=None)
    other = student.having(method="random")
    made = [
        ("data", student),
        ("images", student),
        ("recover", student.having(block="classes0-1")),
        ("student", student),
    ]
    assert costs(rules, [path_of("student", student)]) == sorted(cost_of(path_of(*each)) for each in made)
    assert costs(rules, [path_of("student", other)]) == sorted(
        cost_of(path_of(*each)) for each in [("data", other), ("images", other), ("student", other)]
    )
    assert costs(rules, ["weights.pt"]) == []
