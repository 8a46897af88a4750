"""Names of processes, and locks that a dead process does not keep.

A process is recorded as host:pid:started, because a pid alone is soon reused.
"""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

SAME_START_SECONDS = 2.0  # two readings of the same start time differ by less; chosen here


def describe_process(process: psutil.Process | None = None) -> str:
    """Return host:pid:started (in seconds since 1970) of `process`, by default of this one."""
    process = process or psutil.Process()
    return f"{socket.gethostname()}:{process.pid}:{process.create_time():.0f}"


def is_alive(description: str) -> bool:
    """Return whether the process described by `describe_process` still runs. True for processes of other machines,
    about which nothing is known here; False if the text is not such a description.
    """
    try:
        host, pid, started = description.rsplit(":", 2)
        if host != socket.gethostname():
            return True
        process = psutil.Process(int(pid))
        return process.status() != psutil.STATUS_ZOMBIE and (
            abs(process.create_time() - float(started)) < SAME_START_SECONDS
        )
    except (psutil.NoSuchProcess, ValueError):
        return False


@contextmanager
def one_at_a_time(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock file `path`; if another process holds it, print which one and wait.

    doing: what this process does, shown to processes that wait. The operating system frees the lock if the process
    dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(path), path.with_name(f"{path.name}.who")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with suppress(OSError):
            print(f"waiting for {holder.read_text().strip() or 'another process'}", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        holder.write_text(
            f"process {os.getpid()} ({command}), which has been {doing} since {time.strftime('%H:%M:%S')}"
        )
        yield
    finally:
        lock.release()
