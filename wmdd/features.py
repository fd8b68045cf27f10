"""Features: one pass of the teacher over the real data gives the features of every image and per-class statistics."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from wmdd.batchnorm import ClassMoments, Statistics, inputs_of
from wmdd.engine import Engine
from wmdd.models import Network, normalise


@torch.inference_mode()
def extract(
    network: Network,
    images: Tensor,
    labels: Tensor,
    classes: int,
    mean: list[float],
    std: list[float],
    batch_size: int,
    engine: Engine,
    progress: Callable[..., Iterator[Any]] = lambda items, *_, **__: iter(items),
) -> tuple[Tensor, Statistics]:
    """Return the features before the last layer [N, D] float32 and the exact BatchNorm statistics of each class.

    One forward pass an image, in eval mode and without augmentation, always in float32: the statistics are targets.

    Args:
        network: the teacher.
        images: uint8 [N, 3, R, R].
        labels: int64 [N].
        classes: C.
        mean: per channel, of the normalisation.
        std: per channel.
        batch_size: images a forward pass; the result does not depend on it beyond rounding.
        engine: device; its precision is not used here.
        progress: shows how far it is.
    """
    network.eval()
    moments = ClassMoments(classes)
    features = []
    with inputs_of(network) as seen:
        for start in progress(range(0, len(labels), batch_size), "features", unit="batch"):
            x = normalise(engine.images(images[start : start + batch_size]), mean, std)
            features.append(network.embed(x).float().cpu())
            moments.add(seen, labels[start : start + batch_size])
    return torch.cat(features), moments.statistics()
