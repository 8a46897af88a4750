"""A table of pictures and captions: parquet, CSV, TSV or JSON lines; one file, or a folder of them in name order.

The picture's column holds paths below `base` (the table's folder unless another is given) or whole URLs. It becomes
`url`, the caption's `caption`; all other columns are carried on, under table_NAME where the name is taken.
"""

import posixpath
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from emu_data.addresses import Options, download, full_address, is_local, open_filesystem
from emu_data.records import NUM_INDEX_DIGITS
from emu_data.sources.loose import write_loose_shards
from emu_data.sources.standing import write_corpus
from emu_data.sources.text_tables import ERROR, TEXT_SUFFIXES, read_columns, read_frames

SOURCE = "table"
SUFFIXES = (".parquet", *TEXT_SUFFIXES)

# Looked for in this order, whatever the case. A path before a URL: where both are there, the URL says whence it came.
IMAGE_COLUMNS = ("path", "file_name", "filename", "image_path", "image", "url", "image_url")
CAPTION_COLUMNS = ("caption", "text", "top_caption", "alt_text", "prompt")
_TAKEN = {"url", "caption", "key", "status", "error_message", "shard"}


def register_table(
    address: str,
    out: Path,
    image_column: str | None = None,
    caption_column: str | None = None,
    base: str | None = None,
    copy: bool = False,
    options: Options | None = None,
    samples_per_shard: int = 1000,
    progress: bool = True,
) -> int:
    """Put the rows of the table at `address` as shards into `out` (see write_corpus); return their number.

    Pictures are referred to, or packed where `copy`. Every row keeps its place: one that cannot be parsed is
    quarantined, as is a whole file. Raises ValueError where there is no table, or a column is missing.
    """
    options = options or {}
    files = list_tables(full_address(address), options)
    base = full_address(base) if base else posixpath.dirname(files[0])
    samples_per_shard = min(samples_per_shard, 10**NUM_INDEX_DIGITS)
    config = describe(address, image_column, caption_column, base)
    with write_corpus(out, SOURCE, config, look_at_source(full_address(address), options)) as target:
        chunks = _read_chunks(files, image_column, caption_column, options, samples_per_shard)
        return write_loose_shards(chunks, base, target, options, copy, samples_per_shard, progress)


def describe(address: str, image_column: str | None, caption_column: str | None, base: str | None) -> list[str | None]:
    """What tells this corpus from another."""
    address = full_address(address)
    folder = posixpath.dirname(address) if address.lower().endswith(SUFFIXES) else address
    return [address, image_column, caption_column, full_address(base) if base else folder]


def look_at_source(address: str, options: Options) -> dict[str, Any]:
    """What the source holds: the address of each table -> its size in bytes, null where the store does not say."""
    found = {}
    for file in list_tables(address, options):
        filesystem, path = open_filesystem(file, options)
        found[file] = filesystem.info(path).get("size")
    return found


def list_tables(address: str, options: Options) -> list[str]:
    """Return the addresses of the table's files. Raises ValueError where there are none."""
    if address.lower().endswith(SUFFIXES):
        return [address]
    filesystem, root = open_filesystem(address, options)
    names = {posixpath.basename(path.rstrip("/")) for path in filesystem.ls(root, detail=False)}
    found = [f"{address}/{name}" for name in sorted(names) if name.lower().endswith(SUFFIXES)]
    if not found:
        raise ValueError(f"{address} holds no table ({', '.join(SUFFIXES)})")
    return found


def find_columns(names: Sequence[str], image_column: str | None, caption_column: str | None) -> tuple[str, str]:
    """Return the names of the picture's and the caption's column. Raises ValueError where one cannot be found."""

    def find(given: str | None, usual: Sequence[str], what: str) -> str:
        by_name = {name.lower(): name for name in reversed(names)}
        if given is not None:
            if given not in names:
                raise ValueError(f"the table has no column {given!r}, but {list(names)}: set raw_corpus.{what}_column")
            return given
        for name in usual:
            if name in by_name:
                return by_name[name]
        raise ValueError(f"none of the columns {list(names)} is called {'/'.join(usual)}: set raw_corpus.{what}_column")

    return find(image_column, IMAGE_COLUMNS, "image"), find(caption_column, CAPTION_COLUMNS, "caption")


def column_names(file: Path) -> list[str]:
    """Return a table's columns: from the footer, the first line, or the first lines. Raises ValueError."""
    try:
        return list(pq.read_schema(file).names) if file.suffix.lower() == ".parquet" else read_columns(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file.name} cannot be read: {error}") from error


def first_rows(
    address: str, image_column: str | None, caption_column: str | None, options: Options, num: int
) -> tuple[pd.DataFrame, str, str]:
    """Return the first rows of a table's file (columns `url`, `caption`, …), and what those two are called in it."""
    with tempfile.TemporaryDirectory() as folder:
        file = _bring(address, folder, options)
        image, caption = find_columns(column_names(file), image_column, caption_column)
        return next(_read_file(file, image, caption, num), pd.DataFrame({"url": []})), image, caption


def _bring(address: str, folder: str, options: Options) -> Path:
    """Return a local path of a table's file: parquet needs its end first, and text is read twice."""
    if is_local(address):
        return Path(address)
    file = Path(folder) / posixpath.basename(address).lower()
    download([address], [file], options)
    return file


def _read_file(file: Path, image: str, caption: str, size: int) -> Iterator[pd.DataFrame]:
    is_parquet = file.suffix.lower() == ".parquet"
    for frame in _read_parquet(file, (image, caption), size) if is_parquet else read_frames(file, size):
        yield _rename(frame, image, caption)


def _read_chunks(
    files: Sequence[str], image_column: str | None, caption_column: str | None, options: Options, size: int
) -> Iterator[pd.DataFrame]:
    for address in files:
        with tempfile.TemporaryDirectory() as folder:
            file = _bring(address, folder, options)
            try:
                image, caption = find_columns(column_names(file), image_column, caption_column)
                yield from _read_file(file, image, caption, size)
            except (pa.ArrowException, ValueError, OSError) as error:
                if len(files) == 1:
                    raise ValueError(f"{address}: {error}") from error
                yield pd.DataFrame({"url": [address], "caption": [None], "error_message": [f"bad_table: {error}"]})


def _read_parquet(file: Path, text_columns: tuple[str, str], size: int) -> Iterator[pd.DataFrame]:
    """Yield frames of `size` rows with `error_message`; types stay Arrow's, so that what is carried on is verbatim."""
    with pq.ParquetFile(file) as parquet:
        rest: list[pa.RecordBatch] = []
        for batch in parquet.iter_batches(batch_size=size):  # a batch ends where its row group does
            rest.append(batch)
            table = pa.Table.from_batches(rest)
            if len(table) >= size:
                yield _to_frame(table.slice(0, size), text_columns)
                rest = table.slice(size).to_batches()
        if sum(len(batch) for batch in rest):
            yield _to_frame(pa.Table.from_batches(rest), text_columns)


def _to_frame(table: pa.Table, text_columns: tuple[str, str]) -> pd.DataFrame:
    problems: list[str | None] = [None] * len(table)
    for name in dict.fromkeys(text_columns):
        column = table[name]
        if pa.types.is_dictionary(column.type):
            column = pc.cast(column, column.type.value_type)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise ValueError(f"column {name!r} holds {column.type}, not text")
        texts: list[str | None] = []
        # a parquet's text need not be UTF-8: Arrow believes what the file says of it
        stored: list[Any] = column.cast(pa.large_binary()).to_pylist()
        for row, data in enumerate(stored):
            if data is None:
                texts.append(None)
                continue
            try:
                texts.append(data.decode("utf-8"))
            except UnicodeDecodeError as error:
                texts.append(data.decode("utf-8", "backslashreplace"))
                problems[row] = f"bad_text: {name} is no UTF-8: {error}"
        table = table.set_column(table.column_names.index(name), name, pa.array(texts, pa.string()))
    frame: pd.DataFrame = table.to_pandas(types_mapper=pd.ArrowDtype)
    frame[ERROR] = problems
    return frame


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
