"""A folder of pictures with captions beside them: NAME.jpg with NAME.txt, at any depth and any fsspec address."""

import hashlib
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pandas as pd

from emu_data.addresses import Options, fetch, full_address, join, open_filesystem
from emu_data.bodies import FILES_AT_ONCE
from emu_data.records import IMAGE_EXTENSIONS
from emu_data.sources.loose import write_loose_shards
from emu_data.sources.standing import write_corpus

SOURCE = "folder"
MAX_CAPTION_BYTES = 64 * 1024  # a longer text is no caption; chosen here


def register_folder(
    address: str,
    out: Path,
    copy: bool = False,
    options: Options | None = None,
    samples_per_shard: int = 1000,
    progress: bool = True,
) -> int:
    """Put the pictures under `address` as shards into `out` (see write_corpus); return their number.

    Folder by folder in the order of names; paths relative to `address` become the column `url`. A picture without a
    readable caption has a row with the reason. Pictures are referred to, or packed where `copy`. Raises ValueError
    where there are none.
    """
    options = options or {}
    base = full_address(address)
    with write_corpus(out, SOURCE, base, look_at_source(base, options)) as target:
        chunks = _read_chunks(base, options, samples_per_shard)
        num_rows = write_loose_shards(chunks, base, target, options, copy, samples_per_shard, progress)
        if not num_rows:
            raise ValueError(f"{address} holds no pictures ({', '.join(IMAGE_EXTENSIONS)})")
    return num_rows


def look_at_source(base: str, options: Options) -> dict[str, Any]:
    """What the source holds: the folder -> a digest of the names in it, read from listings alone."""
    digest = hashlib.sha256()
    for name, has_caption in iter_pictures(base, options):
        digest.update(f"{name}:{has_caption}\n".encode())
    return {base: digest.hexdigest()[:16]}


def iter_pictures(base: str, options: Options) -> Iterator[tuple[str, bool]]:
    """Yield each picture's path below `base`, and whether a caption lies beside it."""
    filesystem, root = open_filesystem(base, options)
    is_web = base.startswith(("http://", "https://"))  # whose listings are links, so quoted
    for folder, folders, names in filesystem.walk(root):
        folders.sort()
        inside = folder[len(root.rstrip("/")) :].strip("/")
        known = set(names)
        for name in sorted(names):
            stem, extension = posixpath.splitext(name)
            if extension.lower().lstrip(".") in IMAGE_EXTENSIONS:
                path = posixpath.join(inside, name)
                yield unquote(path) if is_web else path, f"{stem}.txt" in known


def _read_chunks(base: str, options: Options, size: int) -> Iterator[pd.DataFrame]:
    rows: list[dict[str, Any]] = []
    waiting: list[tuple[str, bool]] = []
    for picture in iter_pictures(base, options):
        waiting.append(picture)
        if len(waiting) == FILES_AT_ONCE or len(rows) + len(waiting) == size:
            rows += _read_captions(waiting, base, options)
            waiting = []
        if len(rows) == size:
            yield pd.DataFrame(rows)
            rows = []
    rows += _read_captions(waiting, base, options)
    if rows:
        yield pd.DataFrame(rows)


def _read_captions(pictures: list[tuple[str, bool]], base: str, options: Options) -> list[dict[str, Any]]:
    files = [posixpath.splitext(path)[0] + ".txt" for path, _ in pictures]
    asked = [join(base, file) for file, (_, has_caption) in zip(files, pictures, strict=True) if has_caption]
    texts = iter(fetch(asked, options, MAX_CAPTION_BYTES + 1))
    rows = []
    for (path, has_caption), file in zip(pictures, files, strict=True):
        caption, problem = None, f"no_caption: {file} is missing"
        if has_caption:
            caption, problem = _read_caption(next(texts), file)
        rows.append({"url": path, "caption": caption, "error_message": problem})
    return rows


def _read_caption(data: bytes | Exception, file: str) -> tuple[str | None, str | None]:
    """Return the caption, or what is wrong with it."""
    if isinstance(data, Exception):
        return None, f"no_caption: {file}: {type(data).__name__}: {data}"
    if len(data) > MAX_CAPTION_BYTES:
        return None, f"bad_text: {file} is longer than {MAX_CAPTION_BYTES} bytes"
    try:
        return data.decode("utf-8").strip(), None
    except UnicodeDecodeError as error:
        return None, f"bad_text: {file} is no UTF-8: {error}"
