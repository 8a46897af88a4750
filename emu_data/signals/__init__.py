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
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image

from emu_data.costs import Spent, spent_since, spent_so_far
from emu_data.files import fingerprint
from emu_data.samples import DECODING, Sample, decode_rgb, read_size

# px: pictures are halved before signals see them, while their long side stays at least this. It is what the signal that
# needs most declares (Signal.side), the text detector's recogniser, so that one decoding serves all, and a batch of
# large photographs stays small in memory.
SIDE = 512
SEEING = 2  # increase it when LazySample.at gives other pixels; 2: JPEGs are halved while they are decoded


class LazySample:
    """A sample as signals see it. Expensive values are computed on first use, which may raise DecodeError, and kept."""

    def __init__(self, sample: Sample):
        self.key, self.caption, self.meta, self.data = sample.key, sample.caption, sample.meta, sample.image
        self.embeddings: dict[Any, np.ndarray] = {}  # filled by embedding.embed
        self.spent: dict[str, Spent] = {}  # on "decode" and "embedding", for all signals together
        self._seen: dict[int, Image.Image] = {}

    @cached_property
    def size(self) -> tuple[int, int]:
        """(width, height) in px as the picture is shown, from the header alone."""
        return read_size(self.data)

    @property
    def image(self) -> Image.Image:
        """The RGB picture as most signals see it: its long side has SIDE px or more and less than twice as many, unless
        the picture is smaller.
        """
        return self.at(SIDE)

    def at(self, side: int) -> Image.Image:
        """Return the RGB picture, its long side `side` px or more, unless the picture is smaller. Whatever asks for
        SIDE or less sees the same one, whichever signals run, so that values do not depend on the others.
        """
        side = max(side, SIDE)
        if side not in self._seen:
            before = spent_so_far()
            self._seen[side] = decode_rgb(self.data, side=side)
            self.spent["decode"] = self.spent.get("decode", Spent()).plus(spent_since(before))
        return self._seen[side]

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
    sees: ClassVar[int] = SIDE  # see `side`
    milliseconds: ClassVar[float]  # see `cost`

    @property
    def version(self) -> str:
        """16 hexadecimal digits; signals with equal digits give equal values."""
        about = {"name": self.name, "revision": self.revision, "settings": self.settings()}
        # These count for every signal: even one that needs only rows records which pictures cannot be decoded.
        return fingerprint(about | {"decoding": DECODING, "seeing": SEEING})

    def settings(self) -> Any:
        """What the values depend on; for model files their digests, not their paths."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def needs_embedding(self) -> bool:
        """Whether it uses the shared embedding (embedding.py)."""
        return False

    def side(self) -> int:
        """px of a picture's long side that the signal makes use of: it asks for `sample.at(side)`. More change no
        decision. Overridden where the settings decide it.
        """
        return self.sees

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
