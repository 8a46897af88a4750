"""How many rows of a batch a process computes at a time, adding up their gradients (micro-batches)."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


class RowsAtOnce:
    """A number of rows, halved when they do not fit into memory.

    number: at the start. alone: whether one process trains; several would have to halve it together, since each waits
    for the others. otherwise: what to set if a single row does not fit. also: another setting that saves memory, if
    there is one.
    """

    def __init__(self, number: int, alone: bool, otherwise: str, also: str = "") -> None:
        self.number = number
        self._alone, self._otherwise, self._also = alone, otherwise, also

    def run(self, num_rows: int, compute: Callable[[], T]) -> T:
        """Return what `compute` returns for `num_rows` rows, `number` at a time; it must begin anew when it is called
        again. Raises torch.OutOfMemoryError, which says what to set, if that does not help."""
        while True:
            rows = min(self.number, num_rows)
            try:
                return compute()
            except torch.OutOfMemoryError as error:
                if not self._alone or rows == 1:
                    raise torch.OutOfMemoryError(self._how_to_fit(rows)) from error
            # after the exception is gone, which holds what the step had in memory
            self.number = rows // 2
            logging.getLogger(__name__).warning(
                "out of memory with %d rows at a time; %d from here on (micro_batch_size)", rows, self.number
            )

    def _how_to_fit(self, rows: int) -> str:
        smaller = f"micro_batch_size {rows // 2}" if rows > 1 else self._otherwise
        also = f", or {self._also}" if self._also else ""
        return f"out of memory with {rows} rows at a time; set {smaller}{also} (launch.trainings in the profile)"
