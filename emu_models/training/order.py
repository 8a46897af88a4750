"""Which rows a step uses and which random numbers it draws, as functions of only (seed, step).

So a run that was killed at any step continues as if it had not been, without a random state to save.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from emu_models.training.parts import Part

# Blocks that are shuffled together: a million rows, 100 GB of pictures of 100 kB over all processes; chosen here.
WINDOW_BLOCKS = 128
# Rows up to which a training on cached rows is shuffled as a whole, in an array of 80 MB; chosen here.
MAX_SHUFFLED = 10_000_000


def batch_indices(step: int, batch_size: int, num_rows: int, seed: int) -> np.ndarray:
    """Return the row numbers, int64 (batch_size,), of a step. Each pass over all rows has its own order; no row is
    dropped.

    A batch may span the end of one pass and the start of the next. Raises ValueError if there are no rows.
    """
    if num_rows < 1:
        raise ValueError("there are no training rows; `emu funnel` shows which gate rejected them")
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    passes = positions // num_rows
    orders = {int(p): _order_of_pass(seed, int(p), num_rows) for p in np.unique(passes)}
    return np.array([orders[int(p)][i] for p, i in zip(passes, positions % num_rows, strict=True)])


@lru_cache(maxsize=4)  # a pass over millions of rows is shuffled once, not at every step
def _order_of_pass(seed: int, number: int, num_rows: int) -> np.ndarray:
    return np.random.default_rng([seed, number]).permutation(num_rows)


class BatchOrder:
    """Which rows each step uses; those of a step are in one bucket. A pass uses every row; it ends with a batch of each
    bucket that is filled up with rows from the bucket's beginning of the pass.

    in_windows: whether rows are shuffled in windows, for which nothing of the size of the corpus is kept in memory, and
    which read a shard's pictures together (`_Windows`). Otherwise every order of the rows is possible, and an array of
    them is kept; with one bucket it is then that of `batch_indices`, in which a batch may span two passes.
    """

    def __init__(self, part: Part, batch_size: int, seed: int, in_windows: bool = False) -> None:
        self._part, self._batch_size, self._seed = part, batch_size, seed
        self._buckets = part.buckets
        self._windows = _Windows(self._buckets, batch_size, seed) if in_windows else None
        self.batches_per_pass = sum(-(-len(bucket) // batch_size) for bucket in self._buckets)
        self._pass: tuple[int, np.ndarray] = (-1, np.empty((0, batch_size + 1), int))

    def indices(self, step: int) -> np.ndarray:
        """Return the row numbers of a step, int64 (batch_size,). Raises ValueError if there are no rows."""
        if self._windows is not None and len(self._part):
            return self._windows.indices(*divmod(step, self.batches_per_pass))
        if len(self._buckets) < 2:
            return self._part.rows(batch_indices(step, self._batch_size, len(self._part), self._seed))
        number, place = divmod(step, self.batches_per_pass)
        made = self._pass
        if made[0] != number:  # two threads may both do this, with the same result
            made = self._pass = (number, self._shuffle(number))
        bucket, *places = made[1][place]
        return self._buckets[bucket].rows(np.array(places))

    def _shuffle(self, number: int) -> np.ndarray:
        """Return a pass's batches, int64 (batches_per_pass, 1 + batch_size): a bucket, and places among its rows."""
        rng, size = np.random.default_rng([self._seed, number]), self._batch_size
        batches = [np.resize(rng.permutation(len(b)), (-(-len(b) // size), size)) for b in self._buckets]
        buckets = np.repeat(np.arange(len(batches)), [len(those) for those in batches])
        return rng.permutation(np.column_stack([buckets, np.concatenate(batches)]))


class _Windows:
    """A pass in windows: the blocks of the corpus (parts.ROWS_PER_BLOCK rows that follow each other by key, about a
    shard) are shuffled, WINDOW_BLOCKS of them are a window, and the rows of a window are shuffled and cut into batches.

    A batch that a window does not fill takes its other rows from the next one. The rows of a batch are sorted, so that
    each process, whose share are rows that follow each other, reads only its own part of a window's shards, however
    many processes there are. In memory are a number per window and bucket, and the rows of a few windows. Everything is
    computed from (seed, pass, window), so a step is found without those before it.
    """

    def __init__(self, buckets: list[Part], batch_size: int, seed: int) -> None:
        self._buckets, self._batch_size, self._seed = buckets, batch_size, seed
        self._counts = np.column_stack([bucket.counts for bucket in buckets]) if buckets else np.empty((0, 0), int)
        self._plan = lru_cache(maxsize=2)(self._make_plan)
        self._batches = lru_cache(maxsize=2)(self._make_batches)
        self._rows = lru_cache(maxsize=3 * len(buckets) + 1)(self._shuffle_rows)

    def indices(self, number: int, place: int) -> np.ndarray:
        """Return the rows of batch `place` of pass `number`, int64 (batch_size,), sorted."""
        _, ends, num_batches = self._plan(number)
        window = int(np.searchsorted(num_batches, place, side="right"))
        before = int(num_batches[window - 1]) if window else 0
        bucket, batch = self._batches(number, window)[place - before]
        ends_of = ends[:, bucket]
        wanted = (batch * self._batch_size + np.arange(self._batch_size)) % ends_of[-1]
        windows, found = np.searchsorted(ends_of, wanted, side="right"), np.empty(self._batch_size, np.int64)
        for w in np.unique(windows):
            here = windows == w
            found[here] = self._rows(number, int(w), int(bucket))[wanted[here] - (ends_of[w - 1] if w else 0)]
        return np.sort(found)

    def _make_plan(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the blocks in their order (num_blocks,); the rows of each bucket up to the end of each window, (W, K);
        and the batches up to there, (W,)."""
        blocks = np.random.default_rng([self._seed, number, 0]).permutation(len(self._counts))
        starts = np.arange(0, len(blocks), WINDOW_BLOCKS)
        ends = np.add.reduceat(self._counts[blocks], starts, axis=0).cumsum(axis=0)
        return blocks, ends, self._whole(ends).sum(axis=1)

    def _whole(self, ends: np.ndarray) -> np.ndarray:
        """Return how many batches of each bucket are complete at the end of each window; the last one counts, too."""
        whole = ends // self._batch_size
        whole[-1] = -(-ends[-1] // self._batch_size)
        return whole

    def _make_batches(self, number: int, window: int) -> np.ndarray:
        """Return the batches that are completed in a window in their order, int64 (n, 2): bucket, number of the
        bucket's batch."""
        whole = self._whole(self._plan(number)[1])
        first = whole[window - 1] if window else np.zeros_like(whole[0])
        batches = [
            np.column_stack([np.full(end - start, bucket), np.arange(start, end)])
            for bucket, (start, end) in enumerate(zip(first, whole[window], strict=True))
        ]
        return np.random.default_rng([self._seed, number, 1, window]).permutation(np.concatenate(batches))

    def _shuffle_rows(self, number: int, window: int, bucket: int) -> np.ndarray:
        blocks = self._plan(number)[0][window * WINDOW_BLOCKS : (window + 1) * WINDOW_BLOCKS]
        rows = np.concatenate([self._buckets[bucket].rows_of_block(int(block)) for block in blocks])
        return np.random.default_rng([self._seed, number, 2, window, bucket]).permutation(rows)


def generator_for(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """Return a CPU generator for one step; another `stream` gives independent numbers in the same step."""
    entropy = np.random.SeedSequence([seed, stream, step]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(entropy) >> 1)


def draw_rows(
    seed: int, step: int, positions: np.ndarray, num_normal: int, num_uniform: int = 0
) -> tuple[Tensor, Tensor]:
    """Return standard normal numbers (n, num_normal) and numbers in 0..1 (n, num_uniform), float32, for n positions.

    They depend on the position in the batch, so that a row gets the same numbers however many processes share the
    batch, and each process draws only its own. Philox is counter-based (Salmon et al. 2011), so we jump straight to a
    position; seeding a generator per row took 10 % of a small network's step.
    """
    philox = np.random.Philox(key=np.array([seed, step], np.uint64))
    generator, state = np.random.Generator(philox), philox.state
    normal = np.empty((len(positions), num_normal), np.float32)
    uniform = np.empty((len(positions), num_uniform), np.float32)
    for row, position in enumerate(positions):
        state["state"]["counter"][:] = (0, 0, 0, position)
        philox.state = state
        generator.standard_normal(dtype=np.float32, out=normal[row])
        generator.random(dtype=np.float32, out=uniform[row])
    return torch.from_numpy(normal), torch.from_numpy(uniform)


def held_out(keys: list[str], share: float, minimum: int) -> np.ndarray:
    """Return which rows are held out, bool (N,): those whose key has a hash below `share` (0..1).

    The hash is of the key alone, so every training holds out the same pictures: pretraining has not seen those that
    tuning holds out. If a small set has fewer than `minimum` such rows, those with the lowest hashes are held out.
    """
    units = unit_hashes([int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") for key in keys])
    return units < held_out_below(np.sort(units)[:minimum], len(keys), share, minimum)


def unit_hashes(hashes: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return hashes of 64 bits as numbers in 0..1, float64 (N,)."""
    return np.asarray(hashes, np.uint64) / 2.0**64


def held_out_below(lowest: np.ndarray, num_rows: int, share: float, minimum: int) -> float:
    """Return the number below which the hash of a held-out row's key is (`held_out`). lowest: the lowest `minimum`
    hashes of all rows, sorted, float64."""
    num = min(minimum, num_rows // 2)
    return max(share, float(np.nextafter(lowest[num - 1], 2.0))) if num else share
