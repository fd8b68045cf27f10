"""The stores of labels: what pruning keeps, what it costs, and that a student can't tell a store from another but by that."""

import copy
import math
from contextlib import contextmanager

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wmdd.artifacts import hdf5_writer
from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.datasets.loader import Resident
from wmdd.networks import augment
from wmdd.networks.context import quiet
from wmdd.networks.engine import plain
from wmdd.networks.models import build, normalise
from wmdd.networks.normalisation import Normalisation
from wmdd.settings.network import NetworkSettings
from wmdd.settings.student import AugmentationSettings, RelabelSettings, StudentSettings
from wmdd.stages import student
from wmdd.stages.labels import (
    Committee,
    Renormalised,
    append,
    hard,
    online,
    opened,
    prune,
    pruned,
    restore,
    rows_of,
    stored,
)
from wmdd.stages.relabel import relabel, seeds_of, views_of
from wmdd.stages.shown import Shown

PRUNED = RelabelSettings(store="pruned")
SIZES = [(1000, 50, 20.0), (10, 3, 4.0), (256, 255, 1.0), (257, 1, 20.0), (5, 0, 20.0), (5, 9, 20.0)]


def logits_of(*shape: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, generator=generator("labels test", *shape))


def halved(logits: Tensor) -> Tensor:
    return logits.half().double()


# The code


@pytest.mark.parametrize(("classes", "k", "temperature"), SIZES)
def test_the_largest_come_back_within_the_bound(classes, k, temperature):
    logits = halved(logits_of(20, classes))
    code = prune(logits, k, temperature)
    found = restore(code, classes).double()
    assert found.shape == logits.shape
    kept = min(k, classes) or classes
    top = logits.topk(kept, 1)
    assert torch.equal(code.high.double(), top.values[:, 0])
    assert torch.equal(code.low.double(), top.values[:, -1])
    bound = (code.high.double() - code.low.double()) / 510
    places = torch.arange(classes).expand(20, -1) if code.classes is None else code.classes.long()
    chosen, given = found.gather(1, places), logits.gather(1, places)
    assert torch.equal(given.sort(1, descending=True).values, top.values)
    assert ((chosen - given).abs() <= bound[:, None] * (1 + 1e-4) + 1e-6).all()
    if kept > 1:  # the bound is not a loose one, and the ends are not rounded
        assert ((chosen - given).abs().amax(1) > 0.2 * bound).any()
        torch.testing.assert_close(
            torch.stack(chosen.aminmax(dim=1)), torch.stack(given.aminmax(dim=1)), rtol=1e-6, atol=0
        )


@pytest.mark.parametrize(("classes", "k", "temperature"), [size for size in SIZES if 0 < size[1] < size[0]])
def test_what_is_left_out_keeps_its_mass_at_the_temperature(classes, k, temperature):
    logits = halved(logits_of(20, classes))
    code = prune(logits, k, temperature)
    found = restore(code, classes).double()
    left = torch.ones_like(found, dtype=torch.bool).scatter_(1, code.classes.long(), False)
    assert torch.equal(found[left], code.rest.double().repeat_interleave(classes - k))
    # r in float16 is off by at most 2^-11 |r|
    mass, kept = (torch.where(left, each / temperature, -math.inf).logsumexp(1) for each in (logits, found))
    assert ((mass - kept).abs() <= 2**-11 * code.rest.double().abs() / temperature + 1e-6).all()


@given(st.integers(1, 12), st.integers(0, 14), st.integers(0, 2**31), st.booleans())
def test_pruning_keeps_the_order_of_kept_and_left_out(classes, k, seed, coarse):
    """Even where many logits are equal: none that is left out comes back above one that is kept. Views are pruned alone."""
    logits = 4 * torch.randn(3, classes, generator=torch.Generator().manual_seed(seed))
    logits = logits.round() if coarse else logits
    code = prune(logits, k, 20.0)
    found = restore(code, classes)
    assert torch.equal(found.amax(1), code.high.float())
    assert torch.equal(restore(prune(logits[1:2], k, 20.0), classes), found[1:2])
    if code.classes is None:
        assert code.rest is None
        assert code.values.shape == (3, classes)
    else:
        assert (code.rest <= code.low).all()
        assert (code.classes.long().diff(dim=1) > 0).all(), "each class once"


def test_of_equal_logits_the_first_are_kept_and_come_back_as_they_are():
    code = prune(torch.tensor([[1.0, 2.0, 1.0, 1.0, 2.0]]), 3, 20.0)
    assert code.classes.tolist() == [[0, 1, 4]]
    assert restore(code, 5).tolist() == [[1.0, 2.0, 1.0, 1.0, 2.0]]
    for k in (0, 1, 3, 7):
        logits = torch.tensor([0.0, -2.5, 60000.0])[:, None].expand(3, 7)
        torch.testing.assert_close(restore(prune(logits, k, 20.0), 7), logits, rtol=2**-11, atol=0)


# Its size


@pytest.mark.parametrize(
    ("classes", "k", "expected"),
    [(1000, 50, 50 + 100 + 6), (256, 50, 50 + 50 + 6), (257, 50, 50 + 100 + 6), (100, 0, 104), (10, 50, 14)],
)
def test_bytes_a_view(classes, k, expected):
    settings = RelabelSettings(epochs=8, store="pruned", top_k=k)
    assert sum(row.nbytes for row in rows_of(logits_of(6, classes), settings).values()) == 6 * expected
    whole = RelabelSettings(epochs=8)
    assert rows_of(logits_of(6, classes), whole)["logits"].nbytes == 6 * 2 * classes
    assert (settings.labelled, whole.labelled) == (2, 8)  # so a thousand classes take 51 times less


# Files


@contextmanager
def written(path, logits, settings):
    """The labels of logits [E, N, C], by way of a file."""
    seeds = seeds_of(0, settings.labelled)
    with hdf5_writer.writing(path) as writer:
        writer.meta = {"settings": settings.model_dump(mode="json"), "classes": ["x"] * logits.shape[2]}
        for epoch in range(settings.labelled):
            append(writer, rows_of(logits[epoch], settings))
        writer.put("seeds", np.array(seeds))
    with opened(path) as (labels, _):
        yield labels


def test_stored_labels_come_back_an_epoch_at_a_time(tmp_path):
    logits = logits_of(4, 6, 5).half()
    with written(tmp_path / "x.h5", logits, RelabelSettings(epochs=4)) as labels:
        assert (labels.epochs, labels.soft, labels.teacher) == (4, True, None)
        for epoch in (2, 0, 3, 1, 2):
            assert torch.equal(labels.logits(epoch), logits[epoch])
            assert labels.seed(epoch) == seeds_of(0, 4)[epoch]


@pytest.mark.parametrize(("k", "classes"), [(2, 300), (0, 5)])
def test_pruned_labels_come_in_turn(tmp_path, classes, k):
    settings = RelabelSettings(epochs=10, store="pruned", top_k=k)
    logits = logits_of(10, 6, classes)
    with written(tmp_path / "x.h5", logits, settings) as labels:
        assert (labels.epochs, labels.soft, labels.teacher) == (10, True, None)
        for epoch in (0, 1, 2, 3, 4, 9):
            expected = restore(prune(logits[epoch % 3], k, 20.0), classes)
            assert torch.equal(labels.logits(epoch), expected)
            assert labels.seed(epoch) == seeds_of(0, 3)[epoch % 3]


def test_an_epoch_is_a_chunk_and_read_when_it_is_asked_for(tmp_path):
    logits = logits_of(3, count := 600, 1000)
    with written(tmp_path / "x.h5", logits, RelabelSettings(epochs=3)) as labels:
        read = []
        whole = h5py.Dataset.__getitem__

        def spy(self, key):
            read.append((self.name, key))
            return whole(self, key)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(h5py.Dataset, "__getitem__", spy)
            labels.logits(1)
        assert read == [("/logits", slice(1, 2, None))]
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["logits"].chunks == (1, count, 1000)
    assert (tmp_path / "x.h5").stat().st_size < 1.05 * 2 * logits.numel() + 2**14, "room that nothing fills"


@pytest.mark.parametrize(("name", "says"), [("seeds", "lacks logits"), ("logits", "lacks seeds")])
def test_a_file_of_another_stage_is_refused(tmp_path, name, says):
    hdf5_writer.save(tmp_path / "x.h5", {name: np.zeros(3)}, {})
    with pytest.raises(WmddError, match=rf"x\.h5 {says}; delete it and run again"), opened(tmp_path / "x.h5"):
        pass


# The student of a store

COUNT, CLASSES = 8, 5
NORMALISATION = Normalisation([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
VIEWS = AugmentationSettings(crop_scale=(0.3, 1))
SETTINGS = StudentSettings(
    architecture="convnet3", width=8, norm="instance", epochs=3, batch_size=3, temperature=2, optimizer="sgd", lr=0.1
)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (COUNT, 3, 16, 16), generator=generator("labels images"), dtype=torch.uint8)


def studied(images, labels, settings=SETTINGS, shown=None):
    of = torch.arange(COUNT) % CLASSES
    ((network, history, _),) = student.train(
        images, of, torch.ones(COUNT), labels, Resident(images, of), CLASSES, NORMALISATION, settings, VIEWS, 0, [0],
        quiet(plain()), None, shown,
    )  # fmt: skip
    return torch.cat([value.flatten() for value in network.state_dict().values()]), [entry["loss"] for entry in history]


def labelled(teacher, images, epochs=3, shown=None):
    seeds, context = seeds_of(0, epochs), quiet(plain())
    return torch.stack(list(relabel(teacher, images, NORMALISATION, seeds, VIEWS, 4, context, shown=shown))), seeds


PARTLY = Shown(2, 4, 3)  # an epoch shows six of the eight images


@pytest.mark.parametrize("shown", [None, PARTLY], ids=["all", "partly"])
def test_asked_and_stored_labels_make_the_same_student(tiny_teacher, images, shown):
    """Up to the half precision of what is stored, and to the batches that the teacher is asked in."""
    kept, losses = studied(images, stored(*labelled(tiny_teacher, images, shown=shown)), shown=shown)
    asked, found = studied(images, online(0, tiny_teacher.train()), shown=shown)
    assert found == pytest.approx(losses, rel=1e-3)
    torch.testing.assert_close(asked, kept, rtol=0, atol=2e-5)
    other, losses = studied(images, stored(*labelled(tiny_teacher, images.flip(0), shown=shown)), shown=shown)
    assert float((other - kept).abs().max()) > 5e-4, "any labels would do"
    assert losses != pytest.approx(found, rel=1e-3)


def test_asked_and_stored_labels_of_a_batchs_statistics_make_the_same_student(tiny_teacher, images):
    """The batches are those of the labels, not those of the student."""
    seeds, context = seeds_of(0, 3), quiet(plain())
    found = list(
        relabel(copy.deepcopy(tiny_teacher), images, NORMALISATION, seeds, VIEWS, 4, context, statistics_batch=4)
    )
    kept, losses = studied(images, stored(torch.stack(found), seeds))
    asked, found = studied(images, online(0, copy.deepcopy(tiny_teacher), 4))
    assert found == pytest.approx(losses, rel=1e-3)
    torch.testing.assert_close(asked, kept, rtol=0, atol=2e-5)
    assert losses != pytest.approx(studied(images, online(0, tiny_teacher))[1], rel=1e-3)


def test_several_teachers_speak_with_the_mean_of_their_logits(tiny_teacher, images):
    other = build(NetworkSettings(architecture="convnet1", width=4, norm="instance"), CLASSES, 16, generator("other"))
    x = normalise(images, NORMALISATION)
    with torch.no_grad():
        expected = (tiny_teacher(x) + other.eval()(x)) / 2
        torch.testing.assert_close(Committee([tiny_teacher, other])(x), expected)


@pytest.mark.parametrize("shown", [None, PARTLY], ids=["all", "partly"])
def test_asked_and_stored_labels_that_float16_holds_make_the_same_bits(images, shown):
    """And the same as pruned ones with no rest and values that eight bits hold."""

    class Coarse(torch.nn.Module):
        head = torch.nn.Linear(1, CLASSES)

        def forward(self, x):
            steps = (x.mean((1, 2, 3))[:, None] * torch.arange(CLASSES)).clamp(0, 1).mul(255).round() / 256
            return steps.index_fill(1, torch.tensor([0]), 0).index_fill(1, torch.tensor([1]), 255 / 256)

    logits, seeds = labelled(Coarse(), images, shown=shown)
    assert len(logits.unique()) > 10
    one, losses = studied(images, online(0, Coarse()), shown=shown)
    for labels in stored(logits, seeds), pruned(lambda epoch: prune(logits[epoch], 0, 2.0), seeds, CLASSES, 3):
        two, found = studied(images, labels, shown=shown)
        assert torch.equal(one, two)
        assert found == losses


def test_an_epoch_whose_labels_come_again_shows_the_same_images(tiny_teacher, images):
    logits, seeds = labelled(tiny_teacher, images, 2, PARTLY)
    codes = [prune(each, 3, 2.0) for each in logits]
    labels = pruned(codes.__getitem__, seeds, CLASSES, 5)
    frozen = SETTINGS.model_copy(update={"epochs": 5, "lr": 1e-12})
    _, losses = studied(images, labels, frozen, PARTLY)
    assert losses[2:] == pytest.approx([losses[0], losses[1], losses[0]], rel=1e-6)
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_the_epochs_of_a_student_of_pruned_labels_take_turns(tiny_teacher, images):
    """Its labels are those of the views that it sees: it is the student of stored labels that repeat in the same way."""
    logits, seeds = labelled(tiny_teacher, images, 2)
    codes = [prune(each, 3, 2.0) for each in logits]
    settings = SETTINGS.model_copy(update={"epochs": 5})
    turns = [0, 1, 0, 1, 0]
    one = studied(images, pruned(codes.__getitem__, seeds, CLASSES, 5), settings)
    two = studied(images, stored([restore(codes[t], CLASSES) for t in turns], [seeds[t] for t in turns]), settings)
    assert torch.equal(one[0], two[0])
    assert one[1] == two[1]


def test_hard_and_asked_labels_have_the_views_of_their_seed():
    labels, asked = hard(3), online(3, torch.nn.Identity())
    assert (labels.soft, asked.soft) == (False, True)
    assert [labels.seed(e) for e in range(40)] == [asked.seed(e) for e in range(40)] == seeds_of(3, 40)


def test_labels_for_fewer_epochs_than_the_student_trains(images):
    logits, seeds = torch.zeros(2, COUNT, CLASSES), [1, 2]
    for labels in stored(logits, seeds), pruned(lambda _: prune(logits[0], 0, 1.0), seeds, CLASSES, 2):
        with pytest.raises(WmddError, match=r"labels for 2 epochs but the student trains 3; raise relabel.epochs"):
            studied(images, labels)


def test_a_teacher_of_another_normalisation_sees_the_same_pictures(tiny_teacher, images):
    own = Normalisation([0.1, 0.2, 0.3], [0.3, 0.2, 0.1])
    adapted = Renormalised(tiny_teacher, own, NORMALISATION)
    views, index = views_of(VIEWS, COUNT, 1), torch.arange(COUNT)
    given, expected, unadapted = (
        network(augment.apply(normalise(images, by), views, index)).detach()
        for network, by in ((adapted, NORMALISATION), (tiny_teacher, own), (tiny_teacher, NORMALISATION))
    )
    torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-4)
    assert float((unadapted - expected).abs().max()) > 0.05
