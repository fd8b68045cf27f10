"""The published loops of recover, written plainly and run eagerly in float32: what ours is compared with.

- `wmdd`: WMDD's released code (Liu et al., ICCV 2025). A forward hook on each BatchNorm layer takes the moments of all classes
  at once, from the batch seen as [C, K, ch, H, W]. The loss is cross-entropy, plus |f(x) - b| of the whole batch, plus lambda
  times |mu_lc(x) - mu_lc| + |sigma^2_lc(x) - sigma^2_lc|, averaged over the classes and summed over the layers. A later
  revision of that code weights the images of a class in the hook (`weights`); its weights are float64, and so lift what the
  hook computes to float64.
- `sre2l`: SRe2L's (Yin et al., NeurIPS 2023). Hooks take the moments of the whole batch, against the running statistics. The
  loss is cross-entropy, plus those distances, plus two priors: total variation and norm of the images.

In both, Adam is torch's own loop over tensors, the rate a cosine, the view one for the batch and resized by torchvision. In
every iteration the loss is taken to the CPU, the images are copied while it is below a bound, and clamped channel by channel.

Nothing of this is the authors' text. Start images and views are those of `wmdd.stages.recover`, so that losses can be compared:
C times these losses are ours with `feature_loss: norm, cross_entropy: 1` and with `statistics: global`.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import functional as pixels

from wmdd.networks.batchnorm import Statistics, layers, running
from wmdd.networks.models import Network
from wmdd.stages.recover import noise
from wmdd.stages.recover_views import View, drawn

Progress = Callable[[Iterable[int]], Iterator[int]]  # wraps the iterations, may stop before the last one
TOTAL_VARIATION, NORM = 1e-4, 1e-5  # weights of SRe2L's priors
BOUND = 1e4  # images are copied in every iteration whose loss is below it


class ClassDistance:
    """WMDD's hook: how far the moments of each class of the batch are from those of its real images.

    Attributes:
        mean: of the layer's input, [C, ch].
        variance: [C, ch].
        weights: of the images of a class, [C, K] float64, or None for equal ones.
        value: the distance of the last pass, averaged over the classes.
    """

    def __init__(self, mean: Tensor, variance: Tensor, weights: Tensor | None) -> None:
        self.mean, self.variance, self.weights, self.value = mean, variance, weights, mean.new_zeros(())

    def __call__(self, _layer: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        """Take mean and biased variance over images and pixels."""
        x = inputs[0].view(len(self.mean), -1, *inputs[0].shape[1:])  # [C, K, ch, H, W]
        if self.weights is None:
            mean, variance = x.mean((1, 3, 4)), x.var((1, 3, 4), unbiased=False)
        else:
            share = self.weights[:, :, None, None, None]
            mean = (x * share).sum(1).mean((2, 3))
            variance = (share * (x - mean[:, None, :, None, None]) ** 2).sum(1).mean((2, 3))
        self.value = torch.norm(self.variance - variance, dim=1).mean() + torch.norm(self.mean - mean, dim=1).mean()


class BatchDistance:
    """SRe2L's hook: how far the moments of the whole batch are from the running statistics [ch] of the layer."""

    def __init__(self, mean: Tensor, variance: Tensor) -> None:
        self.mean, self.variance, self.value = mean, variance, mean.new_zeros(())

    def __call__(self, _layer: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        """Take the mean, and the biased variance from a copy that has the channels first."""
        x = inputs[0]
        variance = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
        self.value = torch.norm(self.variance - variance) + torch.norm(self.mean - x.mean((0, 2, 3)))


@contextmanager
def hooked(network: Network, hooks: list[Any]) -> Iterator[None]:
    """Have one hook called by each BatchNorm layer."""
    handles = [layer.register_forward_hook(hook) for layer, hook in zip(layers(network).values(), hooks, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def seen(images: Tensor, chosen: View) -> Tensor:
    """Return a view of images [B, 3, R, R], as torchvision makes it: crop, resizing, mirror image; and a cyclic shift."""
    side = images.shape[-1]
    if (chosen.height, chosen.width) != (side, side):
        images = pixels.resized_crop(images, *chosen[:4], [side, side])
    return torch.roll(pixels.hflip(images) if chosen.flip else images, (chosen.down, chosen.right), (2, 3))


def priors(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return SRe2L's two total variations, of mean absolute and of squared differences of neighbours in four directions."""
    differences = [
        images[:, :, :, :-1] - images[:, :, :, 1:],
        images[:, :, :-1] - images[:, :, 1:],
        images[:, :, 1:, :-1] - images[:, :, :-1, 1:],
        images[:, :, :-1, :-1] - images[:, :, 1:, 1:],
    ]
    absolute = sum(((d.abs() / 255).mean() for d in differences), images.new_zeros(()))
    return absolute * 255, sum((torch.norm(d) for d in differences), images.new_zeros(()))


def wmdd(
    network: Network,
    labels: Tensor,
    atoms: Tensor,
    statistics: Statistics,
    resolution: int,
    mean: list[float],
    std: list[float],
    settings: Any,
    seed: int,
    device: torch.device,
    progress: Progress = iter,
    weights: Tensor | None = None,
) -> tuple[Tensor, list[float]]:
    """Return normalised images [C K, 3, R, R] and the loss of each iteration, by WMDD's loop.

    Args:
        network: the teacher; moved to the device.
        labels: [C].
        atoms: [C, K, D].
        statistics: per class, [C, ch] by layer.
        resolution: R.
        mean: per channel, of the normalisation.
        std: per channel.
        settings: of `wmdd.stages.recover`, of which the optimiser, the views and lambda count.
        seed: of the distillation.
        device: where to run.
        progress: wraps the iterations.
        weights: [C, K] float64, of the later revision; None for the code as it was first released.
    """
    statistics = statistics.to(device, torch.float32)
    hooks = [ClassDistance(statistics.mean[name], statistics.variance[name], weights) for name in layers(network)]
    targets, classes = atoms.flatten(0, 1).to(device), labels.repeat_interleave(atoms.shape[1]).to(device)

    def loss_of(images: Tensor) -> Tensor:
        features = network.embed(images)
        main = F.cross_entropy(network.head(features), classes) + torch.norm(features - targets)
        return main + settings.regularisation * _sum(hooks, settings)

    start = noise(labels, atoms.shape[1], resolution, seed).flatten(0, 1)
    with hooked(network, hooks):
        return _descend(network, start, loss_of, mean, std, settings, seed, device, progress)


def sre2l(
    network: Network,
    labels: Tensor,
    k: int,
    resolution: int,
    mean: list[float],
    std: list[float],
    settings: Any,
    seed: int,
    device: torch.device,
    progress: Progress = iter,
    with_priors: bool = True,
) -> tuple[Tensor, list[float]]:
    """Return the same by SRe2L's loop, k images of each class; its arguments are those of `wmdd`."""
    targets = running(network).to(device, torch.float32)
    hooks = [BatchDistance(targets.mean[name][0], targets.variance[name][0]) for name in layers(network)]
    classes = labels.repeat_interleave(k).to(device)

    def loss_of(images: Tensor) -> Tensor:
        loss = F.cross_entropy(network(images), classes) + settings.regularisation * _sum(hooks, settings)
        if not with_priors:
            return loss
        norm = torch.norm(images.reshape(len(images), -1), dim=1).mean()
        return loss + TOTAL_VARIATION * priors(images)[1] + NORM * norm

    start = noise(labels, k, resolution, seed).flatten(0, 1)
    with hooked(network, hooks):
        return _descend(network, start, loss_of, mean, std, settings, seed, device, progress)


def _sum(hooks: list[Any], settings: Any) -> Tensor:
    """Return the sum of the distances, the first one times `first_layer_weight`."""
    gains = [settings.first_layer_weight] + [1.0] * (len(hooks) - 1)
    return sum((gain * hook.value for gain, hook in zip(gains, hooks, strict=True)), torch.zeros(()))


def _descend(
    network: Network,
    start: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    mean: list[float],
    std: list[float],
    settings: Any,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> tuple[Tensor, list[float]]:
    """Run the iterations from normalised images [B, 3, R, R]."""
    network.eval().requires_grad_(False).to(device)
    x = start.to(device).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=settings.lr, betas=settings.betas)
    trace: list[float] = []
    for i in progress(range(settings.iterations)):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * 0.5 * (1 + math.cos(math.pi * i / settings.iterations))
        (chosen,) = drawn(settings, x.shape[-1], seed, i, torch.empty(0), 1).tolist()
        images = seen(x, View(*chosen))
        optimizer.zero_grad()
        loss = loss_of(images)
        loss.backward()
        optimizer.step()
        for channel, (m, s) in enumerate(zip(mean, std, strict=True)):
            x.data[:, channel] = torch.clamp(x.data[:, channel], -m / s, (1 - m) / s)
        trace.append(loss.item())
        if trace[-1] < BOUND:
            x.data.clone()
    return x.detach().cpu(), trace
