"""Length of the caption, by rules that hold in any script that separates words by spaces."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from emu_data.records import Decoded
from emu_data.signals import Columns, Measure, Signal


@dataclass(frozen=True)
class CaptionSignal(Signal):
    """`num_words`, `num_characters` (spaces at the ends not counted), `letter_share` (letters / characters,
    0..1).
    """

    name: ClassVar = "caption"
    columns: ClassVar = {"num_words": "Int64", "num_characters": "Int64", "letter_share": "Float64"}

    def load(self) -> Measure:
        return measure_caption


def measure_caption(batch: Sequence[Decoded]) -> Columns:
    """Return the columns of CaptionSignal."""
    captions = [record.caption.strip() for record in batch]
    return {
        "num_words": [len(caption.split()) for caption in captions],
        "num_characters": [len(caption) for caption in captions],
        "letter_share": [sum(map(str.isalpha, caption)) / max(1, len(caption)) for caption in captions],
    }
