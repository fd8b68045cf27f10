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
from wmdd.settings.barycenter import BarycenterSettings
from wmdd.settings.base import Settings, flags
from wmdd.settings.data import DataSettings
from wmdd.settings.engine import EngineSettings
from wmdd.settings.latent import AutoencoderSettings, GeneratorSettings
from wmdd.settings.match import ExpertSettings, MatchSettings
from wmdd.settings.recover import RecoverSettings, SelectSettings
from wmdd.settings.student import AugmentationSettings, LabelSettings, RelabelSettings, StudentSettings
from wmdd.settings.teacher import TeacherSettings
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.inputs import Inputs
from wmdd.workflow.layout import Cell
from wmdd.workflow.stages import SETTINGS

# What each command needs beside its settings, and which settings it takes by which parameter.
COMMANDS = {
    "data": ("--name x --output o", {"settings": "data"}),
    "teacher": ("--data d --output o --seed 0", {"settings": "teacher", "engine": EngineSettings}),
    "features": ("--data d --teacher t --output o --statistics s", {"settings": "features", "engine": EngineSettings}),
    "barycenter": ("--features f --output o --block classes0-1 --k 1 --seed 0", {"settings": "barycenter"}),
    "recover": (
        "--teacher t --class-statistics s --output o --block classes0-1 --ipc 1 --seed 0",
        {"settings": "recover", "engine": EngineSettings},
    ),
    "select": (
        "--data d --output o --ipc 1 --seed 0",
        {"settings": "select", "solver": BarycenterSettings, "engine": EngineSettings},
    ),
    "relabel": ("--images i --teacher t --output o --seed 0", {"settings": "relabel", "engine": EngineSettings}),
    "autoencoder": ("--data d --output o --seed 0", {"settings": "autoencoder", "engine": EngineSettings}),
    "diffusion": (
        "--latents l --autoencoder a --data d --output o --seed 0",
        {"settings": "diffusion", "engine": EngineSettings},
    ),
    "encode": (
        "--data d --output o --block classes0-1",
        {"settings": "encode", "generator": GeneratorSettings, "engine": EngineSettings},
    ),
    "quantize": ("--latents l --output o --block classes0-1 --k 1 --seed 0", {"settings": "quantize"}),
    "decode": (
        "--atoms a --output o --seed 0",
        {"settings": "decode", "generator": GeneratorSettings, "engine": EngineSettings},
    ),
    "decay": ("--latents l --output o", {"settings": "decay"}),
    "expert": ("--data d --output o --seed 0", {"settings": "expert", "engine": EngineSettings}),
    "match": (
        "--data d --output o --block classes0-1 --ipc 1 --seed 0",
        {"settings": "match", "engine": EngineSettings},
    ),
    "student": (
        "--images i --data d --output o --seed 0 --run 0",
        {"settings": "student", "augmentation": LabelSettings, "engine": EngineSettings},
    ),
}
KINDS = [*SETTINGS.values(), EngineSettings, AugmentationSettings, LabelSettings]


def kinds_of(stage):
    return {name: SETTINGS.get(kind, kind) for name, kind in COMMANDS[stage][1].items()}


def parsed(stage, line):
    tokens = [stage, *shlex.split(COMMANDS[stage][0]), *shlex.split(line)]
    _, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    return bound.arguments


def names_in(line):
    return re.findall(r"(?<!\S)--([a-z0-9-]+)", line)


# The text of the flags


@pytest.mark.parametrize("kind", KINDS)
def test_flags_name_every_field_once_and_in_order(kind):
    found = [name.removeprefix("no-") for name in names_in(flags(kind()))]
    given = [name for name, field in kind.model_fields.items() if field.default is not None]
    assert found == sorted(name.replace("_", "-") for name in given)


@given(st.permutations(list(RecoverSettings().model_dump().items())))
def test_flags_do_not_depend_on_the_order_of_keys(items):
    assert flags(RecoverSettings(**dict(items))) == flags(RecoverSettings())


def test_flags_do_not_depend_on_the_order_of_the_parts():
    parts = StudentSettings(), AugmentationSettings(mix="none"), EngineSettings(device="cpu")
    assert {flags(*order) for order in itertools.permutations(parts)} == {flags(*parts)}


def test_writing_a_default_out_changes_nothing():
    assert flags(RecoverSettings(lr=0.1, crop_scale=(0.08, 1))) == flags(RecoverSettings())


def test_booleans_tuples_and_numbers():
    class Some(Settings):
        yes: bool = True
        no: bool = False
        pair: tuple[float, float] = (0.5, 1)
        a_small_one: float = 1e-6
        whole: int = 3

    assert flags(Some()) == "--a-small-one 1e-06 --no-no --pair 0.5 1.0 --whole 3 --yes"


@pytest.mark.parametrize("root", ["", "a b", "it's", 'say "x"', "$HOME", "a;rm -rf b", "*", "[1]", "{}", "ü\\"])
def test_text_is_quoted_for_the_shell_and_comes_back(root):
    settings = DataSettings(root=root)
    assert parsed("data", flags(settings))["settings"] == settings


# The round trip through the commands


@pytest.mark.parametrize("stage", sorted(SETTINGS.keys() - {"generator"}))  # which encode and decode share
def test_every_stage_has_its_command_here(stage):
    assert "settings" in COMMANDS[stage][1]


@pytest.mark.parametrize("stage", COMMANDS)
def test_the_defaults_come_back(stage):
    given = {name: kind() for name, kind in kinds_of(stage).items()}
    found = parsed(stage, flags(*given.values()))
    assert {name: found[name] for name in given} == given


OTHERS = {  # settings that not every value of their type fits
    (RecoverSettings, "init"): "method:other",
    (AutoencoderSettings, "factor"): 8,
    (SelectSettings, "strategy"): "patches",
}
# Which objectives of match look at a setting; all three at the rest.
OF_UNTRAINED = {"real_batch", "pool", "architecture", "width", "stem", "norm", "pooling"}
OF_DATADAM = {"attention_power", "task_balance"}
OF_MTT = {
    "trajectories", "expert_epochs", "start_epochs", "student_steps", "student_batch", "student_lr", "rate_lr", "labels",
    "labels_lr",
}  # fmt: skip
DEFAULT = {TeacherSettings: {"weights"}, MatchSettings: OF_MTT}  # with a teacher's weights there is no training to set


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


def test_the_weights_of_a_teacher_come_back():
    given = TeacherSettings(weights="my weights/a 'b'.pt", width=3, min_accuracy=0.25)
    assert parsed("teacher", flags(given))["settings"] == given


def others(kind):
    """Other values than the defaults."""
    fields = {key: field for key, field in kind.model_fields.items() if (kind, key) != (TeacherSettings, "weights")}
    return {key: OTHERS.get((kind, key)) or other_value(field, field.default) for key, field in fields.items()}


def at_default(settings):
    return {key for key in type(settings).model_fields if getattr(settings, key) == getattr(type(settings)(), key)}


@pytest.mark.parametrize("stage", COMMANDS)
def test_other_values_come_back(stage):
    given = {name: kind(**others(kind)) for name, kind in kinds_of(stage).items()}
    for part in given.values():  # nothing else is left at its default, or the test would prove nothing
        assert at_default(part) == DEFAULT.get(type(part), set())
    found = parsed(stage, flags(*given.values()))
    assert {name: found[name] for name in given} == given


@pytest.mark.parametrize("stage", COMMANDS)
def test_without_flags_a_command_takes_the_defaults(stage):
    found = parsed(stage, "")
    default = {name: kind() for name, kind in kinds_of(stage).items()}
    assert {name: found.get(name, kind) for name, kind in default.items()} == default


@pytest.mark.parametrize("name", [name for name in app if not name.startswith("-")])
def test_no_two_parameters_of_a_command_share_a_flag(name):
    arguments = app[name].assemble_argument_collection()
    shared = {flag for flag, n in Counter(f for a in arguments for f in a.names if f != "*").items() if n > 1}
    assert not shared


def test_parts_given_together_share_no_field():
    for stage in COMMANDS:
        fields = Counter(field for kind in kinds_of(stage).values() for field in kind.model_fields)
        assert {name for name, n in fields.items() if n > 1} == set(), stage


@pytest.mark.parametrize(
    ("stage", "line"),
    [
        ("recover", "--lr 0"),
        ("recover", "--statistics perclass"),
        ("select", "--strategy best"),
        ("barycenter", "--solver best"),
        ("barycenter", "--exchanges -1"),
        ("barycenter", "--compare-restarts -1"),
        ("data", "--classes 0"),
        ("relabel", "--store some"),
        ("relabel", "--store pruned --keep-epochs 0"),
        ("relabel", "--store pruned --keep-epochs 1.5"),
        ("relabel", "--store pruned --top-k -1"),
        ("relabel", "--store pruned --temperature 0"),
        ("relabel", "--views mine"),
        ("student", "--schedule linear"),
        ("expert", "--momentum 1.5"),
        ("match", "--objective ftd"),
        ("match", "--objective mtt --trajectories 0"),
        ("match", "--objective mtt --student-lr 0"),
    ],
)
def test_a_value_out_of_bounds_is_refused(stage, line):
    with pytest.raises(CycloptsError):
        parsed(stage, line)


# The classes themselves


@pytest.mark.parametrize("kind", KINDS)
def test_settings_are_immutable_and_refuse_unknown_keys(kind):
    with pytest.raises(ValidationError, match="extra_forbidden"):
        kind(**{"no such setting": 1})
    with pytest.raises(ValidationError, match="frozen"):
        setattr(kind(), next(iter(kind.model_fields)), None)


@pytest.mark.parametrize("kind", KINDS)
def test_every_default_is_within_its_own_bounds(kind):
    assert kind.model_validate(kind().model_dump(mode="json")) == kind()


@pytest.mark.parametrize(
    ("changes", "coupled"),
    [({}, False), ({"statistics": "global"}, True), ({"feature_loss": "norm"}, True), ({"cross_entropy": 1}, False)],
)
def test_losses_that_couple_images_across_classes(changes, coupled):
    assert RecoverSettings(**changes).coupled is coupled


@pytest.mark.parametrize("store", ["stored", "online"])
def test_settings_of_the_pruning_count_only_where_there_is_one(store):
    changes = {"keep_epochs": 0.1, "top_k": 3, "temperature": 4.0}
    assert flags(RelabelSettings(store=store, **changes)) == flags(RelabelSettings(store=store))
    chosen = RelabelSettings(store="pruned", **changes)
    assert {name: getattr(chosen, name) for name in changes} == changes


@pytest.mark.parametrize(
    ("objective", "unused"),
    [("dm", OF_DATADAM | OF_MTT | {"objective"}), ("datadam", OF_MTT), ("mtt", OF_UNTRAINED | OF_DATADAM)],
)
def test_settings_of_other_objectives_count_only_where_they_are_looked_at(objective, unused):
    chosen = MatchSettings(**others(MatchSettings) | {"objective": objective})
    assert at_default(chosen) == unused
    assert parsed("match", flags(chosen))["settings"] == chosen
    looked_at = {key: value for key, value in others(MatchSettings).items() if key not in unused}
    assert flags(chosen) == flags(MatchSettings(**looked_at | {"objective": objective}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"architecture": "convnet6", "norm": "none"}, ""),
        ({"architecture": "resnet18"}, "here: the network must be a ConvNet, not resnet18; set architecture: convnet3"),
        ({"architecture": "timm:convnet3"}, "here: the network must be a ConvNet, not timm:convnet3"),
        ({"norm": "batch"}, "here: BatchNorm ties the images of a batch to each other; set norm: instance"),
    ],
)
@pytest.mark.parametrize("kind", [ExpertSettings, MatchSettings])
def test_only_what_can_be_matched_passes_the_check(kind, changes, said):
    if not said:
        kind(**changes).check("here: ")
        return
    with pytest.raises(WmddError, match=f"^{re.escape(said)}"):
        kind(**changes).check("here: ")


@pytest.mark.parametrize(
    ("epochs", "share", "expected"), [(300, 0.25, 75), (10, 0.25, 3), (1, 0.01, 1), (100, 0.07, 7), (5, 1.0, 5)]
)
def test_the_labelled_epochs_are_rounded_up(epochs, share, expected):
    assert RelabelSettings(store="pruned", epochs=epochs, keep_epochs=share).labelled == expected
    assert RelabelSettings(epochs=epochs, keep_epochs=share).labelled == epochs


@pytest.mark.parametrize("solver", BarycenterSettings.model_fields["solver"].annotation.__args__)
@pytest.mark.parametrize("weights", BarycenterSettings.model_fields["weights"].annotation.__args__)
def test_only_what_a_solver_does_passes_the_check(solver, weights):
    chosen = BarycenterSettings(solver=solver, weights=weights)
    if (solver, weights) != ("stream", "uniform"):
        chosen.check()
        return
    with pytest.raises(WmddError, match=r"^here: the solver stream has free weights only; set weights: free"):
        chosen.check("here: ")


@pytest.mark.parametrize("stage", sorted(SETTINGS.keys() - {"generator"}))
def test_jobs_give_each_command_the_settings_it_takes(stage):
    cell = Cell("digits", "resnet18", "ddoq-vae", 1, 0, "resnet18", "paper", generator="vae", expert="convnet3")
    cell = cell.having(method="patches") if stage == "select" else cell  # which asks a network
    matrix = [{"datasets": ["digits"], "methods": ["ddoq-vae", "patches"]}]
    given = Inputs(Experiment({"matrix": matrix})).settings(stage, cell)
    assert {type(settings) for settings in given} == set(kinds_of(stage).values())
    rules = "".join(path.read_text() for path in (Path(__file__).parents[2] / "rules").glob("*.smk"))
    assert f'inputs.flags("{stage}")' in rules
