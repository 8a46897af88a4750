"""What raters are shown, and the interface of the panels that stand in for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from emu_data.votes.vote import Vote


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture to keep or drop. image: uint8 (H, W, 3). seen: for `Vote.seen` of a vote on it."""

    key: str
    image: np.ndarray
    seen: str = ""


@dataclass(frozen=True, eq=False)
class Pair:
    """Pictures of models A and B for the same prompt and seed, uint8 (H, W, 3). caption: "" if it is hidden. seen: for
    `Vote.seen` of a vote on it."""

    key: str
    image_a: np.ndarray
    image_b: np.ndarray
    caption: str = ""
    seen: str = ""


Item = TypeVar("Item", contravariant=True)


class Panel(Protocol[Item]):
    """Automatic raters: each votes on each item, and equal panels vote equally on equal items."""

    def vote(self, items: Sequence[Item]) -> list[Vote]:
        """Return the votes of all its raters. Raises ValueError if a key repeats, or pictures differ in size
        or type.
        """
        ...


def keys_of(items: Sequence[Picture] | Sequence[Pair]) -> list[str]:
    """Return the items' keys in order. Raises ValueError if one repeats."""
    keys = [item.key for item in items]
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} repeats among {len(keys)} items: each needs its own key")
    return keys


def stack_pictures(images: Sequence[np.ndarray]) -> np.ndarray:
    """Return N >= 1 pictures as uint8 (N, H, W, 3). Raises ValueError unless all are uint8 (H, W, 3) of one size."""
    first = images[0]
    if wrong := [one for one in images if one.dtype != np.uint8 or one.ndim != 3 or one.shape != first.shape]:
        raise ValueError(
            f"pictures must be uint8 (H, W, 3) of one size; got {first.dtype} {first.shape} and {wrong[0].dtype} "
            f"{wrong[0].shape}"
        )
    return np.stack(images)
