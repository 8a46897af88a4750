"""The rows that a training reads, split into trained and held-out ones.

`Rows` have their pictures in memory, as squares of one size (the autoencoder). `PictureRows` leave them in the shards,
from which they are cropped to the shape of their bucket and encoded once (the denoiser).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from emu_data.samples import decode_rgb, read_size
from emu_data.shards import iter_samples, read_images, read_many
from emu_models.training.buckets import Size, assign_buckets
from emu_models.training.order import held_out

HELD_OUT_SHARE = 0.08  # of the rows; chosen here
HELD_OUT_MINIMUM = 4  # rows; chosen here


@dataclass(frozen=True)
class Rows:
    """N rows: keys, captions, images (N, H, W, 3) uint8, is_held_out (N,) bool."""

    keys: list[str]
    captions: list[str]
    images: np.ndarray
    is_held_out: np.ndarray

    def subset(self, mask: np.ndarray) -> "Rows":
        """Return the rows where `mask`, bool (N,), is true."""
        keys = [k for k, m in zip(self.keys, mask, strict=True) if m]
        captions = [c for c, m in zip(self.captions, mask, strict=True) if m]
        return Rows(keys, captions, self.images[mask], self.is_held_out[mask])

    @property
    def trained(self) -> "Rows":
        """The rows to train on."""
        return self.subset(~self.is_held_out)

    @property
    def held(self) -> "Rows":
        """The rows that are only for validation."""
        return self.subset(self.is_held_out)


def load_rows(shards: Path, table: pd.DataFrame, resolution: int) -> Rows:
    """Read the pictures of `table` (columns key, caption) at `resolution` px per side, in key order."""
    table = table.sort_values("key")
    keys, captions = table["key"].tolist(), table["caption"].tolist()
    images = read_images(shards, keys, resolution)
    return Rows(keys, captions, images, held_out(keys, HELD_OUT_SHARE, HELD_OUT_MINIMUM))


@dataclass(frozen=True)
class PictureRows:
    """N rows: keys, captions, digests of the pictures' bytes, is_held_out (N,) bool, and bucket_N (N,), the index of
    each row's bucket in bucket_sizes."""

    shards: Path
    keys: list[str]
    captions: list[str]
    digests: list[str]
    is_held_out: np.ndarray
    bucket_N: np.ndarray
    bucket_sizes: list[Size]

    def read(self, index: np.ndarray, num_at_once: int) -> Iterator[np.ndarray]:
        """Yield the pictures of rows of one bucket as uint8 (n, height, width, 3), n at most `num_at_once`."""
        (bucket,) = np.unique(self.bucket_N[index])
        samples = read_many(self.shards, [self.keys[i] for i in index])
        for start in range(0, len(index), num_at_once):
            keys = [self.keys[i] for i in index[start : start + num_at_once]]
            yield np.stack([crop(decode_rgb(samples[key].image), self.bucket_sizes[bucket]) for key in keys])

    def rows_per_bucket(self) -> dict[str, int]:
        """Return WIDTHxHEIGHT -> number of rows, for buckets with rows."""
        return {
            f"{width}x{height}": int((self.bucket_N == i).sum())
            for i, (width, height) in enumerate(self.bucket_sizes)
            if (self.bucket_N == i).any()
        }


def find_rows(shards: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `table` (columns key, caption), in key order, with digest (SHA-256 of the picture's bytes),
    width and height (px, as shown). Pictures are hashed but not decoded.

    Hashing needs one pass over the pictures, so that nothing made from another picture is ever used. Shards and members
    without such a row are skipped. Raises ValueError, which names the first keys, if some have no readable sample.
    """
    table = table[["key", "caption"]].sort_values("key", ignore_index=True)
    found = {
        sample.key: (hashlib.sha256(sample.image).hexdigest(), *read_size(sample.image))
        for sample in iter_samples(shards, table["key"].tolist())
    }
    missing = sorted(set(table["key"]) - found.keys())
    if missing:
        raise ValueError(f"{shards}: {len(missing)} keys have no readable sample, the first are {missing[:3]}")
    columns = pd.DataFrame([found[key] for key in table["key"]], columns=["digest", "width", "height"])
    return table.join(columns)


def list_rows(shards: Path, table: pd.DataFrame, buckets: list[Size], batch_size: int) -> PictureRows:
    """Return the rows of `table` (columns key and caption, or the result of `find_rows`) with their buckets, in key
    order."""
    table = table if "digest" in table else find_rows(shards, table)
    keys, captions = table["key"].tolist(), table["caption"].tolist()
    is_held_out = held_out(keys, HELD_OUT_SHARE, HELD_OUT_MINIMUM)
    sizes = table[["width", "height"]].to_numpy()
    bucket_N = assign_buckets(sizes, buckets, ~is_held_out, batch_size)
    return PictureRows(shards, keys, captions, table["digest"].tolist(), is_held_out, bucket_N, buckets)


def crop(image: Image.Image, size: Size) -> np.ndarray:
    """Return the largest central part of an RGB picture that has the shape of `size`, as uint8 (height, width, 3)."""
    scale = min(image.width / size[0], image.height / size[1])
    width, height = size[0] * scale, size[1] * scale
    left, top = (image.width - width) // 2, (image.height - height) // 2
    box = (left, top, left + width, top + height)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS, box=box))
