r"""Losses of a network's logits, one value an image: of classes, and of a teacher's logits.

With s the logits of a student, t those of its teacher (both [B, C]), y the class as probabilities [B, C]:

    kl        KL(softmax(t / T) || softmax(s / T'))
    mse       1/C \sum_c (s_c - t_c)^2
    mse+ce    mse + w CE(s, y)                                  MSE-GT of EDC (NeurIPS 2024) and its code, w = 0.025
    cosine    1 - cos(s, t / |t| + w y' / |y'|)                 GIFT (ICLR 2025) and its code, w = 0.1
    kl+sinkhorn   kl + w B \sum_j P_ij c_ij, with c_ij = 1/(2 C) |s_i / T' - t_j / T|^2    after OT-GDA (NeurIPS 2025)

y' is y smoothed: 0.9 for the class, 0.1 / (C - 1) for each of the others. kl is without the factor T^2 of Hinton et al. 2015,
as SRe2L and WMDD run it; Adam's steps hardly depend on the scale.

P [B, B] is the entropic transport plan of the batch's logits between uniform masses, by Sinkhorn's iterations (Cuturi 2013,
Algorithm 1). It is a constant of the gradient. Its regularisation is a twentieth of the mean cost, so that it does not depend
on the scale of the logits. OT-GDA (arXiv 2512.00308) adds the Sinkhorn distance to the cross-entropy and mse. Its code is not
public: cost and weight are this project's own. At a large T the cost of a pair i = j is about its kl.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LossOf = Callable[[Tensor, Tensor], Tensor]  # of logits [B, C] and targets: one loss for each image [B]
OF_THE_CLASS = ("mse+ce", "cosine")  # losses whose targets are [B, 2 C]: a teacher's logits and, behind them, the class
SMOOTHING = 0.1  # of GIFT's class
SINKHORN_ROUNDS = 20  # of rows and columns each


def own_loss(losses: Tensor, targets: Tensor) -> Tensor:
    """Return the losses [B] of a network that computes its own; it has no use for targets."""
    return losses


def cross_entropy(smoothing: float = 0.0) -> LossOf:
    """Return the loss for labels [B] or class probabilities [B, C]."""
    return lambda logits, targets: F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)


def distillation(temperature: float, student_temperature: float | None = None) -> LossOf:
    """Return `kl` at the temperature T of the teacher and T' of the student, which is T unless given."""
    own = temperature if student_temperature is None else student_temperature

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        student = F.log_softmax(logits / own, 1)
        teacher = F.log_softmax(targets.float() / temperature, 1)
        return F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)

    return loss


def squared_error(hard_weight: float = 0.0) -> LossOf:
    """Return `mse` for targets [B, C] or, where the class has a weight, `mse+ce` for targets [B, 2 C]."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        classes = logits.shape[1]
        squared = (logits - targets[:, :classes].float()).square().mean(1)
        if not hard_weight:
            return squared
        return squared + hard_weight * F.cross_entropy(logits, targets[:, classes:].float(), reduction="none")

    return loss


def cosine(hard_weight: float) -> LossOf:
    """Return `cosine` for targets [B, 2 C]."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        teacher, label = targets.float().split(logits.shape[1], 1)
        others = SMOOTHING / max(logits.shape[1] - 1, 1)
        smoothed = others + (1 - SMOOTHING - others) * label
        direction = F.normalize(teacher, dim=1) + hard_weight * F.normalize(smoothed, dim=1)
        return 1 - torch.cosine_similarity(logits, direction, dim=1)

    return loss


def with_sinkhorn(temperature: float, student_temperature: float | None, weight: float) -> LossOf:
    """Return `kl+sinkhorn` at the temperatures of `distillation`."""
    alone = distillation(temperature, student_temperature)
    own = temperature if student_temperature is None else student_temperature

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        student, teacher = logits / own, targets.float() / temperature
        cost = (student[:, None] - teacher).square().mean(2) / 2
        plan = sinkhorn(cost.detach())
        return alone(logits, targets) + weight * len(cost) * (plan * cost).sum(1)

    return loss


def sinkhorn(cost: Tensor) -> Tensor:
    """Return the entropic plan [B, B] of a cost between uniform masses; its rows have exactly their mass, 1/B."""
    scaled = -cost / (cost.mean() / 20).clamp_min(torch.finfo(cost.dtype).tiny)
    columns = torch.zeros_like(cost[0])
    for _ in range(SINKHORN_ROUNDS):
        rows = -torch.logsumexp(scaled + columns, 1)
        columns = -torch.logsumexp(scaled + rows[:, None], 0)
    return torch.softmax(scaled + columns, 1) / len(cost)
