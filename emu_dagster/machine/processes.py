"""Processes by name, and locks that a dead one does not keep.

A process is written down as host:pid:started, because a pid alone is soon another's.
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

SAME_START_SECONDS = 2.0  # two clocks' readings of one start differ by less; chosen here


def describe_process(process: psutil.Process | None = None) -> str:
    """host:pid:started (seconds since 1970) of `process`, by default of this one."""
    process = process or psutil.Process()
    return f"{socket.gethostname()}:{process.pid}:{process.create_time():.0f}"


def is_alive(description: str) -> bool:
    """Whether the process written by `describe_process` still runs; True for those of other machines, about which
    nothing is known here, and False for what is no such description."""
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
    """Holds the lock file `path`; where another process holds it, says who and waits.

    doing: what the others are told is being done. The operating system frees the lock when its process dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, told = FileLock(path), path.with_name(f"{path.name}.who")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with suppress(OSError):
            print(f"waiting for {told.read_text().strip() or 'another process'}", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        told.write_text(f"process {os.getpid()} ({command}), which is {doing} since {time.strftime('%H:%M:%S')}")
        yield
    finally:
        lock.release()
