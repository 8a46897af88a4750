"""Records that end the process that reads them, in every way that was observed: for tests of the engines."""

import ctypes
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emu_data.signals import LazySample


class AcceleratorError(RuntimeError):
    """Named like torch's, after which every call of the same process fails."""


def poison(how: object) -> None:
    """End, stop or delay this process as the word says; do nothing for any other word."""
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


def poisoned_caption(sample: "LazySample") -> str:
    """Return the sample's caption, unless it is a word that ends this process."""
    poison(sample.caption)
    return sample.caption
