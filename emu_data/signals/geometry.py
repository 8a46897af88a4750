"""Size and aspect ratio of the picture as it lies in the shard, from its header alone (Emu paper, section 3.3:
values not given there).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from emu_data.signals import Columns, Measure, Record, Signal


@dataclass(frozen=True)
class GeometrySignal(Signal):
    """`min_side` in px, `aspect` = long side / short side (1 or more), `num_bytes` of the file."""

    name: ClassVar = "geometry"
    columns: ClassVar = {"min_side": "Int64", "aspect": "Float64", "num_bytes": "Int64"}
    needs: ClassVar = "header"
    milliseconds: ClassVar = 0.002

    def describe(self) -> str:
        return "width and height as the file's header says, and its size"

    def load(self) -> Measure:
        return measure_geometry


def measure_geometry(batch: Sequence[Record]) -> Columns:
    """Return the columns of GeometrySignal."""
    sizes = [record.size for record in batch]
    return {
        "min_side": [min(size) for size in sizes],
        "aspect": [max(size) / min(size) for size in sizes],
        "num_bytes": [len(record.data) for record in batch],
    }
