"""Re-decides a ledger of ten million rows under other thresholds, including near-twins and quotas.

    make bench NAME=ledger          or: python benchmarks/ledger.py --rows 1000000

The peer does the same with pandas, as people do: read the columns, compare, sort, drop duplicates, number within the
concept. Both run on the same files, each in its own process, so that each has its own peak of memory; both must arrive
at the same counts. The ledger is synthetic: columns and ranges are those of real ledgers, the values are drawn.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GOAL_SECONDS = 10.0
ROWS_PER_SHARD = 100_000
NUM_CONCEPTS = 50
ROWS_PER_KEPT = 50  # one row of so many is kept
SEED = 7


def make_ledger(folder: Path, num_rows: int) -> None:
    """Write the shards. Values are hashes of the row's number; 4 % of the rows are in clusters of near-twins."""
    import duckdb

    with duckdb.connect() as con:
        con.execute("CREATE MACRO u(i, k) AS (hash(i * 32 + k) >> 11) / 9007199254740992.0")
        for start in range(0, num_rows, ROWS_PER_SHARD):
            shard = f"{start // ROWS_PER_SHARD:05d}"
            con.execute(f"""
                COPY (SELECT printf('%s%06d', '{shard}', i - {start}) AS key, '{shard}' AS shard,
                    'https://example.org/' || md5(i::VARCHAR) || '.jpg' AS url,
                    'a picture of thing ' || (hash(i) % 5000) || ' by somebody' AS caption,
                    CASE WHEN u(i, 0) < 0.03 THEN 'failed_to_download' ELSE 'success' END AS status,
                    NULL::VARCHAR AS error, sha256(i::VARCHAR) AS sha256, '' AS unmeasured,
                    (64 + 2000 * u(i, 1))::BIGINT AS min_side, 1 + 4 * pow(u(i, 2), 4) AS aspect,
                    (5000 + 900000 * u(i, 3))::BIGINT AS num_bytes, (1 + 20 * u(i, 4))::BIGINT AS num_words,
                    (3 + 120 * u(i, 5))::BIGINT AS num_characters,
                    CASE WHEN u(i, 6) < 0.1 THEN NULL ELSE pow(u(i, 7), 8) END AS unsafe,
                    pow(u(i, 8), 6) AS text_area, u(i, 9) AS alignment_rank, 10 * u(i, 10) AS aesthetics,
                    'concept ' || floor({NUM_CONCEPTS} * pow(u(i, 11), 2))::INT AS concept,
                    CASE WHEN u(i, 12) < 0.04 THEN printf('%011d', floor({num_rows} * 0.015 * u(i, 13))::BIGINT) END
                        AS cluster, '' AS first_failed_gate, true AS kept, '' AS duplicate_of
                    FROM range({start}, {min(start + ROWS_PER_SHARD, num_rows)}) t(i))
                TO '{folder / shard}.parquet' (FORMAT parquet, COMPRESSION zstd)
            """)


def policies(num_rows: int):
    """Return the thresholds of the row gates and the policy of the gates on the whole corpus."""
    from emu_data.corpus_gates import CorpusPolicy

    filters = {
        "min_side": 256,
        "max_aspect": 2.5,
        "min_words": 3,
        "min_characters": 6,
        "max_unsafe": 0.3,
        "max_text_area": 0.03,
        "min_alignment_rank": 0.4,
    }
    return filters, CorpusPolicy(num_images=num_rows // ROWS_PER_KEPT, max_share=0.05, seed=SEED)


def with_duckdb(folder: Path, num_rows: int) -> dict[str, int]:
    """Re-decide as the product does; return gate -> number of rows."""
    from emu_data.corpus_gates import decide_corpus
    from emu_data.ledger import gate_sql, ledger_columns, open_ledger

    filters, selection = policies(num_rows)
    with open_ledger(folder) as con:
        return dict(decide_corpus(con, gate_sql(filters, ledger_columns(con)), selection).counts)


def with_pandas(folder: Path, num_rows: int) -> dict[str, int]:
    """Re-decide with pandas; return gate -> number of rows."""
    import numpy as np
    import pandas as pd

    from emu_data.corpus_gates import share_out
    from emu_data.ledger import LIMITS, ROW_GATES

    filters, selection = policies(num_rows)
    columns = ["key", "status", "error", "unmeasured", "concept", "cluster", *selection.keep_best_by]
    columns = sorted({*columns, *(limit.column for limit in LIMITS if getattr(filters, limit.field) is not None)})
    rows = pd.read_parquet(folder, columns=columns)
    gate = np.full(len(rows), "", dtype=object)
    failed = {"readable": (rows["status"] != "success") | rows["error"].notna()}
    for limit in LIMITS:
        threshold = getattr(filters, limit.field)
        if threshold is not None:
            values = rows[limit.column]
            broken = values < threshold if limit.is_minimum else values > threshold
            failed[limit.gate] = failed.get(limit.gate, False) | broken
    for name in reversed(ROW_GATES):
        if name in failed:
            gate[failed[name].to_numpy()] = name
    passed = rows[gate == ""].sort_values([*selection.keep_best_by, "key"], ascending=[False, False, False, True])
    twin = passed["cluster"].notna() & passed.duplicated("cluster")
    gate[passed.index[twin]] = "duplicate"
    unique = passed[~twin]
    quotas = share_out(unique["concept"].value_counts().to_dict(), num_rows // ROWS_PER_KEPT, 0.0, selection.max_share)
    order = pd.util.hash_pandas_object(unique["key"], index=False, hash_key=f"{SEED:016d}").sort_values().index
    place = unique.loc[order].groupby("concept").cumcount()
    over = place >= unique.loc[order, "concept"].map(quotas)
    gate[over.index[over]] = "quota"
    return {str(name): int(num) for name, num in pd.Series(gate).value_counts().items()}


def measure(name: str, folder: Path, num_rows: int) -> dict:
    """Run one of the two in its own process; return its counts, seconds (without imports) and peak MB."""
    command = [sys.executable, __file__, "--rows", str(num_rows), "--run", name, "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--run", choices=["duckdb", "pandas"])
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.run:
        function = {"duckdb": with_duckdb, "pandas": with_pandas}[given.run]
        import duckdb  # noqa: F401  # imported before the clock starts
        import pandas  # noqa: F401

        began = time.perf_counter()
        counts = function(given.folder, given.rows)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"counts": counts, "seconds": seconds, "peak_mb": peak}))
        return 0
    with tempfile.TemporaryDirectory(prefix="emu-bench-ledger-") as temporary:
        folder = Path(temporary)
        began = time.perf_counter()
        make_ledger(folder, given.rows)
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e9
        print(f"{given.rows} rows, {size:.2f} GB of parquet, made in {time.perf_counter() - began:.0f} s")
        ours, peer = measure("duckdb", folder, given.rows), measure("pandas", folder, given.rows)
    print(f"counts: {dict(sorted(ours['counts'].items()))}")
    if {k: v for k, v in ours["counts"].items() if v} != peer["counts"]:
        print(f"pandas arrives at other counts: {dict(sorted(peer['counts'].items()))}")
        return 1
    print(f"emu (DuckDB): {ours['seconds']:.2f} s, peak {ours['peak_mb']:.0f} MB")
    print(f"pandas:       {peer['seconds']:.2f} s, peak {peer['peak_mb']:.0f} MB; the same counts")
    print(
        f"ratio: {peer['seconds'] / ours['seconds']:.1f}x faster, {peer['peak_mb'] / ours['peak_mb']:.1f}x less memory"
    )
    print(f"claim ledger_peak_memory_mb: {ours['peak_mb']:.0f} (goal < {peer['peak_mb']:.0f}, the peer's)")
    print(f"claim ledger_redecision_seconds: {ours['seconds']:.2f} (goal < {GOAL_SECONDS:.0f})")
    return 0 if ours["seconds"] < GOAL_SECONDS and ours["peak_mb"] < peer["peak_mb"] else 1


if __name__ == "__main__":
    sys.exit(main())
