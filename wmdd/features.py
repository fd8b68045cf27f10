"""Features: one pass of the teacher over the real data gives the features of every image and per-class statistics."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wmdd.batchnorm import ClassMoments, inputs_of
from wmdd.engine import Engine
from wmdd.feeding import Pictures, batches_by_class
from wmdd.models import Network, normalise

if TYPE_CHECKING:
    from wmdd.settings import FeaturesSettings

SHARD = 2**28  # bytes of features that are held at most


@dataclass(frozen=True)
class Shard:
    """A run of the pass.

    Attributes:
        first: position of its first image in the split.
        features: [n, D] float32.
        labels: [n] int64.
        moments: of its classes; those of the first class count from where the class begins, in an earlier shard perhaps, and
            those of the last class are not whole unless it ends here.
    """

    first: int
    features: Tensor
    labels: Tensor
    moments: ClassMoments


@torch.inference_mode()
def extract(
    network: Network,
    pictures: Pictures,
    mean: list[float],
    std: list[float],
    settings: "FeaturesSettings",
    engine: Engine,
    classes: range | None = None,
    start: int = 0,
    moments: ClassMoments | None = None,
    due: Callable[[], bool] = lambda: False,
    progress: Callable[..., Iterator[Any]] = lambda items, *_, **__: iter(items),
) -> Iterator[Shard]:
    """Yield the features before the last layer, [N, D] in all, and the exact BatchNorm statistics of each class.

    One forward pass an image, in eval mode and without augmentation. A batch never holds two classes, so what is
    computed for a class does not depend on which other classes the job was given, nor on where it was interrupted.

    Args:
        network: the teacher.
        pictures: of the training split.
        mean: per channel, of the normalisation.
        std: per channel.
        settings: batch size, precision.
        engine: device; its precision is used unless the features are to be exact.
        classes: what to pass over; None for all.
        start: position behind the last one that an earlier job has done.
        moments: of the class that it was at then.
        due: whether to hand over what there is.
        progress: shows how far it is.
    """
    network.eval()
    first, last = (0, None) if classes is None else (classes[0], classes[-1])
    everything = batches_by_class(pictures.labels, settings.batch_size, first, last)
    batches = [index for index in everything if index[0] >= start]
    moments = moments or ClassMoments()
    features: list[Tensor] = []
    seen: list[Tensor] = []
    precision = nullcontext if settings.exact else engine.autocast
    with inputs_of(network) as inputs, precision():
        images = pictures.batches(batches)
        for index in progress(batches, "features", len(everything), len(everything) - len(batches), "batch"):
            x = normalise(engine.images(next(images)), mean, std)
            features.append(network.embed(x).float().cpu())
            moments.add(inputs, int(pictures.labels[index[0]]))
            seen.append(index)
            if due() or features[0].nbytes * len(features) > SHARD:
                yield _shard(seen, features, pictures.labels, moments)
                moments, features, seen = moments.last(), [], []
    if seen:
        yield _shard(seen, features, pictures.labels, moments)


def _shard(seen: list[Tensor], features: list[Tensor], labels: Tensor, moments: ClassMoments) -> Shard:
    positions = torch.cat(seen)
    return Shard(int(positions[0]), torch.cat(features), labels[positions], moments)
