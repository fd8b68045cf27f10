"""Students: which labels, views and weights they learn by; several side by side; a kill; the fast engine."""

import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.stages.test_teacher import NORMALISATION, coloured, equal
from wmdd.base.rng import generator
from wmdd.datasets.loader import Resident
from wmdd.networks import augment, siamese, whitening
from wmdd.networks.context import quiet
from wmdd.networks.engine import Engine, plain
from wmdd.networks.losses import OF_THE_CLASS, cosine, distillation, squared_error, with_sinkhorn
from wmdd.networks.models import Network, normalise
from wmdd.networks.training import evaluate
from wmdd.settings.student import AugmentationSettings, StudentSettings
from wmdd.stages import student
from wmdd.stages.labels import hard, online, stored
from wmdd.stages.relabel import seeds_of, seen, views_of
from wmdd.stages.shown import Shown
from wmdd.stages.student import weighted

STILL = AugmentationSettings(crop_scale=(1, 1), flip=False, mix="none")
CUT = AugmentationSettings(crop_scale=(0.5, 1))
DSA = AugmentationSettings(views="dsa")
SMALL = StudentSettings(architecture="convnet3", width=8, norm="instance", epochs=1, batch_size=100, lr=0.01)
FROZEN = {"lr": 1e-12, "weight_decay": 0.0}  # the network stays the fresh one, so that losses are known
FAST = Engine(torch.device("cpu"), torch.float32, "eager")


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator("student test", *shape))


def trained(images, own, weights, labels, runs, augmentation=STILL, context=None, white=None, shown=None, **changes):
    """Train students on images with labels [N] or [N, C] of their own, and what else they are told."""
    students = student.train(
        images, own, torch.as_tensor(weights), labels, Resident(*coloured(30, "val")), 3, NORMALISATION,
        SMALL.model_copy(update=changes), augmentation, 0, runs, context or quiet(plain()), white, shown,
    )  # fmt: skip
    for network, history, confusion in students:
        assert confusion.sum(1).tolist() == [10, 10, 10], "the last look at the validation pictures, and no other"
        assert confusion.trace() / 30 == pytest.approx(history[-1]["top1"]), network
    return [each[:2] for each in students]


def studied(images, own, weights=None, logits=None, augmentation=STILL, run=0, **changes):
    """Train one student: by its images' own labels, or by logits [E, N, C]."""
    labels = hard(0) if logits is None else stored(logits, seeds_of(0, len(logits)))
    weights = torch.ones(len(images)) if weights is None else weights
    return trained(images, own, weights, labels, [run], augmentation, **changes)[0]


def several(runs: list[int], keeper=None, engine=FAST, log=None, **changes):
    images, own = coloured(12, "distilled")
    context = quiet(engine)
    context = replace(context, keeper=keeper or context.keeper, log=log or context.log)
    changes = {"epochs": 4, "batch_size": 5, "optimizer": "adamw", "lr": 0.01} | changes
    return trained(images, own, torch.ones(12), hard(0), runs, context=context, **changes)


# ---- labels


@pytest.mark.parametrize(
    ("soft", "augmentation"), [(True, CUT), (False, CUT), (False, DSA)], ids=["soft", "hard", "hard, dsa"]
)
def test_a_student_learns_from_soft_and_hard_labels(soft, augmentation):
    images, own = coloured(30, "distilled")
    logits = None
    if soft:  # of a teacher that knows what a view shows
        views = [views_of(augmentation, 30, seed) for seed in seeds_of(0, 30)]
        logits = (torch.stack([student.mixed(F.one_hot(own, 3).float(), v, 16) for v in views]) + 1e-3).log().half()
    changes = {"epochs": 30, "batch_size": 10, "temperature": 2.0}
    _, history = studied(images, own, logits=logits, augmentation=augmentation, **changes)
    assert history[-1]["top1"] > 0.8


def test_a_student_follows_its_labels_and_not_the_classes():
    images, own = coloured(30, "distilled")
    wrong = F.one_hot((own + 1) % 3, 3).float().mul(8).expand(20, -1, -1)
    _, history = studied(images, own, logits=wrong, epochs=20, batch_size=10, temperature=2.0)
    assert history[-1]["top1"] < 0.1


@pytest.mark.parametrize("augmentation", [CUT, DSA], ids=["cut", "dsa"])
def test_soft_labels_belong_to_their_epoch_view_and_image(augmentation):
    # The loss of an epoch is zero exactly when the student says of each view what its labels say.
    images, own = coloured(7, "distilled")
    changes = FROZEN | {"epochs": 3, "batch_size": 3}
    network, _ = studied(images, own, logits=torch.zeros(3, 7, 3), augmentation=augmentation, **changes)
    logits = torch.empty(3, 7, 3)
    with torch.no_grad():
        for epoch, seed in enumerate(seeds_of(0, 3)):
            draws, x = torch.Generator().manual_seed(seed), normalise(images, NORMALISATION)
            if augmentation == DSA:
                shown = siamese.apply(x, siamese.draw(draws, 7))
            else:
                shown = augment.apply(x, augment.draw(draws, 7, CUT.crop_scale, True, "cutmix"), torch.arange(7))
            logits[epoch] = network(shown)
    _, history = studied(images, own, logits=logits, augmentation=augmentation, **changes)
    assert [entry["loss"] for entry in history] == pytest.approx([0] * 3, abs=1e-9)
    _, history = studied(images, own, logits=logits.roll(1, 0), augmentation=augmentation, **changes)
    assert min(entry["loss"] for entry in history) > 1e-7


@pytest.mark.parametrize(
    ("loss", "size", "of"),
    [
        ("mse", 2, squared_error()),
        ("mse+ce", 2, squared_error(0.3)),
        ("cosine", 2, cosine(0.3)),
        ("kl+sinkhorn", 6, with_sinkhorn(20, None, 1)),
    ],
)
def test_a_loss_sees_the_labels_of_a_view_and_the_class_of_its_image(loss, size, of):
    images, own = coloured(6, "distilled")
    logits = normal(1, 6, 3)
    changes = FROZEN | {"loss": loss, "hard_weight": 0.3, "batch_size": size}
    network, history = studied(images, own, logits=logits, augmentation=CUT, **changes)
    shown = seen(images, views_of(CUT, 6, seeds_of(0, 1)[0]), torch.arange(6), NORMALISATION)
    targets = torch.cat([logits[0], F.one_hot(own, 3)], 1) if loss in OF_THE_CLASS else logits[0]
    with torch.no_grad():
        assert history[0]["loss"] == pytest.approx(float(of(network(shown), targets).mean()), rel=1e-5)


def test_the_temperature_of_the_labels_falls_and_the_students_stays():
    settings = SMALL.model_copy(update={"temperature": 20.0, "temperature_decay": 0.7, "temperature_epochs": 30})
    expected = {0: 20, 29: 20, 30: 14, 65: 9.8, 299: 2}
    assert {e: student.temperature_of(settings, e) for e in expected} == pytest.approx(expected)
    assert student.temperature_of(settings.model_copy(update={"temperature": 1.0}), 0) == 1, (
        "it never rises to its floor"
    )
    images, own = coloured(6, "distilled")
    logits = normal(3, 6, 3)
    falls = {"temperature": 8.0, "temperature_decay": 0.5, "temperature_epochs": 1, "temperature_floor": 3.0}
    changes = FROZEN | {"epochs": 3, "batch_size": 6}
    network, history = studied(images, own, logits=logits, **changes | falls, student_temperature=2.0)
    with torch.no_grad():
        said = network(normalise(images, NORMALISATION))
    losses = [float(distillation(t, 2.0)(said, logits[e]).mean()) for e, t in enumerate((8.0, 4.0, 3.0))]
    assert [entry["loss"] for entry in history] == pytest.approx(losses, rel=1e-5)


def test_classes_are_probabilities_of_one():
    images, own = coloured(6, "distilled")
    one, first = studied(images, own, augmentation=CUT)
    two, second = studied(images, F.one_hot(own, 3).float(), augmentation=CUT)
    assert equal(one, two)
    assert first == second


def test_hard_labels_that_a_method_learned_are_mixed_as_classes_are():
    images, _ = coloured(6, "distilled")
    learned = torch.rand(6, 3, generator=generator("learned")).softmax(1)
    network, history = studied(images, learned, augmentation=CUT, **FROZEN)
    (seed,) = seeds_of(0, 1)
    views = augment.draw(torch.Generator().manual_seed(seed), 6, (0.5, 1), True, "cutmix")
    with torch.no_grad():
        logits = network(augment.apply(normalise(images, NORMALISATION), views, torch.arange(6)))
    kept = views.kept(16, 16)[:, None]
    expected = F.cross_entropy(logits, kept * learned + (1 - kept) * learned[views.partner])
    assert history[0]["loss"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("augmentation", [CUT, DSA], ids=["cut", "dsa"])
def test_a_student_of_whitened_images_sees_them_and_its_teacher_does_not(monkeypatch, augmentation):
    images, own = coloured(6, "distilled")
    white = whitening.fit(Resident(*coloured(40, "train")), NORMALISATION)
    asked, shown = [], []

    class Teacher(nn.Module):
        head = nn.Linear(1, 3)

        def forward(self, x):
            asked.append(x.clone())
            return x.mean((2, 3))

    def watched(*arguments):
        network = build(*arguments)
        network.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0].clone()))
        return network

    build = student.build
    monkeypatch.setattr(student, "build", watched)
    trained(images, own, torch.ones(6), online(0, Teacher()), [0], augmentation, white=white, batch_size=6)
    order = torch.randperm(6, generator=generator("student", "order", 0, 0, 0))
    views = views_of(augmentation, 6, seeds_of(0, 1)[0])
    torch.testing.assert_close(asked[0], seen(images, views, order, NORMALISATION))
    torch.testing.assert_close(shown[0], seen(images, views, order, NORMALISATION, white))
    torch.testing.assert_close(shown[-1], white.apply(normalise(coloured(30, "val")[0], NORMALISATION)))


# ---- a set of which an epoch shows a part

PARTLY = Shown(3, 4, 2)  # of twelve images


def test_an_epoch_shows_its_images_with_their_classes_and_partners():
    # The loss of an epoch is zero exactly when the student says of each view what its labels say.
    images, own = coloured(12, "distilled")
    changes = FROZEN | {"epochs": 5, "batch_size": 4, "augmentation": CUT}
    network, _ = studied(images, own, epochs=1, **FROZEN)
    logits = torch.empty(5, 6, 3)
    with torch.no_grad():
        for epoch, seed in enumerate(seeds_of(0, 5)):
            x, views = images[PARTLY.positions(epoch)], views_of(CUT, 6, seed)
            logits[epoch] = network(augment.apply(normalise(x, NORMALISATION), views, torch.arange(6)))
    _, history = studied(images, own, logits=logits, shown=PARTLY, **changes)
    assert [entry["loss"] for entry in history] == pytest.approx([0] * 5, abs=1e-9)
    _, history = studied(images, own, shown=PARTLY, **changes)  # hard labels
    first = PARTLY.positions(0)
    _, (alone,) = studied(images[first], own[first], **changes | {"epochs": 1})
    assert history[0]["loss"] == alone["loss"]


def test_weights_follow_the_images_of_an_epoch():
    images, own = coloured(12, "distilled")
    weights = torch.arange(12.0) * (torch.arange(12) % 4 < 2)  # the second half of each class has none
    _, history = studied(images, own, weights, shown=PARTLY, epochs=2, **FROZEN)
    assert history[0]["loss"] > 0
    assert history[1]["loss"] == 0


def test_a_student_of_all_images_is_the_one_without_a_choice():
    images, own = coloured(12, "distilled")
    one, first = studied(images, own, augmentation=CUT, epochs=3, batch_size=5)
    two, second = studied(images, own, augmentation=CUT, epochs=3, batch_size=5, shown=Shown(3, 4, 4))
    assert equal(one, two)
    assert first == second


# ---- weights of images


def test_weights_of_images_by_hand():
    shares = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.4, 0.2]])
    expected = {
        "mass": 3 * shares,
        "uniform": torch.ones(2, 3),
        "variance-reduced": (3 * shares + 1) / 2,
        "sqrt-mass": shares.sqrt() / shares.sqrt().mean(),
    }
    for how, weights in expected.items():
        torch.testing.assert_close(weighted(30 * shares, how), weights)
        assert torch.equal(weighted(torch.full((4, 5), 0.2), how), torch.ones(4, 5))


def test_weights_count_by_their_ratio_alone():
    images, own = coloured(6, "distilled")
    logits, weights = normal(1, 6, 3), torch.tensor([1.0, 1.0, 0.0, 1.0, 2.0, 1.0])
    one, _ = studied(images, own, weights, logits)
    assert equal(studied(images, own, 4 * weights, logits)[0], one)
    assert not equal(studied(images, own, torch.ones(6), logits)[0], one)
    images[2], logits[0, 2] = 255 - images[2], torch.tensor([9.0, -9.0, 0.0])  # an image without weight
    assert equal(studied(images, own, weights, logits)[0], one)


def test_an_image_of_twice_the_weight_is_an_image_shown_twice():
    images, own = coloured(3, "distilled")
    logits, twice = normal(1, 3, 3), [0, 0, 1, 2]
    one, first = studied(images, own, [2.0, 1.0, 1.0], logits, optimizer="sgd", lr=0.1)
    two, second = studied(images[twice], own[twice], None, logits[:, twice], optimizer="sgd", lr=0.1)
    assert first[0]["loss"] == pytest.approx(second[0]["loss"], rel=1e-5)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, two.state_dict()[name], rtol=1e-4, atol=1e-6)


# ---- runs


def test_students_side_by_side_are_those_trained_alone():
    logged = []
    try:
        torch.set_num_threads(2)
        together = several([2, 0, 1], log=lambda metrics, _: logged.append(metrics))
    finally:
        torch.set_num_threads(1)
    for run, (network, history) in zip([2, 0, 1], together, strict=True):
        ((alone, expected),) = several([run])
        assert equal(network, alone)
        assert history == expected
    assert not equal(together[0][0], together[1][0])
    assert [m["1/loss"] for m in logged if "1/loss" in m] == [entry["loss"] for entry in together[1][1]]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    ("runs", "save_at", "die_at", "shown"), [([0, 1], 3, 4, None), ([0], 6, 7, None), ([0], 5, 6, PARTLY)]
)
def test_killed_students_go_on_to_the_same_bits(dying_keeper, runs, save_at, die_at, shown, optimizer):
    changes = {"ema": 0.9, "optimizer": optimizer, "shown": shown}
    whole = several(runs, **changes)
    again = dying_keeper.after(lambda keeper: several(runs, keeper, **changes), save_at, die_at)
    resumed = several(runs, again, **changes)
    assert all(equal(a, b) and h == g for (a, h), (b, g) in zip(whole, resumed, strict=True))


def test_the_average_of_a_student_is_what_is_scored():
    ((network, history),) = several([0], ema=0.5)
    ((other, _),) = several([0])
    assert not equal(network, other)
    pictures = Resident(*coloured(30, "val"))
    assert evaluate(network, pictures, NORMALISATION, FAST)["top1"] == history[-1]["top1"]


# ---- engines


def weights_of(network: nn.Module) -> Tensor:
    return torch.cat([value.flatten() for value in network.state_dict().values()])


def alike(students: tuple[Network, list], references: tuple[Network, list], loss: float, distance: float) -> None:
    """Compare students with those of the reference by their losses, and by their weights relative to their length."""
    for (network, history), (reference, expected) in zip(students, references, strict=True):
        assert [entry["loss"] for entry in history] == pytest.approx([entry["loss"] for entry in expected], rel=loss)
        a, b = weights_of(network.cpu()), weights_of(reference)
        assert float((a - b).norm() / b.norm()) < distance


@pytest.mark.parametrize(
    ("optimizer", "architecture", "norm"),
    [("sgd", "resnet18", "batch"), ("adam", "convnet3", "batch"), ("adamw", "convnet3", "instance")],
)
def test_the_fast_engine_trains_as_the_reference_does(optimizer, architecture, norm):
    changes = {"optimizer": optimizer, "architecture": architecture, "norm": norm, "lr": 1e-3, "batch_size": 12}
    fast, reference = several([0], **changes), several([0], engine=plain(), **changes)
    alike(fast, reference, 1e-3, 5e-3)  # Adam turns a gradient that is all rounding into a whole step
    assert not equal(fast[0][0], reference[0][0]) or architecture == "convnet3"


def test_bfloat16_learns_as_well():
    ((_, history),) = several([0], engine=replace(FAST, dtype=torch.bfloat16), epochs=20)
    ((network, expected),) = several([0], engine=plain(), epochs=20)
    assert history[-1]["loss"] == pytest.approx(expected[-1]["loss"], rel=0.2)
    assert all(p.dtype == torch.float32 for p in network.parameters())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch needs a C++ compiler")
def test_compiled_steps_train_as_the_reference_does(capsys):
    changes = {"epochs": 3, "batch_size": 12, "lr": 1e-3, "architecture": "convnet1"}
    compiled, reference = (several([0], engine=e, **changes) for e in (replace(FAST, mode="compile"), plain()))
    alike(compiled, reference, 1e-3, 5e-3)
    assert "not compiled" not in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon"])
def test_students_of_a_gpu_are_those_of_the_reference(optimizer, capsys):
    from wmdd.settings.engine import EngineSettings

    changes = {"optimizer": optimizer, "lr": 1e-3, "batch_size": 12, "epochs": 8}
    reference = several([0, 1], engine=plain(), **changes)
    on_gpu = Engine.of(EngineSettings(device="cuda", precision="fp32", mode="eager"))
    alike(several([0, 1], engine=on_gpu, **changes), reference, 1e-2, 2e-2)
    assert "no CUDA graph" not in capsys.readouterr().err
