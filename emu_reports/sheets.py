"""Labelled contact sheets: many small pictures in one."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GROUND = (128, 128, 128)  # neutral grey, on which both white and black borders of pictures show
LABEL_HEIGHT = 14  # px; chosen here


def contact_sheet(images: np.ndarray, labels: Sequence[str], columns: int = 10, tile: int = 96) -> Image.Image:
    """Arrange pictures, uint8 (N, H, W, 3), on neutral grey with a label under each. tile: px per side of each picture.

    Raises ValueError if there is not one label per picture.
    """
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} pictures but {len(labels)} labels: give one per picture")
    columns = max(1, min(columns, len(images)))
    num_rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (tile + 4) + 4, num_rows * (tile + LABEL_HEIGHT + 4) + 4), GROUND)
    draw = ImageDraw.Draw(sheet)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = 4 + (i % columns) * (tile + 4), 4 + (i // columns) * (tile + LABEL_HEIGHT + 4)
        sheet.paste(Image.fromarray(image).resize((tile, tile), Image.Resampling.LANCZOS), (x, y))
        draw.text((x, y + tile + 1), _fit(label, tile), fill="white", font=_font())
    return sheet


@cache
def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    from matplotlib.font_manager import findfont

    return ImageFont.truetype(findfont("DejaVu Sans"), 10)


def _fit(text: str, width: int) -> str:
    """Return as much of a label as fits into `width` px. A label may be any text of a corpus: line breaks, control
    characters and lone surrogates, which the layout refuses, become spaces. No more text is measured than could fit.
    """
    some = text[: 2 * width]  # no letter is narrower than half a pixel
    shown = " ".join("".join(c if c.isprintable() else " " for c in some).split())
    if len(some) == len(text) and _font().getlength(shown) <= width:
        return shown
    num = bisect_right(range(len(shown) + 1), width, key=lambda num: _font().getlength(shown[:num] + "…"))
    return shown[: max(0, num - 1)] + "…"
