"""Measured properties of pictures: raw values, one file a signal, no thresholds (those are
ledger.Thresholds).

A signal is a frozen dataclass whose fields are its settings. `version` names everything that determines its
values, so that data/signals/NAME@VERSION/NNNNN.parquet is right as long as it exists; `load` brings models
into memory, in the child process that measures, and returns the function that does.

Signals share what is dear through the `Record` that they are handed: its header is read, its picture decoded,
its embedding (embedding.py) computed at most once, by whichever signal asks first.
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
from emu_data.records import Sample, decode_rgb, read_size

# Pictures are handed on no larger than this: every network looks at less, and a batch of large photographs stays
# small in memory. Chosen here: twice the largest canvas of the text detector.
MAX_SIDE = 1024


class Record:
    """A sample as signals see it. What costs time is done on first use and kept; DecodeError is raised there."""

    def __init__(self, sample: Sample):
        self.key, self.caption, self.meta, self.data = sample.key, sample.caption, sample.meta, sample.image
        self.embeddings: dict[Any, np.ndarray] = {}  # filled by embedding.embed
        self.seconds = {"decode": 0.0, "embedding": 0.0}  # what was spent on it for all signals together

    @cached_property
    def size(self) -> tuple[int, int]:
        """(width, height) in px as the header says, before EXIF turns it."""
        return read_size(self.data)

    @cached_property
    def image(self) -> Image.Image:
        """RGB, at most MAX_SIDE px a side (more than half of it, where the picture has them)."""
        start = time.perf_counter()
        image = decode_rgb(self.data)
        if max(image.size) > MAX_SIDE:  # by a whole factor: means of boxes are several times faster than bicubic
            image = image.reduce(-(-max(image.size) // MAX_SIDE))
        self.seconds["decode"] += time.perf_counter() - start
        return image

    @cached_property
    def sha256(self) -> str:
        """Of the bytes in the shard."""
        return hashlib.sha256(self.data).hexdigest()


Columns = dict[str, list[Any]]  # column -> one value a record, None where there is none
Measure = Callable[[Sequence[Record]], Columns]


@dataclasses.dataclass(frozen=True)
class Signal(ABC):
    """One property, or a few that one computation gives."""

    name: ClassVar[str]
    revision: ClassVar[int] = 1  # raised when the code changes what it measures
    columns: ClassVar[Mapping[str, str]]  # column -> pandas dtype, all nullable
    # row: caption and columns of the input; header: the picture's first bytes too; pixels: the picture decoded, and
    # what is made of it. A picture that cannot give it gets no values, only an error.
    needs: ClassVar[Literal["row", "header", "pixels"]] = "pixels"
    milliseconds: ClassVar[float]  # see `cost`

    @property
    def version(self) -> str:
        """16 hexadecimal digits: equal digits, equal values."""
        return fingerprint({"name": self.name, "revision": self.revision, "settings": self.settings()})

    def settings(self) -> Any:
        """What the values depend on; a signal with model files returns their digests here, not their
        paths.
        """
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def needs_embedding(self) -> bool:
        """Whether it looks at the shared embedding (embedding.py)."""
        return False

    def cost(self) -> float:
        """Milliseconds of one core that a picture takes, without the decoding and the embedding that signals share.

        Declared, and not what the clock of a run says: the cascade's order follows from it, and from the order which
        values are recorded. Measured on 40 pictures of benchmarks/_images.py (64 to 2 000 px, half of them up to 256)
        on 2026-11-26 (docs/log.md), rounded: only the proportions count. Overridden where the settings decide it.
        """
        return self.milliseconds

    @abstractmethod
    def describe(self) -> str:
        """What was measured with what, in a few words for people who read a report: no names of columns, no markup."""

    @abstractmethod
    def load(self) -> Measure:
        """Load what is needed and return the function that measures a batch."""

    def measure(self, batch: Sequence[Record]) -> Columns:
        """Measure one batch, loading for it alone (for a handful of pictures; the cascade loads once)."""
        return self.load()(batch)
