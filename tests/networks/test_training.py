"""Schedules, accuracy and the training loop, against closed forms."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.datasets.loader import Resident
from wmdd.networks.context import quiet
from wmdd.networks.engine import plain
from wmdd.networks.losses import cross_entropy
from wmdd.networks.normalisation import Normalisation
from wmdd.networks.optimizers import OPTIMIZERS
from wmdd.networks.training import Batch, batches_of, evaluate, fit, learning_rate
from wmdd.settings.network import TrainingSettings

NORMALISATION = Normalisation([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])


def normal(*shape: int, key: str = "") -> Tensor:
    return torch.randn(shape, generator=generator("training test", key, *shape))


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[name]) for name, v in a.state_dict().items())


# ---- the schedule


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {0: 1, 10: (1 + math.sqrt(0.5)) / 2, 20: 0.5, 40: 0}),
        ({"schedule_stretch": 1.5}, {0: 1, 40: 0.25}),
        ({"schedule_stretch": 2}, {0: 1, 40: 0.5}),
        ({"warmup_epochs": 4}, {4: 1, 4 - 1e-9: 1, 22: 0.5, 40: 0}),
        ({"schedule": "constant", "schedule_stretch": 2}, {0: 1, 19.99: 1, 20: 1, 40: 1}),
        ({"schedule": "step", "schedule_stretch": 2}, {0: 1, 19.99: 1, 20: 0.1, 40: 0.1}),
        ({"schedule": "step", "warmup_epochs": 4}, {4: 1, 19.99: 1, 20: 0.1}),
    ],
)
def test_the_rate_at_an_epoch_is_this_share_of_lr(changes, expected):
    settings = TrainingSettings(epochs=40, lr=0.3, **changes)
    assert {t: learning_rate(settings, t) / 0.3 for t in expected} == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("schedule", ["cosine", "constant", "step"])
def test_the_warm_up_of_every_schedule_is_linear(schedule):
    settings = TrainingSettings(epochs=20, lr=0.3, warmup_epochs=4, schedule=schedule)
    rise = [learning_rate(settings, epoch) for epoch in range(5)]
    assert 0 < rise[0] < 0.01 * 0.3
    assert [b - a for a, b in itertools.pairwise(rise)] == pytest.approx([(0.3 - rise[0]) / 4] * 4)


# ---- batches


@given(st.integers(1, 120), st.integers(1, 120))
def test_batches_are_few_even_and_hold_everything(count, size):
    parts = batches_of(torch.arange(count), size)
    assert torch.equal(torch.cat(parts), torch.arange(count))
    assert len(parts) == math.ceil(count / size)
    sizes = [len(part) for part in parts]
    assert max(sizes) <= min(size, min(sizes) + 1)


# ---- accuracy


class Table(nn.Module):
    """Looks the logits of an image up by its number, which is its red pixel."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        return self.logits[(x[:, 0, 0, 0] * 255).round().long()]


@pytest.mark.parametrize("size", [3, 500])
def test_accuracy_by_hand(size):
    def accuracy(logits: Tensor, labels: list[int]) -> dict[str, float]:
        images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
        network = Table(logits).train()
        scores = evaluate(
            network, Resident(images, torch.tensor(labels)), Normalisation([0] * 3, [1] * 3), plain(), size
        )
        assert network.training
        return scores

    # Class c has the logit -(distance to c on a ring of seven), so image i ranks i, then its neighbours.
    ranked = torch.tensor(
        [[-(min((c - i) % 7, (i - c) % 7) + 0.1 * ((c - i) % 7 > 3)) for c in range(7)] for i in range(7)]
    )
    # Images 0, 4, 5 and 6 are right, image 1 is labelled its neighbour, images 2 and 3 one of the two farthest classes.
    assert accuracy(ranked, [0, 2, 5, 0, 4, 5, 6]) == {"top1": 4 / 7, "top5": 5 / 7}
    assert accuracy(torch.eye(3), [0, 1, 0]) == {"top1": 2 / 3, "top5": 1.0}  # fewer than five classes


def test_evaluation_normalises():
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.mean((1, 2, 3)), torch.zeros(len(x))], 1)

    images = torch.tensor([100, 160], dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    below_and_above_the_mean = Resident(images, torch.tensor([1, 0]))
    assert evaluate(Mean(), below_and_above_the_mean, NORMALISATION, plain())["top1"] == 1


# ---- the loop


def linear() -> nn.Linear:
    """The same map whenever it is asked for."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(5, 3)


def fit_linear(settings: TrainingSettings, loss_of=None, weights: Tensor | None = None, ema=0.0, **context):
    """Fit a linear map to four batches of numbers an epoch."""
    network = linear()

    def epoch_of(epoch: int, first: int):
        for step in range(first, 4):
            x = normal(8, 5, key=f"{epoch} {step}")
            yield Batch(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long(), weights)

    loss_of = loss_of or cross_entropy()
    context = replace(quiet(plain()), **context)
    return network, fit(network, epoch_of, 4, loss_of, lambda _: {"top1": 0.5}, settings, context, ema)


@pytest.fixture
def steps(monkeypatch):
    """The rate and the weights of every step of SGD."""
    seen = []

    class Watched(OPTIMIZERS["sgd"]):
        def step(self, *arguments):
            super().step(*arguments)
            group = self.param_groups[0]
            seen.append((group["lr"], group["params"][0].detach().clone()))

    monkeypatch.setitem(OPTIMIZERS, "sgd", Watched)
    return seen


def test_every_step_has_its_own_rate(steps):
    _, history = fit_linear(TrainingSettings(epochs=3, lr=0.1))
    expected = [0.05 * (1 + math.cos(math.pi * (epoch + step / 4) / 3)) for epoch in range(3) for step in range(4)]
    assert [rate for rate, _ in steps] == pytest.approx(expected)
    assert [entry["lr"] for entry in history] == pytest.approx(expected[3::4])


@pytest.mark.parametrize(("optimizer", "ema"), [("sgd", 0.9), ("adam", 0.0), ("adamw", 0.0)])
@pytest.mark.parametrize(("save_at", "die_at"), [(1, 2), (5, 6), (14, 14 + 5)])  # 5 chances an epoch
def test_a_killed_training_goes_on_to_the_same_bits(dying_keeper, optimizer, ema, save_at, die_at):
    settings = TrainingSettings(epochs=7, lr=0.1, optimizer=optimizer, warmup_epochs=1)
    whole, history = fit_linear(settings, ema=ema)
    again = dying_keeper.after(lambda keeper: fit_linear(settings, keeper=keeper, ema=ema), save_at, die_at)
    logged = []
    network, resumed = fit_linear(settings, keeper=again, log=lambda _, step: logged.append(step), ema=ema)
    assert equal(network, whole)
    assert resumed == history
    assert logged == list(range(save_at // 5 + 1, 8))  # only what was missing is done again


def test_weight_decay_alone_by_hand():
    settings = TrainingSettings(epochs=1, lr=0.1, optimizer="sgd", momentum=0, weight_decay=0.5)
    network, _ = fit_linear(settings, loss_of=lambda logits, _: 0 * logits.sum(1))
    rates = [0.05 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    expected = linear().weight * math.prod(1 - rate * 0.5 for rate in rates)
    torch.testing.assert_close(network.weight.detach(), expected.detach())


def test_the_history_has_the_weighted_mean_loss_and_accuracy_when_asked_for():
    settings, losses = TrainingSettings(epochs=5, lr=0.1, evaluate_every=2), torch.arange(8.0)
    for weights, expected in (None, 3.5), (losses, float((losses**2).mean())):
        _, history = fit_linear(settings, lambda logits, _: 0 * logits.sum(1) + losses, weights)
        assert [entry["loss"] for entry in history] == pytest.approx([expected] * 5)
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4, 5]
    assert ["top1" in entry for entry in history] == [False, True, False, True, True]


def test_the_average_of_the_weights_by_hand(steps):
    network, _ = fit_linear(TrainingSettings(epochs=2, lr=0.1), ema=0.75)
    assert len(steps) == 8
    average = steps[0][1]
    for _, weight in steps[1:]:
        average = 0.75 * average + 0.25 * weight
    torch.testing.assert_close(network.weight.detach(), average)


def test_the_average_is_what_is_validated_with_its_own_statistics():
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    means, modes, validated = [], [], []

    def watch(module: nn.Module, *_) -> None:
        means.append(module[0].running_mean.clone())
        modes.append(module.training)

    def validate(given: nn.Module) -> dict[str, float]:
        validated.append(given)
        network.eval()  # as it must not stay
        return {"top1": 0.0}

    network.register_forward_hook(watch)
    batches = [Batch(normal(4, 2, key=f"statistics {i}"), torch.tensor([0, 1, 0, 1])) for i in range(3)]
    settings = TrainingSettings(epochs=2, lr=0.1, evaluate_every=1)
    fit(network, lambda *_: batches, 3, cross_entropy(), validate, settings, quiet(plain()), 0.5)
    assert validated[0] is not network
    assert equal(network, validated[-1])
    assert modes == [True] * 6
    average = means[0]
    for mean in means[1:]:
        average = (average + mean) / 2
    torch.testing.assert_close(network[0].running_mean, average)


def test_parts_of_a_step_add_up_to_one_step():
    def train(parts: int) -> tuple[nn.Module, list[dict[str, float]]]:
        network, batches = linear(), []
        for step in range(4):
            x = normal(9, 5, key=f"parts {step}")
            cut = zip(x.tensor_split(parts), (x[:, 0] > 0).long().tensor_split(parts), strict=True)
            batches += [Batch(a, b, share=len(a) / 9, last=i == parts) for i, (a, b) in enumerate(cut, 1)]
        settings = TrainingSettings(epochs=3, lr=0.1)
        return network, fit(network, lambda *_: batches, 4, cross_entropy(), lambda _: {}, settings, quiet(plain()))

    whole, history = train(1)
    for parts in 2, 4:
        network, in_parts = train(parts)
        torch.testing.assert_close(network.weight.detach(), whole.weight.detach())
        for a, b in zip(in_parts, history, strict=True):
            assert a == pytest.approx(b)


def test_a_loss_that_is_no_number_stops_the_run():
    with pytest.raises(WmddError, match="not a number after epoch 1; lower lr"):
        fit_linear(TrainingSettings(epochs=2, lr=0.1), loss_of=lambda logits, _: math.nan * logits.sum(1).exp())
