"""Decay: how fast W2 falls with the number of atoms, against K^(-1/d) with the intrinsic dimension d of the latents.

Zador's theorem (Graf and Luschgy 2000, Theorem 6.2) has W2 of the optimal K atoms fall as K^(-1/d) for a measure on a set of
dimension d. Here d is fitted to the costs of the solver at K = 1, 2, 4, ..., and measured on the latents themselves.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from wmdd.base.rng import generator
from wmdd.stages.point_clouds import Cloud
from wmdd.transport import decay as fitted
from wmdd.transport import intrinsic_dimension, quantize

if TYPE_CHECKING:
    from wmdd.settings.latent import DecaySettings


def chosen(classes: int, settings: "DecaySettings") -> list[int]:
    """Return the classes that are looked at."""
    return sorted(set(np.linspace(0, classes - 1, min(classes, settings.classes)).round().astype(int).tolist()))


def decay(cloud: Cloud, label: int, settings: "DecaySettings") -> dict[str, Any]:
    """Return of a class: atoms K, W2^2 of the optimal K atoms, dimension fitted to them, and measured in two ways."""
    points = cloud.read(cloud.rows(label))
    most = min(settings.most, len(points) - 1)
    atoms = [2**power for power in range(int(np.log2(max(most, 1))) + 1)]
    draws = {k: generator("decay", label, k) for k in atoms}
    costs = [quantize(points, k, generator=draws[k]).cost for k in atoms]
    falling = dict(zip(atoms[1:], costs[1:], strict=True))  # not the variance, of which the rate does not speak
    rate = fitted(falling)
    return {
        "class": label,
        "atoms": atoms,
        "cost": costs,
        "fitted": rate.dimension,
        "error": rate.error,
        "twonn": intrinsic_dimension(points, generator=generator("decay", "dimension", label)),
        "mle": intrinsic_dimension(points, "mle", generator=generator("decay", "dimension", label)),
    }
