r"""Starts for few atoms: random swaps [1] on a summary of some hundred weighted points, for all measures of a batch at once.

The summary is one Lloyd step from M points drawn as by k-means|| [2]: M means with the masses of their cells. In it, T rounds
try R swaps each: an atom that would be missed little is taken away, and a point is made an atom with odds proportional to its
mass times its squared distance to the nearest atom. Each swap is judged by its cost after some Lloyd steps, and the cheapest
is kept if it is cheaper than what was there. The summary is small, so that all swaps of a round are one product.

Legend: C measures, R swaps, K atoms, D dimensions, N points, M of the summary.

References:
    [1] Fränti: Efficiency of random swap clustering, Journal of Big Data 5:13, 2018.
    [2] Bahmani et al.: Scalable K-Means++, VLDB 2012, Algorithm 2.
"""

from dataclasses import replace

import torch
from torch import Tensor

from wmdd.transport.cells import Measures
from wmdd.transport.seeding import distances_of_points, greedy, sample

SUMMARY = 200  # M
TOGETHER = 50  # of them are drawn together
SWAPS = 16  # R
ROUNDS = 20  # T
STEPS = 3  # of Lloyd after a swap
PATIENCE = 2  # rounds without a gain, after which it is over
GAIN = 1e-6  # share of the cost that a swap must save


def swapped(measures: Measures, k: int, replicas: int, generators: list[torch.Generator]) -> Tensor:
    """Return the label of each point, [C, 1, N], after swaps of the atoms.

    Args:
        measures: C of them.
        k: atoms, at most the points of the smallest measure.
        replicas: 1; here as other starts have it.
        generators: one a measure, on the CPU, so that a draw depends neither on the batch nor on the device.
    """
    summary = summarise(measures, _draws(generators, 1 + SUMMARY, measures))
    cells = greedy(summary, k, 1, generators)[:, 0]
    draws = _draws(generators, 2 * ROUNDS * SWAPS, measures).view(-1, ROUNDS, 2, SWAPS)
    member = torch.zeros_like(summary.x[..., :1]).expand(-1, -1, k).scatter(2, cells[..., None], 1).mT
    atoms = _means(summary, member * summary.real[:, None], torch.zeros_like(summary.points[:, :k]))
    atoms, cost = _settle(summary, atoms[:, None], 1)
    fails = torch.zeros_like(cost[:, 0])
    for turn in range(ROUNDS if k > 1 else 0):
        tried, costs = _settle(summary, _swaps(summary, atoms[:, 0], draws[:, turn]), STEPS)
        least, best = costs.min(1, keepdim=True)
        better = (least < cost * (1 - GAIN)) & (fails < PATIENCE)[:, None]
        chosen = tried.gather(1, best[..., None, None].expand_as(atoms))
        atoms, cost = chosen.where(better[..., None, None], atoms), least.where(better, cost)
        fails = torch.where(better[:, 0], 0, fails + 1)
        if bool((fails >= PATIENCE).all()):
            break
    return measures.distances(atoms.to(measures.x.dtype)).min(2).indices


def summarise(measures: Measures, draws: Tensor) -> Measures:
    """Return M means with their masses for `real`, float64, by draws [C, 1 + M]; at most M points are their own summary."""
    rows = (draws[:, None, :1] * measures.count[:, None, None]).long()
    near = distances_of_points(measures, rows)[:, :, 0]
    for part in draws[:, 1:].split(TOGETHER, 1):
        new = sample(near, part[:, None])
        near = torch.minimum(near, distances_of_points(measures, new).amin(2))
        rows = torch.cat([rows, new], 2)
    own = torch.arange(rows.shape[2], device=rows.device).minimum(measures.count[:, None] - 1)
    rows = torch.where(measures.count[:, None] <= SUMMARY, own, rows[:, 0])
    atoms = measures.points.gather(1, rows[..., None].expand(-1, -1, measures.points.shape[2]))
    member, _ = _nearest(measures, atoms[:, None])
    sums = torch.bmm(member[:, 0], measures.x).double()
    mass = sums[..., -1]
    means = sums[..., :-2] / mass.clamp(min=1e-9)[..., None]
    x = torch.cat([means, means.square().sum(2, keepdim=True), torch.ones_like(means[..., :1])], 2)
    return replace(measures, x=x, count=torch.full_like(measures.count, x.shape[1]), real=mass)


def _draws(generators: list[torch.Generator], count: int, measures: Measures) -> Tensor:
    drawn = [torch.rand(count, generator=generator, dtype=torch.float64) for generator in generators]
    return torch.stack(drawn).to(measures.x.device)


def _nearest(measures: Measures, atoms: Tensor) -> tuple[Tensor, Tensor]:
    """Return which atom has each point's mass, [C, R, K, N], several as near as each other sharing it, and the cost [C, R]."""
    distance = measures.distances(atoms)
    near = distance.amin(2, keepdim=True)
    member = (distance == near).to(near.dtype)
    mass = measures.real[:, None, None].to(near.dtype)
    return member.mul_(mass / member.sum(2, keepdim=True)), (near * mass).sum((2, 3))


def _means(summary: Measures, member: Tensor, atoms: Tensor) -> Tensor:
    """Return the means of the masses [C, L, N] of L atoms; an atom without mass stays."""
    sums = torch.bmm(member, summary.x)
    return torch.where(sums[..., -1:] > 0, sums[..., :-2] / sums[..., -1:], atoms)


def _settle(summary: Measures, atoms: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return the atoms [C, R, K, D] after some Lloyd steps, and their cost [C, R]."""
    for _ in range(steps):
        member, _ = _nearest(summary, atoms)
        atoms = _means(summary, member.flatten(1, 2), atoms.flatten(1, 2)).view_as(atoms)
    return atoms, _nearest(summary, atoms)[1]


def _swaps(summary: Measures, atoms: Tensor, draws: Tensor) -> Tensor:
    """Return R copies of atoms [C, K, D], each with another atom moved to a point, by draws [C, 2, R]."""
    k, r = atoms.shape[1], draws.shape[2]
    distance = summary.distances(atoms[:, None])[:, 0]
    near, second = distance.topk(2, dim=1, largest=False).values.clamp_(min=0).unbind(1)
    missed = torch.bmm((distance <= near[:, None]).double(), (summary.real * (second - near))[..., None])[..., 0]
    away = missed.argsort(dim=1, stable=True).gather(1, (draws[:, 0].square() * k).long())
    spread = (torch.arange(r, device=draws.device) + draws[:, 1]) / r
    to = sample((summary.real * near)[:, None], spread[:, None])[:, 0]
    wide = (-1, -1, -1, atoms.shape[2])
    point = summary.points.gather(1, to[..., None].expand(wide[1:]))[:, :, None]
    return atoms[:, None].repeat(1, r, 1, 1).scatter_(2, away[..., None, None].expand(wide), point)
