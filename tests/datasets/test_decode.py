"""Decoding: every kind of picture becomes upright RGB of the wanted size, or is refused with the reason."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.stages.test_data import noise
from wmdd.datasets.decode import UnreadableError, decode, decode_plain


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rgb(file: bytes) -> np.ndarray:
    return decode(file, 0).pixels.transpose(1, 2, 0)


def test_grey() -> None:
    grey = noise(6, 6)
    np.testing.assert_array_equal(rgb(encoded(Image.fromarray(grey))), np.stack([grey] * 3, -1))


def test_one_bit() -> None:
    bits = noise(6, 6) > 127
    np.testing.assert_array_equal(rgb(encoded(Image.fromarray(bits))), np.stack([bits * 255] * 3, -1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    deep = np.array([[0, 257, 128 * 257], [255 * 257, 65535, 300], [127 * 257 + 100, 1000, 256]], np.uint16)
    expected = [[0, 1, 128], [255, 255, 1], [127, 4, 1]]
    np.testing.assert_array_equal(rgb(encoded(Image.fromarray(deep), kind))[..., 1], expected)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_without_a_range_are_refused(dtype: type) -> None:
    file = encoded(Image.fromarray(np.full((4, 4), 70000, dtype)), "TIFF")
    with pytest.raises(UnreadableError, match="range"):
        decode(file, 0)


@pytest.mark.parametrize(
    ("mode", "pixels", "solid"),
    [
        ("RGBA", [(10, 20, 30, 0), (10, 20, 30, 255), (0, 0, 0, 51)], [10, 20, 30]),
        ("LA", [(10, 0), (10, 255), (0, 51)], [10, 10, 10]),
    ],
)
def test_transparency_is_laid_on_white(mode: str, pixels: list[tuple[int, ...]], solid: list[int]) -> None:
    image = Image.new(mode, (3, 1))
    for x, pixel in enumerate(pixels):
        image.putpixel((x, 0), pixel)
    np.testing.assert_array_equal(rgb(encoded(image)), [[[255] * 3, solid, [204] * 3]])


@pytest.mark.parametrize("transparency", [None, 1, b"\xff\x00\xff"])
def test_palette(transparency: int | bytes | None) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    options: dict[str, Any] = {} if transparency is None else {"transparency": transparency}
    middle = [40, 50, 60] if transparency is None else [255] * 3
    np.testing.assert_array_equal(rgb(encoded(image, **options)), [[[10, 20, 30], middle, [70, 80, 90]]])


def test_a_transparent_colour_without_an_alpha_channel() -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    np.testing.assert_array_equal(rgb(encoded(image, transparency=(9, 9, 9))), [[[1, 2, 3], [255] * 3]])


def test_cmyk() -> None:
    ink = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    np.testing.assert_allclose(rgb(encoded(ink, "JPEG", quality=100))[0, 0], [0, 255, 255], atol=2)
    np.testing.assert_array_equal(rgb(encoded(ink, "TIFF"))[0, 0], [0, 255, 255])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(1, lambda x: x), (3, lambda x: x[::-1, ::-1]), (6, lambda x: np.rot90(x, -1)), (8, lambda x: np.rot90(x))],
)
def test_orientation(kind: str, orientation: int, turn: Callable[[np.ndarray], np.ndarray]) -> None:
    image = Image.fromarray(np.kron(noise(2, 3), np.ones((8, 8), np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = rgb(encoded(image, kind))
    np.testing.assert_array_equal(rgb(encoded(image, kind, exif=exif)), turn(upright))


@pytest.mark.parametrize(("height", "width"), [(32, 48), (48, 32), (32, 32), (33, 70)])
def test_the_shorter_side_is_resized_and_the_centre_cropped(height: int, width: int) -> None:
    image = Image.fromarray(noise(height, width, 3))
    side = min(height, width)
    size = (round(16 * width / side), round(16 * height / side))
    left, top = (size[0] - 16) // 2, (size[1] - 16) // 2
    whole = np.asarray(image.resize(size, Image.Resampling.BILINEAR), float)
    expected = whole[top : top + 16, left : left + 16]
    found = decode(encoded(image), 16).pixels.transpose(1, 2, 0)
    # Where the long side is not a whole number of pixels, a rounded size moves every sample a little.
    np.testing.assert_allclose(found, expected, atol=1 if height % 16 == width % 16 == 0 else 30)
    assert np.abs(found - expected).mean() < 6


def test_a_sliver_needs_no_memory_for_the_whole() -> None:
    assert decode(encoded(Image.new("RGB", (60000, 1), (1, 2, 3))), 64).pixels.shape == (3, 64, 64)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_make_a_picture_unreadable(kind: str) -> None:
    image = Image.fromarray(noise(8, 8, 3))
    for exif in (b"Exif\x00\x00junk", b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff" + b"\x12\x01" * 9):
        np.testing.assert_array_equal(rgb(encoded(image, kind, exif=exif)), rgb(encoded(image, kind)))


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    file = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(rgb(file)[0, 0], [255, 0, 0])


def test_formats_that_run_programs_are_not_tried() -> None:
    with pytest.raises(UnreadableError, match="not a picture"):
        decode(encoded(Image.new("RGB", (4, 4)), "EPS"), 0)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "options", [{}, {"quality": 30}, {"subsampling": 0}, {"progressive": True}, {"optimize": True}]
)
@pytest.mark.parametrize("side", [1, 8, 37, 64])
def test_plain_files_have_the_same_pixels_the_fast_way(mode: str, options: dict[str, Any], side: int) -> None:
    image = Image.fromarray(noise(side, side, 3)).convert(mode)
    found = decode(encoded(image, "JPEG", **options), side)
    assert found.plain
    assert (found.mode, found.size) == (mode, (side, side))
    np.testing.assert_array_equal(decode_plain(encoded(image, "JPEG", **options)), found.pixels)


def test_what_is_not_plain() -> None:
    image = Image.fromarray(noise(16, 16, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(image, "JPEG"), 0).plain
    assert not decode(encoded(image, "JPEG"), 15).plain
    assert not decode(encoded(image.resize((16, 15)), "JPEG"), 16).plain
    assert not decode(encoded(image, "PNG"), 16).plain
    assert not decode(encoded(image.convert("CMYK"), "JPEG"), 16).plain
    assert not decode(encoded(image, "JPEG", exif=exif), 16).plain


def test_a_file_that_is_no_jpeg_is_refused_by_the_fast_way() -> None:
    for content in (b"", b"hello", encoded(Image.new("RGB", (4, 4)), "PNG")):
        with pytest.raises(UnreadableError):
            decode_plain(content)
