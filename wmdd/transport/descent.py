"""Hartigan's steps (`wmdd.transport.cells`), made until the cost of each partition of a batch settles."""

import torch
from torch import Tensor

from wmdd.transport.cells import FOCUS, Cells

LEAST = 64  # points that are worth a smaller problem


def descend(
    cells: Cells, steps: int | Tensor, tolerance: float, running: Tensor | None = None
) -> tuple[Cells, list[Tensor]]:
    """Make Hartigan steps until the cost falls by no more than `tolerance` of itself.

    Once few points move, most steps look only at the quarter of the points that are nearest to a move; whether it is over
    is decided on all of them. Each partition goes its own way, whatever the others of the batch do.

    Args:
        cells: where to begin.
        steps: of each partition, at most; in a tensor [C, R], from which those made are taken off.
        tolerance: of one step.
        running: [C, R], which partitions to change; all by default.

    Returns:
        The cells, and the costs [C, R] after each step, NaN where there was none.
    """
    trace: list[Tensor] = []
    running = torch.ones_like(cells.cost, dtype=torch.bool) if running is None else running
    left = steps if isinstance(steps, Tensor) else torch.full_like(running, steps, dtype=torch.long)
    few = cells.measures.count[:, None] // (2 * FOCUS)
    while bool((running := running & (left > 0)).any()):
        cells, gain, fell = _step(cells, running, tolerance, left, trace)
        running = running & fell
        if cells.label.shape[1] > 1:
            continue
        inside = running & (left > 0) & ((gain > 0).sum(2) <= few) & (few >= LEAST // 2)
        if bool(inside.any()):
            inner, chosen = cells.focus(gain)
            while bool(inside.any()):
                inner, _, fell = _step(inner, inside, tolerance, left, trace)
                inside = inside & fell & (left > 0)
            cells = inner.unfocus(cells, chosen)
    return cells, trace


def _step(
    cells: Cells, running: Tensor, tolerance: float, left: Tensor, trace: list[Tensor]
) -> tuple[Cells, Tensor, Tensor]:
    """Make a step of the running partitions; return the cells, the gains, and where the cost fell [C, R]."""
    after, gain = cells.hartigan()
    if not bool(running.all()):
        after = after.where(running, cells)
    left -= running.long()
    trace.append(after.cost.where(running, torch.nan))
    return after, gain, cells.cost - after.cost > tolerance * after.cost
