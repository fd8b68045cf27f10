"""Per-class statistics against direct means and variances over all pixels of a class, in float64."""

import pytest
import torch
from torch import Tensor

from wmdd.base.rng import generator
from wmdd.networks.batchnorm import ClassMoments, inputs_of, layers, moments, running, sums_of, watchable, watched
from wmdd.networks.models import normalise
from wmdd.networks.normalisation import Normalisation

CLASSES, COUNT = 3, 14
LABELS = torch.tensor([0, 2, 1, 0, 0, 2, 1, 1, 0, 2, 0, 1, 0, 0])  # 7, 4 and 3 images
NORMALISATION = Normalisation([0.5, 0.4, 0.6], [0.2, 0.3, 0.25])


def uniform(*shape: int, key: str = "") -> Tensor:
    return torch.rand(shape, generator=generator("test", key, *shape))


@pytest.fixture
def images() -> Tensor:
    """uint8 pictures whose brightness and contrast differ by class and by picture."""
    brightness = (40 + 60 * LABELS + 30 * uniform(COUNT, key="brightness"))[:, None, None, None]
    contrast = (20 + 40 * uniform(COUNT, key="contrast"))[:, None, None, None]
    return (brightness + contrast * uniform(COUNT, 3, 16, 16, key="pixels")).clamp(0, 255).to(torch.uint8)


def direct(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance per channel of all pixels of images [n, ch, H, W]."""
    pixels = x.double().transpose(0, 1).flatten(1)
    mean = pixels.sum(1) / pixels.shape[1]
    return mean, (pixels - mean[:, None]).square().sum(1) / pixels.shape[1]


def add(found: ClassMoments, inputs: dict[str, Tensor], label: int) -> None:
    count = len(next(iter(inputs.values())))
    found.add(label, count, {name: sums_of(x) for name, x in inputs.items()})


def gathered(inputs: dict[str, Tensor], order: Tensor, size: int):
    found = ClassMoments()
    for label in range(CLASSES):
        for index in order[LABELS[order] == label].split(size):
            add(found, {name: x[index] for name, x in inputs.items()}, label)
    return found.statistics()


# ---- exact statistics of a class


@pytest.fixture
def inputs(tiny_teacher, images) -> dict[str, Tensor]:
    """The input of every BatchNorm layer of a ResNet-18 for all images, by hooks of our own."""
    inputs: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, x, name=name: inputs.update({name: x[0].clone()}))
        for name, module in tiny_teacher.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    ]
    with torch.no_grad():
        tiny_teacher(normalise(images, NORMALISATION))
    for handle in handles:
        handle.remove()
    assert list(inputs) == list(layers(tiny_teacher))
    assert len(inputs) == 20
    return inputs


@pytest.mark.parametrize("size", [1, 3, COUNT])
def test_class_moments_are_the_direct_ones_whatever_the_batches_and_their_order(inputs, size):
    found = gathered(inputs, torch.randperm(COUNT, generator=generator("order", size)), size)
    for name, x in inputs.items():
        for c in range(CLASSES):
            mean, variance = direct(x[c == LABELS])
            torch.testing.assert_close(found.mean[name][c], mean, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(found.variance[name][c], variance, rtol=1e-6, atol=1e-7)


def test_variance_between_the_images_of_a_class_counts():
    # Pictures of one colour each: no variance within any of them, all of it between them.
    found = ClassMoments()
    for colour in torch.tensor([0.0, 2.0, 7.0]):
        add(found, {"layer": colour.expand(1, 1, 4, 4)}, 0)
    assert float(found.statistics().mean["layer"]) == pytest.approx(3)
    assert float(found.statistics().variance["layer"]) == pytest.approx((9 + 1 + 16) / 3)


def test_sums_survive_a_mean_far_from_zero():
    x = 1000 + 0.1 * torch.randn(6, 1, 16, 16, generator=generator("far"))
    found = ClassMoments()
    for image in x.split(1):
        add(found, {"layer": image}, 0)
    torch.testing.assert_close(found.statistics().variance["layer"][0], direct(x)[1], rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("form", "side"), [(torch.channels_last, 5), (torch.channels_last, 90), (torch.contiguous_format, 90)]
)
def test_moments_are_exact_in_every_layout_and_type(dtype, form, side):
    x = torch.randn(9, 6, side, side, generator=generator("layout", side)) * 3 + 5
    x = x.to(dtype).contiguous(memory_format=form)
    found = ClassMoments()
    add(found, {"layer": x}, 0)
    mean, variance = direct(x)
    torch.testing.assert_close(found.statistics().mean["layer"][0], mean, rtol=3e-6, atol=0)
    torch.testing.assert_close(found.statistics().variance["layer"][0], variance, rtol=1e-5, atol=0)


def test_the_last_class_goes_on_without_touching_what_was():
    found = ClassMoments()
    for label in (0, 2, 2, 1):
        add(found, {"layer": uniform(2, 3, 4, 4, key=str(label))}, label)
    before = found.sums[1].clone()
    rest = found.last()
    assert rest.count == {1: 2}
    add(rest, {"layer": uniform(2, 3, 4, 4)}, 1)
    assert (rest.count, found.count) == ({1: 4}, {0: 2, 2: 4, 1: 2})
    assert torch.equal(found.sums[1], before)
    statistics = found.statistics()
    some = statistics.of(torch.tensor([2, 0]))
    assert torch.equal(some.mean["layer"], statistics.mean["layer"][[2, 0]])
    assert torch.equal(some.variance["layer"], statistics.variance["layer"][[2, 0]])


# ---- statistics of the teacher


def test_running_statistics_are_copies_with_one_row_and_hooks_are_gone_afterwards(tiny_teacher, images):
    found = running(tiny_teacher)
    for name, layer in layers(tiny_teacher).items():
        assert torch.equal(found.mean[name], layer.running_mean[None])
        assert torch.equal(found.variance[name], layer.running_var[None])
        found.mean[name].zero_()
        assert bool((layer.running_mean != 0).any())
    with inputs_of(tiny_teacher) as seen:
        tiny_teacher(normalise(images, NORMALISATION))
        assert list(seen) == list(layers(tiny_teacher))
    seen.clear()
    tiny_teacher(normalise(images, NORMALISATION))
    assert not seen


# ---- inside a loss


def normal(*shape: int) -> Tensor:
    return 3 + torch.randn(shape, generator=generator("normal", *shape), dtype=torch.float64)


def exactly(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    return moments(x, weights, torch.float64)


@pytest.mark.parametrize("weights", [[[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], [[1 / 3] * 3] * 2])
def test_weights_are_shares_of_the_mass(weights):
    x, weights = normal(2 * 3, 5, 6, 6), torch.tensor(weights, dtype=torch.float64)
    mean, variance = exactly(x, weights)
    pixels, share = x.view(2, 3, 5, 36), weights[..., None, None] / 36
    mu = (share * pixels).sum((1, 3))  # [C, ch]
    torch.testing.assert_close(mean, mu)
    torch.testing.assert_close(variance, (share * (pixels - mu[:, None, :, None]).square()).sum((1, 3)))


def test_the_gradient_is_that_of_finite_differences():
    x = normal(4, 2, 3, 3).requires_grad_()
    weights = torch.tensor([[0.7, 0.3], [0.4, 0.6]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: exactly(x, weights), x)
    assert torch.autograd.gradcheck(lambda x: exactly(x, weights)[1], x)  # one of the two alone


def test_moments_in_single_precision_survive_a_mean_of_ten_deviations():
    x = 10 + (normal(4, 2, 16, 16) - 3)
    mean, variance = moments(x.float(), torch.full((1, 4), 0.25))
    assert mean.dtype == variance.dtype == torch.float32
    expected = direct(x)
    torch.testing.assert_close(mean[0].double(), expected[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(variance[0].double(), expected[1], rtol=1e-3, atol=0)


def test_moments_of_bfloat16_and_of_constant_images_are_exact_in_single_precision():
    # 16,384 equal addends: sums in bfloat16 would stop growing at 256.
    x = torch.full((1, 1, 128, 128), 1.5, dtype=torch.bfloat16)
    x[..., ::2] = 0.5
    mean, variance = moments(x, torch.ones(1, 1))
    assert mean.dtype == variance.dtype == torch.float32
    assert (float(mean), float(variance)) == pytest.approx((1, 0.25), rel=1e-3)
    for value in (0.1, 3.3, -700.7):
        _, variance = moments(torch.full((2, 1, 7, 7), value), torch.full((1, 2), 0.5))
        assert 0 <= float(variance) <= 1e-6 * value**2


# ---- taken by the layers themselves


def both_ways(network, x: Tensor, weights: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Features, moments of all layers and the gradient of their sum to x: by hooks, and by the layers themselves."""

    def of(embedded: Tensor, found: dict, pixels: Tensor) -> list[Tensor]:
        flat = [value for pair in found.values() for value in pair]
        total = embedded.square().sum() + sum((i + 1) * value.square().sum() for i, value in enumerate(flat))
        return [embedded, *flat, torch.autograd.grad(total, pixels)[0]]

    a, b = x.clone().requires_grad_(), x.clone(memory_format=torch.preserve_format).requires_grad_()
    with inputs_of(network) as seen:
        embedded = network.embed(a)
        hooked = of(embedded, {name: moments(value, weights, weights.dtype) for name, value in seen.items()}, a)
    with watched(network, weights) as found:
        embedded = network.embed(b)
        assert list(found) == list(seen)
        return hooked, of(embedded, found, b)


@pytest.mark.parametrize("uniform", [True, False], ids=["uniform", "free"])
@pytest.mark.parametrize(
    ("side", "form", "dtype"),
    [
        (8, torch.contiguous_format, torch.float64),
        (8, torch.channels_last, torch.float32),
        (72, torch.channels_last, torch.float32),  # an image in parts: 72^2 > ROWS
    ],
)
def test_watched_layers_find_what_hooks_find(tiny_teacher, uniform, side, form, dtype):
    weights = torch.full((3, 4), 0.25, dtype=dtype)
    if not uniform:
        weights = (weights * torch.arange(1, 13).view(3, 4)) / (0.25 * torch.arange(1, 13).view(3, 4).sum(1, True))
    network = tiny_teacher.to(dtype, memory_format=form).requires_grad_(False)
    x = (1 + 2 * normal(12, 3, side, side)).to(dtype).contiguous(memory_format=form)
    hooked, found = both_ways(network, x, weights)
    for a, b in zip(hooked, found, strict=True):
        scale = float(a.abs().max())
        torch.testing.assert_close(b, a, rtol=0, atol=scale * (1e-10 if dtype == torch.float64 else 2e-5))


@pytest.mark.parametrize("weights", [torch.full((2, 2), 0.5), torch.full((1, 4), 0.25)])
def test_watched_moments_of_bfloat16_are_gathered_in_single_precision(tiny_teacher, weights):
    x = normal(4, 3, 64, 64).float().contiguous(memory_format=torch.channels_last)
    network = tiny_teacher.to(memory_format=torch.channels_last)
    with watched(network, weights) as found, inputs_of(network) as seen, torch.no_grad(), torch.autocast("cpu"):
        network(x)
    for name, values in found.items():
        assert seen[name].dtype == torch.bfloat16
        for value, expected in zip(values, exactly(seen[name].double(), weights.double()), strict=True):
            torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_network_is_the_same_before_and_after_it_was_watched(tiny_teacher):
    x, before = normal(4, 3, 16, 16).float(), {k: v.clone() for k, v in tiny_teacher.state_dict().items()}
    expected = tiny_teacher(x)
    with watched(tiny_teacher, torch.full((2, 2), 0.5)):
        torch.testing.assert_close(tiny_teacher(x), expected)
    for layer in layers(tiny_teacher).values():
        assert type(layer) is torch.nn.BatchNorm2d
        assert not vars(layer).keys() & {"watched_moments", "called", "group"}
    assert torch.equal(tiny_teacher(x), expected)
    assert all(torch.equal(v, before[k]) for k, v in tiny_teacher.state_dict().items())


def test_only_layers_of_torch_can_be_watched(tiny_teacher):
    assert watchable(tiny_teacher)

    class Other(torch.nn.BatchNorm2d):
        pass

    tiny_teacher.stem[1] = Other(4)
    assert not watchable(tiny_teacher)
    with pytest.raises(ValueError, match="can't be watched"), watched(tiny_teacher, torch.ones(1, 1)):
        pass
    assert type(tiny_teacher.stem[1]) is Other
    tiny_teacher.stem[1] = torch.nn.BatchNorm2d(4, track_running_stats=False)
    assert not watchable(tiny_teacher)
