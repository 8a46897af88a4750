"""A corpus written by img2dataset or webdataset, at any fsspec address. Tars belong to the user, so they are referred
to, not linked. Rows are copied unchanged. A tar is read only for its digest, or if its parquet is missing or broken.

Shards are NNNNN.tar with NNNNN.parquet; if no tar has such a name (train-0001.tar, part.tgz), they are numbered in the
order of their names. If each tar counts its samples from 0, the shard's number becomes part of the keys. Rows that
their key still does not identify are quarantined: `duplicate_key` for every row but the first, `no_key`.
"""

import os
import posixpath
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from emu_data.addresses import Store
from emu_data.bodies import open_tar, tar_store
from emu_data.files import atomic_file, write_parquet
from emu_data.names import prefix_mark, read_keys
from emu_data.picture_names import is_hidden
from emu_data.quarantine import rebuild_rows
from emu_data.refs import Digest, Reference, digest_files
from emu_data.samples import NEEDED_COLUMNS, STATUS_QUARANTINED, STATUS_SUCCESS
from emu_data.shards import SHARD_NUMBER, shard_name
from emu_data.sources.columns import is_text, read_texts, set_texts
from emu_data.sources.standing import write_corpus
from emu_data.tars import TarDamage, read_groups
from emu_data.texts import describe_error

SOURCE = "img2dataset"
_SIZES = ("width", "height", "original_width", "original_height")
FILES_AT_ONCE = 64  # parquets fetched together; chosen here
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")  # the compression is detected from the bytes
_TEXTS = ("key", "caption", "status", "url", "error_message", "sha256")  # columns that later code expects to be text
OWN_COUNT = 0.5  # if more than this share of a shard's keys repeat, each tar counts from 0 by itself; chosen here
MEMORY_LIMIT = "1GB"  # of the search for repeated keys, which spills to disk beyond it; chosen here


def list_source(store: Store) -> dict[str, dict[str, str]]:
    """Return shard number -> {".tar": its name, ".parquet": its name}, for existing files, in the order of numbers."""
    found: dict[str, dict[str, str]] = {}
    for name in inspect_source(store):
        stem, suffix = _parts(name)
        found.setdefault(stem, {}).setdefault(suffix, name)
    if any(SHARD_NUMBER.fullmatch(stem) for stem in found):
        return dict(sorted(found.items()))
    return {shard_name(number): files for number, (_, files) in enumerate(sorted(found.items()))}


def inspect_source(store: Store) -> dict[str, Any]:
    """Return what the source holds, for `standing.new_in`: name of each shard's file -> its size in bytes, None if the
    store does not report it. Raises ValueError if the address is that of a tar.
    """
    if _parts(store.address)[1] == ".tar":
        raise ValueError(f"{store} is one tar: give the folder that holds the tars")
    sizes = {name: size for name, size in store.list_sizes().items() if _parts(name)[1] and not is_hidden(name)}
    tars = {stem for stem, suffix in map(_parts, sizes) if suffix == ".tar"}
    if any(SHARD_NUMBER.fullmatch(stem) for stem in tars):
        return {name: size for name, size in sizes.items() if SHARD_NUMBER.fullmatch(_parts(name)[0])}
    return {name: size for name, size in sizes.items() if _parts(name)[0] in tars}


def _parts(name: str) -> tuple[str, str]:
    """Return (stem, ".tar" or ".parquet", or "" for a file that is not part of a shard)."""
    stem, suffix = next(((name[: -len(end)], ".tar") for end in _TARS if name.endswith(end)), os.path.splitext(name))
    return stem, suffix if suffix in (".tar", ".parquet") else ""


def register_shards(
    store: Store, out: Path, copy: bool = False, progress: bool = True, digest: Digest = digest_files
) -> int:
    """Register the shards of `store` (tars with parquets) in `out` (see write_corpus); return their number.

    Parquets are copied and tars referred to, with a digest if they are on this machine; `copy` copies both. A parquet
    that is missing or lacks a column is completed from the tar. Raises ValueError if there are no shards.
    """
    seen, files = inspect_source(store), list_source(store)
    if not any(".tar" in suffixes for suffixes in files.values()):
        raise ValueError(f"{store} holds no shards (tars, as img2dataset and webdataset write them)")
    names, has_repeats = list(files), False
    bar = tqdm(total=len(names), desc="registering", unit="shard", disable=not progress, file=sys.stderr)
    with write_corpus(out, SOURCE, store.address, seen) as target:
        for start in range(0, len(names), FILES_AT_ONCE):
            batch = names[start : start + FILES_AT_ONCE]
            wanted = {file: f"{name}{suffix}" for name in batch for suffix, file in sorted(files[name].items())}
            wanted = {file: ours for file, ours in wanted.items() if copy or ours.endswith(".parquet")}
            store.download([store.join(file) for file in wanted], target)
            for file, ours in wanted.items():
                (target / posixpath.basename(store.join(file))).rename(target / ours)
            for name in batch:
                if not (target / f"{name}.tar").exists():
                    tar = store.at(store.join(files[name].get(".tar", f"{name}.tar")))
                    Reference(target / f"{name}.ref", "tar", tar).write(digest)
                _fix(target / f"{name}.parquet")
                has_repeats |= _may_have_repeats(target / f"{name}.parquet")
                bar.update()
        while has_repeats:  # a key with a suffix may be the key of another row
            has_repeats = _separate_repeats(target, names)
    bar.close()
    return len(names)


def _fix(parquet: Path) -> None:
    """Make sure that a parquet has NEEDED_COLUMNS, text in the columns of _TEXTS, and a key in each row."""
    try:
        table = pq.ParquetFile(parquet).read()  # all of it, to find a damaged page now and not in the middle of a run
    except FileNotFoundError:
        _rebuild(parquet, None, list(NEEDED_COLUMNS), "no_parquet: the row was made from the tar")
        return
    except (pa.ArrowException, OSError) as error:
        note = f"bad_parquet: {describe_error(error)}; the row was made from the tar"
        _rebuild(parquet, None, list(NEEDED_COLUMNS), note)
        return
    fixed = _fix_types(table, parquet)
    if missing := [column for column in NEEDED_COLUMNS if column not in table.column_names]:
        given = fixed.to_pandas() if "key" in table.column_names else None
        note = f"bad_parquet: it lacks {missing}; these were taken from the tar"
        _rebuild(parquet, given, missing, note, len(table))
        return
    without = [not key for key in fixed["key"].to_pylist()]
    if fixed is table and not any(without):
        return
    changes = {row: (f"{parquet.stem}-row{row}", "no_key: the row has none") for row, bad in enumerate(without) if bad}
    _quarantine(parquet, fixed, changes)


def _fix_types(table: pa.Table, parquet: Path) -> pa.Table:
    """Return the table itself or, if needed, one with text in the columns of _TEXTS, integers in those of _SIZES, and
    all its columns visible to pandas."""
    try:
        has_all = set(table.to_pandas().columns) == set(table.column_names)
    except pa.ArrowException:
        has_all = False
    if not has_all:  # pandas' metadata calls a column the index, or gives it a type that was changed since
        table = table.replace_schema_metadata(None)
    try:
        table.validate(full=True)
        odd = [name for name in table.column_names if name in _TEXTS and not is_text(table[name].type)]
    except pa.ArrowInvalid:  # a text that is not UTF-8
        odd = [name for name in table.column_names if name in _TEXTS or is_text(table[name].type)]
    for name in odd:
        kind = table[name].type
        texts, _ = read_texts(table[name], name, of_any=True)
        if name == "key" and not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
            texts = _pad(texts, parquet)
        table = set_texts(table, name, texts)
    for name in _SIZES:
        if name in table.column_names and not pa.types.is_integer(table[name].type):
            numbers = pd.to_numeric(pd.Series(table[name].to_pylist(), dtype=object), errors="coerce")
            whole = numbers.astype("Float64").round().astype("Int64")
            table = table.set_column(table.column_names.index(name), name, pa.array(whole, pa.int64()))
    return table


def _pad(keys: list[str | None], parquet: Path) -> list[str | None]:
    """Return keys that were stored as numbers with as many digits as the tar's keys have."""
    first = None
    with suppress(TarDamage, OSError), open_tar(tar_store(parquet)) as (file, seekable):
        first = next((group.key for group in read_groups(file, seekable, wanted=())), None)
    width = len(first) if first and first.isdigit() else 0
    return [None if key is None else key.zfill(width) for key in keys]


def _rebuild(parquet: Path, given: pd.DataFrame | None, missing: list[str], note: str, num_rows: int = 0) -> None:
    """Write a new parquet from the tar, which keeps the rows and columns of `given`, if that has keys. Otherwise, if
    the old parquet had more rows (`num_rows`) than the tar has samples, the rest are quarantined.
    """
    parquet.unlink(missing_ok=True)  # before the tar is read, since its damage would be reported for the parquet's rows
    rows = rebuild_rows(parquet, note)
    if given is not None:
        found = rows.set_index("key")
        given = given.astype({"key": "string"})
        for column in missing:
            given[column] = given["key"].map(found[column]).astype("string")
        if "error_message" not in given:
            given["error_message"] = pd.Series(pd.NA, index=given.index, dtype="string")
        is_lost = given["status"].isna()
        given.loc[is_lost, "error_message"] = "no_status: the row has none, and the tar does not hold the sample"
        given["status"] = given["status"].fillna(STATUS_QUARANTINED)
        taken = given["key"].isin(found.index) & given["error_message"].isna() & (given["status"] == STATUS_SUCCESS)
        given.loc[taken, "error_message"] = note
        rest = rows[~rows["key"].isin(given["key"])]
        rows = pd.concat([given, rest.dropna(axis="columns", how="all")], ignore_index=True) if len(rest) else given
    elif num_rows > len(rows):
        message = f"no_key: the parquet has {num_rows} rows without keys, and the tar has {len(rows)} samples"
        lost = pd.DataFrame({"key": [f"{parquet.stem}-row{row}" for row in range(len(rows), num_rows)]}, dtype="string")
        rows = pd.concat([rows, lost.assign(status=STATUS_QUARANTINED, error_message=message)], ignore_index=True)
    write_parquet(parquet, rows)


def _may_have_repeats(parquet: Path) -> bool:
    """Whether a key repeats in the shard, or does not begin with the shard's number, as img2dataset's keys do."""
    keys = [str(key) for key in pq.read_table(parquet, columns=["key"])["key"].to_pylist()]
    return len(set(keys)) < len(keys) or not all(key.startswith(parquet.stem) for key in keys)


def _separate_repeats(target: Path, names: Sequence[str]) -> bool:
    """Give each row whose key occurs earlier (by shard and place) its own key, and quarantine it. If most keys of a
    shard occur earlier, put the shard's number before all its keys instead, and quarantine nothing.

    Returns whether any key was changed. The keys go through a database on disk, so that memory does not grow with them.
    """
    has_any = False
    with (
        tempfile.TemporaryDirectory(dir=target.parent, prefix=".keys-") as folder,
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
            "WITH repeats AS (SELECT key FROM keys GROUP BY key HAVING count(*) > 1) "
            "SELECT shard, row, key, row_number() OVER (PARTITION BY key ORDER BY shard, row) AS number, "
            "first_value(shard) OVER (PARTITION BY key ORDER BY shard, row) AS first "
            "FROM keys SEMI JOIN repeats USING (key) QUALIFY number > 1"
        )
        for (name,) in database.execute("SELECT DISTINCT shard FROM later").fetchall():
            found = database.execute("SELECT row, key, number, first FROM later WHERE shard = ?", [name]).fetchall()
            if _has_own_count(target / f"{name}.parquet", [key for _, key, _, first in found if first != name]):
                _prefix(target / f"{name}.parquet")
                has_any = True
                continue
            changes = {
                row: (f"{key}~{number}", f"duplicate_key: shard {first} already has a row with the key {key}")
                for row, key, number, first in found
            }
            parquet = target / f"{name}.parquet"
            _quarantine(parquet, pq.ParquetFile(parquet).read(), changes)
            has_any = True
    return has_any


def _has_own_count(parquet: Path, shared: Sequence[str]) -> bool:
    """Whether a shard's keys count its samples from 0, because too many are `shared` with earlier shards. Not if a key
    begins with the shard's number, or if names in the tar already differ from keys."""
    keys = pq.read_table(parquet, columns=["key"])["key"].to_pylist()
    if read_keys(parquet) or any(key.startswith(parquet.stem) for key in shared):
        return False
    return len(set(shared)) > OWN_COUNT * len(set(keys))


def _prefix(parquet: Path) -> None:
    """Put the shard's number before each key, and the mark for finding the tar's members into the schema."""
    table, prefix = pq.ParquetFile(parquet).read(), f"{parquet.stem}-"
    table = set_texts(table, "key", [f"{prefix}{key}" for key in table["key"].to_pylist()])
    marked = table.replace_schema_metadata({**(table.schema.metadata or {}), **prefix_mark(prefix)})
    with atomic_file(parquet) as temporary:
        pq.write_table(marked, temporary, compression="zstd")


def _quarantine(parquet: Path, table: pa.Table, changes: dict[int, tuple[str, str]]) -> None:
    """Write `table` to the parquet, with a new key, status and message for the rows in `changes` (row -> key, message).

    Other columns keep their values and types. The file is replaced, so that a source that it may link to is not
    changed.
    """
    if "error_message" not in table.column_names:
        table = table.append_column("error_message", pa.nulls(len(table), pa.string()))
    columns = {name: table[name].to_pylist() for name in ("key", "status", "error_message")}
    for row, (key, message) in changes.items():
        columns["key"][row], columns["status"][row], columns["error_message"][row] = key, STATUS_QUARANTINED, message
    for name, values in columns.items():
        table = set_texts(table, name, values)
    with atomic_file(parquet) as temporary:
        pq.write_table(table, temporary, compression="zstd")
