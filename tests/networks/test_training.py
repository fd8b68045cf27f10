"""Schedules, losses, accuracy and the training loop against closed forms; teacher and student on a problem made easy."""

import itertools
import math
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.datasets.loader import Resident
from wmdd.networks import augment, siamese, whitening
from wmdd.networks.context import quiet
from wmdd.networks.engine import Engine, plain
from wmdd.networks.models import Network, normalise
from wmdd.networks.training import Batch, batches_of, cross_entropy, distillation, evaluate, fit, learning_rate
from wmdd.settings.network import TrainingSettings
from wmdd.settings.student import AugmentationSettings, StudentSettings
from wmdd.settings.teacher import TeacherSettings
from wmdd.stages import student, teacher
from wmdd.stages.labels import hard, online, stored
from wmdd.stages.relabel import seeds_of, seen, views_of
from wmdd.stages.student import weighted

MEAN, STD = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]
STILL = AugmentationSettings(crop_scale=(1, 1), flip=False, mix="none")


def normal(*shape: int, key: str = "") -> Tensor:
    return torch.randn(shape, generator=generator("training test", key, *shape))


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[name]) for name, v in a.state_dict().items())


# ---- the schedule


def test_the_rate_is_a_cosine_from_lr_to_zero():
    settings = TrainingSettings(epochs=40, lr=0.3)
    assert learning_rate(settings, 0) == pytest.approx(0.3)
    assert learning_rate(settings, 10) == pytest.approx(0.3 * (1 + math.sqrt(0.5)) / 2)
    assert learning_rate(settings, 20) == pytest.approx(0.15)
    assert learning_rate(settings, 40) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("stretch", "end"), [(1, 0), (2, 0.5), (1.5, 0.25)])
def test_a_stretched_cosine_ends_higher(stretch, end):
    settings = TrainingSettings(epochs=30, lr=0.3, schedule_stretch=stretch)
    assert learning_rate(settings, 0) == pytest.approx(0.3)
    assert learning_rate(settings, 30) == pytest.approx(0.3 * end, abs=1e-12)


def test_the_warm_up_is_linear_and_meets_the_cosine():
    settings = TrainingSettings(epochs=20, lr=0.3, warmup_epochs=4)
    rise = [learning_rate(settings, e) for e in (0, 1, 2, 3, 4)]
    assert 0 < rise[0] < 0.01 * 0.3
    assert [b - a for a, b in itertools.pairwise(rise)] == pytest.approx([(0.3 - rise[0]) / 4] * 4)
    assert rise[-1] == pytest.approx(0.3)
    assert learning_rate(settings, 4 - 1e-9) == pytest.approx(0.3)
    assert learning_rate(settings, 12) == pytest.approx(0.15)  # half-way through what is left
    assert learning_rate(settings, 20) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("schedule", "end"), [("constant", 0.3), ("step", 0.03)])
def test_a_rate_stays_or_falls_to_a_tenth_at_half_of_the_epochs(schedule, end):
    settings = TrainingSettings(epochs=9, lr=0.3, schedule=schedule)
    assert [learning_rate(settings, epoch) for epoch in (0, 2, 4.49)] == [0.3] * 3
    assert [learning_rate(settings, epoch) for epoch in (4.5, 5, 8.99, 9)] == pytest.approx([end] * 4)


@pytest.mark.parametrize("schedule", ["cosine", "constant", "step"])
def test_every_schedule_warms_up(schedule):
    settings = TrainingSettings(epochs=20, lr=0.3, warmup_epochs=4, schedule=schedule)
    cosine = settings.model_copy(update={"schedule": "cosine"})
    assert [learning_rate(settings, e) for e in (0, 1, 3)] == [learning_rate(cosine, e) for e in (0, 1, 3)]
    assert learning_rate(settings, 4) == pytest.approx(0.3)


def test_a_schedule_that_does_not_fall_has_no_stretch():
    for schedule in "constant", "step":
        one, two = (TrainingSettings(epochs=9, schedule=schedule, schedule_stretch=s) for s in (1, 2))
        assert [learning_rate(one, e) for e in range(10)] == [learning_rate(two, e) for e in range(10)]


def test_the_loop_sets_the_rate_at_every_step():
    rates = []

    class Watched(torch.optim.SGD):
        def step(self, *arguments):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*arguments)

    settings = TrainingSettings(epochs=3, lr=0.1, optimizer="sgd")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "SGD", Watched)
        history = fit_linear(settings)[1]
    expected = [0.05 * (1 + math.cos(math.pi * (epoch + step / 4) / 3)) for epoch in range(3) for step in range(4)]
    assert rates == pytest.approx(expected)
    assert [entry["lr"] for entry in history] == pytest.approx(expected[3::4])


# ---- batches


@pytest.mark.parametrize(("count", "size"), [(1, 1), (10, 4), (12, 4), (13, 4), (7, 100), (101, 100), (9, 8)])
def test_batches_are_few_even_and_hold_everything(count, size):
    order = torch.randperm(count, generator=generator(count, size))
    parts = batches_of(order, size)
    assert torch.equal(torch.cat(parts), order)
    assert len(parts) == math.ceil(count / size)
    sizes = [len(part) for part in parts]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1


# ---- losses


def test_cross_entropy_of_labels_probabilities_and_smoothing():
    logits, labels = normal(6, 4), torch.tensor([0, 3, 1, 1, 2, 0])
    expected = -logits.log_softmax(1)[torch.arange(6), labels]
    torch.testing.assert_close(cross_entropy()(logits, labels), expected)
    torch.testing.assert_close(cross_entropy()(logits, F.one_hot(labels, 4).float()), expected)
    smooth = 0.9 * expected - 0.1 * logits.log_softmax(1).mean(1)
    torch.testing.assert_close(cross_entropy(0.1)(logits, labels), smooth)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_distillation_is_the_divergence_of_softened_labels(temperature):
    logits, targets = 5 * normal(6, 4, key="student"), 5 * normal(6, 4, key="teacher")
    found = distillation(temperature)(logits, targets)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=targets / temperature),
        torch.distributions.Categorical(logits=logits / temperature),
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(distillation(temperature)(logits, targets.half()), expected, rtol=1e-2, atol=1e-4)
    assert bool((found > 0).all())


def test_distillation_of_equal_logits_is_zero_with_zero_gradient():
    logits = 5 * normal(6, 4)
    student_logits = (logits + 3).requires_grad_()  # a softmax does not see a constant
    loss = distillation(20)(student_logits, logits)
    torch.testing.assert_close(loss, torch.zeros(6))
    loss.sum().backward()
    torch.testing.assert_close(student_logits.grad, torch.zeros(6, 4))


# ---- accuracy


class Table(nn.Module):
    """Looks the logits of an image up by its number, which is its red pixel."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        return self.logits[(x[:, 0, 0, 0] * 255).round().long()]


def accuracy(logits: Tensor, labels: list[int], size: int) -> dict[str, float]:
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    return evaluate(Table(logits), Resident(images, torch.tensor(labels)), [0, 0, 0], [1, 1, 1], plain(), size)


@pytest.mark.parametrize("size", [1, 3, 500])
def test_accuracy_by_hand(size):
    # Class c has the logit -(distance to c on a ring of seven), so image i ranks i, then its neighbours.
    ranked = torch.tensor(
        [[-(min((c - i) % 7, (i - c) % 7) + 0.1 * ((c - i) % 7 > 3)) for c in range(7)] for i in range(7)]
    )
    # Images 0, 4, 5 and 6 are right, image 1 is labelled its neighbour, images 2 and 3 one of the two farthest classes.
    assert accuracy(ranked, [0, 2, 5, 0, 4, 5, 6], size) == {"top1": 4 / 7, "top5": 5 / 7}


@pytest.mark.parametrize("size", [1, 2, 500])
def test_with_fewer_than_five_classes_top_5_is_everything(size):
    assert accuracy(torch.eye(3), [0, 1, 0], size) == {"top1": 2 / 3, "top5": 1.0}


def test_evaluation_leaves_the_mode_as_it_was():
    network = Table(torch.eye(3)).train()
    evaluate(
        network, Resident(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.tensor([0])), [0] * 3, [1] * 3, plain()
    )
    assert network.training


def test_evaluation_normalises():
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.mean((1, 2, 3)), torch.zeros(len(x))], 1)

    images = torch.tensor([100, 160], dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    found = evaluate(
        Mean(), Resident(images, torch.tensor([1, 0])), MEAN, STD, plain()
    )  # below and above the mean colour
    assert found["top1"] == 1


# ---- the loop


def fit_linear(settings: TrainingSettings, loss_of=None, keeper=None, log=None, weights: Tensor | None = None, ema=0.0):
    """Fit a linear map to four batches of numbers an epoch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Linear(5, 3)

    def epoch_of(epoch: int, first: int):
        for step in range(first, 4):
            x = normal(8, 5, key=f"{epoch} {step}")
            yield Batch(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long(), weights)

    context = quiet(plain())
    context = replace(context, keeper=keeper or context.keeper, log=log or context.log)
    loss_of = loss_of or cross_entropy()
    history = fit(network, epoch_of, 4, loss_of, lambda _: {"top1": 0.5}, settings, context, ema)
    return network, history


@pytest.mark.parametrize(("optimizer", "ema"), [("sgd", 0.0), ("adam", 0.0), ("adamw", 0.0), ("sgd", 0.9)])
@pytest.mark.parametrize(("save_at", "die_at"), [(1, 2), (2, 9), (4, 5), (5, 6), (14, 14 + 5)])  # 5 chances an epoch
def test_a_killed_training_goes_on_to_the_same_bits(dying_keeper, optimizer, ema, save_at, die_at):
    settings = TrainingSettings(epochs=7, lr=0.1, optimizer=optimizer, warmup_epochs=1)
    whole, history = fit_linear(settings, ema=ema)
    keeper = dying_keeper(save_at, die_at)
    with pytest.raises(dying_keeper.Killed):
        fit_linear(settings, keeper=keeper, ema=ema)
    again, logged = dying_keeper(), []
    again.content = keeper.content
    network, found = fit_linear(settings, keeper=again, log=lambda _, step: logged.append(step), ema=ema)
    assert equal(network, whole)
    assert found == history
    assert logged == list(range(save_at // 5 + 1, 8))  # only what was missing is done again


def test_the_first_step_of_sgd_by_hand():
    settings = TrainingSettings(epochs=1, lr=0.1, optimizer="sgd", momentum=0, weight_decay=0.5)
    start, _ = fit_linear(settings, loss_of=lambda logits, _: 0 * logits.sum(1))  # decays only
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weight = nn.Linear(5, 3).weight.detach()
    rates = [0.05 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    torch.testing.assert_close(start.weight.detach(), weight * math.prod(1 - rate * 0.5 for rate in rates))


def test_the_history_has_mean_loss_and_accuracy_when_asked_for():
    settings = TrainingSettings(epochs=5, lr=0.1, evaluate_every=2)
    _, history = fit_linear(settings, loss_of=lambda logits, targets: 0 * logits.sum(1) + torch.arange(8.0))
    assert [entry["loss"] for entry in history] == pytest.approx([3.5] * 5)
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4, 5]
    assert ["top1" in entry for entry in history] == [False, True, False, True, True]


def test_weights_multiply_the_losses_of_their_images():
    weights = torch.arange(8.0)
    _, history = fit_linear(
        TrainingSettings(epochs=1, lr=0.1), lambda logits, _: 0 * logits.sum(1) + torch.arange(8.0), weights=weights
    )
    assert history[0]["loss"] == pytest.approx(float((weights**2).mean()))


def test_the_average_of_the_weights_by_hand():
    class Seen(torch.optim.SGD):
        def step(self, *arguments):
            result = super().step(*arguments)
            weights.append(self.param_groups[0]["params"][0].detach().clone())
            return result

    settings, weights = TrainingSettings(epochs=2, lr=0.1), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "SGD", Seen)
        network, _ = fit_linear(settings, ema=0.75)
    average = weights[0]
    for weight in weights[1:]:
        average = 0.75 * average + 0.25 * weight
    assert len(weights) == 8
    torch.testing.assert_close(network.weight.detach(), average)


def test_the_average_is_what_is_validated_with_its_own_statistics():
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    means, seen = [], []
    network.register_forward_hook(lambda module, *_: means.append(module[0].running_mean.clone()))

    def validate(given: nn.Module) -> dict[str, float]:
        seen.append(given)
        return {"top1": 0.0}

    batches = [Batch(normal(4, 2, key=f"statistics {i}"), torch.tensor([0, 1, 0, 1])) for i in range(3)]
    settings = TrainingSettings(epochs=1, lr=0.1)
    fit(network, lambda *_: batches, 3, cross_entropy(), validate, settings, quiet(plain()), 0.5)
    assert seen[0] is not network
    assert equal(network, seen[0])
    torch.testing.assert_close(network[0].running_mean, means[0] / 4 + means[1] / 4 + means[2] / 2)


def test_parts_of_a_step_add_up_to_one_step():
    def train(parts: int) -> tuple[nn.Module, list[dict[str, float]]]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = nn.Linear(5, 3)
        batches = []
        for step in range(4):
            x = normal(9, 5, key=f"parts {step}")
            cut = zip(x.tensor_split(parts), (x[:, 0] > 0).long().tensor_split(parts), strict=True)
            batches += [Batch(a, b, share=len(a) / 9, last=i == parts) for i, (a, b) in enumerate(cut, 1)]
        settings = TrainingSettings(epochs=3, lr=0.1)
        return network, fit(network, lambda *_: batches, 4, cross_entropy(), lambda _: {}, settings, quiet(plain()))

    whole, history = train(1)
    for parts in 2, 4:
        network, found = train(parts)
        torch.testing.assert_close(network.weight.detach(), whole.weight.detach())
        assert [entry["loss"] for entry in found] == pytest.approx([entry["loss"] for entry in history])
        assert [entry["lr"] for entry in found] == [entry["lr"] for entry in history]


def test_every_epoch_trains_in_training_mode():
    network, modes = nn.Linear(2, 2).eval(), []
    network.register_forward_hook(lambda module, *_: modes.append(module.training))

    def validate(network: nn.Module) -> dict[str, float]:
        network.eval()
        return {"top1": 0.0}

    settings = TrainingSettings(epochs=3, lr=0.1, evaluate_every=1)
    fit(
        network,
        lambda *_: [Batch(normal(4, 2), torch.tensor([0, 1, 0, 1]))],
        1,
        cross_entropy(),
        validate,
        settings,
        quiet(plain()),
    )
    assert modes == [True] * 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run(bad):
    with pytest.raises(WmddError, match="not a number after epoch 1"):
        fit_linear(TrainingSettings(epochs=2, lr=0.1), loss_of=lambda logits, _: bad * logits.sum(1).exp())


# ---- teacher


def coloured(count: int, key: str) -> tuple[Tensor, Tensor]:
    """Noisy pictures of three classes that differ in colour."""
    labels = torch.arange(count) % 3
    noise = torch.randint(0, 120, (count, 3, 16, 16), generator=generator("coloured", key))
    return (noise + 110 * F.one_hot(labels, 3)[..., None, None]).to(torch.uint8), labels


EASY = TeacherSettings(
    architecture="resnet18", width=4, epochs=6, batch_size=16, lr=0.05, crop="pad", pad=2, min_accuracy=0.9
)


def taught(settings: TeacherSettings, seed: int = 0, keeper=None) -> tuple[Network, list[dict[str, float]]]:
    context = quiet(plain())
    context = replace(context, keeper=keeper or context.keeper)
    return teacher.train(
        Resident(*coloured(72, "train")), Resident(*coloured(30, "val")), 3, MEAN, STD, settings, seed, context
    )


@pytest.mark.parametrize("crop", ["none", "pad", "resized"])
def test_a_teacher_learns_a_separable_problem(crop):
    network, history = taught(EASY.model_copy(update={"crop": crop}))
    assert len(history) == 6
    assert history[-1]["top1"] > 0.9
    assert history[-1]["loss"] < history[0]["loss"]
    assert evaluate(network, Resident(*coloured(30, "val")), MEAN, STD, plain())["top1"] == history[-1]["top1"]


def test_a_killed_teacher_goes_on_to_the_same_bits(dying_keeper):
    settings = EASY.model_copy(update={"epochs": 3, "min_accuracy": 0.0, "crop": "resized"})
    whole, history = taught(settings)
    keeper = dying_keeper(6, 7)  # of six chances an epoch
    with pytest.raises(dying_keeper.Killed):
        taught(settings, keeper=keeper)
    again = dying_keeper()
    again.content = keeper.content
    network, found = taught(settings, keeper=again)
    assert equal(network, whole)
    assert found == history
    assert not equal(taught(settings, seed=1)[0], whole)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("save_at", "die_at"), [(1, 2), (8, 10), (9, 9 + 4), (11, 12)])  # 5 steps and an end an epoch
def test_a_teacher_that_is_killed_in_the_middle_of_an_epoch_goes_on_from_there(
    dying_keeper, monkeypatch, optimizer, save_at, die_at
):
    changes = {"epochs": 3, "min_accuracy": 0.0, "ema": 0.9, "accumulate": 3, "optimizer": optimizer, "crop": "resized"}
    settings = EASY.model_copy(update=changes)
    whole, history = taught(settings)
    keeper = dying_keeper(save_at, die_at)
    with pytest.raises(dying_keeper.Killed):
        taught(settings, keeper=keeper)
    again = dying_keeper()
    again.content = keeper.content
    decoded = []
    batches = Resident.batches
    monkeypatch.setattr(Resident, "batches", lambda self, at: batches(self, (decoded.append(len(p)) or p for p in at)))
    network, found = taught(settings, keeper=again)
    assert equal(network, whole)
    assert found == history
    epochs, step = divmod(save_at, 6)
    trained = [n for n in decoded if n <= 5]  # parts of a third of 15; the validation set is seen whole
    assert len(trained) == 3 * (5 * (3 - epochs) - step)  # what was done is not even decoded again


def test_accumulation_changes_nothing_without_batchnorm():
    settings = EASY.model_copy(
        update={"architecture": "convnet3", "norm": "instance", "epochs": 2, "min_accuracy": 0.0}
    )
    whole, history = taught(settings)
    for parts in 2, 3:
        network, found = taught(settings.model_copy(update={"accumulate": parts}))
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, whole.state_dict()[name], rtol=1e-5, atol=1e-6)
        assert [entry["loss"] for entry in found] == pytest.approx([entry["loss"] for entry in history], rel=1e-5)
        assert not equal(network, whole)  # it is another order of sums


@pytest.mark.parametrize(
    ("start", "resolution", "expected"),
    [
        (1.0, 224, [224] * 8),
        (0.5, 224, [112, 128, 152, 168, 184, 208, 224, 224]),  # 112 + 112 t / 6: 130.7, 149.3, 168, 186.7, 205.3
        (0.5, 32, [16, 16, 24, 24, 24, 32, 32, 32]),  # 18.7, 21.3, 24, 26.7, 29.3
        (0.1, 28, [8, 8, 8, 16, 16, 24, 28, 28]),  # 2.8, 7, 11.2, 15.4, 19.6, 23.8
        (0.9, 7, [7] * 8),
    ],
)
def test_sides_grow_in_steps_of_8_until_three_quarters_of_the_epochs(start, resolution, expected):
    settings = EASY.model_copy(update={"epochs": 8, "progressive_from": start})
    assert [teacher.side_of(settings, resolution, epoch) for epoch in range(8)] == expected


def test_a_smaller_image_is_the_mean_over_its_pixels_footprint():
    images = normal(2, 3, 16, 16)
    small = teacher.shrink(images, 8)
    weights = torch.tensor([1, 3, 3, 1]) / 8  # the triangle of an antialiased bilinear halving
    inner = (images[..., 1:5, 1:5] * weights[:, None] * weights).sum((2, 3))
    torch.testing.assert_close(small[..., 1, 1], inner)
    assert small.shape == (2, 3, 8, 8)
    assert teacher.shrink(images, 16) is images


def test_a_teacher_learns_from_growing_images(monkeypatch):
    sides, run = [], Network.forward

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            sides.append(x.shape[-1])
        return run(self, x)

    monkeypatch.setattr(Network, "forward", forward)
    _, history = taught(EASY.model_copy(update={"progressive_from": 0.5, "ema": 0.5}))
    assert sides == [8] * 15 + [16] * 15  # 8, 9.8, 11.6; 13.3, 15.1, 16
    assert history[-1]["top1"] > 0.9


@pytest.mark.parametrize("architecture", ["convnet3", "vit-tiny"])
def test_a_network_of_one_size_refuses_growing_images(architecture):
    with pytest.raises(WmddError, match=rf"^{architecture} takes images of one size only, not of 8 px"):
        taught(EASY.model_copy(update={"architecture": architecture, "progressive_from": 0.5}))


def test_the_gate_stops_a_weak_teacher():
    with pytest.raises(WmddError, match=r"50\.0%.*90\.0%"):
        teacher.gate(0.5, 0.9)
    teacher.gate(0.9, 0.9)
    with pytest.raises(WmddError, match="min_accuracy"):
        taught(EASY.model_copy(update={"epochs": 1, "lr": 1e-9}))


def test_a_padded_teacher_sees_shifted_images_and_a_resized_one_crops():
    views = teacher.views_of(EASY, 500, 16, 0, 0)
    assert set((views.crop[:, :2] * 16).flatten().tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}
    assert bool((views.crop[:, 2:] == 1).all())
    assert 200 < int(views.flip.sum()) < 300
    views = teacher.views_of(EASY.model_copy(update={"crop": "resized", "crop_scale": (0.1, 0.5)}), 500, 16, 0, 0)
    area = views.crop[:, 2] * views.crop[:, 3]
    assert 0.1 <= float(area.min()) < float(area.max()) <= 0.5
    views = teacher.views_of(EASY.model_copy(update={"crop": "none", "flip": False}), 500, 16, 0, 0)
    assert torch.equal(views.crop, augment.identity(500).crop)
    assert not views.flip.any()


@pytest.mark.parametrize("crop", ["none", "pad", "resized"])
def test_an_epoch_of_the_teacher_shows_every_image_in_its_own_view(monkeypatch, crop):
    batches: list[Batch] = []

    def keep(_network, epoch_of, *_):
        batches.extend(epoch_of(4, 0))
        return [{"top1": 1.0}]

    monkeypatch.setattr(teacher, "fit", keep)
    settings = EASY.model_copy(update={"crop": crop})
    taught(settings, seed=3)
    images, labels = coloured(72, "train")
    x = (images / 255 - 0.5) / 0.25
    views = teacher.views_of(settings, 72, 16, 3, 4)
    expected = augment.apply(x, views, torch.arange(72), padded=crop == "pad")
    seen, targets = torch.cat([b.images for b in batches]), torch.cat([b.targets for b in batches])
    distance = (seen[:, None] - expected[None]).abs().amax((2, 3, 4))
    whose = distance.argmin(1)
    assert sorted(whose.tolist()) == list(range(72))
    assert whose.tolist() != list(range(72))
    assert float(distance.min(1).values.max()) < 1e-5
    assert torch.equal(targets, labels[whose])
    assert [len(b.images) for b in batches] == [15, 15, 14, 14, 14]
    # A shift brings zeros in, the mean colour; nothing else has any.
    assert bool((seen.abs().amax(1) < 1e-5).any()) == (crop == "pad")


# ---- student

SMALL = StudentSettings(architecture="convnet3", width=8, norm="instance", epochs=1, batch_size=100, lr=0.01)


def studied(images, labels, weights, logits, settings=SMALL, augmentation=STILL, run=0, context=None):
    return student.train(
        images,
        labels,
        torch.tensor(weights),
        hard(0) if logits is None else stored(logits, seeds_of(0, settings.epochs)),
        Resident(*coloured(30, "val")),
        3,
        MEAN,
        STD,
        settings,
        augmentation,
        0,
        [run],
        context or quiet(plain()),
    )[0]


def distilled(count: int, key: str = "distilled") -> tuple[Tensor, Tensor]:
    return coloured(count, key)


@pytest.mark.parametrize("labels", ["soft", "hard"])
@pytest.mark.parametrize("mix", ["none", "cutmix"])
def test_a_student_learns_from_soft_and_hard_labels(labels, mix):
    images, classes = distilled(30)
    settings = SMALL.model_copy(update={"epochs": 30, "batch_size": 10, "temperature": 2.0})
    augmentation = AugmentationSettings(crop_scale=(0.5, 1), mix=mix)
    logits = None
    if labels == "soft":  # of a teacher that knows what a view shows
        shown = [
            student.mixed(
                F.one_hot(classes, 3).float(),
                augment.draw(torch.Generator().manual_seed(s), 30, (0.5, 1), True, mix),
                16,
            )
            for s in seeds_of(0, 30)
        ]
        logits = (torch.stack(shown) + 1e-3).log().half()
    _, history = studied(images, classes, [1.0] * 30, logits, settings, augmentation)
    assert history[-1]["top1"] > 0.9


def test_a_student_follows_its_labels_and_not_the_classes():
    images, classes = distilled(30)
    wrong = F.one_hot((classes + 1) % 3, 3).float().mul(8).expand(20, -1, -1)
    settings = SMALL.model_copy(update={"epochs": 20, "batch_size": 10, "temperature": 2.0})
    _, history = studied(images, classes, [1.0] * 30, wrong, settings)
    assert history[-1]["top1"] < 0.1


def test_an_image_without_weight_has_no_influence():
    images, classes = distilled(6)
    logits = normal(1, 6, 3)
    weights = [1.0, 1.0, 0.0, 1.0, 2.0, 1.0]
    one, _ = studied(images, classes, weights, logits)
    images[2] = normal(3, 16, 16)
    logits[0, 2] = torch.tensor([9.0, -9.0, 0.0])
    two, _ = studied(images, classes, weights, logits)
    assert equal(one, two)
    other, _ = studied(images, classes, [1.0] * 6, logits)
    assert not equal(one, other)


MASSES = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.4, 0.2]])


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_weights_of_images_by_hand(scale):
    masses = scale * MASSES
    torch.testing.assert_close(weighted(masses, "mass"), 3 * MASSES)
    torch.testing.assert_close(weighted(masses, "uniform"), torch.ones(2, 3))
    torch.testing.assert_close(weighted(masses, "variance-reduced"), (3 * MASSES + 1) / 2)
    roots = MASSES.sqrt()
    torch.testing.assert_close(weighted(masses, "sqrt-mass"), roots / roots.mean())


@pytest.mark.parametrize("how", ["mass", "sqrt-mass", "variance-reduced", "uniform"])
def test_weights_have_mean_one_over_the_set_and_equal_masses_are_equal_weights(how):
    assert float(weighted(MASSES, how).mean()) == pytest.approx(1)
    assert torch.equal(weighted(torch.full((4, 5), 0.2), how), torch.ones(4, 5))
    assert (
        float(weighted(torch.tensor([[1.0, 0.0]]), how).min())
        == {"mass": 0, "sqrt-mass": 0, "variance-reduced": 0.5, "uniform": 1}[how]
    )


def test_the_scale_of_the_weights_is_irrelevant():
    images, classes = distilled(6)
    logits = normal(1, 6, 3)
    one, _ = studied(images, classes, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], logits)
    two, _ = studied(images, classes, [4.0, 8.0, 12.0, 16.0, 20.0, 24.0], logits)
    assert equal(one, two)


def test_an_image_of_twice_the_weight_is_an_image_shown_twice():
    images, classes = distilled(3)
    logits, twice = normal(1, 3, 3), [0, 0, 1, 2]
    settings = SMALL.model_copy(update={"optimizer": "sgd", "lr": 0.1})
    one, first = studied(images, classes, [2.0, 1.0, 1.0], logits, settings)
    two, second = studied(images[twice], classes[twice], [1.0] * 4, logits[:, twice], settings)
    assert first[0]["loss"] == pytest.approx(second[0]["loss"], rel=1e-5)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, two.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_hard_labels_of_mixed_views_are_shares_of_the_area():
    views = augment.draw(generator(0), 20, (1, 1), False, "cutmix")
    labels = torch.arange(20) % 3
    found = student.mixed(F.one_hot(labels, 3).float(), views, 16)
    torch.testing.assert_close(found.sum(1), torch.ones(20))
    kept = views.kept(16, 16)
    for i in range(20):
        expected = torch.zeros(3)
        expected[labels[i]] += float(kept[i])
        expected[labels[views.partner[i]]] += 1 - float(kept[i])
        torch.testing.assert_close(found[i], expected)


DSA = AugmentationSettings(views="dsa")


def test_hard_labels_of_distorted_views_are_the_images_own():
    own = torch.rand(20, 3, generator=generator("own"))
    assert student.mixed(own, siamese.draw(generator("views"), 20), 16) is own


def test_a_student_sees_the_distortions_that_its_labels_are_of():
    # As below: the loss of an epoch is zero exactly when the student says of each view what its labels say.
    images, classes = distilled(7)
    settings = SMALL.model_copy(update={"epochs": 3, "lr": 1e-12, "weight_decay": 0.0, "batch_size": 3})
    network, _ = studied(images, classes, [1.0] * 7, torch.zeros(3, 7, 3), settings, DSA)
    logits = torch.empty(3, 7, 3)
    with torch.no_grad():
        for epoch, seed in enumerate(seeds_of(0, 3)):
            how = siamese.draw(torch.Generator().manual_seed(seed), 7)
            logits[epoch] = network(siamese.apply(normalise(images, MEAN, STD), how))
    _, history = studied(images, classes, [1.0] * 7, logits, settings, DSA)
    assert [entry["loss"] for entry in history] == pytest.approx([0] * 3, abs=1e-9)
    _, history = studied(images, classes, [1.0] * 7, logits.roll(1, 0), settings, DSA)
    assert min(entry["loss"] for entry in history) > 1e-7


def test_a_student_learns_from_distorted_views():
    images, classes = distilled(30)
    settings = SMALL.model_copy(update={"epochs": 30, "batch_size": 10, "schedule": "step"})
    _, history = studied(images, classes, [1.0] * 30, None, settings, DSA)
    assert history[-1]["top1"] > 0.8


@pytest.mark.parametrize(
    "augmentation", [STILL, AugmentationSettings(crop_scale=(0.5, 1)), DSA], ids=["still", "cut", "dsa"]
)
def test_classes_are_probabilities_of_one(augmentation):
    images, classes = distilled(6)
    one, first = studied(images, classes, [1.0] * 6, None, augmentation=augmentation)
    two, second = studied(images, F.one_hot(classes, 3).float(), [1.0] * 6, None, augmentation=augmentation)
    assert equal(one, two)
    assert first == second


def test_hard_labels_that_a_method_learned_are_mixed_as_classes_are():
    """The loss of the first step, in which the network is still the fresh one, by hand."""
    images, _ = distilled(6)
    learned = torch.rand(6, 3, generator=generator("learned")).softmax(1)
    settings = SMALL.model_copy(update={"lr": 1e-12, "weight_decay": 0.0})
    cut = AugmentationSettings(crop_scale=(0.5, 1))
    network, history = studied(images, learned, [1.0] * 6, None, settings, cut)
    (seed,) = seeds_of(0, 1)
    views = augment.draw(torch.Generator().manual_seed(seed), 6, (0.5, 1), True, "cutmix")
    with torch.no_grad():
        logits = network(augment.apply(normalise(images, MEAN, STD), views, torch.arange(6)))
    kept = views.kept(16, 16)[:, None]
    wanted = F.cross_entropy(logits, kept * learned + (1 - kept) * learned[views.partner])
    assert history[0]["loss"] == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize(
    "augmentation", [STILL, AugmentationSettings(crop_scale=(0.5, 1)), DSA], ids=["still", "cut", "dsa"]
)
def test_a_student_of_whitened_images_sees_them_and_its_teacher_does_not(augmentation):
    images, classes = distilled(6)
    white = whitening.fit(Resident(*coloured(40, "train")), MEAN, STD)
    asked, shown = [], []

    class Teacher(nn.Module):
        head = nn.Linear(1, 3)

        def forward(self, x):
            asked.append(x.clone())
            return x.mean((2, 3))

    def hooked(module, inputs):
        shown.append(inputs[0].clone())

    settings = SMALL.model_copy(update={"batch_size": 6})
    with pytest.MonkeyPatch.context() as patch:
        build = student.build
        patch.setattr(student, "build", lambda *a: hook(build(*a), hooked))
        student.train(
            images, classes, torch.ones(6), online(0, Teacher()), Resident(*coloured(3, "val")), 3, MEAN, STD, settings,
            augmentation, 0, [0], quiet(plain()), white,
        )  # fmt: skip
    order = torch.randperm(6, generator=generator("student", "order", 0, 0, 0))
    views = views_of(augmentation, 6, seeds_of(0, 1)[0])
    torch.testing.assert_close(asked[0], seen(images, views, order, MEAN, STD))
    torch.testing.assert_close(shown[0], seen(images, views, order, MEAN, STD, white))
    validated = normalise(coloured(3, "val")[0], MEAN, STD)
    torch.testing.assert_close(shown[-1], white.apply(validated))


def hook(network, function):
    network.register_forward_pre_hook(function)
    return network


def test_soft_labels_belong_to_their_epoch_and_image():
    # The loss of an epoch is zero exactly when every view meets the logits of this epoch and image.
    images, classes = distilled(7)
    settings = SMALL.model_copy(update={"epochs": 3, "lr": 1e-12, "weight_decay": 0.0, "batch_size": 3})
    augmentation = AugmentationSettings(crop_scale=(0.3, 1))
    network, _ = studied(images, classes, [1.0] * 7, torch.zeros(3, 7, 3), settings, augmentation)
    logits = torch.empty(3, 7, 3)
    with torch.no_grad():
        for epoch, seed in enumerate(seeds_of(0, 3)):
            views = augment.draw(torch.Generator().manual_seed(seed), 7, (0.3, 1), True, "cutmix")
            logits[epoch] = network(augment.apply(normalise(images, MEAN, STD), views, torch.arange(7)))
    _, history = studied(images, classes, [1.0] * 7, logits, settings, augmentation)
    assert [entry["loss"] for entry in history] == pytest.approx([0] * 3, abs=1e-9)
    _, history = studied(images, classes, [1.0] * 7, logits.roll(1, 0), settings, augmentation)
    assert min(entry["loss"] for entry in history) > 1e-7


FAST = Engine(torch.device("cpu"), torch.float32, "eager")


def several(
    runs: list[int], keeper=None, engine=FAST, log=None, **changes
) -> list[tuple[Network, list[dict[str, float]]]]:
    images, classes = distilled(12)
    settings = SMALL.model_copy(update={"epochs": 4, "batch_size": 5, "optimizer": "adamw", "lr": 0.01} | changes)
    context = quiet(engine)
    context = replace(context, keeper=keeper or context.keeper, log=log or context.log)
    return student.train(
        images,
        classes,
        torch.ones(12),
        hard(0),
        Resident(*coloured(30, "val")),
        3,
        MEAN,
        STD,
        settings,
        STILL,
        0,
        runs,
        context,
    )


def weights_of(network: nn.Module) -> Tensor:
    return torch.cat([value.flatten() for value in network.state_dict().values()])


def apart(a: nn.Module, b: nn.Module) -> float:
    return float((weights_of(a) - weights_of(b)).norm() / weights_of(b).norm())


def test_students_side_by_side_are_those_trained_alone():
    logged = []
    found = several([2, 0, 1], log=lambda metrics, _: logged.append(metrics))
    for run, (network, history) in zip([2, 0, 1], found, strict=True):
        ((alone, expected),) = several([run])
        assert equal(network, alone)
        assert history == expected
    assert not equal(found[0][0], found[1][0])
    assert [m["1/loss"] for m in logged if "1/loss" in m] == [entry["loss"] for entry in found[1][1]]


def test_students_side_by_side_do_not_depend_on_threads():
    expected = several([0, 1])
    try:
        torch.set_num_threads(2)
        found = several([0, 1])
    finally:
        torch.set_num_threads(1)
    assert all(equal(a, b) and h == g for (a, h), (b, g) in zip(expected, found, strict=True))


@pytest.mark.parametrize(("save_at", "die_at"), [(1, 2), (3, 4)])
def test_killed_students_go_on_to_the_same_bits(dying_keeper, save_at, die_at):
    whole = several([0, 1], ema=0.9)
    keeper = dying_keeper(save_at, die_at)
    with pytest.raises(dying_keeper.Killed):
        several([0, 1], keeper, ema=0.9)
    again = dying_keeper()
    again.content = keeper.content
    assert all(equal(a, b) and h == g for (a, h), (b, g) in zip(whole, several([0, 1], again, ema=0.9), strict=True))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("architecture", ["convnet3", "resnet18"])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_the_fast_engine_trains_as_the_reference_does(optimizer, architecture, norm):
    changes = {"optimizer": optimizer, "architecture": architecture, "norm": norm, "lr": 1e-3, "batch_size": 12}
    ((network, history),) = several([0], **changes)
    ((reference, expected),) = several([0], engine=plain(), **changes)
    assert [entry["loss"] for entry in history] == pytest.approx([entry["loss"] for entry in expected], rel=1e-3)
    assert apart(network, reference) < 5e-3  # Adam turns a gradient that is all rounding into a whole step
    assert not torch.equal(weights_of(network), weights_of(reference)) or architecture == "convnet3"


def test_bfloat16_learns_as_well():
    ((_, history),) = several([0], engine=replace(FAST, dtype=torch.bfloat16), epochs=20)
    ((network, expected),) = several([0], engine=plain(), epochs=20)
    assert history[-1]["loss"] == pytest.approx(expected[-1]["loss"], rel=0.2)
    assert all(p.dtype == torch.float32 for p in network.parameters())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch needs a C++ compiler")
def test_compiled_steps_train_as_the_reference_does(capsys):
    changes = {"epochs": 3, "batch_size": 12, "lr": 1e-3}
    ((network, history),) = several([0], engine=replace(FAST, mode="compile"), **changes)
    ((reference, expected),) = several([0], engine=plain(), **changes)
    assert "not compiled" not in capsys.readouterr().err
    assert [entry["loss"] for entry in history] == pytest.approx([entry["loss"] for entry in expected], rel=1e-3)
    assert apart(network, reference) < 5e-3  # Adam turns a gradient that is all rounding into a whole step


def test_the_average_of_a_student_is_what_is_scored():
    ((network, history),) = several([0], ema=0.5)
    ((other, _),) = several([0])
    assert not equal(network, other)
    pictures = Resident(*coloured(30, "val"))
    assert evaluate(network, pictures, MEAN, STD, FAST)["top1"] == history[-1]["top1"]


def test_runs_differ_and_repeat(dying_keeper):
    images, classes = distilled(12)
    settings = SMALL.model_copy(update={"epochs": 3, "batch_size": 5})
    one, history = studied(images, classes, [1.0] * 12, None, settings)
    again, _ = studied(images, classes, [1.0] * 12, None, settings)
    assert equal(one, again)
    assert not equal(one, studied(images, classes, [1.0] * 12, None, settings, run=1)[0])
    keeper = dying_keeper(6, 0)  # of three steps and an end an epoch: after the second step of the second
    studied(images, classes, [1.0] * 12, None, settings, context=replace(quiet(plain()), keeper=keeper))
    resumed = dying_keeper()
    resumed.content = keeper.content
    context = replace(quiet(plain()), keeper=resumed)
    network, found = studied(images, classes, [1.0] * 12, None, settings, context=context)
    assert equal(network, one)
    assert found == history


def test_runs_start_from_different_weights():
    images, classes = distilled(3)
    still = SMALL.model_copy(update={"lr": 1e-12, "weight_decay": 0.0})
    one, two = (studied(images, classes, [1.0] * 3, None, still, run=run)[0] for run in (0, 1))
    assert float((one.head.weight - two.head.weight).detach().abs().max()) > 1e-3


def test_labels_for_too_few_epochs_are_refused():
    images, classes = distilled(3)
    settings = SMALL.model_copy(update={"epochs": 5})
    with pytest.raises(WmddError, match=r"2 epochs.*5"):
        student.train(
            images, classes, torch.ones(3), stored(torch.zeros(2, 3, 3), seeds_of(0, 2)), Resident(*coloured(3, "val")), 3,
            MEAN, STD, settings, STILL, 0, [0], quiet(plain()),
        )  # fmt: skip
