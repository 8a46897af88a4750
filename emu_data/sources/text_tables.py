"""Reads CSV, TSV and JSON lines as frames with the same types throughout: a first pass over all rows finds the types.

It reads what pandas, DuckDB, `datasets` and spreadsheets write: UTF-8 or the encoding of a byte-order mark; commas,
tabs, semicolons or bars; gzip. A line that cannot be parsed becomes a row with only its error. Nothing is guessed from
the first rows alone, and a column is numeric only if each of its values is: "007" stays text.
"""

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

import pandas as pd

from emu_data.texts import clean, find_encoding, is_writable

TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
ERROR = "\0error"  # a name that no column of a table can have

_INTEGER = re.compile(r"0|-?[1-9]\d{0,17}")  # fits int64 whatever the digits
_FLOAT = re.compile(r"-?\d+\.\d+([eE][-+]?\d+)?|-?\d+[eE][-+]?\d+")
_BYTE = re.compile("[\udc80-\udcff]")  # a byte that is not UTF-8 (PEP 383)
_NUM_PEEKED = 100  # JSON lines whose keys `read_columns` takes as the columns; chosen here
_MAX_LINES = 200  # of one quoted field; if it is longer, its quotation mark is a stray one; chosen here
_PICTURE = ("bytes", "path")  # keys of a picture as `datasets` writes it


def text_suffix(name: str) -> str:
    """Return the suffix of a text table's name (".csv" for "a.CSV.gz"), "" for other names."""
    name = name.lower().removesuffix(".gz")
    return next((suffix for suffix in (*TEXT_SUFFIXES, ".json") if name.endswith(suffix)), "")


def read_columns(file: Path) -> list[str]:
    """Return the columns: a CSV's first line, or the keys of the first JSON lines. Raises ValueError if there are
    none.
    """
    if _is_csv(file):
        names = _Csv(file).names
        if not names:
            raise ValueError(f"{file.name} must begin with a line of column names, but its first line is empty")
        return names
    found: dict[str, None] = {}
    for number, row in enumerate(_read_rows(file)):
        if number == _NUM_PEEKED:
            break
        found |= dict.fromkeys(name for name in row if name != ERROR)
    return list(found)


def read_frames(file: Path, size: int, texts: tuple[str, ...] = ()) -> Iterator[pd.DataFrame]:
    """Yield frames of `size` rows (the last may be shorter), with the column ERROR: null, or "reason: detail". Columns
    named in `texts` always exist and hold text, even if all their values are numbers.
    """
    types: dict[str, str] = dict.fromkeys(texts, "string")
    is_csv = _is_csv(file)
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


def _is_csv(file: Path) -> bool:
    return text_suffix(file.name) in (".csv", ".tsv")


def _open(file: Path) -> IO[str]:
    """Open as text; bytes that are not UTF-8 become surrogates, and line ends stay as they are."""
    opened = gzip.open if file.name.lower().endswith(".gz") else open
    with opened(file, "rb") as binary:
        encoding = find_encoding(binary.read(4))
    # a byte-order mark is not part of the first column's name; surrogateescape works only with UTF-8
    errors = "surrogateescape" if encoding.startswith("utf-8") else "replace"
    return opened(file, "rt", encoding=encoding, errors=errors, newline="")  # pyrefly: ignore


def _read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield each row as column -> value, with ERROR if something is wrong with it."""
    for row in _Csv(file).read() if _is_csv(file) else _read_json(file):
        for name, value in row.items():
            if name != ERROR and isinstance(value, str) and not is_writable(value):
                escaped = _BYTE.sub(lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", value)
                row = row | {name: clean(escaped)}
                if escaped != value:
                    row[ERROR] = f"bad_text: {clean(name)} is not UTF-8; save the table as UTF-8"
        yield {name if name == ERROR else clean(name): value for name, value in row.items()}


class _Csv:
    """A file of separated values. names: of its columns.

    The rule (RFC 4180): a field that holds the separator, a line end or a quotation mark is quoted, and quotation marks
    in it are doubled; some programs do not quote. A file that is well formed as a whole is read by the rule. In other
    files a record of several lines counts only if it is well formed, has as many fields as the first line, and its
    lines do not; otherwise each line is a row, so that a stray quotation mark does not swallow rows.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        with _open(file) as lines:
            first = next(lines, "")
            self._skip = 0
            if match := re.fullmatch(r'"?sep=(.)"?\s*', first):  # Excel's way to name the separator
                self._skip, self._separator = 1, match[1]
                first = next(lines, "")
            else:
                self._separator = self._find_separator(first)
        names = [name.strip() for name in self._parse(first) or first.rstrip("\r\n").split(self._separator)]
        while len(names) > 1 and not names[-1]:  # a separator at the end of each line
            names.pop()
        self.names: list[str] = []
        for name in names if any(names) else []:  # named as pandas does: the second "a" is "a.1"
            called, number = name or "unnamed", 0
            while called in self.names:
                number += 1
                called = f"{name or 'unnamed'}.{number}"
            self.names.append(called)

    def _find_separator(self, first: str) -> str:
        """Return the usual separator of such a file or, if the first line lacks it, the one that it has most often."""
        usual = "\t" if text_suffix(self._file.name) == ".tsv" else ","
        counts = {mark: first.count(mark) for mark in (usual, "\t", ";", "|", ",")}
        return usual if counts[usual] else max(counts, key=lambda mark: counts[mark])

    def _parse(self, text: str, strict: bool = True) -> list[str] | None:
        """Return the fields of a record; None if the text is not exactly one record by the rule."""
        try:
            rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=self._separator, strict=strict))
        except csv.Error:
            return None
        return rows[0] if len(rows) == 1 else None

    def _is_open(self, text: str) -> bool:
        """Whether the text breaks off inside a quoted field of a record."""
        try:
            list(csv.reader(io.StringIO(text, newline=""), delimiter=self._separator, strict=True))
        except csv.Error as error:
            return "unexpected end" in str(error)
        return False

    def _is_well_formed(self) -> bool:
        with _open(self._file) as lines:
            for _ in range(self._skip):
                next(lines)
            try:
                for fields in csv.reader(lines, delimiter=self._separator, strict=True):
                    if fields and len(fields) != len(self.names):
                        return False
            except csv.Error:
                return False
        return True

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the rows after the first line."""
        well_formed = self._is_well_formed()
        with _open(self._file) as lines:
            for _ in range(self._skip + 1):
                next(lines, "")
            if well_formed:
                for fields in csv.reader(lines, delimiter=self._separator, strict=True):
                    if fields:
                        yield self._to_row(fields, 0)
                return
            yield from self._read_loosely(lines)

    def _read_loosely(self, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
        waiting: list[str] = []  # lines that were read ahead
        number = self._skip + 1
        while True:
            line = waiting.pop(0) if waiting else next(lines, None)
            if line is None:
                return
            number += 1
            if not line.strip("\r\n"):
                continue
            fields = self._parse(line)
            if fields is None and self._is_open(line):  # a quoted field may continue on the next lines
                fields, num_more = self._join(line, waiting, lines)
                del waiting[:num_more]
                yield self._to_row(fields or self._split(line), number)
                number += num_more
            else:
                yield self._to_row(fields or self._split(line), number)

    def _join(self, line: str, waiting: list[str], lines: Iterator[str]) -> tuple[list[str] | None, int]:
        """Return the record that begins with `line` and the number of its further lines; (None, 0) if there is none."""
        text = line
        for num_more in range(1, _MAX_LINES):
            if num_more > len(waiting):
                more = next(lines, None)
                if more is None:
                    return None, 0
                waiting.append(more)
            text += waiting[num_more - 1]
            if '"' not in waiting[num_more - 1]:
                continue
            fields = self._parse(text)
            if fields is None and not self._is_open(text):
                return None, 0
            if fields is not None:
                alone = [self._split(one) for one in waiting[:num_more]]
                is_record = len(fields) == len(self.names)
                # lines that are complete rows are more likely rows after a stray quotation mark
                return (fields, num_more) if is_record and any(len(f) != len(self.names) for f in alone) else (None, 0)
        return None, 0

    def _split(self, line: str) -> list[str]:
        """Return the fields of a line: by the rule, or with quotation marks as plain characters, or by csv's lenient
        parser; the first of these that gives as many fields as the first line has."""
        plain = line.rstrip("\r\n").split(self._separator)
        tries = (self._parse(line), plain, self._parse(line, strict=False))
        return next((fields for fields in tries if fields and len(fields) == len(self.names)), tries[0] or plain)

    def _to_row(self, fields: list[str], number: int) -> dict[str, Any]:
        while len(fields) > len(self.names) and not fields[-1]:  # a separator at the end of the line
            fields = fields[:-1]
        if len(fields) > len(self.names):
            problem = f"bad_row: line {number} has {len(fields)} fields, but the first line has {len(self.names)}"
            return {**dict.fromkeys(self.names), ERROR: problem}
        missing = [None] * (len(self.names) - len(fields))
        return dict(zip(self.names, [*(value or None for value in fields), *missing], strict=True))  # "" is a null


def _read_json(file: Path) -> Iterator[dict[str, Any]]:
    with _open(file) as lines:
        first = next((line for line in lines if line.strip()), "")
        if first.lstrip().startswith("["):  # one list of objects, as pandas writes it
            text = first + lines.read()
            try:
                values = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{file.name} is not JSON: {error}") from error
            yield from (_to_object(value) for value in values)
            return
        for line in chain([first], lines):
            if not line.strip():
                continue
            try:
                yield _to_object(json.loads(line))
            except (ValueError, RecursionError) as error:
                yield {ERROR: f"bad_row: {error}"}


def _to_object(row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        return {ERROR: f"bad_row: it is a {type(row).__name__}, not an object"}
    return {name: _flat(value) for name, value in row.items()}


def _flat(value: Any) -> Any:
    """Return a value that a column can hold: for a list of texts the first that is not blank (COCO has five captions
    per picture), for a picture its path, for other nested values their JSON."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return next((item for item in value if item.strip()), value[0])
    if isinstance(value, dict) and isinstance(value.get("path"), str) and set(value) <= set(_PICTURE):
        return value["path"]
    return json.dumps(value) if isinstance(value, (dict, list)) else value


def _kind(value: Any, is_csv: bool) -> str:
    """Return the pandas type that holds a value; "" if any does."""
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
