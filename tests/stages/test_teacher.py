"""Teachers on a problem made easy: views, growing images, accumulation, the gate, and a kill in the middle."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.datasets.loader import Resident
from wmdd.networks import augment
from wmdd.networks.context import quiet
from wmdd.networks.engine import plain
from wmdd.networks.models import Network
from wmdd.networks.normalisation import Normalisation
from wmdd.networks.training import Batch, evaluate
from wmdd.settings.teacher import TeacherSettings
from wmdd.stages import teacher

NORMALISATION = Normalisation([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])
EASY = TeacherSettings(
    architecture="resnet18", width=4, epochs=6, batch_size=16, lr=0.05, crop="pad", pad=2, min_accuracy=0.9
)


def coloured(count: int, key: str) -> tuple[Tensor, Tensor]:
    """Noisy pictures of three classes that differ in colour, and their labels."""
    labels = torch.arange(count) % 3
    noise = torch.randint(0, 120, (count, 3, 16, 16), generator=generator("coloured", key))
    return (noise + 110 * F.one_hot(labels, 3)[..., None, None]).to(torch.uint8), labels


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[name]) for name, v in a.state_dict().items())


def taught(seed: int = 0, keeper=None, **changes) -> tuple[Network, list[dict[str, float]]]:
    context = quiet(plain())
    return teacher.train(
        Resident(*coloured(72, "train")), Resident(*coloured(30, "val")), 3, NORMALISATION,
        EASY.model_copy(update=changes), seed, replace(context, keeper=keeper or context.keeper),
    )  # fmt: skip


def test_a_teacher_learns_a_separable_problem():
    network, history = taught()
    assert len(history) == 6
    assert history[-1]["top1"] > 0.9
    assert history[-1]["loss"] < history[0]["loss"]
    assert evaluate(network, Resident(*coloured(30, "val")), NORMALISATION, plain())["top1"] == history[-1]["top1"]


@pytest.mark.parametrize(("optimizer", "save_at", "die_at"), [("sgd", 6, 7), ("sgd", 1, 2), ("adamw", 9, 9 + 4)])
def test_a_killed_teacher_goes_on_to_the_same_bits(dying_keeper, monkeypatch, optimizer, save_at, die_at):
    changes = {"epochs": 3, "min_accuracy": 0.0, "ema": 0.9, "accumulate": 3, "crop": "resized"}
    changes |= {"optimizer": optimizer, "architecture": "convnet3"}
    whole, history = taught(**changes)
    again = dying_keeper.after(lambda keeper: taught(keeper=keeper, **changes), save_at, die_at)
    decoded, batches = [], Resident.batches
    monkeypatch.setattr(Resident, "batches", lambda self, at: batches(self, (decoded.append(len(p)) or p for p in at)))
    network, resumed = taught(keeper=again, **changes)
    assert equal(network, whole)
    assert resumed == history
    epochs, step = divmod(save_at, 6)  # five steps and an end an epoch
    trained = [n for n in decoded if n <= 5]  # parts of a third of 15; the validation set is seen whole
    assert len(trained) == 3 * (5 * (3 - epochs) - step)  # what was done is not even decoded again


def test_another_seed_is_another_teacher():
    one, again, other = (taught(seed, epochs=1, min_accuracy=0.0, architecture="convnet3")[0] for seed in (0, 0, 1))
    assert equal(one, again)
    assert not equal(one, other)


def test_accumulation_changes_nothing_without_batchnorm():
    changes = {"architecture": "convnet3", "norm": "instance", "epochs": 2, "min_accuracy": 0.0}
    whole, history = taught(**changes)
    for parts in 2, 3:
        network, in_parts = taught(accumulate=parts, **changes)
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, whole.state_dict()[name], rtol=1e-5, atol=1e-6)
        assert [entry["loss"] for entry in in_parts] == pytest.approx([entry["loss"] for entry in history], rel=1e-5)
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
    images = torch.randn(2, 3, 16, 16, generator=generator("teacher test"))
    weights = torch.tensor([1, 3, 3, 1]) / 8  # the triangle of an antialiased bilinear halving
    inner = (images[..., 1:5, 1:5] * weights[:, None] * weights).sum((2, 3))
    torch.testing.assert_close(teacher.shrink(images, 8)[..., 1, 1], inner)
    assert teacher.shrink(images, 16) is images


def test_a_teacher_learns_from_growing_images(monkeypatch):
    sides, run = [], Network.forward

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            sides.append(x.shape[-1])
        return run(self, x)

    monkeypatch.setattr(Network, "forward", forward)
    _, history = taught(progressive_from=0.5, ema=0.5)
    assert sides == [8] * 15 + [16] * 15  # 8, 9.8, 11.6; 13.3, 15.1, 16
    assert history[-1]["top1"] > 0.9
    for architecture in "convnet3", "vit-tiny":
        with pytest.raises(WmddError, match=rf"^{architecture} takes images of one size only, not of 8 px"):
            taught(architecture=architecture, progressive_from=0.5)


def test_the_gate_stops_a_weak_teacher():
    with pytest.raises(WmddError, match=r"50\.0%.*90\.0%"):
        teacher.gate(0.5, 0.9)
    teacher.gate(0.9, 0.9)
    with pytest.raises(WmddError, match="min_accuracy"):
        taught(epochs=1, lr=1e-9)


def test_views_shift_crop_and_mirror_as_the_settings_say():
    def views(**changes) -> augment.Views:
        return teacher.views_of(EASY.model_copy(update=changes), 500, 16, 0, 0)

    assert set((views().crop[:, :2] * 16).flatten().tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}
    area = views(crop="resized", crop_scale=(0.1, 0.5)).crop[:, 2:].prod(1)
    assert 0.1 <= float(area.min()) < float(area.max()) <= 0.5
    assert 200 < int(views().flip.sum()) < 300
    assert not views(flip=False).flip.any()


@pytest.mark.parametrize("crop", ["none", "pad", "resized"])
def test_an_epoch_of_the_teacher_shows_every_image_in_its_own_view(monkeypatch, crop):
    batches: list[Batch] = []

    def keep(_network, epoch_of, *_):
        batches.extend(epoch_of(4, 0))
        return [{"top1": 1.0}]

    monkeypatch.setattr(teacher, "fit", keep)
    taught(seed=3, crop=crop)
    images, labels = coloured(72, "train")
    views = teacher.views_of(EASY.model_copy(update={"crop": crop}), 72, 16, 3, 4)
    expected = augment.apply((images / 255 - 0.5) / 0.25, views, torch.arange(72), padded=crop == "pad")
    shown, targets = torch.cat([b.images for b in batches]), torch.cat([b.targets for b in batches])
    distance = (shown[:, None] - expected[None]).abs().amax((2, 3, 4))
    whose = distance.argmin(1)
    assert sorted(whose.tolist()) == list(range(72)) != whose.tolist()
    assert float(distance.min(1).values.max()) < 1e-5
    assert torch.equal(targets, labels[whose])
    assert [len(b.images) for b in batches] == [15, 15, 14, 14, 14]
    # A shift brings zeros in, the mean colour; nothing else has any.
    assert bool((shown.abs().amax(1) < 1e-5).any()) == (crop == "pad")
