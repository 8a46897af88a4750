"""The commit of this project's code that is running."""

import subprocess
from functools import cache
from pathlib import Path

NO_COMMIT = "none (not a git repository)"


@cache
def running_commit() -> str:
    """Return the commit of the running code, followed by "-dirty" if files differ from it; NO_COMMIT if there is none.
    It is read once per process, because code that is changed later does not run in it.
    """
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return NO_COMMIT
