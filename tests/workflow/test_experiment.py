"""Experiments: the runs of the matrix, and how the settings of a stage are resolved from presets and file."""

import re
from pathlib import Path

import pytest
import yaml

from wmdd.base.errors import WmddError
from wmdd.report.show_settings import resolved
from wmdd.settings.base import NAME, flags
from wmdd.settings.recover import RecoverSettings
from wmdd.workflow.checks import LARGEST_WHITENED
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.experiment_file import presets
from wmdd.workflow.layout import Cell
from wmdd.workflow.stages import SETTINGS

from .experiments import experiment, merged, mistake, nested

NONE = Experiment({})  # the presets alone

# Precedence: names, content they need, a setting with its preset, and the levels that may set it, the weakest first

LADDERS = {
    "recover": (
        {"dataset": "digits", "method": "child"},
        {"methods": {"parent": {"family": "recover"}, "child": {"base": "parent"}}},
        ("jitter", 2),
        "recover datasets.digits.recover methods.parent.recover methods.child.recover",
    ),
    "barycenter": (
        {"dataset": "digits", "method": "child"},
        {"methods": {"parent": {"base": "wmdd"}, "child": {"base": "parent"}}},
        ("restarts", 1),
        "barycenter datasets.digits.barycenter methods.wmdd.barycenter methods.parent.barycenter methods.child.barycenter",
    ),
    "teacher": (
        {"dataset": "digits", "teacher": "resnet18-w8"},
        {},
        ("width", 8),
        "teacher datasets.digits.teacher teachers.resnet18-w8",
    ),
    "relabel": (
        {"dataset": "digits", "method": "wmdd", "protocol": "child"},
        {"protocols": {"child": {"base": "rectified"}}},
        ("epochs", 400),
        "relabel datasets.digits.relabel protocols.rectified.relabel protocols.child.relabel",
    ),
    "student": (
        {"dataset": "digits", "method": "wmdd", "protocol": "child", "student": "resnet18-w8"},
        {"protocols": {"child": {"base": "paper"}}},
        ("width", 8),
        "student datasets.digits.student protocols.paper.student protocols.child.student students.resnet18-w8",
    ),
    "expert": (
        {"dataset": "digits", "expert": "child"},
        {"experts": {"child": {"base": "convnet3"}}},
        ("epochs", 50),
        "expert datasets.digits.expert experts.convnet3 experts.child",
    ),
    "match": (
        {"dataset": "digits", "method": "child"},
        {"methods": {"child": {"base": "datadam"}}},
        ("real_batch", 64),
        "match datasets.digits.match methods.datadam.match methods.child.match",
    ),
    "decode": (
        {"dataset": "digits", "generator": "small", "method": "mine"},
        {"generators": {"small": {"base": "latent-diffusion"}}, "methods": {"mine": {"base": "ddoq"}}},
        ("guidance", 2),
        "decode datasets.digits.decode generators.latent-diffusion.decode generators.small.decode methods.mine.decode",
    ),
}


@pytest.mark.parametrize("stage", LADDERS)
def test_each_level_wins_over_the_weaker_ones(stage):
    names, content, (key, preset), levels = LADDERS[stage]
    assert getattr(Experiment(content).resolve(stage, **names), key) == preset
    for number, level in enumerate(levels.split(), 11):
        content = merged(content, nested(f"{level}.{key}", number))
        for order in content, dict(reversed(content.items())):
            assert getattr(Experiment(order).resolve(stage, **names), key) == number, level


def test_presets_win_over_defaults_and_any_part_of_the_file_over_any_preset():
    tiny = {"dataset": "tiny-imagenet"}
    assert NONE.resolve("recover").jitter == RecoverSettings().jitter == 32
    assert NONE.resolve("recover", dataset="digits").jitter == 2
    assert NONE.resolve("recover", **tiny, method="wmdd").regularisation == 500
    assert NONE.resolve("recover", **tiny, method="sre2l").regularisation == 0.01
    ours = Experiment({"recover": {"regularisation": 3}, "student": {"width": 5}})
    assert ours.resolve("recover", **tiny, method="sre2l").regularisation == 3
    names = {"dataset": "digits", "method": "wmdd", "protocol": "paper", "student": "resnet18-w8"}
    assert ours.resolve("student", **names).width == 5


@pytest.mark.parametrize("general", ["recover.regularisation", "datasets.digits.recover.regularisation"])
def test_what_the_file_replaces_of_a_presets_method_is_said_unless_it_names_the_method(general):
    content = nested(general, 3)
    (line,) = experiment(content, methods=["wmdd", "sre2l"]).replaced()
    assert line.startswith(
        "sre2l on digits: recover.regularisation is 3.0 by a general section of the file, in place of the preset's 0.01;"
    )
    assert "say methods: {sre2l: {recover: {regularisation: ...}}}" in line
    assert experiment(content, methods=["wmdd"]).replaced() == []
    for own in (0.01, 3, 7):
        named = merged(content, nested("methods.sre2l.recover.regularisation", own))
        assert experiment(named, methods=["wmdd", "sre2l"]).replaced() == []


def test_what_replaces_nothing_is_not_said():
    same = {"recover": {"regularisation": 0.01, "iterations": 5}, "methods": {"mine": {"base": "sre2l"}}}
    assert experiment(same, methods=["sre2l", "mine"]).replaced() == []
    loud = {"methods": {"loud": {"base": "mine", "recover": {"regularisation": 1}}}}
    lines = experiment(merged(same, nested("recover.regularisation", 3), loud), methods=["mine", "loud"]).replaced()
    assert [line.split(" on ")[0] for line in lines] == ["mine"]


def test_what_a_level_leaves_out_comes_from_the_weaker_one_and_defaults_zero_and_false_are_settings_too():
    for section in {"lr": 0.7}, {"jitter": 32, "flip": True}, {"jitter": 0, "flip": False}:
        usual = NONE.resolve("recover", dataset="digits", method="sre2l")
        chosen = Experiment(nested("datasets.digits.recover", section)).resolve(
            "recover", dataset="digits", method="sre2l"
        )
        assert chosen == usual.model_copy(update=section)
    assert (usual.lr, usual.jitter, usual.statistics, usual.betas) == (0.1, 2, "global", (0.5, 0.9))


def test_settings_reach_what_is_based_on_a_name_and_nothing_else():
    ours = Experiment(
        {
            "datasets": {"digits": {"recover": {"iterations": 9}}},
            "methods": {"wmdd": {"recover": {"lr": 0.3}}, "mine": {"base": "wmdd"}},
            "protocols": {"paper": {"student": {"lr": 0.4}}},
        }
    )
    assert ours.resolve("recover", dataset="digits", method="mine").lr == 0.3
    assert ours.resolve("recover", dataset="digits", method="sre2l").lr == 0.1, "presets stand on their own"
    assert ours.resolve("student", protocol="paper-hard", student="resnet18").lr == 0.4
    names = {"dataset": "cifar10", "method": "sre2l"}
    assert ours.resolve("recover", **names) == NONE.resolve("recover", **names)


def test_family_generator_and_experts_are_inherited_and_can_be_set():
    bases = {"a": "random", "b": "a", "d": "ddoq", "f": "mtt"}
    content = {name: {"base": base} for name, base in bases.items()} | {
        "c": {"base": "wmdd", "family": "select"},
        "e": {"base": "d", "generator": "vae"},
        "g": {"base": "f", "expert": "convnet4"},
    }
    ours = Experiment({"methods": content})
    families = {"wmdd": "recover", "a": "select", "b": "select", "c": "select", "e": "latent", "g": "match"}
    assert {name: ours.family(name) for name in families} == families
    assert [ours.generator(name) for name in "de"] == ["latent-diffusion", "vae"]
    assert [ours.encoder(name, "cifar10") for name in ("latent-diffusion", "vae")] == ["vae", "vae"]
    assert [ours.expert(name) for name in "fg"] == ["convnet3", "convnet4"]
    assert [ours.trajectories("cifar10", m) for m in ("f", "g", "dm", "datadam")] == [100, 100, 0, 0]


def test_a_protocol_has_the_last_word_on_weights():
    content = {"protocols": {"equal": {"base": "paper", "student": {"weights": "uniform"}}}}
    ours = experiment(content, methods=["ddoq"], protocols=["paper", "equal"])
    names = {"dataset": "cifar10", "method": "ddoq", "student": "resnet18"}
    weights = [ours.resolve("student", protocol=protocol, **names).weights for protocol in ("paper", "equal")]
    assert weights == ["variance-reduced", "uniform"]
    assert ours.protocol_of_labels("cifar10", "ddoq", "equal") == "paper"


def test_settings_of_other_objectives_rerun_nothing():
    """They are not among the flags, so that a job's command stays what it is."""
    unused = {"real_batch": 5, "architecture": "convnet4", "task_balance": 3}
    before, after = (
        Experiment({"match": section}).resolve("match", dataset="cifar10", method="mtt") for section in ({}, unused)
    )
    assert flags(before) == flags(after)


# The matrix


def test_runs_are_the_product_and_each_stands_once():
    cell = {"datasets": ["digits", "cifar10"], "methods": ["wmdd", "mine"], "ipc": [1, 10], "seeds": [0, 1], "runs": 3}
    again = {"datasets": ["digits"], "methods": ["wmdd", "mine-lr0.1"], "ipc": [10, 50, 50], "seeds": [1, 1]}
    sweep = {"methods": {"mine": {"base": "wmdd", "recover": {"lr": [0.1, 0.2]}}}}
    runs = list(Experiment(sweep | {"matrix": [cell, again]}).runs())
    assert len(runs) == len(set(runs)) == 2 * 3 * 2 * 2 * 3 + 2
    assert runs[-1] == Cell("digits", "resnet18", "mine-lr0.1", 50, 1, "resnet18", "paper", 0)


@pytest.mark.parametrize("methods", [["wmdd"], ["whole", "wmdd", "random"]])
def test_controls_are_two_more_methods_of_their_entry_of_the_matrix(methods):
    cell = {"datasets": ["digits"], "methods": methods, "ipc": [1, 10]}
    runs = list(Experiment({"matrix": [cell | {"controls": True}, cell | {"datasets": ["cifar10"]}]}).runs())
    of = {
        dataset: [run.method for run in runs if (run.dataset, run.ipc) == (dataset, 10)]
        for dataset in ("digits", "cifar10")
    }
    assert of["cifar10"] == methods
    assert of["digits"] == [*methods, *(name for name in ("random", "whole") if name not in methods)]


def test_runs_are_trained_so_many_a_job():
    cell = {"datasets": ["digits"], "methods": ["wmdd"]}
    content = {"matrix": [cell | {"runs": 4}, cell | {"runs": 2, "ipc": [3]}]}
    assert Experiment(content).runs_of_jobs() == [[0], [1], [2], [3]]
    assert Experiment(content | {"runs_per_job": 2}).runs_of_jobs() == [[0, 1], [2, 3]]


def test_what_methods_start_from_is_made_too():
    content = {"methods": {"mine": {"base": "wmdd", "recover": {"init": "method:ddoq-recover"}}}}
    assert experiment(content, methods=["mine"]).methods() == ["ddoq", "ddoq-recover", "mine"]


@pytest.mark.parametrize(("seed", "teachers"), [(None, [0, 0]), (2, [2, 2]), ("same", [0, 3])])
def test_teacher_seed(seed, teachers):
    ours = Experiment({} if seed is None else {"teacher_seed": seed})
    assert [ours.teacher_seed(s) for s in (0, 3)] == teachers


def test_jobs_share_the_classes_of_a_features_pass_evenly():
    def blocks(jobs, classes=10):
        entry = {"data": {"source": "imagefolder", "root": "x", "classes": classes}, "features_jobs": jobs}
        return Experiment({"datasets": {"d": entry}}).features_blocks("d")

    assert NONE.features_blocks("digits") == blocks(1) == ["classes0-9"]
    assert blocks(3) == ["classes0-2", "classes3-5", "classes6-9"]
    assert blocks(99, classes=2) == ["classes0-0", "classes1-1"]


def test_gpus_are_of_a_teacher_and_no_setting_of_its_stage():
    assert NONE.gpus("resnet18") == Experiment({"teachers": {"mine": {}}}).gpus("mine") == 1
    for name in "resnet18", "mine":  # a preset, to which the file adds, and an entry of its own
        one, eight = (Experiment({"teachers": {name: {"width": 8} | more}}) for more in ({}, {"gpus": 8}))
        assert (one.gpus(name), eight.gpus(name)) == (1, 8)
        commands = {flags(ours.resolve("teacher", dataset="digits", teacher=name)) for ours in (one, eight)}
        assert len(commands) == 1
    assert re.search("teachers.mine.gpus: .*greater than or equal to 1", mistake({"teachers": {"mine": {"gpus": 0}}}))
    assert "unknown key teacher.gpus" in mistake({"teacher": {"gpus": 2}})


# The presets


def test_every_preset_runs_on_every_dataset():
    """But for whitening, which takes small images."""
    kinds = ("teachers", "methods", "students", "protocols")
    for dataset in presets().datasets:
        small = NONE.resolve("data", dataset=dataset).side <= LARGEST_WHITENED
        whitened = {kind: [] if small else [n for n in NONE.names(kind) if n.endswith("-whitened")] for kind in kinds}
        known = {kind: [name for name in NONE.names(kind) if name not in whitened[kind]] for kind in kinds}
        entries = known | {"protocols": ["paper"], "students": ["resnet18"]}, known | {"methods": ["wmdd"]}
        runs = list(Experiment({"matrix": [entry | {"datasets": [dataset], "ipc": [1]} for entry in entries]}).runs())
        assert {kind: sorted({getattr(run, kind[:-1]) for run in runs}) for kind in kinds} == known
        for kind in ("methods", "protocols"):
            for name in whitened[kind]:
                assert "whitening takes images of at most 64 px" in mistake(datasets=[dataset], **{kind: [name]})
    assert all(re.fullmatch(NAME, name) for kind in ("datasets", *kinds) for name in NONE.names(kind))


def test_the_five_rows_of_the_ablation():
    """methods.md, section 1: cross-entropy, per-class BatchNorm statistics, barycenter loss."""
    toggles = {
        "wmdd": (0, "per-class", 1),
        "wmdd-ce": (1, "per-class", 1),
        "sre2l-pcbn": (1, "per-class", 0),
        "barycenter-only": (0, "global", 1),
        "sre2l": (1, "global", 0),
    }
    rows = {name: NONE.resolve("recover", dataset="imagenette", method=name) for name in toggles}
    assert {name: (r.cross_entropy, r.statistics, r.feature_weight) for name, r in rows.items()} == toggles
    toggled = {"cross_entropy", "statistics", "feature_weight"}
    base = rows["wmdd"].model_dump(exclude=toggled)
    own = {"sre2l": {"regularisation": 0.01, "first_layer_weight": 10, "composition": "across"}}
    for name, row in rows.items():
        assert row.model_dump(exclude=toggled) == base | own.get(name, {}), name


STUDENT = {"protocol": "paper", "student": "resnet18", "method": "wmdd"}
WHITE_STUDENT = {"protocol": "dsa-whitened", "student": "convnet3", "method": "mtt"}
DSA = {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "step", "labels": "hard"}
MATCHED = {"iterations": 20_000, "momentum": 0.5, "architecture": "convnet3", "width": 128, "norm": "instance"}
PUBLISHED = [
    # methods.md, section 1: lambda, learning rate, iterations, batch; the student's recipe
    ("recover", "imagenette", {"method": "wmdd"}, {"regularisation": 10, "lr": 0.25, "iterations": 2000}),
    ("recover", "tiny-imagenet", {"method": "wmdd"}, {"regularisation": 500, "lr": 0.1, "batch_size": 100}),
    ("recover", "imagenette", {"method": "wmdd"}, {"batch_size": 100, "betas": (0.5, 0.9)}),
    ("teacher", "imagenette", {"teacher": "resnet18"}, {"epochs": 50, "optimizer": "sgd", "lr": 0.025, "batch_size": 32}),
    ("teacher", "imagenette", {"teacher": "resnet18"}, {"weight_decay": 1e-4}),
    ("student", "imagenette", STUDENT, {"epochs": 300, "temperature": 20, "optimizer": "adamw", "lr": 1e-3}),
    ("student", "imagenette", STUDENT, {"weight_decay": 0.01, "batch_size": 100}),
    ("relabel", "imagenette", {"method": "wmdd", "protocol": "paper"}, {"epochs": 300, "mix": "cutmix"}),
    ("relabel", "imagenette", {"method": "wmdd", "protocol": "paper"}, {"crop_scale": (0.08, 1)}),
    # docs/understand/match.md: learning rates, batches, epochs and steps of each dataset and number of images per class
    ("match", "cifar10", {"method": "dm"}, MATCHED | {"lr": 1, "real_batch": 256, "pooling": "avg", "views": "dsa"}),
    ("match", "cifar10", {"method": "datadam"}, MATCHED | {"lr": 100, "real_batch": 64}),
    ("match", "tiny-imagenet", {"method": "dm"}, {"architecture": "convnet4"}),
    ("match", "tiny-imagenet", {"method": "datadam"}, {"architecture": "convnet4"}),
    ("student", "cifar10", WHITE_STUDENT, DSA | {"epochs": 1000, "batch_size": 256, "learned_lr": True, "whiten": True}),
    ("student", "cifar10", WHITE_STUDENT | {"protocol": "dsa"}, DSA | {"epochs": 1000, "whiten": False}),
    ("relabel", "cifar10", {"method": "mtt", "protocol": "dsa"}, {"views": "dsa"}),
    ("relabel", "cifar10", {"method": "mtt", "protocol": "dsa-whitened"}, {"views": "dsa"}),
]  # fmt: skip
MTT = {  # student_steps, expert_epochs, start_epochs, student_batch, lr, rate_lr, student_lr
    "mtt-cifar10-ipc1": (50, 2, 5, 0, 1000, 1e-7, 0.01),
    "mtt-cifar10-ipc10": (30, 2, 15, 0, 1000, 1e-5, 0.01),
    "mtt-cifar10-ipc50": (30, 2, 40, 0, 1000, 1e-5, 0.001),
    "mtt-cifar10-ipc1-whitened": (50, 2, 2, 0, 100, 1e-7, 0.01),
    "mtt-cifar10-ipc10-whitened": (30, 2, 20, 0, 100, 1e-5, 0.001),
    "mtt-tiny-ipc1": (10, 2, 10, 0, 10_000, 1e-4, 0.01),
    "mtt-tiny-ipc10": (20, 2, 40, 200, 10_000, 1e-4, 0.01),
}


def test_the_published_numbers():
    for stage, dataset, names, numbers in PUBLISHED:
        chosen = NONE.resolve(stage, dataset=dataset, **names)
        assert {key: getattr(chosen, key) for key in numbers} == numbers, (stage, dataset, names)
    assert set(MTT) == {name for name in NONE.names("methods") if "mtt" in name} - {"mtt"}
    for method, numbers in MTT.items():
        r, expert = NONE.resolve("match", dataset="cifar10", method=method), NONE.expert(method)
        steps = (r.student_steps, r.expert_epochs, r.start_epochs, r.student_batch)
        assert (*steps, r.lr, r.rate_lr, r.student_lr) == numbers
        assert (r.iterations, r.trajectories) == (5000, 100)
        assert NONE.resolve("expert", dataset="cifar10", expert=expert).whiten == method.endswith("whitened")
        assert expert.startswith("convnet4" if "tiny" in method else "convnet3")


def test_the_published_code_is_solved_as_it_is():
    """With its own solver, and the uniform weights of its run script; nothing else is."""
    for name in NONE.names("methods"):
        solver = NONE.resolve("barycenter", method=name)
        assert (solver.solver == "released") == (name == "wmdd-released")
        assert (solver.weights == "free") == (name == "wmdd-free")
        assert solver.compare_restarts == 0


@pytest.mark.parametrize("base", ["paper", "rectified"])
def test_the_stores_of_a_protocol_differ_in_nothing_else(base):
    names = {"dataset": "digits", "method": "wmdd"}
    usual = NONE.resolve("relabel", protocol=base, **names)
    for store, name in {"stored": base, "pruned": f"{base}-pruned", "online": f"{base}-online"}.items():
        assert NONE.resolve("relabel", protocol=name, **names) == usual.model_copy(update={"store": store})
        assert NONE.resolve("student", protocol=name, **names) == NONE.resolve("student", protocol=base, **names)


def test_a_protocol_says_what_differs_for_small_images():
    """The smaller the stronger; what is based on it says more, and of images whose side is not known it says nothing."""
    base = {
        "relabel": {"crop_scale": [0.5, 1], "patches": 2},
        "up_to_64px": {"relabel": {"crop_scale": [0.7, 1], "patches": 1}, "student": {"batch_size": 7}},
        "up_to_32px": {"relabel": {"crop_scale": [1, 1]}},
    }
    protocols = {"base": base, "child": {"base": "base", "relabel": {"crop_scale": [0.9, 1]}}}
    datasets = {"unknown": {"data": {"source": "imagefolder"}}, "odd": {"data": {"resolution": 33}}}
    mine = Experiment({"protocols": protocols, "datasets": datasets})
    expected = {
        "imagenette": (0.5, 2, 100),
        "tiny-imagenet": (0.7, 1, 7),
        "odd": (0.7, 1, 7),
        "cifar10": (1, 1, 7),
        "unknown": (0.5, 2, 100),
    }
    for dataset, numbers in expected.items():
        views, of = (mine.resolve(stage, dataset=dataset, protocol="base") for stage in ("relabel", "student"))
        assert (views.crop_scale[0], views.patches, of.batch_size) == numbers
        assert mine.resolve("relabel", dataset=dataset, protocol="child").crop_scale == (0.9, 1)


def test_the_crops_of_rded_are_those_of_its_factor():
    """2 at 224 px, and none at 32 and 64, for all that take its augmentation; the studies keep what they had."""
    for protocol, patches in ("rded", 2), ("rectified", 1), ("rectified-2", 1), ("rectified-online", 1):
        for dataset, expected in ("imagenette", (0.5, patches)), ("tiny-imagenet", (1, 1)), ("cifar10", (1, 1)):
            views = NONE.resolve("relabel", dataset=dataset, protocol=protocol)
            assert (views.crop_scale[0], views.patches) == expected
    studies = Path(__file__).parents[2] / "config/studies"
    for study, dataset, protocol, crop in (
        ("imagenette", "nette", "rectified-online", 0.08),
        ("imagenette", "nette", "rectified-hard", 0.08),
        ("search", "cifar10-search", "search-rectified", 0.25),
    ):
        file = Experiment.read(studies / f"{study}.yaml")
        assert file.resolve("relabel", dataset=dataset, method="random", protocol=protocol).crop_scale == (crop, 1)


# What `python -m wmdd config` prints


def test_resolved_settings_are_complete_and_named_by_where_they_apply():
    methods = ["wmdd", "random", "ddoq", "dm", "mtt"]
    shown = resolved(experiment(methods=methods, protocols=["paper"]))
    assert yaml.safe_load(yaml.safe_dump(shown)) == shown
    assert {
        stage: set(shown[stage])
        for stage in SETTINGS
        if stage not in ("data", "teacher", "features", "relabel", "images")
    } == {
        "recover": {"digits wmdd"},
        "quantize": {"digits ddoq"},
        "decode": {"digits latent-diffusion ddoq"},
        "generator": {"digits latent-diffusion", "digits vae"},
        "autoencoder": {"digits vae"},
        "encode": {"digits vae"},
        "diffusion": {"digits latent-diffusion"},
        "decay": {"digits vae"},
        "select": {"digits random"},
        "barycenter": {"digits wmdd", "digits random"},
        "expert": {"digits convnet3"},
        "match": {"digits dm", "digits mtt"},
        "student": {f"digits {method} paper resnet18" for method in methods},
    }
    for stage in SETTINGS.keys() - {"images"}:  # which no set of these is taken by
        kind = SETTINGS[stage]
        assert all(set(entry) == set(kind.model_fields) for entry in shown[stage].values())


def test_resolved_settings_of_one_stage():
    assert set(resolved(experiment(), "teacher")) & set(SETTINGS) == {"teacher"}
    with pytest.raises(WmddError, match="unknown stage 'techer'"):
        resolved(experiment(), "techer")
