"""What the tests of the solvers draw."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from wmdd.transport.cells import Measures

SEEDS = st.integers(0, 10_000)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cloud(count: int, dimensions: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, dimensions, generator=draws(seed), dtype=torch.float64)


def grid(count: int, dimensions: int, seed: int) -> Tensor:
    """Whole numbers, of which many coincide."""
    return torch.randint(-3, 4, (count, dimensions), generator=draws(seed)).double()


def batch(points: list[Tensor], filler: float = 1e3) -> Measures:
    """The measures of a batch, the padding far away from the points."""
    padded = torch.nn.utils.rnn.pad_sequence(points, batch_first=True, padding_value=filler)
    return Measures.of(padded, torch.tensor([len(p) for p in points]))


def by_rows(points: Tensor) -> Tensor:
    """The points in lexicographic order."""
    return torch.tensor(sorted(points.tolist()), dtype=torch.float64)


def mixture(count: int, dimensions: int, parts: int, seed: int = 0, apart: float = 3) -> Tensor:
    """Gaussians about centres that are so many times as far apart as they are wide."""
    centres = apart * cloud(parts, dimensions, seed)
    return centres[torch.randint(parts, (count,), generator=draws(seed))] + cloud(count, dimensions, seed + 1)
