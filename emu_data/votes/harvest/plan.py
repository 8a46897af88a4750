"""What is decided about a queue before anybody votes: its control sample, and the order in which it is explored.

Both follow from a hash of each key with the seed, so they do not depend on the order of the keys or on a generator's
state. The two hashes are independent: if exploration reached control items sooner or later than other items, the
certificate (stops.py) would not hold.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class QueuePlan:
    """The plan of a queue of N items. A row is an item's position in the keys that the plan was made from.

    Args:
        control: int64 (C,), rows of the control sample in the order in which they are shown.
        exploration: int64 (N,), all rows in the order of exploration.
        explore_share: 0..1, of the items that are reached once there is a probe.
    """

    control: np.ndarray
    exploration: np.ndarray
    explore_share: float

    @property
    def num_items(self) -> int:
        """Items of the queue, including the control sample."""
        return len(self.exploration)


def plan_queue(
    keys: Sequence[str], strata: Sequence[str], seed: int, num_control: int, explore_share: float
) -> QueuePlan:
    """Draw the control sample of a queue, uniformly, and put all items into the order of exploration.

    Exploration is spread over the strata: the k-th of a stratum's n items has its place at (k + 1/2) / n of the way.
    So at any time it has taken the same share of each stratum, give or take one item. Within a stratum the order is
    that of the hashes.

    Args:
        keys: of the items, each once.
        strata: the concept of each item.
        seed: 0 or more.
        num_control: items of the control sample, 0 to all. Without one there is no certificate.
        explore_share: 0..1.

    Raises ValueError where an argument does not fit.
    """
    num = len(keys)
    if len(set(keys)) != num or len(strata) != num:
        raise ValueError(f"{num} keys, {len(set(keys))} of them different, and {len(strata)} strata: each key once")
    if not 0 <= num_control <= num:
        raise ValueError(f"a control sample of {num_control} out of {num} items; give 0 to {num}")
    if not 0 <= explore_share <= 1:
        raise ValueError(f"explore_share is {explore_share}; it must be 0 to 1")
    control = np.argsort(_hashes(keys, seed, b"control"), kind="stable")[:num_control]
    return QueuePlan(control, _spread(np.asarray(strata), _hashes(keys, seed, b"explore")), explore_share)


def _spread(strata: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Return all rows sorted by their place in their stratum (0..1), rows with the same place by their hash."""
    _, numbers, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    by_stratum = np.lexsort((hashes, numbers))
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    places = np.empty(len(strata))
    places[by_stratum] = (np.arange(len(strata)) - np.repeat(starts, sizes) + 0.5) / np.repeat(sizes, sizes)
    return np.lexsort((hashes, places))


def _hashes(keys: Sequence[str], seed: int, purpose: bytes) -> np.ndarray:
    """Return a uniform number for each key, uint64 (N,), which depends on the seed and the purpose."""
    salt = seed.to_bytes(16, "little")
    digests = [hashlib.blake2b(key.encode(), digest_size=8, salt=salt, person=purpose).digest() for key in keys]
    return np.frombuffer(b"".join(digests), "<u8")
