"""Shown: which images of a set an epoch shows: all of them, or some of each class in turn (the control `whole`).

Of the M images of a class an epoch shows K. The epochs go through one sequence, one order of the M images behind the other:
epoch e has the K at places e K, ..., e K + K - 1. So every image of a class is shown once before any is shown twice. The first
order is that of the file, which `wmdd.stages.select` draws; the others are drawn from seeds keyed by class and number. So a set
and an epoch's number say which images the epoch shows, and labels and students agree. With M = K it is the set as it is.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from wmdd.base.rng import generator
from wmdd.networks.training import batches_of


@dataclass(frozen=True)
class Shown:
    """The images of each epoch, of a set [C M, ...] that is sorted by class."""

    classes: int  # C
    held: int  # M images of a class in the set
    each: int  # K images of a class in an epoch, at most M

    @classmethod
    def all_of(cls, images: Tensor) -> "Shown":
        """Return what shows all images [N, ...] in every epoch."""
        return cls(1, len(images), len(images))

    @property
    def everything(self) -> bool:
        """Whether every epoch shows the whole set."""
        return self.each == self.held

    @property
    def count(self) -> int:
        """The images of an epoch, C K."""
        return self.classes * self.each

    def steps(self, size: int) -> int:
        """Return the steps of an optimiser in an epoch, in batches of at most `size`."""
        return len(batches_of(torch.arange(self.count), size))

    def positions(self, epoch: int) -> Tensor:
        """Return which images an epoch shows: their positions in the set [C K], by class and in the order of the file.

        An epoch that ends one order and begins the next may have an image twice.
        """
        places = torch.arange(epoch * self.each, (epoch + 1) * self.each)
        numbers = range(int(places[0]) // self.held, int(places[-1]) // self.held + 1)
        parts = [_order(self.classes, self.held, n)[:, places[places // self.held == n] % self.held] for n in numbers]
        chosen = torch.cat(parts, 1).sort(1).values  # [C, K]
        return (chosen + self.held * torch.arange(self.classes)[:, None]).flatten()

    def part(self, values: Tensor, epoch: int, device: torch.device) -> Tensor:
        """Return the values of an epoch's images on a device, of those of the set [C M, ...]."""
        return (values if self.everything else values[self.positions(epoch)]).to(device)


@lru_cache(maxsize=2)
def _order(classes: int, held: int, number: int) -> Tensor:
    """Return the order with a number of each class's images, [C, M]."""
    if number == 0:
        return torch.arange(held).expand(classes, -1)
    return torch.stack([torch.randperm(held, generator=generator("shown", label, number)) for label in range(classes)])
