"""Pictures: the bytes of a file become uint8 RGB pixels, the same ones however the file is stored.

The only place that decodes. Pictures come from anywhere: just the formats in `_FORMATS` are tried, anything may be damaged.
"""

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps

from wmdd.progress import progress

T = TypeVar("T")
U = TypeVar("U")

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # all that Pillow may try; EPS would run a program


class UnreadableError(Exception):
    """A file whose pixels can't be had; says why."""


def decode(data: bytes, resolution: int) -> np.ndarray:
    """Return the RGB pixels [3, R, R] uint8 of an encoded picture, or [3, H, W] as it is for resolution 0.

    The shorter side is resized to R (bilinear, antialiased) and the centre cropped, done as one resampling of the
    central square. The orientation in the EXIF data is honoured and of an animation the first frame is taken.

    Raises:
        UnreadableError: it is not a picture, is cut short, or has more pixels than Pillow's limit.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
                raise UnreadableError(f"{image.width} x {image.height} pixels are more than Pillow's limit")
            image.load()
            _turn_upright(image)
            rgb = _to_rgb(image)
            square = ImageOps.fit(rgb, (resolution, resolution), Image.Resampling.BILINEAR) if resolution else rgb
            return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))  # [H, W, 3] -> [3, H, W]
    except (MemoryError, UnreadableError):
        raise
    except Image.UnidentifiedImageError:
        raise UnreadableError("not a picture, or of a format that is not read" if data else "empty file") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise UnreadableError(" ".join(str(error).split()) or type(error).__name__) from None


def decode_all(files: list[bytes], resolution: int, what: str) -> np.ndarray:
    """Return the RGB pixels [N, 3, R, R] uint8 of encoded pictures."""
    images = np.empty((len(files), 3, resolution, resolution), np.uint8)
    decoded = in_order(lambda file: decode(file, resolution), files)
    for index, (_, pixels) in enumerate(progress(decoded, what, len(files), unit="img")):
        images[index] = pixels.result()
    return images


def _turn_upright(image: Image.Image) -> None:
    """Apply the orientation in the EXIF data; damaged EXIF data do not make a picture unreadable."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # SyntaxError, struct.error, ...: Pillow lets through what its TIFF reader meets
        return


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB: 16-bit grey is divided by 257 (65535 -> 255), transparency is laid on white."""
    if image.mode[0] in "IF":
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise UnreadableError("32-bit values, whose range is not defined")
        return Image.fromarray(((values.astype(np.int64) + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def sizes_agree(paths: Iterable[Path]) -> bool:
    """Compare the sizes in the headers; stops at the first that differs, passes over files that have none."""
    sizes = (future.result() for _, future in in_order(_size, paths))
    known = (size for size in sizes if size)
    first = next(known, None)
    return all(size == first for size in known)


def _size(path: Path) -> tuple[int, int] | None:
    with suppress(Exception), Image.open(path, formats=_FORMATS) as image:
        return image.size
    return None


def in_order(function: Callable[[T], U], items: Iterable[T]) -> Iterator[tuple[T, Future[U]]]:
    """Yield each item and the future of function(item), computed a little ahead by as many threads as torch may use."""
    threads = torch.get_num_threads()
    pending: deque[tuple[T, Future[U]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            pending.append((item, pool.submit(function, item)))
            if len(pending) > 4 * threads:
                yield pending.popleft()
        yield from pending
