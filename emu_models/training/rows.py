"""The rows that a training reads, split into trained and held-out ones.

`Rows` have their pictures in memory, as squares of one size (the autoencoder). `PictureRows` leave them in the shards,
and their keys and captions in a memory-mapped file (row_file.py); pictures are cropped to the shape of their bucket and
encoded, once or whenever they are read (the denoiser).
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from emu_data.copies import Copies
from emu_data.files import atomic_dir, fingerprint
from emu_data.samples import decode_rgb
from emu_data.shards import list_shards, read_images, read_wanted
from emu_models.training.buckets import MAX_ASPECT, Size, merge_buckets, nearest_buckets
from emu_models.training.distributed import ALONE, World
from emu_models.training.order import held_out
from emu_models.training.parts import HELD, Part
from emu_models.training.row_file import HELD_OUT_MINIMUM, HELD_OUT_SHARE, RowFile, Texts
from emu_models.training.squares import Squares

DECODERS = 4  # threads that decode the pictures of a batch, since Pillow lets others run meanwhile; chosen here
GROUPS_AT_ONCE = 1 << 24  # rows whose groups are in memory while they are written; chosen here


@dataclass(frozen=True)
class Rows:
    """N rows: keys, captions, images (N, H, W, 3) uint8 in memory or as Squares, is_held_out (N,) bool."""

    keys: list[str]
    captions: list[str]
    images: Any
    is_held_out: np.ndarray

    def subset(self, mask: np.ndarray) -> "Rows":
        """Return the rows where `mask`, bool (N,), is true."""
        keys = [k for k, m in zip(self.keys, mask, strict=True) if m]
        captions = [c for c, m in zip(self.captions, mask, strict=True) if m]
        images = self.images.subset(mask) if isinstance(self.images, Squares) else self.images[mask]
        return Rows(keys, captions, images, self.is_held_out[mask])

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


class PictureRows:
    """The rows of a row file, cropped to the shape of their buckets. trained, held_out: the rows to train on, and
    those that are only for validation, none with hold_out False. every: all rows. copies: of shards that are not on
    this machine. Raises ValueError if `buckets` are several and a size is unknown."""

    def __init__(
        self,
        shards: Path,
        file: RowFile,
        buckets: list[Size],
        batch_size: int,
        world: World = ALONE,
        copies: Copies | None = None,
        hold_out: bool = True,
    ) -> None:
        self.file, self.bucket_sizes, self._copies = file, buckets, copies
        self.keys, self.captions = Texts(file, "key"), Texts(file, "caption")
        self._shards = {path.stem: path for path in list_shards(shards)}
        given = [buckets, batch_size, MAX_ASPECT, *([] if hold_out else ["nothing held out"])]
        folder = file.folder / f"groups-{fingerprint(given)}"
        if world.mean({"known": float(folder.is_dir())})["known"] < 1:
            if world.leads:
                _write_groups(folder, file, buckets, batch_size, hold_out)
            world.wait()
        group_N = np.memmap(folder / "groups.bin", np.uint8, "r") if len(file) else np.empty(0, np.uint8)
        counts_BG = np.load(folder / "counts.npy", mmap_mode="r" if len(file) else None)
        present = np.flatnonzero(counts_BG.any(axis=0)).tolist()
        self.name = f"{file.name}-{folder.name}"
        self.every = Part(group_N, counts_BG, tuple(present))
        self.trained = Part(group_N, counts_BG, tuple(group for group in present if group < HELD))
        self.held_out = Part(group_N, counts_BG, tuple(group for group in present if group >= HELD))

    def __len__(self) -> int:
        return len(self.file)

    def read(self, index: np.ndarray, num_at_once: int) -> Iterator[np.ndarray]:
        """Yield the pictures of rows of one bucket as uint8 (n, height, width, 3), n at most `num_at_once`. Raises
        ValueError if some cannot be read, or have other bytes than the row file says."""
        (bucket,) = np.unique(self.every.buckets_of(index))
        keys, digests, shards = self.file.read(index, "key", "digest", "shard")
        found: dict[str, bytes] = {}
        for shard in sorted(set(shards)):
            wanted = {key: digest for key, digest, place in zip(keys, digests, shards, strict=True) if place == shard}
            found |= self._read_shard(self.file.shard_names[shard], wanted)

        def prepare(key: str) -> np.ndarray:
            return crop(decode_rgb(found[key]), self.bucket_sizes[bucket])

        for start in range(0, len(index), num_at_once):
            yield np.stack(list(_decoders().map(prepare, keys[start : start + num_at_once])))

    def sizes_of(self, index: np.ndarray) -> torch.Tensor:
        """Return what a network may be told of rows of one bucket (`latent.denoiser.denoise`): float32 (n, 6), in px.
        A picture whose size is not known counts as uncropped."""
        (bucket,) = np.unique(self.every.buckets_of(index))
        width, height = self.bucket_sizes[bucket]
        found = [[height, width, 0, 0, height, width]] * len(index)
        for place, (own_width, own_height) in enumerate(zip(*self.file.read(index, "width", "height"), strict=True)):
            if min(own_width, own_height) > 0:
                scale = min(own_width / width, own_height / height)  # as `crop` does it
                top, left = (own_height / scale - height) / 2, (own_width / scale - width) / 2
                found[place] = [own_height, own_width, round(top), round(left), height, width]
        return torch.tensor(found, dtype=torch.float32)

    def _read_shard(self, name: str, wanted: dict[str, bytes]) -> dict[str, bytes]:
        """Return key -> the picture's bytes, of the keys (-> digest) of one shard."""
        found: dict[str, bytes] = {}
        path = self._shards[name]
        for sample in read_wanted(path if self._copies is None else self._copies.of(path), wanted):
            found.setdefault(sample.key, sample.image)
            if len(found) == len(wanted):
                break
        if missing := sorted(wanted.keys() - found.keys()):
            raise ValueError(
                f"{self._shards[name]}: {len(missing)} keys have no readable sample, the first are {missing[:3]}"
            )
        changed = sorted(key for key, image in found.items() if hashlib.sha256(image).digest() != wanted[key])
        if changed:
            raise ValueError(
                f"{self._shards[name]}: {len(changed)} pictures have changed since they were measured, the first are "
                f"{changed[:3]}; materialise filter_ledger again"
            )
        return found

    def rows_per_bucket(self) -> dict[str, int]:
        """Return WIDTHxHEIGHT -> number of rows, for buckets with rows."""
        num_rows = self.every.counts_BG.sum(axis=0)
        totals = num_rows[:HELD] + num_rows[HELD:]
        return {f"{w}x{h}": int(totals[i]) for i, (w, h) in enumerate(self.bucket_sizes) if totals[i]}


@cache
def _decoders() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(DECODERS, "decode")


def _write_groups(folder: Path, file: RowFile, buckets: list[Size], min_rows: int, hold_out: bool) -> None:
    """Write each row's group (parts.py), and how many rows of each a block has. min_rows: see buckets.merge_buckets."""
    with atomic_dir(folder) as partial:
        counts_BG = np.zeros((file.num_blocks, 256), np.int64)
        with open(partial / "own.bin", "wb") as own:
            for block in range(file.num_blocks):
                group = file.numbers(block, "is_held_out") * np.uint8(HELD if hold_out else 0)
                if len(buckets) > 1:
                    sizes = np.column_stack([file.numbers(block, side) for side in ("width", "height")])
                    _refuse_unknown(sizes, file, block)
                    group += nearest_buckets(sizes, buckets).astype(np.uint8)
                own.write(group.tobytes())
                counts_BG[block] = np.bincount(group, minlength=256)
        trained, held = counts_BG[:, :HELD].sum(axis=0), counts_BG[:, HELD:].sum(axis=0)
        merged = merge_buckets(trained, trained + held, buckets, min_rows)
        table = np.concatenate([merged, merged + HELD]).astype(np.uint8)
        with open(partial / "own.bin", "rb") as own, open(partial / "groups.bin", "wb") as groups:
            while part := own.read(GROUPS_AT_ONCE):
                groups.write(table[np.frombuffer(part, np.uint8)].tobytes())
        (partial / "own.bin").unlink()
        counts = np.zeros_like(counts_BG)
        for group, into in enumerate(table):
            counts[:, into] += counts_BG[:, group]
        np.save(partial / "counts.npy", counts)


def _refuse_unknown(sizes_N2: np.ndarray, file: RowFile, block: int) -> None:
    unknown = np.flatnonzero(sizes_N2.min(axis=1) < 1)
    if len(unknown):
        key = file.block(block).column("key")[int(unknown[0])].as_py()
        raise ValueError(
            f"the size of {key} cannot be read from its header, and its bucket depends on it: leave the picture out, "
            "or set aspect_buckets to 1"
        )


def crop(image: Image.Image, size: Size) -> np.ndarray:
    """Return the largest central part of an RGB picture that has the shape of `size`, as uint8 (height, width, 3)."""
    scale = min(image.width / size[0], image.height / size[1])
    width, height = size[0] * scale, size[1] * scale
    left, top = (image.width - width) // 2, (image.height - height) // 2
    box = (left, top, left + width, top + height)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS, box=box))
