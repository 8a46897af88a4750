"""Rows for what a corpus holds and no parquet lists, so that whatever came in has a row that says what became of it."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from emu_data.bodies import read_body
from emu_data.records import (
    RAW_COLUMNS,
    STATUS_QUARANTINED,
    STATUS_SUCCESS,
    STATUS_UNLISTED,
    DecodeError,
    RecordError,
    read_size,
)

# What makes a later twin's key unique: "~2", or "~" and the shard's number.
_SUFFIX = re.compile(r"(~\d+)+$")


def rebuild_rows(path: Path, note: str) -> pd.DataFrame:
    """Return rows for the samples of a shard's tar and for what cannot be read in it.

    Those that could be read have `note` as their `error_message`, and whatever columns their .json holds.
    """
    errors: list[RecordError] = []
    rows: list[dict[str, Any]] = []
    for sample in read_body(Path(path), errors.append):
        row: dict[str, Any] = dict.fromkeys(RAW_COLUMNS) | sample.meta
        row |= {"key": sample.key, "caption": sample.caption, "status": STATUS_SUCCESS, "error_message": note}
        with suppress(DecodeError):  # measuring says so; the row only lacks its size
            row["width"], row["height"] = read_size(sample.image)
        rows.append(row)
    listed = pd.DataFrame(rows, columns=list(RAW_COLUMNS) if not rows else None)
    for column in listed.columns:
        if listed[column].map(lambda value: isinstance(value, (dict, list))).any():
            listed[column] = listed[column].map(lambda value: None if value is None else json.dumps(value))
    bad = unlisted_rows(path, listed, listed["key"], errors).assign(status=STATUS_QUARANTINED)
    table = pd.concat([listed, bad], ignore_index=True)
    text = [
        column
        for column in table.columns
        if table[column].dtype == object or isinstance(table[column].dtype, pd.StringDtype)
    ]
    sizes = ["width", "height", "original_width", "original_height"]
    return table.astype({**dict.fromkeys(text, "string"), **dict.fromkeys(sizes, "Int64")})


def unlisted_rows(path: Path, rows: pd.DataFrame, keys: Iterable[str], errors: Iterable[RecordError]) -> pd.DataFrame:
    """Return rows (key, status, error_message) for what a shard's tar holds beyond its parquet's `rows`.

    Args:
        keys: of all samples that were read from the tar.
        errors: what shards.read_samples reported.
    A sample without a row cannot be told from a stranger's, so it is quarantined rather than measured.
    """
    # A later twin's key has a suffix in the rows and none in the tar, so what counts is how many there are of a base.
    vacant = Counter(_base_key(str(key)) for key in rows["key"].dropna())
    told = [(key, "no_row: the tar holds the sample, the parquet does not list it") for key in keys]
    told += [(error.key, f"{error.reason}: {error.detail}") for error in errors]
    found: list[dict[str, str]] = []
    for key, message in told:
        base = _base_key(key)
        vacant[base] -= 1
        if vacant[base] < 0:
            number = -vacant[base]
            unique = f"{base}~{Path(path).stem}" + (f"~{number}" if number > 1 else "")
            found.append({"key": unique, "status": STATUS_UNLISTED, "error_message": message})
    return pd.DataFrame(found, columns=["key", "status", "error_message"]).astype("string")


def _base_key(key: str) -> str:
    return _SUFFIX.sub("", key)
