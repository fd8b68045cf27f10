"""Recovered images: block invariance, resuming, the fast engine against the reference, and that the loss falls."""

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

from tests.stages.test_recover_loss import CLASSES, ENGINES, FAST, MILD, NORMALISATION, PLAIN, SIDE, matched, targets
from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.networks.batchnorm import Statistics
from wmdd.networks.context import quiet
from wmdd.networks.engine import plain
from wmdd.networks.models import build, normalise, to_pixels
from wmdd.networks.planes import Planes
from wmdd.settings.network import NetworkSettings
from wmdd.settings.recover import RecoverSettings
from wmdd.stages.recover import _mix_back, _mixings, batches, noise, recover
from wmdd.stages.recover import matched as matched_starts

COLOUR = Planes.of(NORMALISATION, grey=False)
STILL = {"crop_scale": (1.0, 1.0), "jitter": 0, "flip": False}


def test_start_images_are_standard_normal_and_belong_to_seed_and_class():
    whole = noise(torch.arange(5), 10, SIDE, seed=7)
    assert (float(whole.mean()), float(whole.std())) == pytest.approx((0, 1), abs=0.02)
    assert torch.equal(noise(torch.tensor([2, 3]), 10, SIDE, seed=7), whole[2:4])
    assert not torch.equal(noise(torch.arange(5), 10, SIDE, seed=8), whole)
    assert len(whole.flatten(0, 1)[:, 0, 0, 0].unique()) == 50


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
    "between two mixings": ({"anchor": 0.5, "anchor_times": 2}, FAST, 2, 4),
    "after the last iteration, before the result is written": ({}, FAST, 10, 0),
}


@pytest.mark.parametrize(("changes", "engine", "save_at", "die_at"), KILLS.values(), ids=KILLS)
def test_a_killed_job_goes_on_to_the_same_bits(tiny_teacher, dying_keeper, changes, engine, save_at, die_at):
    settings = RecoverSettings(**SHORT, **changes)
    engine = replace(engine, images_at_once=settings.batch_size)
    start = starts() if settings.anchor else None
    whole = recovered(tiny_teacher, settings, engine=engine, start=start)  # two batches of five iterations
    keeper = dying_keeper(save_at, die_at)
    with pytest.raises(dying_keeper.Killed) if die_at else nullcontext():
        recovered(tiny_teacher, settings, keeper=keeper, engine=engine, start=start)
    state = keeper.load()
    assert (state["part"], state["optimizer"]["iteration"]) == ((save_at - 1) // 5, (save_at - 1) % 5 + 1)
    again = dying_keeper()
    again.content = keeper.content
    assert torch.equal(recovered(tiny_teacher, settings, keeper=again, engine=engine, start=start), whole)
    assert again.chances == 10 - save_at  # only what was missing is done again


def test_anchors_are_mixed_back_and_adam_begins_anew():
    """At equal distances; a step behind a mixing is that of a new optimiser at the mixture."""
    assert [sorted(_mixings(RecoverSettings(iterations=n, anchor=0.5))) for n in (2000, 3)] == [
        [500, 1000, 1500],
        [1, 2],
    ]
    assert _mixings(RecoverSettings()) == set()
    x, anchors = (torch.randn(2, 3, 4, 4, generator=generator(name)) for name in ("images", "anchors"))
    mixture = (0.75 * x + 0.25 * anchors).requires_grad_()
    x.requires_grad_()
    used, fresh = (plain().optimizer("adam", [pixels], 0.1) for pixels in (x, mixture))
    before = x.detach().clone()
    x.grad = torch.ones_like(x)
    used.step()
    with torch.no_grad():
        x.copy_(before)
    _mix_back(x, anchors, 0.25, used)
    torch.testing.assert_close(x, mixture)
    for pixels, optimizer in (x, used), (mixture, fresh):
        pixels.grad = pixels.detach().sin()
        optimizer.step()
    torch.testing.assert_close(x, mixture)


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
        ({"anchor": 0.5}, True, "recover with anchor needs images to begin with"),
        ({"lr": 1e30, "cross_entropy": 1e308}, True, "the loss is not a number at iteration 0"),
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
