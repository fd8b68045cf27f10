"""Starts for quantization: greedy k-means++, for all measures of a batch and several seeds at once.

References:
    [1] Arthur, Vassilvitskii: k-means++: The Advantages of Careful Seeding, SODA 2007 (Section 2.2; the greedy variant is
        named in its Section 6).
    [2] Bahmani et al.: Scalable K-Means++, VLDB 2012 (several candidates a round).
"""

import math

import torch
from torch import Tensor

from wmdd.transport.cells import Measures

PER_ROUND = 25  # rounds in which the atoms are drawn, about; below this many atoms each has a round of its own


def greedy(measures: Measures, k: int, replicas: int, generators: list[torch.Generator]) -> Tensor:
    """Draw k atoms for each measure and replica by greedy k-means++ and return the label of each point, [C, R, N].

    Every round draws 2 + log k candidates an atom with odds proportional to the squared distance to the nearest atom ([1]),
    and takes those that lower the cost most, one after the other. More than 25 atoms are drawn several a round, as in [2],
    which saves passes over the points; only the odds are then a little old.

    Args:
        measures: C of them.
        k: atoms, at most the points of the smallest measure.
        replicas: R, independent starts.
        generators: one a measure, on the CPU, so that a draw depends neither on the batch nor on the device.
    """
    c, n = measures.real.shape
    device = measures.x.device
    together = max(1, round(k / PER_ROUND))
    tries = (2 + int(math.log(k))) * together
    draws = torch.stack(
        [torch.rand(replicas, 1 + tries * -(-k // together), generator=g, dtype=torch.float64) for g in generators]
    )
    draws = draws.to(device)
    first = (draws[..., :1] * measures.count[:, None, None]).long()
    near = distances_of_points(measures, first)[:, :, 0]
    label = torch.zeros(c, replicas, n, dtype=torch.long, device=device)
    drawn, used = 1, 1
    while drawn < k:
        candidates = sample(near, draws[..., used : used + tries])
        used += tries
        distance = distances_of_points(measures, candidates)
        for _ in range(min(together, k - drawn)):
            cost = torch.minimum(distance, near[:, :, None]).sum(3)
            best = cost.argmin(2)[..., None, None].expand(c, replicas, 1, n)
            chosen = distance.gather(2, best)[:, :, 0]
            label.masked_fill_(chosen < near, drawn)
            near = torch.minimum(chosen, near)
            drawn += 1
    return label


def distances_of_points(measures: Measures, rows: Tensor) -> Tensor:
    """Return the squared distances [C, R, M, N] of the points `rows` [C, R, M] to all; 0 on padding."""
    c, r, m = rows.shape
    at = rows.view(c, r * m, 1).expand(-1, -1, measures.points.shape[2])
    chosen = measures.points.gather(1, at).view(c, r, m, -1)
    return measures.distances(chosen).clamp_(min=0).mul_(measures.real[:, None, None])


def sample(odds: Tensor, draws: Tensor) -> Tensor:
    """Return indices [C, R, M] drawn with the given odds [C, R, N] by inverting their sums at draws in [0, 1)."""
    sums = odds.double().cumsum(2)
    return torch.searchsorted(sums, draws * sums[..., -1:], right=True).clamp_(max=odds.shape[2] - 1)
