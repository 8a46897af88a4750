"""Rounds that a lead opens from the page: their pictures are found and embedded in the background, which may take
minutes, and the page shows how far it is and what went wrong.

If the server ends meanwhile nothing was opened: a round comes into being in one step, the last one.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from emu_studio.openable import Tell

log = logging.getLogger("emu_studio")


@dataclass
class Preparation:
    """A round that is being opened. num_done: of `num` pictures, both 0 before they are known. problem: why it could
    not be opened; "" while it is prepared."""

    name: str
    num_done: int = 0
    num: int = 0
    problem: str = ""
    ended: threading.Event = field(default_factory=threading.Event)

    def tell(self, num_done: int, num: int) -> None:
        """Take note of how far it is."""
        self.num_done, self.num = num_done, num


class Preparations:
    """All rounds that are being opened, and those that could not be, until they are tried again."""

    def __init__(self) -> None:
        self._lock, self._all = threading.Lock(), dict[str, Preparation]()

    def start(self, name: str, open_: Callable[[Tell], object]) -> Preparation:
        """Open a round in a thread of its own. Raises ValueError if that has begun already."""
        with self._lock:
            if (before := self._all.get(name)) and not before.problem:
                raise ValueError(f"the round {name} is being prepared already")
            found = self._all[name] = Preparation(name)
        threading.Thread(target=self._run, args=(found, open_), daemon=True, name=f"open {name}").start()
        return found

    def list(self) -> list[Preparation]:
        """Return all, by name."""
        with self._lock:
            return sorted(self._all.values(), key=lambda one: one.name)

    def _run(self, found: Preparation, open_: Callable[[Tell], object]) -> None:
        try:
            open_(found.tell)
        except Exception as error:  # of whatever kind: the lead must see it, there is nobody else to tell
            log.exception("the round %s could not be opened", found.name)
            found.problem = (
                f"{error}" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
            )
        else:
            with self._lock:
                del self._all[found.name]
        finally:
            found.ended.set()
