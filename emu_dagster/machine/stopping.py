"""How a training process stops: on Ctrl-C, on cancellation, and if the process that started it dies.

The child and its parent import it, so it imports nothing large. As a program, `python -m emu_dagster.machine.stopping
COMMAND…` becomes COMMAND, which then gets SIGTERM if the process that started it dies: launchers such as torchrun do
not arrange that themselves, but pass the signal on to the processes that they started.
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

# Exit code of a child that saved and stopped because of a signal: 128 + SIGINT, as in shells.
STOPPED = 130
PARENT_VARIABLE = "EMU_PARENT_PID"  # set for the child by emu_dagster.resources.gpu
CAUSE_VARIABLE = "EMU_CAUSE_FILE"  # likewise; see leave_cause
GRACE_VARIABLE = "EMU_GRACE_SECONDS"  # likewise; see save_on_signal
LOST_SUFFIX = "-lost"
GRACE_SECONDS = 60.0  # if the variable is not set; chosen here
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(signum: int = signal.SIGTERM) -> None:
    """Make Linux send `signum` to this process when the thread that started it ends; elsewhere do nothing.

    If the parent named in EMU_PARENT_PID died before this call, the signal is sent at once. The variable is then
    removed, because this process may start others.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0)
    if os.environ.pop(PARENT_VARIABLE, str(os.getppid())) != str(os.getppid()):
        os.kill(os.getpid(), signum)


@contextmanager
def leave_cause() -> Iterator[None]:
    """Write why a training fails, on one line, to the file that CAUSE_VARIABLE names, for the asset that waits for it.

    If several processes train together, the first to fail knows the cause; the others fail because it is gone: what
    they know (ConnectionError) goes to another file (LOST_SUFFIX), which matters if there is no first one. torchrun may
    start all of them again, and the cause of before would then hide the new one, so each start has its own file.
    """
    try:
        yield
    except Exception as error:
        message = " ".join(str(error).split())
        is_for_users = isinstance(error, (ValueError, OSError)) and message
        with suppress(OSError, KeyError), open(_cause_file(error), "x", encoding="utf-8") as file:
            file.write(message if is_for_users else f"{type(error).__name__}: {message}")
        raise


def _cause_file(error: Exception) -> str:
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    lost = LOST_SUFFIX if isinstance(error, ConnectionError) else ""
    return f"{os.environ[CAUSE_VARIABLE]}.{attempt}{lost}"


def read_cause(path: Path) -> tuple[str, bool]:
    """Return why the last start of a training failed, "" if it left nothing, and whether that was only that it lost
    contact with another process. path: the value of CAUSE_VARIABLE."""
    causes = sorted(path.parent.glob(f"{path.name}.*"), key=lambda file: int(file.name.split(".")[-1].split("-")[0]))
    if not causes:
        return "", False
    attempt = causes[-1].name.removesuffix(LOST_SUFFIX)
    first = path.with_name(attempt)
    if first.is_file():
        return first.read_text(encoding="utf-8").strip(), False
    return causes[-1].read_text(encoding="utf-8").strip(), True


class StopRequest:
    """`requested` turns True when a signal asked this process to save and exit. Made by `save_on_signal`."""

    def __init__(self, grace_seconds: float) -> None:
        self.requested = False
        self._grace_seconds = grace_seconds

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler. Further signals change nothing: a save is already in progress."""
        if self.requested:
            return
        self.requested = True
        # A process that hangs must not outlive its cancelled run and keep the device.
        deadline = threading.Timer(self._grace_seconds, os._exit, args=(STOPPED,))
        deadline.daemon = True
        deadline.start()


def save_on_signal(grace_seconds: float | None = None) -> StopRequest:
    """Turn SIGINT, SIGTERM and the death of the parent into a flag that a training loop reads between steps.

    The loop then saves its state and the process exits with code STOPPED; if that takes longer than `grace_seconds` (by
    default those of GRACE_VARIABLE: launch.grace_seconds), the process is ended with the same code. To be called in the
    main thread, before slow imports.
    """
    if grace_seconds is None:
        grace_seconds = float(os.environ.get(GRACE_VARIABLE, GRACE_SECONDS))
    request = StopRequest(grace_seconds)
    signal.signal(signal.SIGINT, request.handle)
    signal.signal(signal.SIGTERM, request.handle)
    die_with_parent()
    return request


if __name__ == "__main__":
    die_with_parent()
    with leave_cause():
        os.execvp(sys.argv[1], sys.argv[1:])
