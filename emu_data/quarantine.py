"""Makes rows for samples that no parquet lists, so that every sample of a corpus has a row that says what became of
it.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from emu_data.bodies import read_body
from emu_data.samples import (
    RAW_COLUMNS,
    STATUS_QUARANTINED,
    STATUS_SUCCESS,
    STATUS_UNLISTED,
    DecodeError,
    SampleError,
    read_size,
)

# The suffix that makes a repeated key unique: "~2", or "~" and the shard's number.
_SUFFIX = re.compile(r"(~\d+)+$")


def rebuild_rows(path: Path, note: str) -> pd.DataFrame:
    """Return rows for the samples of a shard's tar, including those that cannot be read.

    Readable samples have `note` as their `error_message`, and the columns that their .json holds.
    """
    errors: list[SampleError] = []
    rows: list[dict[str, Any]] = []
    for sample in read_body(Path(path), errors.append):
        row: dict[str, Any] = dict.fromkeys(RAW_COLUMNS) | sample.meta
        row |= {"key": sample.key, "caption": sample.caption, "status": STATUS_SUCCESS, "error_message": note}
        with suppress(DecodeError):  # the row only lacks its size; measuring will report the error
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


def unlisted_rows(path: Path, rows: pd.DataFrame, keys: Iterable[str], errors: Iterable[SampleError]) -> pd.DataFrame:
    """Return rows (key, status, error_message) for the samples of a shard's tar that its parquet's `rows` lack.

    Such a sample may not belong to the corpus at all, so it is quarantined, not measured.

    Args:
        keys: of all samples that were read from the tar.
        errors: what shards.read_samples reported.
    """
    # A repeated key has a suffix in the rows but not in the tar, so rows and samples are counted by the key without it.
    vacant = Counter(_base_key(str(key)) for key in rows["key"].dropna())
    samples = [(key, "no_row: the tar holds the sample, but the parquet lacks it") for key in keys]
    samples += [(error.key, f"{error.reason}: {error.detail}") for error in errors]
    found: list[dict[str, str]] = []
    for key, message in samples:
        base = _base_key(key)
        vacant[base] -= 1
        if vacant[base] < 0:
            number = -vacant[base]
            unique = f"{base}~{Path(path).stem}" + (f"~{number}" if number > 1 else "")
            found.append({"key": unique, "status": STATUS_UNLISTED, "error_message": message})
    return pd.DataFrame(found, columns=["key", "status", "error_message"]).astype("string")


def _base_key(key: str) -> str:
    return _SUFFIX.sub("", key)
