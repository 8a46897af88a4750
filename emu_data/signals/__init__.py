"""Measured properties of pictures: raw values, one file per signal, without thresholds (those are
ledger.Thresholds).

A signal is a frozen dataclass whose fields are its settings. `version` identifies everything that determines its
values, so that data/signals/NAME@VERSION/NNNNN.parquet is valid as long as it exists. `load` loads models, in the
child process, and returns the function that measures.

Signals share expensive work through the `LazySample` that they receive: its header is read, its picture decoded and
its embedding (embedding.py) computed at most once, by the first signal that needs it.
"""

import dataclasses
import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image

from emu_data.files import fingerprint
from emu_data.samples import DECODING, Sample, decode_rgb, read_size

# px: larger pictures are reduced before signals see them. Every network uses less, and a batch of large photographs
# stays small in memory. Chosen here: twice the largest canvas of the text detector.
MAX_SIDE = 1024


class LazySample:
    """A sample as signals see it. Expensive values are computed on first use, which may raise DecodeError, and kept."""

    def __init__(self, sample: Sample):
        self.key, self.caption, self.meta, self.data = sample.key, sample.caption, sample.meta, sample.image
        self.embeddings: dict[Any, np.ndarray] = {}  # filled by embedding.embed
        self.seconds = {"decode": 0.0, "embedding": 0.0}  # spent on it for all signals together

    @cached_property
    def size(self) -> tuple[int, int]:
        """(width, height) in px as the picture is shown, from the header alone."""
        return read_size(self.data)

    @cached_property
    def image(self) -> Image.Image:
        """The RGB picture; if its longest side exceeds MAX_SIDE px, reduced so that it has MAX_SIDE / 2 or more."""
        start = time.perf_counter()
        image = decode_rgb(self.data)
        if max(image.size) > MAX_SIDE:  # by an integer factor: box means are several times faster than bicubic
            image = image.reduce(-(-max(image.size) // MAX_SIDE))
        self.seconds["decode"] += time.perf_counter() - start
        return image

    @cached_property
    def sha256(self) -> str:
        """The digest of the bytes in the shard."""
        return hashlib.sha256(self.data).hexdigest()


Columns = dict[str, list[Any]]  # column -> one value per sample, None if there is none
Measure = Callable[[Sequence[LazySample]], Columns]


@dataclasses.dataclass(frozen=True)
class Signal(ABC):
    """One property, or several that one computation gives."""

    name: ClassVar[str]
    revision: ClassVar[int] = 1  # increase it when the code's values change
    columns: ClassVar[Mapping[str, str]]  # column -> pandas dtype, all nullable
    # row: caption and columns of the input; header: also the picture's first bytes; pixels: the decoded picture. If a
    # sample cannot provide it, it gets an error instead of values.
    needs: ClassVar[Literal["row", "header", "pixels"]] = "pixels"
    milliseconds: ClassVar[float]  # see `cost`

    @property
    def version(self) -> str:
        """16 hexadecimal digits; signals with equal digits give equal values."""
        # DECODING counts for every signal: even a signal that needs only rows records which pictures cannot be decoded
        about = {"name": self.name, "revision": self.revision, "settings": self.settings(), "decoding": DECODING}
        return fingerprint(about)

    def settings(self) -> Any:
        """What the values depend on; for model files their digests, not their paths."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def needs_embedding(self) -> bool:
        """Whether it uses the shared embedding (embedding.py)."""
        return False

    def cost(self) -> float:
        """Milliseconds of one core per picture, without the decoding and the embedding that signals share.

        Declared, not measured during a run, since it determines the cascade's order, and the order determines which
        values are recorded. The numbers were measured on 40 pictures of benchmarks/_images.py (64 to 2 000 px, half of
        them up to 256) on 2026-11-26 (docs/log.md) and rounded: only their proportions matter. Overridden where the
        settings decide the cost.
        """
        return self.milliseconds

    @abstractmethod
    def describe(self) -> str:
        """What measures what, in a few words for readers of a report, without column names or markup."""

    @abstractmethod
    def load(self) -> Measure:
        """Load models and tables and return the function that measures a batch."""

    def measure(self, batch: Sequence[LazySample]) -> Columns:
        """Load, and measure one batch (for a few pictures; the cascade loads only once)."""
        return self.load()(batch)
