"""Sweeps: which methods a method with lists of values stands for, and what they are called."""

import itertools
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmdd.base.errors import WmddError
from wmdd.settings.base import NAME
from wmdd.workflow.experiment import Experiment

from .experiments import experiment, merged, mistake


def swept(base="wmdd", **sections):
    return {"methods": {"mine": {"base": base, **sections}}}


LATENT = {"decode": {"strength": [0.2, 0.8]}, "student": {"weights": "mass"}}
MEMBERS = [  # the sections of `mine` based on a method, and for each member its name and values by stage and key
    (
        "wmdd",
        {"recover": {"regularisation": [0.1, 1, 1e-6], "lr": 0.5}},
        {
            f"mine-regularisation{label}": {"recover.regularisation": value, "recover.lr": 0.5, "recover.jitter": 2}
            for label, value in (("0.1", 0.1), ("1", 1), ("1e-06", 1e-6))
        },
    ),
    (
        "wmdd",
        {"barycenter": {"weights": ["free", "uniform"]}, "recover": {"lr": [0.1, 0.25]}},
        {
            f"mine-weights{weights}-lr{lr}": {"barycenter.weights": weights, "recover.lr": lr}
            for weights, lr in itertools.product(("free", "uniform"), (0.1, 0.25))
        },
    ),
    ("wmdd", {"recover": {"crop_scale": [0.5, 1]}}, {"mine": {"recover.crop_scale": (0.5, 1)}}),  # a pair is a value
    (
        "wmdd",
        {"recover": {"crop_scale": [[0.5, 1], [0.08, 0.9]]}},
        {
            "mine-crop_scale0.5-1": {"recover.crop_scale": (0.5, 1)},
            "mine-crop_scale0.08-0.9": {"recover.crop_scale": (0.08, 0.9)},
        },
    ),
    ("wmdd", {"recover": {"flip": [True, False]}}, {f"mine-flip{v}": {"recover.flip": v} for v in (True, False)}),
    ("wmdd", {"recover": {"lr": [0.1, 0.1]}}, {"mine-lr0.1": {"recover.lr": 0.1}}),  # named twice, run once
    (
        "random",
        {"select": {"strategy": ["random", "kmeans-medoid"]}},
        {f"mine-strategy{v}": {"select.strategy": v} for v in ("random", "kmeans-medoid")},
    ),
    (
        "dm",
        {"match": {"objective": ["dm", "datadam"], "lr": [1, 10]}},
        {
            f"mine-objective{objective}-lr{lr}": {"match.objective": objective, "match.lr": lr}
            for objective, lr in itertools.product(("dm", "datadam"), (1, 10))
        },
    ),
    ("ddoq", LATENT, {f"mine-strength{v}": {"decode.strength": v, "student.weights": "mass"} for v in (0.2, 0.8)}),
    (
        "wmdd",
        {"recover": {"init": ["noise", "method:random"]}},  # what a name can't hold becomes a hyphen
        {"mine-initnoise": {"recover.init": "noise"}, "mine-initmethod-random": {"recover.init": "method:random"}},
    ),
    (
        "ddoq",
        {"decode": {"prompt": ["a photo of {name}", "{name}", "café!"]}},
        {
            "mine-prompta-photo-of-name": {"decode.prompt": "a photo of {name}"},
            "mine-promptname": {"decode.prompt": "{name}"},
            "mine-promptcafe": {"decode.prompt": "café!"},
        },
    ),
]


@pytest.mark.parametrize(("base", "sections", "members"), MEMBERS)
def test_a_sweep_is_a_method_for_each_combination(base, sections, members):
    ours = experiment(swept(base, **sections), methods=["mine"])
    assert [run.method for run in ours.runs()] == list(members)
    for name, values in members.items():
        assert ours.family(name) == ours.family(base)
        for key, value in values.items():
            stage, setting = key.split(".")
            names = {"generator": "latent-diffusion"} if stage == "decode" else {}
            names |= {"protocol": "paper", "student": "resnet18"} if stage == "student" else {}
            assert getattr(ours.resolve(stage, dataset="digits", method=name, **names), setting) == value


PROMPTS = (
    "a photo of {name}", "{name}", "name", "..", "a/b", "-0.5", "", "null", "é", "e", "写真", "x" * 190, "1.0", "1",
)  # fmt: skip
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=250)  # others are no text


@given(
    st.lists(st.sampled_from(PROMPTS) | TEXTS, min_size=1, max_size=3),
    st.lists(st.floats(0, 1e30), min_size=1, max_size=3),
)
@settings(deadline=None, max_examples=200)
def test_every_member_of_a_sweep_has_a_valid_name_or_the_file_is_refused(prompts, scales):
    pairs = list(itertools.product(dict.fromkeys(scales), dict.fromkeys(prompts)))
    content = swept("ddoq", decode={"prompt": prompts, "guidance": scales})
    names, refusal = [], ""
    try:
        names = Experiment(content).sweeps["mine"]
    except WmddError as error:
        refusal = str(error)
    if refusal:
        assert re.fullmatch("methods.mine: its sweep makes .*; write a method for each value instead", refusal)
        assert max(map(len, prompts)) > 100 or len({plain_name(p) for p in prompts}) < len(set(prompts))
        return
    assert len(set(names)) == len(pairs)
    assert all(re.fullmatch(NAME, name) for name in names)
    content["methods"] |= {f"after{n}": {"base": name} for n, name in enumerate(names)}
    ours = Experiment(content)
    for n, (name, (scale, prompt)) in enumerate(zip(names, pairs, strict=True)):
        if re.fullmatch(r"[\w.+-]*", prompt, re.ASCII):  # results on disk have these names
            assert name == f"mine-guidance{str(scale).removesuffix('.0')}-prompt{prompt.removesuffix('.0')}"
        decode = ours.resolve("decode", dataset="digits", method=f"after{n}", generator="vae")
        assert (decode.prompt, decode.guidance) == (prompt, scale)


def plain_name(prompt):
    return re.sub(r"[^\w.+]|_", "", unicodedata.normalize("NFKD", prompt), flags=re.ASCII).removesuffix(".0")


def test_the_matrix_takes_a_sweep_or_one_of_its_members():
    content = swept(recover={"lr": [0.1, 0.2]})
    for methods in ["mine"], ["mine-lr0.2"], ["mine", "mine-lr0.2", "wmdd"]:
        members = ["mine-lr0.1", "mine-lr0.2"] if "mine" in methods else []
        runs = [run.method for run in experiment(content, methods=methods).runs()]
        assert runs == list(dict.fromkeys([*members, *(name for name in methods if name != "mine")]))


def test_a_sweep_of_a_preset_starts_from_the_preset():
    ours = experiment({"methods": {"sre2l": {"recover": {"lr": [0.1, 0.2]}}}}, methods=["sre2l"])
    assert [run.method for run in ours.runs()] == ["sre2l-lr0.1", "sre2l-lr0.2"]
    chosen = ours.resolve("recover", dataset="digits", method="sre2l-lr0.2")
    assert (chosen.lr, chosen.statistics, ours.family("sre2l-lr0.2")) == (0.2, "global", "recover")


def test_a_member_may_be_a_base_and_the_sweep_not():
    content = swept(recover={"lr": [0.1, 0.2]})
    assert experiment(merged(content, {"methods": {"other": {"base": "mine-lr0.2"}}}), methods=["other"])
    assert "methods.other: its base mine is a sweep; name one of its members: mine-lr0.1, mine-lr0.2" in mistake(
        merged(content, {"methods": {"other": {"base": "mine"}}})
    )


def test_a_sweep_that_makes_a_name_in_use_is_refused():
    methods = {**swept(recover={"lr": [0.1]})["methods"], "mine-lr0.1": {"base": "sre2l"}}
    for order in methods, dict(reversed(methods.items())):
        assert "methods.mine: its sweep makes mine-lr0.1" in mistake({"methods": order})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (swept("ddoq", decode={"prompt": ["{name}", "name"]}),
         "its sweep makes the name mine-promptname twice; write a method for each value instead"),
        (swept("ddoq", decode={"prompt": ["x" * 190]}),
         "its sweep makes a name of 201 characters, more than 200: mine-promptxxx"),
        (swept(recover={"lr": []}), "methods.mine.recover.lr: .*at least 1 item"),
        (swept(recover={"lr": [0.1, 0]}), "methods.mine.recover.lr.1: Input should be greater than 0"),
        (swept(recover={"lr": [0.1, [0.2]]}), "methods.mine.recover.lr.1: Input should be a valid number"),
    ],
)  # fmt: skip
def test_a_wrong_sweep(content, says):
    assert re.search(says, mistake(content))
