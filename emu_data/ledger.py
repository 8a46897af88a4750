"""The ledger: a row for every raw picture, with every value that was measured and the first gate that it failed.

The Emu paper names the kinds of filters (section 3.3) but no threshold; all thresholds are chosen here and belong to
the policy, so that a ledger can be re-decided in seconds, without a model. Photographs from the web need other
thresholds than the demo's drawings: DataComp's basic filter takes min_side 200, max_aspect 3, more than 2 words and
more than 5 characters; COYO max_occurrences 10; LAION-400M min_alignment 0.3 of ViT-B/32. LIMITS is the only place that
says which value is compared with which threshold; `gate_sql` makes it one expression for DuckDB, used for a group of
shards in memory (`decide`) and for a corpus on disk (`open_ledger`). The gates of this module need one row; those that
compare rows (duplicate, quota), or look at what is left of them (size), are in corpus_gates.py.
"""

import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from emu_data.files import write_parquet
from emu_data.samples import STATUS_SUCCESS, STATUS_UNLISTED

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

ROW_GATES = ("readable", "geometry", "blank", "caption", "safety", "text_area", "alignment", "aesthetics", "popularity")
# Not a gate's verdict: no gate failed, but a signal that a gate needs was not measured, since an earlier policy had
# already rejected the row. A re-decision reports how many rows would still have to be measured.
UNMEASURED = "unmeasured"
GLOBAL_GATES = ("duplicate", "size", "quota")
# First failed gates of rows with which nothing is wrong: what `size` and `quota` leave out may be pretrained on.
SOUND = ("", "size", "quota")
GATES = (*ROW_GATES, UNMEASURED, *GLOBAL_GATES)

MEMORY_LIMIT = "2GB"  # of DuckDB, which spills to disk beyond it; chosen here


# `Limit.field` -> threshold, for the row gates; None or a missing name switches the comparison off.
Thresholds = Mapping[str, float | None]


@dataclass(frozen=True)
class Limit:
    """One comparison of a gate: a measured column with the threshold that the policy has under `field`.

    is_minimum: whether the value must be at least the threshold, or at most. signal: the signal that measures the
    column; by default the one with the gate's name.
    """

    gate: str
    column: str
    field: str
    is_minimum: bool
    signal: str | None = None

    def broken_sql(self, policy: Thresholds) -> str:
        """Return SQL that is true if a row is beyond the threshold, null if its value is missing."""
        return f'"{self.column}" {"<" if self.is_minimum else ">"} {policy[self.field]!r}'


LIMITS = (
    Limit("geometry", "min_side", "min_side", True),
    Limit("geometry", "aspect", "max_aspect", False),
    Limit("blank", "detail", "min_detail", True, signal="looks"),
    Limit("caption", "num_words", "min_words", True),
    Limit("caption", "num_characters", "min_characters", True),
    Limit("safety", "unsafe", "max_unsafe", False),
    Limit("text_area", "text_area", "max_text_area", False),
    Limit("alignment", "alignment_rank", "min_alignment_rank", True),
    Limit("caption", "letter_share", "min_letter_share", True),
    Limit("caption", "distinct_word_share", "min_distinct_word_share", True),
    Limit("caption", "num_occurrences", "max_occurrences", False),
    Limit("text_area", "largest_text_box", "max_largest_text_box", False),
    Limit("text_area", "text_score", "max_text_score", False),
    Limit("text_area", "text_reading", "max_text_reading", False),
    Limit("text_area", "read_text_area", "max_read_text_area", False),
    Limit("text_area", "num_words_in_picture", "max_words_in_picture", False),
    Limit("alignment", "alignment", "min_alignment", True),
    Limit("aesthetics", "aesthetics", "min_aesthetics", True),
    Limit("popularity", "popularity", "min_popularity", True),
)


def gate_sql(policy: Thresholds, columns: Collection[str]) -> str:
    """Return the SQL expression for the first gate that a row fails, "" if none, in a ledger with these columns.

    A null value of a signal that was measured passes its gate, such as `unsafe` if the corpus has no such score. A row
    that fails no gate, but was not measured by a signal that an active gate needs (the column `unmeasured` lists
    those), is "unmeasured". Raises ValueError if a gate's column does not exist, or the policy has a name that is not
    in LIMITS.
    """
    if unknown := sorted(set(policy) - {limit.field for limit in LIMITS}):
        raise ValueError(f"there is no threshold {', '.join(unknown)}; there are: {', '.join(x.field for x in LIMITS)}")
    limits = [limit for limit in LIMITS if policy.get(limit.field) is not None]
    for limit in limits:
        if limit.column not in columns:
            raise ValueError(
                f"gate {limit.gate} needs the column {limit.column!r}: measure it, or set {limit.field} to null"
            )
    cases = [f"WHEN status IS DISTINCT FROM '{STATUS_SUCCESS}' OR error IS NOT NULL THEN 'readable'"]
    for gate in ROW_GATES[1:]:
        broken = " OR ".join(limit.broken_sql(policy) for limit in limits if limit.gate == gate)
        cases += [f"WHEN {broken} THEN '{gate}'"] if broken else []
    if "unmeasured" in columns:
        signals = sorted({limit.signal or limit.gate for limit in limits})
        cases.append(
            f"WHEN coalesce(unmeasured, '') <> '' AND list_has_any(string_split(unmeasured, ','), {signals}) "
            f"THEN '{UNMEASURED}'"
        )
    return f"CASE {' '.join(cases)} ELSE '' END"


def decide(values: pd.DataFrame, policy: Thresholds) -> pd.DataFrame:
    """Return `values` (cascade.read_values) with the columns `kept` (bool) and `first_failed_gate` ("" if kept); see
    `gate_sql`.
    """
    import duckdb

    expression = gate_sql(policy, values.columns)
    columns = {"status", "error", "unmeasured", *(limit.column for limit in LIMITS)} & set(values.columns)
    with duckdb.connect() as con:
        con.execute("SET threads = 1")  # a group of shards is small, and its rows must stay in order
        con.register("ledger", pa.Table.from_pandas(values[sorted(columns)], preserve_index=False))
        first = con.execute(f"SELECT {expression} AS gate FROM ledger").df()["gate"]
    first = first.astype("string").set_axis(values.index)
    return values.assign(kept=first == "", first_failed_gate=first).astype({"kept": bool})


@contextmanager
def open_database(memory_limit: str = MEMORY_LIMIT, num_threads: int | None = None) -> Iterator["DuckDBPyConnection"]:
    """Yield a DuckDB connection that spills to a temporary folder beyond `memory_limit`, so that memory does not grow
    with the corpus. num_threads: None for DuckDB's default."""
    import duckdb

    with tempfile.TemporaryDirectory(prefix="emu-ledger-") as temporary:
        options: dict[str, Any] = {
            "memory_limit": memory_limit,
            "temp_directory": temporary,
            "preserve_insertion_order": False,
        }
        options |= {} if num_threads is None else {"threads": num_threads}
        with duckdb.connect(":memory:", config=options) as con:
            yield con


@contextmanager
def open_ledger(
    directory: Path, memory_limit: str = MEMORY_LIMIT, num_threads: int | None = None
) -> Iterator["DuckDBPyConnection"]:
    """Yield such a connection, with the view `ledger` over the shards' parquets in a folder; nothing is read until a
    query needs it. Raises ValueError if there is no ledger.
    """
    directory = Path(directory)
    if not any(directory.glob("*.parquet")):
        raise ValueError(f"{directory} holds no ledger: materialise filter_ledger first")
    with open_database(memory_limit, num_threads) as con:
        files = str(directory / "*.parquet").replace("'", "''")
        con.execute(f"CREATE VIEW ledger AS SELECT * FROM read_parquet('{files}', union_by_name = true)")
        yield con


def ledger_columns(con: "DuckDBPyConnection") -> list[str]:
    """Return the names of the columns of the view `ledger`."""
    return [str(row[0]) for row in con.execute("DESCRIBE ledger").fetchall()]


def count_gates(con: "DuckDBPyConnection", expression: str = "first_failed_gate") -> dict[str, int]:
    """Return gate -> number of rows of the view `ledger`; "" stands for kept rows. expression: see `gate_sql`."""
    rows = con.execute(f"SELECT {expression} AS gate, count(*) FROM ledger GROUP BY gate ORDER BY gate").fetchall()
    return {str(gate): int(num) for gate, num in rows}


@dataclass(frozen=True)
class RawRows:
    """What a comparison with the raw rows counted. num_rows: of the raw parquets. num_unlisted: rows of the ledger for
    samples that only tars hold."""

    num_rows: int
    num_unlisted: int


def compare_with_raw(ledger: Path, raw: Iterable[pd.DataFrame]) -> RawRows:
    """Compare the keys of a ledger on disk with those of the raw rows (column key), given in parts.

    Raises ValueError if a raw row is not in the ledger, or if the ledger has a row that is neither a raw one nor marked
    as unlisted.
    """
    with open_ledger(ledger) as con:
        con.execute("CREATE TABLE raw (key VARCHAR)")
        for rows in raw:
            con.append("raw", rows[["key"]])
        found = con.execute(f"""
            SELECT (SELECT count(*) FROM raw),
                (SELECT count(*) FROM raw ANTI JOIN ledger USING (key)),
                (SELECT count(*) FROM ledger ANTI JOIN raw USING (key)),
                (SELECT count(*) FROM ledger ANTI JOIN raw USING (key)
                    WHERE status IS DISTINCT FROM '{STATUS_UNLISTED}')
        """).fetchone()
    assert found is not None
    num_rows, num_lost, num_beyond, num_strange = found
    if num_lost:
        raise ValueError(f"{num_lost} of {num_rows} raw rows are not in the ledger: materialise filter_ledger again")
    if num_strange:
        raise ValueError(f"{num_strange} rows of the ledger match no raw row: materialise filter_ledger again")
    return RawRows(num_rows, num_beyond)


def check_conserved(ledger: pd.DataFrame | Path, num_raw: int) -> None:
    """Check that rows in = rows kept + rows dropped by reason, that each key occurs once and each reason is a gate.

    ledger: of a group of shards, in memory, or of a whole corpus, as a folder. Raises ValueError if the check fails.
    """
    import duckdb

    with open_ledger(ledger) if isinstance(ledger, Path) else duckdb.connect() as con:
        if isinstance(ledger, pd.DataFrame):
            con.register("ledger", pa.Table.from_pandas(ledger[["key", "kept", "first_failed_gate"]]))
        found = con.execute("""
            SELECT count(*), (SELECT count(*) FROM (SELECT key FROM ledger GROUP BY key)),
                count(*) FILTER (kept IS DISTINCT FROM (first_failed_gate = '')) FROM ledger
        """).fetchone()
        assert found is not None
        num_rows, num_keys, num_odd = found
        gates = count_gates(con)
    unknown = sorted(gates.keys() - {"", *GATES})
    wrong = {
        f"{num_rows - num_keys} rows have a key that another row has": num_keys != num_rows,
        f"unknown reasons {unknown}": bool(unknown),
        f"{num_odd} rows are kept with a reason, or dropped without one": num_odd > 0,
        f"it has {num_rows} rows for {num_raw} raw ones": num_rows != num_raw,
    }
    if problems := [text for text, is_so in wrong.items() if is_so]:
        raise ValueError(f"the ledger does not hold every raw row exactly once: {'; '.join(problems)}")


def funnel(counts: Mapping[str, int]) -> pd.DataFrame:
    """Return one row per gate, in order: gate, num_in, num_dropped, num_out. counts: as `count_gates` returns them."""
    rows, num_in = [], sum(counts.values())
    for gate in GATES:
        num_dropped = counts.get(gate, 0)
        rows.append((gate, num_in, num_dropped, num_in - num_dropped))
        num_in -= num_dropped
    return pd.DataFrame(rows, columns=["gate", "num_in", "num_dropped", "num_out"])


def write_ledger(directory: Path, ledger: pd.DataFrame, marks: Mapping[str, str] | None = None) -> None:
    """Write the rows of each shard to directory/NNNNN.parquet (`shard` is a column of the ledger). marks: for the
    files' schemas."""
    for shard, rows in ledger.groupby("shard", sort=True):
        write_parquet(Path(directory) / f"{shard}.parquet", rows, marks)


def read_marks(file: Path) -> dict[str, str]:
    """Return our marks in the schema of a ledger's file, such as cascade.SHARD_MARK."""
    found = {name.decode(): value for name, value in (pq.read_schema(file).metadata or {}).items()}
    return {name: value.decode() for name, value in found.items() if name.startswith("emu.")}


def read_ledger(directory: Path) -> pd.DataFrame:
    """Return all rows of a ledger, in key order. Raises ValueError if there is none."""
    files = sorted(Path(directory).glob("*.parquet"))
    if not files:
        raise ValueError(f"{directory} holds no ledger: materialise filter_ledger first")
    table = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    return table.sort_values("key", kind="stable", ignore_index=True)
