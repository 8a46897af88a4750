"""A child process that may die: an item that breaks a decoder or a network costs that item, and nothing else.

An item can raise, crash the interpreter, hang, or exhaust memory. So items go to a child in batches; a batch that fails
is halved until the faulty item is found. That item gets a `Failure`, the others get their values. The child is a fresh
interpreter: not a fork, since torch does not survive one, and not a child of multiprocessing, which would import the
parent's __main__ again (Ray's or Dagster's) and cannot be given an environment.
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

from emu_data.texts import describe_error

Item = TypeVar("Item")
Factory = Callable[[], Callable[[list[Any]], list[Any]]]

# Seconds to load models: 5-10 on an idle machine, several times that on a shared one; chosen here.
START_TIMEOUT = 300.0
# Seconds between two checks of the child, within which it may exceed max_memory; chosen here.
POLL = 0.05
# Bytes: several times what the heaviest signal's networks need (chosen here). It is a fixed number, not a share of
# the machine, so that the same items fail everywhere.
MAX_MEMORY = 8 * 2**30
# Variables that OpenMP (torch), MKL and OpenBLAS (numpy) read when they are loaded.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Failure:
    """Why an item has no value: `raised` (an exception), `crashed` (the child died), `timeout` or `memory`."""

    reason: str
    detail: str


class Guard(Generic[Item]):
    """A child process that holds `function = factory()` and calls it on batches of items.

    Args:
        factory: importable by name and picklable (a module's function, or functools.partial of one); called
            once in each child. An exception in it is raised here as RuntimeError, since the set-up is wrong, not an
            item.
        base_timeout, item_timeout: a batch of n items may take base + n * item seconds.
        max_memory: bytes that the child may hold (resident). The guard watches this itself instead of setting a kernel
            limit, since RLIMIT_AS also counts what CUDA only reserves.
        num_threads: of BLAS, OpenMP and torch in the child. Libraries with their own thread pools (onnxruntime,
            OpenVINO) must be configured by the factory: OMP_NUM_THREADS has the number.

    The child starts at the first `map`, and again after each failure. Use as a context manager.
    """

    def __init__(
        self,
        factory: Factory,
        base_timeout: float = 60.0,
        item_timeout: float = 5.0,
        max_memory: int = MAX_MEMORY,
        num_threads: int = 1,
    ):
        check_importable(factory)
        self.factory = factory
        self.base_timeout = base_timeout
        self.item_timeout = item_timeout
        self.max_memory = max_memory
        self.num_threads = num_threads
        self._process: subprocess.Popen[bytes] | None = None
        self._watched: psutil.Process | None = None  # the same one; made once, since making it costs more than asking
        self._pipe: Connection | None = None
        self._has_answered = False
        self._cancelled = False

    def __enter__(self) -> "Guard[Item]":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(patience=10.0 if kind is None else 0.0)

    def map(self, items: Sequence[Item], batch_size: int) -> list[Any]:
        """Return a result or a Failure for each item, in order."""
        results: list[Any] = []
        for start in range(0, len(items), batch_size):
            batch = list(items[start : start + batch_size])
            is_used = self._has_answered
            outcome = self._call(batch)
            if isinstance(outcome, Failure) and outcome.reason != "raised" and is_used:
                # Earlier batches may have leaked memory, or the machine ran out of it. Values depend on the batch, so
                # the whole batch runs again in a fresh child: that is what a run without the accident would measure.
                outcome = self._call(batch)
            results += self._halve(batch, outcome) if isinstance(outcome, Failure) else outcome
        return results

    def cancel(self) -> None:
        """Make the `map` in progress, and each later one, raise InterruptedError; called from another thread."""
        self._cancelled = True

    def close(self, patience: float = 10.0) -> None:
        """End the child: closing the pipe makes it exit by itself; after `patience` seconds it is killed."""
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
        """Return the results of a batch that failed as a whole."""
        if len(batch) == 1:
            return [failure]
        results: list[Any] = []
        for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
            outcome = self._call(half)
            results += self._halve(half, outcome) if isinstance(outcome, Failure) else outcome
        return results

    def _call(self, batch: list[Item]) -> list[Any] | Failure:
        """Send a batch and return its results. A Failure's detail names limits, not measurements, since it ends up in
        files whose bytes must be the same each time."""
        pipe = self._ensure_child()
        try:
            pipe.send(batch)
            problem = self._wait(self.base_timeout + self.item_timeout * len(batch))
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
        """Wait until the child has answered or is gone (None), or exceeds a limit (Failure)."""
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
        """Return the child's resident bytes, 0 if it is gone."""
        assert self._watched is not None
        try:
            return self._watched.memory_info().rss
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
            process_group=0,  # Ctrl-C reaches a whole process group, but the parent ends this child
        )
        theirs.close()
        try:
            self._watched = psutil.Process(self._process.pid)
            self._pipe.send((self.num_threads, pickle.dumps(self.factory)))
            failure = self._wait(START_TIMEOUT)
            problem = failure.detail if failure else self._pipe.recv()
        except (EOFError, ConnectionError, psutil.NoSuchProcess):
            problem = f"it ended with exit code {self._exit_code()}"
        if problem is not None:
            self.close(patience=0)
            raise RuntimeError(f"the measuring process could not be set up: {problem}")
        return self._pipe


def check_importable(function: Callable[..., Any]) -> None:
    """Raise ValueError unless another process can import the function (or the function of a functools.partial)."""
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__qualname__", type(function).__qualname__)
    if function.__module__ == "__main__" or "<" in name:
        raise ValueError(
            f"{function.__module__}.{name} cannot be imported by a worker: define it at the top level of a module that "
            "is not the script itself"
        )


def serve(descriptor: int) -> None:
    """Run the child: report that it is ready (None) or why not, then answer batches until the pipe closes."""
    pipe = Connection(descriptor)
    _end_with_parent()
    try:
        num_threads, pickled = pipe.recv()
        function = pickle.loads(pickled)()
        if "torch" in sys.modules:  # if torch is imported later, it reads OMP_NUM_THREADS
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
                os._exit(1)  # after a CUDA error (torch.AcceleratorError) the process is unusable: count it as a crash
            answer = Failure("raised", describe_error(error))
        pipe.send(answer)


def _end_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies (a hung child would not notice that the pipe closed), and to
    kill it before others when the machine runs out of memory.
    """
    if sys.platform != "linux":
        return
    import ctypes

    pr_set_pdeathsig = 1  # linux/prctl.h
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
