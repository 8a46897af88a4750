"""The gates that compare pictures: near-twins once, then exactly N under concept quotas.

Emu paper, section 3.3: balancing over visual concepts by a classifier, quotas not given. Everything here is
the same whatever the order of the rows: ties end at the key.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from emu_data.ledger import check_conserved

# 64 bits in 4 bands of 16: two hashes that differ in at most 3 bits agree in at least one band (pigeonhole).
NUM_BANDS = 4
BAND_BITS = 16
MAX_DISTANCE = NUM_BANDS - 1


@dataclass(frozen=True)
class SelectionPolicy:
    """What is kept of the pictures that passed every row gate.

    Args:
        max_distance: bits (0..3) by which the perceptual hashes of near-twins may differ.
        num_images: how many to keep, exactly; None keeps all that are no duplicates, with no quotas.
        min_share, max_share: 0..1 of `num_images` that a concept must have (as far as it has as many), may
            have.
        seed: which of a concept's pictures are taken.
    """

    max_distance: int = 3
    num_images: int | None = None
    min_share: float = 0.0
    max_share: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.max_distance <= MAX_DISTANCE:
            raise ValueError(f"max_distance must be 0..{MAX_DISTANCE} bits (the bands find no more)")
        if not 0 <= self.min_share <= self.max_share <= 1:
            raise ValueError(f"0 <= min_share <= max_share <= 1, not {self.min_share} and {self.max_share}")


def final_ledger(decided: pd.DataFrame, policy: SelectionPolicy) -> pd.DataFrame:
    """Return the whole corpus's ledger after the global gates, in key order.

    Args:
        decided: all shards' rows after ledger.decide.
    The column `duplicate_of` names the picture that was kept in a duplicate's place. Rows are conserved
    (asserted).
    """
    ledger = drop_duplicates(decided, policy.max_distance)
    if policy.num_images is not None:
        chosen = set(select(ledger, policy.num_images, policy.min_share, policy.max_share, policy.seed))
        over = ledger["kept"] & ~ledger["key"].isin(chosen)
        ledger.loc[over, "first_failed_gate"] = "quota"
        ledger.loc[over, "kept"] = False
    check_conserved(ledger, len(decided))
    return ledger


def drop_duplicates(ledger: pd.DataFrame, max_distance: int) -> pd.DataFrame:
    """Drop every kept row whose bytes, or whose perceptual hash within `max_distance` bits, a better kept row
    has.

    Better is: the larger shorter side, then the higher alignment rank, then more bytes, then the smaller key.
    Rows are compared with the survivors only, so that a chain of look-alikes does not pull down unlike
    pictures.
    """
    ledger = ledger.sort_values("key", kind="stable", ignore_index=True)
    ledger["duplicate_of"] = pd.Series("", index=ledger.index, dtype="string")
    columns = [c for c in ("min_side", "alignment_rank", "num_bytes") if c in ledger.columns]
    kept = ledger[ledger["kept"]]
    order = kept.sort_values([*columns, "key"], ascending=[*[False] * len(columns), True], kind="stable").index
    by_digest: dict[str, int] = {}
    by_band: dict[tuple[int, int], list[int]] = {}
    # Of the bytes that arrived, else (a corpus without them) of those in the shard.
    digests = kept["sha256"].fillna(kept["stored_sha256"])
    hashes = {row: int(value, 16) for row, value in kept["phash"].items()}
    drops: dict[int, int] = {}
    for row in order:
        digest, value = digests[row], hashes[row]
        twin = by_digest.get(digest)
        if twin is None:
            near = [other for band in _bands(value) for other in by_band.get(band, ())]
            twin = next((o for o in near if (hashes[o] ^ value).bit_count() <= max_distance), None)
        if twin is not None:
            drops[row] = twin
            continue
        by_digest[digest] = row
        for band in _bands(value):
            by_band.setdefault(band, []).append(row)
    rows = list(drops)
    ledger.loc[rows, "kept"] = False
    ledger.loc[rows, "first_failed_gate"] = "duplicate"
    ledger.loc[rows, "duplicate_of"] = ledger.loc[list(drops.values()), "key"].to_numpy()
    return ledger


def near_duplicate_groups(sha256: pd.Series, phash: pd.Series, max_distance: int = MAX_DISTANCE) -> pd.Series:
    """Return a group name for each picture: equal for equal bytes and, through any chain, for near hashes.

    For folds: pictures of one group must not be on both sides. (A chain may join too much; that is the safe
    side.)
    """
    parent = list(range(len(phash)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    digests, values = [str(d) for d in sha256], [int(value, 16) for value in phash]
    first: dict[object, list[int]] = {}
    for i, value in enumerate(values):
        for bucket in (digests[i], *_bands(value)):
            for j in first.setdefault(bucket, []):
                if digests[i] == digests[j] or (value ^ values[j]).bit_count() <= max_distance:
                    parent[max(root(i), root(j))] = min(root(i), root(j))
            first[bucket].append(i)
    roots = [root(i) for i in range(len(phash))]
    names: dict[int, str] = {}  # the smallest digest of a group: the same in any order of the rows
    for i, digest in zip(roots, digests, strict=True):
        names[i] = min(digest, names.get(i, digest))
    return pd.Series([names[i] for i in roots], index=phash.index, dtype="string")


def select(ledger: pd.DataFrame, num_images: int, min_share: float, max_share: float, seed: int) -> list[str]:
    """Return exactly `num_images` keys of the kept rows, sorted, under quotas a concept (the column
    `concept`).

    Shares follow the corpus's own, as far as the quotas let them: a concept gets lambda times its count, held
    between its minimum and maximum, with the one lambda that makes the sum right. Within a concept a seeded
    hash of the key decides. Raises ValueError where the quotas or the number of pictures make `num_images`
    impossible.
    """
    kept = ledger[ledger["kept"]]
    keys = kept.groupby(kept["concept"].fillna(""), sort=True)["key"].apply(list)
    counts = np.array([len(group) for group in keys])
    high = np.minimum(counts, math.floor(max_share * num_images + 1e-9))
    low = np.minimum(high, math.ceil(min_share * num_images - 1e-9))
    if not low.sum() <= num_images <= high.sum():
        raise ValueError(
            f"cannot take {num_images} of {counts.sum()} pictures in {len(counts)} concepts with shares "
            f"{min_share} to {max_share}: between {low.sum()} and {high.sum()} are possible; "
            "change num_images or the shares"
        )
    quotas = _allocate(counts, low, high, num_images)
    chosen = []
    for group, quota in zip(keys, quotas, strict=True):
        chosen += sorted(group, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())[:quota]
    assert len(chosen) == num_images, (len(chosen), num_images)
    return sorted(chosen)


def concept_entropy(concepts: pd.Series) -> float:
    """Return the entropy of a column of concepts in bits; log2 of the number of concepts where all are
    equal.
    """
    shares = concepts.value_counts(normalize=True).to_numpy(float)
    return float(-(shares * np.log2(shares)).sum())


def _bands(value: int) -> list[tuple[int, int]]:
    mask = (1 << BAND_BITS) - 1
    return [(band, (value >> (band * BAND_BITS)) & mask) for band in range(NUM_BANDS)]


def _allocate(counts: np.ndarray, low: np.ndarray, high: np.ndarray, total: int) -> np.ndarray:
    """Return whole quotas between `low` and `high` that add up to `total`, near to proportional to
    `counts`.
    """
    under, over = 0.0, 1.0
    for _ in range(60):  # halves of 1: below any count's resolution
        middle = (under + over) / 2
        under, over = (under, middle) if np.clip(middle * counts, low, high).sum() > total else (middle, over)
    exact = np.clip(under * counts, low, high)
    quotas = np.floor(exact + 1e-9).astype(int)
    spare = np.lexsort((np.arange(len(counts)), -(exact - quotas)))  # the largest remainders first
    while quotas.sum() < total:
        for index in spare:
            if quotas.sum() < total and quotas[index] < high[index]:
                quotas[index] += 1
    return quotas
