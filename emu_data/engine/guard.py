"""A child process that may die: what decoders and networks meet in a record costs that record, and nothing else.

A record can raise, crash the interpreter, hang, or eat all memory. So records go in batches to a child; when a
batch fails it is cut in halves until the one record is found, that record gets a `Failure`, and the rest their
values. The child is a fresh interpreter, not a fork (torch and fork do not agree), and not one of multiprocessing,
whose children import the parent's __main__ again (Ray's or Dagster's) and cannot be given an environment.
"""

import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

import psutil

Item = TypeVar("Item")
Factory = Callable[[], Callable[[list[Any]], list[Any]]]

# Seconds to bring models into memory: 5-10 when the machine is idle, several times that when it is shared.
START_TIMEOUT = 300.0
# Seconds between two looks at the child: what it can take beyond max_memory is what it can touch in this time.
POLL = 0.05
# Bytes: several times what the heaviest signal's networks need (chosen here). It is a fixed number, not a share of
# the machine, so that the same records fail everywhere.
MAX_MEMORY = 8 * 2**30
# What OpenMP (torch), MKL and OpenBLAS (numpy) read when they are loaded.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Failure:
    """Why a record has no value: `raised` (an exception), `crashed` (the child died), `timeout` or `memory`."""

    reason: str
    detail: str


class Guard(Generic[Item]):
    """A child process that holds `function = factory()` and calls it on batches of records.

    Args:
        factory: importable by name and picklable (a module's function, or functools.partial of one); called
            once in each child. An exception in it is raised here as RuntimeError: it is the set-up that is
            wrong, not a record.
        base_timeout, record_timeout: seconds that a batch of n records may take: base + n * record.
        max_memory: bytes that the child may hold (resident). It is watched, not set as a limit of the kernel:
            RLIMIT_AS counts what CUDA merely reserves.
        num_threads: of BLAS, OpenMP and torch in the child. Libraries with pools of their own (onnxruntime,
            OpenVINO) have to be told: OMP_NUM_THREADS has the number.

    The child starts at the first `map`, and again after each failure. Use as a context manager.
    """

    def __init__(
        self,
        factory: Factory,
        base_timeout: float = 60.0,
        record_timeout: float = 5.0,
        max_memory: int = MAX_MEMORY,
        num_threads: int = 1,
    ):
        check_importable(factory)
        self.factory = factory
        self.base_timeout = base_timeout
        self.record_timeout = record_timeout
        self.max_memory = max_memory
        self.num_threads = num_threads
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._has_answered = False
        self._cancelled = False

    def __enter__(self) -> "Guard[Item]":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(patience=10.0 if kind is None else 0.0)

    def map(self, items: Sequence[Item], batch_size: int) -> list[Any]:
        """Return one result, or one Failure, for each item, in order."""
        results: list[Any] = []
        for start in range(0, len(items), batch_size):
            batch = list(items[start : start + batch_size])
            is_worn = self._has_answered
            outcome = self._call(batch)
            if isinstance(outcome, Failure) and outcome.reason != "raised" and is_worn:
                # A leak of earlier batches, or the kernel short of memory: the whole batch in a fresh child is what a
                # run without that accident would have measured, and values depend on the batch.
                outcome = self._call(batch)
            results += self._halve(batch, outcome) if isinstance(outcome, Failure) else outcome
        return results

    def cancel(self) -> None:
        """From another thread: make the `map` under way, and each later one, raise InterruptedError."""
        self._cancelled = True

    def close(self, patience: float = 10.0) -> None:
        """End the child: it leaves by itself when the pipe closes; after `patience` seconds it is killed."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = self._pipe = None
        self._has_answered = False

    def _halve(self, batch: list[Item], failure: Failure) -> list[Any]:
        """Results of a batch that failed as a whole."""
        if len(batch) == 1:
            return [failure]
        results: list[Any] = []
        for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
            outcome = self._call(half)
            results += self._halve(half, outcome) if isinstance(outcome, Failure) else outcome
        return results

    def _call(self, batch: list[Item]) -> list[Any] | Failure:
        """Details of failures name limits, not measurements: they end in files that must be the same each time."""
        pipe = self._ensure_child()
        try:
            pipe.send(batch)
            problem = self._wait(self.base_timeout + self.record_timeout * len(batch))
            if problem is not None:
                self.close(patience=0)
                return problem
            answer = pipe.recv()
            assert isinstance(answer, Failure) or len(answer) == len(batch), (len(answer), len(batch))
        except (EOFError, ConnectionError):
            code = self._exit_code()
            self.close()
            return Failure("crashed", f"the child ended with exit code {code}")
        self._has_answered = True
        return answer

    def _wait(self, seconds: float) -> Failure | None:
        """Wait until the child has said something, or is gone (None), or goes beyond a limit."""
        assert self._pipe is not None
        deadline = time.monotonic() + seconds
        while not self._pipe.poll(POLL):
            if self._cancelled:
                raise InterruptedError("cancelled")
            if time.monotonic() > deadline:
                return Failure("timeout", f"no answer in {seconds:.0f} s")
            if self._memory() > self.max_memory:
                return Failure("memory", f"the child held more than {self.max_memory / 2**20:.0f} MiB")
        return None

    def _memory(self) -> int:
        """Resident bytes of the child, 0 when it is gone."""
        assert self._process is not None
        try:
            return psutil.Process(self._process.pid).memory_info().rss
        except psutil.Error:
            return 0

    def _exit_code(self) -> int | None:
        assert self._process is not None
        try:
            return self._process.wait(10)
        except subprocess.TimeoutExpired:
            return None

    def _ensure_child(self) -> Connection:
        if self._cancelled:
            raise InterruptedError("cancelled")
        if self._pipe is not None:
            return self._pipe
        self._pipe, theirs = Pipe()
        path = os.pathsep.join(entry for entry in sys.path if entry)
        threads = dict.fromkeys(THREAD_VARIABLES, str(self.num_threads))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from emu_data.engine.guard import serve; serve({theirs.fileno()})"],
            env={**os.environ, **threads, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            process_group=0,  # Ctrl-C reaches a whole group; it is the parent that ends this child
        )
        theirs.close()
        try:
            self._pipe.send((self.num_threads, pickle.dumps(self.factory)))
            failure = self._wait(START_TIMEOUT)
            problem = failure.detail if failure else self._pipe.recv()
        except (EOFError, ConnectionError):
            problem = f"it ended with exit code {self._exit_code()}"
        if problem is not None:
            self.close(patience=0)
            raise RuntimeError(f"the measuring process could not be set up: {problem}")
        return self._pipe


def check_importable(function: Callable[..., Any]) -> None:
    """Raise ValueError unless another process can import the function (or that of a functools.partial)."""
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__qualname__", type(function).__qualname__)
    if function.__module__ == "__main__" or "<" in name:
        raise ValueError(
            f"{function.__module__}.{name} cannot be imported by a worker: put it at the top level of a module that is "
            "not the script itself"
        )


def serve(descriptor: int) -> None:
    """The child: say that it is ready (None) or why not, then answer batches until the pipe closes."""
    pipe = Connection(descriptor)
    _end_with_parent()
    try:
        num_threads, pickled = pipe.recv()
        function = pickle.loads(pickled)()
        if "torch" in sys.modules:  # one that is imported later reads OMP_NUM_THREADS
            sys.modules["torch"].set_num_threads(num_threads)
    except EOFError:
        return
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
            if type(error).__name__ == "AcceleratorError":
                os._exit(1)  # an error of CUDA stays with the process (torch.AcceleratorError): it counts as a crash
            answer = Failure("raised", f"{type(error).__name__}: {error}")
        pipe.send(answer)


def _end_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies (a hung child would not see the pipe close), and to take
    this one first when the machine is out of memory.
    """
    if sys.platform != "linux":
        return
    import ctypes

    pr_set_pdeathsig = 1  # linux/prctl.h
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
