"""Experiment files: what may stand in them, and the one line that a mistake gives."""

import itertools
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from wmdd.base.errors import WmddError
from wmdd.settings.engine import EngineSettings
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.experiment_file import parse, schema
from wmdd.workflow.stages import SETTINGS

from .experiments import mistake, nested

ROOT = Path(__file__).parents[2]
FILES = sorted(set((ROOT / "config").glob("**/*.yaml")) - {ROOT / "config/published.yaml"})  # which is no experiment


def with_cell(**changes):
    return {"matrix": [{"datasets": ["digits"], "methods": ["wmdd"]} | changes]}


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
        (nested("methods.mine.student.lr", 1), "methods.mine.student.lr", "weights"),
        (nested("methods.mine.experts", "convnet3"), "methods.mine.experts", "expert"),
        (nested("protocols.mine.student.epoch", 3), "protocols.mine.student.epoch", "epochs"),
        (nested("students.mine.arch", "resnet18"), "students.mine.arch", "architecture"),
        (nested("experts.mine.epoch", 3), "experts.mine.epoch", "epochs"),
        (nested("engine.precison", "fp32"), "engine.precison", "precision"),
        (nested("tracking.projekt", "x"), "tracking.projekt", "project"),
        (nested("jobs.minute", 3), "jobs.minute", "minutes"),
        (with_cell(ipcs=[1]), "matrix.0.ipcs", "ipc"),
    ],
)
def test_an_unknown_key_names_the_nearest(content, key, nearest):
    message = mistake(content)
    assert f"unknown key {key}; did you mean {nearest!r}?" in message
    assert nearest in message.split("Known here:")[1]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (nested("recover.iterations", "many"), "recover.iterations: Input should be a number.*got 'many'"),
        (nested("recover.iterations", 2.5), "recover.iterations: .*integer.*got 2.5"),
        (nested("recover.iterations", 0), "recover.iterations: .*greater than or equal to 1 .got 0"),
        (nested("recover.crop_scale", [0.5]), "recover.crop_scale.1: Field required"),
        (nested("recover.crop_scale", [0.5, 1.5]), "recover.crop_scale.1: .*less than or equal to 1"),
        (nested("recover.crop_scale", [1, 0.08]), "recover.crop_scale: the smaller share first: 0.08 1"),
        (nested("recover", 3), "recover: Input should be a mapping of settings .got 3"),
        (nested("student.lr", "1e-3"), r"student.lr: .*write 0.001 or 1.0e-3.*got '1e-3'"),
        (nested("autoencoder.factor", 3), "autoencoder.factor: Input should be a power of two"),
        (nested("methods.mine.recover.lr", "1e-3"), "methods.mine.recover.lr: Input should be a number"),
        (nested("methods.mine.recover.betas", [0.5, 0.9, 0.1]), "methods.mine.recover.betas: Tuple should have at most 2"),
        (nested("methods.mine.recover.betas", [[0.5, 0.9], [0.5, 2]]), "methods.mine.recover.betas.1.1: .*less than or"),
        (nested("methods.mine.recover.statistics", "pc"), "methods.mine.recover.statistics: .*'per-class' or 'global'"),
        (nested("methods.mine.recover.flip", "maybe"), "methods.mine.recover.flip: Input should be a valid boolean"),
        (nested("methods.mine.recover.init", "zeros"), "methods.mine.recover.init: String should match"),
        (nested("methods.mine.expert", ["convnet3"]), "methods.mine.expert: "),
        (nested("methods.mine.family", "x"), "methods.mine.family: .*'recover', 'select', 'latent', 'match' or 'import'"),
        (nested("teacher_seed", "sam"), "teacher_seed: .*'same'"),
        (nested("engine", "fast"), r"engine.*'auto', 'plain', 'eager' or 'compile'"),
        (nested("engine.mode", "fast"), r"engine.*'auto', 'plain', 'eager' or 'compile'"),
        (nested("engine.device", "gpu"), "engine.device: Input should be 'auto', 'cpu' or 'cuda' .got 'gpu'"),
        (nested("jobs.minutes", 0), "jobs.minutes: Input should be greater than 0"),
        (nested("tracking.mode", "off"), "tracking.mode: Input should be 'offline', 'online' or 'disabled'"),
        (nested("tracking.stages", ["students"]), "tracking.stages: there is no stage 'students'; stages are data, "),
        (nested("tracking.tags", ["a,b"]), "tracking.tags.0: String should match"),
        (nested("tracking.tags", ["x" * 65]), "tracking.tags.0: String should have at most 64 characters"),
        (nested("datasets.x.data.source", "cifar1"), "data.source: unknown source 'cifar1'; did you mean 'cifar10'"),
        (nested("datasets.x.data.mean", [0.5, 0.5]), "datasets.x.data.mean.2: Field required"),
        (nested("datasets.x.data.mean", [0.5, 0.5, 1.5]), "datasets.x.data.mean.2: .*less than or equal to 1"),
        (nested("datasets.x.data.mean", ["1e-1", 0, 0]), "data.mean.0: Input should be a number, but YAML reads this as"),
        (nested("datasets.x.data.std", [0, 1, 1]), "datasets.x.data.std.0: Input should be greater than 0"),
        (nested("datasets.x.data.train_images", -1), "data.train_images: Input should be greater than or equal to 0"),
        ({"methods": {"a b": {}}}, "methods.a b: String should match"),
        ({"methods": {"../up": {}}}, "methods.../up: String should match"),
        ({"datasets": {1: {}}}, "datasets.1: YAML does not read this key as text; put it in quotes"),
        ({"experiment": "a/b"}, "experiment: String should match"),
        ({"matrix": {"datasets": ["digits"]}}, "matrix: Input should be a valid list"),
        ({"matrix": [{"datasets": ["digits"]}]}, "matrix.0.methods: Field required"),
        ({1: 2}, "1: YAML does not read this key as text"),
        (with_cell(ipc=[0]), "matrix.0.ipc.0: Input should be greater than or equal to 1 .got 0"),
        (with_cell(ipc=[10, -1]), "matrix.0.ipc.1: .*greater than or equal to 1"),
        (with_cell(ipc=10), "matrix.0.ipc: Input should be a valid list .got 10"),
        (with_cell(ipc=[]), "matrix.0.ipc: List should have at least 1 item"),
        (with_cell(methods=[]), "matrix.0.methods: List should have at least 1 item"),
        (with_cell(datasets="digits"), "matrix.0.datasets: Input should be a valid list"),
        (with_cell(seeds=[-1]), "matrix.0.seeds.0: .*greater than or equal to 0"),
        (with_cell(runs=0), "matrix.0.runs: .*greater than or equal to 1"),
    ],
)  # fmt: skip
def test_a_wrong_value_names_the_place(content, says):
    assert re.search(says, mistake(content))


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


@pytest.mark.parametrize("engine", ["plain", {"mode": "plain"}])
def test_the_engine_may_be_a_word(engine):
    assert parse({"engine": engine}).engine == EngineSettings(mode="plain")


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


# Our own files, and the schema for editors


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_is_an_experiment_that_runs_something(path):
    assert list(Experiment.read(path).runs())


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


def test_every_setting_of_the_schema_says_what_it_means():
    silent = {name for kind in SETTINGS.values() for name, field in kind.model_fields.items() if not field.description}
    assert silent <= {"optimizer", "weight_decay", "label_smoothing", "mix"}  # whose names say all
