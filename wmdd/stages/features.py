"""Features: one pass of the teacher over the real data gives the features of every image and per-class statistics."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wmdd.datasets.loader import Pictures, batches_by_class
from wmdd.networks.batchnorm import ClassMoments, sums_of_inputs, within
from wmdd.networks.engine import Engine
from wmdd.networks.models import Network, normalise
from wmdd.networks.normalisation import Normalisation

if TYPE_CHECKING:
    from wmdd.settings.teacher import FeaturesSettings

SHARD = 2**24  # bytes of features that are held at most
CACHED = 2**19  # pixels of a forward pass on CPU; more of them do not fit into its caches


@dataclass(frozen=True)
class Shard:
    """A run of the pass.

    The moments of its first class count from where the class begins, in an earlier shard perhaps, and those of its last class
    are not whole unless it ends here.
    """

    first: int  # position of its first image in the split
    features: Tensor  # [n, D] float32
    labels: Tensor  # [n] int64
    moments: ClassMoments


def extract(
    network: Network,
    pictures: Pictures,
    normalisation: Normalisation,
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
    computed for a class does not depend on which other classes the job was given (None: all), nor on where it was
    interrupted. On CPU every thread runs passes of its own, of few pictures: twice as fast as sharing each, and the same for
    any number of them. The engine's precision is used unless the features are to be `exact`.

    The pass goes on from the position `start`, behind what an earlier job has done, with the `moments` of the class that it
    was at then, and hands over what there is when it is `due`.
    """
    network.eval()
    first, last = (0, None) if classes is None else (classes[0], classes[-1])
    size = _batch_size(settings, pictures.resolution, engine)
    whole_pass = batches_by_class(pictures.labels, size, first, last)
    batches = [index for index in whole_pass if index[0] >= start]
    moments = moments or ClassMoments()
    with sums_of_inputs(network) as sums_of_last_pass:

        def forward(images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            with torch.inference_mode(), nullcontext() if settings.exact else engine.autocast():
                x = normalise(engine.arranged(images, network), normalisation)
                embedded, sums = network.embed(x).float().cpu(), sums_of_last_pass()
            if settings.variance == "batches":
                sums = {layer: within(values, len(x)) for layer, values in sums.items()}
            return embedded, sums

        results = engine.passes(forward, pictures.batches(batches))
        shard = _Filling(pictures.labels, size)
        for index in progress(batches, "features", len(whole_pass), len(whole_pass) - len(batches), "batch"):
            embedded, total = next(results)
            if shard.count and (shard.room < len(index) or due()):
                yield shard.take(moments)
                moments = moments.last()
            moments.add(int(pictures.labels[index[0]]), len(index), total)
            shard.add(int(index[0]), embedded)
        if shard.count:
            yield shard.take(moments)


def _batch_size(settings: "FeaturesSettings", resolution: int, engine: Engine) -> int:
    """Return the images of a forward pass: no more than the caches of a CPU hold, where the result does not depend on it."""
    if settings.variance == "batches" or engine.device.type != "cpu":
        return settings.batch_size
    return min(settings.batch_size, max(1, CACHED // resolution**2))


class _Filling:
    """A shard that fills up, in one piece of memory: many small ones would keep what lies between them from being reused."""

    def __init__(self, labels: Tensor, size: int) -> None:
        self.count = self.room = 0
        self._labels, self._size, self._first, self._features = labels, size, 0, torch.empty(0)

    def add(self, position: int, features: Tensor) -> None:
        """Add the features of a batch, which follow the last ones; only an empty shard may lack the room."""
        if not self.count:
            self._first = position
            self.room = max(SHARD // features[0].nbytes, self._size)
            self._features = torch.empty(min(self.room, len(self._labels) - position), features.shape[1])
        self._features[self.count : self.count + len(features)] = features
        self.count += len(features)
        self.room -= len(features)

    def take(self, moments: ClassMoments) -> Shard:
        """Return the shard, and begin the next."""
        last = self._first + self.count
        shard = Shard(self._first, self._features[: self.count], self._labels[self._first : last], moments)
        self.count = 0
        return shard
