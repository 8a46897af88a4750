"""How good the gates are: judged by the damage that is known of the demo's corpus (data/damage.parquet), and by what
any corpus shows by itself.

No gate reads this; the funnel report shows it beside the goals.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from duckdb import DuckDBPyConnection

from emu_data.ledger import GLOBAL_GATES, ROW_GATES, ledger_columns
from emu_data.votes.intervals import Interval, auc_interval, bootstrap_rate, exact_rate

# Kind of damage in the demo's corpus (sources/damage.py) -> the gate that should drop it.
GATE_OF_DAMAGE = {
    "failed": "readable",
    "sliver": "geometry",
    "shrink": "geometry",
    "unsafe": "safety",
    "text": "text_area",
    "caption": "alignment",
    "duplicate": "duplicate",
}
GATE_GOAL = 0.95  # for precision and recall of GATES_WITH_GOAL; chosen here
GATES_WITH_GOAL = ("geometry", "text_area", "duplicate")
AUC_GOAL = 0.90  # for the alignment gate on swapped captions; chosen here
MAX_RANKS = 10_000  # pictures whose ranks are averaged: the interval is then narrower than 1 %; chosen here


def gate_quality(con: DuckDBPyConnection, damage: Path, ledger: str = "ledger") -> pd.DataFrame:
    """Compare the rows that the gates dropped (`ledger`: a table or view) with those known to be damaged (a parquet).

    A gate is judged on the rows that reached it. Columns: gate, num_damaged (rows that it should drop),
    num_dropped, num_right, precision and recall (0..1, NaN without rows), precision_low and recall_low (the lower ends
    of Clopper and Pearson's exact 95 % intervals, 0 without rows), missed_by (how far the smaller of precision and
    recall is below its goal, 0 if it is not, NaN without a goal or rows), is_shown (whether both lower ends reach the
    goal: a gate that decided only two rows may have met its goal without having shown it).

    A duplicate is rightly dropped if the row and the row kept in its place (`duplicate_of`) come from one picture,
    whichever of them was the copy. Of one picture's rows that reached the gate, all but one should be dropped; so
    a copy whose original was dropped by an earlier gate does not count as missed. `quota` has no truth.
    """
    con.execute(f"""
        CREATE OR REPLACE TEMP VIEW truth AS
        SELECT key, damage, CASE WHEN coalesce(duplicate_of, '') = '' THEN key ELSE duplicate_of END AS origin
        FROM read_parquet('{damage}')
    """)
    counts = con.execute(f"""
        SELECT first_failed_gate AS gate, coalesce(damage, '') AS damage, count(*)
        FROM {ledger} LEFT JOIN truth USING (key) GROUP BY ALL
    """).fetchall()
    duplicates = con.execute(f"""
        SELECT count(*) - count(DISTINCT t.origin) AS num_damaged,
            count(*) FILTER (first_failed_gate = 'duplicate') AS num_dropped,
            count(*) FILTER (first_failed_gate = 'duplicate' AND k.origin = t.origin) AS num_right
        FROM {ledger} l JOIN truth t USING (key) LEFT JOIN truth k ON k.key = l.duplicate_of
        WHERE first_failed_gate IN ('', {", ".join(map(repr, GLOBAL_GATES))})
    """).fetchone()
    assert duplicates is not None
    rows = []
    for place, gate in enumerate(ROW_GATES):
        past = set(ROW_GATES[:place])
        num_damaged = sum(n for where, kind, n in counts if where not in past and GATE_OF_DAMAGE.get(kind) == gate)
        num_dropped = sum(n for where, _, n in counts if where == gate)
        num_right = sum(n for where, kind, n in counts if where == gate and GATE_OF_DAMAGE.get(kind) == gate)
        rows.append(_row(gate, num_damaged, num_dropped, num_right))
    return pd.DataFrame([*rows, _row("duplicate", *duplicates)])


@dataclass(frozen=True)
class Auc:
    """The chance (0..1) that a swapped caption scores below a right one, with its 95 % interval. If there are no rows
    of one kind, it is NaN with the interval 0 to 1."""

    value: float
    low: float
    high: float
    num_swapped: int
    num_right: int


def alignment_auc(con: DuckDBPyConnection, damage: Path, column: str = "alignment_rank") -> Auc:
    """Return the alignment score's AUC over all rows with a score, by ranks (Mann and Whitney's U); ties count half."""
    found = con.execute(f"""
        WITH scored AS (SELECT damage = 'caption' AS swapped, {column} AS score
            FROM ledger JOIN read_parquet('{damage}') USING (key) WHERE {column} IS NOT NULL),
        ranked AS (SELECT swapped, rank() OVER w + (count(*) OVER (PARTITION BY score) - 1) / 2 AS place
            FROM scored WINDOW w AS (ORDER BY score))
        SELECT count(*) FILTER (swapped), count(*) FILTER (NOT swapped), sum(place) FILTER (NOT swapped) FROM ranked
    """).fetchone()
    assert found is not None
    num_swapped, num_right, places = found
    if not num_swapped or not num_right:
        return Auc(math.nan, 0.0, 1.0, num_swapped, num_right)
    value = float((places - num_right * (num_right + 1) / 2) / (num_swapped * num_right))
    found = auc_interval(value, num_swapped, num_right)
    return Auc(value, found.low, found.high, num_swapped, num_right)


def own_caption_auc(con: DuckDBPyConnection) -> Interval | None:
    """Return the chance, in per cent, that a picture's own caption fits it better than another caption of the corpus,
    with its 95 % interval: the mean of `alignment_rank`, which is that chance for each picture. None if nothing was
    measured.

    Captions that several pictures share, or that fit several pictures, lower it.
    """
    if "alignment_rank" not in ledger_columns(con):
        return None
    found = con.execute(f"""
        SELECT alignment_rank FROM ledger WHERE alignment_rank IS NOT NULL
        ORDER BY md5_number(key), key LIMIT {MAX_RANKS}
    """).fetchall()
    ranks = np.array([rank for (rank,) in found], float)
    return bootstrap_rate(100 * ranks, np.random.default_rng(0)) if len(ranks) else None


def _row(gate: str, num_damaged: int, num_dropped: int, num_right: int) -> dict[str, object]:
    precision = num_right / num_dropped if num_dropped else float("nan")
    recall = num_right / num_damaged if num_damaged else float("nan")
    precision_low, recall_low = _at_least(num_right, num_dropped), _at_least(num_right, num_damaged)
    known = [value for value in (precision, recall) if value == value]
    has_goal = gate in GATES_WITH_GOAL and known
    return {
        "gate": gate,
        "num_damaged": num_damaged,
        "num_dropped": num_dropped,
        "num_right": num_right,
        "precision": precision,
        "recall": recall,
        "precision_low": precision_low,
        "recall_low": recall_low,
        "missed_by": max(0.0, GATE_GOAL - min(known)) if has_goal else float("nan"),
        "is_shown": gate in GATES_WITH_GOAL and min(precision_low, recall_low) >= GATE_GOAL,
    }


def _at_least(num: int, total: int) -> float:
    """Return the lower end of the exact 95 % interval of a share (0..1); 0 if `total` is 0."""
    return exact_rate(num, total).low / 100
