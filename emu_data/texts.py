"""Turns text from bytes, foreign JSON and exceptions into text that every file format can hold."""

import codecs
import re
from typing import Any

from emu_data.files import TEMPORARY_MARK

# UTF-32's mark begins with UTF-16's, so it is tried first.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")  # NUL ends a text in C; UTF-8 cannot hold half a surrogate pair
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_TEMPORARY = re.compile(rf"[^\s'\"]*{re.escape(TEMPORARY_MARK)}[^\s'\"/]*/")


def find_encoding(head: bytes) -> str:
    """Return the encoding of a text from its first four bytes: that of its byte-order mark, UTF-16 if every second byte
    is 0, otherwise UTF-8.
    """
    zeros = [byte == 0 for byte in head[:4]]
    by_zeros: dict[tuple[bool, ...], str] = {(False, True) * 2: "utf-16-le", (True, False) * 2: "utf-16-be"}
    shown = by_zeros.get(tuple(zeros), "utf-8")
    return next((encoding for mark, encoding in _MARKS if head.startswith(mark)), shown)


def decode_text(data: bytes) -> str:
    """Return text without its byte-order mark, decoded as `find_encoding` says. Raises UnicodeDecodeError if the bytes
    are not in that encoding.
    """
    return data.decode(find_encoding(data[:4]))


def clean(value: Any) -> Any:
    """Return a text, or a JSON value, with a replacement character for each NUL and half surrogate pair."""
    if isinstance(value, str):
        return _UNWRITABLE.sub(_REPLACEMENT, value)
    if isinstance(value, dict):
        return {clean(name): clean(item) for name, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, list) else value


def is_writable(text: str) -> bool:
    """Whether every file format can hold the text: it has no NUL and no half of a surrogate pair."""
    return _UNWRITABLE.search(text) is None


def describe_error(error: BaseException) -> str:
    """Return "Kind: message" on one line that is the same in each run: without memory addresses and names of temporary
    folders.
    """
    return f"{type(error).__name__}: {steady(str(error))}"


def steady(text: str) -> str:
    """Return a message on one line, without memory addresses and names of temporary folders."""
    return clean(" ".join(_TEMPORARY.sub("", _ADDRESS.sub("", text)).split()))
