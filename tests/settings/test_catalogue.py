"""The table of known datasets, and the settings that come from it."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from wmdd.base.errors import WmddError
from wmdd.datasets.imagenet_classes import wnids
from wmdd.settings.base import flags
from wmdd.settings.catalogue import Archive, Known, known, table
from wmdd.settings.data import DataSettings
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.experiment_file import presets
from wmdd.workflow.stages import SETTINGS

MINIMAL = {"title": "mine", "layout": "folders", "variant": "mine"}
DATASETS = [name for name, entry in table().items() if entry.data]


def test_the_table_can_be_read_without_torch():
    code = "import sys, wmdd.settings.catalogue; wmdd.settings.catalogue.table(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("stage", SETTINGS)
def test_an_entry_may_override_every_stage(stage):
    entry = Known.model_validate({**MINIMAL, stage: {"anything": 1}})
    assert entry.settings()[stage] == {"anything": 1}


def test_a_key_that_is_no_stage_is_refused_by_name():
    entry = Known.model_validate({**MINIMAL, "recovery": {"iterations": 1}})
    with pytest.raises(WmddError, match=r"unknown key datasets\.mine\.recovery; did you mean 'recover'"):
        Experiment({"datasets": {"mine": entry.settings()}})


def test_every_entry_with_data_is_a_preset_and_the_others_are_sources_only():
    assert set(presets().datasets) == set(DATASETS)
    assert set(table()) - set(DATASETS) == {"imagefolder"}


@pytest.mark.parametrize("name", DATASETS)
def test_an_entry_names_itself(name):
    entry = known(name)
    data = Experiment({}).resolve("data", dataset=name)
    assert data.source == name
    assert len(entry.subset) in (0, data.classes)
    assert (data.mean is None) == (data.std is None) == (entry.layout == "digits")
    assert bool(data.train_images) == bool(data.val_images) == (entry.layout != "digits")
    assert entry.homepage.startswith("http")
    assert entry.licence


@pytest.mark.parametrize("name", DATASETS)
def test_what_is_downloaded_has_a_size_and_a_checksum(name):
    for archive in known(name).archives:
        assert archive.checksum[1]
        assert not archive.url or (archive.size and archive.folder and archive.url.endswith(f"/{archive.name}"))


@pytest.mark.parametrize("name", ["imagenette-in1k", "imagenet-100"])
def test_a_subset_is_of_imagenet(name):
    assert set(known(name).subset) < set(wnids())


def test_imagenette_is_split_in_two_ways():
    ours, theirs = (Experiment({}).resolve("data", dataset=name) for name in ("imagenette-in1k", "imagenette"))
    assert ours.train_images + ours.val_images == theirs.train_images + theirs.val_images
    assert ours.val_images == 50 * ours.classes


def test_an_unknown_source_names_the_nearest():
    with pytest.raises(WmddError, match=r"unknown source 'imagenete'; did you mean 'imagenette'\? Known: digits, "):
        known("imagenete")
    with pytest.raises(WmddError, match=r"datasets.x.data.source: unknown source 'cifar1'; did you mean 'cifar10'\?"):
        Experiment({"datasets": {"x": {"data": {"source": "cifar1"}}}})
    with pytest.raises(ValidationError, match="did you mean 'cifar10'"):
        DataSettings(source="cifar1")


def test_the_schema_lists_the_sources():
    source = DataSettings.model_json_schema()["properties"]["source"]
    assert source["enum"] == list(table())


@pytest.mark.parametrize(
    "bad",
    [
        {"name": "../x"},
        {"name": "a/b"},
        {"name": ""},
        {"name": "x", "folder": ".."},
        {"name": "x", "sha256": "12"},
        {"name": "x", "md5": "Z" * 32},
        {"name": "x", "colour": 1},
    ],
)
def test_an_archive_that_is_none_is_refused(bad):
    with pytest.raises(ValidationError):
        Archive(**bad)


def test_the_best_checksum_counts():
    assert Archive(name="x", md5="1" * 32).checksum == ("md5", "1" * 32)
    assert Archive(name="x", md5="1" * 32, sha256="2" * 64).checksum == ("sha256", "2" * 64)
    assert Archive(name="x").checksum == ("", "")


@pytest.mark.parametrize("bad", [{"layout": "cifar"}, {"layout": "folders", "subset": ("a", "a")}, {"layout": "piles"}])
def test_an_entry_that_is_not_whole_is_refused(bad):
    with pytest.raises(ValidationError):
        Known(title="x", variant="x", **bad)


# The settings


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"mean": [0.5, 0.5]}, "mean.2: Field required"),
        ({"mean": [0.5, 0.5, 1.5]}, "mean.2: Input should be less than or equal to 1"),
        ({"mean": ["1e-1", 0.5, 0.5]}, "mean.0: Input should be a number, but YAML reads this as text"),
        ({"std": [0, 1, 1]}, "std.0: Input should be greater than 0"),
        ({"train_images": -1}, "train_images: Input should be greater than or equal to 0"),
    ],
)
def test_bad_numbers_of_a_dataset(bad, says):
    with pytest.raises(WmddError) as caught:
        Experiment({"datasets": {"x": {"data": bad}}})
    assert f"datasets.x.data.{says}" in str(caught.value)


def test_what_is_not_set_has_no_flag():
    assert "--mean" not in flags(DataSettings())
    assert "--mean 0.1 0.2 0.3 " in flags(DataSettings(mean=(0.1, 0.2, 0.3)))
