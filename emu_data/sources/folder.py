"""A folder of pictures and captions, at any depth and any fsspec address: NAME.jpg with NAME.txt, or with a
metadata.jsonl, .csv or .parquet of file names and captions, as in `datasets` (imagefolder). img2dataset's files lie in
NNNNN/ beside an NNNNN.parquet: what that lists and has no picture has a row with the reason, too.

Every file with the name of a picture gets a row, whether or not it can be decoded; other files are only counted.
"""

import hashlib
import posixpath
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from emu_data.addresses import Store
from emu_data.bodies import FILES_AT_ONCE
from emu_data.picture_names import CAPTION_EXTENSIONS, extension, is_hidden, is_picture
from emu_data.refs import Digest, digest_files
from emu_data.shards import SHARD_NUMBER
from emu_data.sources import table
from emu_data.sources.loose import Chunk, write_loose_shards
from emu_data.sources.standing import write_corpus
from emu_data.texts import clean, decode_text, describe_error, is_writable

SOURCE = "folder"
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
MAX_CAPTION_BYTES = 64 * 1024  # a longer text is not a caption; chosen here


@dataclass(frozen=True)
class Found:
    """A picture's path below the store, and the path of its caption file, if there is one."""

    path: str
    caption: str | None


@dataclass
class Listing:
    """What a folder holds. metadata: paths of tables that list pictures at or below their own folder. downloads: paths
    of img2dataset's parquets. others: extension -> number of files that are neither picture nor caption; "hidden"
    counts those of picture_names.is_hidden."""

    pictures: list[Found] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    downloads: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


def register_folder(
    store: Store,
    out: Path,
    copy: bool = False,
    samples_per_shard: int = 1000,
    progress: bool = True,
    caption_column: str | None = None,
    digest: Digest = digest_files,
) -> int:
    """Write shards for the pictures of `store` into `out` (see write_corpus); return the number of rows.

    Folders are read in the order of their names; paths relative to the store become the column `url`. A picture without
    a readable caption has a row with the reason. The rows of a metadata table come first, with their other columns.
    Pictures are referred to or, with `copy`, packed into tars. caption_column: of metadata; None tries the usual names.
    Raises ValueError if there are no pictures.
    """
    with write_corpus(out, SOURCE, describe(store, caption_column), inspect_source(store)) as target:
        chunks = _read_chunks(store, samples_per_shard, caption_column)
        num_rows = write_loose_shards(chunks, store, target, copy, samples_per_shard, progress, digest)
        if not num_rows:
            raise ValueError(f"{store} holds no pictures (.png, .jpg and so on)")
    return num_rows


def describe(store: Store, caption_column: str | None) -> str | list[str]:
    """Return what distinguishes this corpus from others, for write_corpus."""
    return store.address if caption_column is None else [store.address, caption_column]


def inspect_source(store: Store) -> dict[str, Any]:
    """Return what the source holds, for `standing.new_in`: its address -> a digest of all names, from listings only."""
    digest = hashlib.sha256()
    for listing in list_folders(store):
        for found in listing.pictures:
            digest.update(f"{found.path}:{found.caption is not None}\n".encode(errors="surrogateescape"))
        for name in [*listing.metadata, *listing.downloads]:
            digest.update(f"{name}:{store.at(store.join(name)).size()}\n".encode())
    return {store.address: digest.hexdigest()[:16]}


def list_folders(store: Store) -> Iterator[Listing]:
    """Yield what each folder of the store holds, in the order of their names."""
    for folder, names in store.walk():
        listing = Listing()
        # macOS's file systems may write é as two characters, others as one
        known = {_plain(name): name for name in names}
        for name in names:
            path = posixpath.join(folder, name)
            if is_hidden(path):
                listing.others["hidden"] += 1
            elif name in METADATA:
                listing.metadata.append(path)
            elif name.endswith(".parquet") and SHARD_NUMBER.fullmatch(name.removesuffix(".parquet")):
                listing.downloads.append(path)
            elif is_picture(name):
                stem = posixpath.splitext(name)[0]
                wanted = [f"{before}.{ending}" for before in (stem, name) for ending in CAPTION_EXTENSIONS]
                beside = next((known[_plain(one)] for one in wanted if _plain(one) in known), None)
                listing.pictures.append(Found(path, beside and posixpath.join(folder, beside)))
            elif extension(name) not in CAPTION_EXTENSIONS:
                listing.others[f".{extension(name)}" if extension(name) else "no ending"] += 1
        yield listing


def _plain(name: str) -> str:
    """Return a name with a lower-case extension, and with each letter as one character (NFC)."""
    stem, ending = posixpath.splitext(unicodedata.normalize("NFC", name))
    return stem + ending.lower()


def _read_chunks(store: Store, size: int, caption_column: str | None) -> Iterator[Chunk]:
    rows: list[dict[str, Any]] = []
    waiting: list[Found] = []
    listed: set[str] = set()
    for listing in list_folders(store):
        for name in listing.metadata:
            for chunk in _read_metadata(store, name, size, caption_column):
                listed.update(url for url in chunk.rows["url"] if isinstance(url, str))
                yield chunk
        for name in listing.downloads:
            yield from _read_lost(store, name, size)
        for picture in listing.pictures:
            if unicodedata.normalize("NFC", picture.path) in listed or picture.path in listed:
                continue
            waiting.append(picture)
            if len(waiting) == FILES_AT_ONCE or len(rows) + len(waiting) == size:
                rows += _read_captions(waiting, store, bool(listed))
                waiting = []
            if len(rows) == size:
                yield Chunk(pd.DataFrame(rows))
                rows = []
    rows += _read_captions(waiting, store, bool(listed))
    if rows:
        yield Chunk(pd.DataFrame(rows))


def _read_metadata(store: Store, name: str, size: int, caption_column: str | None) -> Iterator[Chunk]:
    """Yield the rows of a metadata table, with the pictures' paths below the store."""
    metadata, folder = store.at(store.join(name)), posixpath.dirname(name)
    with tempfile.TemporaryDirectory() as temporary:
        file = table.bring(metadata, temporary)
        try:
            image, caption = table.columns_of(file, None, caption_column)
            for chunk in table.read_file(file, metadata, image, caption, size):
                if chunk.inside is None:
                    chunk.rows["url"] = [
                        posixpath.normpath(posixpath.join(folder, url)) if isinstance(url, str) and url else url
                        for url in chunk.rows["url"]
                    ]
                yield chunk
        except ValueError as error:
            raise ValueError(f"{metadata}: {error}; or move it away: then captions are read from NAME.txt") from error


def _read_lost(store: Store, name: str, size: int) -> Iterator[Chunk]:
    """Yield the rows of a parquet of img2dataset that have no picture in the folder of its name, with the reason."""
    with tempfile.TemporaryDirectory() as temporary:
        try:
            rows = pd.read_parquet(table.bring(store.at(store.join(name)), temporary), dtype_backend="pyarrow")
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{store.join(name)} cannot be read: {describe_error(error)}; or move it away") from error
    if not {"key", "url", "caption", "status", "error_message"} <= set(rows.columns):
        return
    try:
        names = store.at(store.join(posixpath.splitext(name)[0])).list_sizes()
    except FileNotFoundError:  # a parquet of shards
        return
    there = {posixpath.splitext(picture)[0] for picture in names if is_picture(picture)}
    rows = rows[~rows["key"].isin(there)].astype(object)
    rows = rows.where(rows.notna(), None)
    why = [
        f"missing_file: {status}{f': {clean(str(detail))}' if detail else ''}"
        for status, detail in zip(rows["status"], rows["error_message"], strict=True)
    ]
    lost = pd.DataFrame({"url": rows["url"], "caption": rows["caption"], "error_message": why})
    for start in range(0, len(lost), size):
        yield Chunk(lost.iloc[start : start + size])


def _read_captions(pictures: list[Found], store: Store, has_metadata: bool) -> list[dict[str, Any]]:
    asked = [found.caption for found in pictures if found.caption is not None and is_writable(found.path)]
    texts = iter(store.fetch([store.join(file) for file in asked], MAX_CAPTION_BYTES + 1))
    rows = []
    for found in pictures:
        caption = None
        if not is_writable(found.path):
            problem = "bad_path: the file's name is not UTF-8; rename it"
        elif found.caption is not None:
            caption, problem = _read_caption(next(texts), found.caption)
        elif has_metadata:
            problem = "no_caption: no metadata lists it"
        else:
            problem = f"no_caption: {posixpath.splitext(found.path)[0]}.txt is missing"
        rows.append({"url": _escape(found.path), "caption": caption, "error_message": problem})
    return rows


def _escape(path: str) -> str:
    """Return a path as UTF-8, with other bytes as \\xNN."""
    return clean(path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))


def _read_caption(data: bytes | Exception, file: str) -> tuple[str | None, str | None]:
    """Return (caption, None), or (None, what is wrong with it)."""
    if isinstance(data, Exception):
        return None, f"no_caption: {clean(file)}: {describe_error(data)}"
    if len(data) > MAX_CAPTION_BYTES:
        return None, f"bad_text: {clean(file)} is longer than {MAX_CAPTION_BYTES} bytes"
    try:
        return clean(decode_text(data)).strip(), None
    except UnicodeDecodeError as error:
        return None, f"bad_text: {clean(file)} is not UTF-8: {error}"
