"""Which files and flags jobs need, without Snakemake; what Snakemake makes of it is in the other tests of this folder."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from wmdd.cost.blocks import Blocks
from wmdd.workflow.costs import costs
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.inputs import Inputs, any_of
from wmdd.workflow.layout import FILES, Cell, cost_of, path_of

from .conftest import ENTRY, TINY

SET = Cell("digits", "nano", "wmdd", 2, 0, "nano", "short", block="classes0-4")
WHOLE = SET.having(method="whole")
MAP = {"dataset": "digits", "teacher": "nano"}


def inputs(**changes: Any) -> Inputs:
    experiment = Experiment(TINY | changes)
    return Inputs(experiment, Blocks(experiment).names)


def entries(*changes: dict[str, Any], **experiment: Any) -> Inputs:
    """Return the inputs of an experiment whose matrix has an entry for each change of the tiny one's."""
    return inputs(matrix=[ENTRY | change for change in changes], **experiment)


def test_a_method_that_asks_no_teacher_has_no_such_input():
    tiny = inputs()
    assert tiny.teacher_if_confident(SET.parts()) == []
    for method in "random", "whole":
        assert tiny.features_if_compared(SET.having(method=method).parts()) == []
    assert tiny.features_if_compared(SET.having(method="kmeans-medoid").parts()) == path_of("features", SET)
    assert tiny.barycenter_if_feature_term(SET.having(method="sre2l").parts()) == []
    assert tiny.barycenter_if_feature_term(SET.parts()) == path_of("barycenter", SET)


def test_the_teacher_judges_patches_and_confidence():
    judged = inputs(methods={"sure": {"base": "random", "barycenter": {"confident": 0.2}}})
    for method in "patches", "sure":
        judge = judged.teacher_if_patches_or_confident(SET.having(method=method).parts())
        assert judge == path_of("teacher", SET)
    assert judged.teacher_if_patches_or_confident(SET.having(method="random").parts()) == []
    assert judged.features_if_compared(SET.having(method="sure").parts()) == path_of("features", SET)


def test_of_the_whole_training_set_there_is_no_distance():
    measured = entries({"methods": ["wmdd", "random"], "controls": True}, distances=True)
    sets = [SET.having(method=method) for method in ("wmdd", "random")]
    assert measured.distances() == sorted(path_of("distance", cell) for cell in sets)
    assert measured.students() == [path_of("student", cell.having(run=0)) for cell in (*sets, WHOLE)]


@pytest.mark.parametrize(("teacher_seed", "seed"), [(3, 3), ("same", 7)])
def test_a_distillation_uses_the_teacher_of_its_experiment(teacher_seed, seed):
    statistics = inputs(teacher_seed=teacher_seed).of_teacher("statistics")
    assert statistics(SET.having(seed=7).parts()) == path_of("statistics", SET.having(seed=seed))


@pytest.mark.parametrize(
    ("relabel", "student", "given"),
    [({}, {}, ["labels"]), ({"store": "online"}, {}, ["teacher"]), ({}, {"labels": "hard"}, [])],
)
def test_a_student_has_labels_or_a_teacher_or_neither(relabel, student, given):
    protocol = {"base": "paper", "relabel": {"epochs": 300} | relabel, "student": student}
    tiny = inputs(protocols=TINY["protocols"] | {"short": protocol})
    paths = {"labels": tiny.labels_if_stored(SET.parts()), "teacher": tiny.teachers_if_online(SET.parts())}
    assert [kind for kind, path in paths.items() if path] == given


def test_the_teachers_of_labels_are_the_distillations_own_and_those_named():
    several = {"base": "paper", "relabel": {"teachers": ["resnet18-w8", "resnet18"]}}
    asked = {"base": "several", "relabel": {"store": "online"}}
    tiny = inputs(protocols=TINY["protocols"] | {"several": several, "asked": asked}, teacher_seed="same")
    expected = [path_of("teacher", SET.having(teacher=name, seed=3)) for name in ("nano", "resnet18-w8", "resnet18")]
    cell = SET.having(protocol="several", seed=3)
    assert tiny.teachers_of_labels(cell.parts()) == expected
    assert tiny.teachers_if_online(cell.parts()) == []
    assert tiny.teachers_if_online(cell.having(protocol="asked").parts()) == expected
    assert "--teachers resnet18-w8 resnet18 " in tiny.flags("student")(cell.parts())
    assert "--teachers" not in tiny.flags("relabel")(SET.parts())


def test_protocols_that_make_the_same_labels_share_a_file():
    tiny = inputs(protocols=TINY["protocols"] | {"mine": {"base": "short", "student": {"lr": 0.1}}})
    assert tiny.labels_if_stored(SET.having(protocol="mine").parts()) == path_of("labels", SET)


def test_every_distilled_set_has_a_picture_of_its_first_seed():
    matrix = entries({"methods": ["wmdd"], "seeds": [1, 2]}, {"methods": ["random"], "seeds": [0]})
    first = {("wmdd", 1), ("random", 0)}
    assert matrix.grids() == sorted(path_of("grid", SET.having(method=method, seed=seed)) for method, seed in first)


def test_a_map_shows_the_largest_set_of_each_method():
    matrix = entries(
        {"methods": ["wmdd", "random"], "ipc": [1], "seeds": [0]},
        {"methods": ["wmdd"], "ipc": [10], "seeds": [1]},
        {"teachers": ["resnet18"], "seeds": [5]},
        embedding=True,
    )
    images = {path_of("images", SET.having(ipc=10, seed=1)), path_of("images", SET.having(method="random", ipc=1))}
    assert set(matrix.mapped(MAP)) == images
    assert matrix.of_map("features")(MAP) == path_of("features", SET)
    assert matrix.maps() == [path_of("map", SET), path_of("map", SET.having(teacher="resnet18"))]
    assert matrix.mapped(MAP | {"teacher": "resnet18"}), "of the seed that there is"
    assert entries({}).maps() == []


def test_blocks_are_joined_in_the_order_of_their_classes():
    entry = {"datasets": ["cifar100"], "methods": ["wmdd"], "ipc": [1]}
    big = inputs(matrix=[entry], datasets={"cifar100": {"classes_per_block": 5}})
    blocks = [f"classes{first}-{first + 4}" for first in range(0, 100, 5)]
    run = big.runs[0]
    assert big.blocks(run.parts()) == [path_of("recover", run.having(block=block)) for block in blocks]


def test_a_pattern_of_no_names_matches_nothing():
    assert re.fullmatch(any_of(["a.b", "c"]), "a.b")
    assert not re.fullmatch(any_of(["a.b"]), "axb")
    assert not re.fullmatch(any_of([]), "")


class Output(list):
    """Files as Snakemake has them, of which some have names."""

    def items(self) -> Any:
        return zip(("file", "cost"), self, strict=True)


class Rule(SimpleNamespace):
    """A rule as Snakemake has it."""

    __hash__ = object.__hash__


@pytest.mark.parametrize("prefix", ["", "module/"])
def test_the_costs_are_those_of_all_jobs_before(prefix, capfd):
    def rule(file: str, *wanted: Any, **constraints: str) -> Rule:
        paths = [prefix + path if isinstance(path, str) else path for path in wanted]
        output = Output([prefix + file, prefix + cost_of(file)])
        return Rule(input=paths, output=output, wildcard_constraints=constraints)

    def block(wildcards: Any) -> list[str]:
        return [path_of("recover", Cell.of(wildcards).having(block="classes0-1"))]

    rules = [
        rule(FILES["data"].replace("{dataset}", "{dataset,[a-z]+}")),
        rule(FILES["images"], block, method="mine"),
        rule(FILES["images"], FILES["data"], method="random"),
        rule(FILES["recover"], FILES["data"]),
        rule(FILES["student"].replace("{run}", "0"), FILES["images"], FILES["data"]),
        rule("elsewhere/{dataset}.txt", FILES["decay"]),
    ]
    student = SET.having(method="mine", run=0, block="classes0-1")
    for method, kinds in ("mine", ["data", "images", "recover", "student"]), ("random", ["data", "images", "student"]):
        cell = student.having(method=method)
        assert costs(rules, [path_of("student", cell)]) == sorted(cost_of(path_of(kind, cell)) for kind in kinds)
    assert costs(rules, ["weights.pt"]) == []
    assert capfd.readouterr().err == ""
    teacher = path_of("teacher", SET.having(method=None, ipc=None))
    assert costs([*rules, rule(FILES["features"], FILES["teacher"])], [path_of("features", SET)]) == [
        cost_of(path_of("features", SET))
    ]
    assert capfd.readouterr().err == f"no rule makes {teacher}: the report is without its cost\n"
