"""What copies of a picture are found by: the digest of its bytes, and small grey looks of it; and how much is on it.

A look is 32 x 32 grey values with 8 x 8 colours: of the whole picture, of what is left without its plain edges (a
border, a white page), and of its core, without edges that are mostly plain (a bar with the time on it). Two pictures
are compared by any of these (alike.py), so that a re-post with a border or in a screenshot still shows the same look.
Beside each is a close look, 128 x 128 grey values, for pairs whose looks are alike: two cards of one deck, or two stars
of other widths, are one picture at 32 cells.

`detail` is the share of the picture on which something is drawn: where the brightness or a colour bends. A picture of
one colour or of a gradient has none, a page with a dot next to none. Such a picture has no look: all
blank pages look alike, and would be taken for one picture.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image
from typing_extensions import override

from emu_data.signals import Columns, LazySample, Measure, Signal

SIDE = 32  # cells of a look's grey values a side; chosen here
COLOUR_SIDE = 8  # cells of its colours a side; chosen here
NUM_BYTES = SIDE**2 + 2 * COLOUR_SIDE**2 + 1  # of a look: grey values, Cb, Cr, each row by row, and its aspect
CLOSE_SIDE = 128  # of a close look: at 64 two thin stars are still one (docs/log.md); chosen here
# Of a close look's WebP, 1.2 kB in the median (JPEG at 75 takes twice as much); off by 0.9 of 255; chosen here.
CLOSE_QUALITY = 80
ASPECT_UNITS = 32  # of the byte that holds log2(width / height), 128 for a square; to 1 %; chosen here

TRIM_SIDE = 128  # px, the longer side at which edges are looked for: to 1 % of the picture; chosen here
PLAIN = 12  # grey levels that a plain line may differ by from its median: more than JPEG's noise; chosen here
CORE_SHARE = 0.7  # of a line that must be plain for it to be no part of the core; chosen here
MIN_CORE = 0.25  # of the picture's width and height: what is smaller is a detail, not its core; chosen here

DETAIL_SIDE = 64  # cells a side on which `detail` is counted: means of them drown grain and JPEG's noise; chosen here
BEND = 4  # levels of 255 by which a cell differs from the line through its neighbours; rounding makes 2; chosen here
# Share of the picture. Of 3 019 drawings and photographs the 33 below it are plain pages and specks, by eye; see
# docs/log.md. What lies below it has no look; the gate `blank` has its own threshold in params.yaml.
MIN_DETAIL = 0.013


@dataclass(frozen=True)
class LooksSignal(Signal):
    """`looks`, one to three looks in base64, null of a blank picture; `detail`, 0..1; `stored_sha256` of the bytes in
    the shard.
    """

    name: ClassVar = "looks"
    revision: ClassVar = 2  # 2: with close looks
    columns: ClassVar = {"looks": "string", "detail": "Float64", "stored_sha256": "string"}
    sees: ClassVar = TRIM_SIDE
    milliseconds: ClassVar = 12.0

    @override
    def describe(self) -> str:
        """Return what is measured, in a few words."""
        return "small grey looks of the picture, with and without its plain edges, and the share on which anything is"

    @override
    def load(self) -> Measure:
        """Return `measure_looks`; nothing is loaded."""
        return measure_looks


def measure_looks(batch: Sequence[LazySample]) -> Columns:
    """Return the columns of LooksSignal."""
    found = [look_at(sample) for sample in batch]
    return {column: [values[column] for values in found] for column in LooksSignal.columns}


def look_at(sample: LazySample) -> dict[str, object]:
    """Return the columns of LooksSignal for one sample. Raises DecodeError if its picture cannot be decoded."""
    looks, detail = describe_picture(sample.image)
    return {"looks": looks, "detail": detail, "stored_sha256": sample.sha256}


def describe_picture(image: Image.Image) -> tuple[str | None, float]:
    """Return an RGB picture's looks (pack_looks; None if it is blank) and its detail (0..1)."""
    detail = _detail(image)
    if detail < MIN_DETAIL:
        return None, detail
    factor = -(-max(image.size) // TRIM_SIDE)
    grey = np.asarray(image.convert("L").reduce(factor), np.int16)
    boxes = [(0, 0, grey.shape[1], grey.shape[0])]
    inner = find_inner(grey, 1.0)
    if inner:  # of a flag of stripes nothing is left
        boxes.append(inner)
    core = find_inner(grey, CORE_SHARE)
    if core and core[2] - core[0] >= MIN_CORE * grey.shape[1] and core[3] - core[1] >= MIN_CORE * grey.shape[0]:
        boxes.append(core)
    boxes = [_scaled(box, factor, image) for box in dict.fromkeys(boxes)]
    # Close looks not by the means of boxes: thin lines of a crop would fall differently into them.
    close = [image.resize((CLOSE_SIDE, CLOSE_SIDE), Image.Resampling.BICUBIC, box=box).convert("L") for box in boxes]
    return pack_looks([_look(image, box) for box in boxes], close), detail


def pack_looks(looks: Sequence[bytes], close: Sequence[Image.Image]) -> str:
    """Return looks of NUM_BYTES each and their close looks (L, CLOSE_SIDE x CLOSE_SIDE) in base64: a byte with their
    number, the looks, then a WebP with the close ones side by side (alike.unpack).
    """
    strip = Image.new("L", (CLOSE_SIDE * len(close), CLOSE_SIDE))
    for place, one in enumerate(close):
        strip.paste(one, (CLOSE_SIDE * place, 0))
    file = io.BytesIO()
    strip.save(file, "WEBP", quality=CLOSE_QUALITY)
    return base64.b64encode(bytes([len(looks)]) + b"".join(looks) + file.getvalue()).decode()


def find_inner(grey: np.ndarray, share: float) -> tuple[int, int, int, int] | None:
    """Return the box (left, upper, right, lower in px) of a grey picture (H, W; int16) without its plain edges: rows
    and columns of which `share` (0..1) is within PLAIN of their median. None if that leaves nothing.

    Each line is plain by itself, so that a black bar goes, and then the white margin under it.
    """
    left, upper, right, lower = 0, 0, grey.shape[1], grey.shape[0]
    while True:
        before = left, upper, right, lower
        for axis in (1, 0):  # rows, then columns
            part = grey[upper:lower, left:right]
            near = np.abs(part - np.median(part, axis=axis, keepdims=True)) <= PLAIN
            drawn = np.flatnonzero(near.mean(axis=axis) < share)
            if not len(drawn):
                return None
            if axis == 1:
                upper, lower = upper + int(drawn[0]), upper + int(drawn[-1]) + 1
            else:
                left, right = left + int(drawn[0]), left + int(drawn[-1]) + 1
        if before == (left, upper, right, lower):
            return before


def _scaled(box: tuple[int, int, int, int], factor: int, image: Image.Image) -> tuple[int, int, int, int]:
    left, upper, right, lower = (side * factor for side in box)
    return left, upper, min(right, image.width), min(lower, image.height)


def _look(image: Image.Image, box: tuple[int, int, int, int]) -> bytes:
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX, box=box)
    colours = small.resize((COLOUR_SIDE, COLOUR_SIDE), Image.Resampling.BOX).convert("YCbCr")
    aspect = round(128 + ASPECT_UNITS * math.log2((box[2] - box[0]) / (box[3] - box[1])))
    planes = small.convert("L").tobytes() + colours.getchannel("Cb").tobytes() + colours.getchannel("Cr").tobytes()
    return planes + bytes([min(max(aspect, 0), 255)])


def _detail(image: Image.Image) -> float:
    """Return the share of the picture (0..1) on which something is drawn."""
    cells = np.asarray(image.resize((DETAIL_SIDE, DETAIL_SIDE), Image.Resampling.BOX), np.int16)
    bends = np.zeros((DETAIL_SIDE, DETAIL_SIDE), bool)
    bends[1:-1] |= np.abs(cells[2:] - 2 * cells[1:-1] + cells[:-2]).max(axis=2) > BEND
    bends[:, 1:-1] |= np.abs(cells[:, 2:] - 2 * cells[:, 1:-1] + cells[:, :-2]).max(axis=2) > BEND
    return float(bends.mean())
