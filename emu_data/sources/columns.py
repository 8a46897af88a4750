"""Reads columns of foreign parquets as texts and pictures, whatever their Arrow type."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from emu_data.texts import clean

PICTURE_FIELDS = ("bytes", "path")  # of an image column as `datasets` writes it


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type is text, without conversion."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def holds_pictures(kind: pa.DataType) -> bool:
    """Whether a column of this type holds files' bytes: binary, or a struct of `bytes` and `path` as in `datasets`."""
    if pa.types.is_struct(kind):
        return {field.name for field in kind} >= set(PICTURE_FIELDS)
    return _is_binary(kind)


def read_texts(column: pa.ChunkedArray, name: str, of_any: bool = False) -> tuple[list[str | None], dict[int, str]]:
    """Return the texts of a column, and row -> detail for those with a problem.

    Accepts text, dictionaries and binaries of text, lists (the first text that is not blank, since COCO has five
    captions per picture), columns of nulls, and with `of_any` numbers and dates. Bytes that are not UTF-8 become
    \\\\xNN, half a surrogate pair or NUL becomes a replacement character. Raises ValueError for any other type.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return read_texts(column.cast(kind.value_type), name, of_any)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _decode([_first(values) for values in column.to_pylist()], name)
    # a parquet's text need not be UTF-8: Arrow trusts the type that the file declares
    if is_text(kind) or pa.types.is_string_view(kind):
        return _decode(column.cast(pa.large_binary()).to_pylist(), name)
    if _is_binary(kind) or pa.types.is_null(kind):
        return _decode(column.to_pylist(), name)
    is_plain = not pa.types.is_nested(kind)
    if of_any and is_plain:
        return [_write(value) for value in column.to_pylist()], {}
    raise ValueError(f"column {name!r} holds {kind}, not text")


def set_texts(table: pa.Table, name: str, texts: list[str | None]) -> pa.Table:
    """Return the table with a column replaced by texts."""
    return table.set_column(table.column_names.index(name), name, pa.array(texts, pa.string()))


def _is_binary(kind: pa.DataType) -> bool:
    tests: tuple[Callable[[pa.DataType], bool], ...] = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    )
    return any(test(kind) for test in tests)


def _decode(values: list[Any], name: str) -> tuple[list[str | None], dict[int, str]]:
    texts: list[str | None] = []
    problems: dict[int, str] = {}
    for row, value in enumerate(values):
        if not isinstance(value, bytes):
            texts.append(value)
            continue
        try:
            texts.append(value.decode("utf-8"))
        except UnicodeDecodeError as error:
            texts.append(value.decode("utf-8", "backslashreplace"))
            problems[row] = f"{name} is not UTF-8: {error}"
    return [clean(text) for text in texts], problems


def _first(values: list[Any] | None) -> str | bytes | None:
    return next((value for value in values or () if isinstance(value, (str, bytes)) and value.strip()), None)


def _write(value: Any) -> str | None:
    """Write a number as people do: pandas turns 7 into 7.0 if the column has nulls."""
    if isinstance(value, float):
        return None if value != value else str(int(value)) if value.is_integer() else str(value)
    return None if value is None else str(value)
