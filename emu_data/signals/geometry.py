"""Size and aspect ratio of the picture as it is shown, from its header (Emu paper, section 3.3, without thresholds)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from emu_data.signals import Columns, LazySample, Measure, Signal


@dataclass(frozen=True)
class GeometrySignal(Signal):
    """`min_side` in px, `aspect` = long side / short side (1 or more), `num_bytes`, the size of the file."""

    name: ClassVar = "geometry"
    columns: ClassVar = {"min_side": "Int64", "aspect": "Float64", "num_bytes": "Int64"}
    needs: ClassVar = "header"
    milliseconds: ClassVar = 0.002

    @override
    def describe(self) -> str:
        """Return what is measured, in a few words."""
        return "width and height from the file's header, and the file's size"

    @override
    def load(self) -> Measure:
        """Return `measure_geometry`; nothing is loaded."""
        return measure_geometry


def measure_geometry(batch: Sequence[LazySample]) -> Columns:
    """Return the columns of GeometrySignal."""
    sizes = [sample.size for sample in batch]
    return {
        "min_side": [min(size) for size in sizes],
        "aspect": [max(size) / min(size) for size in sizes],
        "num_bytes": [len(sample.data) for sample in batch],
    }
