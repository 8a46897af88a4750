"""Prepares batches before the step that needs them, so that training does not wait for rows."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch

DEPTH = 4  # batches prepared ahead; chosen here
NUM_WORKERS = 2  # threads that prepare them if a GPU trains; chosen here


class Prefetcher:
    """Calls `prepare(step)`, which must depend only on the step, in threads, for the steps from `start` to `end` - 1.

    An exception in a thread is raised by `get` of its step. `seconds_waited` is the time that `get` has waited.

    If the CPU itself trains, `get` prepares the batch: threads would only take cores away.
    """

    def __init__(self, prepare: Callable[[int], Any], start: int, end: int, device: torch.device) -> None:
        self._prepare, self._next, self._end = prepare, start, end
        self._pool = ThreadPoolExecutor(NUM_WORKERS, "prefetch") if device.type != "cpu" else None
        self._made: dict[int, Future] = {}
        self.seconds_waited = 0.0

    def get(self, step: int) -> Any:
        """Return the batch of `step`; call this for each step once, in order."""
        began = time.monotonic()
        if self._pool is None:
            batch = self._prepare(step)
        else:
            while self._next < min(self._end, step + DEPTH):
                self._made[self._next] = self._pool.submit(self._prepare, self._next)
                self._next += 1
            batch = self._made.pop(step).result()
        self.seconds_waited += time.monotonic() - began
        return batch

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
