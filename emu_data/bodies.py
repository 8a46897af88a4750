"""Reads the pictures of a shard, wherever they are: in a tar beside the parquet, a tar elsewhere, loose files, or a
column of a parquet. If they are not in a tar beside the parquet, `NNNNN.ref` in its place says where (refs.py).
"""

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from emu_data.addresses import Store
from emu_data.formats import EXTENSIONS
from emu_data.names import read_keys
from emu_data.picture_names import CAPTION_EXTENSIONS, PICTURE_EXTENSIONS
from emu_data.refs import read_ref
from emu_data.samples import CAPTION_NAMES, STATUS_SUCCESS, Sample, SampleError
from emu_data.tars import MAX_FILE_BYTES, Group, TarDamage, read_groups
from emu_data.texts import clean, decode_text, describe_error

OPEN_TARS = 64  # whose samples' places are remembered, about a megabyte each; chosen here
TAR_KEY = "tar"  # key of an error that concerns the tar as a whole
FILES_AT_ONCE = 32  # loose pictures that are fetched together, and in memory together; chosen here

Report = Callable[[SampleError], None]


def read_body(path: Path, report: Report, wanted: Container[str] | None = None) -> Iterator[Sample]:
    """Yield the samples of a shard, or only those with keys in `wanted`; report what cannot be read
    (shards.read_samples).

    If the shard has a parquet, only its rows with status `success` are samples: anything else in the tar is reported.
    Raises ValueError if a .ref is not valid.
    """
    kind, store = _find_body(path)
    yield from _READERS[kind](store, path, report, wanted)


def read_often(path: Path, wanted: Container[str]) -> Iterator[Sample]:
    """Yield the readable samples of a shard with keys in `wanted`, as `read_body` does. Where each sample begins in a
    plain local tar is remembered, so that a few of its samples can be read many times."""
    kind, store = _find_body(path)
    tar = Path(store.address)
    stat = tar.stat() if kind == "tar" and store.is_local and tar.is_file() else None
    starts = _index_tar(path, tar, stat.st_size, stat.st_mtime_ns) if stat else None
    if starts is None:
        yield from read_body(path, lambda error: None, wanted)
        return
    with tar.open("rb") as file:
        for key, (name, start) in starts.items():
            if key in wanted:
                file.seek(start)
                group = next(read_groups(file, True, (name,), start=start))
                group.key = key
                yield from (sample for sample in samples_of(group) if isinstance(sample, Sample))


@lru_cache(maxsize=OPEN_TARS)
def _index_tar(path: Path, tar: Path, size: int, time: int) -> dict[str, tuple[str, int]] | None:
    """Return key -> its name in a local tar, and where its members begin; None if the tar is compressed, damaged, or
    has samples that only `read_body` tells apart. size, time: of the tar, since it may be replaced."""
    keys = read_keys(path.with_suffix(".parquet"))
    listed = _listed_keys(path)
    if listed is None:
        return None
    starts: dict[str, tuple[str, int]] = {}
    try:
        with open_tar(Store(str(tar))) as (file, seekable):
            if not seekable:
                return None
            for group in read_groups(file, True, ()):  # no member is read
                key = keys.get(group.key, group.key)
                if key in starts or key not in listed:
                    return None
                starts[key] = (group.key, group.start)
    except TarDamage:
        return None
    return starts


def tar_store(path: Path) -> Store:
    """Return where the tar of a shard is. Raises ValueError if its pictures are not in a tar."""
    kind, store = _find_body(path)
    if kind != "tar":
        raise ValueError(f"{path}: its pictures are not in a tar")
    return store


def _find_body(path: Path) -> tuple[str, Store]:
    tar, ref = path.with_suffix(".tar"), path.with_suffix(".ref")
    if tar.is_file() or not ref.is_file():
        return "tar", Store(str(tar))
    reference = read_ref(ref)
    return reference.kind, reference.store


def _read_tar(store: Store, path: Path, report: Report, wanted: Container[str] | None) -> Iterator[Sample]:
    listed = None if wanted is not None else _listed_keys(path)
    seen: set[str] = set()
    keys = read_keys(path.with_suffix(".parquet"))  # name in the tar -> key, where the two differ
    names = {name for name, key in keys.items() if key in wanted} if keys and wanted is not None else wanted
    try:
        with open_tar(store) as (file, seekable):
            for group in read_groups(file, seekable, names, keys or listed or ()):
                group.key = keys.get(group.key, group.key)
                if wanted is not None and group.key not in wanted:
                    continue
                for sample in samples_of(group):
                    if sample.key in seen:
                        detail = "an earlier sample of the tar has this key (a sample's files must follow each other)"
                        report(SampleError(sample.key, "duplicate_key", detail))
                    elif isinstance(sample, SampleError):
                        report(sample)
                    elif listed is not None and sample.key not in listed:
                        report(SampleError(sample.key, "no_row", "the tar holds the sample, but the parquet lacks it"))
                    else:
                        yield sample
                    seen.add(sample.key)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        _report_damage(path, seen, report, "unreadable", f"{store}: {type(error).__name__}")
    except TarDamage as error:
        _report_damage(path, seen, report, error.reason, str(error))
    except DAMAGED_COMPRESSION as error:
        _report_damage(path, seen, report, "truncated", f"the compressed tar breaks off: {describe_error(error)}")
    except (ValueError, OSError):
        raise
    except Exception as error:  # each client has its own errors for a broken connection
        raise OSError(f"{store}: {type(error).__name__}: {error}; try again") from error


@contextmanager
def open_tar(store: Store) -> Iterator[tuple[IO[bytes], bool]]:
    """Open a tar and yield (file, whether it can seek). gzip, bzip2 and xz are detected by content, not by name."""
    with store.open() as file:
        if store.is_local:
            head = file.read(len(_XZ))
            file.seek(0)
        else:
            file = io.BufferedReader(file)  # pyrefly: ignore  # fsspec's files suffice
            head = file.peek(len(_XZ))[: len(_XZ)]
        for magic, unpacked in _COMPRESSED.items():
            if head.startswith(magic):
                with unpacked(file) as stream:
                    yield stream, False
                return
        yield file, store.is_local


DAMAGED_COMPRESSION = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)  # raised where a stream is damaged
_XZ = b"\xfd7zXZ\0"
_COMPRESSED: dict[bytes, Callable[[Any], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, _XZ: lzma.open}


def _listed_keys(path: Path) -> set[str] | None:
    """Return the keys of the rows with status `success`; None if there is no parquet, or one without keys."""
    parquet = path.with_suffix(".parquet")
    if not parquet.is_file() or not {"key", "status"} <= set(pq.read_schema(parquet).names):
        return None
    rows = pq.read_table(parquet, columns=["key", "status"]).to_pylist()
    return {str(row["key"]) for row in rows if row["status"] == STATUS_SUCCESS}


def samples_of(group: Group) -> Iterator[Sample | SampleError]:
    """Yield the sample of a group. If names have more dots (a.1.jpg, a.1.txt, a.2.jpg, a.2.txt) and a part between two
    dots has its own picture and caption, each such part is a sample: a.1, a.2.
    """
    if group.problem is not None:
        yield SampleError(group.key, *group.problem)
        return
    inside: dict[str, dict[str, bytes]] = {"": {}}
    for name, data in group.parts.items():
        before, _, extension = name.rpartition(".")
        inside.setdefault(before, {})[extension] = data
    whole = [name for name, parts in inside.items() if name and _find_picture(parts) and _has_caption(parts)]
    for name in whole:
        yield _sample_of(f"{group.key}.{name}", inside.pop(name))
    rest: dict[str, bytes] = {}
    for parts in inside.values():  # a.image.jpg, a.caption.txt; names without a further dot take precedence
        rest = parts | rest
    if rest or not whole:
        yield _sample_of(group.key, rest)


def _find_picture(parts: dict[str, bytes]) -> bytes | None:
    found = next((extension for extension in EXTENSIONS if extension in parts), None)
    found = found or next((extension for extension in parts if extension in PICTURE_EXTENSIONS), None)
    return None if found is None else parts[found]


def _has_caption(parts: dict[str, bytes]) -> bool:
    return any(extension in parts for extension in (*CAPTION_EXTENSIONS, "json"))


def _sample_of(key: str, parts: dict[str, bytes]) -> Sample | SampleError:
    image = _find_picture(parts)
    if image is None:
        return SampleError(key, "no_image", f"it has only {sorted(parts)}")
    try:
        meta = clean(json.loads(decode_text(parts["json"]))) if "json" in parts else {}
        text = next((parts[extension] for extension in CAPTION_EXTENSIONS if extension in parts), None)
        caption = None if text is None else clean(decode_text(text))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are both ValueErrors
        return SampleError(key, "bad_text", str(error))
    if not isinstance(meta, dict):
        return SampleError(key, "bad_text", "its .json is not an object")
    if caption is None:
        caption = next((meta[name] for name in CAPTION_NAMES if isinstance(meta.get(name), str)), None)
    if caption is None:
        return SampleError(key, "no_caption", f"it has only {sorted(parts)}")
    return Sample(key, image, caption, meta)


def _report_damage(path: Path, seen: set[str], report: Report, reason: str, detail: str) -> None:
    """Report a damaged tar for each row whose sample was not seen, or for the tar itself if there is no such row."""
    lost = sorted((_listed_keys(path) or set()) - seen)
    for key in lost or [TAR_KEY]:
        report(SampleError(key, reason, detail))


def _read_files(store: Store, path: Path, report: Report, wanted: Container[str] | None) -> Iterator[Sample]:
    table = pq.read_table(path.with_suffix(".parquet"))
    for start in range(0, len(table), FILES_AT_ONCE):
        asked: list[tuple[str, str, dict[str, Any]]] = []
        for row in table.slice(start, FILES_AT_ONCE).to_pylist():
            if row["status"] != STATUS_SUCCESS or (wanted is not None and row["key"] not in wanted):
                continue
            if not isinstance(row["url"], str) or not isinstance(row["caption"], str):
                report(SampleError(row["key"], "bad_row", "it lacks a url or a caption"))
                continue
            try:
                asked.append((row["key"], store.resolve(row["url"]), row))
            except ValueError as error:
                report(SampleError(row["key"], "bad_path", str(error)))
        found = store.fetch([address for _, address, _ in asked], MAX_FILE_BYTES + 1)
        for (key, address, row), data in zip(asked, found, strict=True):
            if isinstance(data, (FileNotFoundError, IsADirectoryError)):
                report(SampleError(key, "missing_file", address))
            elif isinstance(data, Exception):
                report(SampleError(key, "unreachable", f"{address}: {describe_error(data)}"))
            elif len(data) > MAX_FILE_BYTES:
                report(SampleError(key, "too_large", f"{address} has more than {MAX_FILE_BYTES} bytes"))
            else:
                yield _to_sample(row, data)


def _to_sample(row: dict[str, Any], image: bytes) -> Sample:
    """Return a sample with its row's caption and metadata; NaN, which pandas writes for a null, becomes None."""
    meta = {name: None if isinstance(value, float) and value != value else value for name, value in row.items()}
    return Sample(row["key"], image, row["caption"], meta)


def _read_rows(store: Store, path: Path, report: Report, wanted: Container[str] | None) -> Iterator[Sample]:
    """Read a shard whose row i is row start + i of a parquet that holds the pictures."""
    place = read_ref(path.with_suffix(".ref")).place
    column, start = str(place["column"]), int(place["start"])
    rows = pq.read_table(path.with_suffix(".parquet")).to_pylist()
    is_asked = [row["status"] == STATUS_SUCCESS and (wanted is None or row["key"] in wanted) for row in rows]
    try:
        with store.open(seekable=True) as file, pq.ParquetFile(file) as parquet:
            first = 0
            for number in range(parquet.num_row_groups):
                here = range(first - start, first - start + parquet.metadata.row_group(number).num_rows)
                first += len(here)
                if not any(is_asked[max(0, here.start) : max(0, here.stop)]):
                    continue
                row = here.start
                for batch in parquet.iter_batches(FILES_AT_ONCE, row_groups=[number], columns=[column]):
                    for value in batch.column(0).to_pylist():
                        if 0 <= row < len(rows) and is_asked[row]:
                            is_asked[row] = False
                            data = value.get("bytes") if isinstance(value, dict) else value
                            if isinstance(data, bytes):
                                yield _to_sample(rows[row], data)
                            else:
                                report(SampleError(rows[row]["key"], "no_image", f"column {column!r} is null"))
                        row += 1
    except (FileNotFoundError, PermissionError, pa.ArrowException) as error:
        for row, is_lost in zip(rows, is_asked, strict=True):
            if is_lost:
                report(SampleError(row["key"], "unreadable", f"{store}: {describe_error(error)}"))


# The kind that a .ref names -> how such a body is read.
_READERS = {"tar": _read_tar, "files": _read_files, "parquet": _read_rows}
