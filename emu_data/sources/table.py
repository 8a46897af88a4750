"""A table of pictures and captions: parquet, CSV, TSV or JSON; one file, or a folder of them in name order.

The picture's column holds paths below `base` (by default the table's folder) or whole URLs; in a parquet it may hold
the pictures themselves, as `datasets` and img2dataset write them. It becomes `url`, the caption's column becomes
`caption`. Other columns are kept, as table_NAME if the name is already used.
"""

import posixpath
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from emu_data.addresses import Store
from emu_data.refs import Digest, digest_files
from emu_data.samples import CAPTION_NAMES, NUM_INDEX_DIGITS, DecodeError, read_size
from emu_data.sources.columns import holds_pictures, is_text, read_texts, set_texts
from emu_data.sources.loose import Chunk, Inside, write_loose_shards
from emu_data.sources.standing import write_corpus
from emu_data.sources.text_tables import ERROR, TEXT_SUFFIXES, read_columns, read_frames, text_suffix
from emu_data.texts import describe_error

SOURCE = "table"
SUFFIXES = (".parquet", *TEXT_SUFFIXES)

# Tried in this order, in upper or lower case. Paths come before URLs: if a table has both, the URL is where the picture
# came from.
IMAGE_COLUMNS = ("path", "file_name", "filename", "image_path", "image", "url", "image_url")
CAPTION_COLUMNS = (*CAPTION_NAMES, "captions", "description")
NUM_EXAMINED = 100  # rows in which a column's first picture is sought; chosen here
_TAKEN = {"url", "caption", "key", "status", "error_message", "shard"}


def register_table(
    store: Store,
    out: Path,
    image_column: str | None = None,
    caption_column: str | None = None,
    base: str | None = None,
    copy: bool = False,
    samples_per_shard: int = 1000,
    progress: bool = True,
    digest: Digest = digest_files,
) -> int:
    """Write shards for the rows of the table at `store` into `out` (see write_corpus); return the number of rows.

    Pictures are referred to or, with `copy`, packed into tars. Every row keeps its place; a row that cannot be parsed
    is quarantined, and so is one of several files. Raises ValueError if there is no table or no row, or a column is
    missing.
    """
    files = list_tables(store)
    if not files:
        raise ValueError(f"{store} holds no table ({', '.join(SUFFIXES)})")
    samples_per_shard = min(samples_per_shard, 10**NUM_INDEX_DIGITS)
    config = describe(store, image_column, caption_column, base)
    with write_corpus(out, SOURCE, config, inspect_source(store)) as target:
        chunks = _read_chunks(files, image_column, caption_column, samples_per_shard)
        place = find_base(store, base)
        num_rows = write_loose_shards(chunks, place, target, copy, samples_per_shard, progress, digest)
        if not num_rows:
            raise ValueError(f"{store} has column names but no rows")
    return num_rows


def find_base(store: Store, base: str | None) -> Store:
    """Return what the table's paths are relative to: `base` or, if that is None, the table's folder."""
    if base:
        return store.at(base)
    return store.at(posixpath.dirname(store.address)) if is_table(store.address) else store


def is_table(address: str) -> bool:
    """Whether an address is that of a table's file, by its name."""
    return _is_parquet(address) or text_suffix(address) != ""


def _is_parquet(name: str) -> bool:
    return name.lower().endswith(".parquet")


def describe(store: Store, image_column: str | None, caption_column: str | None, base: str | None) -> list[str | None]:
    """Return what distinguishes this corpus from others, for write_corpus."""
    return [store.address, image_column, caption_column, find_base(store, base).address]


def inspect_source(store: Store) -> dict[str, Any]:
    """Return what the source holds, for `standing.new_in`: address of each table -> its size in bytes, None if the
    store does not report it."""
    return {file.address: file.size() for file in list_tables(store)}


def list_tables(store: Store) -> list[Store]:
    """Return the table's files: the one at the address, or those in the folder there, or else those below it. A .json
    counts only as a single file: in a folder, it more likely describes the table.
    """
    if is_table(store.address):
        return [store]
    if found := [store.at(f"{store}/{name}") for name in store.list_sizes() if _is_member(name)]:
        return found
    below = (posixpath.join(folder, name) for folder, names in store.walk() for name in names if _is_member(name))
    return [store.at(store.join(name)) for name in below]


def _is_member(name: str) -> bool:
    return is_table(name) and text_suffix(name) != ".json" and not name.startswith(".")


def find_columns(names: Sequence[str], image_column: str | None, caption_column: str | None) -> tuple[str, str]:
    """Return the names of the picture's and the caption's column. Raises ValueError if one cannot be found."""

    def find(given: str | None, usual: Sequence[str], what: str) -> str:
        by_name = {name.lower(): name for name in reversed(names)}
        if given is not None:
            if given not in names:
                raise ValueError(f"the table has no column {given!r}, only {list(names)}: set raw_corpus.{what}_column")
            return given
        for name in usual:
            if name in by_name:
                return by_name[name]
        raise ValueError(
            f"none of the columns {list(names)} has one of the usual names {'/'.join(usual)}: set "
            f"raw_corpus.{what}_column"
        )

    return find(image_column, IMAGE_COLUMNS, "image"), find(caption_column, CAPTION_COLUMNS, "caption")


def columns_of(file: Path, image_column: str | None, caption_column: str | None) -> tuple[str, str]:
    """Return the names of the picture's and the caption's column; a column that holds pictures comes before one that
    names them. Raises ValueError if one cannot be found, or the file cannot be read.
    """
    try:
        if not _is_parquet(file.name):
            return find_columns(read_columns(file), image_column, caption_column)
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise ValueError(f"{file.name} cannot be read: {describe_error(error)}") from error
    with pq.ParquetFile(file) as parquet:
        pictures = (
            name
            for name in schema.names
            if holds_pictures(schema.field(name).type)
            and (pa.types.is_struct(schema.field(name).type) or _begins_with_picture(parquet, name))
        )
        image_column = image_column or next(pictures, None)
    return find_columns(schema.names, image_column, caption_column)


def _begins_with_picture(parquet: pq.ParquetFile, column: str) -> bool:
    """Whether the first bytes in a column of bytes, within the first rows, are a picture: they may be a text, too."""
    first = next(parquet.iter_batches(batch_size=NUM_EXAMINED, columns=[column]), None)
    data = next((value for value in first[0].to_pylist() if value is not None), None) if first is not None else None
    try:
        return data is not None and read_size(data) is not None
    except DecodeError:
        return False


def first_rows(table: Store, image_column: str | None, caption_column: str | None, num: int) -> tuple[Chunk, str, str]:
    """Return the first `num` rows of a table's file (columns `url`, `caption`, …), and the file's names of those two.
    Raises ValueError as columns_of and read_file do.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = bring(table, folder)
        image, caption = columns_of(file, image_column, caption_column)
        nothing = Chunk(pd.DataFrame({"url": [], "caption": [], "error_message": []}, dtype=object))
        return next(read_file(file, table, image, caption, num), nothing), image, caption


def bring(table: Store, folder: str) -> Path:
    """Return a local path of a table's file, downloaded to `folder` if needed: reading parquet starts at its end, and
    text is read twice."""
    if table.is_local:
        return Path(table.address)
    table.download([table.address], Path(folder))
    return Path(folder) / posixpath.basename(table.address)


def read_file(file: Path, table: Store, image: str, caption: str, size: int) -> Iterator[Chunk]:
    """Yield the rows of one table, of which `file` is a local copy, in chunks of `size`. Raises ValueError if a column
    does not hold text."""
    if _is_parquet(file.name):
        yield from _read_parquet(file, table, image, caption, size)
        return
    for frame in read_frames(file, size, (image, caption)):
        yield Chunk(_rename(frame, image, caption))


def _read_chunks(
    files: Sequence[Store], image_column: str | None, caption_column: str | None, size: int
) -> Iterator[Chunk]:
    for table in files:
        with tempfile.TemporaryDirectory() as folder:
            file = bring(table, folder)
            try:
                image, caption = columns_of(file, image_column, caption_column)
                yield from read_file(file, table, image, caption, size)
            except (pa.ArrowException, ValueError, OSError, EOFError) as error:
                if len(files) == 1:
                    raise ValueError(f"{table}: {describe_error(error)}") from error
                row = {"url": table.address, "caption": None, "error_message": f"bad_table: {describe_error(error)}"}
                yield Chunk(pd.DataFrame([row]))


def _read_parquet(file: Path, table: Store, image: str, caption: str, size: int) -> Iterator[Chunk]:
    """Yield chunks of `size` rows; Arrow's types are kept, so that other columns are copied exactly."""
    with pq.ParquetFile(file) as parquet:
        rest: list[pa.RecordBatch] = []
        start = 0
        for batch in parquet.iter_batches(batch_size=size):  # a batch ends where its row group does
            rest.append(batch)
            rows = pa.Table.from_batches(rest)
            if len(rows) >= size:
                yield _to_chunk(rows.slice(0, size), table, image, caption, start)
                start += size
                rest = rows.slice(size).to_batches()
        if sum(len(batch) for batch in rest):
            yield _to_chunk(pa.Table.from_batches(rest), table, image, caption, start)


def _to_chunk(rows: pa.Table, table: Store, image: str, caption: str, start: int) -> Chunk:
    problems: dict[int, str] = {}
    inside = None
    rows = rows.replace_schema_metadata(None)  # pandas' metadata could turn a column into the index
    if holds_pictures(rows[image].type):
        is_struct = pa.types.is_struct(rows[image].type)
        if is_struct and _field(rows[image], "bytes").null_count == len(rows):  # only paths of loose files
            rows = rows.set_column(rows.column_names.index(image), image, _field(rows[image], "path"))
        else:
            inside = Inside(table, image, start)
            rows, problems = _take_pictures(rows, image, start, posixpath.basename(table.address))
    try:
        rows.validate(full=True)
        texts = []
    except pa.ArrowInvalid:  # some column is not UTF-8
        texts = [name for name in rows.column_names if is_text(rows[name].type)]
    for name in dict.fromkeys((image, caption, *texts)):
        found, wrong = read_texts(rows[name], name)
        rows = set_texts(rows, name, found)
        problems |= {row: f"bad_text: {detail}" for row, detail in wrong.items() if name in (image, caption)}
    others = [name for name in rows.column_names if name not in (image, caption)]
    pictures = [name for name in others if pa.types.is_struct(rows[name].type) and holds_pictures(rows[name].type)]
    frame: pd.DataFrame = rows.drop_columns(pictures).to_pandas(types_mapper=pd.ArrowDtype)  # pyrefly: ignore
    frame[ERROR] = pd.Series([problems.get(row) for row in range(len(rows))], dtype=object)
    return Chunk(_rename(frame, image, caption), inside)


def _field(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    return pa.chunked_array([chunk.field(name) for chunk in column.chunks])


def _take_pictures(rows: pa.Table, image: str, start: int, name: str) -> tuple[pa.Table, dict[int, str]]:
    """Return the rows with the pictures' names instead of their bytes, and with their sizes; and row -> problem."""
    names: list[str] = []
    sizes: list[tuple[int, int] | tuple[None, None]] = []
    problems: dict[int, str] = {}
    # img2dataset has a row for each picture that it could not download, too
    has_reasons = "error_message" in rows.column_names
    reasons = read_texts(rows["error_message"], "error_message", of_any=True)[0] if has_reasons else []
    for row, value in enumerate(rows[image].to_pylist()):
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        names.append(path or f"{name}#{start + row}")
        size: tuple[int, int] | tuple[None, None] = (None, None)
        if data is None:
            reason = f": {reasons[row]}" if reasons and reasons[row] else ""
            problems[row] = f"no_image: column {image!r} is null{reason}"
        else:
            with suppress(DecodeError):  # the row only lacks its size; measuring will report the error
                size = read_size(data)
        sizes.append(size)
    rows = set_texts(rows, image, list[str | None](names))
    for place, column in enumerate(("width", "height")):
        values = pa.array([size[place] for size in sizes], pa.int64())
        known = column in rows.column_names
        rows = (
            rows.set_column(rows.column_names.index(column), column, values)
            if known
            else rows.append_column(column, values)
        )
    return rows, problems


def _rename(frame: pd.DataFrame, image: str, caption: str) -> pd.DataFrame:
    given: dict[str, Any] = {"url": frame[image], "caption": frame[caption], "error_message": frame[ERROR]}
    for name in frame.columns:
        if name not in (image, caption, ERROR):
            is_size = name in ("width", "height", "original_width", "original_height")
            is_taken = name in _TAKEN or (is_size and not pd.api.types.is_integer_dtype(frame[name]))
            given[f"table_{name}" if is_taken else name] = frame[name]
    for name in ("url", "caption"):
        given[name] = given[name].astype(object).where(given[name].notna(), None)
    return pd.DataFrame(given)
