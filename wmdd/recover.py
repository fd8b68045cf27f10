r"""Recover: images whose features are the barycenter's atoms, under BatchNorm statistics of the class (WMDD, Eq. 5-7).

For the classes c of a block, with K images x_cj and weights w_cj each,

    L = \sum_c [ alpha \sum_j ||f(x_cj) - b_cj||^2                                   (Eq. 5)
               + lambda \sum_l g_l ( ||mu_l(X_c) - mu_lc|| + ||sigma^2_l(X_c) - sigma^2_lc|| )   (Eq. 6, 7)
               + beta / K \sum_j CE(h(x_cj), c) ]

where mu_l(X_c) and sigma^2_l(X_c) are the w-weighted mean and variance of the input of BatchNorm layer l. The terms are
sums over classes, so the gradient of an image does not depend on the other classes of its batch or block. Two published
variants do not separate (`RecoverSettings.coupled`): with `statistics: global` (SRe2L) the moments are those of the whole
batch against the teacher's running statistics, and with `feature_loss: norm` (WMDD's released code) Eq. 5 is the norm of
the whole batch's residual. For these the batch is part of the method, and a block is cut to fit it.

Every iteration sees one random view (crop, flip, cyclic shift) of all images, drawn for (seed, iteration).
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wmdd import augment
from wmdd.batchnorm import Statistics, inputs_of, layers, moments, running
from wmdd.errors import WmddError
from wmdd.models import Network
from wmdd.rng import generator
from wmdd.training import Context

if TYPE_CHECKING:
    from wmdd.settings import RecoverSettings


@dataclass(frozen=True)
class Target:
    """What the images of a block are to match: labels [C], atoms [C, K, D] (or None), weights [C, K], statistics.

    The statistics are those of each class, [C, ch] a layer, or (`shared`) of all data, [1, ch].
    """

    labels: Tensor
    atoms: Tensor | None
    weights: Tensor
    statistics: Statistics
    shared: bool = False

    def part(self, classes: slice, images: slice) -> "Target":
        """Return the target of some classes and images."""
        atoms = None if self.atoms is None else self.atoms[classes, images]
        weights = self.weights[classes, images].clamp(min=1e-12)  # an empty cell's image may be alone in a batch
        statistics = self.statistics if self.shared else self.statistics.of(torch.arange(len(self.labels))[classes])
        return replace(
            self,
            labels=self.labels[classes],
            atoms=atoms,
            weights=weights / weights.sum(1, keepdim=True),
            statistics=statistics,
        )

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> "Target":
        """Return a copy elsewhere."""
        atoms = None if self.atoms is None else self.atoms.to(device, dtype)
        weights, statistics = self.weights.to(device, dtype), self.statistics.to(device, dtype)
        return replace(self, labels=self.labels.to(device), atoms=atoms, weights=weights, statistics=statistics)


def noise(labels: Tensor, k: int, resolution: int, seed: int) -> Tensor:
    """Return standard normal start images [C, K, 3, R, R], drawn for (seed, class)."""
    shape = (k, 3, resolution, resolution)
    return torch.stack([torch.randn(shape, generator=generator("recover", "noise", seed, int(c))) for c in labels])


def view(images: Tensor, settings: "RecoverSettings", seed: int, iteration: int) -> Tensor:
    """Return the random view of images [B, 3, R, R] that belongs to an iteration; the same for every image."""
    draws = generator("recover", "view", seed, iteration)
    side = images.shape[-1]
    box = augment.resized_crop(draws, 1, settings.crop_scale)[0]
    flip = bool(torch.rand((), generator=draws) < 0.5) and settings.flip
    shift = torch.randint(-settings.jitter, settings.jitter + 1, (2,), generator=draws).tolist()
    if settings.crop_scale[0] < 1:
        top, left, height, width = (int(v) for v in (box * side).round().tolist())
        top, left = min(top, side - 1), min(left, side - 1)
        cut = images[..., top : top + max(height, 1), left : left + max(width, 1)]
        images = F.interpolate(cut, (side, side), mode="bilinear", align_corners=False)
    images = images.flip(-1) if flip else images
    return images.roll(shift, (2, 3)) if any(shift) else images


def statistics_loss(seen: dict[str, Tensor], target: Target, settings: "RecoverSettings") -> Tensor:
    """Return the BatchNorm term of each class, [C], or of the whole batch, [1] (Eq. 6)."""
    weights = target.weights if settings.statistics == "per-class" else None
    total: Tensor | None = None
    for index, (name, x) in enumerate(seen.items()):
        mean, variance = moments(x, weights, target.weights.dtype)
        gain = settings.first_layer_weight if index == 0 else 1.0
        off_mean = torch.linalg.vector_norm(mean - target.statistics.mean[name], dim=1)
        off_variance = torch.linalg.vector_norm(variance - target.statistics.variance[name], dim=1)
        term = gain * (off_mean + off_variance)
        total = term if total is None else total + term
    if total is None:
        return torch.zeros(1, device=target.weights.device)
    return total


def loss_terms(
    network: Network, images: Tensor, target: Target, settings: "RecoverSettings", seen: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the weighted terms of L for images [C * K, 3, R, R], each summed over the classes.

    `seen` is filled by the forward pass (see `wmdd.batchnorm.inputs_of`).
    """
    classes, k = target.weights.shape
    embedded = network.embed(images)
    terms: dict[str, Tensor] = {}
    if settings.feature_weight > 0 and target.atoms is not None:
        residual = embedded.to(target.atoms.dtype) - target.atoms.flatten(0, 1)
        squared = settings.feature_loss == "squared"
        terms["feature"] = settings.feature_weight * (residual.square().sum() if squared else classes * residual.norm())
    if settings.cross_entropy > 0:
        logits = network.head(embedded).to(target.weights.dtype)
        loss = F.cross_entropy(logits, target.labels.repeat_interleave(k), reduction="sum") / k
        terms["cross_entropy"] = settings.cross_entropy * loss
    if settings.regularisation > 0:
        terms["batchnorm"] = settings.regularisation * classes * statistics_loss(seen, target, settings).mean()
    return terms


def batches(classes: int, k: int, settings: "RecoverSettings") -> list[tuple[slice, slice]]:
    """Return the batches of a block as (classes, images of each class).

    Whole classes, as many as fit into `batch_size`; or, for a coupled loss with `composition: across`, as few images as
    make up `batch_size` of every class of the block, whose classes `Experiment.blocks` limits to `batch_size`.
    """
    if settings.coupled and settings.composition == "across":
        size = max(1, settings.batch_size // classes)
        return [(slice(0, classes), slice(j, min(j + size, k))) for j in range(0, k, size)]
    size = max(1, settings.batch_size // k)
    return [(slice(a, min(a + size, classes)), slice(0, k)) for a in range(0, classes, size)]


def recover(
    network: Network,
    labels: Tensor,
    atoms: Tensor | None,
    weights: Tensor,
    statistics: Statistics,
    resolution: int,
    mean: list[float],
    std: list[float],
    settings: "RecoverSettings",
    seed: int,
    context: Context,
) -> Tensor:
    """Return the images of a block of classes, [C, K, 3, R, R] uint8.

    Args:
        network: the teacher.
        labels: [C], the classes of the block.
        atoms: [C, K, D], or None where no term needs them.
        weights: [C, K], each row sums to 1.
        statistics: per class of the block, [C, ch] by layer; not used with `statistics: global`.
        resolution: R.
        mean: per channel, of the normalisation.
        std: per channel.
        settings: the loss and its optimisation.
        seed: of the distillation.
        context: engine, checkpoints, log, progress.

    Raises:
        WmddError: a term of the loss has nothing to match, there is no term, or the loss is not a number.
    """
    _check(network, atoms, settings)
    network.eval().requires_grad_(False)
    context.engine.place(network)
    shared = settings.statistics == "global"
    target = Target(labels, atoms, weights, running(network) if shared else statistics, shared)
    images = noise(labels, weights.shape[1], resolution, seed)
    count, k = weights.shape
    parts = batches(count, k, settings)
    state = context.keeper.load() or {"part": 0, "images": images}
    images = state["images"]
    for part, (classes, members) in list(enumerate(parts))[state["part"] :]:
        inner = state.get("optimizer") if part == state["part"] else None
        start = images[classes, members]
        shape = start.shape
        result = _optimise(
            network, start.flatten(0, 1), target.part(classes, members), mean, std, settings, seed, context,
            f"batch {part + 1} of {len(parts)}", inner, lambda s, p=part: {"part": p, "images": images, "optimizer": s},
        )  # fmt: skip
        images[classes, members] = result.view(shape)
    return to_pixels(images, mean, std)


def _check(network: Network, atoms: Tensor | None, settings: "RecoverSettings") -> None:
    """Refuse a loss whose terms would silently be left out."""
    if settings.feature_weight > 0 and atoms is None:
        raise WmddError(
            "recover with feature_weight above 0 needs a barycenter; give --barycenter or set feature_weight: 0"
        )
    if settings.regularisation > 0 and not layers(network):
        raise WmddError("the teacher has no BatchNorm layers to match; set regularisation: 0 or choose another teacher")
    if not settings.feature_weight and not settings.regularisation and not settings.cross_entropy:
        raise WmddError("recover has no loss: set feature_weight, regularisation or cross_entropy above 0")


def _optimise(
    network: Network,
    start: Tensor,
    target: Target,
    mean: list[float],
    std: list[float],
    settings: "RecoverSettings",
    seed: int,
    context: Context,
    what: str,
    resumed: dict[str, Any] | None,
    wrap: Any,
) -> Tensor:
    """Run Adam on one batch of normalised images [B, 3, R, R] and return them."""
    device = context.engine.device
    target = target.to(device)
    low, high = (_bound(v, mean, std, device) for v in (0.0, 1.0))
    x = (resumed["x"] if resumed else start).to(device, copy=True).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=settings.lr, betas=settings.betas)
    first = 0
    if resumed:
        optimizer.load_state_dict(resumed["adam"])
        first = int(resumed["iteration"])
    every = max(1, settings.iterations // 100)
    with inputs_of(network) as seen:
        for i in context.progress(range(first, settings.iterations), what, settings.iterations, first):
            optimizer.param_groups[0]["lr"] = settings.lr * 0.5 * (1 + math.cos(math.pi * i / settings.iterations))
            with context.engine.autocast():
                terms = loss_terms(network, view(x, settings, seed, i), target, settings, seen)
            loss = torch.stack(list(terms.values())).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                torch.minimum(torch.maximum(x, low, out=x), high, out=x)
            if i % every == 0 or i + 1 == settings.iterations:
                context.log({"loss": (value := loss.item())} | {k: v.item() for k, v in terms.items()}, i)
                if not math.isfinite(value):
                    raise WmddError(
                        f"the loss is not a number at iteration {i}; lower lr ({settings.lr}) or use precision fp32"
                    )
            if context.keeper.due():
                inner = {"x": x.detach().cpu(), "adam": optimizer.state_dict(), "iteration": i + 1}
                context.keeper.save(wrap(inner))
    return x.detach().cpu()


def _bound(value: float, mean: list[float], std: list[float], device: torch.device) -> Tensor:
    return ((value - torch.tensor(mean)) / torch.tensor(std)).view(3, 1, 1).to(device)


def to_pixels(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """Return uint8 images of normalised ones [..., 3, R, R], rounded; stored as they are (the released code saves JPEG)."""
    pixels = images * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8)
