"""Measured properties of pictures: raw values, one file a signal, no thresholds (those are
ledger.FilterPolicy's).

A signal is a frozen dataclass whose fields are its settings. `version` names everything that determines its
values, so that data/signals/NAME@VERSION/NNNNN.parquet is right as long as it exists; `load` brings models
into memory, in the child process that measures, and returns the function that does.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from emu_data.files import fingerprint
from emu_data.records import Decoded

Columns = dict[str, list[Any]]  # column -> one value a record, None where there is none
Measure = Callable[[Sequence[Decoded]], Columns]


@dataclasses.dataclass(frozen=True)
class Signal(ABC):
    """One property, or a few that one computation gives."""

    name: ClassVar[str]
    revision: ClassVar[int] = 1  # raised when the code changes what it measures
    columns: ClassVar[Mapping[str, str]]  # column -> pandas dtype, all nullable

    @property
    def version(self) -> str:
        """16 hexadecimal digits: equal digits, equal values."""
        return fingerprint({"name": self.name, "revision": self.revision, "settings": self.settings()})

    def settings(self) -> Any:
        """What the values depend on; a signal with model files returns their digests here, not their
        paths.
        """
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @abstractmethod
    def load(self) -> Measure:
        """Load what is needed and return the function that measures a batch."""

    def measure(self, batch: Sequence[Decoded]) -> Columns:
        """Measure one batch, loading for it alone (for a handful of pictures; the cascade loads once)."""
        return self.load()(batch)
