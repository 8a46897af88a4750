"""Atomic writes of files and folders, and digests that are the same in any process.

Every write goes to a temporary name in the same folder, is flushed to the disk, and is then renamed: a reader never
sees half a file under its final name, whatever stops the writer (a full disk, SIGKILL, a power cut).
"""

import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# Part of the name of everything that this module has not finished writing, so that readers can skip it.
TEMPORARY_MARK = ".tmp-"
QUICK_BYTES, NUM_QUICK_BLOCKS = 4 << 20, 64  # how much of a file quick_digest reads, in how many blocks; chosen here


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit rename it to `path`, on an exception remove it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{TEMPORARY_MARK}{uuid.uuid4().hex[:8]}")
    try:
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; on a clean exit it takes the place of `path`.

    Unlike a file, a folder cannot be replaced in one step: the old folder is first renamed aside, and removed only
    when the new one is in place. On an exception the temporary folder is removed and `path` stays as it was; if the
    process is killed in between, `restore_dir` puts the old folder back.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    restore_dir(path)
    token = uuid.uuid4().hex[:8]
    temporary = path.with_name(f".{path.name}{TEMPORARY_MARK}{token}")
    aside = path.with_name(f".{path.name}{TEMPORARY_MARK}{token}-old")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush_to_disk(file)
        if path.exists():
            os.replace(path, aside)
        os.replace(temporary, path)
    except BaseException:
        if aside.exists() and not path.exists():
            os.replace(aside, path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def restore_dir(path: Path) -> None:
    """Put back the folder that `atomic_dir` had renamed aside when it was killed before the new one was in place.

    Does nothing if `path` exists. Only writers call this.
    """
    path = Path(path)
    if not path.exists() and path.parent.is_dir():
        start = f".{path.name}{TEMPORARY_MARK}"
        asides = [p for p in path.parent.iterdir() if p.name.startswith(start) and p.name.endswith("-old")]
        if asides:
            os.replace(max(asides, key=lambda aside: aside.stat().st_ctime_ns), path)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Put a file's bytes at `target` too: a hard link, or a copy if the file system does not support links.

    For files that are never edited in place. The signature is that of shutil.copytree's `copy_function`.
    """
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON with sorted keys, atomically. Raises ValueError for NaN and infinities, which are not JSON,
    and for values that `fingerprint` does not take.
    """
    text = json.dumps(_plain(value), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_parquet(path: Path, frame: "pd.DataFrame", metadata: Mapping[str, str] | None = None) -> None:
    """Write `frame` as parquet, atomically; the same frame gives the same bytes.

    Settings are fixed, and `metadata` replaces pandas' own (its version, the index) in the file's schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(frame.reset_index(drop=True), preserve_index=False)
    table = table.replace_schema_metadata(dict(metadata) if metadata else None)
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=3, version="2.6")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def quick_digest(path: Path) -> str:
    """Return 32 hexadecimal digits from a file's size and bytes. Of a file larger than QUICK_BYTES only blocks are
    read, spread evenly from beginning to end, so that terabytes of tars need not be read to see that none changed.
    """
    digest, size = hashlib.sha256(), os.path.getsize(path)
    digest.update(size.to_bytes(8, "big"))
    with open(path, "rb") as file:
        if size <= QUICK_BYTES:
            digest.update(file.read())
        else:
            block = QUICK_BYTES // NUM_QUICK_BLOCKS
            for number in range(NUM_QUICK_BLOCKS):
                file.seek((size - block) * number // (NUM_QUICK_BLOCKS - 1))
                digest.update(file.read(block))
    return digest.hexdigest()[:32]


def fingerprint(value: Any) -> str:
    """Return 16 hexadecimal digits that identify `value`: equal configs give equal digits, in any process.

    Takes values that JSON can hold, and dataclasses, paths, sets and tuples of them. Raises ValueError for anything
    else, since its text might contain a memory address or a time.
    """
    text = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item) for item in value)
    if isinstance(value, Path):
        return value.as_posix()
    import numpy as np  # here, because every command imports this module and few have a number of numpy's

    if isinstance(value, np.generic):
        return value.item()
    raise ValueError(f"cannot write a {type(value).__name__} as JSON: turn it into numbers, text, lists or dicts first")


def _flush_to_disk(file: Path) -> None:
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())
