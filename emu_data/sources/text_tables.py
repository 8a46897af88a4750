"""CSV, TSV and JSON lines as frames of equal types, however many rows: the types are found in a pass of their own.

A line that cannot be parsed is a row with nothing but its error. Nothing is guessed from the first rows alone, and a
column of numbers is one only if each of its values is: "007" stays a text.
"""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
ERROR = "\0error"  # no column of a table is called so

_INTEGER = re.compile(r"0|-?[1-9]\d{0,17}")  # what int64 holds whatever the digits
_FLOAT = re.compile(r"-?\d+\.\d+([eE][-+]?\d+)?|-?\d+[eE][-+]?\d+")
_SURROGATE = re.compile("[\ud800-\udfff]")  # 0xDC00 + a byte that is no UTF-8 (PEP 383), or JSON's own lone ones
_NUM_LOOKED_AT = 100  # lines whose keys are the columns of JSON lines, for a first look; chosen here


def read_columns(file: Path) -> list[str]:
    """Return the columns: a CSV's first line, the keys of the first JSON lines. Raises ValueError."""
    if file.suffix.lower() in (".csv", ".tsv"):
        with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            names = next(csv.reader(lines, delimiter=_delimiter(file)), [])
        if not names or len(set(names)) != len(names):
            raise ValueError(f"{file.name} must begin with a line of distinct column names, not {names}")
        return names
    found: dict[str, None] = {}
    for number, row in enumerate(_read_rows(file)):
        if number == _NUM_LOOKED_AT:
            break
        found |= dict.fromkeys(name for name in row if name != ERROR)
    return list(found)


def read_frames(file: Path, size: int) -> Iterator[pd.DataFrame]:
    """Yield frames of `size` rows, the last may be shorter, with the column ERROR: null, or "reason: detail"."""
    types: dict[str, str] = {}
    is_csv = file.suffix.lower() in (".csv", ".tsv")
    for row in _read_rows(file):
        for name, value in row.items():
            kind = "string" if name == ERROR else _kind(value, is_csv)
            before = types.setdefault(name, kind)
            if kind and before and kind != before:
                types[name] = "Float64" if {kind, before} == {"Int64", "Float64"} else "string"
            elif kind:
                types[name] = kind
    types = {name: kind or "string" for name, kind in (types | {ERROR: "string"}).items()}
    rows: list[dict[str, Any]] = []
    for row in _read_rows(file):
        rows.append(row)
        if len(rows) == size:
            yield _to_frame(rows, types)
            rows = []
    if rows:
        yield _to_frame(rows, types)


def _delimiter(file: Path) -> str:
    return "\t" if file.suffix.lower() == ".tsv" else ","


def _read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield each row as column -> value, with ERROR where something is wrong with it."""
    is_csv = file.suffix.lower() in (".csv", ".tsv")
    # bytes that are no UTF-8 come as surrogates and go as \xNN
    with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="" if is_csv else "\n") as lines:
        for row in _read_csv(csv.reader(lines, delimiter=_delimiter(file))) if is_csv else map(_parse_json, lines):
            if row is None:
                continue
            for name, value in row.items():
                if isinstance(value, str) and not _is_utf8(value):
                    row[name] = _SURROGATE.sub(lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", value)
                    row = row | {ERROR: f"bad_text: {name} is no UTF-8"}
            yield row


def _read_csv(reader: Any) -> Iterator[dict[str, Any]]:
    names = next(reader)
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # such as a field longer than csv.field_size_limit(); the next line is read again
            yield {ERROR: f"bad_row: line {reader.line_num}: {error}"}
            continue
        if not fields:
            continue  # an empty line
        if len(fields) != len(names):
            yield {ERROR: f"bad_row: line {reader.line_num} has {len(fields)} fields, the first line {len(names)}"}
            continue
        yield dict(zip(names, fields, strict=True))


def _parse_json(line: str) -> dict[str, Any] | None:
    if not line.strip():
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {ERROR: f"bad_row: {error}"}
    if not isinstance(row, dict):
        return {ERROR: f"bad_row: it is a {type(row).__name__}, no object"}
    return {name: json.dumps(value) if isinstance(value, (dict, list)) else value for name, value in row.items()}


def _kind(value: Any, is_csv: bool) -> str:
    """Return the pandas type that holds a value; "" where any does."""
    if value is None or (is_csv and value == ""):
        return ""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str) and not is_csv:
        return "string"
    text = value if isinstance(value, str) else json.dumps(value)
    if _INTEGER.fullmatch(text):
        return "Int64"
    return "Float64" if _FLOAT.fullmatch(text) else "string"


def _to_frame(rows: list[dict[str, Any]], types: dict[str, str]) -> pd.DataFrame:
    columns: dict[str, pd.Series] = {}
    for name, kind in types.items():
        values = [row.get(name) for row in rows]
        if kind == "string":
            texts = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
            columns[name] = pd.Series(texts, dtype="string")
        else:
            number = {"Int64": int, "Float64": float, "boolean": bool}[kind]
            columns[name] = pd.Series([None if v in (None, "") else number(v) for v in values], dtype=kind)
    return pd.DataFrame(columns)


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
