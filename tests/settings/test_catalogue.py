"""The table of known datasets, and the settings that come from it."""

import pytest
from pydantic import ValidationError

from wmdd.base.errors import WmddError
from wmdd.datasets.imagenet_classes import indices, wnids
from wmdd.settings.catalogue import Archive, Known, known, table
from wmdd.settings.data import DataSettings
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.experiment_file import presets
from wmdd.workflow.stages import SETTINGS

MINIMAL = {"title": "mine", "layout": "folders", "variant": "mine"}
MTT = {  # utils.py of github.com/GeorgeCazenavette/mtt-distillation: positions among the 1,000 classes
    "imagefruit": [953, 954, 949, 950, 951, 957, 952, 945, 943, 948],
    "imagemeow": [281, 282, 283, 284, 285, 291, 292, 290, 289, 287],
    "imagesquawk": [84, 130, 88, 144, 145, 22, 96, 9, 100, 89],
    "imageyellow": [309, 986, 954, 951, 987, 779, 599, 291, 72, 11],
}
WOOF = [193, 182, 258, 162, 155, 167, 159, 273, 207, 229]  # there, too
DATASETS = [name for name, entry in table().items() if entry.data]


def test_an_entry_may_override_every_stage_and_nothing_else():
    for stage in SETTINGS:
        assert Known.model_validate({**MINIMAL, stage: {"anything": 1}}).settings()[stage] == {"anything": 1}
    entry = Known.model_validate({**MINIMAL, "recovery": {"iterations": 1}})
    with pytest.raises(WmddError, match=r"unknown key datasets\.mine\.recovery; did you mean 'recover'"):
        Experiment({"datasets": {"mine": entry.settings()}})


def test_every_entry_with_data_is_a_preset_and_the_others_are_sources_only():
    assert set(presets().datasets) == set(DATASETS)
    assert set(table()) - set(DATASETS) == {"imagefolder"}


def test_entries_are_whole():
    for name in DATASETS:
        entry, data = known(name), Experiment({}).resolve("data", dataset=name)
        assert data.source == name
        assert len(entry.subset) in (0, data.classes)
        assert (data.mean is None) == (data.std is None) == (entry.layout == "digits")
        assert bool(data.val_images) == (entry.layout != "digits")
        assert bool(data.train_images) == (entry.layout != "digits" and name not in MTT)
        assert (entry.homepage.startswith("http"), bool(entry.licence)) == (True, True)
        for archive in entry.archives:
            assert archive.checksum[1]
            assert not archive.url or (archive.size and archive.folder and archive.url.endswith(f"/{archive.name}"))


def test_subsets_are_of_imagenet():
    subsets = {name: table()[name].subset for name in DATASETS if table()[name].subset}
    assert subsets.keys() == {"imagenette-in1k", "imagenet-100", "imagewoof-in1k", *MTT}
    for name, subset in subsets.items():
        assert list(subset) == sorted(subset), name
        assert set(subset) < set(wnids()), name
    for name in "imagenette", "imagewoof":
        ours, theirs = (Experiment({}).resolve("data", dataset=dataset) for dataset in (f"{name}-in1k", name))
        assert ours.train_images + ours.val_images == theirs.train_images + theirs.val_images, "split in two ways"


@pytest.mark.parametrize(("name", "positions"), [*MTT.items(), ("imagewoof-in1k", WOOF)])
def test_the_named_subsets_are_those_of_mtt(name, positions):
    assert indices(list(known(name).subset)) == sorted(positions)
    assert Experiment({}).resolve("match", dataset=name).architecture == "convnet5"


def test_an_unknown_source_names_the_nearest_and_the_schema_lists_them():
    with pytest.raises(WmddError, match=r"unknown source 'imagenete'; did you mean 'imagenette'\? Known: digits, "):
        known("imagenete")
    with pytest.raises(ValidationError, match="did you mean 'cifar10'"):
        DataSettings(source="cifar1")
    assert DataSettings.model_json_schema()["properties"]["source"]["enum"] == list(table())


def test_what_is_not_whole_is_refused():
    entry, archive = {"title": "x", "variant": "x", "layout": "folders"}, {"name": "x"}
    bad = [entry | changes for changes in ({"layout": "cifar"}, {"subset": ("a", "a")}, {"layout": "piles"})]
    bad += [archive | {"name": name} for name in ("../x", "a/b", "")]
    bad += [archive | changes for changes in ({"folder": ".."}, {"sha256": "12"}, {"md5": "Z" * 32}, {"colour": 1})]
    for values in bad:
        with pytest.raises(ValidationError):
            (Known if "title" in values else Archive)(**values)


def test_the_best_checksum_counts():
    assert Archive(name="x", md5="1" * 32).checksum == ("md5", "1" * 32)
    assert Archive(name="x", md5="1" * 32, sha256="2" * 64).checksum == ("sha256", "2" * 64)
    assert Archive(name="x").checksum == ("", "")
