r"""The free-support W2 barycenter of several measures.

For measures mu_m with points x_m [N_m, D] and masses a_m [N_m], and shares lambda_m that sum to 1, minimise

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
    masses: Sequence[Values | None] | None = None,
    weights: str = "uniform",
    generator: torch.Generator | None = None,
    max_iterations: int = 300,
    tolerance: float = 1e-6,
    restarts: int = 1,
) -> Barycenter:
    r"""Return the barycenter of several measures with k atoms.

    Start: k points of one of the measures, both drawn by the generator; the first step moves each to the average of the
    places to which the plans send it. On a line, that step is exact for uniform weights (if no two atoms coincide). One measure
    of equal masses is left to `quantize`.

    Args:
        measures: x_m [N_m, D] each.
        weights_of_measures: lambda_m, not negative; divided by their sum; equal if not given.
        k: atoms; as many as the largest measure has points if not given.
        masses: for each measure a_m [N_m], not negative, divided by their sum, or None for equal ones; None if all are equal.
        weights: `uniform` (1/K each) or `free` (learned by mirror descent).
        generator: draws of the starts; of seed 0 if not given.
        max_iterations: steps, at most.
        tolerance: stop when F falls by less than this share of itself.
        restarts: independent starts; the cheapest result is returned.

    Returns:
        Atoms and weights in the type and on the device of the first measure. cost: F, by exact transport; trace: F at each
        step, never rising.

    Raises:
        WmddError: a measure, its masses, a weight or k are not usable; the message says which.

    Example:
        >>> import torch
        >>> left = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
        >>> right = torch.tensor([[4.0, 0.0], [4.0, 2.0]])
        >>> found = barycenter([left, right], [0.75, 0.25])
        >>> found.atoms.sort(dim=0).values
        tensor([[1., 0.],
                [1., 2.]])
        >>> found.cost
        3.0
    """
    points = _points(measures)
    lambdas = _shares(weights_of_measures, len(points), "weights_of_measures")
    given = [None] * len(points) if masses is None else masses
    if len(given) != len(points):
        raise WmddError(
            f"masses has {len(given)} entries for {len(points)} measures; give one each, None for equal masses"
        )
    shares = [_shares(a, len(x), f"masses of measure {m}") for m, (a, x) in enumerate(zip(given, points, strict=True))]
    k = max(len(x) for x in points) if k is None else k
    check_k(k)
    check_weights(weights)
    if max_iterations < 1 or restarts < 1:
        raise WmddError(f"max_iterations and restarts must be at least 1, got {max_iterations} and {restarts}")
    # What has no share or no mass is left out: it would cost time and change nothing.
    used = [m for m in range(len(points)) if lambdas[m] > 0]
    places = [points[m].detach().double().cpu()[shares[m] > 0] for m in used]
    shares = [shares[m][shares[m] > 0] for m in used]
    lambdas = lambdas[used]
    generator = generator or torch.Generator().manual_seed(0)
    if len(places) == 1 and bool((shares[0] == shares[0][0]).all()):
        found = quantize(
            places[0], k, weights=weights, generator=generator, max_iterations=max_iterations, tolerance=tolerance,
            restarts=restarts,
        )  # fmt: skip
        return like(points[0], found)
    results = []
    for _ in range(restarts):
        m = int(torch.multinomial(lambdas, 1, generator=generator))
        start = draw(places[m], shares[m], k, generator)
        results.append(alternate(places, shares, lambdas, start, weights == "free", max_iterations, tolerance))
    return like(points[0], min(results, key=lambda found: found.cost))


def _points(measures: Sequence[Points]) -> list[Tensor]:
    """Return the measures' points, of one dimension."""
    if len(measures) == 0:
        raise WmddError("a barycenter needs at least one measure")
    points = [as_points(measure, f"measure {m}") for m, measure in enumerate(measures)]
    for m, x in enumerate(points):
        if x.shape[1] != points[0].shape[1]:
            raise WmddError(
                f"measure {m} has points of {x.shape[1]} dimensions, measure 0 of {points[0].shape[1]}; all must have the same"
            )
    return points


def _shares(values: Values | None, count: int, what: str) -> Tensor:
    """Return values [count] divided by their sum, float64; equal ones for None."""
    if values is None:
        return torch.full((count,), 1 / count, dtype=torch.float64)
    found = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    if found.shape != (count,):
        raise WmddError(f"{what}: {count} numbers are needed, got {tuple(found.shape)}")
    if not bool((found >= 0).all()) or not 0 < float(found.sum()) < float("inf"):
        least, total = float(found.min()), float(found.sum())
        raise WmddError(
            f"{what}: none may be negative and the sum must be positive, got a least of {least}, a sum of {total}"
        )
    return found / found.sum()
