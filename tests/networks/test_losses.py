"""Losses against closed forms."""

import ot
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wmdd.base.rng import generator
from wmdd.networks.losses import cosine, cross_entropy, distillation, sinkhorn, squared_error, with_sinkhorn


def normal(*shape: int, key: str = "") -> Tensor:
    return torch.randn(shape, generator=generator("losses test", key, *shape))


LOGITS, TEACHER, CLASSES = (
    5 * normal(6, 4, key="student"),
    5 * normal(6, 4, key="teacher"),
    torch.tensor([0, 3, 1, 1, 2, 0]),
)


def test_cross_entropy_of_labels_probabilities_and_smoothing():
    logits, labels = normal(6, 4), torch.tensor([0, 3, 1, 1, 2, 0])
    expected = -logits.log_softmax(1)[torch.arange(6), labels]
    torch.testing.assert_close(cross_entropy()(logits, labels), expected)
    torch.testing.assert_close(cross_entropy()(logits, F.one_hot(labels, 4).float()), expected)
    smooth = 0.9 * expected - 0.1 * logits.log_softmax(1).mean(1)
    torch.testing.assert_close(cross_entropy(0.1)(logits, labels), smooth)


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_distillation_is_the_divergence_of_softened_labels(temperature):
    logits, targets = LOGITS, TEACHER
    softened = (torch.distributions.Categorical(logits=x / temperature) for x in (targets, logits))
    expected = torch.distributions.kl_divergence(*softened)
    torch.testing.assert_close(distillation(temperature)(logits, targets), expected)
    torch.testing.assert_close(distillation(temperature)(logits, targets.half()), expected, rtol=1e-2, atol=1e-4)


def test_teacher_and_student_may_have_temperatures_of_their_own():
    softened = (torch.distributions.Categorical(logits=x) for x in (TEACHER / 20, LOGITS))
    torch.testing.assert_close(distillation(20, 1)(LOGITS, TEACHER), torch.distributions.kl_divergence(*softened))


def test_squared_error_with_and_without_the_class():
    squared = torch.stack([F.mse_loss(s, t) for s, t in zip(LOGITS, TEACHER, strict=True)])
    torch.testing.assert_close(squared_error()(LOGITS, TEACHER), squared)
    targets = torch.cat([TEACHER, F.one_hot(CLASSES, 4)], 1)
    expected = squared + 0.025 * F.cross_entropy(LOGITS, CLASSES, reduction="none")
    torch.testing.assert_close(squared_error(0.025)(LOGITS, targets), expected)
    torch.testing.assert_close(squared_error(0)(LOGITS, targets), squared)


def test_cosine_is_that_of_the_refined_labels():
    """Of GIFT: the direction is the unit vector of the logits and, gamma of it, that of the smoothed class."""
    smoothed = torch.full((6, 4), 0.1 / 3).scatter(1, CLASSES[:, None], 0.9)
    targets = torch.cat([TEACHER, F.one_hot(CLASSES, 4)], 1)
    for gamma in (0, 0.1):
        direction = TEACHER / TEACHER.norm(dim=1, keepdim=True) + gamma * smoothed / smoothed.norm(dim=1, keepdim=True)
        expected = 1 - (LOGITS * direction).sum(1) / LOGITS.norm(dim=1) / direction.norm(dim=1)
        torch.testing.assert_close(cosine(gamma)(LOGITS, targets), expected)
        torch.testing.assert_close(cosine(gamma)(7 * LOGITS, targets), expected)


def test_sinkhorn_is_the_entropic_plan():
    cost = normal(6, 6).square().double()
    uniform = torch.full((6,), 1 / 6, dtype=torch.float64)
    plan = sinkhorn(cost)
    expected = ot.sinkhorn(uniform, uniform, cost, reg=float(cost.mean() / 20), numItermax=20, stopThr=0, warn=False)
    torch.testing.assert_close(plan.sum(1), uniform)
    torch.testing.assert_close(plan, expected, rtol=0, atol=0.02 / 6)


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_transport_does_not_ask_whose_label_is_whose(temperature):
    """Its part is the same for labels in another order; it is the cost of the plan, and no gradient passes the plan."""
    of, kl = with_sinkhorn(temperature, None, 0.5), distillation(temperature)
    logits = LOGITS.clone().requires_grad_()
    part = of(logits, TEACHER) - kl(logits, TEACHER)
    shuffled = TEACHER[torch.randperm(6, generator=generator("order"))]
    torch.testing.assert_close(part, of(LOGITS, shuffled) - kl(LOGITS, shuffled), rtol=1e-3, atol=1e-5)
    cost = torch.stack([(s - TEACHER).square().mean(1) for s in LOGITS]) / (2 * temperature**2)
    plan = sinkhorn(cost)
    torch.testing.assert_close(part.mean(), 0.5 * (plan * cost).sum())
    (gradient,) = torch.autograd.grad(part.mean(), logits)
    expected = 0.5 * (LOGITS / 6 - plan @ TEACHER) / (4 * temperature**2)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)


def test_transport_of_equal_logits_is_finite():
    assert with_sinkhorn(1, None, 1)(torch.ones(3, 4), torch.ones(3, 4)).abs().max() < 1e-6
