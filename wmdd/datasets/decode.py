"""The bytes of a picture file become uint8 RGB pixels, the same ones however the file is stored.

Nothing else decodes. Files come from anywhere: only the formats in `_FORMATS` are tried, and anything may be damaged.
"""

import io
import warnings
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from wmdd.base.errors import one_line

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # all that Pillow may try; EPS would run a program
_TOO_LARGE = "more pixels than the limit of {}"  # of Pillow, against files that are small and fill the memory


class UnreadableError(Exception):
    """A file whose pixels can't be had; says why."""


class Decoded(NamedTuple):
    """The pixels of a picture, and what they were made of."""

    pixels: np.ndarray  # [3, R, R] uint8, RGB
    mode: str  # of the file: L, P, CMYK, ..., as Pillow calls it
    size: tuple[int, int]  # width and height in the file
    plain: bool  # whether `decode_plain` finds the same pixels


def decode(data: bytes, resolution: int) -> Decoded:
    """Return the RGB pixels [3, R, R] uint8 of an encoded picture, or [3, H, W] as it is for resolution 0.

    The shorter side is resized to R (bilinear, antialiased) and the centre cropped, done as one resampling of the
    central square. The orientation in the EXIF data is honoured and of an animation the first frame is taken.

    Raises:
        UnreadableError: it is not a picture, is cut short, or has more pixels than Pillow's limit.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            size, mode = image.size, image.mode
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
                raise UnreadableError(f"{image.width} x {image.height}: {_TOO_LARGE.format(Image.MAX_IMAGE_PIXELS)}")
            image.load()
            plain = image.format == "JPEG" and mode in ("L", "RGB") and size == (resolution or size[0],) * 2
            plain = plain and not image.getexif()
            _turn_upright(image)
            rgb = _to_rgb(image)
            square = ImageOps.fit(rgb, (resolution, resolution), Image.Resampling.BILINEAR) if resolution else rgb
            pixels = np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))  # [H, W, 3] -> [3, H, W]
            return Decoded(pixels, mode, size, plain)
    except (MemoryError, UnreadableError):
        raise
    except Image.DecompressionBombError:
        raise UnreadableError(_TOO_LARGE.format(Image.MAX_IMAGE_PIXELS)) from None
    except Image.UnidentifiedImageError:
        raise UnreadableError("not a picture, or of a format that is not read" if data else "empty file") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise UnreadableError(one_line(error)) from None


def decode_plain(data: bytes) -> np.ndarray:
    """Return the RGB pixels [3, R, R] uint8 of a JPEG file that `decode` called plain: the same ones in half the time.

    torchvision finds the pixels that Pillow finds (both are libjpeg-turbo); it does not notice files that are cut short, so
    it is for files that Pillow has read before.

    Raises:
        UnreadableError: it is not a JPEG file.
    """
    from torchvision.io import ImageReadMode, decode_jpeg  # a second, which stored pixels do not need

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the bytes can't be written to; nobody does
            return decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.RGB).numpy()
    except (RuntimeError, ValueError) as error:
        raise UnreadableError(" ".join(str(error).split()[:12])) from None


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
