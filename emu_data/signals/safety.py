"""How likely a picture is unsafe: for now the column that the corpus brought (LAION's `punsafe`), no detector
of ours.

A report that shows this gate says so. Where the column is missing the value is missing, and the gate passes
it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from emu_data.records import Decoded
from emu_data.signals import Columns, Measure, Signal


@dataclass(frozen=True)
class SafetySignal(Signal):
    """`unsafe`, 0..1, copied from `column` of the input."""

    column: str = "punsafe"

    name: ClassVar = "safety"
    columns: ClassVar = {"unsafe": "Float64"}

    def load(self) -> Measure:
        return self._measure

    def _measure(self, batch: Sequence[Decoded]) -> Columns:
        values = [record.meta.get(self.column) for record in batch]
        return {"unsafe": [None if value is None else float(value) for value in values]}
