"""Expert: a network trained on the real data, of which the weights after every epoch are kept (MTT, Cazenavette et al. 2022).

Plain stochastic gradient descent under siamese augmentation (`wmdd.networks.siamese`), each image with a distortion of its own.
What is kept is a trajectory [E + 1, P]: the parameters before the first epoch and after each, one behind the other in the
network's order. A checkpoint holds as much of it as there is.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wmdd.base.rng import generator
from wmdd.networks import siamese
from wmdd.networks.context import Context, Keeper
from wmdd.networks.losses import cross_entropy
from wmdd.networks.models import build, normalise
from wmdd.networks.normalisation import Normalisation
from wmdd.networks.training import Batch, batches_of, evaluate, fit
from wmdd.networks.whitening import Whitened, Whitening

if TYPE_CHECKING:
    from wmdd.datasets.loader import Pictures
    from wmdd.settings.match import ExpertSettings


def flat(network: nn.Module) -> Tensor:
    """Return a copy of all parameters as one vector [P], float32 on the CPU."""
    return torch.cat([p.detach().flatten() for p in network.parameters()]).float().cpu()


class _Kept:
    """Keeps the trajectory with the rest of the state."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self.rows: list[Tensor] = []

    def load(self) -> dict[str, Any] | None:
        if (state := self._keeper.load()) is not None:
            self.rows = list(state.pop("trajectory"))
        return state

    def due(self) -> bool:
        return self._keeper.due()

    def save(self, state: dict[str, Any], done: float = 0.0, total: float = 0.0, unit: str = "") -> None:
        self._keeper.save(state | {"trajectory": torch.stack(self.rows)}, done, total, unit)


def train(
    pictures: "Pictures",
    val_pictures: "Pictures",
    classes: int,
    normalisation: Normalisation,
    whitening: Whitening | None,
    settings: "ExpertSettings",
    seed: int,
    context: Context,
) -> tuple[Tensor, list[dict[str, float]]]:
    """Train an expert, the network of number `seed`, and return its trajectory [E + 1, P] and its history.

    The validation pictures are only looked at. `whitening` is that of the training images, if the network sees whitened ones.

    Raises:
        WmddError: the network normalises by batches, or the loss is not a number.
    """
    settings.check("expert: ")
    labels, engine = pictures.labels, context.engine
    network = engine.place(build(settings, classes, pictures.resolution, generator("expert", "weights", seed)))
    classes_of, kept = labels.to(engine.device), _Kept(context.keeper)
    kept.rows = [flat(network)]
    white = None if whitening is None else whitening.to(engine.device)

    def epoch_of(epoch: int, first: int) -> Iterable[Batch]:
        draws = generator("expert", "views", seed, epoch)
        distortions = siamese.draw(draws, len(labels)) if settings.views == "dsa" else None
        order = torch.randperm(len(labels), generator=generator("expert", "order", seed, epoch))
        steps = batches_of(order, settings.batch_size)[first:]
        for index, images in zip(steps, pictures.batches(steps), strict=True):
            seen = normalise(images.to(engine.device), normalisation)
            seen = seen if white is None else white.apply(seen)
            seen = seen if distortions is None else siamese.apply(seen, distortions.of(index).to(engine.device))
            yield Batch(engine.arranged(seen, network), classes_of[index.to(engine.device)])

    def validate(trained: nn.Module) -> dict[str, float]:
        return evaluate(trained if white is None else Whitened(trained, white), val_pictures, normalisation, engine)

    history = fit(
        network, epoch_of, len(batches_of(labels, settings.batch_size)), cross_entropy(), validate, settings,
        Context(engine, kept, context.log, context.progress, context.world, context.notice),
        each=lambda trained: kept.rows.append(flat(trained)),
    )  # fmt: skip
    return torch.stack(kept.rows), history
