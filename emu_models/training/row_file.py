"""The rows of a training as one Arrow file, written once, memory-mapped by all processes of a machine.

CACHE/rows/NAME/rows.arrow      the rows in the order of their keys: COLUMNS
CACHE/rows/NAME/about.json      num_rows, the names of the shards, and hashes of the rows, for identities
CACHE/rows/NAME/…               what others derive from it, such as the rows' groups (rows.py)
CACHE/rows/start-STANDING.json  {"name": NAME}: so that a later start reads neither the table nor the shards
CACHE/scans/DIGEST.parquet      key, digest, width, height of the pictures in a shard with these bytes

NAME is a hash of the table's bytes and of its shards' digests (shards.shard_digest). STANDING is a hash of the sizes
and times of all these files: if one was touched, the digests are computed again, and where they are the same, so is
NAME.

A picture's digest comes from the table, as the ledger has it, if the table says that it was measured on a shard with
the present shard's digest; the picture is then hashed when it is read (rows.py), and nothing that is made from other
bytes is kept. Otherwise the shard's pictures are hashed here, once; the processes divide the shards among them.
"""

import binascii
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from emu_data.files import atomic_dir, file_sha256, fingerprint, write_json, write_parquet
from emu_data.samples import DecodeError, read_size
from emu_data.shards import find_shards, list_shards, read_samples, shard_digest
from emu_models.training.distributed import ALONE, World
from emu_models.training.jobs import SHARD_MARKS
from emu_models.training.order import held_out_below, unit_hashes
from emu_models.training.parts import ROWS_PER_BLOCK

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

compute: Any = pyarrow.compute  # its functions are made at run time, unseen by type checkers

HELD_OUT_SHARE = 0.08  # of the rows; chosen here
HELD_OUT_MINIMUM = 4  # rows; chosen here
FEW = 100_000  # rows up to which all hashes are looked at for that minimum; it holds for more; chosen here
FORMAT = 1  # of this file; another one has another NAME
MEMORY = "2GB"  # for sorting and joining; what is larger spills to the disk beside the file; chosen here
AHEAD = "32MB"  # of rows that DuckDB makes before they are asked for; with its own 1 MB one thread works; chosen here
# Digests: SHA-256 of a picture's bytes, and half of it of a caption. width, height: px as shown, 0 if unknown.
COLUMNS = pa.schema(
    [
        ("key", pa.string()),
        ("caption", pa.string()),
        ("digest", pa.binary(32)),
        ("caption_digest", pa.binary(16)),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("shard", pa.int32()),  # its place among the file's names of shards
        ("is_held_out", pa.uint8()),
    ]
)


class RowFile:
    """The rows in a folder that `open_rows` wrote. A block (ROWS_PER_BLOCK rows) is read when a row of it is asked for;
    what the process keeps does not grow with the rows. Threads may share it."""

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "about.json").read_text())
        self.folder, self.name = folder, folder.name
        self._num_rows: int = about["num_rows"]
        self.shard_names: list[str] = about["shards"]
        self.hashes: dict[str, str] = about["hashes"]  # "pictures": of keys and digests; "pairs": and captions
        self._file = pa.ipc.open_file(pa.memory_map(str(folder / "rows.arrow")))
        self._lock = threading.Lock()
        self._block = lru_cache(maxsize=1024)(self._read_block)  # the objects, not the bytes

    def __len__(self) -> int:
        return self._num_rows

    @property
    def num_blocks(self) -> int:
        """Blocks of ROWS_PER_BLOCK rows, the last one perhaps smaller."""
        return self._file.num_record_batches

    def block(self, number: int) -> pa.RecordBatch:
        """Return a block's rows, COLUMNS, as views of the file."""
        return self._block(number)

    def _read_block(self, number: int) -> pa.RecordBatch:
        with self._lock:
            return self._file.get_batch(number)

    def read(self, rows: np.ndarray, *columns: str) -> list[list[Any]]:
        """Return for each of `columns` its values in `rows`, int64 (n,), in their order."""
        order = np.argsort(rows, kind="stable")
        blocks, starts = np.unique(rows[order] // ROWS_PER_BLOCK, return_index=True)
        found: list[list[Any]] = [[None] * len(rows) for _ in columns]
        for block, places in zip(blocks, np.split(order, starts[1:]), strict=True):
            batch = self.block(int(block))
            here = pa.array(rows[places] - block * ROWS_PER_BLOCK)
            for values, column in zip(found, columns, strict=True):
                for place, value in zip(places, batch.column(column).take(here).to_pylist(), strict=True):
                    values[place] = value
        return found

    def numbers(self, block: int, column: str) -> np.ndarray:
        """Return a column of numbers of a block, (n,), or of digests, uint8 (n, bytes), as a view of the file."""
        return _as_numpy(self.block(block).column(column))


class Texts(Sequence[str]):
    """A column of texts of a row file, read where it is indexed, with `more` texts after it."""

    def __init__(self, file: RowFile, column: str, more: Sequence[str] = ()) -> None:
        self._file, self._column, self._more = file, column, more

    def __len__(self) -> int:
        return len(self._file) + len(self._more)

    def __getitem__(self, index: Any) -> Any:
        row = int(index)
        if row >= len(self._file):
            return self._more[row - len(self._file)]
        block, place = divmod(row, ROWS_PER_BLOCK)
        return self._file.block(block).column(self._column)[place].as_py()


def open_rows(shards: Path, table: Path, cache: Path, world: World = ALONE) -> RowFile:
    """Return the rows of a parquet, which is written as an Arrow file unless that was done before; all processes must
    call this.

    table: columns key and caption; perhaps shard (its digits), digest (SHA-256 in hexadecimal digits or bytes), width
    and height (px), and jobs.SHARD_MARKS, which says on which shards these were measured. cache: a folder that all
    processes see. Raises ValueError, which names the first keys, if rows have no readable sample.
    """
    listed = list_shards(shards)
    start = cache / "rows" / f"start-{_standing(table, listed)}.json"
    if world.mean({"known": float(_find(start) is not None)})["known"] < 1:
        needed = _needed_shards(shards, table, listed)
        work = start.with_suffix("")  # what each process has found out about its shards
        found = _inspect(needed[world.rank :: world.size], _marks(table), cache / "scans")
        write_json(work.with_name(f"{work.name}-{world.rank}-of-{world.size}.json"), found)
        world.wait()
        if world.leads:
            parts = [work.with_name(f"{work.name}-{rank}-of-{world.size}.json") for rank in range(world.size)]
            states = {shard: state for part in parts for shard, state in json.loads(part.read_text()).items()}
            folder = cache / "rows" / _name(table, states)
            if not folder.is_dir():
                _write(folder, table, states, cache / "scans", str(shards))
            write_json(start, {"name": folder.name})
            for part in parts:
                part.unlink()
        world.wait()
    name = _find(start)
    assert name is not None, start
    return RowFile(cache / "rows" / name)


def _find(start: Path) -> str | None:
    """Return the name of the row file that a `start` file names, None if there is none."""
    try:
        name = json.loads(start.read_text())["name"]
    except (FileNotFoundError, ValueError):
        return None
    return name if (start.parent / name / "about.json").is_file() else None


def _standing(table: Path, shards: list[Path]) -> str:
    """Return a hash of the sizes and times of a table and of the files of shards."""
    found: list[tuple[str, int, int]] = []
    for path in (table, *(s.with_suffix(suffix) for s in shards for suffix in (".tar", ".ref", ".parquet"))):
        try:
            stat = os.stat(path)
        except FileNotFoundError:
            continue
        found.append((str(path.absolute()), stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(json.dumps([FORMAT, found]).encode()).hexdigest()[:32]


def _marks(table: Path) -> dict[str, str]:
    """Return shard -> digest of the shard on which the table's rows were measured; {} if the table does not say."""
    schema = pq.read_schema(table)
    if not {"shard", "digest"} <= set(schema.names):
        return {}
    return json.loads((schema.metadata or {}).get(SHARD_MARKS.encode(), b"{}"))


def _needed_shards(shards: Path, table: Path, listed: list[Path]) -> list[Path]:
    """Return the shards that hold the table's rows. Without a column `shard`, its keys are in memory meanwhile."""
    if "shard" not in pq.read_schema(table).names:
        return list(find_shards(shards, set(pq.read_table(table, columns=["key"])["key"].to_pylist())))
    with _database(table.parent) as con:
        names = {str(name) for (name,) in con.execute(f"SELECT DISTINCT shard FROM {_parquet(table)}").fetchall()}
    return [path for path in listed if path.stem in names]


def _inspect(shards: list[Path], marks: dict[str, str], scans: Path) -> dict[str, list[Any]]:
    """Return shard -> [its digest, whether the table's rows were measured on it]; hash the pictures of the others,
    unless that was done before."""
    found: dict[str, list[Any]] = {}
    for path in shards:
        digest = shard_digest(path)
        found[path.stem] = [digest, marks.get(path.stem) == digest]
        if marks.get(path.stem) != digest and not (scans / f"{digest}.parquet").is_file():
            write_parquet(scans / f"{digest}.parquet", _scan(path))
    return found


def _scan(path: Path) -> pd.DataFrame:
    """Hash the pictures of a shard; they are not decoded."""
    found = []
    for sample in read_samples(path, on_error=lambda error: None):
        try:
            size = read_size(sample.image)
        except DecodeError:
            size = (0, 0)
        found.append((sample.key, hashlib.sha256(sample.image).hexdigest(), *size))
    table = pd.DataFrame(found, columns=["key", "digest", "width", "height"])
    return table.astype({"key": "string", "digest": "string", "width": "int32", "height": "int32"})


def _name(table: Path, states: dict[str, list[Any]]) -> str:
    given = [FORMAT, HELD_OUT_SHARE, HELD_OUT_MINIMUM, ROWS_PER_BLOCK, file_sha256(table), states]
    return hashlib.sha256(fingerprint(given).encode()).hexdigest()[:32]


def _write(folder: Path, table: Path, states: dict[str, list[Any]], scans: Path, shards: str) -> None:
    """Write the row file. Rows that are not in the order of their keys are sorted, which spills to the disk."""
    names = sorted(states)
    with atomic_dir(folder) as partial, _database(partial) as con:
        source = _join_scans(con, table, states, scans, shards)
        limit = _held_out_below(con, source, pq.read_metadata(table).num_rows)
        for order in ("", " ORDER BY key"):
            of_pictures, of_captions = _Hash("key", "digest"), _Hash("caption")
            num_rows, last, is_sorted = 0, None, True
            with (
                ThreadPoolExecutor(2, "hash") as threads,
                pa.ipc.new_file(str(partial / "rows.arrow"), COLUMNS) as file,
                closing(_blocks(con, f"SELECT * FROM ({source}){order}")) as blocks,
            ):
                for block in blocks:
                    keys = block["key"].combine_chunks()
                    is_sorted = _is_sorted(keys, last)
                    if not is_sorted:
                        break
                    batch = _to_batch(block, limit, names)
                    for hashed in (of_pictures, of_captions):
                        hashed.add(batch, threads)
                    file.write_batch(batch)
                    num_rows, last = num_rows + len(batch), keys[-1]
            if is_sorted:
                break
        pictures, captions = of_pictures.digest(), of_captions.digest()
        hashes = {"pictures": pictures.hex()[:32], "pairs": hashlib.sha256(pictures + captions).hexdigest()[:32]}
        write_json(partial / "about.json", {"num_rows": num_rows, "shards": names, "hashes": hashes})


def _join_scans(con: "DuckDBPyConnection", table: Path, states: dict[str, list[Any]], scans: Path, shards: str) -> str:
    """Return SQL for the rows: key, caption, digest (bytes), width, height, shard, and the SHA-256 of key and caption
    in hexadecimal digits; there is one for each row of the table. Raises ValueError, which names the first keys, if
    rows have no readable sample."""
    schema = pq.read_schema(table)
    # What the table lacks is null.
    given = {name: name if name in schema.names else "NULL" for name in ("digest", "width", "height", "shard")}
    if "digest" in schema.names and not _is_binary(schema.field("digest").type):
        given["digest"] = "unhex(digest)"
    rows = f"SELECT key, caption, {', '.join(f'{sql} AS {name}' for name, sql in given.items())} FROM {_parquet(table)}"
    scanned = {
        name: str(scans / f"{digest}.parquet") for name, (digest, is_trusted) in states.items() if not is_trusted
    }
    if scanned:
        files = ", ".join("'" + file.replace("'", "''") + "'" for file in dict.fromkeys(scanned.values()))
        places = pa.table({"shard": list(scanned), "filename": list(scanned.values())})
        con.register("places", places)
        con.execute(f"""
            CREATE TEMP TABLE scanned AS
            SELECT DISTINCT ON (key) key, unhex(digest) AS digest, width, height, places.shard
            FROM read_parquet([{files}], filename = true) JOIN places USING (filename) ORDER BY key, places.shard
        """)
        rows = f"""
            SELECT r.key, r.caption, coalesce(s.width, r.width) AS width, coalesce(s.height, r.height) AS height,
                coalesce(s.shard, r.shard) AS shard,
                CASE WHEN s.key IS NOT NULL THEN s.digest
                    WHEN r.shard NOT IN (SELECT shard FROM places) THEN r.digest END AS digest
            FROM ({rows}) r LEFT JOIN scanned s USING (key) ORDER BY r.key
        """
        found = con.execute(f"SELECT count(*), list(key)[1:3] FROM (SELECT key FROM ({rows}) WHERE digest IS NULL)")
        ((num_missing, first),) = found.fetchall()
        if num_missing:
            raise ValueError(f"{shards}: {num_missing} keys have no readable sample, the first are {first}")
    return f"""
        SELECT key, coalesce(caption, '') AS caption, digest,
            sha256(coalesce(caption, '')) AS caption_hash, sha256(key) AS key_hash,
            coalesce(width, 0)::INTEGER AS width, coalesce(height, 0)::INTEGER AS height, shard
        FROM ({rows})
    """


def _held_out_below(con: "DuckDBPyConnection", source: str, num_rows: int) -> float:
    """Return the number below which the hash of a held-out row's key is (order.held_out)."""
    if num_rows > FEW:
        return HELD_OUT_SHARE
    lowest = con.execute(f"SELECT key_hash FROM ({source}) ORDER BY key_hash LIMIT {HELD_OUT_MINIMUM}").fetchall()
    units = unit_hashes([int(key_hash[:16], 16) for (key_hash,) in lowest])
    return held_out_below(units, num_rows, HELD_OUT_SHARE, HELD_OUT_MINIMUM)


def _blocks(con: "DuckDBPyConnection", query: str) -> Generator[pa.Table, None, None]:
    """Yield the rows of a query in blocks of ROWS_PER_BLOCK, the last one perhaps smaller."""
    waiting: list[pa.RecordBatch] = []
    num_waiting = 0
    with con.sql(query).to_arrow_reader(batch_size=ROWS_PER_BLOCK) as reader:
        for batch in reader:
            waiting.append(batch)
            num_waiting += len(batch)
            while num_waiting >= ROWS_PER_BLOCK:
                table = pa.Table.from_batches(waiting)
                yield table.slice(0, ROWS_PER_BLOCK)
                waiting = table.slice(ROWS_PER_BLOCK).to_batches()
                num_waiting -= ROWS_PER_BLOCK
    if num_waiting:
        yield pa.Table.from_batches(waiting)


def _is_sorted(keys: pa.Array, last: pa.Scalar | None) -> bool:
    if last is not None and last.as_py() > keys[0].as_py():
        return False
    return len(keys) < 2 or bool(compute.all(compute.less_equal(keys[:-1], keys[1:])).as_py())


def _to_batch(block: pa.Table, limit: float, names: list[str]) -> pa.RecordBatch:
    columns = {name: block[name].combine_chunks() for name in block.column_names}
    units = unit_hashes(_from_hex(columns["key_hash"], 8).view(">u8")[:, 0])
    is_held_out = units < limit
    columns["is_held_out"] = pa.array(is_held_out.astype(np.uint8))
    caption_digest = pa.py_buffer(_from_hex(columns["caption_hash"], 16))
    columns["caption_digest"] = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(block), [None, caption_digest])
    columns["shard"] = compute.index_in(columns["shard"], pa.array(names, columns["shard"].type)).fill_null(-1)
    arrays = [_fixed(columns[f.name], f.type) for f in COLUMNS]
    return pa.RecordBatch.from_arrays(arrays, schema=COLUMNS)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_large_binary(kind)


def _fixed(array: pa.Array, kind: pa.DataType) -> pa.Array:
    return array if array.type == kind else array.cast(kind)


def _from_hex(array: pa.Array, num_bytes: int) -> np.ndarray:
    """Return the first bytes of SHA-256s that are written in 64 digits, uint8 (n, num_bytes). DuckDB's unhex and its
    casts take half as long as its SHA-256."""
    digits = array.cast(pa.binary()).cast(pa.binary(64))
    values = np.frombuffer(binascii.unhexlify(_as_numpy(digits).tobytes()), np.uint8).reshape(-1, 32)
    return np.ascontiguousarray(values[:, :num_bytes])


class _Hash:
    """A SHA-256 of columns: of texts their lengths and bytes. It is computed in threads, while the next batch is made:
    hashlib lets others run meanwhile."""

    def __init__(self, *columns: str) -> None:
        self._hash, self._columns = hashlib.sha256(), columns
        self._adding: Future[None] | None = None

    def add(self, batch: pa.RecordBatch, threads: ThreadPoolExecutor) -> None:
        """Add a batch's values, once the one before has been added."""
        self._wait()
        self._adding = threads.submit(self._add, batch)

    def digest(self) -> bytes:
        self._wait()
        return self._hash.digest()

    def _wait(self) -> None:
        if self._adding is not None:
            self._adding.result()

    def _add(self, batch: pa.RecordBatch) -> None:
        for array in (batch.column(name) for name in self._columns):
            if pa.types.is_string(array.type):
                _, offsets, values = array.buffers()
                ends = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
                self._hash.update(np.diff(ends).tobytes())
                if values is not None:
                    self._hash.update(memoryview(values)[ends[0] : ends[-1]])
            else:
                self._hash.update(_as_numpy(array).tobytes())


def _as_numpy(array: pa.Array) -> np.ndarray:
    if not pa.types.is_fixed_size_binary(array.type):
        return array.to_numpy()
    width = array.type.byte_width
    values = np.frombuffer(array.buffers()[1], np.uint8).reshape(-1, width)
    return values[array.offset : array.offset + len(array)]


@contextmanager
def _database(folder: Path) -> Iterator["DuckDBPyConnection"]:
    """Yield a DuckDB connection that spills to the disk of `folder`."""
    import duckdb

    with tempfile.TemporaryDirectory(prefix=".spill-", dir=folder) as spill:
        options: dict[str, Any] = {"memory_limit": MEMORY, "temp_directory": spill, "preserve_insertion_order": True}
        with duckdb.connect(":memory:", config=options) as con:
            con.execute(f"SET streaming_buffer_size = '{AHEAD}'")
            yield con


def _parquet(path: Path) -> str:
    return "read_parquet('" + str(path).replace("'", "''") + "')"
