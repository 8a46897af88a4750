"""What each threshold would do to a corpus before it drops anything: distributions, how many rows are beyond it and
which, whether some subjects or sizes lose more than others, and how often it is right according to a person's labels.

The cascade does not measure a picture further once it is rejected, so late signals have values for only some pictures.
The control sample is measured by every signal (cascade.StopRule); if it is large enough, distributions and shares are
taken from it alone.
"""

import csv
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from emu_data.ledger import LIMITS, ROW_GATES, Limit, Thresholds, ledger_columns
from emu_data.votes.intervals import Interval, exact_rate

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MIN_CONTROL = 200  # rows that make the control sample large enough: a share is then known to 7 %; chosen here
NUM_BINS = 40  # of a histogram; chosen here
TAIL = 0.005  # share of the values at either end that a histogram collects in its outermost bar; chosen here
SIDES = (256, 512, 1024)  # px of the shorter side that separate the classes of size; chosen here
UNEVEN = 1.5  # a family is reported if it loses more than this many times the corpus's share; chosen here
READABLE = "status = 'success' AND error IS NULL"
LABELS = ("key", "gate", "right")  # columns of a file of labels
RIGHT = {"y": True, "yes": True, "1": True, "true": True, "n": False, "no": False, "0": False, "false": False}


@dataclass(frozen=True)
class Effect:
    """What one threshold does by itself, on the rows where its column was measured.

    threshold: None if it is switched off. edges (bins + 1), counts (bins): the histogram. beyond: per cent of the rows
    that it would drop, NaN without a threshold. num_rows: rows behind these figures, of the control sample if
    is_control. num_measured: rows with a value, of `num_readable` rows. dropped, kept: keys on the two sides of the
    threshold, the nearest first; without a threshold, the rows that it would drop first and the most typical ones.
    """

    gate: str
    column: str
    field: str
    is_minimum: bool
    threshold: float | None
    edges: list[float]
    counts: list[int]
    beyond: Interval
    num_rows: int
    is_control: bool
    num_measured: int
    num_readable: int
    dropped: list[str]
    kept: list[str]


@dataclass(frozen=True)
class Family:
    """The rows of one subject or one class of size, and the share (per cent) of those that reached a gate which it
    rejected. overall: that share among all families. is_uneven: whether the whole interval is above UNEVEN x overall.
    """

    kind: str
    name: str
    gate: str
    lost: Interval
    num_rows: int
    overall: float
    is_uneven: bool


@dataclass(frozen=True)
class Precision:
    """The share (per cent) of the rows that a gate dropped and a person labelled which were dropped rightly."""

    gate: str
    right: Interval
    num_labels: int


def measure_effects(
    con: "DuckDBPyConnection", policy: Thresholds, control_share: float, num_examples: int
) -> list[Effect]:
    """Measure each limit of ledger.LIMITS whose column the view `ledger` has, in the order of the gates.

    control_share: 0..1, as in StopRule. num_examples: keys in each of `dropped` and `kept`.
    """
    columns = ledger_columns(con)
    limits = [limit for limit in LIMITS if limit.column in columns]
    order = {gate: place for place, gate in enumerate(ROW_GATES)}
    found = []
    for limit in sorted(limits, key=lambda limit: order[limit.gate]):
        effect = _measure(con, limit, policy.get(limit.field), control_share, num_examples)
        if effect is not None:
            found.append(effect)
    return found


def _control_sql(share: float) -> str:
    """Return StopRule.is_control as SQL, with seed 0."""
    return f"('0x' || substr(sha256('0:' || key), 1, 16))::UBIGINT < {int(share * 2**64)}::UHUGEINT"


def _measure(
    con: "DuckDBPyConnection", limit: Limit, threshold: float | None, share: float, num_examples: int
) -> Effect | None:
    column = f'"{limit.column}"'
    known = f"{READABLE} AND {column} IS NOT NULL AND isfinite({column}::DOUBLE)"
    control = f"({known}) AND {_control_sql(share)}"
    ((num_readable, num_measured, num_control),) = con.execute(f"""
        SELECT count(*) FILTER ({READABLE}), count(*) FILTER ({known}), count(*) FILTER ({control}) FROM ledger
    """).fetchall()
    if not num_measured:
        return None
    is_control = num_control >= MIN_CONTROL
    rows = control if is_control else known
    edges, counts = _histogram(con, column, rows)
    num_rows = num_control if is_control else num_measured
    beyond = Interval(float("nan"), float("nan"), float("nan"))
    if threshold is None:
        middle = f"abs({column} - (SELECT median({column}) FROM ledger WHERE {known}))"
        worst = f"{column} {'ASC' if limit.is_minimum else 'DESC'}"
        dropped, kept = _keys(con, known, worst, num_examples), _keys(con, known, middle, num_examples)
    else:
        broken = limit.broken_sql({limit.field: threshold})
        ((num_beyond,),) = con.execute(f"SELECT count(*) FILTER ({broken}) FROM ledger WHERE {rows}").fetchall()
        beyond = exact_rate(num_beyond, num_rows)
        near = f"abs({column} - {threshold!r})"
        dropped = _keys(con, f"{known} AND {broken}", near, num_examples)
        kept = _keys(con, f"{known} AND NOT ({broken})", near, num_examples)
    return Effect(
        limit.gate,
        limit.column,
        limit.field,
        limit.is_minimum,
        threshold,
        edges,
        counts,
        beyond,
        num_rows,
        is_control,
        num_measured,
        num_readable,
        dropped,
        kept,
    )


def _histogram(con: "DuckDBPyConnection", column: str, rows: str) -> tuple[list[float], list[int]]:
    """Return edges and counts; the values in either TAIL are in the first or last bin."""
    ((low, high, least, most),) = con.execute(f"""
        SELECT quantile_disc({column}::DOUBLE, {TAIL}), quantile_disc({column}::DOUBLE, {1 - TAIL}),
            min({column}::DOUBLE), max({column}::DOUBLE) FROM ledger WHERE {rows}
    """).fetchall()
    if high <= low:
        low, high = least, most
    if high <= low:
        high = low + 1
    edges = np.linspace(low, high, NUM_BINS + 1)
    width = (high - low) / NUM_BINS
    place = f"greatest(0, least({NUM_BINS - 1}, floor(({column}::DOUBLE - {low!r}) / {width!r})))::INTEGER"
    counted = con.execute(f"SELECT {place} AS bin, count(*) FROM ledger WHERE {rows} GROUP BY bin").fetchall()
    counts = [0] * NUM_BINS
    for place, num in counted:
        counts[place] = int(num)
    return [float(edge) for edge in edges], counts


def _keys(con: "DuckDBPyConnection", where: str, order: str, num: int) -> list[str]:
    query = f"SELECT key FROM ledger WHERE {where} ORDER BY {order}, md5_number(key), key LIMIT {num}"
    return [key for (key,) in con.execute(query).fetchall()]


def compare_families(con: "DuckDBPyConnection") -> list[Family]:
    """Compare the share that each row gate rejected of each subject (`concept`) and each class of size with the share
    that it rejected of all, among the rows that reached the gate and have a known subject or size. Gates that rejected
    nothing are left out.
    """
    columns = ledger_columns(con)
    classes = {"subject": "concept"} if "concept" in columns else {}
    if "min_side" in columns:
        bounds = "".join(f"WHEN min_side < {side} THEN 'under {side} px' " for side in SIDES)
        classes["size"] = f"CASE {bounds}ELSE '{SIDES[-1]} px and more' END"
    found = []
    for place, gate in enumerate(ROW_GATES[1:], 1):
        before = ", ".join(f"'{name}'" for name in ROW_GATES[:place])
        for kind, name in classes.items():
            known = "concept IS NOT NULL" if kind == "subject" else "min_side IS NOT NULL"
            rows = con.execute(f"""
                SELECT {name} AS family, count(*) FILTER (first_failed_gate = '{gate}'), count(*) FROM ledger
                WHERE {known} AND first_failed_gate NOT IN ({before}) GROUP BY family ORDER BY family
            """).fetchall()
            num_lost, num_rows = sum(row[1] for row in rows), sum(row[2] for row in rows)
            if not num_lost:
                continue
            overall = 100 * num_lost / num_rows
            for family, lost, num in rows:
                rate = exact_rate(lost, num)
                found.append(Family(kind, family, gate, rate, num, overall, rate.low > UNEVEN * overall))
    return found


def draw_to_label(con: "DuckDBPyConnection", num: int) -> pd.DataFrame:
    """Draw at most `num` readable rows that each row gate dropped, at random but always the same: columns gate, key,
    caption."""
    return con.execute(f"""
        SELECT first_failed_gate AS gate, key, coalesce(caption, '') AS caption FROM ledger
        WHERE {READABLE} AND first_failed_gate IN ({", ".join(f"'{gate}'" for gate in ROW_GATES[1:])})
        QUALIFY row_number() OVER (PARTITION BY first_failed_gate ORDER BY md5_number('label:' || key), key) <= {num}
        ORDER BY gate, md5_number('label:' || key), key
    """).df()


def read_labels(path: Path) -> dict[tuple[str, str], bool]:
    """Read a CSV of LABELS: (key, gate) -> whether dropping was right. Rows whose `right` is empty are not labelled.

    Raises ValueError if a column is missing, or `right` is neither y nor n (it names the line).
    """
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in LABELS if name not in (reader.fieldnames or ())]:
            raise ValueError(f"{path} has no column {', '.join(missing)}: its first line must be {','.join(LABELS)}")
        found = {}
        for row in reader:
            answer = (row["right"] or "").strip().lower()
            if answer and answer not in RIGHT:
                raise ValueError(f"{path}, line {reader.line_num}: `right` is {answer!r}; write y or n")
            if answer:
                found[row["key"], row["gate"]] = RIGHT[answer]
    return found


def measure_precision(con: "DuckDBPyConnection", labels: dict[tuple[str, str], bool]) -> list[Precision]:
    """Count, for each gate with labels, those on rows that this gate drops now.

    The rows of `draw_to_label` are a random sample of the rows that a gate drops, so their share is its precision.
    """
    dropped = _gates_of(con, [key for key, _ in labels])
    found = []
    for gate in ROW_GATES[1:]:
        counted = [right for (key, about), right in labels.items() if about == gate == dropped.get(key)]
        if counted:
            found.append(Precision(gate, exact_rate(sum(counted), len(counted)), len(counted)))
    return found


def _gates_of(con: "DuckDBPyConnection", keys: Collection[str]) -> dict[str, str]:
    if not keys:
        return {}
    con.register("labelled", pd.DataFrame({"key": sorted(set(keys))}, dtype="string"))
    rows = con.execute("SELECT key, first_failed_gate FROM ledger SEMI JOIN labelled USING (key)").fetchall()
    con.unregister("labelled")
    return dict(rows)


def uneven(families: Sequence[Family]) -> list[Family]:
    """Return the families that are uneven, the worst first."""
    return sorted((one for one in families if one.is_uneven), key=lambda one: (-one.lost.low, one.gate, one.name))
