"""Runs shards on this machine: threads read, write and wait; their guards' children do the work."""

import os
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from emu_data.engine.guard import Guard


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def run_here(
    function: Callable[[Any, Guard[Any]], Any],
    shards: Sequence[Any],
    make_guard: Callable[[], Guard[Any]],
    num_workers: int | None,
    report: Callable[[], object],
) -> list[Any]:
    """Run as described at run_shards; `report` is called after each shard.

    An exception ends the run after the shards in progress; KeyboardInterrupt ends those too.
    """
    results: list[Any] = [None] * len(shards)
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(shards)):
        waiting.put(index)
    errors: list[BaseException] = []
    guards: list[Guard[Any]] = []

    def work() -> None:
        try:
            with make_guard() as guard:
                guards.append(guard)
                while not errors:
                    try:
                        index = waiting.get_nowait()
                    except queue.Empty:
                        return
                    results[index] = function(shards[index], guard)
                    report()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(num_workers or num_cores(), len(shards)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException as error:  # in the main thread: KeyboardInterrupt, or what a signal handler raises
        errors.insert(0, error)
        for guard in guards:
            guard.cancel()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    if errors:
        raise errors[0]
    return results
