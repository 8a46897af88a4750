"""Digests that find copies: SHA-256 of the bytes for exact ones, a perceptual hash and a tiny thumbnail for near ones.

The hash is pHash (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010): one bit for each
of the low frequencies, 8 x 8 of a 32 x 32 DCT of the grey picture. One thing differs on purpose. pHash compares the
coefficients with their median; in a symmetric picture (most drawings, logos, products on white) half of them are
next to nothing, so the median lies amid them and the bits are noise: of 2 412 re-encoded, darkened and rescaled copies
of the demo's drawings 7 % lay more than 3 bits from their source, up to 22. Here a bit says whether the coefficient is
above OFF_ZERO times their mean magnitude, away from that heap: all 2 412 within 3 bits (and 261 of 261
of photographs).

A grey hash takes a red heart for a blue one and a smile for a frown. So candidates are confirmed by `thumbnail`, the
mean colours of a 4 x 4 grid (see near_twins.py): of 77 pairs of different drawings within 3 bits 65 are told apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from emu_data.signals import Columns, Measure, Record, Signal

OFF_ZERO = 0.2  # of the mean magnitude; 0.1 to 0.4 find as many copies, more tells fewer pictures apart; chosen here
DCT_SIDE = 32
HASH_SIDE = 8
GRID = 4  # the thumbnail's side


@dataclass(frozen=True)
class PhashSignal(Signal):
    """`phash`, 16 hexadecimal digits; `thumbnail`, 96 (4 x 4 RGB, row by row); `stored_sha256` of the shard's bytes."""

    name: ClassVar = "phash"
    revision: ClassVar = 2
    columns: ClassVar = {"phash": "string", "thumbnail": "string", "stored_sha256": "string"}
    milliseconds: ClassVar = 1.0

    def describe(self) -> str:
        return "perceptual hash (64 bits of a cosine transform) and a thumbnail of 4 x 4 colours"

    def load(self) -> Measure:
        return measure_phash


def measure_phash(batch: Sequence[Record]) -> Columns:
    """Return the columns of PhashSignal."""
    return {
        "phash": [perceptual_hash(record.image) for record in batch],
        "thumbnail": [thumbnail(record.image) for record in batch],
        "stored_sha256": [record.sha256 for record in batch],
    }


def perceptual_hash(image: Image.Image) -> str:
    """Return 64 bits as 16 hexadecimal digits; the first bit, of the mean brightness, is always 0."""
    from scipy.fft import dctn

    # The gap: what is more than three times as large is first brought near by boxes, which costs a third of the time.
    small = image.convert("L").resize((DCT_SIDE, DCT_SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    grey = np.asarray(small, np.float64)
    low = np.asarray(dctn(grey))[:HASH_SIDE, :HASH_SIDE].ravel()[1:]
    # A flat picture has no frequencies but its noise: waves of less than about half a grey level are nothing.
    bits = low > max(OFF_ZERO * np.abs(low).mean(), DCT_SIDE**2)
    return np.packbits(np.concatenate([[False], bits])).tobytes().hex()


def thumbnail(image: Image.Image) -> str:
    """Return the mean colours of a 4 x 4 grid, 48 bytes as 96 hexadecimal digits."""
    return image.resize((GRID, GRID), Image.Resampling.BOX).tobytes().hex()
