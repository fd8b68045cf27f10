"""Decoding: every kind of picture becomes upright RGB of the wanted size, or is refused with the reason."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.stages.test_data import noise
from wmdd.datasets.decode import UnreadableError, decode, decode_plain


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rgb(file: bytes) -> np.ndarray:
    return decode(file, 0).pixels.transpose(1, 2, 0)


def test_grey_and_one_bit() -> None:
    for grey in (noise(6, 6), noise(6, 6) > 127):
        values = np.stack([grey * np.uint8(255 if grey.dtype == bool else 1)] * 3, -1)
        np.testing.assert_array_equal(rgb(encoded(Image.fromarray(grey))), values)


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


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGB", "P"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    image, options = Image.new(mode, (3, 1)), {}
    if mode == "P":
        image.putpalette([9, 9, 9, 10, 10, 10, 0, 0, 0])
        options["transparency"] = b"\x00\xff\x33"
    if mode == "RGB":
        options["transparency"] = (9, 9, 9)  # a colour, without an alpha channel
    values = {"RGBA": [(9, 9, 9, 0), (10, 10, 10, 255), (0, 0, 0, 51)], "LA": [(9, 0), (10, 255), (0, 51)]}
    values |= {"RGB": [(9, 9, 9), (10, 10, 10), (204, 204, 204)], "P": [0, 1, 2]}
    for x, value in enumerate(values[mode]):
        image.putpixel((x, 0), value)
    np.testing.assert_array_equal(rgb(encoded(image, **options)), [[[255] * 3, [10] * 3, [204] * 3]])


def test_cmyk() -> None:
    ink = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    np.testing.assert_allclose(rgb(encoded(ink, "JPEG", quality=100))[0, 0], [0, 255, 255], atol=2)
    np.testing.assert_array_equal(rgb(encoded(ink, "TIFF"))[0, 0], [0, 255, 255])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_orientation(kind: str) -> None:
    image = Image.fromarray(np.kron(noise(2, 3), np.ones((8, 8), np.uint8)))
    for orientation, quarter_turns in ((1, 0), (3, 2), (6, -1), (8, 1)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        upright = np.rot90(rgb(encoded(image, kind)), quarter_turns)
        np.testing.assert_array_equal(rgb(encoded(image, kind, exif=exif)), upright)


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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_make_a_picture_unreadable(kind: str) -> None:
    image = Image.fromarray(noise(8, 8, 3))
    for exif in (b"Exif\x00\x00junk", b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff" + b"\x12\x01" * 9):
        np.testing.assert_array_equal(rgb(encoded(image, kind, exif=exif)), rgb(encoded(image, kind)))


def test_of_an_animation_the_first_frame_and_of_formats_that_run_programs_nothing() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    file = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(rgb(file)[0, 0], [255, 0, 0])
    with pytest.raises(UnreadableError, match="not a picture"):
        decode(encoded(frames[0], "EPS"), 0)


@settings(deadline=None)  # the first call imports torchvision
@given(
    st.sampled_from(["RGB", "L"]),
    st.sampled_from([{}, {"quality": 30}, {"subsampling": 0}, {"progressive": True}, {"optimize": True}]),
    st.integers(1, 64),
)
def test_plain_files_have_the_same_pixels_the_fast_way(mode: str, options: dict[str, Any], side: int) -> None:
    file = encoded(Image.fromarray(noise(side, side, 3)).convert(mode), "JPEG", **options)
    decoded = decode(file, side)
    assert decoded.plain
    assert (decoded.mode, decoded.size) == (mode, (side, side))
    np.testing.assert_array_equal(decode_plain(file), decoded.pixels)


def test_what_is_not_plain() -> None:
    image, exif = Image.fromarray(noise(16, 16, 3)), Image.Exif()
    exif[0x0112] = 6
    files = [encoded(image, "PNG"), encoded(image.convert("CMYK"), "JPEG"), encoded(image, "JPEG", exif=exif)]
    for file in (*files, encoded(image.resize((16, 15)), "JPEG"), encoded(image.resize((17, 17)), "JPEG")):
        assert not decode(file, 16).plain


def test_a_file_that_is_no_jpeg_is_refused_by_the_fast_way() -> None:
    for content in (b"", b"hello", encoded(Image.new("RGB", (4, 4)), "PNG")):
        with pytest.raises(UnreadableError):
            decode_plain(content)
