"""Makes shards of pictures that are single files: a parquet of rows, and a .ref that says where the pictures are.

Each picture's header is read for its size, unless the row has it, and the bytes of pictures on this machine for their
digest; pictures are copied only on request. Whether a picture can be decoded is found out when it is measured.
"""

import hashlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from emu_data.addresses import Store
from emu_data.bodies import FILES_AT_ONCE
from emu_data.files import write_parquet
from emu_data.refs import Digest, Reference, digest_files
from emu_data.samples import (
    NUM_INDEX_DIGITS,
    RAW_COLUMNS,
    STATUS_QUARANTINED,
    STATUS_SUCCESS,
    DecodeError,
    Sample,
    SampleError,
    image_extension,
    make_key,
    read_size,
)
from emu_data.shards import read_rows, read_samples, shard_name, write_shard
from emu_data.tars import MAX_FILE_BYTES

# Enough for the header of nearly any PNG, JPEG or GIF; if it is not (Pillow needs all of a WebP), the whole picture is
# read. Chosen here.
HEADER_BYTES = 64 * 1024

_SIZES = ("width", "height", "original_width", "original_height")


@dataclass(frozen=True)
class Inside:
    """Where the pictures of a chunk are if they are not files: in `column` of the parquet at `store`, from row `start`
    on."""

    store: Store
    column: str
    start: int


@dataclass(frozen=True)
class Chunk:
    """Rows of one shard: `url` (below the base, or a whole URL), `caption`, `error_message` (null, or "reason: detail"
    if the row is known to be bad), and other columns, which are kept."""

    rows: pd.DataFrame
    inside: Inside | None = None


def write_loose_shards(
    chunks: Iterable[Chunk],
    base: Store,
    out: Path,
    copy: bool,
    samples_per_shard: int,
    progress: bool,
    digest: Digest = digest_files,
) -> int:
    """Write one shard per chunk to `out` and return the number of rows.

    Args:
        chunks: of at most `samples_per_shard` rows.
        base: the store that urls are relative to.
        copy: whether to write tars with the pictures instead of references.
        digest: of the files that a reference names.
    """
    num_rows = 0
    bar = tqdm(desc="registering", unit="picture", disable=not progress, file=sys.stderr)
    for shard, chunk in enumerate(chunks):
        rows, inside = chunk.rows.reset_index(drop=True), chunk.inside
        assert len(rows) <= samples_per_shard <= 10**NUM_INDEX_DIGITS, (len(rows), samples_per_shard)
        where = None if inside else base
        problems = [
            message if isinstance(message, str) else _find_problem(where, url, caption)
            for message, url, caption in zip(rows["error_message"], rows["url"], rows["caption"], strict=True)
        ]
        rows["key"] = [make_key(shard, index) for index in range(len(rows))]
        rows["error_message"] = problems
        rows["status"] = [STATUS_QUARANTINED if problem else STATUS_SUCCESS for problem in problems]
        if not {"width", "height"} <= set(rows.columns):
            good = rows.index[rows["status"] == STATUS_SUCCESS]
            sizes = _read_sizes(base, [base.resolve(str(url)) for url in rows.loc[good, "url"]])
            table = pd.DataFrame(sizes, index=good, columns=["width", "height"]).reindex(rows.index)
            rows[["width", "height"]] = rows[["original_width", "original_height"]] = table
        name = shard_name(shard)
        write_parquet(out / f"{name}.parquet", _typed(rows))
        if inside:
            place = {"column": inside.column, "start": inside.start}
            reference = Reference(out / f"{name}.ref", "parquet", inside.store, place)
        else:
            reference = Reference(out / f"{name}.ref", "files", base)
        reference.write(None if copy else digest)
        if copy:
            _pack(reference.path)
        num_rows += len(rows)
        bar.update(len(rows))
    bar.close()
    return num_rows


def _find_problem(base: Store | None, url: Any, caption: Any) -> str | None:
    """Return what is wrong with a row, None if nothing is. base: None if its picture is not a file."""
    if not isinstance(url, str) or not url:
        return "bad_row: it names no picture"
    if not isinstance(caption, str):
        return "no_caption: the row has none"
    try:
        if base is not None:
            base.resolve(url)
    except ValueError as error:
        return f"bad_path: {error}"
    return None


def _read_sizes(base: Store, addresses: list[str]) -> list[tuple[int, int] | tuple[None, None]]:
    """Return (width, height) in px of each picture, (None, None) if unknown."""
    sizes: list[tuple[int, int] | tuple[None, None]] = []
    for start in range(0, len(addresses), FILES_AT_ONCE):
        batch = addresses[start : start + FILES_AT_ONCE]
        for address, data in zip(batch, base.fetch(batch, HEADER_BYTES), strict=True):
            size = _size_of(data)
            if size is None and not isinstance(data, Exception) and len(data) == HEADER_BYTES:
                size = _size_of(base.fetch([address], MAX_FILE_BYTES)[0])
            sizes.append(size or (None, None))
    return sizes


def _size_of(data: bytes | Exception) -> tuple[int, int] | None:
    try:
        return None if isinstance(data, Exception) else read_size(data)
    except DecodeError:
        return None


def _typed(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with img2dataset's columns first, and with the same types in every shard; others keep theirs."""
    rest = [column for column in rows.columns if column not in RAW_COLUMNS]
    rows = rows.reindex(columns=[*RAW_COLUMNS, *rest])
    return rows.astype({column: "Int64" if column in _SIZES else "string" for column in RAW_COLUMNS})


def _pack(ref: Path) -> None:
    """Replace a shard's reference by a tar with its pictures; those that cannot be read are quarantined."""
    rows = read_rows(ref).set_index("key", drop=False).astype({"error_message": object, "sha256": object})

    def read() -> Iterator[Sample]:
        errors: list[SampleError] = []
        for sample in read_samples(ref, errors.append):
            try:
                image_extension(sample.image)
                width, height = read_size(sample.image)
            except DecodeError as error:
                errors.append(SampleError(sample.key, error.reason, str(error)))
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
