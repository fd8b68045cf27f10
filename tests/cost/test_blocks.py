"""Blocks: how the classes of a distilled set are cut into jobs, and the device that these are sized for."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmdd.base.errors import WmddError
from wmdd.cost import rates
from wmdd.cost.blocks import PIXELS_PER_BLOCK, Blocks, coarse
from wmdd.cost.laws import work
from wmdd.cost.plan import estimate
from wmdd.cost.scene import Shapes
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.experiment_file import presets
from wmdd.workflow.layout import Cell

from ..workflow.experiments import merged, nested

SIDE = nested("datasets.d.data.resolution", 64)
FOREVER = {"jobs": {"minutes": 1e9}}


def sizes(content, ipc=1, classes=100):
    """The classes of each block of a method based on wmdd on a dataset `d`; every class is in one of them."""
    usual = {"datasets": {"d": {"data": {"classes": classes}}}, "methods": {"mine": {"base": "wmdd"}}}
    names = Blocks(Experiment(merged(usual, content))).names(Cell("d", "resnet18", "mine", ipc))
    blocks = [Cell(block=name).classes for name in names]
    assert [c for block in blocks for c in block] == list(range(classes))
    return list(map(len, blocks))


def names(dataset, method, ipc, content=None):
    return Blocks(Experiment(content or {})).names(Cell(dataset, "resnet18", method, ipc))


def test_a_block_has_a_thousand_images_where_their_time_is_not_known():
    assert sizes({}) == [100]
    assert sizes({}, ipc=10, classes=1000) == [100] * 10
    assert sizes({}, ipc=100) == [10] * 10
    assert sizes({}, ipc=2000) == [1] * 100
    assert names("digits", "wmdd", 10) == ["classes0-9"]
    assert names("cifar10", "ddoq", 500) == [f"classes{a}-{a + 1}" for a in range(0, 10, 2)]
    library = nested("teachers.resnet18.architecture", "timm:resnet18")
    assert sizes(merged(SIDE, FOREVER), ipc=100) == [100]
    assert sizes(merged(SIDE, FOREVER, library), ipc=100) == [10] * 10


@pytest.mark.parametrize("dataset", sorted(presets().datasets))
def test_every_preset_is_cut(dataset):
    blocks = Blocks(Experiment({}))
    assert all(blocks.names(Cell(dataset, "resnet18", method, 10)) for method in presets().methods)


def minutes(size, ipc, content):
    """Of recover for a block of so many classes of `d`, by the estimate of the plan."""
    data = {"datasets": {"d": {"classes_per_block": size, "data": {"classes": 1000}}}}
    shapes = Shapes(Experiment(merged(SIDE, data, content)), assume=True)
    cell = Cell("d", "resnet18", "wmdd", ipc)
    job = work(shapes, "recover", cell.having(block=shapes.blocks.names(cell)[0]))
    return (estimate(job, shapes.blocks.device).seconds - rates.table()["start"]) / 60


@pytest.mark.parametrize(
    "content",
    [{}, {"jobs": {"minutes": 60}}, {"jobs": {"device": "h200"}}, {"engine": {"device": "cpu"}}, {"engine": "plain"},
     {"recover": {"iterations": 300}}, {"teachers": {"resnet18": {"width": 16}}}],
    ids=str,
)  # fmt: skip
def test_a_block_is_the_largest_of_the_series_that_takes_the_minutes(content):
    target = content.get("jobs", {}).get("minutes", 15)
    for ipc in 1, 10, 100:
        size = sizes(merged(SIDE, content), ipc=ipc, classes=1000)[0]
        assert size == coarse(size)
        larger = next(s for s in (2 * size, 5 * size // 2) if coarse(s) == s)
        assert minutes(size, ipc, content) <= target or size == 1
        too_large = size == 1000 or larger * ipc * 12 * 64**2 > PIXELS_PER_BLOCK
        assert minutes(larger, ipc, content) > target or too_large


@given(st.floats(0, 1e6))
def test_sizes_are_coarse(value):
    size = coarse(value)
    assert size == 1 or size <= value * (1 + 1e-8)
    assert value < 2.5 * size or size == 1
    assert re.fullmatch("[125]0*", str(size))
    assert coarse(size) == size


def test_a_rate_that_is_measured_anew_seldom_cuts_blocks_anew(monkeypatch):
    side = nested("datasets.d.data.resolution", 224)
    before = [sizes(side, ipc=ipc, classes=1000) for ipc in (1, 10, 50, 100)]
    rate = rates.Device.rate
    monkeypatch.setattr(rates.Device, "rate", lambda *a: (0.95 * rate(*a)[0], rate(*a)[1]))
    assert [sizes(side, ipc=ipc, classes=1000) for ipc in (1, 10, 50, 100)] == before


@pytest.mark.parametrize(
    ("device", "jobs"), [("a100", [1, 2, 10, 20]), ("h100", [1, 1, 5, 10]), ("h200", [1, 1, 5, 10])]
)
def test_the_jobs_of_imagenet(device, jobs):
    content = {"jobs": {"device": device}}
    assert [len(names("imagenet-1k", "wmdd", ipc, content)) for ipc in (1, 10, 50, 100)] == jobs


def test_the_images_of_a_block_fit_into_memory():
    content = merged(FOREVER, nested("datasets.d.data.resolution", 224))
    for ipc in (1, 10, 100, 1000):
        size = sizes(content, ipc=ipc, classes=100_000)[0]
        assert 12 * 224**2 * size * ipc <= PIXELS_PER_BLOCK < 2.5 * 12 * 224**2 * size * ipc
    assert sizes(content, ipc=100_000, classes=2) == [1, 1]


def test_classes_per_block_win_over_the_minutes():
    chosen = nested("datasets.d.classes_per_block", 30)
    for minutes in 1, 1000:
        assert sizes(merged(SIDE, chosen, {"jobs": {"minutes": minutes}})) == [30, 30, 30, 10]


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
    """The batches of a decoupled method, whose statistics are per class, cut nothing."""
    recover = {"statistics": statistics, "composition": composition, "batch_size": batch}
    content = merged(nested("datasets.d.classes_per_block", per_block), {"recover": recover})
    cut = sizes(content, ipc=ipc, classes=classes)  # which asserts that they do
    alone = max(1, batch // ipc)  # classes of a batch
    whole = alone * max(1, per_block // alone)
    limit = per_block if statistics == "per-class" else batch if composition == "across" else whole
    assert set(cut[:-1]) <= {limit}
    assert cut[-1] <= limit


def test_untrained_networks_are_matched_in_blocks_and_trajectories_in_one():
    content = nested("datasets.cifar10.classes_per_block", 4)
    for method in "dm", "datadam":
        assert names("cifar10", method, 10, content) == ["classes0-3", "classes4-7", "classes8-9"]
        assert names("cifar100", method, 50) == [f"classes{a}-{a + 19}" for a in range(0, 100, 20)]
    for method, dataset, last in ("mtt", "cifar100", 99), ("mtt-tiny-ipc10", "tiny-imagenet", 199):
        assert names(dataset, method, 50, content) == [f"classes0-{last}"]


def test_the_device_that_jobs_are_sized_for():
    for content, name in (
        ({}, "a100"),
        ({"engine": {"device": "cuda"}}, "a100"),
        ({"engine": {"device": "cpu"}}, "cpu-core"),
        ({"engine": {"device": "cpu", "precision": "fp32"}}, "cpu-core-fp32"),
        ({"engine": {"device": "cpu", "mode": "plain"}}, "cpu-core-fp32"),
        ({"jobs": {"device": "h100"}}, "h100"),
    ):
        assert Blocks(Experiment(content)).device.name == name
    engines = [{"precision": precision} for precision in ("auto", "bf16", "tf32", "fp32")]
    peaks = [Blocks(Experiment({"engine": engine})).device.peak.flops for engine in (*engines, "plain")]
    assert peaks[0] == peaks[1] == 2 * peaks[2] == 16 * peaks[3] == 16 * peaks[4]


def test_a_device_that_there_is_not_or_that_does_not_fit():
    remedy = "leave jobs.device out, or change one of them"
    for name, engine, says in (
        ("h300", "auto", "jobs.device: there is no device 'h300'; known: cpu-core, cpu-core-fp32, a100, h100, h200"),
        ("h100", "cpu", f"jobs.device h100 is of kind cuda but engine.device is cpu; {remedy}"),
        ("cpu-core", "cuda", f"jobs.device cpu-core is of kind cpu but engine.device is cuda; {remedy}"),
    ):
        with pytest.raises(WmddError, match=f"^{re.escape(says)}$"):
            Blocks(Experiment({"jobs": {"device": name}, "engine": {"device": engine}}))
