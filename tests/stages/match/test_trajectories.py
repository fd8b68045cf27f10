"""MTT: the gradient by hand against automatic differentiation through all steps, resuming, and what stops it."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.datasets.loader import Resident
from wmdd.networks import siamese, whitening
from wmdd.networks.context import quiet
from wmdd.networks.engine import flop, plain
from wmdd.networks.models import build
from wmdd.networks.normalisation import Normalisation
from wmdd.settings.match import ExpertSettings, MatchSettings
from wmdd.stages.expert import flat
from wmdd.stages.match import real
from wmdd.stages.match.trajectories import match
from wmdd.stages.match.unrolling import Step, gradient_of, unrolled

CLASSES, K, SIDE = 3, 2, 8
NORMALISATION = Normalisation([0.5, 0.4, 0.6], [0.2, 0.3, 0.25])
TRAINED = ExpertSettings(architecture="convnet2", width=4)
MTT = MatchSettings(
    objective="mtt",
    iterations=4,
    lr=5,
    trajectories=2,
    expert_epochs=1,
    start_epochs=2,
    student_steps=3,
    student_lr=0.05,
)


def normal(*shape, key="x"):
    return torch.randn(shape, generator=generator("mtt test", key, *shape), dtype=torch.float64)


def network():
    return build(TRAINED, CLASSES, SIDE, generator("mtt test network"))


def pictures():
    labels = torch.arange(CLASSES).repeat_interleave(6)
    images = torch.randint(0, 256, (len(labels), 3, SIDE, SIDE), generator=generator("mtt pictures"))
    return Resident(images.to(torch.uint8), labels)


def experts(epochs=3):
    """Two trajectories that go somewhere."""
    found = []
    for number in range(2):
        begin = flat(build(TRAINED, CLASSES, SIDE, generator("mtt expert", number)))
        way = torch.randn(begin.shape, generator=generator("mtt way", number))
        found.append(torch.stack([begin + 0.05 * epoch * way for epoch in range(epochs + 1)]))
    return found


def matched(settings=MTT, white=None, given=None, **changes):
    found, context = real(pictures(), list(range(CLASSES)), ["a", "b", "c"], 1), replace(quiet(plain()), **changes)
    return match(found, CLASSES, K, NORMALISATION, given or experts(), TRAINED, white, settings, 0, context)


@pytest.mark.parametrize("learned", [False, True])
def test_the_gradient_by_hand_is_that_of_automatic_differentiation(learned):
    student = network().double()
    gradient = gradient_of(student)
    begin = flat(student).double()
    target = begin + 0.01 * normal(*begin.shape, key="target")
    x = normal(CLASSES * K, 3, SIDE, SIDE).requires_grad_()
    logits = normal(CLASSES * K, CLASSES, key="labels").requires_grad_(learned)
    rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    order = [torch.tensor([0, 3, 5]), torch.tensor([1, 2, 4]), torch.tensor([0, 1, 2])]

    def step_of(i):
        how = siamese.draw(generator("mtt test view", i), 3)
        return Step(siamese.apply(x[order[i]], how), logits.softmax(1)[order[i]])

    found = unrolled(gradient, begin, target, step_of, 3, rate.item())
    by_hand = [x.grad.clone(), found.by_rate] + ([logits.grad.clone()] if learned else [])

    theta = begin
    for i in range(3):
        theta = theta - rate * gradient(theta, *step_of(i))
    loss = (theta - target).square().sum() / (begin - target).square().sum()
    wanted = torch.autograd.grad(loss, [x, rate] + ([logits] if learned else []))
    torch.testing.assert_close(found.loss, loss.detach(), rtol=1e-12, atol=0)
    for mine, theirs in zip(by_hand, wanted, strict=True):
        torch.testing.assert_close(mine.detach(), theirs, rtol=1e-9, atol=1e-14)


def test_the_gradient_of_the_parameters_is_the_networks_own():
    student = network().double()
    x, y = normal(4, 3, SIDE, SIDE), F.one_hot(torch.tensor([0, 1, 2, 0]), CLASSES).double()
    found = gradient_of(student)(flat(student).double(), x, y)
    F.cross_entropy(student(x), y).backward()
    torch.testing.assert_close(found, torch.cat([p.grad.flatten() for p in student.parameters()]))


def test_the_student_comes_nearer_to_the_experts():
    losses = []
    changes = {"iterations": 60, "views": "none", "lr": 20.0, "start_epochs": 1, "trajectories": 1}
    settings = MTT.model_copy(update=changes)
    matched(settings, given=experts()[:1], log=lambda metrics, step: losses.append(metrics["loss"]))
    assert sum(losses[-5:]) < sum(losses[:5])


def test_images_rate_and_labels_are_what_is_learned():
    found = matched(MTT.model_copy(update={"labels": "learned"}))
    assert (found.images.shape, found.images.dtype) == ((CLASSES, K, 3, SIDE, SIDE), torch.float32)
    assert found.rate != MTT.student_lr
    assert found.labels.shape == (CLASSES, K, CLASSES)
    torch.testing.assert_close(found.labels.sum(-1), torch.ones(CLASSES, K))
    assert found.labels.argmax(-1).tolist() == [[c] * K for c in range(CLASSES)]
    assert matched().labels is None


def test_labels_of_images_that_stay():
    """The control of learned images: real ones with labels that are learned in the same way."""
    learned, still = (matched(MTT.model_copy(update={"labels": "learned", "lr": lr})) for lr in (5.0, 0.0))
    begun = matched(MTT.model_copy(update={"labels": "learned", "lr": 0.0, "iterations": 1}))
    assert torch.equal(still.images, begun.images)
    assert not torch.equal(still.images, learned.images)
    assert not torch.equal(still.labels, begun.labels)
    assert still.rate != begun.rate


def test_it_goes_on_after_any_kill_with_the_same_bits(dying_keeper):
    settings = MTT.model_copy(update={"labels": "learned", "student_batch": 4})
    whole = matched(settings)
    resumed = matched(settings, keeper=dying_keeper.after(lambda keeper: matched(settings, keeper=keeper), 2, 3))
    assert torch.equal(whole.images, resumed.images)
    assert whole.rate == resumed.rate
    assert torch.equal(whole.labels, resumed.labels)


def test_whitened_images_come_back_as_pictures():
    white = whitening.fit(pictures(), NORMALISATION)
    still = MTT.model_copy(update={"iterations": 1, "lr": 1e-12})
    found = matched(still, white=white)
    begun = matched(still)
    torch.testing.assert_close(found.images, begun.images, atol=1e-3, rtol=0)  # rounding of W and its inverse


def test_short_experts_and_a_student_that_leads_nowhere_stop_with_the_remedy():
    too_short = "an expert has 2 epochs, but match begins at up to 1 of them and goes on for 2"
    with pytest.raises(WmddError, match=too_short):
        matched(MTT.model_copy(update={"expert_epochs": 2}), given=experts(2))
    with pytest.raises(WmddError, match=r"lead to no number at iteration 0 .*lower match.lr"):
        matched(MTT.model_copy(update={"student_lr": 1e30}))


def test_the_recomputation_takes_a_third_more_than_one_long_graph():
    """Of a step and image: 10.5 forward passes against 7.9. `wmdd.cost.laws` reckons with 11: a first layer has one less."""
    student = build(ExpertSettings(width=16), 10, 32, generator("mtt flop"))
    gradient, begin = gradient_of(student), flat(student).requires_grad_()
    x = normal(4, 3, 32, 32).float().requires_grad_()
    step = Step(x, F.one_hot(torch.arange(4), 10).float())
    forward = 4 * flop(student, 32)
    for steps in 1, 3:
        with FlopCounterMode(display=False) as ours:
            unrolled(gradient, begin.detach(), begin.detach() + 0.1, lambda _: step, steps, 0.01)
        with FlopCounterMode(display=False) as theirs:
            theta = begin
            for _ in range(steps):
                theta = theta - 0.01 * gradient(theta, *step)
            theta.square().sum().backward()
        assert 10 < ours.get_total_flops() / forward / steps < 11
        assert 1.2 < ours.get_total_flops() / theirs.get_total_flops() < 1.5
