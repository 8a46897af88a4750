"""Pictures that lie as single files, as shards: a parquet of rows and a .ref that says where they are.

Of each picture the header is read for its size, unless the row knows it; nothing else is, and nothing is copied unless
asked. Whether a picture can be read is found out when it is measured.
"""

import hashlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from emu_data.addresses import Options, fetch, resolve
from emu_data.bodies import FILES_AT_ONCE, write_ref
from emu_data.files import write_parquet
from emu_data.records import (
    NUM_INDEX_DIGITS,
    RAW_COLUMNS,
    STATUS_QUARANTINED,
    STATUS_SUCCESS,
    DecodeError,
    RecordError,
    Sample,
    image_extension,
    make_key,
    read_size,
)
from emu_data.shards import read_rows, read_samples, shard_name, write_shard
from emu_data.tars import MAX_FILE_BYTES

# Enough for the header of nearly any PNG, JPEG or GIF; where it is not (WebP is told from the whole file alone), the
# whole picture is read. Chosen here.
HEADER_BYTES = 64 * 1024

_SIZES = ("width", "height", "original_width", "original_height")


def write_loose_shards(
    chunks: Iterable[pd.DataFrame],
    base: str,
    out: Path,
    options: Options,
    copy: bool,
    samples_per_shard: int,
    progress: bool,
) -> int:
    """Write one shard a chunk and return the number of rows.

    Args:
        chunks: of at most `samples_per_shard` rows: `url` (below `base`, or a whole URL), `caption`, `error_message`
            (null, or "reason: detail" where the row is known to be bad), and columns to carry on.
        copy: whether to put the pictures' bytes into tars instead of references.
    """
    num_rows = 0
    bar = tqdm(desc="registering", unit="picture", disable=not progress, file=sys.stderr)
    for shard, chunk in enumerate(chunks):
        assert len(chunk) <= samples_per_shard <= 10**NUM_INDEX_DIGITS, (len(chunk), samples_per_shard)
        rows = chunk.reset_index(drop=True)
        problems = [
            told if isinstance(told, str) else _find_problem(base, url, caption)
            for told, url, caption in zip(rows["error_message"], rows["url"], rows["caption"], strict=True)
        ]
        rows["key"] = [make_key(shard, index) for index in range(len(rows))]
        rows["error_message"] = problems
        rows["status"] = [STATUS_QUARANTINED if problem else STATUS_SUCCESS for problem in problems]
        if not {"width", "height"} <= set(rows.columns):
            good = rows.index[rows["status"] == STATUS_SUCCESS]
            sizes = _read_sizes([resolve(base, str(url)) for url in rows.loc[good, "url"]], options)
            table = pd.DataFrame(sizes, index=good, columns=["width", "height"]).reindex(rows.index)
            rows[["width", "height"]] = rows[["original_width", "original_height"]] = table
        name = shard_name(shard)
        write_parquet(out / f"{name}.parquet", _typed(rows))
        write_ref(out, name, {"files": base}, options)
        if copy:
            _pack(out / f"{name}.ref")
        num_rows += len(rows)
        bar.update(len(rows))
    bar.close()
    return num_rows


def _find_problem(base: str, url: Any, caption: Any) -> str | None:
    if not isinstance(url, str) or not url:
        return "bad_row: it names no picture"
    if not isinstance(caption, str):
        return "no_caption: the row has none"
    try:
        resolve(base, url)
    except ValueError as error:
        return f"bad_path: {error}"
    return None


def _read_sizes(addresses: list[str], options: Options) -> list[tuple[int, int] | tuple[None, None]]:
    """Return (width, height) in px of each picture, (None, None) where it cannot be told."""
    sizes: list[tuple[int, int] | tuple[None, None]] = []
    for start in range(0, len(addresses), FILES_AT_ONCE):
        batch = addresses[start : start + FILES_AT_ONCE]
        for address, data in zip(batch, fetch(batch, options, HEADER_BYTES), strict=True):
            size = _size_of(data)
            if size is None and not isinstance(data, Exception) and len(data) == HEADER_BYTES:
                size = _size_of(fetch([address], options, MAX_FILE_BYTES)[0])
            sizes.append(size or (None, None))
    return sizes


def _size_of(data: bytes | Exception) -> tuple[int, int] | None:
    try:
        return None if isinstance(data, Exception) else read_size(data)
    except DecodeError:
        return None


def _typed(rows: pd.DataFrame) -> pd.DataFrame:
    """Img2dataset's columns first, with the same types in every shard; those carried on keep theirs."""
    rest = [column for column in rows.columns if column not in RAW_COLUMNS]
    rows = rows.reindex(columns=[*RAW_COLUMNS, *rest])
    return rows.astype({column: "Int64" if column in _SIZES else "string" for column in RAW_COLUMNS})


def _pack(ref: Path) -> None:
    """Put a tar with the pictures in the place of a shard's reference; those that cannot be read are quarantined."""
    rows = read_rows(ref).set_index("key", drop=False).astype({"error_message": object, "sha256": object})

    def read() -> Iterator[Sample]:
        errors: list[RecordError] = []
        for sample in read_samples(ref, errors.append):
            try:
                image_extension(sample.image)
                width, height = read_size(sample.image)
            except DecodeError as error:
                errors.append(RecordError(sample.key, error.reason, str(error)))
                continue
            found = {"sha256": hashlib.sha256(sample.image).hexdigest(), "width": width, "height": height}
            for column, value in found.items():
                rows.at[sample.key, column] = value
            yield Sample(sample.key, sample.image, sample.caption, sample.meta | found)
        for error in errors:
            rows.at[error.key, "status"] = STATUS_QUARANTINED
            rows.at[error.key, "error_message"] = f"{error.reason}: {error.detail}"

    write_shard(ref.parent, int(ref.stem), read(), rows)
    write_parquet(ref.with_suffix(".parquet"), _typed(rows))
    ref.unlink()
