r"""Points in many more dimensions than there are points, moved into as many dimensions as points with their distances kept.

For centred points X [N, D] a Cholesky factor L [N, N] of X X' + r I has the rows l_i with

    ||l_i - l_j||^2 = ||x_i - x_j||^2 + 2 r   (i != j).

The small ridge r > 0 is there because X X' is singular. A partition into K cells costs r (N - K) more than before, whatever the
partition; so its optimum is the same, and every step of a solver costs N dimensions instead of D. An atom \sum_i a_i l_i = a L
stands for a X. Finding it as (a L) (L^-1 X) loses nothing to a small r, as L^-1 X has no singular value above 1.

The price is X X', N^2 D / 2 multiplications. The points are read in blocks of dimensions, so that a longer type than theirs
needs no copy of them: where N is much below D, the whole takes less memory than one more array of the points.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 2**21  # numbers of a block of dimensions
LEAST = 2**20  # numbers of a measure from which there is something to save
MOST = 2500  # points up to which X X' takes less than half of what it saves
TIMES = 2  # dimensions for each point, at least
STRIPS = 8  # of rows of X X', of which only what is on and below the diagonal is multiplied


def wide(points: Tensor) -> bool:
    """Return whether points [N, D] are worth moving: on the CPU, where passes over them take longer than all else."""
    n, d = points.shape
    return points.device.type == "cpu" and n * d >= LEAST and n <= MOST and d >= TIMES * n


@dataclass(frozen=True)
class Span:
    """Points and their coordinates.

    Attributes:
        points: [N, D], as they were given.
        centre: [D], their mean, float64.
        factor: L [N, N], float64.
        coordinates: L in the type that is computed in: float64 for float64, float32 for shorter floats.
    """

    points: Tensor
    centre: Tensor
    factor: Tensor
    coordinates: Tensor

    @classmethod
    def of(cls, points: Tensor) -> "Span":
        """Multiply the points with each other and take the root."""
        n, d = points.shape
        centre = torch.empty(d, dtype=torch.float64)
        product = torch.zeros(n, n, dtype=torch.float64)
        strip = -(-n // STRIPS)
        for at, part in _blocks(points):
            centre[at] = part.mean(0, dtype=torch.float64)
            part = part - centre[at].to(part.dtype)
            for a in range(0, n, strip):
                product[a:, a : a + strip] += part[a:] @ part[a : a + strip].T
        factor = root(product.tril_(), torch.finfo(part.dtype).eps)
        return cls(points, centre, factor, factor.to(part.dtype))

    def back(self, atoms: Tensor) -> Tensor:
        """Return atoms [K, N] in all dimensions, [K, D], about the centre."""
        shares = torch.linalg.solve_triangular(self.factor, atoms.double(), upper=False, left=False)
        return torch.cat([shares.to(part.dtype) @ part for _, part in _blocks(self.points, self.centre)], 1)

    def distances(self, atoms: Tensor) -> Tensor:
        """Return ||b_k - x_i||^2, [K, N] in float64, of atoms [K, D] about the centre."""
        squared = torch.zeros(len(atoms), len(self.points), dtype=torch.float64)
        for at, part in _blocks(self.points, self.centre):
            b = atoms[:, at]
            squared += torch.addmm(b.square().sum(1)[:, None] + part.square().sum(1), b, part.T, alpha=-2)
        return squared.clamp_(min=0)


def _blocks(points: Tensor, centre: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Yield dimensions and the points there, [N, B], about the centre in the type that is computed in."""
    kind = torch.float64 if points.dtype == torch.float64 else torch.float32
    width = max(1, BLOCK // len(points))
    for a in range(0, points.shape[1], width):
        at = slice(a, a + width)
        part = points[:, at].to(kind).contiguous()
        yield at, part if centre is None else part - centre[at].to(kind)


def root(product: Tensor, eps: float) -> Tensor:
    """Return the Cholesky factor of X X' (its lower half is given) and the least ridge that its rounding allows."""
    n = len(product)
    ridge = max(4 * n**0.5 * eps * float(product.diagonal().max()), torch.finfo(torch.float64).tiny)
    while True:
        factor, failed = torch.linalg.cholesky_ex(
            product + ridge * torch.eye(n, dtype=torch.float64, device=product.device)
        )
        if not bool(failed):
            return factor
        ridge *= 10
