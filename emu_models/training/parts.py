"""Parts of a corpus's rows, such as those to train on or those of one bucket, without a list of their numbers.

A byte per row says to which group it belongs: its bucket and, with HELD, whether it is held out. With the rows that
each block of the corpus has of each group, the k-th row of a part is found in one block, so that a process keeps a
number per block in memory. The bytes themselves may be a memory map.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

ROWS_PER_BLOCK = 8192  # about what a shard of 10 000 pictures holds after the gates; chosen here
HELD = 128  # is added to the bucket of a held-out row; params allow 100 buckets


def count_groups(group_N: np.ndarray) -> np.ndarray:
    """Return how many rows of each group each block has, int64 (num_blocks, 256). group_N: uint8."""
    num_blocks = -(-len(group_N) // ROWS_PER_BLOCK)
    blocks = (group_N[i * ROWS_PER_BLOCK : (i + 1) * ROWS_PER_BLOCK] for i in range(num_blocks))
    return np.array([np.bincount(block, minlength=256) for block in blocks], np.int64).reshape(num_blocks, 256)


@dataclass(frozen=True, eq=False)
class Part:
    """The rows whose group is in `groups`, in the order of all rows. group_N: uint8, of all rows. counts_BG: int64
    (num_blocks, 256), from `count_groups`."""

    group_N: np.ndarray
    counts_BG: np.ndarray
    groups: tuple[int, ...]

    @classmethod
    def of(cls, bucket_N: np.ndarray) -> "Part":
        """Return the part that has all rows, whose buckets are `bucket_N`, int (N,)."""
        group_N = np.asarray(bucket_N).astype(np.uint8)
        return cls(group_N, count_groups(group_N), tuple(np.unique(group_N).tolist()))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @cached_property
    def counts(self) -> np.ndarray:
        """How many of its rows each block has, int64 (num_blocks,)."""
        return self.counts_BG[:, list(self.groups)].sum(axis=1)

    @cached_property
    def _ends(self) -> np.ndarray:
        return self.counts.cumsum()

    @cached_property
    def _is_mine(self) -> np.ndarray:
        return np.isin(np.arange(256), self.groups)

    @cached_property
    def buckets(self) -> "list[Part]":
        """Its parts of one bucket each, without empty ones, by bucket."""
        present = [g for g in sorted(self.groups) if self.counts_BG[:, g].any()]
        return [Part(self.group_N, self.counts_BG, (group,)) for group in present]

    def buckets_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the bucket of each of `rows`, int64 (n,)."""
        return self.group_N[rows].astype(np.int64) % HELD

    def rows(self, places: np.ndarray) -> np.ndarray:
        """Return the numbers of the rows at `places`, int64 (n,), which count only the rows of this part."""
        blocks = np.searchsorted(self._ends, places, side="right")
        found = np.empty(len(places), np.int64)
        for block in np.unique(blocks):
            here = blocks == block
            found[here] = self.rows_of_block(int(block))[places[here] - (self._ends[block - 1] if block else 0)]
        return found

    def rows_of_block(self, block: int) -> np.ndarray:
        """Return the numbers of this part's rows in a block, int64, in order."""
        start = block * ROWS_PER_BLOCK
        return start + np.flatnonzero(self._is_mine[self.group_N[start : start + ROWS_PER_BLOCK]])
