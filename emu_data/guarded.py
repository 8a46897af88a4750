"""Decodes pictures that nothing has decoded before, in the child process of a guard.

A corpus may hold bytes that crash or hang a decoder. Pictures that have not passed the cascade (because there is no
ledger yet, or because a gate rejected them by header or caption alone) are decoded here: a picture that cannot be
decoded is left out, and costs nothing else.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import TypeVar

import numpy as np
from PIL import ImageOps

from emu_data.engine.guard import Failure, Guard
from emu_data.samples import DecodeError, Sample
from emu_data.shards import square
from emu_data.signals import LazySample

PAPER = (224, 224, 224)  # RGB around a picture that is not square; chosen here
BATCH = 16  # pictures that the child receives together, and that are in memory together; chosen here

Seen = TypeVar("Seen")


def look_guarded(samples: Iterable[Sample], look: Callable[[LazySample], Seen]) -> Iterator[tuple[Sample, Seen]]:
    """Yield each sample whose picture can be decoded, in order, with what `look` returns for it.

    `look` is called in the child, so it must be importable by name (or functools.partial of such a function); it
    never returns None.
    """
    waiting = iter(samples)
    with Guard[Sample](partial(_load, look)) as guard:
        while batch := list(islice(waiting, BATCH)):
            for sample, seen in zip(batch, guard.map(batch, BATCH), strict=True):
                if seen is not None and not isinstance(seen, Failure):
                    yield sample, seen


def decode_guarded(samples: Iterable[Sample], size: int) -> Iterator[tuple[Sample, np.ndarray]]:
    """Yield each sample whose picture can be decoded, in order, with its central square as uint8 (size, size, 3)."""
    return look_guarded(samples, partial(_square, size=size))


def fit_guarded(samples: Iterable[Sample], size: int) -> Iterator[tuple[Sample, np.ndarray]]:
    """Yield each sample whose picture can be decoded, in order, with the whole picture on a grey square as uint8
    (size, size, 3)."""
    return look_guarded(samples, partial(_fit, size=size))


def measure_guarded(samples: Iterable[Sample]) -> Iterator[tuple[Sample, tuple[int, int]]]:
    """Yield each sample whose picture can be decoded, in order, with its width and height in px, as shown."""
    return look_guarded(samples, _measure)


def _measure(sample: LazySample) -> tuple[int, int]:
    _ = sample.image  # raises DecodeError if the picture cannot be decoded; it may be smaller than what is in the file
    return sample.size


def _fit(sample: LazySample, size: int) -> np.ndarray:
    return np.asarray(ImageOps.pad(sample.image, (size, size), color=PAPER))


def _square(sample: LazySample, size: int) -> np.ndarray:
    return square(sample.image, size)


def _load(look: Callable[[LazySample], Seen]) -> Callable[[list[Sample]], list[Seen | None]]:
    """Return, in the child, the function that calls `look` on a batch; None for a picture that cannot be decoded."""

    def look_at(sample: Sample) -> Seen | None:
        try:
            return look(LazySample(sample))
        except DecodeError:
            return None

    return lambda batch: [look_at(sample) for sample in batch]
