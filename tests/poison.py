"""Records that end the process they are looked at in, in every way that was met: for tests of the engines."""

import ctypes
import os
import time


class AcceleratorError(RuntimeError):
    """Named as torch's, after which every call of the same process fails."""


def poison(how: object) -> None:
    """Ends, stops or delays this process as the word says; does nothing for anything else."""
    match how:
        case "raise":
            raise KeyError("of the record")
        case "crash":
            os.abort()
        case "exit":
            os._exit(3)
        case "sticky":
            raise AcceleratorError("CUDA error: an illegal memory access was encountered")
        case "segfault":
            ctypes.string_at(0)
        case "hang":
            time.sleep(600)
        case "hoard":
            hoard = []
            while True:
                hoard.append(b"x" * 2**24)
        case "linger":
            time.sleep(1)
