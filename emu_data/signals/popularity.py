"""How much people liked the picture, as the corpus tells it (Emu paper, section 3.3: "proprietary signals such as
the number of likes").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from emu_data.signals import Columns, Measure, Record, Signal


@dataclass(frozen=True)
class PopularitySignal(Signal):
    """`popularity`, the number in `column` of the input (likes, views, …), null where it has none."""

    column: str

    name: ClassVar = "popularity"
    columns: ClassVar = {"popularity": "Float64"}
    needs: ClassVar = "row"
    milliseconds: ClassVar = 0.001

    def describe(self) -> str:
        return f"the corpus's own column “{self.column}”"

    def load(self) -> Measure:
        return self._measure

    def _measure(self, batch: Sequence[Record]) -> Columns:
        return {"popularity": [number_in(record, self.column) for record in batch]}


def number_in(record: Record, column: str) -> float | None:
    """Return a column of the input as a number, None where it is missing, empty or no number."""
    try:
        value = float(record.meta[column])
    except (KeyError, TypeError, ValueError):
        return None
    return value if value == value else None
