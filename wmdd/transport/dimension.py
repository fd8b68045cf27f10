r"""How many dimensions points fill, and at what rate more atoms lower their cost.

Measures of intrinsic dimension d are quantized by K atoms at W2^2 ~ K^(-2/d) (Zador's theorem, [1] Theorem 6.2), however many
coordinates D the points are written in. `intrinsic_dimension` looks at the distances r_1 <= r_2 <= ... from a point to its
neighbours, `decay` at the costs of several K.

- TwoNN [2]: where the density is constant up to the second neighbour, mu = r_2 / r_1 has the distribution 1 - mu^(-d). As [2]
  does, the tenth of the points with the largest mu is discarded, where the density varies most. They are censored rather than
  left out: with mu_(1) <= ... <= mu_(n) and m = floor(0.9 n),

      d = (m - 1) / (\sum_{i <= m} log mu_(i) + (n - m) log mu_(m)),

  the maximum-likelihood estimate times (m - 1) / m, by which it has no bias for independent mu. [2] fits a line instead, whose
  slope hangs on the largest mu kept.
- Maximum likelihood [3] over k neighbours, the estimates of the points averaged as inverses [4], which is the maximum
  likelihood of one d for all:

      1/d = 1/n \sum_i 1/(k - 1) \sum_{j < k} log(r_k(x_i) / r_j(x_i)).

References:
    [1] Graf, Luschgy: Foundations of Quantization for Probability Distributions, Springer 2000.
    [2] Facco, d'Errico, Rodriguez, Laio: Estimating the intrinsic dimension of datasets by a minimal neighborhood information,
        Scientific Reports 7, 2017.
    [3] Levina, Bickel: Maximum Likelihood Estimation of Intrinsic Dimension, NIPS 2004, Eq. 8.
    [4] MacKay, Ghahramani: Comments on "Maximum Likelihood Estimation of Intrinsic Dimension", 2005.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from wmdd.base.errors import WmddError
from wmdd.transport.measure import BLOCK, Points, as_points

KEPT = 0.9  # share of the points whose mu is not censored
LEVEL = 1e-12  # 1/d that counts as 0
SAME = 1e-13  # of the squared distances to the mean: what the rounding of a squared distance may be


def intrinsic_dimension(
    points: Points,
    method: str = "twonn",
    neighbours: int = 20,
    most: int = 2000,
    generator: torch.Generator | None = None,
) -> float:
    """Return the intrinsic dimension of points, from their distances to each other.

    Points that coincide count once. With D = 16,384, 2,000 points take some seconds on one core. Memory: a few arrays of
    `most`^2 float64.

    Args:
        points: [N, D], tensor or array of any type.
        method: `twonn` or `mle`.
        neighbours: k of `mle`, at least 2; fewer where there are no more points.
        most: points that are looked at, drawn at random where there are more.
        generator: of that draw, on the CPU; without one always the same.

    Returns:
        d; NaN for fewer than 3 distinct points; infinite where each point is as far from all its neighbours.

    Raises:
        WmddError: there are no points, some are not numbers, or an argument is out of bounds.
    """
    if method not in ("twonn", "mle"):
        raise WmddError(f"the method is 'twonn' or 'mle', not {method!r}")
    if neighbours < 2 or most < 3:
        raise WmddError(f"neighbours must be at least 2 and most at least 3, got {neighbours} and {most}")
    x = as_points(points).detach()
    if len(x) > most:
        draws = generator or torch.Generator().manual_seed(0)
        x = x[torch.randperm(len(x), generator=draws)[:most].to(x.device)]
    squared = _distinct(x)
    if len(squared) < 3:
        return math.nan
    k = 2 if method == "twonn" else min(neighbours, len(squared) - 1)
    near = squared.fill_diagonal_(torch.inf).topk(k, largest=False).values.log() / 2  # log r_1 to log r_k
    inverse = _twonn(near[:, 1] - near[:, 0]) if method == "twonn" else float((near[:, -1:] - near[:, :-1]).mean())
    return 1 / inverse if inverse > 0 else math.inf


def _distinct(x: Tensor) -> Tensor:
    """Return the squared distances [n, n] of the points that coincide with none before them, up to rounding, in float64."""
    product = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    for part in x.split(max(1, BLOCK // len(x)), 1):
        part = part.double()
        part = part - part.mean(0)
        product.addmm_(part, part.T)
    norms = product.diagonal().clone()
    squared = product.mul_(-2).add_(norms).add_(norms[:, None])
    kept = ~(squared <= SAME * (norms + norms[:, None])).tril_(-1).any(1)
    return squared if bool(kept.all()) else squared[kept][:, kept]


def _twonn(ratios: Tensor) -> float:
    """Return 1/d from log mu [n], the largest tenth censored."""
    n = len(ratios)
    m = int(KEPT * n)
    least = ratios.sort().values[:m]
    return float(least.sum() + (n - m) * least[-1]) / (m - 1)


@dataclass(frozen=True)
class Decay:
    """The fit W2 = scale K^(-1/d).

    Attributes:
        dimension: d; infinite where more atoms do not lower the cost, NaN for fewer than 2 different K.
        error: standard error of d; NaN for fewer than 3 costs.
        scale: of the fit, W2 of one atom.
    """

    dimension: float
    error: float
    scale: float


def decay(costs: Mapping[int, float] | Iterable[tuple[int, float]]) -> Decay:
    """Return the rate at which costs fall, from the least-squares line log W2 = log(scale) - 1/d log K.

    Args:
        costs: W2^2 by K, or pairs (K, W2^2), of which several may have the same K. Costs of 0, which no such line meets, are
            left out.

    >>> round(decay({1: 1 / 12, 2: 1 / 48, 4: 1 / 192}).dimension, 6)  # a segment: 1 / (12 K^2)
    1.0
    """
    pairs = [(k, cost) for k, cost in (costs.items() if isinstance(costs, Mapping) else costs) if cost > 0]
    if len({k for k, _ in pairs}) < 2:
        return Decay(math.nan, math.nan, math.nan)
    x, y = (torch.tensor(part, dtype=torch.float64).log() for part in zip(*pairs, strict=True))
    y = y / 2
    off = x - x.mean()
    spread = off.square().sum()
    rate = float(off @ (y.mean() - y) / spread)
    rest = y - y.mean() + rate * off
    free = len(pairs) - 2
    error = float((rest.square().sum() / free / spread).sqrt()) if free > 0 else math.nan
    scale = float((y.mean() + rate * x.mean()).exp())
    return Decay(1 / rate, error / rate**2, scale) if rate > LEVEL else Decay(math.inf, math.nan, scale)
