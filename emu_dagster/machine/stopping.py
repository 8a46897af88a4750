"""How a training process stops: on Ctrl-C, on cancellation, and when the process that started it dies.

For the child as well as for its parent, so nothing heavy is imported here. As a program, `python -m
emu_dagster.machine.stopping COMMAND…` becomes COMMAND, which then gets SIGTERM when the process that started it dies:
launchers such as torchrun do not see to that themselves, and pass the signal on to the processes they started.
"""

import ctypes
import os
import signal
import sys
import threading
from types import FrameType

# Exit code of a child that saved and stopped because a signal asked for it: 128 + SIGINT, as shells say it.
STOPPED = 130
PARENT_VARIABLE = "EMU_PARENT_PID"  # set for the child by emu_dagster.resources.gpu
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(signum: int = signal.SIGTERM) -> None:
    """Have Linux send `signum` to this process when the thread that started it ends; elsewhere a no-op.

    If the parent named in EMU_PARENT_PID died before this call, the signal is sent at once. The name is then forgotten:
    this process may start others.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0)
    if os.environ.pop(PARENT_VARIABLE, str(os.getppid())) != str(os.getppid()):
        os.kill(os.getpid(), signum)


class StopRequest:
    """`requested` turns True when a signal asked this process to save and exit. Made by `save_on_signal`."""

    def __init__(self, grace_seconds: float) -> None:
        self.requested = False
        self._grace_seconds = grace_seconds

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler. Further signals change nothing: a save is under way."""
        if self.requested:
            return
        self.requested = True
        # Whatever hangs must not outlive its cancelled run and keep the device.
        deadline = threading.Timer(self._grace_seconds, os._exit, args=(STOPPED,))
        deadline.daemon = True
        deadline.start()


def save_on_signal(grace_seconds: float = 60.0) -> StopRequest:
    """Turn SIGINT, SIGTERM and the death of the parent into a flag that a training loop reads between steps.

    The loop then saves its state and the process exits with code STOPPED; if it has not within
    `grace_seconds` (chosen here: a save takes seconds), it is ended with that code. Main thread only; to be
    called first thing, before heavy imports.
    """
    request = StopRequest(grace_seconds)
    signal.signal(signal.SIGINT, request.handle)
    signal.signal(signal.SIGTERM, request.handle)
    die_with_parent()
    return request


if __name__ == "__main__":
    die_with_parent()
    os.execvp(sys.argv[1], sys.argv[1:])
