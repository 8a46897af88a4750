"""Runs one function over many shards, with the dangerous part in a child process that may die.

Decoders and networks meet whatever the web holds: a record can raise, crash the interpreter, hang, or eat all
memory. So the records of a shard go in batches to a child (`Guard`); when a batch fails it is cut in halves
until the one record is found, that record gets a `Failure`, and the rest their values. Of the engines tried
only this shape survived every poisoned record. Children are started by `spawn`: torch and fork do not agree.
"""

import multiprocessing
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Shard = TypeVar("Shard")

# Seconds to bring models into memory: 5-10 when the machine is idle, several times that when it is shared.
START_TIMEOUT = 300.0


@dataclass(frozen=True)
class Failure:
    """Why a record has no value: `raised` (an exception), `crashed` (the child died), or `timeout`."""

    reason: str
    detail: str


class Guard(Generic[Item]):
    """A child process that holds `function = factory()` and calls it on batches of records.

    Args:
        factory: importable by name and picklable (a module's function, or functools.partial of one); called
            once in each child. An exception in it is raised here as RuntimeError: it is the set-up that is
            wrong, not a record.
        base_timeout, record_timeout: seconds that a batch of n records may take: base + n * record.

    The child starts at the first `map`, and again after each failure. Use as a context manager.
    """

    def __init__(
        self,
        factory: Callable[[], Callable[[list[Item]], list[Any]]],
        base_timeout: float = 60.0,
        record_timeout: float = 5.0,
    ):
        self.factory = factory
        self.base_timeout = base_timeout
        self.record_timeout = record_timeout
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> "Guard[Item]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def map(self, items: Sequence[Item], batch_size: int) -> list[Any]:
        """Return one result, or one Failure, for each item, in order."""
        results: list[Any] = []
        for start in range(0, len(items), batch_size):
            results += self._map_batch(list(items[start : start + batch_size]))
        return results

    def close(self, patience: float = 10.0) -> None:
        """End the child: it leaves by itself when the pipe closes; after `patience` seconds it is killed."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.join(patience)
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None

    def _map_batch(self, batch: list[Item]) -> list[Any]:
        outcome = self._call(batch)
        if not isinstance(outcome, Failure):
            assert len(outcome) == len(batch), (len(outcome), len(batch))
            return outcome
        if len(batch) == 1:
            return [outcome]
        middle = len(batch) // 2
        return self._map_batch(batch[:middle]) + self._map_batch(batch[middle:])

    def _call(self, batch: list[Item]) -> list[Any] | Failure:
        pipe = self._ensure_child()
        try:
            pipe.send(batch)
            if not pipe.poll(self.base_timeout + self.record_timeout * len(batch)):
                self.close(patience=0)
                return Failure("timeout", f"no answer in {self.base_timeout + self.record_timeout * len(batch):.0f} s")
            return pipe.recv()
        except (EOFError, ConnectionError):
            assert self._process is not None
            self._process.join(10)
            code = self._process.exitcode
            self.close()
            return Failure("crashed", f"the child ended with exit code {code}")

    def _ensure_child(self) -> Connection:
        if self._pipe is not None:
            return self._pipe
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        # Not a daemon, which may have no children of its own; it ends when the pipe closes, or with its
        # parent.
        process = context.Process(target=_serve, args=(theirs, self.factory), name="emu-guard")
        self._process = process
        process.start()
        theirs.close()
        try:
            problem = self._pipe.recv() if self._pipe.poll(START_TIMEOUT) else f"not ready in {START_TIMEOUT:.0f} s"
        except EOFError:
            process.join(10)
            problem = f"it ended with exit code {process.exitcode}"
        if problem is not None:
            self.close()
            raise RuntimeError(f"the measuring process could not be set up: {problem}")
        return self._pipe


def run_shards(
    function: Callable[[Shard, Guard[Any]], Any],
    shards: Sequence[Shard],
    factory: Callable[[], Callable[[list[Any]], list[Any]]],
    num_workers: int = 1,
    progress: str | None = None,
) -> list[Any]:
    """Return `function(shard, guard)` for each shard, in order; each of `num_workers` threads has a guard of
    its own.

    The threads read, write and wait; the work is done in the guards' children. An exception in `function`
    ends the run after the shards under way, and is raised. `progress` names the bar on stderr, None shows
    none.
    """
    results: list[Any] = [None] * len(shards)
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(shards)):
        waiting.put(index)
    errors: list[BaseException] = []
    bar = tqdm(total=len(shards), desc=progress, unit="shard", disable=progress is None, file=sys.stderr)

    def work() -> None:
        with Guard(factory) as guard:
            while not errors:
                try:
                    index = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    results[index] = function(shards[index], guard)
                except BaseException as error:
                    errors.append(error)
                    return
                bar.update()

    if num_workers == 1:
        work()
    else:
        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(num_workers, len(shards)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    bar.close()
    if errors:
        raise errors[0]
    return results


def _serve(pipe: Connection, factory: Callable[[], Callable[[list[Any]], list[Any]]]) -> None:
    """The child: say that it is ready (None) or why not, then answer batches until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this child
    _end_with_parent()
    try:
        function = factory()
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        pipe.send(f"{type(error).__name__}: {error}")
        return
    pipe.send(None)
    while True:
        try:
            batch = pipe.recv()
        except EOFError:
            return
        try:
            answer: list[Any] | Failure = function(batch)
        except Exception as error:
            answer = Failure("raised", f"{type(error).__name__}: {error}")
        pipe.send(answer)


def _end_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies: a hung child would not see the pipe close."""
    if sys.platform != "linux":
        return
    import ctypes

    pr_set_pdeathsig = 1  # linux/prctl.h
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
