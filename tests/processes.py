"""Questions to the system about other processes, which may end while they are asked.

A psutil error, which an ended process that nobody has waited for (a zombie) also gives, means: it does not run.
"""

import subprocess
from contextlib import suppress

import psutil

TRAINING = "emu_dagster.training.child"


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def find_child(process: subprocess.Popen, words: str = TRAINING) -> psutil.Process | None:
    """Return a running descendant of `process` whose command line contains `words`."""
    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                if words in " ".join(child.cmdline()):
                    return child
    return None
