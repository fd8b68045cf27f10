"""Pixels of a distilled set: bytes, or float32 in unit scale (black 0, white 1) where a method lets them leave that range."""

import numpy as np


def as_bytes(images: np.ndarray) -> np.ndarray:
    """Return images as uint8 for the eye: floats in unit scale are rounded, and cut to black and white."""
    if images.dtype == np.uint8:
        return images
    return (images * np.float32(255)).round().clip(0, 255).astype(np.uint8)
