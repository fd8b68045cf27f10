"""Embedding: a map of real and distilled images in the plane, near where the teacher's features are near (t-SNE).

All distilled sets of a dataset and a teacher are put into one map with the real images, so that methods can be compared. The
map keeps neighbours, not distances (van der Maaten and Hinton, 2008); distances are what `wmdd.stages.distance` measures.
"""

import numpy as np
from torch import Tensor

from wmdd.base.rng import generator, seed_of

REAL = 60  # real images of a class
MADE = 10  # distilled images of a class of each set
CLASSES = 10  # at most
PERPLEXITY = 30.0
COMPONENTS = 50  # principal ones that t-SNE sees


def chosen(classes: int) -> list[int]:
    """Return which classes are on the map: all, or some from first to last."""
    return np.unique(np.linspace(0, classes - 1, min(CLASSES, classes)).round().astype(int)).tolist()


def sample(rows: np.ndarray, name: str) -> np.ndarray:
    """Return at most `REAL` of some rows, in their order; `name` is what the draw is for."""
    import torch

    order = torch.randperm(len(rows), generator=generator("embedding", name))[:REAL].sort().values
    return rows[order.numpy()]


def plane(features: Tensor) -> np.ndarray:
    """Return a place [N, 2] for each of the features [N, D]; the same bits for the same features."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    seed = seed_of("embedding", "plane") % 2**32
    points = features.double().numpy()
    size = min(COMPONENTS, *points.shape)
    points = PCA(size, svd_solver="full", random_state=seed).fit_transform(points)
    perplexity = min(PERPLEXITY, max(1.0, (len(points) - 1) / 3))
    return np.asarray(TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(points))
