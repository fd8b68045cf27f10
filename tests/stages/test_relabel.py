"""Soft labels are the teacher's logits on views that anybody can replay."""

import copy

import pytest
import torch
from torch import Tensor

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.datasets.loader import Resident
from wmdd.networks import augment, siamese, whitening
from wmdd.networks.context import quiet
from wmdd.networks.engine import plain
from wmdd.networks.models import build, normalise
from wmdd.networks.normalisation import Normalisation
from wmdd.settings.network import NetworkSettings
from wmdd.settings.student import AugmentationSettings
from wmdd.stages.relabel import batches_of_labels, relabel, seed_of_views, seeds_of, seen, views_of

COUNT = 9
CUTMIX = AugmentationSettings()
NORMALISATION = Normalisation([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
KINDS = pytest.mark.parametrize(
    "settings",
    [CUTMIX, AugmentationSettings(crop_scale=(1, 1), flip=False, mix="none"), AugmentationSettings(patches=3)],
    ids=["cutmix", "still", "patches"],
)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (COUNT, 3, 16, 16), generator=generator("relabel test"), dtype=torch.uint8)


def epochs_of(network, images: Tensor, seeds: list[int], settings=CUTMIX, size: int = 4, engine=None):
    return relabel(network, images, NORMALISATION, seeds, settings, size, quiet(engine or plain()))


def labels(*arguments, **options) -> Tensor:
    return torch.stack(list(epochs_of(*arguments, **options)))


@KINDS
def test_labels_are_the_logits_of_the_replayed_views(tiny_teacher, images, settings):
    seeds = seeds_of(3, 4)
    found = labels(tiny_teacher, images, seeds, settings)
    assert found.shape == (4, COUNT, 5)
    assert found.dtype == torch.float16
    for epoch, seed in enumerate(seeds):
        draws = torch.Generator().manual_seed(seed)
        views = augment.draw(draws, COUNT, settings.crop_scale, settings.flip, settings.mix, settings.patches)
        with torch.no_grad():
            expected = tiny_teacher(augment.apply(normalise(images, NORMALISATION), views, torch.arange(COUNT)))
        torch.testing.assert_close(found[epoch].float(), expected, rtol=2e-3, atol=1e-4)


@KINDS
@pytest.mark.parametrize("whitened", [False, True])
def test_a_batch_that_is_prepared_with_its_partners_is_that_of_the_whole_set(images, settings, whitened):
    white = whitening.fit(Resident(images, torch.zeros(COUNT, dtype=torch.int64)), NORMALISATION) if whitened else None
    x = normalise(images, NORMALISATION)
    x = white.apply(x) if white else x
    views = views_of(settings, COUNT, seed_of_views(1, 0))
    for index in ([8, 3, 5, 0], [4]):
        expected = augment.apply(x, views, torch.tensor(index))
        found = seen(images, views, torch.tensor(index), NORMALISATION, white)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 if whitened else 0)


DSA = AugmentationSettings(views="dsa")


def test_distorted_views_are_replayed_too(tiny_teacher, images):
    seeds = seeds_of(3, 3)
    found = labels(tiny_teacher, images, seeds, DSA)
    for epoch, seed in enumerate(seeds):
        how = siamese.draw(torch.Generator().manual_seed(seed), COUNT)
        with torch.no_grad():
            expected = tiny_teacher(siamese.apply(normalise(images, NORMALISATION), how))
        torch.testing.assert_close(found[epoch].float(), expected, rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(labels(tiny_teacher, images, seeds, DSA, size=2), found, rtol=2e-3, atol=1e-4)
    unheeded = {"crop_scale": (0.5, 0.6), "flip": False, "mix": "none", "patches": 2}
    assert torch.equal(labels(tiny_teacher, images, seeds, DSA.model_copy(update=unheeded)), found)


def test_an_epoch_is_made_when_it_is_asked_for(tiny_teacher, images):
    """So that no two are in memory, and one does not depend on those that follow."""
    whole = labels(tiny_teacher, images, seeds_of(0, 3), size=COUNT)
    calls = []
    tiny_teacher.register_forward_hook(lambda *_: calls.append(1))
    for epoch, found in enumerate(epochs_of(tiny_teacher, images, seeds_of(0, 3), size=COUNT)):
        assert len(calls) == epoch + 1
        assert torch.equal(found, whole[epoch])


def test_views_are_those_of_float32_whatever_the_teacher_computes_in(images):
    """A grid of sampling points in bfloat16 would be off by up to 1/256 of the side."""

    class Eye(torch.nn.Module):
        head = torch.nn.Linear(1, 3)

        def forward(self, x):
            return x[:, :, 5, 7]

    seeds = seeds_of(0, 2)
    rounded, exact = (labels(Eye(), images, seeds, engine=plain(dtype)) for dtype in (torch.bfloat16, torch.float32))
    assert torch.equal(rounded, exact)


@pytest.mark.parametrize("value", [float("nan"), 1e5])
def test_a_logit_that_is_no_number_is_refused(tiny_teacher, images, value):
    """Nor is one that is too large for float16."""
    with torch.no_grad():
        tiny_teacher.head.bias[3] = value
    with pytest.raises(WmddError, match=r"a logit of the teacher in epoch 1 is NaN, infinite or beyond 65,504"):
        labels(tiny_teacher, images, seeds_of(0, 2))


def test_labels_do_not_depend_on_the_batch_size(tiny_teacher, images):
    # CutMix partners lie in other batches, so the views must be made of the whole set.
    whole = labels(tiny_teacher, images, seeds_of(1, 2), size=COUNT)
    for size in 1, 5:
        found = labels(tiny_teacher, images, seeds_of(1, 2), size=size)
        torch.testing.assert_close(found, whole, rtol=2e-3, atol=1e-4)


def test_running_statistics_are_used_and_left(tiny_teacher, images):
    seeds = seeds_of(1, 1)
    expected = labels(tiny_teacher, images, seeds)
    before = {name: value.clone() for name, value in tiny_teacher.state_dict().items()}
    assert torch.equal(labels(tiny_teacher.train(), images, seeds), expected)
    assert all(torch.equal(value, before[name]) for name, value in tiny_teacher.state_dict().items())


def by_batches(network, images: Tensor, seeds: list[int], size: int) -> Tensor:
    context = quiet(plain())
    return torch.stack(list(relabel(network, images, NORMALISATION, seeds, CUTMIX, 2, context, statistics_batch=size)))


@pytest.mark.parametrize("size", [4, 5, COUNT])
def test_with_the_statistics_of_the_batch_the_teacher_is_one_that_trains(tiny_teacher, images, size):
    """In batches that the seed of the views alone decides, and without a trace in the running statistics."""
    before = {name: value.clone() for name, value in tiny_teacher.state_dict().items()}
    seeds = seeds_of(3, 2)
    teacher = copy.deepcopy(tiny_teacher)
    found = by_batches(teacher, images, seeds, size)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    for epoch, seed in enumerate(seeds):
        batches = batches_of_labels(seed, COUNT, size)
        assert sorted(torch.cat(batches).tolist()) == list(range(COUNT))
        assert max(map(len, batches)) <= size
        assert all(torch.equal(a, b) for a, b in zip(batches, batches_of_labels(seed, COUNT, size), strict=True))
        assert not torch.equal(torch.cat(batches), torch.cat(batches_of_labels(seed + 1, COUNT, size)))
        views, trains = views_of(CUTMIX, COUNT, seed), copy.deepcopy(tiny_teacher).train()
        for batch in batches:
            with torch.no_grad():
                expected = trains(augment.apply(normalise(images, NORMALISATION), views, batch))
            torch.testing.assert_close(found[epoch, batch].float(), expected, rtol=2e-3, atol=1e-4)
    assert not torch.allclose(found, labels(tiny_teacher, images, seeds), atol=0.01)


def test_a_teacher_without_batchnorm_has_no_statistics_of_a_batch(images):
    network = build(NetworkSettings(architecture="convnet1", width=4, norm="instance"), 5, 16, generator("plain"))
    with pytest.raises(WmddError, match=r"no teacher of the labels has BatchNorm layers.*set running"):
        by_batches(network, images, seeds_of(0, 1), 4)


def test_seeds_differ_by_epoch_and_by_seed():
    seeds = [seed for distillation in range(3) for seed in seeds_of(distillation, 300)]
    assert len(set(seeds)) == 900
    assert seeds == [seed_of_views(distillation, epoch) for distillation in range(3) for epoch in range(300)]
