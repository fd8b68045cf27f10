"""Recovered images: block invariance, the loss against a plain evaluation of Eq. 5-7, resuming, and what a view is."""

import io
import shutil
from dataclasses import replace

import hypothesis
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.networks.batchnorm import Statistics, inputs_of, layers, running
from wmdd.networks.context import quiet
from wmdd.networks.engine import Engine, plain
from wmdd.networks.models import build, normalise, to_pixels
from wmdd.networks.planes import Planes
from wmdd.settings.network import NetworkSettings
from wmdd.settings.recover import RecoverSettings
from wmdd.stages.recover import batches, noise, recover
from wmdd.stages.recover import matched as matched_starts
from wmdd.stages.recover_loss import Target, loss_terms, observed
from wmdd.stages.recover_views import drawn, view

CLASSES, K, SIDE, FEATURES = 5, 3, 16, 32
MEAN, STD = [0.5, 0.4, 0.6], [0.2, 0.3, 0.25]
COLOUR = Planes.of(MEAN, STD, grey=False)
MILD = {"crop_scale": (0.3, 1.0), "jitter": 3}
STILL = {"crop_scale": (1.0, 1.0), "jitter": 0, "flip": False}

# The five rows of WMDD's ablation, and what its released code runs (wmdd/workflow/presets.yaml).
WMDD = RecoverSettings(**MILD)
WMDD_CE = RecoverSettings(**MILD, cross_entropy=1)
SRE2L_PCBN = RecoverSettings(**MILD, cross_entropy=1, feature_weight=0)
BARYCENTER_ONLY = RecoverSettings(**MILD, statistics="global")
SRE2L = RecoverSettings(
    **MILD, cross_entropy=1, feature_weight=0, statistics="global", first_layer_weight=10, composition="across"
)
RELEASED = RecoverSettings(**MILD, cross_entropy=1, feature_loss="norm")
WMDD_SQUARED = RecoverSettings(**MILD, feature_loss="squared")
OWN_VIEWS = RecoverSettings(**MILD, draws="image")
DECOUPLED = pytest.mark.parametrize(
    "settings",
    [WMDD, WMDD_CE, SRE2L_PCBN, OWN_VIEWS, WMDD_SQUARED],
    ids=["wmdd", "wmdd-ce", "sre2l-pcbn", "own-views", "squared"],
)
COUPLED = pytest.mark.parametrize(
    "settings", [BARYCENTER_ONLY, SRE2L, RELEASED], ids=["barycenter-only", "sre2l", "wmdd-released"]
)
PLAIN, FAST = plain(), Engine(torch.device("cpu"), torch.float32, "eager")
ENGINES = pytest.mark.parametrize("engine", [PLAIN, FAST], ids=["plain", "fast"])
WEIGHTS = pytest.mark.parametrize("uniform", [True, False], ids=["uniform", "free"])


def normal(*shape: int, key: str) -> Tensor:
    return torch.randn(shape, generator=generator("recover test", key, *shape), dtype=torch.float64)


def masses(classes: int, k: int, uniform: bool) -> Tensor:
    weights = torch.ones(classes, k, dtype=torch.float64) if uniform else normal(classes, k, key="weights").exp()
    return weights / weights.sum(1, keepdim=True)


def targets(network, uniform: bool = True, k: int = K) -> Target:
    """Atoms and per-class statistics that no image has."""
    channels = {name: layer.num_features for name, layer in layers(network).items()}
    mean = {name: normal(CLASSES, width, key=f"{name} mean") for name, width in channels.items()}
    variance = {name: normal(CLASSES, width, key=f"{name} variance").exp() for name, width in channels.items()}
    atoms = normal(CLASSES, k, FEATURES, key="atoms")
    return Target(torch.arange(CLASSES), atoms, masses(CLASSES, k, uniform), Statistics(mean, variance))


def shared(network, target: Target) -> Target:
    """The same target with one set of statistics for all data, the network's own."""
    found = layers(network).items()
    mean = {name: layer.running_mean[None] for name, layer in found}
    return replace(
        target, statistics=Statistics(mean, {name: layer.running_var[None] for name, layer in found}), shared=True
    )


def target_of(network, settings: RecoverSettings, uniform: bool) -> Target:
    target = targets(network, uniform)
    return shared(network, target) if settings.statistics == "global" else target


@pytest.fixture
def teacher(tiny_teacher):
    """In double precision, and fixed."""
    return tiny_teacher.double().requires_grad_(False)


def terms_of(network, images: Tensor, target: Target, settings: RecoverSettings, engine=PLAIN) -> dict[str, Tensor]:
    network.eval()
    with observed(network, target, settings, engine) as found:
        return loss_terms(network, images, target, settings, found)


def gradient(network, images: Tensor, target: Target, settings: RecoverSettings, parts: list, engine=PLAIN) -> Tensor:
    """The gradient of L for images [C, K, 3, R, R], the loss taken batch by batch."""
    total = torch.zeros_like(images)
    for part in parts:
        x = images[part].clone().requires_grad_()
        chosen = drawn(settings, SIDE, 1, 0, target.labels[part[0]], K)
        seen = view(x.flatten(0, 1), chosen)
        torch.stack(list(terms_of(network, seen, target.part(*part), settings, engine).values())).sum().backward()
        total[part] = x.grad
    return total


def one_by_one() -> list[tuple[slice, slice]]:
    return [(slice(c, c + 1), slice(0, K)) for c in range(CLASSES)]


def largest_difference(a: Tensor, b: Tensor) -> Tensor:
    """Per image, relative to the largest entry of its gradient."""
    return ((a - b).abs().amax((2, 3, 4)) / b.abs().amax((2, 3, 4))).max()


# ---- block invariance


def test_start_images_are_standard_normal_and_belong_to_seed_and_class():
    whole = noise(torch.arange(5), 10, SIDE, seed=7)
    assert (float(whole.mean()), float(whole.std())) == pytest.approx((0, 1), abs=0.02)
    assert torch.equal(noise(torch.tensor([2, 3]), 10, SIDE, seed=7), whole[2:4])
    assert not torch.equal(noise(torch.arange(5), 10, SIDE, seed=8), whole)
    assert len(whole.flatten(0, 1)[:, 0, 0, 0].unique()) == 50


@DECOUPLED
@ENGINES
def test_the_gradient_of_an_image_depends_on_neither_batch_nor_block(teacher, settings, engine):
    for uniform in (True, False):
        target = target_of(teacher, settings, uniform)
        images = noise(target.labels, K, SIDE, 0).double()
        alone = gradient(teacher, images, target, settings, one_by_one(), engine)
        for size in (CLASSES * K, 2 * K):
            parts = batches(CLASSES, K, settings, size)
            assert len(parts) < CLASSES
            assert largest_difference(gradient(teacher, images, target, settings, parts, engine), alone) < 1e-10
        block = target.part(slice(2, 4), slice(0, K))
        some = gradient(teacher, images[2:4], block, settings, [(slice(0, 2), slice(0, K))], engine)
        assert largest_difference(some, alone[2:4]) < 1e-10


@COUPLED
def test_the_gradient_of_an_image_depends_on_the_batch_where_the_loss_couples(teacher, settings):
    assert settings.coupled
    target = target_of(teacher, settings, uniform=True)
    images = noise(target.labels, K, SIDE, 0).double()
    alone = gradient(teacher, images, target, settings, one_by_one())
    whole = gradient(teacher, images, target, settings, [(slice(0, CLASSES), slice(0, K))])
    assert largest_difference(whole, alone) > 1e-3


@given(st.sampled_from(["within", "across"]), st.integers(1, 30), st.integers(1, 7), st.integers(1, 5), st.booleans())
@hypothesis.settings(max_examples=60, deadline=None)
def test_batches_hold_every_image_once(composition, size, classes, k, coupled):
    statistics = "global" if coupled else "per-class"
    settings = RecoverSettings(batch_size=size, composition=composition, statistics=statistics)
    count = torch.zeros(classes, k)
    parts = batches(classes, k, settings, size)
    for part in parts:
        count[part] += 1
    assert torch.equal(count, torch.ones(classes, k))
    if coupled and composition == "across":
        assert all(count[part].shape[0] == classes for part in parts)
        assert all(count[part].numel() <= max(size, classes) for part in parts)
        assert len(parts) == -(-k // max(1, size // classes))
    else:  # whole classes, as many as fit
        assert all(count[part].shape[1] == k for part in parts)
        assert all(count[part].numel() <= max(size, k) for part in parts)


# ---- the loss


def plain_loss(network, images: Tensor, target: Target, settings: RecoverSettings) -> dict[str, float]:
    """Eq. 5-7 image by image and layer by layer. The number of classes is the factor of what couples them."""
    inputs: list[tuple[str, Tensor]] = []
    handles = [
        module.register_forward_pre_hook(lambda _, x, name=name: inputs.append((name, x[0])))
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    ]
    with torch.no_grad():
        features = network.embed(images)
        logits = network.head(features)
    for handle in handles:
        handle.remove()

    classes, k = target.weights.shape
    squares, mean, entropy, total = 0.0, 0.0, 0.0, 0.0
    for c in range(classes):
        for j in range(k):
            square = float((features[c * k + j] - target.atoms[c, j]).square().sum())
            squares, mean = squares + square, mean + float(target.weights[c, j]) * square
            entropy -= float(logits[c * k + j].log_softmax(0)[target.labels[c]]) / k
    for layer, (name, x) in enumerate(inputs):
        gain = settings.first_layer_weight if layer == 0 else 1
        groups = [(c, x[c * k : c * k + k], target.weights[c]) for c in range(classes)]
        if settings.statistics == "global":
            groups = [(0, x, torch.full((len(x),), 1 / len(x), dtype=x.dtype))] * classes
        for row, mine, weights in groups:
            mu = sum(w * image.mean((1, 2)) for w, image in zip(weights, mine, strict=True))
            deviations = [(image - mu[:, None, None]).square().mean((1, 2)) for image in mine]
            square = sum(w * d for w, d in zip(weights, deviations, strict=True))
            off = float((mu - target.statistics.mean[name][row]).square().sum() ** 0.5)
            off += float((square - target.statistics.variance[name][row]).square().sum() ** 0.5)
            total += gain * off
    feature = {"squared": squares, "mean": mean, "norm": classes * squares**0.5}[settings.feature_loss]
    return {
        "feature": settings.feature_weight * feature,
        "cross_entropy": settings.cross_entropy * entropy,
        "batchnorm": settings.regularisation * total,
    }


LOSSES = {
    "wmdd": WMDD,
    "wmdd-ce": WMDD_CE,
    "sre2l-pcbn": SRE2L_PCBN,
    "barycenter-only": BARYCENTER_ONLY,
    "sre2l": SRE2L,
    "wmdd-released": RELEASED,
    "squared": WMDD_SQUARED,
    "weighted": RecoverSettings(feature_weight=0.3, regularisation=500, cross_entropy=2, first_layer_weight=10),
    "no-statistics": RecoverSettings(regularisation=0),
}


@pytest.mark.parametrize("settings", LOSSES.values(), ids=LOSSES.keys())
@ENGINES
def test_terms_equal_a_plain_evaluation_of_the_equations(teacher, settings, engine):
    for uniform, k in ((True, K), (False, K), (True, 1)):
        target = targets(teacher, uniform, k)
        target = shared(teacher, target) if settings.statistics == "global" else target
        images = noise(target.labels, k, SIDE, 0).double().flatten(0, 1)
        expected = {name: value for name, value in plain_loss(teacher, images, target, settings).items() if value != 0}
        found = terms_of(teacher, images, target, settings, engine)
        assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-10)


def matched(network, images: Tensor, weights: Tensor) -> Target:
    """The target that images [C * K, 3, R, R] match exactly: their own features and statistics."""
    with inputs_of(network) as seen, torch.no_grad():
        atoms = network.embed(images).view(*weights.shape, -1)
    share = weights[..., None, None, None]
    mean, variance = {}, {}
    for name, x in seen.items():
        x = x.view(*weights.shape, *x.shape[1:])
        mean[name] = (share * x).sum(1).mean((2, 3))
        variance[name] = (share * (x - mean[name][:, None, :, None, None]).square()).sum(1).mean((2, 3))
    return Target(torch.arange(len(weights)), atoms, weights, Statistics(mean, variance))


@WEIGHTS
def test_images_that_match_their_target_cost_nothing(teacher, uniform):
    images = normal(CLASSES * K, 3, SIDE, SIDE, key="real")
    found = terms_of(teacher, images, matched(teacher, images, masses(CLASSES, K, uniform)), WMDD)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {"feature": 0, "batchnorm": 0}, abs=1e-10
    )


@WEIGHTS
@pytest.mark.parametrize(("loss", "factor"), [("mean", 1), ("squared", 2)])
def test_every_image_twice_changes_the_mean_by_nothing_and_the_sum_by_two(teacher, loss, factor, uniform):
    settings = RecoverSettings(**MILD, feature_loss=loss)
    target = target_of(teacher, settings, uniform)
    doubled = replace(target, atoms=target.atoms.repeat(1, 2, 1), weights=target.weights.repeat(1, 2) / 2)
    images = normal(CLASSES, K, 3, SIDE, SIDE, key="real")
    once = terms_of(teacher, images.flatten(0, 1), target, settings)
    twice = terms_of(teacher, images.repeat(1, 2, 1, 1, 1).flatten(0, 1), doubled, settings)
    expected = {"feature": factor * once["feature"].item(), "batchnorm": once["batchnorm"].item()}
    assert {name: value.item() for name, value in twice.items()} == pytest.approx(expected, rel=1e-10)


def test_a_part_of_a_target_is_of_its_classes_and_images(teacher):
    target = targets(teacher, uniform=False)
    part = target.part(slice(1, 3), slice(0, 2))
    assert part.labels.tolist() == [1, 2]
    assert torch.equal(part.atoms, target.atoms[1:3, :2])
    torch.testing.assert_close(part.weights.sum(1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(
        part.weights[:, 0] / part.weights[:, 1], (target.weights[:, 0] / target.weights[:, 1])[1:3]
    )
    assert all(torch.equal(v, target.statistics.mean[name][1:3]) for name, v in part.statistics.mean.items())
    everyone = shared(teacher, target)
    assert everyone.part(slice(1, 3), slice(0, 2)).statistics is everyone.statistics


# ---- the optimisation


def recovered(
    network,
    settings: RecoverSettings,
    seed: int = 3,
    keeper=None,
    log=None,
    block: slice = slice(0, 4),
    k=2,
    engine=PLAIN,
    start=None,
    grey=False,
):
    """Recover a block of the tiny problem's classes."""
    target = targets(network, uniform=False, k=k)
    context = quiet(engine)
    context = replace(context, keeper=keeper or context.keeper, log=log or context.log)
    return recover(
        network,
        target.labels[block],
        target.atoms[block],
        target.weights[block],
        target.statistics.of(target.labels[block]),
        SIDE,
        MEAN,
        STD,
        settings,
        seed,
        context,
        start,
        grey,
    )


SHORT = {**MILD, "iterations": 5, "batch_size": 4}


def test_images_are_pixels_of_their_seed_and_every_batch_is_optimised(tiny_teacher):
    start = to_pixels(noise(torch.arange(4), 2, SIDE, 3), MEAN, STD)
    for options in ({}, {"statistics": "global"}, {"statistics": "global", "composition": "across"}):
        settings = RecoverSettings(**SHORT, **options)
        one = recovered(tiny_teacher, settings)
        assert one.dtype == torch.uint8
        assert one.shape == (4, 2, 3, SIDE, SIDE)
        assert bool((one != start).flatten(2).any(2).all())
        assert torch.equal(recovered(tiny_teacher, settings), one)
        assert not torch.equal(recovered(tiny_teacher, settings, seed=4), one)


def starts(k=2):
    return torch.randint(0, 256, (4, k, 3, SIDE, SIDE), generator=generator("starts"), dtype=torch.uint8)


def test_starts_go_to_the_atoms_that_they_are_nearest_to_in_all(tiny_teacher):
    images = (starts(3).float() / 255 - 0.5) / 0.25
    features = torch.stack([tiny_teacher.embed(mine) for mine in images]).detach()
    order = torch.tensor([2, 0, 1])
    assert torch.equal(matched_starts(tiny_teacher, images, features[:, order], PLAIN, COLOUR), images[:, order])
    # 0 and 1 both want the first; the assignment is the cheapest in all, not the first come
    line = torch.zeros(1, 2, features.shape[2])
    line[0, :, 0] = torch.tensor([0.0, 10.0])
    far = torch.nn.functional.pad(torch.tensor([[[1.0], [-5.0]]]), (0, features.shape[2] - 1))

    class Coordinates:
        @staticmethod
        def embed(x):
            return far[0][(x[:, 0, 0, 0] > 0).long()]

        @staticmethod
        def modules():
            return []

    two = torch.stack([torch.full((3, 4, 4), -1.0), torch.full((3, 4, 4), 1.0)])[None]  # features 1 and -5
    assert torch.equal(matched_starts(Coordinates, two, line, PLAIN, COLOUR)[0], two[0].flip(0))


@ENGINES
def test_grey_pictures_give_grey_images(tiny_teacher, engine):
    """Also where the teacher normalises each channel in its own way, and from starts in colour, which give their mean."""
    for options in ({}, {"statistics": "global", "composition": "across"}):
        images = recovered(tiny_teacher, RecoverSettings(**SHORT, **options), engine=engine, grey=True)
        assert images.shape == (4, 2, 3, SIDE, SIDE)
        assert torch.equal(images, images[:, :, :1].expand_as(images))
        assert images.unique().numel() > 50
    still = recovered(tiny_teacher, RecoverSettings(**SHORT | {"lr": 1e-9}), engine=engine, start=starts(), grey=True)
    for mine, before in zip(still.float(), starts().float().mean(2, keepdim=True), strict=True):
        assert any((mine - before[list(order)]).abs().max() <= 1 for order in ((0, 1), (1, 0)))


def test_the_teacher_sees_a_grey_plane_as_it_sees_the_grey_image():
    images = starts()[:, :, :1].expand(-1, -1, 3, -1, -1)
    planes = Planes.of(MEAN, STD, grey=True)
    taken = planes.taken(images)
    assert taken.shape == (4, 2, 1, SIDE, SIDE)
    torch.testing.assert_close(planes.shown(taken), normalise(images, MEAN, STD))
    assert torch.equal(planes.pixels(taken), images)
    assert torch.equal(COLOUR.shown(COLOUR.taken(starts())), normalise(starts(), MEAN, STD))


def test_recover_begins_where_it_is_told(tiny_teacher):
    """With a rate that moves nothing, the images are the starts, each class's in the order of its atoms."""
    images = starts()
    still = recovered(tiny_teacher, RecoverSettings(**SHORT | {"lr": 1e-9}), start=images)
    pairs = [(mine, before) for mine, before in zip(still, images, strict=True)]
    for mine, before in pairs:
        assert any((mine.int() - before[list(order)].int()).abs().max() <= 1 for order in ((0, 1), (1, 0)))
    assert not torch.equal(recovered(tiny_teacher, RecoverSettings(**SHORT | {"lr": 1e-9})), still)


@pytest.mark.parametrize("draws", ["iteration", "image"])
def test_a_class_has_the_same_bits_in_another_block(tiny_teacher, draws):
    settings = RecoverSettings(**SHORT | {"batch_size": 2, "draws": draws})  # one class a batch, whatever the block
    for start in (None, starts()):
        whole = recovered(tiny_teacher, settings, start=start)
        some = recovered(tiny_teacher, settings, block=slice(1, 3), start=None if start is None else start[1:3])
        assert torch.equal(some, whole[1:3])


@pytest.mark.parametrize("coupling", [{"feature_loss": "norm"}, {"statistics": "global"}])
def test_a_block_of_several_batches_is_what_blocks_of_one_are(tiny_teacher, coupling):
    """Coupled losses within batches of whole classes: `wmdd.cost.blocks` puts several into a job."""
    settings = RecoverSettings(**SHORT, **coupling)  # four images: two classes a batch
    whole = recovered(tiny_teacher, settings)
    parts = [recovered(tiny_teacher, settings, block=slice(first, first + 2)) for first in (0, 2)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(recovered(tiny_teacher, settings, block=slice(1, 3)), whole[1:3])


def test_pixels_stay_valid_after_each_step(tiny_teacher, dying_keeper):
    low, high = ((v - torch.tensor(MEAN)) / torch.tensor(STD) for v in (0.0, 1.0))
    for save_at in (1, 4):
        keeper = dying_keeper(save_at)
        recovered(tiny_teacher, RecoverSettings(**SHORT | {"batch_size": 8}, lr=0.5), keeper=keeper)
        x = keeper.load()["optimizer"]["x"]
        torch.testing.assert_close(x.amin((0, 2, 3)), low)  # some are at the bounds
        torch.testing.assert_close(x.amax((0, 2, 3)), high)


def test_pixels_are_rounded_values_of_the_data_range():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    std = torch.tensor(STD).view(3, 1, 1)
    assert torch.equal(to_pixels(normalised(pixels), MEAN, STD), pixels)
    assert torch.equal(to_pixels(normalised(pixels) + 0.4 / 255 / std, MEAN, STD), pixels)
    for value, pixel in ((-99.0, 0), (99.0, 255)):
        assert to_pixels(torch.full((1, 3, 1, 1), value), MEAN, STD).unique().tolist() == [pixel]


@pytest.mark.parametrize(
    "settings",
    [
        RecoverSettings(**SHORT),
        RecoverSettings(**SHORT, cross_entropy=1, feature_loss="norm"),
        RecoverSettings(**SHORT, cross_entropy=1, statistics="global", composition="across"),
    ],
    ids=["within", "coupled-within", "across"],
)
@pytest.mark.parametrize(("save_at", "die_at"), [(2, 5), (5, 6), (7, 9), (10, 0)])
@ENGINES
def test_a_killed_job_goes_on_to_the_same_bits(tiny_teacher, dying_keeper, settings, save_at, die_at, engine):
    if engine.fast:
        engine = replace(engine, images_at_once=settings.batch_size)
    whole = recovered(tiny_teacher, settings, engine=engine)  # two batches of five iterations
    keeper = dying_keeper(save_at, die_at)
    if die_at:
        with pytest.raises(dying_keeper.Killed):
            recovered(tiny_teacher, settings, keeper=keeper, engine=engine)
    else:  # it dies after the last iteration, before the result is written
        recovered(tiny_teacher, settings, keeper=keeper, engine=engine)
    state = keeper.load()
    assert (state["part"], state["optimizer"]["iteration"]) == ((save_at - 1) // 5, (save_at - 1) % 5 + 1)
    again = dying_keeper()
    again.content = keeper.content
    assert torch.equal(recovered(tiny_teacher, settings, keeper=again, engine=engine), whole)
    assert again.chances == 10 - save_at  # only what was missing is done again


def test_a_job_goes_on_in_the_batches_it_began_with(tiny_teacher, dying_keeper):
    """How many images a GPU takes depends on what else is on it."""
    settings = RecoverSettings(**SHORT)
    first, later = (replace(FAST, images_at_once=n) for n in (4, 8))
    whole = recovered(tiny_teacher, settings, engine=first)
    keeper = dying_keeper(7, 8)
    with pytest.raises(dying_keeper.Killed):
        recovered(tiny_teacher, settings, keeper=keeper, engine=first)
    again = dying_keeper()
    again.content = keeper.content
    assert torch.equal(recovered(tiny_teacher, settings, keeper=again, engine=later), whole)


def test_images_may_go_through_jpeg_files(tiny_teacher):
    """As Pillow reads and writes them, which is what the released code uses."""
    images = recovered(tiny_teacher, RecoverSettings(**SHORT))
    through = recovered(tiny_teacher, RecoverSettings(**SHORT, jpeg=75))
    assert not torch.equal(through, images)
    for image, found in zip(images.flatten(0, 1), through.flatten(0, 1), strict=True):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=75)
        theirs = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
        assert float((found.float() - theirs.float()).abs().mean()) < 1
    assert float(
        (recovered(tiny_teacher, RecoverSettings(**SHORT, jpeg=100)).float() - images.float()).abs().mean()
    ) < float((through.float() - images.float()).abs().mean())


def normalised(pixels: Tensor) -> Tensor:
    return (pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.fixture
def real() -> Tensor:
    """Smooth pictures [6, 3, R, R] of three classes, to be matched by two each."""
    coarse = 255 * torch.rand(6, 3, 4, 4, generator=generator("real"))
    return normalised(F.interpolate(coarse, (SIDE, SIDE), mode="bilinear").round())


def history_of(network, real: Tensor, settings: RecoverSettings, engine=PLAIN) -> tuple[list[dict], Tensor]:
    """What is logged while two images of each of three classes are recovered, and the images."""
    target, history = matched(network, real, torch.full((3, 2), 0.5)), []
    context = replace(quiet(engine), log=lambda metrics, _: history.append(metrics))
    found = recover(
        network, target.labels, target.atoms, target.weights, target.statistics, SIDE, MEAN, STD, settings, 0, context
    )
    return history, found


# ---- the fast engine against the reference

ROWS = pytest.mark.parametrize(
    "row",
    [
        {},
        {"feature_loss": "squared"},
        {"cross_entropy": 1},
        {"statistics": "global"},
        {"feature_loss": "norm", "cross_entropy": 1},
    ],
    ids=["wmdd", "wmdd-squared", "wmdd-ce", "barycenter-only", "wmdd-released"],
)


@ROWS
def test_the_loss_trace_is_that_of_the_reference(tiny_teacher, real, row):
    steps = 20 if row else 8  # later, what was rounded shows: Adam divides by what is left of gradients that cancel
    settings = RecoverSettings(**MILD, iterations=steps, **row)
    expected, images = history_of(tiny_teacher, real, settings)
    for images_at_once in (6, 2):
        found, others = history_of(tiny_teacher, real, settings, replace(FAST, images_at_once=images_at_once))
        if len(found) > len(expected):  # a class a batch: the trace is the sum of theirs
            found = [{k: sum(found[i + c * steps][k] for c in range(3)) for k in found[i]} for i in range(steps)]
        for a, b in zip(expected, found, strict=True):
            assert b == pytest.approx(a, rel=1e-4)
        assert float((images.int() - others.int()).abs().float().mean()) < 0.5


def test_bfloat16_goes_down_as_far(tiny_teacher, real):
    settings = RecoverSettings(**MILD, iterations=40)
    expected, _ = history_of(tiny_teacher, real, settings)
    found, _ = history_of(tiny_teacher, real, settings, replace(FAST, dtype=torch.bfloat16))
    assert found[-1]["loss"] == pytest.approx(expected[-1]["loss"], rel=0.05)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch needs a C++ compiler")
def test_the_compiled_loss_is_that_of_the_reference(tiny_teacher, real, capsys):
    settings = RecoverSettings(**MILD, iterations=4, cross_entropy=1)
    expected, images = history_of(tiny_teacher, real, settings)
    found, others = history_of(tiny_teacher, real, settings, replace(FAST, mode="compile", images_at_once=6))
    assert "not compiled" not in capsys.readouterr().err
    for a, b in zip(expected, found, strict=True):
        assert b == pytest.approx(a, rel=1e-4)
    assert float((images.int() - others.int()).abs().float().mean()) < 0.5


@pytest.mark.parametrize("statistics", ["per-class", "global"])
def test_the_loss_falls(tiny_teacher, real, statistics):
    settings = RecoverSettings(**STILL, iterations=60, cross_entropy=1, statistics=statistics)
    history, _ = history_of(tiny_teacher, real, settings)
    assert len(history) == 60
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    for entry in history:
        assert entry["loss"] == pytest.approx(sum(v for name, v in entry.items() if name != "loss"), rel=1e-5)


@pytest.mark.parametrize("term", ["feature", "batchnorm", "cross_entropy"])
def test_each_term_falls_on_its_own(tiny_teacher, real, term):
    weights = {"feature_weight": 0.0, "regularisation": 0.0, "cross_entropy": 0.0}
    weights[{"feature": "feature_weight", "batchnorm": "regularisation"}.get(term, term)] = 1.0
    history, _ = history_of(tiny_teacher, real, RecoverSettings(**STILL, iterations=60, **weights))
    assert set(history[0]) == {"loss", term}
    assert history[-1][term] < 0.8 * history[0][term]


def test_the_recovered_images_have_the_features_asked_for(tiny_teacher, real):
    settings = RecoverSettings(**STILL, iterations=60, regularisation=0)
    _, found = history_of(tiny_teacher, real, settings)
    start = noise(torch.arange(3), 2, SIDE, 0).flatten(0, 1)
    with torch.no_grad():
        atoms, reached, begun = (tiny_teacher.embed(x) for x in (real, normalised(found.flatten(0, 1)), start))
    assert F.mse_loss(reached, atoms) < 0.05 * F.mse_loss(begun, atoms)


def test_no_atoms_are_needed_where_no_term_uses_them(tiny_teacher):
    target = targets(tiny_teacher, k=2)
    settings = RecoverSettings(**SHORT, feature_weight=0, cross_entropy=1)
    arguments = (target.weights, target.statistics, SIDE, MEAN, STD, settings, 0, quiet(plain()))
    without = recover(tiny_teacher, target.labels, None, *arguments)
    assert torch.equal(without, recover(tiny_teacher, target.labels, target.atoms, *arguments))


# ---- what is refused


@pytest.mark.parametrize(
    ("overrides", "atoms", "says"),
    [
        ({}, False, "needs a barycenter"),
        ({"feature_weight": 0, "regularisation": 0}, False, "recover has no loss"),
        (
            {"lr": 1e30, "iterations": 100, "cross_entropy": float("inf")},
            True,
            "the loss is not a number at iteration 0",
        ),
    ],
)
def test_a_loss_that_can_not_be_is_refused(tiny_teacher, overrides, atoms, says):
    labels, shape = torch.arange(2), (2, 1, tiny_teacher.head.in_features)
    every = running(tiny_teacher)
    rows = every.of(torch.zeros(2, dtype=torch.long))
    with pytest.raises(WmddError, match=says):
        recover(
            tiny_teacher, labels, torch.zeros(shape) if atoms else None, torch.ones(2, 1), rows, SIDE, MEAN, STD,
            RecoverSettings(**{"iterations": 3, "jitter": 1} | overrides), 0, quiet(plain()),
        )  # fmt: skip


def test_a_teacher_without_batchnorm_needs_no_regularisation():
    network = build(NetworkSettings(architecture="convnet3", width=4, norm="instance"), 2, SIDE, torch.Generator())
    with pytest.raises(WmddError, match="no BatchNorm layers to match"):
        recover(
            network, torch.arange(2), torch.zeros(2, 1, network.head.in_features), torch.ones(2, 1), Statistics({}, {}),
            SIDE, MEAN, STD, RecoverSettings(iterations=3), 0, quiet(plain()),
        )  # fmt: skip
