"""Encode: one pass of an encoder over the training set gives the latent of every image."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wmdd.base.errors import WmddError
from wmdd.datasets.loader import Pictures, batches_by_class
from wmdd.generators.generator import Generator
from wmdd.networks.engine import Engine

if TYPE_CHECKING:
    from wmdd.settings.latent import EncodeSettings

SHARD = 2**24  # bytes of latents that are held, about


@dataclass(frozen=True)
class Shard:
    """A run of the pass: position of its first image, latents [n, D] float16, labels [n], shape [c, h, w] of a latent."""

    first: int
    latents: Tensor
    labels: Tensor
    shape: tuple[int, ...]


def encode(
    coder: Generator,
    pictures: Pictures,
    settings: "EncodeSettings",
    engine: Engine,
    classes: range | None = None,
    start: int = 0,
    due: Callable[[], bool] = lambda: False,
    progress: Callable[..., Iterator[Any]] = lambda items, *_, **__: iter(items),
) -> Iterator[Shard]:
    """Yield the latents of the pictures of some classes (None: of all), [N, c h w] in all, rounded to float16.

    A batch never holds two classes, so that a latent does not depend on which other classes a job was given. Latents have
    about unit variance, so float16 keeps them to 1 part in 2,000, far finer than an encoder's own rounding in bf16. The pass
    goes on from the position `start`, behind what an earlier job has done, and hands over what there is when it is `due`.

    Raises:
        WmddError: a latent holds NaN or infinity, or is beyond float16.
    """
    first, last = (0, None) if classes is None else (classes[0], classes[-1])
    whole_pass = batches_by_class(pictures.labels, settings.batch_size, first, last)
    batches = [index for index in whole_pass if index[0] >= start]

    def forward(images: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        latents = coder.encode(images)
        return latents.flatten(1).half().cpu(), tuple(latents.shape[1:])

    held: list[Tensor] = []
    begin = start
    results = engine.passes(forward, pictures.batches(batches))
    for index in progress(batches, "encoding", len(whole_pass), len(whole_pass) - len(batches), "batch"):
        latents, shape = next(results)
        _check_finite(latents, index, engine)
        begin = begin if held else int(index[0])
        held.append(latents)
        if sum(part.nbytes for part in held) >= SHARD or due() or index is batches[-1]:
            run = torch.cat(held)
            yield Shard(begin, run, pictures.labels[begin : begin + len(run)], shape)
            held.clear()


def _check_finite(latents: Tensor, index: Tensor, engine: Engine) -> None:
    """Refuse float16 latents [B, D] of the training images `index` [B] that overflowed."""
    if not bool(latents.isfinite().all()):
        row = int(index[int((~latents.isfinite()).any(1).nonzero()[0])])
        raise WmddError(
            f"the latent of training image {row} holds NaN, infinity or numbers beyond 65,504; the encoder overflows in "
            f"{str(engine.dtype).removeprefix('torch.')}: set engine precision: fp32, or take another model"
        )
