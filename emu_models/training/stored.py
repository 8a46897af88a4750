"""How encoded rows are stored: shards of a thousand rows in a cache's folder, and where in them each row is.

A shard is a safetensors file with the rows' digests. Only rows whose digest is in no shard are encoded, equal ones
once, so an interrupted build continues at the next shard. Shards are read as memory maps: unused rows stay on disk.
Where each row of a training is, is kept beside its row file.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from emu_data.files import atomic_dir, atomic_file
from emu_models.latent.autoencoder.network import Moments
from emu_models.text import TextFeatures
from emu_models.training.distributed import World
from emu_models.training.identity import hash_all
from emu_models.training.parts import ROWS_PER_BLOCK
from emu_models.training.rows import PictureRows

ROWS_PER_SHARD = 1024  # a multiple of budget.ENCODE_BATCH; 1 GB of 16-channel moments at 1024 px; chosen here
OPEN_SHARDS = 256  # memory maps kept open; chosen here
HALVED = ("mean", "logvar", "tokens")  # tensors kept in half precision
NUM_BYTES = 16  # of a digest by which a cache knows a row: 128 bits of a SHA-256
DIGEST = np.dtype(f"S{NUM_BYTES}")  # compares and sorts as the bytes do, since all have the same length


class CachedRows:
    """Rows in the shards of a cache. place_N2: int32 (N, 2), of each row its shard, an index of `shards`, and its row
    there; it may be a memory map."""

    def __init__(self, folder: Path, shards: Sequence[str], place_N2: np.ndarray) -> None:
        self.folder, self.shards, self._place_N2 = folder, shards, place_N2

    def __len__(self) -> int:
        return len(self._place_N2)

    def find(self, index_B: Tensor) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """Yield, for each shard that holds some of the rows at `index_B`, int64 (B,): their places in index_B, their
        rows in the shard, both int64 (n,), and its tensors."""
        shard_B, row_B = self._place_N2[index_B.numpy()].T
        for shard in np.unique(shard_B):
            places = np.flatnonzero(shard_B == shard)
            rows = torch.from_numpy(row_B[places].astype(np.int64))
            yield torch.from_numpy(places), rows, _open_shard(self.folder / self.shards[int(shard)])

    def read(self, index_B: Tensor, *names: str) -> list[Tensor]:
        """Return tensors of the rows at `index_B`, int64 (B,), in their stored precision; they must have one shape."""
        found: dict[str, Tensor] = {}
        for places, rows, stored in self.find(index_B):
            for name in names:
                values = stored[name][rows]
                if len(places) == len(index_B):  # all from one shard, as in a small set: no second copy
                    found[name] = values
                    continue
                if name not in found:
                    found[name] = values.new_empty(len(index_B), *values.shape[1:])
                found[name][places] = values
        return [found[name] for name in names]


class CachedMoments(CachedRows):
    """Moments of latents in a cache on disk."""

    def select(self, index_B: Tensor) -> Moments:
        """Return the moments of the rows at `index_B`, int64 (B,): (B, C, h, w) in fp32; the rows must have one
        shape."""
        mean, logvar = self.read(index_B, "mean", "logvar")
        return Moments(mean.float(), logvar.float())


class CachedText(CachedRows):
    """Text features in a cache on disk, which keeps tokens without their padding."""

    def select(self, index_B: Tensor) -> TextFeatures:
        """Return the features of the rows at `index_B`, int64 (B,), in half precision, so that the larger part of a
        batch has half its size when it is copied and sent to the device."""
        mask, pooled = self.read(index_B, "mask", "pooled")
        tokens: Tensor | None = None
        for places, rows, stored in self.find(index_B):
            values, ends = stored["values"], stored["ends"]
            num = mask[places].sum(1)
            within = torch.arange(int(num.sum())) - (num.cumsum(0) - num).repeat_interleave(num)
            if tokens is None:
                tokens = values.new_zeros(*mask.shape, values.shape[1])
            part = tokens.new_zeros(*mask[places].shape, values.shape[1])
            part[mask[places]] = values[(ends[rows] - num).repeat_interleave(num) + within]
            tokens[places] = part
        assert tokens is not None
        return TextFeatures(tokens, mask, pooled)


def fill(
    cache: Path,
    rows: PictureRows,
    digests: Callable[[int], np.ndarray],
    groups: Callable[[int], np.ndarray | int],
    more: list[bytes],
    encode: Callable[[np.ndarray], dict[str, Tensor]],
    world: World,
) -> tuple[list[str], np.ndarray]:
    """Encode the rows whose digests are in no shard, equal ones once, and return the shards' names and, memory-mapped,
    each row's place in them (CachedRows).

    digests: block -> uint8 (n, NUM_BYTES). groups: block -> the group of its rows; a shard holds rows of one group
    (shape). more: digests of further rows after those of the file. Each process encodes every world.size-th shard; only
    the first one has, meanwhile, the digests of all rows in memory, and only if rows have no place yet.
    """
    folder = rows.file.folder / f"places-{hash_all(cache.name, rows.name)}"
    if world.mean({"known": float(_is_whole(folder, cache))})["known"] < 1:
        missing = folder.with_name(folder.name.replace("places", "missing"))
        digest_N = _all_digests(rows, digests, more) if world.leads else np.empty(0, DIGEST)
        if world.leads:
            _list_missing(missing, cache, digest_N, rows, groups)
        world.wait()
        ends = np.load(missing / "ends.npy")
        row_N = np.memmap(missing / "rows.bin", np.int64, "r") if ends[-1] else np.empty(0, np.int64)
        starts = [s for a, b in zip(ends[:-1], ends[1:], strict=True) for s in range(a, b, ROWS_PER_SHARD)]
        for start in starts[world.rank :: world.size]:
            end = min(start + ROWS_PER_SHARD, ends[np.searchsorted(ends, start, side="right")])
            _write_shard(cache, np.array(row_N[start:end]), rows, digests, more, encode)
        world.wait()
        if world.leads:
            _write_places(folder, cache, digest_N)
            shutil.rmtree(missing)
        world.wait()
    return json.loads((folder / "shards.json").read_text()), np.load(folder / "places.npy", mmap_mode="r")


def _is_whole(folder: Path, cache: Path) -> bool:
    """Whether the places of all rows are known, and the shards where they are exist."""
    try:
        names = json.loads((folder / "shards.json").read_text())
    except FileNotFoundError:
        return False
    return set(names) <= {path.name for path in _shards(cache)}


def _shards(cache: Path) -> list[Path]:
    return sorted(cache.glob("[!.]*.safetensors"))


def _all_digests(rows: PictureRows, digests: Callable[[int], np.ndarray], more: list[bytes]) -> np.ndarray:
    """Return the digests of all rows, DIGEST (N,)."""
    parts = [np.ascontiguousarray(digests(block)).view(DIGEST)[:, 0] for block in range(rows.file.num_blocks)]
    return np.concatenate([*parts, np.frombuffer(b"".join(more), DIGEST)])


def _list_missing(
    folder: Path,
    cache: Path,
    digest_N: np.ndarray,
    rows: PictureRows,
    groups: Callable[[int], np.ndarray | int],
) -> None:
    """Write the numbers of the rows to encode, group by group, each in its order, and where each group ends. Of equal
    digests, which are in one group, the first is encoded."""
    group_N = np.zeros(len(digest_N), np.uint8)
    for block in range(rows.file.num_blocks):
        group_N[block * ROWS_PER_BLOCK : (block + 1) * ROWS_PER_BLOCK][: rows.file.block(block).num_rows] = groups(
            block
        )
    known, _, _ = _index(cache)
    values, first = np.unique(digest_N, return_index=True)
    first = np.sort(first[~np.isin(values, known)])
    first = first[np.argsort(group_N[first], kind="stable")]
    ends = np.concatenate([[0], np.flatnonzero(np.diff(group_N[first])) + 1, [len(first)]])
    with atomic_dir(folder) as partial:
        first.astype(np.int64).tofile(partial / "rows.bin")
        np.save(partial / "ends.npy", np.unique(ends))


def _write_shard(
    cache: Path,
    row_n: np.ndarray,
    rows: PictureRows,
    digests: Callable[[int], np.ndarray],
    more: list[bytes],
    encode: Callable[[np.ndarray], dict[str, Tensor]],
) -> None:
    """Encode rows and write them as a shard, whose name is a hash of their digests."""
    found = np.empty((len(row_n), NUM_BYTES), np.uint8)
    block_n = np.where(row_n < len(rows), row_n // ROWS_PER_BLOCK, -1)
    for block in np.unique(block_n):
        here = block_n == block
        if block < 0:
            found[here] = np.frombuffer(b"".join(more), np.uint8).reshape(-1, NUM_BYTES)[row_n[here] - len(rows)]
        else:
            found[here] = digests(int(block))[row_n[here] - block * ROWS_PER_BLOCK]
    kept = {name: t.half() if name in HALVED else t for name, t in encode(row_n).items()}
    if "tokens" in kept:  # without the padding
        kept["values"] = kept.pop("tokens")[kept["mask"]]
        kept["ends"] = kept["mask"].sum(1).cumsum(0)
    with atomic_file(cache / f"{hash_all(found.tobytes())}.safetensors") as partial:
        save_file({"digests": torch.from_numpy(found)} | {n: t.cpu().contiguous() for n, t in kept.items()}, partial)


def _write_places(folder: Path, cache: Path, digest_N: np.ndarray) -> None:
    """Write where each row is, int32 (N, 2), and the names of the shards there."""
    known, shard_M, row_M = _index(cache)
    place_N = np.searchsorted(known, digest_N).clip(max=len(known) - 1)
    if (lost := np.flatnonzero(known[place_N] != digest_N)).size:
        raise ValueError(f"{cache} lacks {lost.size} rows that were to be encoded; start the training again")
    used, shard_N = np.unique(shard_M[place_N], return_inverse=True)
    names = [path.name for path in _shards(cache)]
    with atomic_dir(folder) as partial:
        np.save(partial / "places.npy", np.column_stack([shard_N, row_M[place_N]]).astype(np.int32))
        (partial / "shards.json").write_text(json.dumps([names[i] for i in used]))


def _index(cache: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the digests in a cache, DIGEST (M,), sorted, and of each its shard, by name, and its row there, int32
    (M,)."""
    found: list[np.ndarray] = []
    for path in _shards(cache):
        with safe_open(path, "np") as shard:
            found.append(shard.get_tensor("digests").view(DIGEST)[:, 0])
    digest_M = np.concatenate([np.empty(0, DIGEST), *found])
    shard_M = np.repeat(np.arange(len(found), dtype=np.int32), [len(those) for those in found])
    row_M = np.concatenate([np.empty(0, np.int32), *(np.arange(len(those), dtype=np.int32) for those in found)])
    order = np.argsort(digest_M, kind="stable")
    return digest_M[order], shard_M[order], row_M[order]


@lru_cache(maxsize=OPEN_SHARDS)
def _open_shard(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a shard as views of its memory map."""
    with safe_open(path, "pt") as shard:
        return {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118 (not a dict)
