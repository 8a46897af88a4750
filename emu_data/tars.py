"""The samples of a tar, read in one pass from a local file or a stream, and never extracted to a member's path.

Only what img2dataset and webdataset write is taken: ustar headers, pax headers (webdataset stores fractional times, so
every member has one) and GNU's long names. Members that follow each other under one key are a sample. `tarfile` reads
the same at two to three times the cost, and takes a file that is cut between two members for whole.
"""

import posixpath
from collections.abc import Container, Iterator
from typing import IO

BLOCK = 512  # bytes; headers and contents are padded to it (POSIX ustar)

# A file larger than this is refused unread: 64 million pixels (records.MAX_PIXELS) of four bytes. Chosen here.
MAX_FILE_BYTES = 256 * 1024 * 1024

_MAX_CHUNK = 1024 * 1024  # bytes that are passed over at once in a stream; chosen here
_MAX_HEADER_BYTES = 1024 * 1024  # of pax records and long names, which are some hundred bytes; chosen here
_REGULAR, _PAX, _GNU_LONG_NAME = (b"0", b"\0", b"7"), b"x", b"L"


class TarDamage(ValueError):
    """The tar cannot be read on from here; `reason` is `truncated` or `unreadable`."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class Group:
    """Members that share a key: extension (lower case) -> bytes, and what is wrong with one of them."""

    def __init__(self, key: str):
        self.key = key
        self.parts: dict[str, bytes] = {}
        self.problem: tuple[str, str] | None = None  # reason, detail


def read_groups(file: IO[bytes], seekable: bool, wanted: Container[str] | None = None) -> Iterator[Group]:
    """Yield the tar's samples in its order; those not `wanted` come without their parts, unread where `seekable`.

    Raises TarDamage where the tar ends too early (what was yielded before is whole) or is no tar.
    """
    reader = _Reader(file, seekable)
    group: Group | None = None
    for name, size in _read_members(reader):
        path = posixpath.normpath(name)
        key, _, extension = posixpath.basename(path).partition(".")
        extension = extension.lower()
        if group is None or key != group.key or extension in group.parts:  # a twin may follow at once
            if group is not None:
                yield group
            group = Group(key)
        if path.startswith(("/", "../")) or path == "..":
            group.problem = ("bad_path", f"member {name!r} points out of the tar")
        elif wanted is not None and key not in wanted:
            continue
        elif size > MAX_FILE_BYTES:
            group.problem = ("too_large", f"member {name!r} has {size} bytes, more than {MAX_FILE_BYTES}")
        else:
            group.parts[extension] = reader.read(size)
    if group is not None:
        yield group


class _Reader:
    """A file that is read forwards; what is passed over is not read where the file can seek."""

    def __init__(self, file: IO[bytes], seekable: bool):
        self._file = file
        self._seekable = seekable
        self.position = 0

    def read(self, size: int) -> bytes:
        """Return exactly `size` bytes. Raises TarDamage where there are fewer."""
        data = self._file.read(size)
        while len(data) < size and (more := self._file.read(size - len(data))):  # a stream may give less than asked
            data += more
        if len(data) < size:
            reason = "truncated" if self.position or data else "unreadable"
            raise TarDamage(reason, f"the tar ends at byte {self.position + len(data)}, within a sample or without end")
        self.position += size
        return data

    def skip_to(self, position: int) -> None:
        if self._seekable:
            self._file.seek(position)
            self.position = position
        while self.position < position:
            self.read(min(position - self.position, _MAX_CHUNK))


def _read_members(reader: _Reader) -> Iterator[tuple[str, int]]:
    """Yield (name, bytes) of each regular file, while `reader` stands at its first byte."""
    name_before, size_before = None, None  # told by a header that stands before the member's own
    while True:
        start = reader.position
        header = reader.read(BLOCK)
        if header == bytes(BLOCK):  # a whole tar ends in two such blocks
            return
        name, size, kind = _parse_header(header, start)
        if kind in (_PAX, _GNU_LONG_NAME):
            if size > _MAX_HEADER_BYTES:
                raise TarDamage("truncated", f"the header at byte {start} claims {size} bytes for a name")
            data = reader.read(size)
            if kind == _GNU_LONG_NAME:
                name_before = _text(data)
            else:
                records = _parse_pax(data, start)
                name_before, size_before = records.get("path", name_before), records.get("size", size_before)
        else:
            size = size if size_before is None else _number(size_before, start)
            if kind in _REGULAR:
                yield name_before or name, size
            name_before, size_before = None, None
        reader.skip_to(start + BLOCK + -(-size // BLOCK) * BLOCK)


def _parse_header(header: bytes, start: int) -> tuple[str, int, bytes]:
    """Return (name, bytes of content, kind). Raises TarDamage where the checksum is not that of a header."""
    checksum = sum(header) - sum(header[148:156]) + 8 * ord(" ")  # of the header with its own field as spaces
    try:
        stored = int(header[148:156].strip(b" \0") or b"0", 8)
    except ValueError:
        stored = -1
    if stored != checksum:
        raise TarDamage("truncated" if start else "unreadable", f"no tar header at byte {start}")
    field = header[124:136]
    # Sizes beyond octal's 8 GiB are big-endian binary, marked by the first bit (GNU, star).
    size = int.from_bytes(field[1:], "big") if field[0] & 0x80 else _number(_text(field).strip() or "0", start, base=8)
    name, prefix = _text(header[:100]), _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name, size, header[156:157]


def _parse_pax(data: bytes, start: int) -> dict[str, str]:
    """Return the records of a pax header: "LENGTH KEY=VALUE\\n", LENGTH counting the whole record."""
    records: dict[str, str] = {}
    while data:
        length, _, rest = data.partition(b" ")
        size = _number(_text(length), start)
        key, _, value = rest[: size - len(length) - 2].partition(b"=")
        if size <= len(length) + 1:
            raise TarDamage("truncated", f"the pax header at byte {start} is broken")
        records[_text(key)] = _text(value)
        data = data[size:]
    return records


def _number(text: str, start: int, base: int = 10) -> int:
    try:
        value = int(text, base)
    except ValueError:
        value = -1
    if value < 0:
        raise TarDamage("truncated", f"the header at byte {start} holds no number where one must be: {text!r}")
    return value


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "backslashreplace")
