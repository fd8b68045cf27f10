r"""The free-support W2 barycenter of several measures.

For measures mu_m on points x_m [N_m, D] of mass 1/N_m each, and shares lambda_m that sum to 1, minimise

    F(b, w) = \sum_m lambda_m W_2^2(\sum_k w_k delta_{b_k}, mu_m)

over the atoms b [K, D], and over the weights w [K] where these are free. Optimal atoms are a fixed point of

    b <- \sum_m lambda_m diag(1/w) T_m x_m

with the optimal plans T_m [K, N_m] from b, and putting in any other b never raises F ([1], Eq. 8; [2]).

References:
    [1] Cuturi, Doucet: Fast Computation of Wasserstein Barycenters, ICML 2014.
    [2] Álvarez-Esteban, del Barrio, Cuesta-Albertos, Matrán: A fixed-point approach to barycenters in Wasserstein space,
        Journal of Mathematical Analysis and Applications 441(2), 2016.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from wmdd.base.errors import WmddError
from wmdd.transport.cuturi_doucet import alternate, check_weights, draw, like
from wmdd.transport.measure import Barycenter, Points, as_points, check_k
from wmdd.transport.quantization import quantize

Values = Sequence[float] | Tensor | np.ndarray


def barycenter(
    measures: Sequence[Points],
    weights_of_measures: Values | None = None,
    k: int | None = None,
    *,
    weights: str = "uniform",
    generator: torch.Generator | None = None,
    max_iterations: int = 300,
    tolerance: float = 1e-6,
    restarts: int = 1,
) -> Barycenter:
    r"""Return the barycenter of several measures with k atoms.

    Start: k points of one of the measures, both drawn by the generator; the first step moves each to the average of the
    places to which the plans send it. One measure is left to `quantize`.

    Args:
        measures: x_m [N_m, D] each.
        weights_of_measures: lambda_m, not negative; divided by their sum; equal if not given.
        k: atoms; as many as the largest measure has points if not given.
        weights: `uniform` (1/K each) or `free` (learned by mirror descent).
        generator: draws of the starts; of seed 0 if not given.
        max_iterations: steps, at most.
        tolerance: stop when F falls by less than this share.
        restarts: independent starts; the cheapest result is returned.

    Returns:
        Atoms and weights in the type and on the device of the first measure; cost: F; trace: F at each step, never rising.

    Raises:
        WmddError: a measure, a weight or k are not usable; the message says which.

    Example:
        >>> middle = barycenter([np.array([[0.0, 0.0], [0.0, 2.0]]), np.array([[4.0, 0.0], [4.0, 2.0]])], [0.75, 0.25])
        >>> middle.atoms.sort(dim=0).values.tolist(), middle.cost
        ([[1.0, 0.0], [1.0, 2.0]], 3.0)
    """
    points = _points(measures)
    lambdas = _shares(weights_of_measures, len(points))
    k = max(len(x) for x in points) if k is None else k
    check_k(k)
    check_weights(weights)
    if max_iterations < 1 or restarts < 1:
        raise WmddError(f"max_iterations and restarts must be at least 1, got {max_iterations} and {restarts}")
    places = [x.detach().double().cpu() for x, share in zip(points, lambdas, strict=True) if share > 0]
    lambdas = lambdas[lambdas > 0]
    generator = generator or torch.Generator().manual_seed(0)
    if len(places) == 1:
        solved = quantize(
            places[0], k, weights=weights, generator=generator, max_iterations=max_iterations, tolerance=tolerance,
            restarts=restarts,
        )  # fmt: skip
        return like(points[0], solved)
    masses = [torch.full((len(x),), 1 / len(x), dtype=torch.float64) for x in places]
    results = []
    for _ in range(restarts):
        m = int(torch.multinomial(lambdas, 1, generator=generator))
        start = draw(places[m], masses[m], k, generator)
        results.append(alternate(places, masses, lambdas, start, weights == "free", max_iterations, tolerance))
    return like(points[0], min(results, key=lambda result: result.cost))


def _points(measures: Sequence[Points]) -> list[Tensor]:
    """Return the measures' points, of one dimension."""
    if len(measures) == 0:
        raise WmddError("a barycenter needs at least one measure")
    points = [as_points(measure, f"measure {m}") for m, measure in enumerate(measures)]
    dimensions = points[0].shape[1]
    for m, x in enumerate(points):
        if x.shape[1] != dimensions:
            raise WmddError(
                f"measure {m} has points of {x.shape[1]} dimensions, measure 0 of {dimensions}; all must have the same"
            )
    return points


def _shares(values: Values | None, count: int) -> Tensor:
    """Return the weights of `count` measures divided by their sum, float64; equal ones for None."""
    if values is None:
        return torch.full((count,), 1 / count, dtype=torch.float64)
    shares = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    if shares.shape != (count,):
        raise WmddError(f"weights_of_measures: {count} numbers are needed, got {tuple(shares.shape)}")
    if not bool((shares >= 0).all()) or not 0 < float(shares.sum()) < float("inf"):
        least, total = float(shares.min()), float(shares.sum())
        raise WmddError(
            "weights_of_measures: none may be negative and the sum must be positive, "
            f"got a least of {least}, a sum of {total}"
        )
    return shares / shares.sum()
