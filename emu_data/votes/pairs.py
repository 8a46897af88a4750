"""How pairs of pictures are shown to raters: which model is on the left, and which pairs are shown twice.

The paper (sec. 4) compares side by side, but does not say how sides were shuffled or whether pairs were repeated; both
are chosen here. The draws depend only on seed, rater and pair, so that the rubric panel and a second run agree on them.
"""

import hashlib

REPEAT_SHARE = 0.05  # of pairs shown again with swapped sides, to see whether a rater is consistent; chosen here


def draw_side_order(seed: int, rater: str, key: str) -> str:
    """Return "AB" (model A on the left) or "BA", each with probability 1/2."""
    return "AB" if _draw_unit(seed, rater, key, "side") < 0.5 else "BA"


def swap(side_order: str) -> str:
    """Return the other order of the sides."""
    return {"AB": "BA", "BA": "AB"}[side_order]


def is_repeated(seed: int, rater: str, key: str, share: float = REPEAT_SHARE) -> bool:
    """Whether this rater sees this pair again with swapped sides (with probability `share`, 0..1)."""
    return _draw_unit(seed, rater, key, "repeat") < share


def _draw_unit(*parts: object) -> float:
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
