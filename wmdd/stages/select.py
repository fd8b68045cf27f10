"""Select: real images as they are, the controls that every distilled set must beat under the same labels; and parts of them.

With `tiles` m a distilled image is a mosaic of m x m chosen ones, each shrunk to 1/m of its side, so that a set shows m^2 times
as many real images in as many pixels (multi-formation, Kim et al. 2022, IDC; RDED). The strategy `patches` chooses what the
mosaics of RDED (Sun et al. 2024, "On the Diversity and Realism of Distilled Dataset") are made of.
"""

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.networks import augment
from wmdd.networks.engine import Engine
from wmdd.networks.models import Network, normalise
from wmdd.networks.normalisation import Normalisation
from wmdd.stages.point_clouds import Cloud, Confident, Rows
from wmdd.transport import Barycenter, quantize
from wmdd.transport.measure import squared_distances

if TYPE_CHECKING:
    from wmdd.settings.barycenter import BarycenterSettings, TransportSettings
    from wmdd.settings.select import SelectSettings

Chosen = tuple[Tensor, Tensor]  # positions within the class [n], weights [n]


class Patches(NamedTuple):
    """Crops of images: which ones they are of [n], their boxes [n, 4] (`wmdd.networks.augment`), pixels [n, 3, R, R] uint8."""

    images: Tensor
    boxes: Tensor
    pixels: Tensor


def random(count: int, k: int, seed: int, label: int) -> Chosen:
    """Choose K of `count` images uniformly, without replacement."""
    chosen = torch.randperm(count, generator=generator("select", seed, label))[:k]
    return chosen, torch.full((k,), 1 / k)


def _quantized(features: Tensor, k: int, solver: "TransportSettings", seed: int, label: int) -> Barycenter:
    """Return the barycenter of K atoms with free weights of a class."""
    return quantize(
        features, k, generator=generator("select", seed, label), max_iterations=solver.max_iterations,
        tolerance=solver.tolerance, restarts=solver.restarts, exchanges=solver.exchanges,
    )  # fmt: skip


def kmeans_medoid(features: Tensor, k: int, settings: "TransportSettings", seed: int, label: int) -> Chosen:
    """Choose the K distinct images nearest in all to the atoms of the free-weights barycenter; weights = cell masses."""
    from scipy.optimize import linear_sum_assignment

    barycenter = _quantized(features, k, settings, seed, label)
    rows, chosen = linear_sum_assignment(squared_distances(barycenter.atoms.double(), features.double()).numpy())
    order = torch.from_numpy(rows).argsort()
    return torch.from_numpy(chosen)[order], barycenter.weights


def margins(
    features: Tensor,
    losses: Tensor,
    k: int,
    settings: "SelectSettings",
    solver: "TransportSettings",
    seed: int,
    label: int,
) -> Chosen:
    r"""Choose K images from the cells of a barycenter: of each cell some at its centre and some at the margin of the class.

    The barycenter with free weights has M = round(K / `cell_images`) atoms b_m, and a cell V_m of the n images is nearest to
    each. A cell has n_m images, K |V_m| / n rounded by largest remainders. The share `margin` of these, rounded down, has the
    largest loss of the cell; the others are nearest to b_m. Each has the weight |V_m| / (n n_m); their order is drawn. Quotas,
    halves and the filter before them (`barycenter.confident`) are those of BPS (CVPR 2026) at second hand, the weights those of
    DDOQ.

    Args:
        features: [n, D].
        losses: of the teacher, [n].
        k: images to choose.
        settings: of the strategy.
        solver: of the barycenter.
        seed: of the distillation.
        label: of the class.
    """
    count = max(1, round(k / settings.cell_images))
    barycenter = _quantized(features, count, solver, seed, label)
    distances = squared_distances(features.double(), barycenter.atoms.double())
    cell_of, sizes = distances.argmin(1), torch.zeros(count, dtype=torch.int64)
    sizes.index_add_(0, cell_of, torch.ones_like(cell_of))
    chosen, weights = [], []
    for cell, quota in enumerate(quotas(sizes, k)):
        members = (cell_of == cell).nonzero()[:, 0]
        doubtful = members[losses[members].sort(descending=True, stable=True).indices[: int(settings.margin * quota)]]
        others = members[~torch.isin(members, doubtful)]
        central = others[distances[others, cell].sort(stable=True).indices[: quota - len(doubtful)]]
        chosen += [central, doubtful]
        weights += [torch.full((quota,), float(sizes[cell]) / max(1, quota))]
    order = torch.randperm(k, generator=generator("select", "order", seed, label))  # so that no cell stands last
    masses_of = torch.cat(weights)[order]
    return torch.cat(chosen)[order], masses_of / masses_of.sum()


def quotas(sizes: Tensor, k: int) -> list[int]:
    """Return how many of K images each cell of some sizes [M] has: in proportion, by largest remainders, at most its size."""
    exact = k * sizes.double() / sizes.sum()
    shares = exact.floor().long()
    for cell in (exact - shares).sort(descending=True, stable=True).indices[: k - int(shares.sum())]:
        shares[cell] += 1
    return shares.tolist()


def rows_of(labels: Tensor, classes: int, features: Cloud | None) -> list[Rows]:
    """Return the rows of each class that may be chosen, of sorted labels [N]: all, or those of the `features` that count."""
    starts = torch.searchsorted(labels, torch.arange(classes + 1)).tolist()
    spans = [range(a, b) for a, b in pairwise(starts)]
    return [features.rows(i) if features is not None and span else span for i, span in enumerate(spans)]


def select(
    labels: Tensor,
    classes: list[str],
    k: int,
    features: Cloud | None,
    settings: "SelectSettings",
    solver: "BarycenterSettings",
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Return the positions in the training set [C, n] and the weights [C, n] of chosen images.

    For the strategy `patches` they are the candidates, n of `settings.candidates` or the whole class, all of weight 1/n; for
    `whole` n images of each class, as many as the smallest has, of which the first K are those of `random`; else n = K m^2
    for m x m tiles in a distilled image.

    Args:
        labels: [N], sorted.
        classes: their names.
        k: images per class.
        features: of the training set, for the strategy `kmeans-medoid`, or those that count (`Confident`, which the strategy
            `margins` needs), a class at a time.
        settings: the strategy.
        solver: of the barycenter behind `kmeans-medoid` and `margins`.
        seed: of the distillation.

    Raises:
        WmddError: a class has fewer images than are to be chosen, or there are fewer candidates.
    """
    rows = rows_of(labels, len(classes), features)
    count = [len(mine) for mine in rows]
    needed = k * settings.tiles**2
    for name, images in zip(classes, count, strict=True):
        if images < needed:
            each = f" of {settings.tiles} x {settings.tiles} tiles" if settings.tiles > 1 else ""
            share = f" that count (barycenter.confident {solver.confident:g})" if solver.confident < 1 else ""
            raise WmddError(
                f"class {name!r} has {images} training images{share}, fewer than the {k} images per class{each} to select; "
                f"lower ipc to {min(count) // settings.tiles**2} or less, or add images"
            )
    if settings.strategy == "patches":
        if settings.candidates < needed:
            raise WmddError(
                f"select.candidates {settings.candidates} is fewer than the {needed} patches of a class; raise it"
            )
        needed = min(*count, settings.candidates)
    if settings.strategy == "whole":
        needed = min(count)
    positions, weights = [], []
    for label, mine in enumerate(rows):
        if settings.drawn or settings.strategy == "patches":
            chosen, mass = random(len(mine), needed, seed, label)
        else:
            assert features is not None
            points = features.read(mine)
            if settings.strategy == "margins":
                assert isinstance(features, Confident)
                losses = features.losses(mine, label)
                chosen, mass = margins(points, losses, needed, settings, solver, seed, label)
            else:
                chosen, mass = kmeans_medoid(points, needed, solver, seed, label)
        positions.append(torch.as_tensor(np.asarray(mine))[chosen])
        weights.append(mass)
    return torch.stack(positions), torch.stack(weights).float()


@torch.no_grad()
def patches(
    network: Network,
    images: Tensor,
    label: int,
    count: int,
    normalisation: Normalisation,
    settings: "SelectSettings",
    seed: int,
    engine: Engine,
) -> Patches:
    r"""Return the crops of the images of a class that the teacher is surest of, at most one of each image, the best first.

    Of each image the crop with the least cross-entropy -log p(c | crop) stays, and of these the least `count` (RDED's realism
    score). RDED's code scores a crop at its place in the mosaic's size within a frame of zeros; here it is scored at full size,
    as a student sees it that crops the mosaic.

    The candidates are uint8 [n, 3, R, R], all of the class c = `label`; at most n can be chosen.
    """
    n, device = len(images), engine.device
    draws = generator("select", "crops", seed, label)
    boxes = augment.resized_crop(draws, n * settings.crops, settings.crop_scale, (1.0, 1.0))
    views = replace(augment.identity(len(boxes)), crop=boxes)
    whose = torch.arange(n).repeat_interleave(settings.crops)

    def score(index: Tensor) -> Tensor:
        seen = augment.apply(normalise(images[whose[index]], normalisation).to(device), *_these(views, index, device))
        with engine.autocast():
            logits = network(engine.arranged(seen, network)).float()
        return F.cross_entropy(logits, torch.full((len(index),), label, device=device), reduction="none").cpu()

    parts = torch.arange(len(boxes)).split(engine.at_once(images.shape[-1]))
    losses = torch.cat(list(engine.passes(score, parts))).view(n, settings.crops)
    least, best = losses.min(1)
    chosen = least.sort(stable=True).indices[:count]
    taken = chosen * settings.crops + best[chosen]
    cut = augment.apply(images[chosen].float(), *_these(views, taken, torch.device("cpu")))
    return Patches(chosen, boxes[taken], cut.round().clamp(0, 255).to(torch.uint8))


def _these(views: augment.Views, index: Tensor, device: torch.device) -> tuple[augment.Views, Tensor]:
    """Return some of the views as those of as many images."""
    return views.of(index).to(device), torch.arange(len(index), device=device)


def mosaic(pictures: Tensor, tiles: int) -> Tensor:
    """Return images [K, 3, R, R] of m x m pictures each, from [K m^2, 3, R, R] uint8; image j has j, K + j, 2 K + j, ...

    They go row by row. Where m does not divide R, tiles of a row differ by a pixel.
    """
    if tiles == 1:
        return pictures
    side = pictures.shape[-1]
    k = len(pictures) // tiles**2
    edges = [side * i // tiles for i in range(tiles + 1)]
    mosaics = torch.empty(k, 3, side, side, dtype=torch.uint8)
    for place, part in enumerate(pictures.split(k)):
        (top, bottom), (left, right) = (edges[i : i + 2] for i in divmod(place, tiles))
        shrunk = F.interpolate(part.float(), (bottom - top, right - left), mode="bilinear", antialias=True)
        mosaics[..., top:bottom, left:right] = shrunk.round().clamp(0, 255).to(torch.uint8)
    return mosaics


def masses(weights: Tensor, tiles: int) -> Tensor:
    """Return the weights [C, K] of mosaics, the sums of those [C, K m^2] of their pictures."""
    return weights.unflatten(1, (tiles**2, -1)).sum(1)
