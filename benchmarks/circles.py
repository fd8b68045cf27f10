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

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from wmdd.report.grid import text
from wmdd.transport.several import barycenter

CIRCLES = [(-1.1, 0.9, 1.5), (1.2, 1.0, 0.8), (-0.9, -1.1, 0.9), (1.0, -0.8, 1.6)]  # centre and radius
BLUR = 0.14  # standard deviation of the Gaussian, in the units of the plane
SIDE, PIXELS = 3.0, 220  # half the width of the picture, and its resolution
PANEL, GAP, FOOT = 240, 12, 36  # px of the picture: the side of a panel, between panels, below them
# ColorBrewer's Purples, from no mass to the most
PURPLES = ["fcfbfd", "efedf5", "dadaeb", "bcbddc", "9e9ac8", "807dba", "6a51a3", "54278f", "3f007d"]
POWER = 0.7  # of the density, so that thin mass is seen


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
    step, small = PANEL + GAP, (PANEL - GAP // 2) // 2
    canvas = Image.new("RGB", (4 * step + GAP, PANEL + GAP + FOOT), "white")
    corners = [(GAP + x, GAP + y) for y in (0, PANEL - small) for x in (0, PANEL - small)]
    panels = [(corner, small, one.exp()) for corner, one in zip(corners, logs, strict=True)]
    panels += [((GAP + (i + 1) * step, GAP), PANEL, one) for i, one in enumerate(means)]
    pen = ImageDraw.Draw(canvas)
    for (left, top), side, density in panels:
        canvas.paste(heat(density).resize((side, side), Image.Resampling.BILINEAR), (left, top))
        pen.rectangle((left, top, left + side - 1, top + side - 1), outline="#bfbfbf")
    for i, caption in enumerate(["Four measures", "Euclidean mean", "KL mean", "Wasserstein barycenter"]):
        words = text([caption], 17)
        middle = GAP + i * step + PANEL // 2
        canvas.paste(words, (middle - words.width // 2, PANEL + GAP + (FOOT - words.height) // 2))
    output.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(output, "PNG", optimize=True)


def heat(density: Tensor) -> Image.Image:
    """Return a density [H, W], whose first row is the lowest, as a picture in shades of purple."""
    share = ((density - density.min()) / (density.max() - density.min())).flipud() ** POWER
    stops = np.array([list(bytes.fromhex(colour)) for colour in PURPLES])
    place = share.numpy() * (len(stops) - 1)
    colours = [np.interp(place, np.arange(len(stops)), channel) for channel in stops.T]
    return Image.fromarray(np.stack(colours, 2).round().astype(np.uint8))


if __name__ == "__main__":
    main()
