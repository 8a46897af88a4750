"""Near-twins as one item of a queue: a burst is one decision, and one vote on it teaches the probe once."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Items(NamedTuple):
    """G items made of N pictures, in the order of their first pictures.

    Args:
        keys: of the items: a cluster's name, or the picture's own key.
        members: for each item the rows of its pictures, int64, ascending.
        embeddings: float32 (G, D), the mean of the members' unit vectors, brought to length 1.
    """

    keys: list[str]
    members: list[np.ndarray]
    embeddings: np.ndarray


def join_twins(keys: Sequence[str], cluster_of: Mapping[str, str], embeddings: np.ndarray) -> Items:
    """Make one item of the pictures of each cluster.

    Args:
        keys: of the pictures, each once.
        cluster_of: picture's key -> cluster's name, as `near_twins.cluster_near_twins` finds them (its centre's key);
            a picture without twins may be missing.
        embeddings: (N, D), of the pictures.
    """
    names = [cluster_of.get(key, key) for key in keys]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    item_of = np.array([numbers[name] for name in names], dtype=np.int64)
    by_item = np.argsort(item_of, kind="stable")
    members = np.split(by_item, np.flatnonzero(np.diff(item_of[by_item])) + 1) if len(keys) else []
    means = np.stack([_unit(_unit(embeddings[rows]).mean(axis=0)) for rows in members]) if members else embeddings
    return Items(list(numbers), members, means)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (..., D) of length 1, float32; those of length 0 stay."""
    vectors = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)
