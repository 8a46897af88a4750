"""Progress of long assets as events on the run's page: numbers and how long it still takes, every few seconds."""

import threading
import time
from collections.abc import Callable, Mapping

from emu_data.formatting import format_duration, format_significant

SECONDS = 5.0  # between two events; chosen here: an event is a row in Dagster's database for ever
SHOWN = ("loss", "val_loss", "val_psnr")  # of a training's metrics, in this order


class Progress:
    """Says how far `name` is through `tell`, at most every SECONDS, and always at the end. Threads may share one.

    clock: seconds.
    """

    def __init__(
        self, tell: Callable[[str], object], name: str, unit: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tell, self._name, self._unit, self._clock = tell, name, unit, clock
        self._first: tuple[float, int] | None = None  # when it was called first, and how much was done then
        self._told = float("-inf")
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """done of total units; metrics: those of SHOWN are told, and steps_per_second, where given, is the speed."""
        with self._lock:
            now = self._clock()
            began, done_before = self._first = self._first or (now, done)
            if done < total and now - self._told < SECONDS:
                return
            self._told = now
        metrics = metrics or {}
        speed = metrics.get("steps_per_second") or (done - done_before) / max(now - began, 1e-9)
        parts = [f"{self._unit} {done} of {total}"]
        parts += [f"{name.replace('_', ' ')} {format_significant(metrics[name])}" for name in SHOWN if name in metrics]
        if done < total and speed > 0:
            parts.append(f"about {format_duration((total - done) / speed)} left")
        self._tell(f"{self._name}: {', '.join(parts)}")
