"""How many pictures or captions run at a time; without torch, since `emu plan` asks, too."""

ENCODE_BATCH = 64  # pictures or captions at a time, at most; bytes change with the batch; chosen here
BUDGET = 0.8  # share of the free memory that a batch may take; the rest is for fragments; chosen here


def fitting(largest: int, per_item: float, free: float) -> int:
    """Return how many items of `per_item` bytes run at a time in `free` bytes: at least 1, at most `largest`."""
    return max(1, min(largest, int(BUDGET * free / max(per_item, 1))))
