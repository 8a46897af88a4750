"""Progress of long assets, as events on the run's page: numbers and the time left, every few seconds."""

import threading
import time
from collections.abc import Callable, Mapping

from emu_data.formatting import format_duration, format_significant

SECONDS = 5.0  # between two events, each of which stays in Dagster's database forever; chosen here
SHOWN = ("loss", "val_loss", "val_psnr")  # of a training's metrics, in this order


class Progress:
    """Reports how far `name` is by calling `report`, at most every SECONDS, and always at the end. Threads may share
    it.

    unit: what is counted, such as "step". clock: returns seconds.
    """

    def __init__(
        self, report: Callable[[str], object], name: str, unit: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._report, self._name, self._unit, self._clock = report, name, unit, clock
        self._first: tuple[float, int] | None = None  # when it was first called, and how much was done then
        self._last_report = float("-inf")
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """Report that `done` of `total` units are done. metrics: those in SHOWN are reported; steps_per_second, if
        given, is used as the speed.
        """
        with self._lock:
            now = self._clock()
            began, done_before = self._first = self._first or (now, done)
            if done < total and now - self._last_report < SECONDS:
                return
            self._last_report = now
        metrics = metrics or {}
        speed = metrics.get("steps_per_second") or (done - done_before) / max(now - began, 1e-9)
        parts = [f"{self._unit} {done} of {total}"]
        parts += [f"{name.replace('_', ' ')} {format_significant(metrics[name])}" for name in SHOWN if name in metrics]
        if done < total and speed > 0:
            parts.append(f"about {format_duration((total - done) / speed)} left")
        self._report(f"{self._name}: {', '.join(parts)}")
