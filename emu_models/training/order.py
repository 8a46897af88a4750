"""Which rows a step uses and which random numbers it draws, as functions of only (seed, step).

So a run that was killed at any step continues as if it had not been, without a random state to save.
"""

import hashlib
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


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
    """Which rows each step uses; those of a step are in one bucket. bucket_N: int (N,), each row's bucket.

    With one bucket, the order is that of `batch_indices`. With several, a pass is a shuffle of batches; each bucket's
    last batch of a pass is filled up with rows from the beginning of the pass.
    """

    def __init__(self, bucket_N: np.ndarray, batch_size: int, seed: int) -> None:
        self._batch_size, self._seed, self._num_rows = batch_size, seed, len(bucket_N)
        self._buckets = [np.flatnonzero(bucket_N == bucket) for bucket in np.unique(bucket_N)]
        self.batches_per_pass = sum(-(-len(rows) // batch_size) for rows in self._buckets)
        self._pass: tuple[int, np.ndarray] = (-1, np.empty((0, batch_size), int))

    def indices(self, step: int) -> np.ndarray:
        """Return the row numbers of a step, int64 (batch_size,)."""
        if len(self._buckets) < 2:
            return batch_indices(step, self._batch_size, self._num_rows, self._seed)
        number, place = divmod(step, self.batches_per_pass)
        made = self._pass
        if made[0] != number:  # two threads may both do this, with the same result
            made = self._pass = (number, self._shuffle(number))
        return made[1][place]

    def _shuffle(self, number: int) -> np.ndarray:
        rng, size = np.random.default_rng([self._seed, number]), self._batch_size
        batches = [np.resize(rng.permutation(rows), (-(-len(rows) // size), size)) for rows in self._buckets]
        return rng.permutation(np.concatenate(batches))


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
    digests = [hashlib.sha256(key.encode()).digest()[:8] for key in keys]
    unit = np.array([int.from_bytes(digest, "big") for digest in digests]) / 2.0**64
    mask = unit < share
    if mask.sum() < minimum:
        mask[np.argsort(unit, kind="stable")[: min(minimum, len(keys) // 2)]] = True
    return mask
