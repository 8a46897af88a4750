"""Batches that fit into the memory of the device, for work without gradients: encoding, drawing."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from emu_models.budget import fitting

T = TypeVar("T")


class Batches:
    """Runs a function over numbered items in batches, none larger than `largest`.

    On the CPU every batch has `largest` items, so that results do not depend on the machine. On CUDA the first item is
    run alone and measured, and as many then run at a time as fit into the budget (budget.py); after an out-of-memory
    error half as many. what: what is done, for the message that says so once.
    """

    def __init__(self, what: str, largest: int, device: torch.device) -> None:
        self._what, self._largest, self._device = what, largest, device
        self.size = largest if device.type == "cpu" else 1
        self._is_measured = device.type == "cpu"

    def run(self, function: Callable[[range], T], num: int) -> list[T]:
        """Return function(items) for consecutive ranges of the items 0..num-1, in order. Raises torch.OutOfMemoryError
        if not even one item fits."""
        results, start = [], 0
        while start < num:
            items = range(start, min(num, start + self.size))
            try:
                if self._is_measured:
                    results.append(function(items))
                else:
                    results.append(self._measure(lambda found=items: function(found)))
            except torch.OutOfMemoryError:
                if len(items) == 1:
                    raise
                self._shrink(len(items) // 2)
                continue
            start = items.stop
        return results

    def _measure(self, function: Callable[[], T]) -> T:
        """Run the first item and set the size by the memory that it took."""
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        result = function()
        per_item = torch.cuda.max_memory_allocated(self._device) - before
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self._device)
        self.size = fitting(self._largest, per_item, free)
        self._is_measured = True
        return result

    def _shrink(self, size: int) -> None:
        torch.cuda.empty_cache()
        self.size = size
        logging.getLogger(__name__).warning("%s: out of memory; %d at a time from here on", self._what, size)
