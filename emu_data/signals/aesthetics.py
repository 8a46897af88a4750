"""How rich a picture looks, measured plainly and without a model: colourfulness, contrast and sharpness,
added.

No aesthetic score in the paper's sense (section 3.3), and no report calls it one: a head learned from votes
will take its place. Colourfulness: Hasler and Süsstrunk, "Measuring colourfulness in natural images" (2003),
metric M3 of section 7. Each part is centred and scaled by the constants below, taken on the demo's undamaged
pictures, so that 0 is an ordinary picture of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from emu_data.records import Decoded
from emu_data.signals import Columns, Measure, Signal

SIDE = 128  # px that the picture is brought to, so that sharpness compares across sizes

# (mean, standard deviation) of the parts over the demo corpus; chosen here, 2026-11-23.
NORMS = {"colourfulness": (81.0, 33.0), "contrast": (58.0, 16.0), "sharpness": (6.1, 2.4)}


@dataclass(frozen=True)
class AestheticsSignal(Signal):
    """`richness`, the mean of the three parts in standard deviations; and the parts, in 8-bit grey levels."""

    name: ClassVar = "aesthetics"
    columns: ClassVar = {
        "richness": "Float64",
        "colourfulness": "Float64",
        "contrast": "Float64",
        "sharpness": "Float64",
    }

    def load(self) -> Measure:
        return measure_aesthetics


def measure_aesthetics(batch: Sequence[Decoded]) -> Columns:
    """Return the columns of AestheticsSignal."""
    columns: Columns = {name: [] for name in AestheticsSignal.columns}
    for record in batch:
        image = record.image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        rgb = np.asarray(image, np.float64)
        red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
        red_green, yellow_blue = red - green, (red + green) / 2 - blue
        spread = np.hypot(red_green.std(), yellow_blue.std())
        centre = np.hypot(red_green.mean(), yellow_blue.mean())
        luma = np.asarray(image.convert("L"), np.float64)
        parts = {
            "colourfulness": float(spread + 0.3 * centre),
            "contrast": float(luma.std()),
            "sharpness": float(np.hypot(np.diff(luma, axis=0)[:, :-1], np.diff(luma, axis=1)[:-1]).mean()),
        }
        scaled = [(parts[name] - mean) / deviation for name, (mean, deviation) in NORMS.items()]
        columns["richness"].append(float(np.mean(scaled)))
        for name, value in parts.items():
            columns[name].append(value)
    return columns
