r"""Mini-batch k-means in one pass, as D4M [1] quantizes latents; kept to be compared with `quantize`.

D4M's released code gives the points, in an order at random and cut into batches of `expand` K points, to `partial_fit` of
scikit-learn's `MiniBatchKMeans` with its defaults. So does this: greedy k-means++ on the first batch, Sculley's update [2] with
each batch, and a new place for atoms that win too little. Nothing is seen twice, so no atom forgets the points that it won
before its neighbours moved, and the cost is above that of `quantize` from the same points.

Departures from [1]'s released code: what is left over at the end, fewer points than a batch, is learned from too, where theirs
does so only for the class of the very last image; so N < `expand` K points have atoms. The random numbers are others.

References:
    [1] Su et al.: D4M: Dataset Distillation via Disentangled Diffusion Model, CVPR 2024 (arXiv 2407.15138); its repository
        suduo94/D4M, distillation/gen_prototype.py.
    [2] Sculley: Web-scale k-means clustering, WWW 2010, Algorithm 1.
"""

import time
from dataclasses import replace

import torch

from wmdd.base.errors import WmddError
from wmdd.transport.cuturi_doucet import check_weights
from wmdd.transport.measure import BLOCK, Barycenter, Points, as_points, check_k, check_squares, squared_distances
from wmdd.transport.plans import balanced
from wmdd.transport.quantization import quantize


def minibatch(
    points: Points,
    k: int,
    *,
    generator: torch.Generator | None = None,
    weights: str = "uniform",
    expand: int = 10,
) -> Barycenter:
    """Return the atoms of one pass of mini-batch k-means over the points.

    Beside the points, a batch and some K (N + D) numbers of float64 are in memory.

    Args:
        points: [N, D], tensor (on any device) or array; float64 is computed in float64, shorter floats in float32.
        k: atoms.
        generator: on the CPU; draws the order of the points, then scikit-learn's seed.
        weights: `uniform` (1/K each, as D4M has it) or `free` (the masses of the atoms' cells, as DDOQ has it).
        expand: points of a batch for each atom.

    Returns:
        Atoms and weights in the type of `points`, on the CPU; with k >= N, what `quantize` gives. The cost is that of exact
        transport, and the only one in the trace.

    Raises:
        WmddError: there are no points, some are not numbers or too large to be squared, or an argument is out of bounds.
    """
    from sklearn.cluster import MiniBatchKMeans

    began = time.perf_counter()
    check_k(k)
    check_weights(weights)
    if expand < 1:
        raise WmddError(f"expand must be at least 1, got {expand}")
    x = as_points(points).detach().cpu()
    check_squares(x)
    draws = generator or torch.Generator().manual_seed(0)
    if k >= len(x):
        return quantize(x, k, weights=weights, generator=draws)
    batches = torch.randperm(len(x), generator=draws).split(expand * k)
    seed = int(torch.randint(2**31, (), generator=draws))
    solver = MiniBatchKMeans(k, batch_size=expand * k, random_state=seed, n_init="auto")
    for rows in batches:
        batch = x[rows]
        solver.partial_fit((batch if batch.dtype == torch.float64 else batch.float()).numpy())
    atoms = torch.from_numpy(solver.cluster_centers_)
    blocks = x.split(max(1, BLOCK // x.shape[1]))
    costs = torch.cat([squared_distances(atoms.double(), block.double()) for block in blocks], 1)
    if weights == "uniform":
        mass, cost = torch.full((k,), 1 / k, dtype=torch.float64), balanced(costs).cost
    else:
        near, cell = costs.min(0)
        mass, cost = torch.bincount(cell, minlength=k).double() / len(x), float(near.mean())
    solved = Barycenter(atoms.to(x.dtype), mass.to(x.dtype), cost, [cost])
    return replace(solved, seconds=time.perf_counter() - began)
