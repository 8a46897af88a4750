"""Which commit of this project's code runs."""

import subprocess
from functools import cache
from pathlib import Path

NO_COMMIT = "none (not a git repository)"


@cache
def running_commit() -> str:
    """The commit that the running code was taken from, "-dirty" behind it where files differ from it; NO_COMMIT where
    there is none. Of the process's start: code that is changed meanwhile is not what runs.
    """
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return NO_COMMIT
