"""Batches made ahead of the step that needs them, so that training does not wait for rows."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch

DEPTH = 4  # batches made ahead; chosen here
NUM_WORKERS = 2  # threads that make them; chosen here


class Prefetcher:
    """`prepare(step)`, which must depend on the step alone, for the steps from `start` to `end` in threads.

    An exception in a thread is raised by `get` of its step. `seconds_waited` tells how long `get` had to wait.
    """

    def __init__(self, prepare: Callable[[int], Any], start: int, end: int) -> None:
        self._prepare, self._next, self._end = prepare, start, end
        # one torch thread each: a second team of threads on the same cores would hold up the one that trains
        self._pool = ThreadPoolExecutor(NUM_WORKERS, "prefetch", initializer=lambda: torch.set_num_threads(1))
        self._made: dict[int, Future] = {}
        self.seconds_waited = 0.0

    def get(self, step: int) -> Any:
        """The batch of `step`; steps are to be asked for in order, each once."""
        while self._next < min(self._end, step + DEPTH):
            self._made[self._next] = self._pool.submit(self._prepare, self._next)
            self._next += 1
        began = time.monotonic()
        batch = self._made.pop(step).result()
        self.seconds_waited += time.monotonic() - began
        return batch

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)
