"""Pictures that a training reads again and again at one small size: cut to squares once, in a file that is
memory-mapped by all processes of a machine, so that none holds the corpus in memory."""

import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emu_data.files import atomic_file
from emu_data.samples import DECODING, decode_rgb
from emu_data.shards import iter_samples, list_shards, shard_digest, square
from emu_models.training.distributed import ALONE, World


class Squares:
    """N pictures, uint8 (N, S, S, 3): those of `stored` at `row_N`. An index or a slice reads copies."""

    dtype = np.dtype(np.uint8)

    def __init__(self, stored: np.ndarray, row_N: np.ndarray) -> None:
        self._stored, self._row_N = stored, row_N
        self.shape = (len(row_N), *stored.shape[1:])

    def __len__(self) -> int:
        return len(self._row_N)

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.array(self._stored[self._row_N[index]])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def subset(self, mask: np.ndarray) -> "Squares":
        """Return the pictures where `mask`, bool (N,), is true; nothing is read."""
        return Squares(self._stored, self._row_N[mask])


def open_squares(shards: Path, keys: Sequence[str], side: int, cache: Path, world: World = ALONE) -> Squares:
    """Return the pictures of `keys` in that order, cut to their central squares of `side` px (shards.square). They are
    read from the shards, one picture in memory at a time, unless that was done before; all processes must call this.

    cache: a folder that all processes see. Raises ValueError, which names the first keys, if some cannot be read.
    """
    code = [DECODING, inspect.getsource(square), side]
    digests = [(path.stem, shard_digest(path)) for path in list_shards(shards)]
    name = hashlib.sha256(json.dumps([code, digests, list(keys)]).encode()).hexdigest()[:32]
    file = cache / "squares" / f"{name}.npy"
    if world.mean({"known": float(file.is_file())})["known"] < 1:
        if world.leads:
            _write(file, shards, keys, side)
        world.wait()
    return Squares(np.load(file, mmap_mode="r" if keys else None), np.arange(len(keys)))


def _write(file: Path, shards: Path, keys: Sequence[str], side: int) -> None:
    places = {key: place for place, key in enumerate(keys)}
    with atomic_file(file) as partial:
        shape = (len(keys), side, side, 3)
        if not keys:
            with partial.open("wb") as empty:
                np.save(empty, np.empty(shape, np.uint8))
            return
        stored = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
        for sample in iter_samples(shards, keys):
            stored[places.pop(sample.key)] = square(decode_rgb(sample.image), side)
        if places:
            raise ValueError(
                f"{shards}: {len(places)} keys have no readable sample, the first are {sorted(places)[:3]}"
            )
        stored.flush()
