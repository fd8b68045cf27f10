"""Clouds of points for `benchmarks.transport`: ten that the solvers were not tuned on, and one in a file."""

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_sample_image
from sklearn.feature_extraction.image import extract_patches_2d

Points = np.ndarray


def blobs(n: int, dimensions: int, parts: int, apart: float, seed: int) -> Points:
    """Draw Gaussians of width 1 about centres that are `apart` wide."""
    draws = np.random.default_rng(seed)
    centres = apart * draws.standard_normal((parts, dimensions))
    return (centres[draws.integers(parts, size=n)] + draws.standard_normal((n, dimensions))).astype(np.float32)


def heavy_tails(n: int, dimensions: int, freedom: float, seed: int) -> Points:
    """Draw from Student's t distribution."""
    draws = np.random.default_rng(seed)
    scale = np.sqrt(draws.chisquare(freedom, (n, 1)) / freedom)
    return (draws.standard_normal((n, dimensions)) / scale).astype(np.float32)


def duplicates(n: int, dimensions: int, places: int, seed: int) -> Points:
    """Draw from a few places, the i-th with odds 1/i."""
    draws = np.random.default_rng(seed)
    odds = 1 / np.arange(1, places + 1)
    place = draws.choice(places, n, p=odds / odds.sum())
    return draws.standard_normal((places, dimensions))[place].astype(np.float32)


def patches(name: str, n: int, size: int, seed: int) -> Points:
    """Cut patches of a photograph, [n, size, size, 3] in [0, 1]."""
    image = load_sample_image(name) / 255
    return extract_patches_2d(image, (size, size), max_patches=n, random_state=seed).astype(np.float32)


@torch.inference_mode()
def features(n: int, seed: int) -> Points:
    """Return means of 512 channels of a small convolutional network with random weights, of patches."""
    draws = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(patches("china.jpg", n, 32, seed)).permute(0, 3, 1, 2)
    for before, after in ((3, 32), (32, 128), (128, 512)):
        weight = torch.randn(after, before, 3, 3, generator=draws) * (2 / (9 * before)) ** 0.5
        x = torch.nn.functional.conv2d(x, weight, stride=2, padding=1)
        x = torch.relu((x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True))
    return x.mean((2, 3)).numpy()


def clouds() -> dict[str, Points]:
    """Return the ten clouds by name."""
    pixels = load_sample_image("china.jpg").reshape(-1, 3).astype(np.float32)
    colours = pixels[np.random.default_rng(15).choice(len(pixels), 5000, replace=False)]
    return {
        "blobs 2500 x 1": blobs(2500, 1, 30, 15, 11),
        "heavy tails 4000 x 1": heavy_tails(4000, 1, 3, 12),
        "heavy tails 2500 x 2": heavy_tails(2500, 2, 2.5, 13),
        "blobs 3500 x 2": blobs(3500, 2, 60, 10, 14),
        "colours 5000 x 3": colours,
        "blobs 4000 x 16": blobs(4000, 16, 80, 4, 16),
        "heavy tails 3000 x 16": heavy_tails(3000, 16, 3, 17),
        "duplicates 4000 x 64": duplicates(4000, 64, 300, 18),
        "patches 3000 x 64": patches("flower.jpg", 3000, 8, 19).mean(3).reshape(3000, -1),
        "features 1300 x 512": features(1300, 20),
    }


def gamma_mixture(n: int, dimensions: int, modes: int = 12, seed: int = 0) -> Points:
    """Draw points that are positive and skewed like features after a rectifier, around some modes."""
    draws = np.random.default_rng(seed)
    shapes = draws.gamma(2.0, 0.5, (modes, dimensions))
    share = draws.dirichlet(np.full(modes, 3.0))
    return draws.gamma(shapes[draws.choice(modes, n, p=share)] + 0.05, 1.0).astype(np.float32)


def write_large(path: Path, n: int = 200_000, dimensions: int = 512) -> None:
    """Write points that are positive and skewed like features after a rectifier, around 50 modes, as a NumPy file."""
    draws = np.random.default_rng(0)
    shapes = draws.gamma(2.0, 0.5, (50, dimensions))
    share = draws.dirichlet(np.full(50, 3.0))
    points = np.lib.format.open_memmap(path, "w+", "float32", (n, dimensions))
    for at in range(0, n, 10_000):
        points[at : at + 10_000] = draws.gamma(shapes[draws.choice(50, min(10_000, n - at), p=share)] + 0.05, 1.0)
    points.flush()
