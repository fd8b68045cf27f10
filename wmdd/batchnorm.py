"""Statistics of the inputs of BatchNorm layers: exact per class over a data set, and of a batch inside a loss."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def layers(network: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """Return the BatchNorm layers by name, in the order they were declared."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}


@contextmanager
def inputs_of(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that after each forward pass holds the input [B, ch, H, W] of every BatchNorm layer."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        return lambda _module, arguments: seen.__setitem__(name, arguments[0])

    handles = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers(network).items()]  # type: ignore[arg-type]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Statistics:
    """Mean and variance of each layer's input: per class [C, ch], or of the whole data [1, ch]."""

    mean: dict[str, Tensor]
    variance: dict[str, Tensor]

    def of(self, labels: Tensor) -> "Statistics":
        """Return the rows of some classes."""
        return Statistics(
            {k: v[labels] for k, v in self.mean.items()}, {k: v[labels] for k, v in self.variance.items()}
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> "Statistics":
        """Return a copy elsewhere."""
        move = {"device": device, "dtype": dtype}
        mean = {k: v.to(**move) for k, v in self.mean.items()}  # type: ignore[call-overload]
        return Statistics(mean, {k: v.to(**move) for k, v in self.variance.items()})  # type: ignore[call-overload]


def running(network: nn.Module) -> Statistics:
    """Return the running statistics that the network collected while it was trained (SRe2L's target)."""
    found = layers(network).items()
    mean = {k: layer.running_mean[None].clone() for k, layer in found if layer.running_mean is not None}
    return Statistics(mean, {k: layer.running_var[None].clone() for k, layer in found if layer.running_var is not None})


class ClassMoments:
    r"""Gathers exact per-class statistics over any number of batches.

    With m_i and v_i the mean and the (biased) variance over the pixels of image i, the class c has

        mu_c = (1 / N_c) \sum_{i in c} m_i,      sigma^2_c = (1 / N_c) \sum_{i in c} (v_i + m_i^2) - mu_c^2

    (law of total variance: all pixels of all images of the class). The sums are kept in float64 and per image, so the
    result does not depend on how the data are cut into batches. The published code averages the variances within
    batches instead, which leaves the variance between batches out.
    """

    def __init__(self, classes: int) -> None:
        self.count = torch.zeros(classes, dtype=torch.float64)
        self._mean: dict[str, Tensor] = {}
        self._square: dict[str, Tensor] = {}

    def add(self, inputs: dict[str, Tensor], labels: Tensor) -> None:
        """Add a batch: inputs [B, ch, H, W] by layer, labels [B]."""
        labels = labels.cpu()
        self.count.index_add_(0, labels, torch.ones(len(labels), dtype=torch.float64))
        for name, x in inputs.items():
            variance, mean = torch.var_mean(x.float(), (2, 3), correction=0)
            mean, variance = mean.double().cpu(), variance.double().cpu()
            if name not in self._mean:
                shape = (len(self.count), mean.shape[1])
                self._mean[name], self._square[name] = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
            self._mean[name].index_add_(0, labels, mean)
            self._square[name].index_add_(0, labels, variance + mean**2)

    def statistics(self) -> Statistics:
        """Return the statistics of all classes seen so far, [C, ch] float64."""
        count = self.count[:, None]
        mean = {name: total / count for name, total in self._mean.items()}
        variance = {name: (total / count - mean[name] ** 2).clamp(min=0) for name, total in self._square.items()}
        return Statistics(mean, variance)


class _ImageMoments(torch.autograd.Function):
    """Mean and variance over the pixels of each image and channel: one pass forward and one backward, without copies.

    variance = E[x^2] - E[x]^2, accumulated in `dtype`; d/dx = (g_mean + 2 g_variance (x - mean)) / HW.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        mean = x.mean((2, 3), dtype=dtype)
        # squares of bfloat16 must not be rounded to bfloat16: where the mean is many deviations from 0, nothing would be left
        if x.dtype == dtype:
            square = x.square().mean((2, 3))
        else:
            square = torch.linalg.vector_norm(x, dim=(2, 3), dtype=dtype).square() / x[0, 0].numel()
        ctx.save_for_backward(x, mean)
        return mean, (square - mean.square()).clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        x, mean = ctx.saved_tensors
        to_mean, to_variance = gradients
        slope = 2 * to_variance / x[0, 0].numel()
        offset = to_mean / x[0, 0].numel() - slope * mean
        shape = (*mean.shape, 1, 1)
        return (x * slope.view(shape).to(x.dtype)).add_(offset.view(shape).to(x.dtype)), None


def moments(x: Tensor, weights: Tensor | None, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    r"""Return mean and variance per channel and class, [C, ch] each, of x [C * K, ch, H, W] with image weights [C, K].

    mu_c = \sum_j w_cj m_cj and sigma^2_c = \sum_j w_cj (v_cj + (m_cj - mu_c)^2), m and v the moments of each image; with
    `weights` None all images are one group with equal weights ([1, ch]).
    """
    mean, variance = _ImageMoments.apply(x, dtype)
    if weights is None:
        weights = torch.full((1, len(x)), 1 / len(x), dtype=dtype, device=x.device)
    groups = mean.view(*weights.shape, -1)  # [C, K, ch]
    centre = torch.einsum("ck,ckh->ch", weights, groups)
    spread = variance.view(*weights.shape, -1) + (groups - centre[:, None]) ** 2
    return centre, torch.einsum("ck,ckh->ch", weights, spread)
