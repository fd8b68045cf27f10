r"""The mean of four circles, three ways: a drawing of the idea in Figure 1 of the WMDD paper (arXiv 2311.18531).

Each measure mu_m lies on a circle, with the share lambda_m = 1/4, and is shown as a density p_m, blurred by a Gaussian. The
Wasserstein barycenter minimises \sum_m lambda_m W_2^2(mu, mu_m) and is again a circle, with the mean centre and the mean
radius. The Euclidean mean \sum_m lambda_m p_m is all four circles at once. The KL mean minimises \sum_m lambda_m KL(p || p_m)
and is the normalised geometric mean \prod_m p_m^lambda_m: a spot where the blurred circles come closest.

    python -m benchmarks.circles [--points 240] [--output docs/images/circles.png]
"""

import argparse
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.colors import PowerNorm
from torch import Tensor

from wmdd.transport.several import barycenter

CIRCLES = [(-1.1, 0.9, 1.5), (1.2, 1.0, 0.8), (-0.9, -1.1, 0.9), (1.0, -0.8, 1.6)]  # centre and radius
BLUR = 0.14  # standard deviation of the Gaussian, in the units of the plane
SIDE, PIXELS = 3.0, 220  # half the width of the picture, and its resolution


def circle(x: float, y: float, radius: float, points: int) -> Tensor:
    """Return points [N, 2] at equal distances on a circle."""
    angle = torch.arange(points, dtype=torch.float64) * (2 * math.pi / points)
    return torch.tensor([x, y]) + radius * torch.stack([angle.cos(), angle.sin()], 1)


def log_density(points: Tensor) -> Tensor:
    """Return the logarithm of the blurred measure on the grid [PIXELS, PIXELS], up to the constant of the Gaussian."""
    axis = torch.linspace(-SIDE, SIDE, PIXELS, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis).flip(1)  # rows are y
    exponent = -torch.cdist(grid, points).square() / (2 * BLUR**2)
    return (exponent.logsumexp(1) - math.log(len(points))).reshape(PIXELS, PIXELS)


def euclidean_mean(logs: Tensor) -> Tensor:
    r"""Return \sum_m p_m / M of densities given by their logarithms [M, H, W]."""
    return logs.exp().mean(0)


def kl_mean(logs: Tensor) -> Tensor:
    r"""Return \prod_m p_m^(1/M), normalised to the mass of p_1, of densities given by their logarithms [M, H, W]."""
    blurred = logs.mean(0)
    return (blurred - blurred.logsumexp((0, 1)) + logs[0].logsumexp((0, 1))).exp()


def main() -> None:
    """Compute the three means and draw them beside the four circles."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=240, help="on each circle, and of the barycenter")
    parser.add_argument("--output", type=Path, default=Path("docs/images/circles.png"))
    options = parser.parse_args()
    measures = [circle(*one, options.points) for one in CIRCLES]
    found = barycenter(measures, k=options.points, restarts=3)
    centre = found.atoms.mean(0)
    radius = (found.atoms - centre).norm(dim=1)
    print(
        f"centre {centre[0]:.3f} {centre[1]:.3f}, radius {radius.min():.3f} to {radius.max():.3f}, cost {found.cost:.4f}"
    )
    logs = torch.stack([log_density(x) for x in measures])
    draw(logs, [euclidean_mean(logs), kl_mean(logs), log_density(found.atoms).exp()], options.output)


def draw(logs: Tensor, means: list[Tensor], output: Path) -> None:
    """Draw the densities of the circles in a square of four, and their means beside it, each in its own scale of colours."""
    side, gap, foot = 2.4, 0.12, 0.36  # inches
    width, height = 4 * side + 5 * gap, side + gap + foot
    figure = plt.figure(figsize=(width, height), dpi=100)
    small = (side - gap / 2) / 2
    corners = [
        (gap, foot + side - small),
        (gap + side - small, foot + side - small),
        (gap, foot),
        (gap + side - small, foot),
    ]
    panels = [(*corner, small, one.exp()) for corner, one in zip(corners, logs, strict=True)]
    panels += [(gap + (i + 1) * (side + gap), foot, side, one) for i, one in enumerate(means)]
    for left, bottom, size, density in panels:
        axes = figure.add_axes((left / width, bottom / height, size / width, size / height), xticks=[], yticks=[])
        axes.imshow(density, origin="lower", cmap="Purples", interpolation="bilinear", norm=PowerNorm(0.7))
        axes.spines[:].set_color("0.75")
    for i, caption in enumerate(["Four measures", "Euclidean mean", "KL mean", "Wasserstein barycenter"]):
        middle = gap + i * (side + gap) + side / 2
        figure.text(middle / width, foot / 2 / height, caption, ha="center", va="center", fontsize=12)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()
