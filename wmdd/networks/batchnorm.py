"""Statistics of the inputs of BatchNorm layers: exact per class over a data set, and of a batch inside a loss."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn


def layers(network: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """Return the BatchNorm layers by name, in the order they were declared."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}


@contextmanager
def _hooked(network: nn.Module, keep: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `keep` with the name and the input [B, ch, H, W] of every BatchNorm layer in each forward pass."""

    def hook_of(name: str) -> Callable[..., None]:
        return lambda _module, arguments: keep(name, arguments[0])

    handles = [layer.register_forward_pre_hook(hook_of(name)) for name, layer in layers(network).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def inputs_of(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that after each forward pass holds the input [B, ch, H, W] of every BatchNorm layer."""
    inputs: dict[str, Tensor] = {}
    with _hooked(network, inputs.__setitem__):
        yield inputs


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
    named = layers(network).items()
    mean = {k: layer.running_mean[None].clone() for k, layer in named if layer.running_mean is not None}
    return Statistics(mean, {k: layer.running_var[None].clone() for k, layer in named if layer.running_var is not None})


ROWS = 4096  # pixels whose sums are kept in float32; above, they are added in float64


@dataclass
class ClassMoments:
    r"""Gathers exact statistics of classes, over any number of batches, each of one class.

    With m_k and v_k the mean and the (biased) variance over the pixels of the n_k images of a piece k of a batch, the class has

        mu_c = (1 / N_c) \sum_k n_k m_k,      sigma^2_c = (1 / N_c) \sum_k n_k (v_k + m_k^2) - mu_c^2

    (law of total variance: all pixels of all images of the class). The sums are kept in float64. The published code averages
    the variances within batches instead, which leaves the variance between batches out.
    """

    count: dict[int, int] = field(default_factory=dict)  # images of each class so far, by label
    sums: dict[int, Tensor] = field(default_factory=dict)  # of n m and of n (v + m^2), [2, all channels] float64
    widths: dict[str, int] = field(default_factory=dict)  # channels of each layer, in their order in the sums

    def add(self, label: int, count: int, sums: dict[str, Tensor]) -> None:
        """Add the sums [2, ch] by layer (`sums_of`) over `count` images of a class."""
        self.widths = self.widths or {name: total.shape[1] for name, total in sums.items()}
        total = torch.cat([sums[name] for name in self.widths], 1)
        self.sums[label] = self.sums[label] + total if label in self.sums else total
        self.count[label] = self.count.get(label, 0) + count

    def last(self) -> "ClassMoments":
        """Return those of the last class alone, which the next batch may go on with."""
        label = next(reversed(self.count))
        return ClassMoments({label: self.count[label]}, {label: self.sums[label]}, self.widths)

    def statistics(self) -> Statistics:
        """Return the statistics of all classes seen so far, [C, ch] float64, in the order in which they came."""
        count = torch.tensor(list(self.count.values()))
        parts = torch.stack(list(self.sums.values())).split(list(self.widths.values()), 2)
        moments = {name: statistics_of(part, count) for name, part in zip(self.widths, parts, strict=True)}
        return Statistics({k: mean for k, (mean, _) in moments.items()}, {k: v for k, (_, v) in moments.items()})


def statistics_of(sums: Tensor, count: Tensor, apart: bool = False) -> tuple[Tensor, Tensor]:
    """Return mean and variance [C, ch] of sums [C, 2, ch] over count [C] images, or (`apart`) of sums `within` batches."""
    mean, square = (sums / count[:, None, None]).unbind(1)
    return mean, square if apart else (square - mean**2).clamp(min=0)


def within(sums: Tensor, count: int) -> Tensor:
    r"""Return the sums [2, ch] of n m and n v of a batch of n images, for those of n m and n (v + m^2).

    The mean of the variances within batches, (1 / N_c) \sum_b n_b v_b, is what WMDD's released code takes for a class.
    """
    total, square = sums.unbind()
    return torch.stack([total, (square - total**2 / count).clamp(min=0)])


def sums_of(x: Tensor) -> Tensor:
    """Return the sums of n m and of n (v + m^2) over the images of x [B, ch, H, W], [2, ch] float64 on the CPU.

    On CPU by the kernel that BatchNorm itself uses in training: one pass, 10 to 25 times faster than `torch.var_mean` on
    channels-last images. It adds in float32 one by one, so it gets few pixels at a time.
    """
    if x.device.type != "cpu":
        variance, mean = torch.var_mean(x.float(), (2, 3), correction=0)
        mean, variance = mean.double(), variance.double()
        return torch.stack([mean.sum(0), (variance + mean**2).sum(0)]).cpu()
    total = torch.zeros(2, x.shape[1], dtype=torch.float64)
    # what the kernel updates, by a share of 0, decides the type of its sums
    unused = torch.zeros(2, x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
    for piece in x.split(max(1, ROWS // max(1, x[0, 0].numel()))):
        mean, variance = (v.double() for v in torch.batch_norm_update_stats(piece, unused[0], unused[1], 0.0))
        total += len(piece) * torch.stack([mean, variance + mean**2])
    return total


@contextmanager
def sums_of_inputs(network: nn.Module) -> Iterator[Callable[[], dict[str, Tensor]]]:
    """Yield a function that gives the sums of the input of every BatchNorm layer in the thread's last forward pass.

    They are taken while the pass goes on, so that no input is held; several threads may run passes at once.
    """
    local = threading.local()
    with _hooked(network, lambda name, x: vars(local).__setitem__(name, sums_of(x))):
        yield lambda: dict(vars(local))


def moments(x: Tensor, weights: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    r"""Return mean and variance per channel and class, [C, ch] each, of x [C * K, ch, H, W] with image weights [C, K].

    mu_c = \sum_j w_cj m_cj and sigma^2_c = \sum_j w_cj (v_cj + (m_cj - mu_c)^2), m and v the moments of each image.
    """
    variance, mean = torch.var_mean(x.to(dtype), (2, 3), correction=0)
    return _of_classes(mean, variance, weights)


def _of_classes(mean: Tensor, variance: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the moments of classes [C, ch] from those of images [C * K, ch]; not by products, which may be rounded."""
    groups, spread = (values.view(*weights.shape, -1) for values in (mean, variance))  # [C, K, ch]
    centre = (weights[..., None] * groups).sum(1)
    return centre, (weights[..., None] * (spread + (groups - centre[:, None]) ** 2)).sum(1)


def _class_moments(x: Tensor, weights: Tensor, alike: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance [C, ch] over the pixels of each class, accumulated in the type of the weights [C, K].

    `alike` images at a time have the same weight.
    """
    if x.device.type == "cpu" and weights.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last):
        return _class_moments_on_cpu(x, weights, alike)
    mean = x.mean((2, 3), dtype=weights.dtype)
    # squares of bfloat16 must not be rounded to bfloat16: where the mean is many deviations from 0, nothing would be left
    if x.dtype == weights.dtype:
        square = x.square().mean((2, 3))
    else:
        square = torch.linalg.vector_norm(x, dim=(2, 3), dtype=weights.dtype).square() / x[0, 0].numel()
    return _of_classes(mean, (square - mean.square()).clamp(min=0), weights)


def _class_moments_on_cpu(x: Tensor, weights: Tensor, alike: int) -> tuple[Tensor, Tensor]:
    """Return the same of channels-last images, by the kernel that BatchNorm uses in training (see `sums_of`)."""
    rows = min(x.shape[2], max(1, ROWS // x.shape[3]))
    images = next(n for n in range(alike, 0, -1) if alike % n == 0 and (n == 1 or n * x[0, 0].numel() <= ROWS))
    unused = torch.zeros(2, x.shape[1])
    pieces = [piece for part in x.split(images) for piece in part.split(rows, 2)]
    moments_of_pieces = [torch.batch_norm_update_stats(piece, unused[0], unused[1], 0.0) for piece in pieces]
    share = torch.tensor([piece.shape[2] / x.shape[2] for piece in pieces]).view(len(weights), -1)  # [C, pieces]
    share *= weights.unflatten(1, (-1, images)).sum(2).repeat_interleave(-(-x.shape[2] // rows), 1)
    mean, variance = (torch.stack(values) for values in zip(*moments_of_pieces, strict=True))
    return _of_classes(mean, variance, share)


class _Normalised(torch.autograd.Function):
    r"""BatchNorm in eval mode, y = a x + b per channel, and mean and variance of x per class, without copies.

    With g_y, g_mu and g_v the gradients, image j of class c with the weight w has, of H W pixels,

        dL/dx = a g_y + w (g_mu + 2 g_v (x - mu_c)) / (H W).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, alike: int, scale: Tensor, normalise: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = _class_moments(x, weights, alike)
        ctx.save_for_backward(x, weights, scale, mean)
        return normalise(x), mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        x, weights, scale, mean = ctx.saved_tensors
        to_y, to_mean, to_variance = gradients
        share = weights[..., None] / x[0, 0].numel()  # [C, K, 1]
        slope = 2 * to_variance[:, None] * share  # [C, K, ch]
        offset = to_mean[:, None] * share - slope * mean[:, None]
        to_x = torch.addcmul(_channels(offset, x), x, _channels(slope, x))
        return to_x.addcmul_(to_y, _channels(scale, x)), None, None, None, None


def _channels(values: Tensor, x: Tensor) -> Tensor:
    """Return values per channel [ch], or per image and channel [..., ch], so that they spread over x [B, ch, H, W]."""
    return values.to(x.dtype).view(-1, x.shape[1], 1, 1)


class _Watched(nn.BatchNorm2d):
    """A BatchNorm layer in eval mode that takes the moments of its input while it normalises; see `watched`."""

    watched_moments: dict[str, tuple[Tensor, Tensor]]
    called: str
    group: Tensor
    alike: int
    scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [C * K, ch, H, W] by the running statistics."""
        y, mean, variance = _Normalised.apply(x, self.group, self.alike, self.scale, super().forward)
        self.watched_moments[self.called] = mean, variance
        return cast(Tensor, y)


def watchable(network: nn.Module) -> bool:
    """Return whether `watched` knows all BatchNorm layers of a network; libraries have some of their own."""
    return all(type(layer) is nn.BatchNorm2d and layer.running_mean is not None for layer in layers(network).values())


@contextmanager
def watched(network: nn.Module, weights: Tensor) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Yield a dict that after each forward pass holds `moments` of the input of every BatchNorm layer, as first used.

    No hooks: the layers stay the objects that they are, only their class is another for a while. Nothing flows back to their
    parameters.

    Args:
        network: in eval mode, `watchable`.
        weights: of the images, [C, K]; [1, B] for one group of all.

    Raises:
        ValueError: the network is not watchable.
    """
    if not watchable(network):
        raise ValueError("a library's own BatchNorm layers can't be watched")
    watched_moments: dict[str, tuple[Tensor, Tensor]] = {}
    alike = weights.shape[1] if bool((weights == weights[:, :1]).all()) else 1
    watched_layers = layers(network)
    for name, layer in watched_layers.items():
        scale = (cast(Tensor, layer.running_var) + layer.eps).rsqrt()
        scale = scale if layer.weight is None else scale * layer.weight.detach()
        layer.__class__ = _Watched
        vars(layer).update(watched_moments=watched_moments, called=name, group=weights, alike=alike, scale=scale)
    try:
        yield watched_moments
    finally:
        for layer in watched_layers.values():
            layer.__class__ = nn.BatchNorm2d
            for name in _Watched.__annotations__:
                vars(layer).pop(name, None)
