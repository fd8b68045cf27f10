"""Grid: the picture of a distilled set, a row a class with its name; equal images give equal bytes."""

import html
import io
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image

from wmdd.artifacts.pixels import as_bytes

SMALL, LARGE = 96, 128  # px: smaller images are enlarged by a whole factor, larger ones reduced
GAP, MARGIN = 4, 12  # px
FONT, INK = 15, "#222222"  # px
LINE, LINES = 24, 4  # letters of a name in a line, and lines


def draw(images: np.ndarray, names: list[str], output: Path, title: str) -> None:
    """Draw images [C, K, 3, H, W], a row a class with its name, under a title."""
    head = text([title])
    labels = [text(textwrap.wrap(name, LINE, max_lines=LINES, placeholder=" …")) for name in names]
    pictures = [
        [_scaled(image) for image in row] for row in as_bytes(images).transpose(0, 1, 3, 4, 2)
    ]  # [C, K, H, W, 3]
    width, height = (side + GAP for side in pictures[0][0].size)
    left, top = max(label.width for label in labels) + 2 * MARGIN, head.height + 2 * MARGIN
    right = max(left + len(pictures[0]) * width - GAP, MARGIN + head.width)
    canvas = Image.new("RGB", (right + MARGIN, top + len(pictures) * height - GAP + MARGIN), "white")
    canvas.paste(head, (min(left, right - head.width), MARGIN))
    for row, (label, members) in enumerate(zip(labels, pictures, strict=True)):
        y = top + row * height
        canvas.paste(label, (left - MARGIN - label.width, y + (height - GAP - label.height) // 2))
        for column, picture in enumerate(members):
            canvas.paste(picture, (left + column * width, y))
    canvas.save(output, "PNG")


def _scaled(pixels: np.ndarray) -> Image.Image:
    """Return an image, small ones enlarged pixel for pixel, large ones reduced."""
    picture, side = Image.fromarray(pixels), max(pixels.shape[:2])
    if side <= LARGE:
        factor = -(-SMALL // side)
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    width, height = (max(1, round(length * LARGE / side)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def text(lines: list[str], font: int = FONT) -> Image.Image:
    """Return lines of text, dark on white and flush right, no wider than they are.

    The font comes with vl-convert and has Latin, Greek, Cyrillic and Hebrew letters; Pillow's own has those of ASCII alone.
    """
    import vl_convert

    room, step = 1 + font * max(map(len, lines), default=0), round(1.25 * font)
    shown = ("".join(letter if letter.isprintable() else "?" for letter in line) for line in lines)
    rows = (f'<text x="{room}" y="{(i + 0.78) * step:.1f}">{html.escape(line)}</text>' for i, line in enumerate(shown))
    style = f'font-family="Liberation Sans" font-size="{font}" text-anchor="end" fill="{INK}"'
    size = f'width="{room}" height="{max(1, len(lines)) * step}"'
    source = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><g {style}>{"".join(rows)}</g></svg>'
    with Image.open(io.BytesIO(vl_convert.svg_to_png(source))) as whole:
        box = whole.getbbox()
        picture = whole.crop((box[0] if box else room, 0, *whole.size))
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")
