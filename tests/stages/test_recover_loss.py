"""The loss of recover: against a plain evaluation of Eq. 5-7, on matched images, and what an image's gradient depends on."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from wmdd.base.rng import generator
from wmdd.networks.batchnorm import Statistics, inputs_of, layers, running
from wmdd.networks.engine import Engine, plain
from wmdd.networks.normalisation import Normalisation
from wmdd.settings.recover import RecoverSettings
from wmdd.stages.recover import batches, noise
from wmdd.stages.recover_loss import Target, loss_terms, observed
from wmdd.stages.recover_views import drawn, view

CLASSES, K, SIDE, FEATURES = 5, 3, 16, 32
NORMALISATION = Normalisation([0.5, 0.4, 0.6], [0.2, 0.3, 0.25])
MILD = {"crop_scale": (0.3, 1.0), "jitter": 3}

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


# ---- the equations


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
