r"""The gradient of MTT: through the steps of a student, backwards and by hand.

A student begins at theta*_t and takes N steps theta_{i+1} = theta_i - alpha g_i on images X_{b_i} with labels y_{b_i}, with the
gradients g_i = grad_theta CE(f_theta(X_{b_i}), y_{b_i}) at theta_i, towards theta*_{t+M}:

    L = ||theta_N - theta*_{t+M}||^2 / ||theta*_t - theta*_{t+M}||^2              (Cazenavette et al. 2022, Eq. 2)

With v_N = dL/dtheta_N, for i = N - 1, ..., 0

    dL/dX_{b_i} = -alpha d<g_i, v_{i+1}>/dX_{b_i},    dL/dalpha += -<g_i, v_{i+1}>
    v_i = v_{i+1} - alpha d<g_i, v_{i+1}>/dtheta_i

where each product is one reverse pass over g_i, recomputed from theta_i (`torch.func`). So no graph is older than one step, and
beside the activations of one step memory holds the theta_i alone, 4 P bytes each: 1.3 MB for ConvNet-3 of width 128. Published
code keeps the graphs of all steps; the recomputation takes about a third more FLOP (11 F a step and image in place of 8 F).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Step(NamedTuple):
    """What a student's step is given: images [B, 3, R, R] and label probabilities [B, C], with graphs that end in X and y."""

    images: Tensor
    labels: Tensor


class Unrolled(NamedTuple):
    """Loss L, its derivative by the learning rate, and the student's end [P]; those by X and y are in their `.grad`."""

    loss: Tensor
    by_rate: Tensor
    end: Tensor


Grad = Callable[[Tensor, Tensor, Tensor], Tensor]


def gradient_of(network: nn.Module) -> Grad:
    """Return (theta [P], images [B, 3, R, R], label probabilities [B, C]) -> the gradient of the mean cross-entropy, [P]."""
    shapes = {name: p.shape for name, p in network.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]

    def loss(theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        parts = {n: part.view(shape) for (n, shape), part in zip(shapes.items(), theta.split(sizes), strict=True)}
        return F.cross_entropy(torch.func.functional_call(network, parts, (images,)), labels)

    return torch.func.grad(loss)


def unrolled(
    gradient: Grad, begin: Tensor, target: Tensor, step_of: Callable[[int], Step], steps: int, rate: float
) -> Unrolled:
    """Take N `steps` from `begin` [P] towards `target`, at the `rate` alpha, and return L and its derivatives.

    `step_of` gives step i, the same whenever it is asked. Memory does not grow with N but by the theta_i.
    """
    thetas = [begin]
    for i in range(steps):
        with torch.no_grad():
            images, labels = step_of(i)
        thetas.append(thetas[-1] - rate * gradient(thetas[-1], images, labels).detach())
    end = thetas.pop()
    distance = (begin - target).square().sum()
    loss = (end - target).square().sum() / distance
    v = 2 * (end - target) / distance
    by_rate = torch.zeros((), device=begin.device)
    for i in reversed(range(steps)):
        step = step_of(i)
        inputs = (thetas.pop(), step.images.detach(), step.labels.detach())
        g, pull = cast(tuple[Tensor, Any], torch.func.vjp(gradient, *inputs))
        by_theta, by_images, by_labels = pull(v)
        by_rate = by_rate - (g * v).sum()
        for value, derivative in ((step.images, -rate * by_images), (step.labels, -rate * by_labels)):
            if value.requires_grad:
                value.backward(derivative)
        v = v - rate * by_theta
    return Unrolled(loss, by_rate, end)
