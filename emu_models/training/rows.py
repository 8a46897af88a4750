"""The rows a training reads: keys, captions and pictures of one size, split into trained and held out."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from emu_data.shards import read_images
from emu_models.training.order import held_out

HELD_OUT_SHARE = 0.08  # of the rows, at least HELD_OUT_MINIMUM; chosen here
HELD_OUT_MINIMUM = 4


@dataclass(frozen=True)
class Rows:
    """keys and captions (N), images (N, H, W, 3) uint8, is_held_out (N,) bool."""

    keys: list[str]
    captions: list[str]
    images: np.ndarray
    is_held_out: np.ndarray

    def subset(self, mask: np.ndarray) -> "Rows":
        keys = [k for k, m in zip(self.keys, mask, strict=True) if m]
        captions = [c for c, m in zip(self.captions, mask, strict=True) if m]
        return Rows(keys, captions, self.images[mask], self.is_held_out[mask])

    @property
    def trained(self) -> "Rows":
        return self.subset(~self.is_held_out)

    @property
    def held(self) -> "Rows":
        return self.subset(self.is_held_out)


def load_rows(shards: Path, table: pd.DataFrame, resolution: int) -> Rows:
    """Reads the pictures of `table` (columns key, caption) at `resolution` pixels a side, in key order."""
    table = table.sort_values("key")
    keys, captions = table["key"].tolist(), table["caption"].tolist()
    images = read_images(shards, keys, resolution)
    return Rows(keys, captions, images, held_out(keys, HELD_OUT_SHARE, HELD_OUT_MINIMUM))
