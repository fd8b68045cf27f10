"""Recovered images: block invariance, the loss against a plain evaluation of Eq. 5-7, resuming, and what a view is."""

import io
import shutil
from contextlib import nullcontext
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
from wmdd.networks.normalisation import Normalisation
from wmdd.networks.planes import Planes
from wmdd.settings.network import NetworkSettings
from wmdd.settings.recover import RecoverSettings
from wmdd.stages.recover import batches, noise, recover
from wmdd.stages.recover import matched as matched_starts
from wmdd.stages.recover_loss import Target, loss_terms, observed
from wmdd.stages.recover_views import drawn, view

CLASSES, K, SIDE, FEATURES = 5, 3, 16, 32
NORMALISATION = Normalisation([0.5, 0.4, 0.6], [0.2, 0.3, 0.25])
COLOUR = Planes.of(NORMALISATION, grey=False)
MILD = {"crop_scale": (0.3, 1.0), "jitter": 3}
STILL = {"crop_scale": (1.0, 1.0), "jitter": 0, "flip": False}

# Losses that separate by class, of which the five rows of WMDD's ablation are special cases, and losses that do not.
WMDD = RecoverSettings(**MILD)
WMDD_CE = RecoverSettings(**MILD, cross_entropy=1)
SQUARED = RecoverSettings(**MILD, feature_loss="squared")
OWN_VIEWS = RecoverSettings(**MILD, draws="image")
SRE2L = RecoverSettings(
    **MILD, cross_entropy=1, feature_weight=0, statistics="global", first_layer_weight=10, composition="across"
)
RELEASED = RecoverSettings(**MILD, cross_entropy=1, feature_loss="norm")
PLAIN, FAST = plain(), Engine(torch.device("cpu"), torch.float32, "eager")
ENGINES = pytest.mark.parametrize("engine", [PLAIN, FAST], ids=["plain", "fast"])


def normal(*shape: int, key: str) -> Tensor:
    return torch.randn(shape, generator=generator("recover test", key, *shape), dtype=torch.float64)


def targets(network, settings: RecoverSettings = WMDD, k: int = K) -> Target:
    """Atoms, weights and per-class statistics that no image has; or the network's own statistics, for all classes."""
    atoms, weights = normal(CLASSES, k, FEATURES, key="atoms"), normal(CLASSES, k, key="weights").softmax(1)
    if settings.statistics == "global":
        return Target(torch.arange(CLASSES), atoms, weights, running(network), shared=True)
    channels = {name: layer.num_features for name, layer in layers(network).items()}
    mean = {name: normal(CLASSES, width, key=f"{name} mean") for name, width in channels.items()}
    variance = {name: normal(CLASSES, width, key=f"{name} variance").exp() for name, width in channels.items()}
    return Target(torch.arange(CLASSES), atoms, weights, Statistics(mean, variance))


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


@pytest.mark.parametrize("settings", [WMDD_CE, SQUARED, OWN_VIEWS], ids=["wmdd-ce", "squared", "own-views"])
@ENGINES
def test_the_gradient_of_an_image_depends_on_neither_batch_nor_block(teacher, settings, engine):
    target = targets(teacher, settings)
    images = noise(target.labels, K, SIDE, 0).double()
    alone = gradient(teacher, images, target, settings, one_by_one(), engine)
    for size in (CLASSES * K, 2 * K):
        parts = batches(CLASSES, K, settings, size)
        assert len(parts) < CLASSES
        assert largest_difference(gradient(teacher, images, target, settings, parts, engine), alone) < 1e-10
    block = target.part(slice(2, 4), slice(0, K))
    some = gradient(teacher, images[2:4], block, settings, [(slice(0, 2), slice(0, K))], engine)
    assert largest_difference(some, alone[2:4]) < 1e-10


@pytest.mark.parametrize("settings", [SRE2L, RELEASED], ids=["sre2l", "released"])
def test_the_gradient_of_an_image_depends_on_the_batch_where_the_loss_couples(teacher, settings):
    assert settings.coupled
    target = targets(teacher, settings)
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
    "sre2l": SRE2L,
    "released": RELEASED,
    "squared": SQUARED,
    "weighted": RecoverSettings(feature_weight=0.3, regularisation=500, cross_entropy=2, first_layer_weight=10),
    "no-statistics": RecoverSettings(regularisation=0),
}


@pytest.mark.parametrize("settings", LOSSES.values(), ids=LOSSES.keys())
@ENGINES
def test_terms_equal_a_plain_evaluation_of_the_equations(teacher, settings, engine):
    for k in K, 1:
        target = targets(teacher, settings, k)
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


def test_images_that_match_their_target_cost_nothing(teacher):
    images = normal(CLASSES * K, 3, SIDE, SIDE, key="real")
    found = terms_of(teacher, images, matched(teacher, images, targets(teacher).weights), WMDD)
    assert [value.item() for value in found.values()] == pytest.approx([0, 0], abs=1e-10)


@pytest.mark.parametrize(("settings", "factor"), [(WMDD, 1), (SQUARED, 2)], ids=["mean", "squared"])
def test_every_image_twice_changes_the_mean_by_nothing_and_the_sum_by_two(teacher, settings, factor):
    target = targets(teacher)
    doubled = replace(target, atoms=target.atoms.repeat(1, 2, 1), weights=target.weights.repeat(1, 2) / 2)
    images = normal(CLASSES, K, 3, SIDE, SIDE, key="real")
    once = terms_of(teacher, images.flatten(0, 1), target, settings)
    twice = terms_of(teacher, images.repeat(1, 2, 1, 1, 1).flatten(0, 1), doubled, settings)
    expected = {"feature": factor * once["feature"].item(), "batchnorm": once["batchnorm"].item()}
    assert {name: value.item() for name, value in twice.items()} == pytest.approx(expected, rel=1e-10)


# ---- the optimisation


def recovered(network, settings, seed=3, keeper=None, block=slice(0, 4), k=2, engine=PLAIN, start=None, grey=False):
    """Recover a block of the tiny problem's classes."""
    target, context = targets(network, k=k), quiet(engine)
    return recover(
        network, target.labels[block], target.atoms[block], target.weights[block],
        target.statistics.of(target.labels[block]), SIDE, NORMALISATION, settings, seed,
        replace(context, keeper=keeper or context.keeper), start, grey,
    )  # fmt: skip


SHORT = {**MILD, "iterations": 5, "batch_size": 4}


def test_images_are_pixels_of_their_seed_and_every_batch_is_optimised(tiny_teacher):
    start = to_pixels(noise(torch.arange(4), 2, SIDE, 3), NORMALISATION)
    for options in {}, {"statistics": "global", "composition": "across"}:
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
    images = normalised(starts(3))
    features = torch.stack([tiny_teacher.embed(mine) for mine in images]).detach()
    order = torch.tensor([2, 0, 1])
    assert torch.equal(matched_starts(tiny_teacher, images, features[:, order], PLAIN, COLOUR), images[:, order])
    # Both atoms want the first image; the assignment is the cheapest in all, not the first come.
    first, second = features[:, :1], features[:, 1:2]
    atoms = first + torch.tensor([0.4, -1.0])[:, None] * (second - first)
    assert torch.equal(matched_starts(tiny_teacher, images[:, :2], atoms, PLAIN, COLOUR), images[:, :2].flip(1))


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
    planes = Planes.of(NORMALISATION, grey=True)
    taken = planes.taken(images)
    assert taken.shape == (4, 2, 1, SIDE, SIDE)
    torch.testing.assert_close(planes.shown(taken), normalise(images, NORMALISATION))
    assert torch.equal(planes.pixels(taken), images)
    assert torch.equal(COLOUR.shown(COLOUR.taken(starts())), normalise(starts(), NORMALISATION))


def test_recover_begins_where_it_is_told(tiny_teacher):
    """With a rate that moves nothing, the images are the starts, each class's in the order of its atoms."""
    still = recovered(tiny_teacher, RecoverSettings(**SHORT | {"lr": 1e-9}), start=starts())
    for mine, before in zip(still, starts(), strict=True):
        assert any((mine.int() - before[list(order)].int()).abs().max() <= 1 for order in ((0, 1), (1, 0)))


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
    mean, std = map(torch.tensor, NORMALISATION)
    keeper = dying_keeper(4)
    recovered(tiny_teacher, RecoverSettings(**SHORT | {"batch_size": 8}, lr=0.5), keeper=keeper)
    x = keeper.load()["optimizer"]["x"]
    torch.testing.assert_close(x.amin((0, 2, 3)), -mean / std)  # some are at the bounds
    torch.testing.assert_close(x.amax((0, 2, 3)), (1 - mean) / std)


KILLS = {
    "in the first batch": ({}, PLAIN, 2, 5),
    "after it": ({}, FAST, 5, 6),
    "in the second, coupled": ({"cross_entropy": 1, "feature_loss": "norm"}, PLAIN, 7, 9),
    "in the second, across": ({"cross_entropy": 1, "statistics": "global", "composition": "across"}, FAST, 7, 9),
    "after the last iteration, before the result is written": ({}, FAST, 10, 0),
}


@pytest.mark.parametrize(("changes", "engine", "save_at", "die_at"), KILLS.values(), ids=KILLS)
def test_a_killed_job_goes_on_to_the_same_bits(tiny_teacher, dying_keeper, changes, engine, save_at, die_at):
    settings = RecoverSettings(**SHORT, **changes)
    engine = replace(engine, images_at_once=settings.batch_size)
    whole = recovered(tiny_teacher, settings, engine=engine)  # two batches of five iterations
    keeper = dying_keeper(save_at, die_at)
    with pytest.raises(dying_keeper.Killed) if die_at else nullcontext():
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
    again = dying_keeper.after(lambda keeper: recovered(tiny_teacher, settings, keeper=keeper, engine=first), 7, 8)
    assert torch.equal(recovered(tiny_teacher, settings, keeper=again, engine=later), whole)


def test_images_may_go_through_jpeg_files(tiny_teacher):
    """As Pillow reads and writes them, which is what the released code uses."""
    images, through, fine = (recovered(tiny_teacher, RecoverSettings(**SHORT, jpeg=q)).float() for q in (0, 75, 100))
    for image, found in zip(images.flatten(0, 1), through.flatten(0, 1), strict=True):
        file = io.BytesIO()
        Image.fromarray(image.byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=75)
        theirs = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
        assert float((found - theirs).abs().mean()) < 1
    assert 0 < float((fine - images).abs().mean()) < float((through - images).abs().mean())


def normalised(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in NORMALISATION)
    return (pixels / 255 - mean) / std


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
        network,
        target.labels,
        target.atoms,
        target.weights,
        target.statistics,
        SIDE,
        NORMALISATION,
        settings,
        0,
        context,
    )
    return history, found


# ---- the fast engine against the reference

ROWS = {
    "wmdd": {},
    "squared, with classes": {"feature_loss": "squared", "cross_entropy": 1},
    "barycenter-only": {"statistics": "global"},
    "released": {"feature_loss": "norm", "cross_entropy": 1},
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_the_loss_trace_is_that_of_the_reference(tiny_teacher, real, row):
    steps = 12 if row else 8  # later, what was rounded shows: Adam divides by what is left of gradients that cancel
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
    settings = RecoverSettings(**MILD, iterations=20)
    expected, _ = history_of(tiny_teacher, real, settings)
    found, _ = history_of(tiny_teacher, real, settings, replace(FAST, dtype=torch.bfloat16))
    assert found[-1]["loss"] == pytest.approx(expected[-1]["loss"], rel=0.05)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch needs a C++ compiler")
def test_the_compiled_loss_is_that_of_the_reference(real, capsys):
    network = build(NetworkSettings(architecture="convnet1", width=4), CLASSES, SIDE, generator("compiled")).eval()
    settings = RecoverSettings(**MILD, iterations=4, cross_entropy=1)
    expected, images = history_of(network, real, settings)
    found, others = history_of(network, real, settings, replace(FAST, mode="compile", images_at_once=6))
    assert "not compiled" not in capsys.readouterr().err
    for a, b in zip(expected, found, strict=True):
        assert b == pytest.approx(a, rel=1e-4)
    assert float((images.int() - others.int()).abs().float().mean()) < 0.5


@pytest.mark.parametrize("statistics", ["per-class", "global"])
def test_the_loss_falls_and_is_the_sum_of_its_terms(tiny_teacher, real, statistics):
    settings = RecoverSettings(**STILL, iterations=40, cross_entropy=1, statistics=statistics)
    history, _ = history_of(tiny_teacher, real, settings)
    assert len(history) == 40
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    for entry in history:
        assert entry["loss"] == pytest.approx(sum(v for name, v in entry.items() if name != "loss"), rel=1e-5)


@pytest.mark.parametrize("term", ["feature", "batchnorm", "cross_entropy"])
def test_each_term_falls_on_its_own(tiny_teacher, real, term):
    weights = {"feature_weight": 0.0, "regularisation": 0.0, "cross_entropy": 0.0}
    weights[{"feature": "feature_weight", "batchnorm": "regularisation"}.get(term, term)] = 1.0
    history, images = history_of(tiny_teacher, real, RecoverSettings(**STILL, iterations=60, **weights))
    assert set(history[0]) == {"loss", term}
    assert history[-1][term] < 0.8 * history[0][term]
    if term == "feature":  # the images have the features asked for
        start = noise(torch.arange(3), 2, SIDE, 0).flatten(0, 1)
        with torch.no_grad():
            atoms, reached, begun = (tiny_teacher.embed(x) for x in (real, normalised(images.flatten(0, 1)), start))
        assert F.mse_loss(reached, atoms) < 0.05 * F.mse_loss(begun, atoms)


def test_no_atoms_are_needed_where_no_term_uses_them(tiny_teacher):
    target = targets(tiny_teacher, k=2)
    settings = RecoverSettings(**SHORT, feature_weight=0, cross_entropy=1)
    arguments = (target.weights, target.statistics, SIDE, NORMALISATION, settings, 0, quiet(plain()))
    without = recover(tiny_teacher, target.labels, None, *arguments)
    assert torch.equal(without, recover(tiny_teacher, target.labels, target.atoms, *arguments))


# ---- what is refused


@pytest.mark.parametrize(
    ("overrides", "atoms", "says"),
    [
        ({}, False, "needs a barycenter"),
        ({"feature_weight": 0, "regularisation": 0}, False, "recover has no loss"),
        ({"lr": 1e30, "cross_entropy": float("inf")}, True, "the loss is not a number at iteration 0"),
    ],
)
def test_a_loss_that_can_not_be_is_refused(tiny_teacher, overrides, atoms, says):
    target = targets(tiny_teacher, k=2)
    settings = RecoverSettings(**SHORT | overrides)
    with pytest.raises(WmddError, match=says):
        recover(
            tiny_teacher, target.labels, target.atoms if atoms else None, target.weights, target.statistics, SIDE,
            NORMALISATION, settings, 0, quiet(PLAIN),
        )  # fmt: skip


def test_a_teacher_without_batchnorm_needs_no_regularisation():
    network = build(NetworkSettings(architecture="convnet3", width=4, norm="instance"), 2, SIDE, torch.Generator())
    with pytest.raises(WmddError, match="no BatchNorm layers to match"):
        recover(
            network, torch.arange(2), torch.zeros(2, 1, network.head.in_features), torch.ones(2, 1), Statistics({}, {}),
            SIDE, NORMALISATION, RecoverSettings(iterations=3), 0, quiet(plain()),
        )  # fmt: skip
