"""Pictures where people would rather look than read: labelled contact sheets."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GROUND = (128, 128, 128)  # neutral grey, so that neither white nor black borders mislead
LABEL_HEIGHT = 14  # px


def contact_sheet(images: np.ndarray, labels: Sequence[str], columns: int = 10, tile: int = 96) -> Image.Image:
    """uint8 (N, H, W, 3) pictures with a label under each, as one picture on neutral grey."""
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} pictures but {len(labels)} labels")
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
    if _font().getlength(text) <= width:
        return text
    while text and _font().getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
