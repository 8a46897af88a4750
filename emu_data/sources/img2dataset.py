"""A corpus that img2dataset has written, at any fsspec address: tars are linked or referred to, rows are taken as they
are, and no tar is read but where a parquet is missing or broken.

Rows that a key cannot tell apart are quarantined here: `duplicate_key` for each later one, `no_key`.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from emu_data.addresses import Options, download, full_address, is_local, join, open_filesystem
from emu_data.bodies import write_ref
from emu_data.files import atomic_file, write_parquet
from emu_data.quarantine import rebuild_rows
from emu_data.records import NEEDED_COLUMNS, STATUS_QUARANTINED, STATUS_SUCCESS
from emu_data.shards import SHARD_NUMBER
from emu_data.sources.standing import write_corpus

SOURCE = "img2dataset"
FILES_AT_ONCE = 64  # parquets that are fetched together; chosen here
MEMORY_LIMIT = "1GB"  # of the search for twin keys, which goes to disk beyond it; chosen here


def list_source(address: str, options: Options) -> dict[str, set[str]]:
    """Return shard number -> which of its files are there ({".tar", ".parquet"}), by number."""
    found: dict[str, set[str]] = {}
    for name in look_at_source(address, options):
        stem, suffix = os.path.splitext(name)
        found.setdefault(stem, set()).add(suffix)
    return dict(sorted(found.items()))


def look_at_source(address: str, options: Options) -> dict[str, Any]:
    """What the source holds: the name of each shard's file -> its size in bytes, null where the store does not say."""
    filesystem, root = open_filesystem(address, options)
    sizes = {os.path.basename(f["name"].rstrip("/")): f.get("size") for f in filesystem.ls(root, detail=True)}
    return {name: size for name, size in sorted(sizes.items()) if _is_part(name)}


def _is_part(name: str) -> bool:
    stem, suffix = os.path.splitext(name)
    return SHARD_NUMBER.fullmatch(stem) is not None and suffix in (".tar", ".parquet")


def register_shards(
    address: str, out: Path, copy: bool = False, options: Options | None = None, progress: bool = True
) -> int:
    """Put the shards at `address` (NNNNN.tar, .parquet) into `out` (see write_corpus); return their number.

    Local files are linked (hard links where the file system allows, else symbolic ones); of remote shards the parquet
    is copied and the tar referred to; `copy` copies all. A parquet that is missing or lacks a column is made from the
    tar. Raises ValueError where there are no shards.
    """
    options, base = options or {}, full_address(str(address))
    seen = look_at_source(base, options)
    files = list_source(base, options)
    if not any(".tar" in suffixes for suffixes in files.values()):
        raise ValueError(f"{address} holds no shards (NNNNN.tar with NNNNN.parquet, as img2dataset writes them)")
    names, has_twins = list(files), False
    bar = tqdm(total=len(names), desc="registering", unit="shard", disable=not progress, file=sys.stderr)
    with write_corpus(out, SOURCE, base, seen) as target:
        for start in range(0, len(names), FILES_AT_ONCE):
            batch = names[start : start + FILES_AT_ONCE]
            wanted = [f"{name}{suffix}" for name in batch for suffix in sorted(files[name])]
            if is_local(base):
                for file in [*wanted, *(f"{name}_stats.json" for name in batch)]:
                    _place(Path(base) / file, target / file, copy)
            else:
                wanted = [file for file in wanted if copy or file.endswith(".parquet")]
                download([join(base, file) for file in wanted], [target / file for file in wanted], options)
            for name in batch:
                if not (target / f"{name}.tar").exists():
                    write_ref(target, name, {"tar": join(base, f"{name}.tar")}, options)
                _mend(target / f"{name}.parquet")
                has_twins |= _may_have_twins(target / f"{name}.parquet")
                bar.update()
        while has_twins:  # a key made unique may be another's
            has_twins = _separate_twins(target, names)
    bar.close()
    return len(names)


def _place(file: Path, target: Path, copy: bool) -> None:
    if not file.is_file():
        return
    if copy:
        shutil.copy2(file, target)
        return
    try:
        os.link(file, target)
    except OSError:  # another file system, or one without hard links
        target.symlink_to(file)


def _mend(parquet: Path) -> None:
    """Make the parquet one that has NEEDED_COLUMNS and a text as the key of each row, if it is not one already."""
    try:
        names = set(pq.read_schema(parquet).names)
        given = pd.read_parquet(parquet) if "key" in names and not names.issuperset(NEEDED_COLUMNS) else None
        keys = pq.read_table(parquet, columns=["key"])["key"] if "key" in names else pa.chunked_array([], pa.string())
    except FileNotFoundError:
        _rebuild(parquet, None, list(NEEDED_COLUMNS), "no_parquet: the row was made from the tar")
        return
    except (pa.ArrowException, OSError) as error:
        _rebuild(parquet, None, list(NEEDED_COLUMNS), f"bad_parquet: {error}; the row was made from the tar")
        return
    if missing := [column for column in NEEDED_COLUMNS if column not in names]:
        _rebuild(parquet, given, missing, f"bad_parquet: it lacks {missing}; these were taken from the tar")
        return
    is_text = pa.types.is_string(keys.type) or pa.types.is_large_string(keys.type)
    texts = keys if is_text else keys.cast(pa.string())
    without = [not key for key in texts.to_pylist()]
    if is_text and not any(without):
        return
    changes = {
        row: (f"{parquet.stem}-row{row}", "no_key: the parquet gives it none") for row, bad in enumerate(without) if bad
    }
    _quarantine(parquet, texts, changes)


def _rebuild(parquet: Path, given: pd.DataFrame | None, missing: list[str], note: str) -> None:
    """Write the parquet anew from the tar, keeping the rows and columns of `given`, which has keys."""
    parquet.unlink(missing_ok=True)  # before the tar is read, whose damage is charged to a parquet's rows
    rows = rebuild_rows(parquet, note)
    if given is not None:
        found = rows.set_index("key")
        given = given.astype({"key": "string"})
        for column in missing:
            given[column] = given["key"].map(found[column]).astype("string")
        if "error_message" not in given:
            given["error_message"] = pd.Series(pd.NA, index=given.index, dtype="string")
        is_lost = given["status"].isna()
        given.loc[is_lost, "error_message"] = "no_status: the parquet has no status, the tar no such sample"
        given["status"] = given["status"].fillna(STATUS_QUARANTINED)
        taken = given["key"].isin(found.index) & given["error_message"].isna() & (given["status"] == STATUS_SUCCESS)
        given.loc[taken, "error_message"] = note
        rest = rows[~rows["key"].isin(given["key"])]
        rows = pd.concat([given, rest.dropna(axis="columns", how="all")], ignore_index=True) if len(rest) else given
    write_parquet(parquet, rows)


def _may_have_twins(parquet: Path) -> bool:
    """Whether a key appears twice in the shard, or does not begin with the shard's number, as img2dataset's do."""
    keys = [str(key) for key in pq.read_table(parquet, columns=["key"])["key"].to_pylist()]
    return len(set(keys)) < len(keys) or not all(key.startswith(parquet.stem) for key in keys)


def _separate_twins(target: Path, names: Sequence[str]) -> bool:
    """Give each later row of a key, by shard and place, a key of its own and quarantine it.

    Returns whether there were any. The keys go through a database on disk, so that memory stays flat.
    """
    has_any = False
    with (
        tempfile.TemporaryDirectory(dir=target.parent, prefix=".twins-") as folder,
        duckdb.connect(f"{folder}/keys.duckdb") as database,
    ):
        database.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
        database.execute("CREATE TABLE keys (shard VARCHAR, row BIGINT, key VARCHAR)")
        for name in names:
            keys = pq.read_table(target / f"{name}.parquet", columns=["key"])["key"]
            database.register("shard", pa.table({"row": pa.array(range(len(keys)), pa.int64()), "key": keys}))
            database.execute("INSERT INTO keys SELECT ?, row, key FROM shard", [name])
            database.unregister("shard")
        database.execute(
            "CREATE TABLE later AS "
            "WITH twins AS (SELECT key FROM keys GROUP BY key HAVING count(*) > 1) "
            "SELECT shard, row, key, row_number() OVER (PARTITION BY key ORDER BY shard, row) AS number, "
            "first_value(shard) OVER (PARTITION BY key ORDER BY shard, row) AS first "
            "FROM keys SEMI JOIN twins USING (key) QUALIFY number > 1"
        )
        for (name,) in database.execute("SELECT DISTINCT shard FROM later").fetchall():
            found = database.execute("SELECT row, key, number, first FROM later WHERE shard = ?", [name]).fetchall()
            changes = {
                row: (f"{key}~{number}", f"duplicate_key: shard {first} has a row of key {key} already")
                for row, key, number, first in found
            }
            parquet = target / f"{name}.parquet"
            _quarantine(parquet, pq.read_table(parquet, columns=["key"])["key"], changes)
            has_any = True
    return has_any


def _quarantine(parquet: Path, keys: pa.ChunkedArray, changes: dict[int, tuple[str, str]]) -> None:
    """Rewrite a parquet with `keys`, and at some places (row -> key, error_message) with a new key and status.

    All other columns stay what they are, type and all. The file is replaced, so the source that it links to is not
    touched.
    """
    table = pq.read_table(parquet)
    columns: dict[str, list[Any]] = {"key": keys.to_pylist(), "status": table["status"].to_pylist()}
    has_told = "error_message" in table.column_names
    columns["error_message"] = table["error_message"].to_pylist() if has_told else [None] * len(table)
    for row, (key, message) in changes.items():
        columns["key"][row], columns["status"][row], columns["error_message"][row] = key, STATUS_QUARANTINED, message
    for name, values in columns.items():
        array = pa.array([None if value is None else str(value) for value in values], pa.string())
        place = table.column_names.index(name) if name in table.column_names else None
        table = table.append_column(name, array) if place is None else table.set_column(place, name, array)
    with atomic_file(parquet) as temporary:
        pq.write_table(table, temporary, compression="zstd")
