r"""Starts for few atoms: random swaps [1] on a summary of some hundred weighted points, then Lloyd steps on all points.

The summary is one Lloyd step from M points drawn as by k-means|| [2]: M means with the masses of their cells. On it, each of T
rounds tries R swaps: an atom that would be missed little is taken away, and a point becomes an atom with odds proportional to
its mass times its squared distance to the nearest atom. Each swap is judged by its cost after some Lloyd steps, and the
cheapest is kept if it is cheaper than what was there. The summary is so small that NumPy on the CPU is faster than all else.

Legend: C measures, R swaps, K atoms, D dimensions, N points, M of the summary.

References:
    [1] Fränti: Efficiency of random swap clustering, Journal of Big Data 5:13, 2018.
    [2] Bahmani et al.: Scalable K-Means++, VLDB 2012, Algorithm 2.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wmdd.transport.cells import Measures
from wmdd.transport.seeding import distances_of_points, sample
from wmdd.transport.span import root

SUMMARY = 160  # M
TOGETHER = 40  # of them are drawn together
SWAPS = 16  # R
ROUNDS = 20  # T
STEPS = 3  # of Lloyd after a swap
PATIENCE = 2  # rounds without a gain, after which it is over
GAIN = 1e-6  # share of the cost that a swap must save


@dataclass(frozen=True)
class Summary:
    """Weighted points: rows [M, D + 2] of x, ||x||^2 and 1, and masses [M]."""

    rows: np.ndarray
    mass: np.ndarray

    @classmethod
    def of(cls, points: Tensor, mass: Tensor) -> "Summary":
        """Take points [M, D]; more dimensions than points become M, with the distances kept (`wmdd.transport.span`)."""
        m, d = points.shape
        if d > m:
            wide = points.double()
            points = root((wide @ wide.T).cpu(), torch.finfo(points.dtype).eps).to(points.dtype)
        x = points.cpu().numpy()
        return cls(
            np.concatenate([x, np.square(x).sum(1, keepdims=True), np.ones_like(x[:, :1])], 1), mass.cpu().numpy()
        )

    @property
    def points(self) -> np.ndarray:
        """The points x, [M, D]."""
        return self.rows[:, :-2]

    def distances(self, atoms: np.ndarray) -> np.ndarray:
        """Return ||b_k - x_i||^2, [..., K, M], of atoms [..., K, D]."""
        square = np.square(atoms).sum(-1, keepdims=True)
        left = np.concatenate([-2 * atoms, np.ones_like(square), square], -1)
        return (left.reshape(-1, left.shape[-1]) @ self.rows.T).reshape(*atoms.shape[:-1], -1)

    def cells(self, atoms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the mass that each atom has of each point, [R, K, M], and the cost [R]; atoms as near as each other share."""
        distance = self.distances(atoms)
        near = distance.min(1)
        member = (distance == near[:, None]).astype(near.dtype)
        member *= (self.mass / member.sum(1))[:, None]
        return member, near @ self.mass

    def settle(self, atoms: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the atoms [R, K, D] after some Lloyd steps, and their cost [R]."""
        for _ in range(steps):
            member, _ = self.cells(atoms)
            sums = (member.reshape(-1, len(self.mass)) @ self.rows).reshape(*atoms.shape[:-1], -1)
            mass = sums[..., -1:]
            atoms = np.where(mass > 0, sums[..., :-2] / np.where(mass > 0, mass, 1), atoms)
        return atoms, self.cells(atoms)[1]

    def drawn(self, odds: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Return indices of points drawn with the given odds [M]."""
        total = odds.cumsum(dtype=np.float64)
        return np.minimum(np.searchsorted(total, uniform * total[-1], side="right"), len(odds) - 1)

    def start(self, k: int, uniform: np.ndarray) -> np.ndarray:
        """Return atoms [K, D] by greedy k-means++."""
        distance = np.maximum(self.distances(self.points), 0)
        chosen = self.drawn(self.mass, uniform[:1, 0]).tolist()
        near = distance[chosen[0]]
        for tries in uniform[1:k]:
            candidates = self.drawn(self.mass * near, tries)
            reduced = np.minimum(distance[candidates], near)
            best = int((reduced @ self.mass).argmin())
            chosen.append(candidates[best])
            near = reduced[best]
        return self.points[chosen]

    def swap(self, atoms: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Return R copies of atoms [K, D], each with another one moved to a point, by draws [2, R]."""
        r = uniform.shape[1]
        distance = np.maximum(self.distances(atoms), 0)
        near, second = np.partition(distance, 1, 0)[:2]
        missed = (distance == near) @ (self.mass * (second - near))
        away = missed.argsort(kind="stable")[(np.square(uniform[0]) * len(atoms)).astype(int)]
        tried = np.repeat(atoms[None], r, 0)
        tried[np.arange(r), away] = self.points[self.drawn(self.mass * near, (np.arange(r) + uniform[1]) / r)]
        return tried


def swapped(measures: Measures, k: int, generators: list[torch.Generator]) -> Tensor:
    """Return atoms [C, 1, K, D] after swaps.

    Args:
        measures: C of them.
        k: atoms, at most the points of the smallest measure.
        generators: one a measure, on the CPU, so that a draw depends neither on the batch nor on the device.
    """
    draws = torch.stack([torch.rand(1 + SUMMARY, generator=generator, dtype=torch.float64) for generator in generators])
    points, mass = summarise(measures, draws.to(measures.x.device))
    shares = [_searched(Summary.of(x, m), k, g) for x, m, g in zip(points, mass, generators, strict=True)]
    sums = torch.bmm(torch.stack(shares).to(points), torch.cat([points, torch.ones_like(points[..., :1])], 2))
    return torch.where(sums[..., -1:] > 0, sums[..., :-1] / sums[..., -1:], points[:, :k])[:, None]


def _searched(summary: Summary, k: int, generator: torch.Generator) -> Tensor:
    """Return the masses [K, M] that atoms have of a summary after the swaps."""
    tries = 2 + int(math.log(k))
    draws = torch.rand(k * tries + 2 * ROUNDS * SWAPS, generator=generator, dtype=torch.float64).numpy()
    atoms, cost = summary.settle(summary.start(k, draws[: k * tries].reshape(k, tries))[None], 1)
    fails = 0
    for uniform in draws[k * tries :].reshape(ROUNDS, 2, SWAPS) if k > 1 else ():
        tried, costs = summary.settle(summary.swap(atoms[0], uniform), STEPS)
        best = int(costs.argmin())
        fails += 1
        if costs[best] < cost[0] * (1 - GAIN):
            atoms, cost, fails = tried[best : best + 1], costs[best : best + 1], 0
        if fails == PATIENCE:
            break
    return torch.from_numpy(summary.cells(atoms)[0][0])


def summarise(measures: Measures, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Return M means [C, M, D] and their masses [C, M] by draws [C, 1 + M]; M points or fewer are their own summary."""
    rows = (draws[:, None, :1] * measures.count[:, None, None]).long()
    near = distances_of_points(measures, rows)[:, :, 0]
    for part in draws[:, 1:-1].split(TOGETHER, 1):
        new = sample(near, part[:, None])
        near = torch.minimum(near, distances_of_points(measures, new).amin(2))
        rows = torch.cat([rows, new], 2)
    own = torch.arange(rows.shape[2], device=rows.device).minimum(measures.count[:, None] - 1)
    rows = torch.where(measures.count[:, None] <= rows.shape[2], own, rows[:, 0])
    atoms = measures.points.gather(1, rows[..., None].expand(-1, -1, measures.points.shape[2]))
    sums = torch.bmm(_cells(measures, atoms[:, None])[0][:, 0], measures.x)
    return torch.where(sums[..., -1:] > 0, sums[..., :-2] / sums[..., -1:], atoms), sums[..., -1]


def _cells(measures: Measures, atoms: Tensor) -> tuple[Tensor, Tensor]:
    """Return each atom's share of each point, [C, R, K, N], and the cost [C, R]; all is 0 for padding, as its rows of x are."""
    distance = measures.distances(atoms)
    near = distance.amin(2, keepdim=True)
    member = torch.sub(near, distance, out=distance).sign_().add_(1)  # 1 where the distance is the least, else 0
    return member.div_(member.sum(2, keepdim=True)), near.sum((2, 3), dtype=torch.float64)


def lloyd(measures: Measures, atoms: Tensor, steps: int, tolerance: float) -> tuple[Tensor, list[Tensor]]:
    """Make Lloyd steps from atoms [C, 1, K, D] until a step saves no more than `tolerance` of the cost.

    Returns:
        The label of each point, [C, 1, N], and the costs [C, 1] before each step, NaN where a measure is done.
    """
    last = torch.full_like(measures.total[:, None], torch.inf)
    running, trace = torch.ones_like(last, dtype=torch.bool), list[Tensor]()
    for _ in range(steps):
        member, cost = _cells(measures, atoms)
        trace.append(cost.where(running, torch.nan))
        running = running & (last - cost > tolerance * cost)
        if not bool(running.any()):
            break
        last = cost
        sums = torch.bmm(member[:, 0], measures.x)[:, None]
        moving = running[..., None, None] & (sums[..., -1:] > 0)
        atoms = torch.where(moving, sums[..., :-2] / sums[..., -1:], atoms)
    return measures.distances(atoms).min(2).indices, trace
