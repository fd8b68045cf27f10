r"""Distance: W2 between a distilled set and the real data, class by class, in the space of a teacher's features.

For class c, with the features f(x_ck) and weights w_ck of the distilled images and those of the N_c real ones,

    W_2^2(\sum_k w_ck delta_{f(x_ck)}, 1/N_c \sum_i delta_{f_i}),

by exact transport. Of images that a decoder G made of atoms z_k this is the left side of the push-forward bound of DDOQ
(Theorem 1): W_2(G_# nu, G_# mu) <= L W_2(nu, mu) for a decoder of Lipschitz constant L, the latents' distance on the right.

Beside it, for the eye: which real image of its class is nearest to each distilled one.
"""

import torch
from torch import Tensor

from wmdd.networks.context import Context
from wmdd.networks.models import Network, normalise
from wmdd.networks.normalisation import Normalisation
from wmdd.stages.point_clouds import Cloud
from wmdd.transport.measure import squared_distances, transport_cost

SIZE = 128  # images a forward pass


@torch.inference_mode()
def features(network: Network, images: Tensor, normalisation: Normalisation, context: Context) -> Tensor:
    """Return the features [N, D] of images [N, 3, R, R], in the engine's precision."""
    engine = context.engine
    engine.place(network).eval()
    parts = []
    for part in images.split(SIZE):
        with engine.autocast():
            parts.append(network.embed(normalise(engine.arranged(part, network), normalisation)).float().cpu())
    return torch.cat(parts)


def distances(
    embedded: Tensor, weights: Tensor, cloud: Cloud, context: Context
) -> tuple[dict[str, list[float]], list[list[int]]]:
    """Measure the distilled images of each class against the real ones of the class.

    Args:
        embedded: features of the distilled images, [C, K, D].
        weights: their masses, [C, K].
        cloud: the features of the real images.
        context: of the job.

    Returns:
        Of each class W2^2 with the images' weights (`cost`) and with equal ones (`uniform_cost`) and the variance of the real
        features (`variance`); and of each distilled image the row of the nearest real one in `cloud`, [C][K], of equally near
        ones the first.
    """
    nearest: list[list[int]] = []
    table: dict[str, list[float]] = {"cost": [], "uniform_cost": [], "variance": []}
    for label in context.progress(range(len(embedded)), "distances", len(embedded), 0, "class"):
        rows = cloud.rows(label)
        points, masses = cloud.read(rows), weights[label].double() / weights[label].double().sum()
        equal = torch.full_like(masses, 1 / len(masses))
        table["cost"].append(transport_cost(embedded[label], masses, points))
        same = torch.allclose(masses, equal, rtol=1e-6, atol=0)
        table["uniform_cost"].append(table["cost"][-1] if same else transport_cost(embedded[label], equal, points))
        table["variance"].append(cloud.variance(rows))
        nearest.append([int(rows[i]) for i in squared_distances(embedded[label].double(), points.double()).argmin(1)])
    return table, nearest
