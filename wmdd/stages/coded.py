r"""Coded: as many real images as fit, as WebP files, into the bytes of the K raw images of a class.

A raw image has 3 R^2 bytes. Published sets count images, or for methods that store something else ("parametrisations" such as
IDC, HaBa, FreD) the bytes of as many raw images; real images in a common codec are the control that such methods need. A set
of C classes holds M images of each, in files of b_ci bytes with

    \sum_c \sum_{i <= M} b_ci  <=  C K 3 R^2,   M the largest such number,

and an epoch shows K of them, so that a student takes as many steps as on K raw images (`wmdd.stages.shown`).
"""

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wmdd.base.rng import generator
from wmdd.datasets.decode import decode

if TYPE_CHECKING:
    from wmdd.datasets.loader import Pictures

PROBED = 256  # images whose files say how many will fit
SLACK = 1.05  # more than these say are chosen, of which the last are left out
EFFORT = 6  # of the encoder, the most


def encoded(image: Tensor, quality: int) -> bytes:
    """Return a picture [3, H, W] uint8 as a WebP file of a quality from 0 to 100 (lossy)."""
    with io.BytesIO() as file:
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        Image.fromarray(pixels).save(file, "WEBP", quality=quality, method=EFFORT)
        return file.getvalue()


def expected(pictures: "Pictures", k: int, quality: int, seed: int) -> int:
    """Return how many images of a class to choose, so that their files fill the bytes of K raw ones: some more than that."""
    from wmdd.datasets.loader import read

    count = len(pictures.labels)
    probe = torch.randperm(count, generator=generator("select", "probe", seed))[:PROBED].sort().values
    sizes = [len(encoded(image, quality)) for image in read(pictures, probe)]
    return max(1, int(SLACK * k * 3 * pictures.resolution**2 * len(sizes) / sum(sizes)))


def fitting(sizes: np.ndarray, budget: int) -> int:
    """Return how many images of each class fit: the largest M with sizes[:, :M].sum() <= budget, of files' sizes [C, n]."""
    return int((sizes.sum(0).cumsum() <= budget).sum())


def coded(images: Iterable[Tensor], k: int, quality: int) -> tuple[Tensor, list[list[bytes]]]:
    """Return the images that fit as they look in their files, [C, M, 3, R, R] uint8, and the files, [C][M].

    Args:
        images: of each class in the order of choice, [n, 3, R, R] uint8.
        k: raw images of a class whose bytes may be used.
        quality: of the files.
    """
    files, side = [], 0
    for of_class in images:
        side = of_class.shape[-1]
        files.append([encoded(image, quality) for image in of_class])
    held = fitting(np.array([[len(file) for file in of_class] for of_class in files]), len(files) * k * 3 * side**2)
    kept = [of_class[:held] for of_class in files]
    pixels = np.stack([[decode(file, side).pixels for file in of_class] for of_class in kept])
    return torch.from_numpy(pixels), kept
