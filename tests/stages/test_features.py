"""One pass of the teacher: against double precision, the same bits however it is cut, interrupted or shared among jobs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import Killed
from wmdd.artifacts import hdf5, hdf5_writer, model_files
from wmdd.artifacts.partial_output import Pieces
from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.cli.teacher import features as run_features
from wmdd.cli.teacher import gather
from wmdd.datasets.loader import Resident, batches_by_class
from wmdd.networks.batchnorm import statistics_of
from wmdd.networks.engine import Engine, plain
from wmdd.networks.models import normalise
from wmdd.networks.normalisation import Normalisation
from wmdd.settings.engine import EngineSettings
from wmdd.settings.teacher import FeaturesSettings
from wmdd.stages.feature_files import keep, taken_up
from wmdd.stages.features import Shard, extract

COUNT = [7, 1, 4, 12, 3]
LABELS = torch.arange(5).repeat_interleave(torch.tensor(COUNT))
NORMALISATION = Normalisation([0.5, 0.4, 0.6], [0.2, 0.3, 0.25])
SETTINGS = FeaturesSettings(batch_size=4, exact=True)
ENGINE = EngineSettings(device="cpu", precision="fp32")


def drawn(key: str, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator("features test", key))


@pytest.fixture
def pictures() -> Resident:
    """Pictures whose brightness and contrast differ by class and by picture."""
    brightness = (40 + 30 * LABELS + 30 * drawn("brightness", len(LABELS)))[:, None, None, None]
    contrast = (20 + 40 * drawn("contrast", len(LABELS)))[:, None, None, None]
    images = brightness + contrast * drawn("pixels", len(LABELS), 3, 16, 16)
    return Resident(images.clamp(0, 255).to(torch.uint8), LABELS)


def passed(network, pictures, settings=SETTINGS, engine=None, **options) -> list[Shard]:
    return list(extract(network, pictures, NORMALISATION, settings, engine or plain(), **options))


def in_double(network, pictures) -> tuple[Tensor, dict[str, Tensor]]:
    """Features of all pictures, and the input of every BatchNorm layer, in double precision."""
    network, found = network.double(), {}
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in NORMALISATION)
    x = (pictures.images.double() / 255 - mean) / std
    layers = {n: m for n, m in network.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    handles = [m.register_forward_pre_hook(lambda _, a, n=n: found.update({n: a[0]})) for n, m in layers.items()]
    with torch.no_grad():
        features = network.embed(x)
    for handle in handles:
        handle.remove()
    return features, found


@pytest.mark.parametrize("size", [4, 64])
def test_features_and_statistics_are_those_of_a_double_precision_pass(tiny_teacher, pictures, size):
    (shard,) = passed(tiny_teacher.train(), pictures, FeaturesSettings(batch_size=size))
    assert shard.first == 0
    assert torch.equal(shard.labels, LABELS)
    features, exact = in_double(tiny_teacher, pictures)
    torch.testing.assert_close(shard.features.double(), features, rtol=1e-4, atol=1e-4)
    statistics = shard.moments.statistics()
    for name, inputs in exact.items():
        for c in range(5):
            pixels = inputs[c == LABELS].transpose(0, 1).flatten(1)
            torch.testing.assert_close(statistics.mean[name][c], pixels.mean(1), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(statistics.variance[name][c], pixels.var(1, correction=0), rtol=1e-4, atol=1e-4)


def test_the_variance_within_batches_leaves_out_what_is_between_them(tiny_teacher, pictures):
    settings = FeaturesSettings(batch_size=4, variance="batches", exact=True)
    (shard,) = passed(tiny_teacher, pictures, settings)
    sums = torch.stack(list(shard.moments.sums.values())).split(list(shard.moments.widths.values()), 2)
    batches, smaller = batches_by_class(LABELS, 4), False
    for of_layer, inputs in zip(sums, in_double(tiny_teacher, pictures)[1].values(), strict=True):
        mean, variance = statistics_of(of_layer, torch.tensor(COUNT), apart=True)
        for c in range(5):
            mine = [index for index in batches if int(LABELS[index[0]]) == c]
            parts = [len(i) * inputs[i].transpose(0, 1).flatten(1).var(1, correction=0) for i in mine]
            torch.testing.assert_close(variance[c], sum(parts) / COUNT[c], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(mean[c], inputs[c == LABELS].mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
            whole = inputs[c == LABELS].transpose(0, 1).flatten(1).var(1, correction=0)
            assert (variance[c] < whole + 1e-6).all()
            smaller |= bool((variance[c] < 0.99 * whole).any())
    assert smaller


@pytest.mark.parametrize("exact", [True, False])
def test_precision(tiny_teacher, pictures, exact):
    engine = Engine(torch.device("cpu"), torch.bfloat16)
    (shard,) = passed(tiny_teacher, pictures, FeaturesSettings(exact=exact), engine)
    with torch.no_grad():
        reference = tiny_teacher.embed(normalise(pictures.images, NORMALISATION))
    off = float((shard.features - reference).norm() / reference.norm())
    assert shard.features.dtype == torch.float32
    assert off < 1e-5 if exact else 1e-5 < off < 0.05


@pytest.mark.parametrize("every", [1, 3, None])
def test_shards_cut_nothing_but_the_pass(tiny_teacher, pictures, monkeypatch, every):
    (whole,) = passed(tiny_teacher, pictures)
    calls = iter(range(1000))
    due = (lambda: next(calls) % every == every - 1) if every else lambda: False
    if every is None:  # where a shard is full
        monkeypatch.setattr("wmdd.stages.features.SHARD", 9 * whole.features[0].nbytes)
    shards = passed(tiny_teacher, pictures, due=due)
    assert len(shards) > 2
    assert every or all(len(shard.labels) <= 9 for shard in shards)
    assert torch.equal(torch.cat([s.features for s in shards]), whole.features)
    assert torch.equal(torch.cat([s.labels for s in shards]), LABELS)
    assert [s.first for s in shards] == np.cumsum([0, *(len(s.labels) for s in shards)])[:-1].tolist()
    last = {label: (s.moments.count[label], s.moments.sums[label]) for s in shards for label in s.moments.count}
    for label, (count, sums) in last.items():
        assert count == COUNT[label]
        assert torch.equal(sums, whole.moments.sums[label])


def test_threads_change_no_bit(tiny_teacher, pictures):
    (one,) = passed(tiny_teacher, pictures)
    torch.set_num_threads(3)
    try:
        (found,) = passed(tiny_teacher, pictures)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(found.features, one.features)
    assert all(torch.equal(found.moments.sums[label], sums) for label, sums in one.moments.sums.items())


# ---- the command: shards, parts, joining


@pytest.fixture
def files(tiny_teacher, pictures, tmp_path) -> Path:
    """data.h5 and model.safetensors in a folder."""
    names = list("abcde")
    manifest = {"classes": names, "names": names, "resolution": 16} | NORMALISATION._asdict()
    arrays = {f"{s}/images": pictures.images.numpy() for s in ("train", "val")}
    arrays |= {f"{s}/labels": LABELS.numpy() for s in ("train", "val")}
    hdf5_writer.save(tmp_path / "data.h5", arrays, manifest)
    settings = {"architecture": "resnet18", "width": 4, "stem": "auto", "norm": "batch"}
    accuracy = {"top1": 0.5, "top5": 1.0}
    model_files.save_model(
        tmp_path / "model.safetensors",
        tiny_teacher.state_dict(),
        manifest | {"settings": settings, "accuracy": accuracy},
    )
    return tmp_path


def make(folder: Path, output: str = "features.h5", statistics: str | None = "statistics.h5", block=None) -> Path:
    run_features(
        data=folder / "data.h5",
        teacher=folder / "model.safetensors",
        output=folder / output,
        statistics=folder / statistics if statistics else None,
        block=block,
        settings=SETTINGS,
        engine=ENGINE,
    )
    return folder / output


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("features.h5", "statistics.h5")}


def test_the_files_hold_what_the_pass_gave(files, tiny_teacher, pictures):
    (shard,) = passed(tiny_teacher.to(memory_format=torch.channels_last), pictures)
    make(files)
    arrays, meta = hdf5.load(files / "features.h5")
    np.testing.assert_array_equal(arrays["features"], shard.features)
    np.testing.assert_array_equal(arrays["labels"], LABELS)
    assert meta["classes"] == list("abcde")
    arrays, meta = hdf5.load(files / "statistics.h5")
    np.testing.assert_array_equal(arrays["count"], COUNT)
    statistics = shard.moments.statistics()
    assert meta["layers"] == list(statistics.mean)
    for layer in meta["layers"]:
        np.testing.assert_array_equal(arrays[f"mean/{layer}"], statistics.mean[layer])
        np.testing.assert_array_equal(arrays[f"variance/{layer}"], statistics.variance[layer])


def test_jobs_that_share_the_pass_end_with_the_bytes_of_one(files, monkeypatch):
    make(files)
    whole = content(files)
    for name in whole:
        (files / name).unlink()
    parts = [make(files, f"{block}.h5", None, block) for block in ("classes0-1", "classes2-3", "classes4-4")]
    monkeypatch.setenv("WMDD_CHECKPOINT_SECONDS", "0")  # a shard a batch
    parts[1] = make(files, "classes2-3.h5", None, "classes2-3")
    gather(parts=parts, output=files / "features.h5", statistics=files / "statistics.h5")
    assert content(files) == whole


def test_parts_that_leave_a_class_out_or_do_not_belong_together_are_refused(files):
    parts = [make(files, f"{block}.h5", None, block) for block in ("classes0-1", "classes3-4")]
    whole = [parts[0], make(files, "classes2-2.h5", None, "classes2-2"), parts[1]]
    for given, said in (
        (parts, r"classes3-4\.h5 has the classes 3\.\.4 where class 2 follows"),  # one is left out
        (whole[::-1], r"classes3-4\.h5 has the classes 3\.\.4 where class 0 follows"),
        ([*whole[:2], whole[1], whole[2]], r"classes2-2\.h5 has the classes 2\.\.2 where class 3 follows"),  # one twice
        (whole[:2], "end before class 3 of 5"),
    ):
        with pytest.raises(WmddError, match=said):
            gather(parts=given, output=files / "features.h5", statistics=files / "statistics.h5")
    assert not (files / "features.h5").exists()
    assert not (files / "statistics.h5").exists()
    arrays, meta = hdf5.load(parts[1])
    hdf5_writer.save(parts[1], arrays, meta | {"inputs": {"data": "other", "teacher": "other"}})
    with pytest.raises(WmddError, match=r"classes3-4\.h5 is of other data"):
        gather(parts=parts, output=files / "features.h5", statistics=files / "statistics.h5")


def test_statistics_belong_to_the_whole_and_blocks_to_parts(files):
    with pytest.raises(WmddError, match="--block"):
        make(files, statistics=None)
    with pytest.raises(WmddError, match="--statistics"):
        make(files, block="classes0-1")


def test_a_killed_pass_goes_on_to_the_same_bytes(files, monkeypatch):
    make(files)
    whole = content(files)
    for name in whole:
        (files / name).unlink()
    monkeypatch.setenv("WMDD_CHECKPOINT_SECONDS", "0")  # a shard a batch
    add = Pieces.add
    with monkeypatch.context() as patch:

        def added(self, *arguments, **meta):
            add(self, *arguments, **meta)
            if len(self.files) == 3:
                raise Killed

        patch.setattr(Pieces, "add", added)
        with pytest.raises(Killed):
            make(files)
    assert not (files / "features.h5").exists()
    kept = sorted(files.glob(".features.h5.*.pieces/*.h5"))
    assert len(kept) == 3
    kept[-1].write_bytes(kept[-1].read_bytes()[:500])  # one that the disk lost; it is made anew
    (kept[0].parent / ".000000000099.h5.1.part").write_text("half")
    restored = Pieces(files / "features.h5", hdf5.load_meta(kept[0])["key"])
    stop, _ = taken_up(restored)
    assert [path.name for path in restored.files] == [path.name for path in kept[:-1]]
    assert stop > 0
    make(files)
    assert content(files) == whole
    assert not list(files.glob(".*"))


def test_what_was_kept_goes_on_with_the_class_that_it_was_at_and_counts_what_was_spent(files, tiny_teacher, pictures):
    pieces = Pieces(files / "features.h5", "a key")
    for index, shard in enumerate(passed(tiny_teacher, pictures, due=lambda: True)):
        keep(pieces, shard, 1000.0 + index)
    again = Pieces(files / "features.h5", "a key")
    stop, moments = taken_up(again)
    assert (stop, moments.count) == (len(LABELS), {4: 3})
    assert again.seconds == 1000 + len(pieces.files) - 1
    assert taken_up(Pieces(files / "features.h5", "another")) == (0, None)
    make(files)  # which is of another key, too
    assert json.loads((files / "features.cost.json").read_text())["seconds"] < 900
