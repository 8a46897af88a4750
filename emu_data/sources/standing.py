"""Replaces the folder of raw shards without losing files that somebody put there.

corpus.json lists the files that a source wrote, with their digests. Those can be made again and are replaced; files
that a user put there are not. A complete shard beside those of the same source is adopted, other files stay. If one of
them is in the way, nothing is changed, and the reason is reported.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from emu_data.files import (
    TEMPORARY_MARK,
    atomic_dir,
    fingerprint,
    link_or_copy,
    quick_digest,
    restore_dir,
    write_json,
)
from emu_data.refs import Digest, changed_references, digest_files
from emu_data.samples import NEEDED_COLUMNS
from emu_data.shards import SHARD_NUMBER, list_shards

CORPUS_FILE = "corpus.json"
BODIES, PARQUET = (".tar", ".ref"), ".parquet"
CHANGED = "are not as raw_corpus wrote them, and would be overwritten"
MOVE = "move them out of the folder, then materialise raw_corpus again (emu materialize raw_corpus)"


@contextmanager
def write_corpus(out: Path, source: str, config: Any, seen: Mapping[str, Any]) -> Iterator[Path]:
    """Yield an empty folder for the corpus of a source; on a clean exit it takes the place of `out`, and receives the
    files that a user had put there.

    Args:
        config: what the corpus is made from; if its fingerprint is the same as before, so is the source.
        seen: what the source holds, for `new_in`: name -> any JSON value.
    Raises ValueError, and leaves `out` unchanged, if that would overwrite or remove a file that no source wrote, one
    that was changed since, or pictures that the same source no longer has.
    """
    out = Path(out)
    restore_dir(out)
    before, origin = read_corpus_file(out), {"source": source, "config": fingerprint(config)}
    if before is None and list_shards(out):
        raise ValueError(
            f"{out} holds shards that raw_corpus did not write: move them elsewhere, then register them with emu ingest"
        )
    is_same = before is not None and all(before.get(name) == value for name, value in origin.items())
    known: dict[str, str] | None = (before or {"files": {}}).get("files")
    standing = list_files(out)
    if known is None and not is_same:
        _refuse(out, list(standing), "were written by an earlier version, which did not record its files")
    now = {name: quick_digest(out / name) for name in known or {} if name in standing}
    changed = [name for name in now if now[name] != (known or {})[name]]
    _refuse(out, changed, CHANGED)
    if known is not None:
        _check_put_there(out, [name for name in standing if name not in known], set(known), is_same)
    with atomic_dir(out) as partial:
        yield partial
        written = {name: quick_digest(partial / name) for name in list_files(partial)}
        if known is None:  # an earlier version did not record its files: the same source writes them again
            known = {n: quick_digest(out / n) for n in standing if n in written}
            _refuse(out, [n for n in known if known[n] != written[n]], "differ from what the source gives now")
        put_there = [name for name in standing if name not in known]
        _check_put_there(out, put_there, {*known, *written}, is_same)
        if is_same:
            _check_losses(out, known, partial, written)
        for name in put_there:
            _carry(out / name, partial / name)
        adopted = sorted({Path(name).stem for name in put_there if is_body(name)})
        record = {**origin, "files": written, "adopted": adopted, "seen": dict(seen)}
        write_json(partial / CORPUS_FILE, record)


def read_corpus_file(folder: Path) -> dict[str, Any] | None:
    """Return the contents of corpus.json, None if there is none."""
    path = Path(folder) / CORPUS_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def list_files(folder: Path) -> dict[str, Path]:
    """Return name below the folder -> path, in name order, for every file except corpus.json and unfinished ones."""
    found = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if TEMPORARY_MARK not in name)
        for name in sorted(names):
            path = Path(parent) / name
            if TEMPORARY_MARK not in name and path != Path(folder) / CORPUS_FILE:
                found[path.relative_to(folder).as_posix()] = path
    return found


def new_in(folder: Path, source: str, config: Any, seen: Mapping[str, Any], digest: Digest = digest_files) -> list[str]:
    """Return what is new since the folder was last written: the names in `seen` (what the source holds now) that are
    new or have changed, and the addresses of changed references (refs.changed_references). Empty if the folder was
    written from another source, or never."""
    record = read_corpus_file(folder)
    if record is None or (record["source"], record["config"]) != (source, fingerprint(config)):
        return []
    before = record.get("seen", {})
    news = {name for name, value in seen.items() if before.get(name, ()) != value}
    return sorted(news | set(changed_references(folder, digest)))


def is_body(name: str) -> bool:
    """Whether a name below the folder is that of a shard's tar or reference."""
    return "/" not in name and Path(name).suffix in BODIES and SHARD_NUMBER.fullmatch(Path(name).stem) is not None


def _check_put_there(out: Path, names: list[str], ours: set[str], is_same: bool) -> None:
    """Refuse files that a user put there and that are in the way, belong to another corpus, or are half a shard."""
    _refuse(out, [name for name in names if name in ours], "were put there, and the source has files with these names")
    taken = {Path(name).stem for name in ours if is_body(name)}
    parts: dict[str, set[str]] = {}
    for name in names:
        path = Path(name)
        if "/" not in name and SHARD_NUMBER.fullmatch(path.stem) and path.suffix in (*BODIES, PARQUET):
            parts.setdefault(path.stem, set()).add(path.suffix)
    files = {stem: [f"{stem}{suffix}" for suffix in sorted(suffixes)] for stem, suffixes in parts.items()}
    _refuse(out, [n for s in files if s in taken for n in files[s]], "were put there, and shards have these numbers")
    half = [n for s in files if not (PARQUET in parts[s] and parts[s] & set(BODIES)) for n in files[s]]
    _refuse(out, half, "are half a shard: add the missing one of NNNNN.tar and NNNNN.parquet, or")
    if not is_same:
        _refuse(out, [n for s in files for n in files[s]], "were added to another corpus than the new one")
    for stem in files:
        lacking = _lacking_columns(out / f"{stem}{PARQUET}")
        _refuse(out, [f"{stem}{PARQUET}"] if lacking else [], f"lacks {', '.join(lacking)}, which img2dataset writes")


def _lacking_columns(parquet: Path) -> list[str]:
    try:
        schema = pq.read_schema(parquet)
    except (pa.ArrowException, OSError):
        return ["all columns"]
    texts = [name for name in schema.names if pa.types.is_string(schema.field(name).type)]
    texts += [name for name in schema.names if pa.types.is_large_string(schema.field(name).type)]
    return [f"the column {name}" for name in NEEDED_COLUMNS if name not in texts]


def _check_losses(out: Path, known: Mapping[str, str], partial: Path, written: Mapping[str, str]) -> None:
    """Refuse to lose pictures that are in `out` and that the same source no longer has."""
    stems = {Path(name).stem for name in written if is_body(name)}
    held = [name for name in known if is_body(name) and name.endswith(".tar") and (out / name).exists()]
    _refuse(out, [name for name in held if Path(name).stem not in stems], "are the only copies: the source lost them")
    if held and (lost := _count_rows(out, known) - _count_rows(partial, written)) > 0:
        raise ValueError(f"{out} holds {lost} more rows than its source has now; {MOVE}")


def _count_rows(folder: Path, names: Mapping[str, str]) -> int:
    parquets = [folder / name for name in names if name.endswith(PARQUET) and "/" not in name]
    return sum(pq.read_metadata(file).num_rows for file in parquets if file.is_file())


def _carry(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.is_symlink():
        target.symlink_to(os.readlink(file))  # at the same depth as before, so that a relative link stays valid
    else:
        link_or_copy(file, target)


def _refuse(out: Path, names: list[str], why: str) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(f"{out}: {', '.join(names[:3])}{more} {why}: {MOVE}")
