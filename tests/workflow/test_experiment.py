"""Experiment files: what may stand in them, and how settings are resolved from them."""

import copy
import itertools
import re
import unicodedata
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from wmdd.base.errors import WmddError
from wmdd.cost import rates
from wmdd.cost.blocks import PIXELS_PER_BLOCK, coarse
from wmdd.cost.laws import work
from wmdd.cost.plan import estimate
from wmdd.cost.scene import Shapes
from wmdd.report.show_settings import resolved
from wmdd.settings.base import NAME, flags
from wmdd.settings.engine import EngineSettings
from wmdd.settings.recover import RecoverSettings
from wmdd.workflow.experiment import LARGEST_WHITENED, Experiment, parse, presets, schema
from wmdd.workflow.layout import Cell
from wmdd.workflow.stages import SETTINGS

ROOT = Path(__file__).parents[2]
FILES = sorted(set((ROOT / "config").glob("**/*.yaml")) - {ROOT / "config/published.yaml"})  # which is no experiment


def experiment(content=None, **cell):
    """An experiment with one small cell, changed by `cell`, beside other content."""
    cell = {"datasets": ["digits"], "teachers": ["resnet18"], "methods": ["wmdd"], "ipc": [1]} | cell
    return Experiment({**(content or {}), "matrix": [cell]})


def mistake(content=None, **cell):
    """The one line that a mistake gives."""
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


# Precedence: each level wins over the ones before it, which are all set too

LADDERS = {
    "recover": {
        "of": {"dataset": "digits", "method": "child"},
        "start": {"methods": {"parent": {"family": "recover"}, "child": {"base": "parent"}}},
        "key": "jitter",
        "preset": 2,
        "levels": ["recover", "datasets.digits.recover", "methods.parent.recover", "methods.child.recover"],
    },
    "barycenter": {
        "of": {"dataset": "digits", "method": "child"},
        "start": {"methods": {"parent": {"base": "wmdd"}, "child": {"base": "parent"}}},
        "key": "restarts",
        "preset": 1,
        "levels": [
            "barycenter",
            "datasets.digits.barycenter",
            "methods.wmdd.barycenter",
            "methods.parent.barycenter",
            "methods.child.barycenter",
        ],
    },
    "teacher": {
        "of": {"dataset": "digits", "teacher": "resnet18-w8"},
        "start": {},
        "key": "width",
        "preset": 8,
        "levels": ["teacher", "datasets.digits.teacher", "teachers.resnet18-w8"],
    },
    "relabel": {
        "of": {"dataset": "digits", "method": "wmdd", "protocol": "child"},
        "start": {"protocols": {"child": {"base": "rectified"}}},
        "key": "epochs",
        "preset": 400,
        "levels": [
            "relabel",
            "datasets.digits.relabel",
            "protocols.rectified.relabel",
            "protocols.child.relabel",
        ],
    },
    "student": {
        "of": {"dataset": "digits", "method": "wmdd", "protocol": "child", "student": "resnet18-w8"},
        "start": {"protocols": {"child": {"base": "paper"}}},
        "key": "width",
        "preset": 8,
        "levels": [
            "student",
            "datasets.digits.student",
            "protocols.paper.student",
            "protocols.child.student",
            "students.resnet18-w8",
        ],
    },
    "expert": {
        "of": {"dataset": "digits", "expert": "child"},
        "start": {"experts": {"child": {"base": "convnet3"}}},
        "key": "epochs",
        "preset": 50,
        "levels": ["expert", "datasets.digits.expert", "experts.convnet3", "experts.child"],
    },
    "match": {
        "of": {"dataset": "digits", "method": "child"},
        "start": {"methods": {"child": {"base": "datadam"}}},
        "key": "real_batch",
        "preset": 64,
        "levels": ["match", "datasets.digits.match", "methods.datadam.match", "methods.child.match"],
    },
}
RUNGS = [(stage, n) for stage, ladder in LADDERS.items() for n in range(len(ladder["levels"]) + 1)]


@pytest.mark.parametrize(
    ("stage", "count"), RUNGS, ids=[f"{stage}-{['presets', *LADDERS[stage]['levels']][n]}" for stage, n in RUNGS]
)
def test_each_level_wins_over_the_weaker_ones(stage, count):
    ladder = LADDERS[stage]
    expected = [ladder["preset"], *range(11, 11 + count)]
    levels = [nested(f"{path}.{ladder['key']}", 11 + i) for i, path in enumerate(ladder["levels"][:count])]
    of = ladder["of"]
    content = merged(ladder["start"], *levels)
    assert getattr(Experiment(content).resolve(stage, **of), ladder["key"]) == expected[-1]
    reversed_order = dict(reversed(content.items()))
    assert getattr(Experiment(reversed_order).resolve(stage, **of), ladder["key"]) == expected[-1]


def test_a_preset_wins_over_the_default():
    none = Experiment({})
    assert none.resolve("recover").jitter == RecoverSettings().jitter == 32
    assert none.resolve("recover", dataset="digits").jitter == 2


def test_within_the_presets_a_method_wins_over_a_dataset():
    none = Experiment({})
    assert none.resolve("recover", dataset="tiny-imagenet", method="wmdd").regularisation == 500
    assert none.resolve("recover", dataset="tiny-imagenet", method="sre2l").regularisation == 0.01


def test_the_weakest_part_of_the_file_wins_over_the_strongest_preset():
    found = Experiment({"recover": {"regularisation": 3}, "student": {"width": 5}})
    assert found.resolve("recover", dataset="tiny-imagenet", method="sre2l").regularisation == 3
    of = {"dataset": "digits", "method": "wmdd", "protocol": "paper", "student": "resnet18-w8"}
    assert found.resolve("student", **of).width == 5


@pytest.mark.parametrize(
    "general", [{"datasets": {"digits": {"recover": {"regularisation": 3}}}}, {"recover": {"regularisation": 3}}]
)
def test_what_the_file_replaces_of_a_presets_method_is_said_unless_it_names_the_method(general):
    (line,) = experiment(general, methods=["wmdd", "sre2l"]).replaced()
    assert line.startswith(
        "sre2l on digits: recover.regularisation is 3.0 by a general section of the file, in place of the preset's 0.01;"
    )
    assert "say methods: {sre2l: {recover: {regularisation: ...}}}" in line
    assert experiment(general, methods=["wmdd"]).replaced() == []
    for own in (0.01, 3, 7):
        named = merged(general, {"methods": {"sre2l": {"recover": {"regularisation": own}}}})
        assert experiment(named, methods=["wmdd", "sre2l"]).replaced() == []


def test_what_replaces_nothing_is_not_said():
    same = {"recover": {"regularisation": 0.01, "iterations": 5}, "methods": {"mine": {"base": "sre2l"}}}
    assert experiment(same, methods=["sre2l", "mine"]).replaced() == []
    other = merged(
        same,
        {"recover": {"regularisation": 3}, "methods": {"loud": {"base": "mine", "recover": {"regularisation": 1}}}},
    )
    lines = experiment(other, methods=["mine", "loud"]).replaced()
    assert [line.split(" on ")[0] for line in lines] == ["mine"]


def test_what_a_level_leaves_out_comes_from_the_weaker_one():
    found = Experiment({"datasets": {"digits": {"recover": {"lr": 0.7}}}})
    chosen = found.resolve("recover", dataset="digits", method="sre2l")
    assert (chosen.lr, chosen.jitter, chosen.statistics, chosen.betas) == (0.7, 2, "global", (0.5, 0.9))


def test_a_setting_equal_to_the_default_still_overrides():
    found = Experiment({"datasets": {"digits": {"recover": {"jitter": 32, "flip": True}}}})
    assert found.resolve("recover", dataset="digits").jitter == 32
    assert found.resolve("recover", dataset="digits").flip is True


def test_zero_and_false_are_settings_too():
    found = Experiment({"datasets": {"cifar10": {"recover": {"jitter": 0, "flip": False}}}})
    chosen = found.resolve("recover", dataset="cifar10")
    assert (chosen.jitter, chosen.flip) == (0, False)


def test_settings_do_not_leak_to_other_names():
    content = {
        "datasets": {"digits": {"recover": {"lr": 9}}},
        "methods": {"mine": {"base": "wmdd", "recover": {"jitter": 9}}},
    }
    found = Experiment(content)
    assert found.resolve("recover", dataset="cifar10", method="wmdd") == Experiment({}).resolve(
        "recover", dataset="cifar10", method="wmdd"
    )


def test_a_preset_changed_in_the_file_changes_what_is_based_on_it():
    found = Experiment(
        {
            "methods": {"wmdd": {"recover": {"lr": 0.3}}, "mine": {"base": "wmdd"}},
            "protocols": {"paper": {"student": {"lr": 0.4}}},
        }
    )
    assert found.resolve("recover", dataset="digits", method="mine").lr == 0.3
    assert found.resolve("recover", dataset="digits", method="sre2l").lr == 0.1, "presets stand on their own"
    assert found.resolve("student", protocol="paper-hard", student="resnet18").lr == 0.4


def test_the_family_is_inherited_and_can_be_set():
    content = {"methods": {"a": {"base": "random"}, "b": {"base": "a"}, "c": {"base": "wmdd", "family": "select"}}}
    found = Experiment(content)
    assert [found.family(name) for name in ("wmdd", "a", "b", "c")] == ["recover", "select", "select", "select"]


def test_a_method_without_family_is_refused():
    assert "method mine has no family; give it a base" in mistake({"methods": {"mine": {}}}, methods=["mine"])


def test_teacher_seed():
    assert [Experiment({}).teacher_seed(s) for s in (0, 3)] == [0, 0]
    assert [Experiment({"teacher_seed": 2}).teacher_seed(s) for s in (0, 3)] == [2, 2]
    assert [Experiment({"teacher_seed": "same"}).teacher_seed(s) for s in (0, 3)] == [0, 3]


# Sweeps


def swept(**sections):
    return {"methods": {"mine": {"base": "wmdd", **sections}}}


def members(content):
    return [r.method for r in experiment(content, methods=["mine"]).runs()]


def test_one_axis():
    found = experiment(swept(recover={"regularisation": [0.1, 1, 1e-6], "lr": 0.5}), methods=["mine"])
    names = ["mine-regularisation0.1", "mine-regularisation1", "mine-regularisation1e-06"]
    assert [r.method for r in found.runs()] == names
    chosen = [found.resolve("recover", dataset="digits", method=name) for name in names]
    assert [(c.regularisation, c.lr, c.jitter) for c in chosen] == [(0.1, 0.5, 2), (1, 0.5, 2), (1e-6, 0.5, 2)]
    assert [found.family(name) for name in names] == ["recover"] * 3


def test_two_axes_of_two_stages():
    found = experiment(
        swept(barycenter={"weights": ["free", "uniform"]}, recover={"lr": [0.1, 0.25]}), methods=["mine"]
    )
    got = {
        r.method: (
            found.resolve("barycenter", dataset="digits", method=r.method).weights,
            found.resolve("recover", dataset="digits", method=r.method).lr,
        )
        for r in found.runs()
    }
    assert got == {
        "mine-weightsfree-lr0.1": ("free", 0.1),
        "mine-weightsfree-lr0.25": ("free", 0.25),
        "mine-weightsuniform-lr0.1": ("uniform", 0.1),
        "mine-weightsuniform-lr0.25": ("uniform", 0.25),
    }


def test_a_tuple_is_one_value_and_a_list_of_tuples_is_a_sweep():
    one = experiment(swept(recover={"crop_scale": [0.5, 1]}), methods=["mine"])
    assert [r.method for r in one.runs()] == ["mine"]
    found = experiment(swept(recover={"crop_scale": [[0.5, 1], [0.08, 0.9]]}), methods=["mine"])
    got = {r.method: found.resolve("recover", dataset="digits", method=r.method).crop_scale for r in found.runs()}
    assert got == {"mine-crop_scale0.5-1": (0.5, 1), "mine-crop_scale0.08-0.9": (0.08, 0.9)}


def test_booleans_and_words():
    assert members(swept(recover={"flip": [True, False]})) == ["mine-flipTrue", "mine-flipFalse"]
    assert members(swept(recover={"statistics": ["per-class", "global"]})) == [
        "mine-statisticsper-class",
        "mine-statisticsglobal",
    ]


def test_a_select_method_can_be_swept():
    content = {"methods": {"mine": {"family": "select", "select": {"strategy": ["random", "kmeans-medoid"]}}}}
    assert members(content) == ["mine-strategyrandom", "mine-strategykmeans-medoid"]


PROMPTS = (
    "a photo of {name}",
    "{name}",
    "name",
    "..",
    "a/b",
    "-0.5",
    "",
    "null",
    "é",
    "e",
    "写真",
    "x" * 190,
    "1.0",
    "1",
)


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=250)  # others are no text


@given(
    st.lists(st.sampled_from(PROMPTS) | TEXTS, min_size=1, max_size=3),
    st.lists(st.floats(0, 1e30), min_size=1, max_size=3),
)
@settings(deadline=None, max_examples=200)
def test_every_member_of_a_sweep_has_a_valid_name_or_the_file_is_refused(prompts, scales):
    pairs = list(itertools.product(dict.fromkeys(scales), dict.fromkeys(prompts)))
    content = {"methods": {"mine": {"base": "ddoq", "decode": {"prompt": prompts, "guidance": scales}}}}
    names, refusal = [], ""
    try:
        names = Experiment(content).sweeps["mine"]
    except WmddError as error:
        refusal = str(error)
    if refusal:
        assert re.fullmatch("methods.mine: its sweep makes .*; write a method for each value instead", refusal)
        assert max(map(len, prompts)) > 100 or len({_plain_name(p) for p in prompts}) < len(set(prompts))
        return
    assert len(set(names)) == len(pairs)
    assert all(re.fullmatch(NAME, name) for name in names)
    content["methods"] |= {f"after{n}": {"base": name} for n, name in enumerate(names)}
    found = Experiment(content)
    for n, (name, (scale, prompt)) in enumerate(zip(names, pairs, strict=True)):
        if re.fullmatch(r"[\w.+-]*", prompt, re.ASCII):  # results on disk have these names
            assert name == f"mine-guidance{str(scale).removesuffix('.0')}-prompt{prompt.removesuffix('.0')}"
        decode = found.resolve("decode", dataset="digits", method=f"after{n}", generator="vae")
        assert (decode.prompt, decode.guidance) == (prompt, scale)


def _plain_name(prompt):
    return re.sub(r"[^\w.+]|_", "", unicodedata.normalize("NFKD", prompt), flags=re.ASCII).removesuffix(".0")


def test_what_a_name_cannot_hold_becomes_a_hyphen():
    starts = ["noise", "method:random"]
    assert members(swept(recover={"init": starts})) == ["mine-initnoise", "mine-initmethod-random"]
    prompts = {"methods": {"mine": {"base": "ddoq", "decode": {"prompt": ["a photo of {name}", "{name}", "café!"]}}}}
    assert members(prompts) == ["mine-prompta-photo-of-name", "mine-promptname", "mine-promptcafe"]


def test_members_that_would_share_a_name_or_have_too_long_a_one_are_refused():
    sweep = {"methods": {"mine": {"base": "ddoq", "decode": {"prompt": ["{name}", "name"]}}}}
    assert mistake(sweep).endswith(
        "its sweep makes the name mine-promptname twice; write a method for each value instead"
    )
    sweep["methods"]["mine"]["decode"]["prompt"] = ["x" * 190]
    assert "its sweep makes a name of 201 characters, more than 200: mine-promptxxx" in mistake(sweep)


@pytest.mark.parametrize("name", ["teacher", "student_10", "page", "figures", "all"])
def test_a_table_cannot_have_the_name_of_a_rule(name):
    with pytest.raises(WmddError, match=f"matrix: the name {name} is that of a rule; choose another"):
        Experiment({"matrix": [{"name": name, "datasets": ["digits"], "methods": ["random"]}]})


def test_a_value_named_twice_is_run_once():
    assert members(swept(recover={"lr": [0.1, 0.1]})) == ["mine-lr0.1"]


def test_the_matrix_takes_a_sweep_or_one_of_its_members():
    content = swept(recover={"lr": [0.1, 0.2]})
    assert [r.method for r in experiment(content, methods=["mine"]).runs()] == ["mine-lr0.1", "mine-lr0.2"]
    assert [r.method for r in experiment(content, methods=["mine-lr0.2"]).runs()] == ["mine-lr0.2"]
    both = experiment(content, methods=["mine", "mine-lr0.2", "wmdd"])
    assert [r.method for r in both.runs()] == ["mine-lr0.1", "mine-lr0.2", "wmdd"]


def test_a_sweep_of_a_preset_starts_from_the_preset():
    found = experiment({"methods": {"sre2l": {"recover": {"lr": [0.1, 0.2]}}}}, methods=["sre2l"])
    assert [r.method for r in found.runs()] == ["sre2l-lr0.1", "sre2l-lr0.2"]
    chosen = found.resolve("recover", dataset="digits", method="sre2l-lr0.2")
    assert (chosen.lr, chosen.statistics, found.family("sre2l-lr0.2")) == (0.2, "global", "recover")


def test_a_sweep_that_makes_a_name_in_use_is_refused():
    content = swept(recover={"lr": [0.1]})
    content["methods"]["mine-lr0.1"] = {"base": "sre2l"}
    for methods in (content["methods"], dict(reversed(content["methods"].items()))):
        assert "methods.mine: its sweep makes mine-lr0.1" in mistake({"methods": methods})


def test_a_sweep_cannot_be_a_base():
    content = merged(swept(recover={"lr": [0.1, 0.2]}), {"methods": {"other": {"base": "mine"}}})
    assert "methods.other: its base mine is a sweep; name one of its members: mine-lr0.1, mine-lr0.2" in mistake(
        content
    )
    assert experiment(merged(content, {"methods": {"other": {"base": "mine-lr0.2"}}}), methods=["other"])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([], "methods.mine.recover.lr: .*at least 1 item"),
        ([0.1, 0], "methods.mine.recover.lr.1: Input should be greater than 0"),
        ([0.1, [0.2]], "methods.mine.recover.lr.1: Input should be a valid number"),
    ],
)
def test_a_wrong_value_in_a_sweep(values, says):
    assert re.search(says, mistake(swept(recover={"lr": values})))


# Mistakes


@pytest.mark.parametrize(
    ("content", "key", "nearest"),
    [
        ({"experimant": "x"}, "experimant", "experiment"),
        ({"dataset": {}}, "dataset", "datasets"),
        (nested("recover.iteration", 3), "recover.iteration", "iterations"),
        (nested("datasets.mine.data.rezolution", 32), "datasets.mine.data.rezolution", "resolution"),
        (nested("datasets.mine.class_per_block", 3), "datasets.mine.class_per_block", "classes_per_block"),
        (nested("teachers.mine.widht", 8), "teachers.mine.widht", "width"),
        (nested("methods.mine.recover.regularization", 1), "methods.mine.recover.regularization", "regularisation"),
        (nested("methods.mine.recovery", {}), "methods.mine.recovery", "recover"),
        (nested("protocols.mine.student.epoch", 3), "protocols.mine.student.epoch", "epochs"),
        (nested("students.mine.arch", "resnet18"), "students.mine.arch", "architecture"),
        (nested("experts.mine.epoch", 3), "experts.mine.epoch", "epochs"),
        (nested("methods.mine.match.iteration", 3), "methods.mine.match.iteration", "iterations"),
        (nested("methods.mine.experts", "convnet3"), "methods.mine.experts", "expert"),
        (nested("engine.precison", "fp32"), "engine.precison", "precision"),
        (nested("tracking.projekt", "x"), "tracking.projekt", "project"),
        (
            {"matrix": [{"datasets": ["digits"], "methods": ["wmdd"], "ipcs": [1]}]},
            "matrix.0.ipcs",
            "ipc",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_an_unknown_key_names_the_nearest(content, key, nearest):
    message = mistake(content)
    assert f"unknown key {key}; did you mean {nearest!r}?" in message
    assert nearest in message.split("Known here:")[1]


@pytest.mark.parametrize(
    ("kind", "wrong", "nearest"),
    [
        ("datasets", "cifar1O", "cifar10"),
        ("methods", "wmddfree", "wmdd-free"),
        ("protocols", "papr", "paper"),
        ("students", "resnet-18", "resnet18"),
        ("teachers", "resnet18w8", "resnet18-w8"),
    ],
)
def test_an_unknown_name_in_the_matrix_names_the_nearest(kind, wrong, nearest):
    message = mistake(**{kind: [wrong]})
    assert f"unknown name {wrong!r} in {kind}; did you mean {nearest!r}?" in message


def test_an_unknown_base_names_the_nearest():
    message = mistake({"methods": {"mine": {"base": "sre21"}}}, methods=["mine"])
    assert "unknown name 'sre21' in methods; did you mean 'sre2l'?" in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (nested("recover.iterations", "many"), "recover.iterations: Input should be a number.*got 'many'"),
        (nested("recover.iterations", 2.5), "recover.iterations: .*integer.*got 2.5"),
        (nested("recover.iterations", 0), "recover.iterations: .*greater than or equal to 1 .got 0"),
        (nested("recover.crop_scale", [0.5]), "recover.crop_scale.1: Field required"),
        (nested("recover.crop_scale", [0.5, 1.5]), "recover.crop_scale.1: .*less than or equal to 1"),
        (nested("recover", 3), "recover: Input should be a mapping of settings .got 3"),
        (nested("student.lr", "1e-3"), r"student.lr: .*write 0.001 or 1.0e-3.*got '1e-3'"),
        (nested("methods.mine.recover.lr", "1e-3"), "methods.mine.recover.lr: Input should be a number"),
        (
            nested("methods.mine.recover.betas", [0.5, 0.9, 0.1]),
            "methods.mine.recover.betas: Tuple should have at most 2",
        ),
        (
            nested("methods.mine.recover.betas", [[0.5, 0.9], [0.5, 2]]),
            "methods.mine.recover.betas.1.1: .*less than or",
        ),
        (nested("methods.mine.recover.statistics", "pc"), "methods.mine.recover.statistics: .*'per-class' or 'global'"),
        (nested("methods.mine.recover.flip", "maybe"), "methods.mine.recover.flip: Input should be a valid boolean"),
        (
            nested("methods.mine.family", "matching"),
            "methods.mine.family: Input should be 'recover', 'select', 'latent' or 'match'",
        ),
        (nested("teacher_seed", "sam"), "teacher_seed: .*'same'"),
        (nested("engine.device", "gpu"), "engine.device: Input should be 'auto', 'cpu' or 'cuda' .got 'gpu'"),
        (nested("tracking.mode", "off"), "tracking.mode: Input should be 'offline', 'online' or 'disabled'"),
        ({"methods": {"a b": {}}}, "methods.a b: String should match"),
        ({"methods": {"../up": {}}}, "methods.../up: String should match"),
        ({"datasets": {1: {}}}, "datasets.1: YAML does not read this key as text; put it in quotes"),
        ({"experiment": "a/b"}, "experiment: String should match"),
        ({"matrix": {"datasets": ["digits"]}}, "matrix: Input should be a valid list"),
        ({"matrix": [{"datasets": ["digits"]}]}, "matrix.0.methods: Field required"),
        ({1: 2}, "1: YAML does not read this key as text"),
    ],
)
def test_a_wrong_value_names_the_place(content, says):
    assert re.search(says, mistake(content))


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ({"ipc": [0]}, "matrix.0.ipc.0: Input should be greater than or equal to 1 .got 0"),
        ({"ipc": [10, -1]}, "matrix.0.ipc.1: .*greater than or equal to 1"),
        ({"ipc": 10}, "matrix.0.ipc: Input should be a valid list .got 10"),
        ({"ipc": []}, "matrix.0.ipc: List should have at least 1 item"),
        ({"methods": []}, "matrix.0.methods: List should have at least 1 item"),
        ({"datasets": "digits"}, "matrix.0.datasets: Input should be a valid list"),
        ({"seeds": [-1]}, "matrix.0.seeds.0: .*greater than or equal to 0"),
        ({"runs": 0}, "matrix.0.runs: .*greater than or equal to 1"),
    ],
)
def test_a_wrong_matrix(cell, says):
    assert re.search(says, mistake(**cell))


@pytest.mark.parametrize(
    ("kind", "entries", "says"),
    [
        (
            "methods",
            {"a": {"base": "b"}, "b": {"base": "c"}, "c": {"base": "a"}},
            "methods: a -> b -> c -> a goes round",
        ),
        ("methods", {"a": {"base": "a"}}, "methods: a -> a goes round in a circle"),
        ("protocols", {"a": {"base": "b"}, "b": {"base": "a"}}, "protocols: a -> b -> a goes round in a circle"),
        ("methods", {"wmdd": {"base": "a"}, "a": {"base": "wmdd"}}, "methods: a -> wmdd -> a goes round"),
    ],
)
def test_a_circle_of_bases(kind, entries, says):
    assert says in mistake({kind: entries}, **{kind: ["a"]})


@pytest.mark.parametrize(
    ("kind", "name", "entry"), [("methods", "teacher", {"base": "wmdd"}), ("datasets", "report", {})]
)
def test_reserved_names(kind, name, entry):
    assert f"{kind}.{name}: the name is taken" in mistake({kind: {name: entry}})


def test_a_range_has_its_smaller_end_first():
    assert "recover.crop_scale: the smaller share first: 0.08 1" in mistake({"recover": {"crop_scale": [1, 0.08]}})


def test_a_student_cannot_train_longer_than_it_has_labels():
    content = {"protocols": {"mine": {"base": "paper", "student": {"epochs": 301}}}}
    message = mistake(content, protocols=["mine"])
    assert "protocol mine on digits: student.epochs 301 exceeds relabel.epochs 300" in message
    assert experiment(merged(content, nested("protocols.mine.relabel.epochs", 301)), protocols=["mine"])
    assert experiment(merged(content, nested("protocols.mine.student.labels", "hard")), protocols=["mine"])


def test_a_student_that_asks_its_teacher_trains_as_long_as_it_likes():
    content = nested("protocols.mine", {"base": "paper-online", "student": {"epochs": 301}})
    assert experiment(content, protocols=["mine"])


def test_labels_are_pruned_for_the_temperature_of_the_student():
    content = nested("protocols.mine", {"base": "paper-pruned", "student": {"temperature": 4}})
    assert (
        "protocol mine on digits: the labels are pruned for relabel.temperature 20 but student.temperature is 4"
    ) in mistake(content, protocols=["mine"])
    assert experiment(merged(content, nested("protocols.mine.relabel.temperature", 4)), protocols=["mine"])
    assert experiment(merged(content, nested("protocols.mine.relabel.store", "stored")), protocols=["mine"])
    assert experiment(merged(content, nested("protocols.mine.student.labels", "hard")), protocols=["mine"])


@pytest.mark.parametrize("base", ["paper", "rectified"])
def test_each_protocol_with_each_store(base):
    """The stores differ in nothing else."""
    none = Experiment({})
    of = {"dataset": "digits", "method": "wmdd"}
    for store, name in {"stored": base, "pruned": f"{base}-pruned", "online": f"{base}-online"}.items():
        found = none.resolve("relabel", protocol=name, **of)
        assert found == none.resolve("relabel", protocol=base, **of).model_copy(update={"store": store})
        assert none.resolve("student", protocol=name, **of) == none.resolve("student", protocol=base, **of)


def test_the_message_carries_the_name_of_the_file():
    with pytest.raises(WmddError, match=r"^mine\.yaml: "):
        parse({"nothing": 1}, "mine.yaml")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot read the experiment file .*: No such file"),
        (b"", "must hold a mapping of settings .*nothing"),
        (b"- a\n- b\n", "must hold a mapping of settings .*a list"),
        (b"a: [1\nb: 2\n", "is not valid YAML"),
        (b"\x89HDF\xff\xfe", "is not valid YAML"),
        (b"a: !!python/object/apply:os.system ['touch hacked']\n", "is not valid YAML"),
        (b"matrx: []\n", r"^x\.yaml: unknown key matrx; did you mean 'matrix'"),
    ],
)
def test_a_file_that_is_no_experiment(tmp_path, monkeypatch, content, says):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("x.yaml").write_bytes(content)
    with pytest.raises(WmddError, match=says) as caught:
        Experiment.read(Path("x.yaml"))
    assert "\n" not in str(caught.value)
    assert not Path("hacked").exists()


# Blocks of classes


def sizes(content, method="mine", ipc=1, classes=100):
    data = {"datasets": {"d": {"data": {"classes": classes}}}}
    made = Experiment(merged(data, {"methods": {"mine": {"base": "wmdd"}}}, content))
    blocks = made.blocks("d", "resnet18", method, ipc)
    bounds = [tuple(map(int, re.fullmatch(r"classes(\d+)-(\d+)", name).groups())) for name in blocks]
    assert [c for a, b in bounds for c in range(a, b + 1)] == list(range(classes))
    return [b - a + 1 for a, b in bounds]


def test_a_block_has_a_thousand_images_where_their_side_is_not_known():
    assert sizes({}) == [100]
    assert sizes({}, ipc=10, classes=1000) == [100] * 10
    assert sizes({}, ipc=100) == [10] * 10
    assert sizes({}, ipc=2000) == [1] * 100
    assert sizes({"datasets": {"d": {"classes_per_block": 30}}}) == [30, 30, 30, 10]
    assert Experiment({}).blocks("digits", "resnet18", "wmdd", 10) == ["classes0-9"]


def minutes(size, ipc, content=None, side=64):
    """Of recover for a block of so many classes of `d`, by the estimate of the plan."""
    data = {"datasets": {"d": {"classes_per_block": size, "data": {"classes": 1000, "resolution": side}}}}
    cell = {"datasets": ["d"], "teachers": ["resnet18"], "methods": ["wmdd"], "ipc": [ipc]}
    made = Experiment(merged(data, {"matrix": [cell]}, content or {}))
    block = made.blocks("d", "resnet18", "wmdd", ipc)[0]
    job = work(Shapes(made, assume=True), "recover", Cell("d", "resnet18", "wmdd", ipc, block=block))
    return (estimate(job, made.device).seconds - rates.table()["start"]) / 60


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"jobs": {"minutes": 60}},
        {"jobs": {"device": "h200"}},
        {"engine": {"device": "cpu"}},
        {"engine": {"device": "cpu", "precision": "fp32"}},
        {"engine": "plain"},
        {"recover": {"iterations": 300}},
        {"teachers": {"resnet18": {"width": 16}}},
    ],
    ids=str,
)
@pytest.mark.parametrize("ipc", [1, 10, 100])
def test_a_block_is_the_largest_of_the_series_that_takes_the_minutes(content, ipc):
    known = {"datasets": {"d": {"data": {"resolution": 64}}}}
    size, target = sizes(merged(known, content), ipc=ipc, classes=1000)[0], content.get("jobs", {}).get("minutes", 15)
    assert size == coarse(size)
    larger = next(s for s in (2 * size, 5 * size // 2) if coarse(s) == s)
    assert minutes(size, ipc, content) <= target or size == 1
    assert minutes(larger, ipc, content) > target or size == 1000 or larger * ipc * 12 * 64**2 > PIXELS_PER_BLOCK


@given(st.floats(0, 1e6))
def test_sizes_are_coarse(value):
    found = coarse(value)
    assert found == 1 or found <= value * (1 + 1e-8)
    assert value < 2.5 * found or found == 1
    assert re.fullmatch("[125]0*", str(found))
    assert coarse(found) == found


def test_a_rate_that_is_measured_anew_seldom_cuts_blocks_anew(monkeypatch):
    known = {"datasets": {"d": {"data": {"resolution": 224}}}}
    before = [sizes(known, ipc=ipc, classes=1000) for ipc in (1, 10, 50, 100)]
    rate = rates.Device.rate
    monkeypatch.setattr(rates.Device, "rate", lambda *a: (0.95 * rate(*a)[0], rate(*a)[1]))
    assert [sizes(known, ipc=ipc, classes=1000) for ipc in (1, 10, 50, 100)] == before


@pytest.mark.parametrize(
    ("device", "expected"), [("a100", [1, 2, 10, 20]), ("h100", [1, 1, 5, 10]), ("h200", [1, 1, 5, 10])]
)
def test_the_jobs_of_imagenet(device, expected):
    found = Experiment({"jobs": {"device": device}})
    assert [len(found.blocks("imagenet-1k", "resnet18", "wmdd", ipc)) for ipc in (1, 10, 50, 100)] == expected


def test_the_images_of_a_block_fit_into_memory():
    known = {"datasets": {"d": {"data": {"resolution": 224}}}, "jobs": {"minutes": 1e9}}
    for ipc in (1, 10, 100, 1000):
        size = sizes(known, ipc=ipc, classes=100_000)[0]
        assert 12 * 224**2 * size * ipc <= PIXELS_PER_BLOCK < 2.5 * 12 * 224**2 * size * ipc
    assert sizes(known, ipc=100_000, classes=2) == [1, 1]


def test_blocks_of_a_librarys_network_have_a_thousand_images():
    known = {"datasets": {"d": {"data": {"resolution": 64}}}, "jobs": {"minutes": 1e9}}
    assert sizes(known, ipc=100) == [100]
    library = nested("teachers.resnet18", {"architecture": "timm:resnet18"})
    assert sizes(merged(known, library), ipc=100) == [10] * 10


def test_classes_per_block_wins_over_the_minutes():
    entry = {"classes_per_block": 30, "data": {"resolution": 64}}
    for jobs in {}, {"minutes": 1}, {"minutes": 1000}:
        assert sizes({"datasets": {"d": entry}, "jobs": jobs}) == [30, 30, 30, 10]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({}, "a100"),
        ({"engine": {"device": "cuda"}}, "a100"),
        ({"engine": {"device": "cpu"}}, "cpu-core"),
        ({"engine": {"device": "cpu", "precision": "fp32"}}, "cpu-core-fp32"),
        ({"engine": {"device": "cpu", "mode": "plain"}}, "cpu-core-fp32"),
        ({"jobs": {"device": "h100"}}, "h100"),
    ],
)
def test_the_device_that_jobs_are_sized_for(content, name):
    assert Experiment(content).device.name == name


def test_a_gpu_in_other_precisions():
    peaks = [Experiment({"engine": {"precision": p}}).device.peak.flops for p in ("auto", "bf16", "tf32", "fp32")]
    assert peaks[0] == peaks[1] == 2 * peaks[2] == 16 * peaks[3]
    assert Experiment({"engine": "plain"}).device.peak.flops == peaks[3]


def test_a_device_that_there_is_not_or_that_does_not_fit():
    assert mistake({"jobs": {"device": "h300"}}).startswith(
        "configuration: jobs.device: there is no such device; known: cpu-core, cpu-core-fp32, a100, h100, h200 (got 'h300')"
    )
    assert "jobs.device h100 is of kind cuda but engine.device is cpu; leave jobs.device out" in mistake(
        {"jobs": {"device": "h100"}, "engine": {"device": "cpu"}}
    )
    assert "jobs.device cpu-core is of kind cpu but engine.device is cuda" in mistake(
        {"jobs": {"device": "cpu-core"}, "engine": {"device": "cuda"}}
    )
    assert "unknown key jobs.minute; did you mean 'minutes'?" in mistake({"jobs": {"minute": 3}})
    assert "jobs.minutes: Input should be greater than 0" in mistake({"jobs": {"minutes": 0}})


def test_jobs_share_the_classes_of_a_features_pass_evenly():
    def blocks(jobs, classes=10):
        entry = {"data": {"source": "imagefolder", "root": "x", "classes": classes}, "features_jobs": jobs}
        return Experiment({"datasets": {"d": entry}}).features_blocks("d")

    assert Experiment({}).features_blocks("digits") == ["classes0-9"]
    assert blocks(1) == ["classes0-9"]
    assert blocks(3) == ["classes0-2", "classes3-5", "classes6-9"]
    assert blocks(99, classes=2) == ["classes0-0", "classes1-1"]


def test_gpus_are_of_a_teacher_and_no_setting_of_its_stage():
    def of(teachers):
        return Experiment({"teachers": teachers})

    assert of({}).gpus("resnet18") == of({"mine": {}}).gpus("mine") == 1
    assert of({"mine": {"gpus": 8}}).gpus("mine") == 8
    assert of({"resnet18": {"gpus": 4}}).gpus("resnet18") == 4  # a preset, to which the file adds
    for name in "resnet18", "mine":
        one, eight = (
            of({name: {"width": 8} | more}).resolve("teacher", dataset="digits", teacher=name)
            for more in ({}, {"gpus": 8})
        )
        assert flags(one) == flags(eight)
    assert re.search("teachers.mine.gpus: .*greater than or equal to 1", mistake({"teachers": {"mine": {"gpus": 0}}}))
    assert "unknown key teacher.gpus" in mistake({"teacher": {"gpus": 2}})


def test_the_blocks_of_a_decoupled_method_do_not_depend_on_its_batches():
    content = {"datasets": {"d": {"classes_per_block": 7}}, "recover": {"batch_size": 3}}
    assert sizes(content, ipc=1) == sizes(content, ipc=50) == [7] * 14 + [2]


@pytest.mark.parametrize("coupling", [{"statistics": "global"}, {"feature_loss": "norm"}])
def test_the_batch_cuts_the_blocks_of_a_coupled_method(coupling):
    across = nested("methods.mine.recover", coupling | {"batch_size": 40, "composition": "across"})
    within = nested("methods.mine.recover", coupling | {"batch_size": 40, "composition": "within"})
    per_block = {"datasets": {"d": {"classes_per_block": 7}}}
    assert sizes(merged(across, per_block), ipc=10) == [40, 40, 20]
    assert sizes(merged(within, per_block), ipc=10) == [4] * 25
    assert sizes(merged(within, {"datasets": {"d": {"classes_per_block": 11}}}), ipc=10) == [8] * 12 + [4]
    assert sizes(merged(within, {"datasets": {"d": {"classes_per_block": 1}}}), ipc=10) == [4] * 25


@given(
    classes=st.integers(1, 60),
    per_block=st.integers(1, 70),
    ipc=st.integers(1, 60),
    batch=st.integers(1, 120),
    statistics=st.sampled_from(["per-class", "global"]),
    composition=st.sampled_from(["within", "across"]),
)
@settings(deadline=None, max_examples=60)
def test_blocks_partition_the_classes(classes, per_block, ipc, batch, statistics, composition):
    recover = {"statistics": statistics, "composition": composition, "batch_size": batch}
    content = {"datasets": {"d": {"classes_per_block": per_block}}, "recover": recover}
    found = sizes(content, ipc=ipc, classes=classes)  # which asserts that they do
    alone = max(1, batch // ipc)  # classes of a batch
    whole = alone * max(1, per_block // alone)
    limit = per_block if statistics == "per-class" else batch if composition == "across" else whole
    assert set(found[:-1]) <= {limit}
    assert found[-1] <= limit


# Runs


def test_runs_are_the_product_and_each_stands_once():
    cell = {
        "datasets": ["digits", "cifar10"],
        "methods": ["wmdd", "random"],
        "ipc": [1, 10],
        "seeds": [0, 1],
        "runs": 3,
    }
    found = list(
        Experiment({"matrix": [cell, {"datasets": ["digits"], "methods": ["wmdd"], "ipc": [10, 50, 50]}]}).runs()
    )
    assert len(found) == len(set(found)) == 2 * 2 * 2 * 2 * 3 + 1
    assert found[-1] == Cell("digits", "resnet18", "wmdd", 50, 0, "resnet18", "paper", 0)


@given(st.data())
@settings(deadline=None, max_examples=30)
def test_runs_are_unique(data):
    few = st.lists(st.integers(0, 3), min_size=1, max_size=4)
    methods = st.lists(st.sampled_from(["wmdd", "mine", "mine-lr0.1", "random"]), min_size=1, max_size=4)
    cell = st.fixed_dictionaries(
        {"datasets": st.just(["digits"]), "methods": methods, "seeds": few, "runs": st.integers(1, 3)}
    )
    content = swept(recover={"lr": [0.1, 0.2]}) | {"matrix": data.draw(st.lists(cell, max_size=3))}
    found = list(Experiment(content).runs())
    assert len(found) == len(set(found))


# The presets


@pytest.mark.parametrize("dataset", sorted(presets().datasets))
@pytest.mark.parametrize("method", sorted(presets().methods))
def test_every_preset_runs_with_every_other(dataset, method):
    known = presets()
    whitened, all_protocols = re.compile(".*-whitened"), list(known.protocols)
    small = Experiment({}).resolve("data", dataset=dataset).side <= LARGEST_WHITENED
    protocols = [name for name in all_protocols if small or not whitened.fullmatch(name)]
    of = {
        "datasets": [dataset],
        "methods": [method],
        "teachers": list(known.teachers),
        "students": list(known.students),
    }
    if whitened.fullmatch(method) and not small:
        with pytest.raises(WmddError, match="whitening takes images of at most 64 px"):
            experiment(**of, protocols=protocols)
        return
    found = experiment(**of, protocols=protocols)
    runs = list(found.runs())
    assert len(runs) == len(known.teachers) * len(known.students) * len(protocols)
    assert small or len(protocols) < len(all_protocols)
    assert all(
        re.fullmatch(NAME, part) for r in runs for part in (r.dataset, r.teacher, r.method, r.student, r.protocol)
    )
    assert found.blocks(dataset, "resnet18", method, 10)


def test_the_five_rows_of_the_ablation():
    """methods.md, section 1: cross-entropy, per-class BatchNorm statistics, barycenter loss."""
    none = Experiment({})
    rows = {
        name: none.resolve("recover", dataset="imagenette", method=name)
        for name in ("wmdd", "wmdd-ce", "sre2l-pcbn", "barycenter-only", "sre2l")
    }
    toggles = {n: (r.cross_entropy > 0, r.statistics == "per-class", r.feature_weight > 0) for n, r in rows.items()}
    assert toggles == {
        "wmdd": (False, True, True),
        "wmdd-ce": (True, True, True),
        "sre2l-pcbn": (True, True, False),
        "barycenter-only": (False, False, True),
        "sre2l": (True, False, False),
    }
    assert {r.cross_entropy for r in rows.values()} | {r.feature_weight for r in rows.values()} == {0, 1}
    toggled = {"cross_entropy", "statistics", "feature_weight"}
    base = rows["wmdd"].model_dump(exclude=toggled)
    own = {"sre2l": {"regularisation": 0.01, "first_layer_weight": 10, "composition": "across"}}
    for name, row in rows.items():
        assert row.model_dump(exclude=toggled) == base | own.get(name, {}), name


def test_the_published_numbers():
    """methods.md, section 1: lambda, learning rate, iterations, batch; the student's recipe."""
    none = Experiment({})
    for dataset, weight, rate in (("imagenette", 10, 0.25), ("tiny-imagenet", 500, 0.1)):
        r = none.resolve("recover", dataset=dataset, method="wmdd")
        assert (r.regularisation, r.lr, r.iterations, r.batch_size, r.betas) == (weight, rate, 2000, 100, (0.5, 0.9))
    t = none.resolve("teacher", dataset="imagenette", teacher="resnet18")
    assert (t.epochs, t.optimizer, t.lr, t.batch_size, t.weight_decay) == (50, "sgd", 0.025, 32, 1e-4)
    s = none.resolve("student", dataset="imagenette", method="wmdd", protocol="paper", student="resnet18")
    assert (s.epochs, s.temperature, s.optimizer, s.lr, s.weight_decay, s.batch_size) == (
        300,
        20,
        "adamw",
        1e-3,
        0.01,
        100,
    )
    v = none.resolve("relabel", dataset="imagenette", method="wmdd", protocol="paper")
    assert (v.epochs, v.mix, v.crop_scale) == (300, "cutmix", (0.08, 1))


def test_the_published_code_is_solved_as_it_is():
    """With its own solver, and the uniform weights of its run script; nothing else is."""
    none = Experiment({})
    for name in none.names("methods"):
        solver = none.resolve("barycenter", method=name)
        assert (solver.solver == "released") == (name == "wmdd-released")
        assert (solver.weights == "free") == (name == "wmdd-free")
        assert solver.compare_restarts == 0


def test_a_solver_that_there_is_not_shows_before_anything_runs():
    message = r"^barycenter for digits, wmdd: the solver stream has free weights only"
    with pytest.raises(WmddError, match=message):
        experiment({"barycenter": {"solver": "stream"}}, methods=["wmdd"])
    experiment({"barycenter": {"solver": "stream", "weights": "free"}}, methods=["wmdd"])
    experiment({"barycenter": {"solver": "stream"}}, methods=["random", "sre2l"])  # which have no barycenter


# The files


def test_an_editor_finds_no_fault_in_our_files():
    jsonschema.Draft202012Validator.check_schema(schema())
    editor = jsonschema.Draft202012Validator(schema())
    for path in [*FILES, ROOT / "wmdd/workflow/presets.yaml"]:
        assert not [error.message for error in editor.iter_errors(yaml.safe_load(path.read_text()))], path


@pytest.mark.parametrize("stage", SETTINGS)
def test_what_an_editor_underlines_is_refused_in_one_line(stage):
    """Types of YAML values above all: `true` is no number, "1" and 1e-3 are text, and a list is not empty."""
    editor = jsonschema.Draft202012Validator(schema())
    values = True, "1", "1e-3", "yes", "", 1, -1, 0.5, [], [True], ["1"], [0.5, True], [[]], {}, {"x": 1}
    refused = 0
    for field, value in itertools.product(SETTINGS[stage].model_fields, values):
        section = {stage: {field: value}}
        for content, where in (
            (section, f"{stage}.{field}"),
            ({"datasets": {"mine": section}}, f"datasets.mine.{stage}.{field}"),
            ({"methods": {"mine": section}}, f"methods.mine.{stage}"),
            ({"protocols": {"mine": section}}, f"protocols.mine.{stage}"),
        ):
            if not editor.is_valid(content):
                refused += 1
                assert re.match(rf"configuration: (unknown key )?{where}", mistake(content)), content
    assert refused > 10


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("experiment: 2026-01-01", "experiment: YAML reads '2026-01-01' neither as text nor as a number; put it in quotes"),
        (r'decode: {prompt: "\ud800"}', r"decode.prompt: YAML reads '\ud800' neither as text"),
        ("methods: {on: {base: wmdd}}", "methods.True: YAML does not read this key as text; put it in quotes"),
        ("relabel: {epochs: true}", "relabel.epochs: Input should be a valid integer (got True)"),
        ("recover: {lr: .inf}", "recover.lr: Input should be a finite number (got inf)"),
        ("distances: 'yes'", "distances: Input should be a valid boolean (got 'yes')"),
        ("jobs: {minutes: 1e1}", "jobs.minutes: Input should be a number, but YAML reads this as text; write 0.001"),
        ("matrix: [{datasets: [digits], methods: [wmdd], ipc: ['1']}]", "matrix.0.ipc.0: Input should be a number, but YAML"),
        ('datasets: {"a\\nb": {}}', r"datasets.a\nb: String should match pattern"),
        (f"methods: {{{'a' * 201}: {{}}}}", f"methods.{'a' * 201}: String should have at most 200 characters"),
    ],
)  # fmt: skip
def test_what_yaml_makes_of_a_value(text, says):
    assert mistake(yaml.safe_load(text)).startswith(f"configuration: {says}")


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=0), st.integers(1, 10**6))
def test_a_number_is_kept_as_it_is_written(value, count):
    content = parse({"recover": {"lr": value or 1, "regularisation": value, "iterations": float(count)}}).recover
    assert (content.lr, content.regularisation, content.iterations) == (value or 1, value, count)
    assert type(content.lr) is float
    assert type(content.iterations) is int


def test_every_setting_of_the_schema_says_what_it_means():
    silent = {
        f"{kind.__name__}.{name}"
        for kind in SETTINGS.values()
        for name, field in kind.model_fields.items()
        if not field.description
    }
    plain = {"optimizer", "weight_decay", "label_smoothing", "mix"}  # whose names say all
    assert {name for name in silent if name.split(".")[1] not in plain} == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_is_an_experiment_that_runs_something(path):
    found = Experiment.read(path)
    assert list(found.runs())
    content = yaml.safe_load(yaml.safe_dump(resolved(found)))
    assert content["runs"] == len(list(found.runs()))


# What `python -m wmdd config` prints


def test_resolved_settings_are_complete_and_named_by_where_they_apply():
    methods = ["wmdd", "random", "ddoq", "dm", "mtt"]
    found = resolved(experiment(methods=methods, protocols=["paper"]))
    assert set(found["recover"]) == {"digits wmdd"}
    assert set(found["quantize"]) == {"digits ddoq"}
    assert set(found["decode"]) == {"digits latent-diffusion ddoq"}
    assert set(found["generator"]) == {"digits latent-diffusion", "digits vae"}
    assert set(found["autoencoder"]) == set(found["encode"]) == {"digits vae"}
    assert set(found["diffusion"]) == {"digits latent-diffusion"}
    assert set(found["select"]) == {"digits random"}
    assert set(found["barycenter"]) == {"digits wmdd", "digits random"}
    assert set(found["expert"]) == {"digits convnet3"}
    assert set(found["match"]) == {"digits dm", "digits mtt"}
    assert set(found["student"]) == {f"digits {method} paper resnet18" for method in methods}
    for stage, kind in SETTINGS.items():
        assert all(set(entry) == set(kind.model_fields) for entry in found[stage].values())


def test_resolved_settings_of_one_stage():
    found = resolved(experiment(), "teacher")
    assert set(found) & set(SETTINGS) == {"teacher"}
    with pytest.raises(WmddError, match="unknown stage 'techer'"):
        resolved(experiment(), "techer")


# the engine and what a job trains


def test_the_engine_may_be_a_word():
    cell = {"datasets": ["digits"], "methods": ["wmdd"]}
    for content in ({"engine": "plain"}, {"engine": {"mode": "plain"}}):
        assert Experiment({"matrix": [cell], **content}).file.engine == EngineSettings(mode="plain")
    for wrong in ({"engine": "fast"}, {"engine": {"mode": "fast"}}):
        with pytest.raises(WmddError, match=r"engine.*'auto', 'plain', 'eager' or 'compile'"):
            Experiment({"matrix": [cell], **wrong})


def test_runs_are_trained_so_many_a_job():
    cell = {"datasets": ["digits"], "methods": ["wmdd"]}
    content = {"matrix": [cell | {"runs": 4}, cell | {"runs": 2, "ipc": [3]}]}
    assert Experiment(content).runs_of_jobs() == [[0], [1], [2], [3]]
    assert Experiment(content | {"runs_per_job": 2}).runs_of_jobs() == [[0, 1], [2, 3]]
    with pytest.raises(WmddError, match="matrix: runs 2 is not a multiple of runs_per_job 4; change one of them"):
        Experiment(content | {"runs_per_job": 4})


# the family latent


def latent(content=None, **cell):
    cell = {"datasets": ["cifar10"], "methods": ["mine"], **cell}
    return Experiment({"matrix": [cell], **(content or {})})


def test_a_method_takes_generator_and_family_from_its_base():
    found = latent({"methods": {"mine": {"base": "ddoq"}, "other": {"base": "mine", "generator": "vae"}}})
    assert [(found.family(m), found.generator(m)) for m in ("mine", "other")] == [
        ("latent", "latent-diffusion"),
        ("latent", "vae"),
    ]
    assert found.encoder("latent-diffusion", "cifar10") == found.encoder("vae", "cifar10") == "vae"
    assert found.blocks("cifar10", "resnet18", "mine", 500) == [f"classes{a}-{a + 1}" for a in range(0, 10, 2)]


def test_settings_of_a_generator_stand_between_those_of_dataset_and_method():
    content = {
        "decode": {"steps": 10, "strength": 0.1, "guidance": 5},
        "datasets": {"cifar10": {"decode": {"steps": 11, "strength": 0.2}}},
        "generators": {"latent-diffusion": {"decode": {"strength": 0.3}}, "small": {"base": "latent-diffusion"}},
        "methods": {"mine": {"base": "ddoq", "generator": "small", "decode": {"guidance": 7}}},
    }
    found = latent(content).resolve("decode", dataset="cifar10", generator="small", method="mine")
    assert (found.steps, found.strength, found.guidance) == (11, 0.3, 7)
    other = latent(content).resolve("decode", dataset="cifar10", generator="latent-diffusion", method="ddoq")
    assert other.guidance == 5, "what a preset says is weaker than the file"


def test_a_sweep_of_decoders_is_one_of_methods():
    found = latent(
        {"methods": {"mine": {"base": "ddoq", "decode": {"strength": [0.2, 0.8]}, "student": {"weights": "mass"}}}}
    )
    assert sorted({r.method for r in found.runs()}) == ["mine-strength0.2", "mine-strength0.8"]
    of = {"dataset": "cifar10", "method": "mine-strength0.8"}
    assert found.resolve("decode", generator="latent-diffusion", **of).strength == 0.8
    assert found.resolve("student", protocol="paper", student="resnet18", **of).weights == "mass"


def test_a_protocol_has_the_last_word_on_weights():
    content = {"protocols": {"equal": {"base": "paper", "student": {"weights": "uniform"}}}}
    found = latent(content, methods=["ddoq"], protocols=["paper", "equal"])
    of = {"dataset": "cifar10", "method": "ddoq", "student": "resnet18"}
    assert [found.resolve("student", protocol=p, **of).weights for p in ("paper", "equal")] == [
        "variance-reduced",
        "uniform",
    ]
    assert found.labelled("cifar10", "ddoq", "equal") == "paper"


def test_what_methods_start_from_is_made_too():
    content = {"methods": {"mine": {"base": "wmdd", "recover": {"init": "method:ddoq-recover"}}}}
    assert latent(content).methods() == ["ddoq", "ddoq-recover", "mine"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"methods": {"mine": {"family": "latent"}}},
            "method mine has no generator; set it to one of dit, latent-diffusion",
        ),
        (
            {"methods": {"mine": {"base": "ddoq", "generator": "vea"}}},
            "unknown name 'vea' in generators; did you mean 'vae'",
        ),
        (
            {"methods": {"mine": {"base": "ddoq", "generator": "g"}}, "generators": {"g": {"kind": "ldm"}}},
            "method mine on cifar10: generator g: kind ldm needs model",
        ),
        (
            {
                "methods": {"mine": {"base": "ddoq", "generator": "g"}},
                "generators": {"g": {"kind": "ldm", "model": "./x"}},
            },
            "method mine on cifar10: generator g: model: there is no folder ./x",
        ),
        (
            {
                "methods": {"mine": {"base": "ddoq", "generator": "g"}},
                "generators": {"g": {"kind": "latent-diffusion"}},
            },
            "generator g: kind latent-diffusion needs encoder",
        ),
        (
            {"methods": {"mine": {"base": "ddoq"}}, "generators": {"latent-diffusion": {"encoder": "dit"}}},
            "generator latent-diffusion: its encoder dit is of kind ldm; name one of kind vae",
        ),
        (
            {"methods": {"mine": {"base": "ddoq", "quantize": {"solver": "stream", "weights": "uniform"}}}},
            "method mine on cifar10: quantize: the solver stream has free weights only",
        ),
        (
            {"methods": {"mine": {"base": "wmdd", "recover": {"init": "method:mine"}}}},
            "method mine on cifar10: recover.init goes round: mine -> mine",
        ),
        (
            {
                "methods": {
                    "mine": {"base": "wmdd", "recover": {"init": "method:other"}},
                    "other": {"base": "wmdd", "recover": {"init": "method:mine"}},
                }
            },
            "recover.init goes round: mine -> other -> mine",
        ),
        ({"methods": {"mine": {"base": "wmdd", "recover": {"init": "method:no"}}}}, "unknown name 'no' in methods"),
        (
            {"methods": {"mine": {"base": "wmdd", "recover": {"init": "zeros"}}}},
            "mine.recover.init: String should match",
        ),
        ({"methods": {"mine": {"base": "ddoq", "student": {"lr": 1}}}}, "unknown key methods.mine.student.lr"),
        ({"methods": {"mine": {"base": "ddoq"}}, "teachers": {"latent": {}}}, "teachers.latent: the name is taken"),
        (
            {"methods": {"mine": {"base": "ddoq"}}, "autoencoder": {"factor": 3}},
            "autoencoder.factor: Input should be a power of two",
        ),
    ],
)
def test_a_mistake_in_the_family_latent_is_named(content, said):
    with pytest.raises(WmddError, match=re.escape(said)):
        latent(content)


# the family match


def matched(content=None, **cell):
    return Experiment({"matrix": [{"datasets": ["cifar10"], "methods": ["mine"], **cell}], **(content or {})})


def test_a_method_takes_its_experts_from_its_base():
    content = {"methods": {"mine": {"base": "mtt"}, "other": {"base": "mine", "expert": "convnet4"}}}
    found = matched(content, methods=["mine", "other", "dm"])
    assert [(found.family(m), found.expert(m)) for m in ("mine", "other")] == [
        ("match", "convnet3"),
        ("match", "convnet4"),
    ]
    assert [found.trajectories("cifar10", m) for m in ("mine", "other", "dm", "datadam")] == [100, 100, 0, 0]


def test_untrained_networks_are_matched_in_blocks_and_trajectories_in_one():
    content = {"datasets": {"cifar10": {"classes_per_block": 4}}, "methods": {"mine": {"base": "mtt"}}}
    found = matched(content)
    for method in "dm", "datadam":
        assert found.blocks("cifar10", "resnet18", method, 10) == ["classes0-3", "classes4-7", "classes8-9"]
        assert found.blocks("cifar100", "resnet18", method, 50) == [f"classes{a}-{a + 19}" for a in range(0, 100, 20)]
    for method, dataset, last in (
        ("mine", "cifar10", 9),
        ("mtt", "cifar100", 99),
        ("mtt-tiny-ipc10", "tiny-imagenet", 199),
    ):
        assert found.blocks(dataset, "resnet18", method, 50) == [f"classes0-{last}"]


def test_a_dataset_says_how_deep_the_networks_are():
    """Three blocks at 32 px and four at 64, as DM, DataDAM and MTT have."""
    none = Experiment({})
    for method in "dm", "datadam":
        for dataset, depth in (("cifar10", "convnet3"), ("tiny-imagenet", "convnet4")):
            assert none.resolve("match", dataset=dataset, method=method).architecture == depth
    assert none.expert("mtt-tiny-ipc10") == "convnet4"


def test_a_sweep_of_matching():
    content = {"methods": {"mine": {"base": "dm", "match": {"objective": ["dm", "datadam"], "lr": [1, 10]}}}}
    found = {r.method for r in matched(content).runs()}
    assert found == {f"mine-objective{o}-lr{rate}" for o in ("dm", "datadam") for rate in (1, 10)}


def test_settings_of_other_objectives_rerun_nothing():
    """They are not among the flags, so that a job's command stays what it is."""
    before, after = (
        matched({"match": match, "methods": {"mine": {"base": "mtt"}}}).resolve(
            "match", dataset="cifar10", method="mine"
        )
        for match in ({}, {"real_batch": 5, "architecture": "convnet4", "task_balance": 3})
    )
    assert flags(before) == flags(after)


def test_the_published_numbers_of_matching():
    """docs/match.md: learning rates, batches, epochs and steps of each dataset and number of images per class."""
    none = Experiment({})
    of = {
        name: none.resolve("match", dataset="cifar10", method=name) for name in none.names("methods") if "mtt" in name
    }
    for name in "dm", "datadam":
        r = none.resolve("match", dataset="cifar10", method=name)
        assert (r.iterations, r.momentum, r.lr, r.real_batch) == (
            20_000,
            0.5,
            *((1, 256) if name == "dm" else (100, 64)),
        )
        assert (r.architecture, r.width, r.norm, r.pooling, r.views) == ("convnet3", 128, "instance", "avg", "dsa")
    got = {
        name: (r.student_steps, r.expert_epochs, r.start_epochs, r.student_batch, r.lr, r.rate_lr, r.student_lr)
        for name, r in of.items()
        if name != "mtt"
    }
    assert got == {
        "mtt-cifar10-ipc1": (50, 2, 5, 0, 1000, 1e-7, 0.01),
        "mtt-cifar10-ipc10": (30, 2, 15, 0, 1000, 1e-5, 0.01),
        "mtt-cifar10-ipc50": (30, 2, 40, 0, 1000, 1e-5, 0.001),
        "mtt-cifar10-ipc1-whitened": (50, 2, 2, 0, 100, 1e-7, 0.01),
        "mtt-cifar10-ipc10-whitened": (30, 2, 20, 0, 100, 1e-5, 0.001),
        "mtt-tiny-ipc1": (10, 2, 10, 0, 10_000, 1e-4, 0.01),
        "mtt-tiny-ipc10": (20, 2, 40, 200, 10_000, 1e-4, 0.01),
    }
    assert all((r.iterations, r.trajectories) == (5000, 100) for r in of.values())
    whitened = {name for name in of if none.resolve("expert", dataset="cifar10", expert=none.expert(name)).whiten}
    assert whitened == {name for name in of if name.endswith("whitened")}
    for protocol in "dsa", "dsa-whitened":
        s = none.resolve("student", dataset="cifar10", method="mtt", protocol=protocol, student="convnet3")
        assert (s.epochs, s.batch_size, s.optimizer, s.lr, s.momentum, s.weight_decay) == (
            1000,
            256,
            "sgd",
            0.01,
            0.9,
            5e-4,
        )
        assert (s.schedule, s.labels, s.learned_lr, s.whiten) == ("step", "hard", True, protocol == "dsa-whitened")
        assert none.resolve("relabel", dataset="cifar10", method="mtt", protocol=protocol).views == "dsa"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"methods": {"mine": {"family": "match", "match": {"objective": "mtt"}}}},
            "method mine has no experts; set expert to one of convnet3, convnet3-whitened, convnet4",
        ),
        (
            {"methods": {"mine": {"base": "mtt", "expert": "convent3"}}},
            "unknown name 'convent3' in experts; did you mean 'convnet3'",
        ),
        (
            {"methods": {"mine": {"base": "mtt", "match": {"start_epochs": 40, "expert_epochs": 12}}}},
            "method mine on cifar10: match begins at up to 39 epochs of an expert and goes on for 12, but the experts convnet3 "
            "have 50; raise their epochs to 51",
        ),
        (
            {"methods": {"mine": {"base": "mtt"}}, "experts": {"convnet3": {"norm": "batch"}}},
            "method mine on cifar10: experts convnet3: BatchNorm ties the images of a batch to each other; set norm: instance",
        ),
        (
            {"methods": {"mine": {"base": "mtt"}}, "expert": {"architecture": "resnet18"}},
            "method mine on cifar10: experts convnet3: the network must be a ConvNet, not resnet18",
        ),
        (
            {"methods": {"mine": {"base": "dm", "match": {"norm": "batch"}}}},
            "method mine on cifar10: match: BatchNorm ties",
        ),
        (
            {"methods": {"mine": {"base": "datadam", "match": {"architecture": "vit-tiny"}}}},
            "method mine on cifar10: match: the network must be a ConvNet, not vit-tiny; set architecture: convnet3",
        ),
        (
            {
                "methods": {
                    "mine": {"base": "wmdd", "recover": {"init": "method:other"}},
                    "other": {"base": "mtt", "match": {"expert_epochs": 99}},
                }
            },
            "method other on cifar10: match begins at up to 19 epochs",
        ),
        (
            {"methods": {"mine": {"base": "mtt", "expert": "a"}}, "experts": {"a": {"base": "b"}, "b": {"base": "a"}}},
            "experts: a -> b -> a goes round in a circle",
        ),
        (
            {"methods": {"mine": {"base": "mtt", "expert": "convnet3-whitened"}}, "data": {"resolution": 65}},
            "experts convnet3-whitened: whitening takes images of at most 64 px, not of 65 px; set whiten: false",
        ),
        (
            {"methods": {"mine": {"base": "dm"}}, "student": {"whiten": True}, "data": {"resolution": 65}},
            "on cifar10: whitening takes images of at most 64 px, not of 65 px; set whiten: false",
        ),
        ({"methods": {"mine": {"base": "mtt"}}, "teachers": {"expert": {}}}, "teachers.expert: the name is taken"),
        ({"methods": {"mine": {"base": "mtt", "expert": ["convnet3"]}}}, "methods.mine.expert: "),
    ],
)
def test_a_mistake_in_the_family_match_is_named(content, said):
    with pytest.raises(WmddError, match=re.escape(said)) as caught:
        matched(content)
    assert "\n" not in str(caught.value)


def test_experts_of_just_enough_epochs_will_do():
    match = {"start_epochs": 40, "expert_epochs": 11}
    assert matched({"methods": {"mine": {"base": "mtt", "match": match}}}).expert("mine") == "convnet3"
