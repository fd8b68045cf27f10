"""Settings become command-line flags, and the commands read the same settings back."""

import itertools
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
from cyclopts.exceptions import CycloptsError
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError, WithJsonSchema

from wmdd.base.errors import WmddError
from wmdd.cli.commands import app
from wmdd.cost.blocks import Blocks
from wmdd.settings.barycenter import BarycenterSettings
from wmdd.settings.base import Settings, flags
from wmdd.settings.data import DataSettings
from wmdd.settings.engine import EngineSettings
from wmdd.settings.latent import AutoencoderSettings, GeneratorSettings
from wmdd.settings.match import ExpertSettings, MatchSettings
from wmdd.settings.recover import RecoverSettings
from wmdd.settings.select import SelectSettings
from wmdd.settings.student import AugmentationSettings, LabelSettings, RelabelSettings, StudentSettings
from wmdd.settings.teacher import AdoptedSettings, TeacherSettings
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.inputs import Inputs
from wmdd.workflow.layout import Cell
from wmdd.workflow.stages import SETTINGS

ENGINE = {"engine": EngineSettings}
GENERATOR = {"generator": GeneratorSettings, **ENGINE}
COMMANDS = {  # what the command of each stage needs beside its settings, and by which parameters it takes further settings
    "data": ("--name x --output o", {}),
    "teacher": ("--data d --output o --seed 0", ENGINE),
    "features": ("--data d --teacher t --output o --statistics s", ENGINE),
    "barycenter": ("--features f --output o --block classes0-1 --k 1 --seed 0", {}),
    "recover": ("--teacher t --class-statistics s --output o --block classes0-1 --ipc 1 --seed 0", ENGINE),
    "select": ("--data d --output o --ipc 1 --seed 0", {"solver": BarycenterSettings, **ENGINE}),
    "relabel": ("--images i --teacher t --output o --seed 0", ENGINE),
    "autoencoder": ("--data d --output o --seed 0", ENGINE),
    "diffusion": ("--latents l --autoencoder a --data d --output o --seed 0", ENGINE),
    "encode": ("--data d --output o --block classes0-1", GENERATOR),
    "quantize": ("--latents l --output o --block classes0-1 --k 1 --seed 0", {}),
    "decode": ("--atoms a --output o --seed 0", GENERATOR),
    "decay": ("--latents l --output o", {}),
    "expert": ("--data d --output o --seed 0", ENGINE),
    "match": ("--data d --output o --block classes0-1 --ipc 1 --seed 0", ENGINE),
    "images": ("--data d --output o --ipc 1 --seed 0", {}),
    "student": ("--images i --data d --output o --seed 0 --run 0", {"augmentation": LabelSettings, **ENGINE}),
}
KINDS = [*SETTINGS.values(), EngineSettings, AugmentationSettings, LabelSettings]


def kinds_of(stage):
    return {"settings": SETTINGS[stage]} | COMMANDS[stage][1]


def parsed(stage, line):
    tokens = [stage, *shlex.split(COMMANDS[stage][0]), *shlex.split(line)]
    _, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    return bound.arguments


# The text of the flags


@given(st.permutations(list(RecoverSettings().model_dump().items())))
def test_equal_settings_are_equal_text_in_any_order_and_with_defaults_written_out(items):
    assert flags(RecoverSettings(**dict(items))) == flags(RecoverSettings())
    parts = StudentSettings(), AugmentationSettings(mix="none"), EngineSettings(device="cpu")
    assert {flags(*order) for order in itertools.permutations(parts)} == {flags(*parts)}


def test_booleans_tuples_numbers_and_what_is_not_set():
    class Some(Settings):
        yes: bool = True
        no: bool = False
        pair: tuple[float, float] = (0.5, 1)
        a_small_one: float = 1e-6
        whole: int = 3
        nothing: float | None = None

    assert flags(Some()) == "--a-small-one 1e-06 --no-no --pair 0.5 1.0 --whole 3 --yes"


def test_text_is_quoted_for_the_shell_and_comes_back():
    for root in "", "a b", "it's", 'say "x"', "$HOME", "a;rm -rf b", "*", "[1]", "{}", "ü\\":
        settings = DataSettings(root=root)
        assert parsed("data", flags(settings))["settings"] == settings


# The round trip through the commands

OTHERS = {  # settings that not every value of their type fits
    (RecoverSettings, "init"): "method:other",
    (AutoencoderSettings, "factor"): 8,
    (SelectSettings, "strategy"): "patches",
    (TeacherSettings, "weights"): "",  # with which there would be no training to set
    (MatchSettings, "init"): "method:other",
    (MatchSettings, "objective"): "datadam",  # which looks at all settings but those of MTT
    (RelabelSettings, "teachers"): ("a", "b.c"),
    (LabelSettings, "teachers"): ("a", "b.c"),
    (StudentSettings, "student_temperature"): 3.5,
    (StudentSettings, "labels"): "soft",  # hard ones, and other losses, have no temperatures
    (StudentSettings, "loss"): "kl",
}
OF_UNTRAINED = {"real_batch", "pool", "architecture", "width", "stem", "norm", "pooling"}
OF_PATCHES, OF_MARGINS = {"candidates", "crops", "crop_scale"}, {"cell_images", "margin"}
OF_DATADAM = {"attention_power", "task_balance"}
OF_MTT = {
    "trajectories", "expert_epochs", "start_epochs", "student_steps", "student_batch", "student_lr", "rate_lr", "labels",
    "labels_lr",
}  # fmt: skip
DEFAULT = {
    TeacherSettings: {"weights"}, MatchSettings: OF_MTT, StudentSettings: {"labels", "loss", "hard_weight", "sinkhorn_weight"},
    SelectSettings: {"cell_images", "margin", "codec", "quality"},
}  # fmt: skip


def other_value(field, default):
    """A valid value other than the default, and not the default of any bound either."""
    options = getattr(field.annotation, "__args__", ())
    for schema in (part.json_schema for part in field.metadata if isinstance(part, WithJsonSchema)):
        options = schema["enum"]
    if default is None:
        return (0.25, 0.5, 0.75)
    if isinstance(default, bool):
        return not default
    if isinstance(default, tuple):
        return (0.25, 0.75)
    if isinstance(default, int):
        return default + 7
    if isinstance(default, float):
        bounds = {type(m).__name__: m for m in field.metadata}
        return default / 3 + 0.123456789 if "Le" in bounds else default + 1.23456789e-7
    return next(o for o in options if o != default) if options else default + "1"


def others(kind):
    """Other values than the defaults."""
    fields = kind.model_fields.items()
    return {key: OTHERS.get((kind, key), other_value(field, field.default)) for key, field in fields}


def at_default(settings):
    return {key for key in type(settings).model_fields if getattr(settings, key) == getattr(type(settings)(), key)}


@pytest.mark.parametrize("stage", sorted(SETTINGS.keys() - {"generator"}))  # which encode and decode share
def test_settings_come_back_from_the_flags_of_their_command(stage):
    default = {name: kind() for name, kind in kinds_of(stage).items()}
    given = {name: kind(**others(kind)) for name, kind in kinds_of(stage).items()}
    for part in given.values():  # nothing else is left at its default, or the test would prove nothing
        assert at_default(part) == DEFAULT.get(type(part), set())
    for parts in default, given:
        found = parsed(stage, flags(*parts.values()))
        assert {name: found[name] for name in parts} == parts
    assert {name: parsed(stage, "").get(name, part) for name, part in default.items()} == default


@pytest.mark.parametrize("name", [name for name in app if not name.startswith("-")])
def test_no_two_parameters_of_a_command_share_a_flag(name):
    arguments = app[name].assemble_argument_collection()
    shared = {flag for flag, n in Counter(f for a in arguments for f in a.names if f != "*").items() if n > 1}
    assert not shared


@pytest.mark.parametrize("stage", sorted(SETTINGS.keys() - {"generator"}))
def test_jobs_give_each_command_the_settings_it_takes(stage):
    cell = Cell("digits", "resnet18", "ddoq-vae", 1, 0, "resnet18", "paper", generator="vae", expert="convnet3")
    cell = cell.having(method="patches") if stage == "select" else cell  # which asks a network
    experiment = Experiment({"matrix": [{"datasets": ["digits"], "methods": ["ddoq-vae", "patches"]}]})
    given = Inputs(experiment, Blocks(experiment).names).settings(stage, cell)
    assert Counter(type(settings) for settings in given) == Counter(kinds_of(stage).values())
    assert max(Counter(field for kind in kinds_of(stage).values() for field in kind.model_fields).values()) == 1
    rules = "".join(path.read_text() for path in (Path(__file__).parents[2] / "rules").glob("*.smk"))
    assert f'inputs.flags("{stage}")' in rules


def test_a_value_out_of_bounds_is_refused():
    for line in (
        "recover --lr 0", "recover --statistics perclass", "select --strategy best", "barycenter --exchanges -1",
        "data --classes 0", "relabel --store pruned --keep-epochs 0", "relabel --store pruned --keep-epochs 1.5",
        "relabel --store pruned --top-k -1", "student --schedule linear", "expert --momentum 1.5",
        "match --objective mtt --trajectories 0", "match --objective mtt --student-lr 0",
    ):  # fmt: skip
        with pytest.raises(CycloptsError):
            parsed(*line.split(maxsplit=1))


# The classes themselves


def test_settings_are_immutable_and_refuse_unknown_keys():
    for kind in KINDS:
        assert kind.model_validate(kind().model_dump(mode="json")) == kind(), "a default out of its own bounds"
        with pytest.raises(ValidationError, match="extra_forbidden"):
            kind(**{"no such setting": 1})
        with pytest.raises(ValidationError, match="frozen"):
            setattr(kind(), next(iter(kind.model_fields)), None)


TRAINING = TeacherSettings.model_fields.keys() - AdoptedSettings.model_fields.keys()


@pytest.mark.parametrize(
    ("kind", "values", "unused"),
    [
        (TeacherSettings, {"weights": "my weights/a 'b'.pt"}, TRAINING),
        (SelectSettings, {"strategy": "kmeans-medoid"}, OF_PATCHES | OF_MARGINS | {"tiles"}),
        (SelectSettings, {"strategy": "kmeans-medoid", "codec": "none"}, OF_PATCHES | OF_MARGINS | {"quality"}),
        (SelectSettings, {"strategy": "margins"}, OF_PATCHES | {"tiles"}),
        (SelectSettings, {"strategy": "whole"}, OF_PATCHES | OF_MARGINS | {"tiles", "codec", "quality"}),
        (RelabelSettings, {"store": "stored"}, {"keep_epochs", "top_k", "temperature"}),
        (RelabelSettings, {"store": "online"}, {"keep_epochs", "top_k", "temperature"}),
        (RelabelSettings, {"store": "pruned"}, set()),
        (MatchSettings, {"objective": "dm"}, OF_DATADAM | OF_MTT),
        (MatchSettings, {"objective": "datadam"}, OF_MTT),
        (MatchSettings, {"objective": "mtt"}, OF_UNTRAINED | OF_DATADAM),
    ],
)
def test_settings_without_a_use_change_nothing(kind, values, unused):
    chosen = kind(**others(kind) | values)
    assert at_default(chosen) - values.keys() == unused
    assert flags(chosen) == flags(kind(**{k: v for k, v in others(kind).items() if k not in unused} | values))
    stage = next(stage for stage, model in SETTINGS.items() if model is kind)
    assert parsed(stage, flags(chosen))["settings"] == chosen


def test_losses_that_couple_images_across_classes():
    assert [RecoverSettings(**c).coupled for c in ({}, {"cross_entropy": 1})] == [False, False]
    assert [RecoverSettings(**c).coupled for c in ({"statistics": "global"}, {"feature_loss": "norm"})] == [True, True]


def test_the_labelled_epochs_are_rounded_up():
    for epochs, share, expected in (300, 0.25, 75), (10, 0.25, 3), (1, 0.01, 1), (100, 0.07, 7), (5, 1.0, 5):
        assert RelabelSettings(store="pruned", epochs=epochs, keep_epochs=share).labelled == expected
        assert RelabelSettings(epochs=epochs, keep_epochs=share).labelled == epochs


FREE_ONLY = "the solver stream has free weights only; set weights: free"
CONVNET = "the network must be a ConvNet, not {}; set architecture: convnet3"
TIED = "BatchNorm ties the images of a batch to each other; set norm: instance"
CHECKED = [
    (ExpertSettings, {}, ""),
    (ExpertSettings, {"architecture": "convnet6", "norm": "none"}, ""),
    (ExpertSettings, {"architecture": "resnet18"}, CONVNET.format("resnet18")),
    (MatchSettings, {"architecture": "timm:convnet3"}, CONVNET.format("timm:convnet3")),
    (MatchSettings, {"norm": "batch"}, TIED),
    (GeneratorSettings, {}, ""),
    (GeneratorSettings, {"kind": "ldm"}, "kind ldm needs model"),
    (GeneratorSettings, {"kind": "latent-diffusion"}, "kind latent-diffusion needs encoder"),
    (BarycenterSettings, {"solver": "stream", "weights": "free"}, ""),
    (BarycenterSettings, {"solver": "stream", "weights": "uniform"}, FREE_ONLY),
    (BarycenterSettings, {"solver": "d4m", "weights": "uniform"}, ""),
]


def test_only_what_can_be_done_passes_the_check():
    for kind, values, says in CHECKED:
        if not says:
            kind(**values).check("here: ")
            continue
        with pytest.raises(WmddError, match=f"^here: {re.escape(says)}"):
            kind(**values).check("here: ")
