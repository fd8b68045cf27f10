r"""The loss of recover: features at the barycenter's atoms, BatchNorm statistics of the class, and the class itself.

For the classes c of a batch, with K images x_cj and weights w_cj each, with f the network before and h with its last layer,

    L = \sum_c [ alpha \sum_j w_cj ||f(x_cj) - b_cj||^2                                                feature, WMDD Eq. 5
               + lambda \sum_l g_l ( ||mu_l(X_c) - mu_lc|| + ||sigma^2_l(X_c) - sigma^2_lc|| )          batchnorm, Eq. 6, 7
               + beta / K \sum_j CE(h(x_cj), c) ]                                                       cross_entropy

where mu_l(X_c) and sigma^2_l(X_c) are the w-weighted mean and variance of the input of BatchNorm layer l. In the settings alpha
is `feature_weight`, lambda `regularisation`, beta `cross_entropy`, g_1 `first_layer_weight` and any other g_l 1.

WMDD writes Eq. 5 without w (`feature_loss: squared`), so that the same lambda counts K times less for each image. The terms are
sums over classes, so the gradient of an image does not depend on the other classes of its batch or block. Two published
variants do not separate (`RecoverSettings.coupled`): with `statistics: global` (SRe2L) the moments are those of the whole
batch against the teacher's running statistics, and with `feature_loss: norm` (WMDD's released code) Eq. 5 is the norm of
the whole batch's residual. For these the batch is part of the method, and a block is cut to fit it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from wmdd.networks.batchnorm import Statistics, inputs_of, moments, watchable, watched
from wmdd.networks.engine import Engine
from wmdd.networks.models import Network

if TYPE_CHECKING:
    from wmdd.settings.recover import RecoverSettings

Moments = dict[str, tuple[Tensor, Tensor]]  # mean and variance [C, ch] of the input of each BatchNorm layer


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


def loss_weights(settings: "RecoverSettings") -> dict[str, float]:
    """Return alpha, beta and lambda by the names of their terms, in the order of `loss_terms`; those that are above 0."""
    weights = {
        "feature": settings.feature_weight,
        "cross_entropy": settings.cross_entropy,
        "batchnorm": settings.regularisation,
    }
    return {name: weight for name, weight in weights.items() if weight > 0}


def loss_terms(
    network: Network,
    images: Tensor,
    target: Target,
    settings: "RecoverSettings",
    last_moments: Callable[[], Moments],
) -> dict[str, Tensor]:
    """Return the weighted terms of L for images [C * K, 3, R, R], each summed over the classes.

    `last_moments` gives the moments of the BatchNorm layers' inputs in the last forward pass (see `observed`).
    """
    classes, k = target.weights.shape
    weights = loss_weights(settings)
    embedded = network.embed(images)
    terms: dict[str, Tensor] = {}
    if (alpha := weights.get("feature")) and target.atoms is not None:
        terms["feature"] = _feature_term(alpha, embedded.to(target.atoms.dtype), target, settings.feature_loss)
    if beta := weights.get("cross_entropy"):
        logits = network.head(embedded).to(target.weights.dtype)
        labels = target.labels.repeat_interleave(k)
        terms["cross_entropy"] = beta * F.cross_entropy(logits, labels, reduction="sum") / k
    if lambda_ := weights.get(
        "batchnorm"
    ):  # C times the mean: the sum over classes, or a batch's one value on that scale
        terms["batchnorm"] = lambda_ * classes * statistics_loss(last_moments(), target, settings).mean()
    return terms


def _feature_term(alpha: float, embedded: Tensor, target: Target, how: str) -> Tensor:
    """Return alpha times Eq. 5 of features [C * K, D]: weighted by w, not weighted, or the norm of all residuals."""
    assert target.atoms is not None
    residual = embedded - target.atoms.flatten(0, 1)
    if how == "mean":
        return alpha * (target.weights.flatten() * residual.square().sum(1)).sum()
    return alpha * residual.square().sum() if how == "squared" else alpha * len(target.weights) * residual.norm()


def statistics_loss(batch_moments: Moments, target: Target, settings: "RecoverSettings") -> Tensor:
    """Return the BatchNorm term of each class, [C], or of the whole batch, [1] (Eq. 6, 7), without lambda."""
    total = torch.zeros(1, device=target.weights.device)
    for index, (layer, (mean, variance)) in enumerate(batch_moments.items()):
        gain = settings.first_layer_weight if index == 0 else 1.0  # g_l
        off_mean = torch.linalg.vector_norm(mean - target.statistics.mean[layer], dim=1)
        off_variance = torch.linalg.vector_norm(variance - target.statistics.variance[layer], dim=1)
        total = total + gain * (off_mean + off_variance)
    return total


@contextmanager
def observed(
    network: Network, target: Target, settings: "RecoverSettings", engine: Engine
) -> Iterator[Callable[[], Moments]]:
    """Yield a function that gives the moments of the BatchNorm inputs in the last pass, of each class or (global) of all.

    In one pass with the normalisation itself, or by a hook a layer for the reference and for a library's own layers.
    """
    weights = target.weights
    if settings.statistics == "global":
        weights = torch.full_like(weights.view(1, -1), 1 / weights.numel())
    if engine.fast and watchable(network):
        with watched(network, weights) as last_moments:
            yield lambda: last_moments
    else:
        with inputs_of(network) as inputs:
            yield lambda: {layer: moments(x, weights, weights.dtype) for layer, x in inputs.items()}
