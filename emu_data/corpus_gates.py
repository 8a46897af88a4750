"""The gates on the whole corpus: of near-twins one is kept, then what is large enough to be curated, then exactly N
pictures under concept quotas.

Emu paper, section 3.3: balancing over visual concepts by a classifier; the paper does not give its quotas. Results do
not depend on the order of the rows or the number of threads: every sort ends with the key. DuckDB does the work over
the ledger's parquets and spills to disk, so that memory does not grow with the corpus.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from emu_data.files import write_parquet
from emu_data.ledger import check_conserved, count_gates, ledger_columns, open_ledger, read_marks
from emu_data.near_twins import MIN_SIMILARITY, cluster_near_twins

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

KEEP_BEST_BY = ("min_side", "alignment_rank", "num_bytes")


@dataclass(frozen=True)
class CorpusPolicy:
    """What is kept of the pictures that passed every row gate.

    Args:
        min_similarity: 0..1, between the looks of a near-twin and those of the centre of its cluster.
        min_side: px of the shorter side that a picture needs to be curated; None for any. (A smaller one may be
            pretrained on at a lower resolution.)
        keep_best_by: columns that decide which picture of a cluster of near-twins is kept: the largest value of the
            first column that differs, then the smallest key.
        num_images: how many to keep, exactly; None keeps all that are not duplicates, without quotas.
        min_share, max_share: 0..1, the smallest and largest share of `num_images` that a concept may have; a concept
            with fewer pictures than its smallest share gives all it has.
        order_by: the column whose largest values are kept in each concept (popularity, aesthetics); None, and ties:
            a seeded hash of the key.
        seed: of that hash.
    """

    min_similarity: float = MIN_SIMILARITY
    min_side: int | None = None
    keep_best_by: tuple[str, ...] = KEEP_BEST_BY
    num_images: int | None = None
    min_share: float = 0.0
    max_share: float = 1.0
    order_by: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.min_similarity <= 1:
            raise ValueError(f"min_similarity must be 0..1, not {self.min_similarity}")
        if not 0 <= self.min_share <= self.max_share <= 1:
            raise ValueError(
                f"min_share and max_share must be 0 <= min <= max <= 1, not {self.min_share} and {self.max_share}"
            )


@dataclass(frozen=True)
class Decision:
    """What the gates decided. counts: gate -> rows that failed it first; "" -> rows kept. concepts_before,
    concepts_after: concept -> rows that passed the row gates, rows that were kept.

    The rows that were left out are in the view `left_out` of the connection: key, gate, duplicate_of (null for other
    gates than `duplicate`).
    """

    counts: Mapping[str, int]
    concepts_before: Mapping[str, int]
    concepts_after: Mapping[str, int]


def final_ledger(source: Path, out: Path, policy: CorpusPolicy, num_threads: int | None = None) -> Decision:
    """Write the ledger after the gates on the whole corpus to `out`, a parquet per shard; asserts that no row is lost.

    source: the row gates' ledger. New columns: `cluster`, the key of the centre of a picture's near-twins, null if it
    has none (found among all readable pictures, whatever the thresholds); `duplicate_of`, the picture that was kept in
    a duplicate's place.
    """
    with open_ledger(source, num_threads=num_threads) as con:
        create_clusters(con, policy.min_similarity)
        decision = decide_corpus(con, "first_failed_gate", policy)
        con.execute("""
            CREATE TEMP TABLE changes AS
            SELECT l.key, l.shard, c.cluster, o.duplicate_of, o.gate
            FROM ledger l LEFT JOIN clusters c USING (key) LEFT JOIN left_out o USING (key)
            WHERE coalesce(c.key, o.key) IS NOT NULL
            ORDER BY l.shard, l.key
        """)
        for file in sorted(Path(source).glob("*.parquet")):
            # Sorted by shard, so that DuckDB skips the blocks of the others.
            changes = con.execute("SELECT * FROM changes WHERE shard = ?", [file.stem]).df().set_index("key")
            write_parquet(Path(out) / file.name, _with_changes(pd.read_parquet(file), changes), read_marks(file))
    check_conserved(Path(out), sum(decision.counts.values()))
    return decision


def create_clusters(con: "DuckDBPyConnection", min_similarity: float) -> None:
    """Create the table `clusters` (key, cluster) from the view `ledger`: near-twins among all readable pictures."""
    # The digest of the original bytes, or of the bytes in the shard if the corpus does not have it.
    con.execute("""
        CREATE OR REPLACE TEMP VIEW pictures AS
        SELECT key, coalesce(sha256, stored_sha256) AS digest, looks FROM ledger
    """)
    cluster_near_twins(con, "pictures", min_similarity)


def decide_corpus(con: "DuckDBPyConnection", gate: str, policy: CorpusPolicy) -> Decision:
    """Apply the gates on the whole corpus to the rows of the view `ledger` that pass `gate` (SQL; see ledger.gate_sql).

    Needs the column `cluster` in the ledger, or the table `clusters`. Raises ValueError if a column of the policy
    is missing, or the quotas are impossible.
    """
    columns = ledger_columns(con)
    needed = {*policy.keep_best_by, *([policy.order_by] if policy.order_by else [])}
    needed |= {"min_side"} if policy.min_side is not None else set()
    if unknown := sorted(needed - set(columns)):
        raise ValueError(
            f"the ledger has no column {', '.join(unknown)}, which keep_best_by, order_by or min_curated_side needs; "
            f"its columns: {', '.join(sorted(columns))}"
        )
    has_clusters = con.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'clusters'").fetchone()
    twins = "ledger LEFT JOIN clusters USING (key)" if has_clusters else "ledger"
    cluster = "clusters.cluster" if has_clusters else "cluster"
    counts = count_gates(con, gate)
    con.execute(f"""
        CREATE OR REPLACE TEMP TABLE passed AS
        SELECT key, shard, coalesce(concept, '') AS concept, {cluster} AS cluster
            {"".join(f', "{name}"' for name in sorted(needed))}
        FROM {twins} WHERE ({gate}) = ''
    """)
    best = "".join(f'"{name}" DESC NULLS LAST, ' for name in policy.keep_best_by)
    con.execute(f"""
        CREATE OR REPLACE TEMP TABLE duplicates AS
        SELECT key, shard, concept, first_value(key) OVER w AS duplicate_of FROM passed WHERE cluster IS NOT NULL
        WINDOW w AS (PARTITION BY cluster ORDER BY {best}key) QUALIFY row_number() OVER w > 1
    """)
    con.execute(f"""
        CREATE OR REPLACE TEMP TABLE small AS SELECT key, shard, concept FROM passed ANTI JOIN duplicates USING (key)
        WHERE {"false" if policy.min_side is None else f"min_side < {policy.min_side}"}
    """)
    before, twins_of, small = (_concepts(con, name) for name in ("passed", "duplicates", "small"))
    left = {name: num - twins_of.get(name, 0) - small.get(name, 0) for name, num in before.items()}
    unique = {name: num for name, num in left.items() if num}
    quotas = unique
    if policy.num_images is not None:
        quotas = share_out(unique, policy.num_images, policy.min_share, policy.max_share)
    _create_over(con, quotas, policy)
    con.execute("""
        CREATE OR REPLACE TEMP VIEW left_out AS SELECT key, 'duplicate' AS gate, duplicate_of FROM duplicates
        UNION ALL SELECT key, 'size', NULL FROM small UNION ALL SELECT key, 'quota', NULL FROM over
    """)
    counts["duplicate"] = sum(twins_of.values())
    counts["size"] = sum(small.values())
    counts["quota"] = sum(unique.values()) - sum(quotas.values())
    counts[""] = sum(quotas.values())
    return Decision(counts, before, {name: n for name, n in quotas.items() if n})


def share_out(counts: Mapping[str, int], num_images: int, min_share: float, max_share: float) -> dict[str, int]:
    """Return concept -> how many pictures to take, `num_images` in all. counts: concept -> pictures available.

    Shares follow the corpus as far as the quotas allow: a concept gets lambda times its count, clipped to its minimum
    and maximum, where lambda makes the sum right. Raises ValueError if the quotas or the number of pictures make
    `num_images` impossible.
    """
    names = sorted(counts)
    sizes = np.array([counts[name] for name in names], np.int64)
    high = np.minimum(sizes, math.floor(max_share * num_images + 1e-9))
    low = np.minimum(high, math.ceil(min_share * num_images - 1e-9))
    if not low.sum() <= num_images <= high.sum():
        raise ValueError(
            f"cannot take {num_images} of {sizes.sum()} pictures in {len(sizes)} concepts with shares "
            f"{min_share} to {max_share}: between {low.sum()} and {high.sum()} are possible; "
            "change num_images or the shares"
        )
    return dict(zip(names, _allocate(sizes, low, high, num_images).tolist(), strict=True))


def concept_entropy(counts: Mapping[str, int]) -> float:
    """Return the entropy of the concepts' shares in bits; log2 of the number of concepts if all are equal."""
    shares = np.array([n for n in counts.values() if n], float)
    shares /= shares.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def _create_over(con: "DuckDBPyConnection", quotas: Mapping[str, int], policy: CorpusPolicy) -> None:
    """Create the table `over` of the unique pictures beyond their concept's quota."""
    import pyarrow as pa

    names = pa.array(list(quotas), pa.string())
    con.register("quotas", pa.table({"concept": names, "quota": pa.array(quotas.values(), pa.int64())}))
    order = f'"{policy.order_by}" DESC NULLS LAST, ' if policy.order_by else ""
    con.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE over AS
        SELECT key, shard FROM passed ANTI JOIN duplicates USING (key) ANTI JOIN small USING (key)
            JOIN quotas USING (concept)
        QUALIFY row_number() OVER (PARTITION BY concept ORDER BY {order}md5_number(? || key), key) > quota
    """,
        [f"{policy.seed}:"],
    )
    con.unregister("quotas")


def _concepts(con: "DuckDBPyConnection", table: str) -> dict[str, int]:
    rows = con.execute(f"SELECT concept, count(*) FROM {table} GROUP BY concept ORDER BY concept").fetchall()
    return {str(name): int(num) for name, num in rows}


def _with_changes(rows: pd.DataFrame, changes: pd.DataFrame) -> pd.DataFrame:
    """Return a shard's rows, in key order, with the changes of the gates on the whole corpus."""
    rows = rows.sort_values("key", kind="stable", ignore_index=True)
    found = changes.reindex(rows["key"])
    gate = found["gate"].astype("string").to_numpy()
    dropped = pd.notna(gate)
    rows.loc[dropped, "first_failed_gate"] = gate[dropped]
    rows["kept"] = rows["kept"] & ~dropped
    rows["cluster"] = found["cluster"].astype("string").to_numpy()
    rows["duplicate_of"] = found["duplicate_of"].astype("string").fillna("").to_numpy()
    return rows.astype({"cluster": "string", "duplicate_of": "string"})


def _allocate(counts: np.ndarray, low: np.ndarray, high: np.ndarray, total: int) -> np.ndarray:
    """Return integer quotas between `low` and `high` that add up to `total`, nearly proportional to `counts`."""
    under, over = 0.0, 1.0
    for _ in range(60):  # bisection of 0..1: 2^-60 is below any count's resolution
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
