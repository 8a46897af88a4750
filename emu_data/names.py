"""How a sample's key becomes the name of its members in a tar, and back.

Readers of webdataset take the part before a member's first dot as the key. So a key with a dot, a slash or a control
character, or one longer than a file name may be, needs an escaped name in the tar. The parquet beside the tar has
the keys, and a mark in its schema says that some names differ from them.

Conversely, tars of other programs may all count their samples from 0. The keys of such a shard get a prefix, which
the mark of its parquet names.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as pq

MARK = "emu.names"  # in the schema of a parquet
NAMES_MARK = {MARK: "escaped"}
_PREFIX = "prefix "  # begins the mark of a parquet whose keys have a prefix that the names in the tar lack

# Bytes: with an extension (".jpeg"), a name then fits the 255 bytes that file systems allow.
MAX_BYTES = 240

_PLAIN = re.compile(r"[^%./\\\x00-\x1f\x7f]+")  # without "%", since that marks an escaped name


def name_of(key: str) -> str:
    """Return the part before the dot in the names of a key's members; no two keys have the same name."""
    if _PLAIN.fullmatch(key) and len(key.encode()) <= MAX_BYTES:
        return key
    # quote does not escape dots; an empty key would leave an empty name
    escaped = quote(key, safe="").replace(".", "%2E") or "%"
    if "%" in escaped and len(escaped) <= MAX_BYTES:
        return escaped
    digest = hashlib.sha256(key.encode()).hexdigest()[:32]
    return f"{escaped[: MAX_BYTES - len(digest)]}%{digest}"  # one byte longer than any of the others


def names_mark(keys: Iterable[str]) -> dict[str, str] | None:
    """Return the mark for the schema of a parquet with these keys; None if no key needs an escaped name, as in corpora
    of other programs.
    """
    return NAMES_MARK if any(name_of(key) != key for key in keys) else None


def prefix_mark(prefix: str) -> dict[str, str]:
    """Return the mark for the schema of a parquet whose keys are its members' names after a prefix."""
    return {MARK: f"{_PREFIX}{prefix}"}


def read_keys(parquet: Path) -> dict[str, str]:
    """Return name in the tar -> key, for the rows of a parquet with a mark; {} for any other parquet."""
    if not parquet.is_file():
        return {}
    mark = (pq.read_schema(parquet).metadata or {}).get(MARK.encode(), b"").decode()
    if not mark:
        return {}
    keys = pq.read_table(parquet, columns=["key"])["key"].to_pylist()
    if mark.startswith(_PREFIX):
        return {key.removeprefix(mark.removeprefix(_PREFIX)): key for key in keys}
    return {name_of(key): key for key in keys}
