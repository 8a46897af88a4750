"""How pairs of pictures are put before raters: which model stands left, and which pairs are shown twice.

Paper sec. 4 compares side by side and says neither how sides were shuffled nor whether pairs were repeated;
both are ours. The draws depend on seed, rater and pair alone, so the studio, the rubric panel and a second
run agree on them.
"""

import hashlib

REPEAT_SHARE = 0.05  # of the pairs, shown again with sides swapped: a rater's agreement with themselves


def draw_side_order(seed: int, rater: str, key: str) -> str:
    """ "AB" (model A on the left) or "BA", each with probability a half."""
    return "AB" if _draw_unit(seed, rater, key, "side") < 0.5 else "BA"


def swap(side_order: str) -> str:
    """The other order of the sides."""
    return {"AB": "BA", "BA": "AB"}[side_order]


def is_repeated(seed: int, rater: str, key: str, share: float = REPEAT_SHARE) -> bool:
    """Whether this rater sees this pair a second time, sides swapped (with probability `share`, 0..1)."""
    return _draw_unit(seed, rater, key, "repeat") < share


def _draw_unit(*parts: object) -> float:
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
