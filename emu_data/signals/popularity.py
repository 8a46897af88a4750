"""How much people liked the picture, from a column of the corpus (Emu paper, section 3.3: "proprietary signals such as
the number of likes").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from emu_data.signals import Columns, LazySample, Measure, Signal


@dataclass(frozen=True)
class PopularitySignal(Signal):
    """`popularity`, the number in the input's column `column` (likes, views, …), null if there is none."""

    column: str

    name: ClassVar = "popularity"
    columns: ClassVar = {"popularity": "Float64"}
    needs: ClassVar = "row"
    milliseconds: ClassVar = 0.001

    @override
    def describe(self) -> str:
        """Return which column is read, in a few words."""
        return f"the corpus's own column “{self.column}”"

    @override
    def load(self) -> Measure:
        """Return the function that reads the column; nothing is loaded."""
        return self._measure

    def _measure(self, batch: Sequence[LazySample]) -> Columns:
        return {"popularity": [number_in(sample, self.column) for sample in batch]}


def number_in(sample: LazySample, column: str) -> float | None:
    """Return a sample's value in a column of the input as a number; None if it is missing, empty or not a number."""
    try:
        value = float(sample.meta[column])
    except (KeyError, TypeError, ValueError):
        return None
    return value if value == value else None
