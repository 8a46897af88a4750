"""Reads the samples of a tar in one pass, from a local file or a stream, without extracting to a member's path.

It reads what img2dataset, webdataset, GNU tar and macOS's tar write: ustar headers, pax headers (webdataset stores
fractional times, so every member has one) and GNU's long names. Folders and hidden files (macOS's ._NAME) are skipped.
Consecutive members with one key are a sample. `tarfile` takes two to three times as long, and does not notice that a
file was cut between two members.
"""

import posixpath
import re
from collections.abc import Container, Iterator
from typing import IO

BLOCK = 512  # bytes; headers and contents are padded to it (POSIX ustar)

# A larger member is refused without reading it: 64 million pixels (samples.MAX_PIXELS) of four bytes. Chosen here.
MAX_FILE_BYTES = 256 * 1024 * 1024

_MAX_CHUNK = 1024 * 1024  # bytes skipped at once in a stream; chosen here
_MAX_HEADER_BYTES = 1024 * 1024  # of pax records and long names, which usually have a few hundred; chosen here
_REGULAR, _PAX, _GNU_LONG_NAME = (b"0", b"\0", b"7"), b"x", b"L"
_LINKS = (b"1", b"2")  # hard links to an earlier member, symbolic links
_HEADERS = (b"g", b"K")  # headers that do not affect the next member's name: pax's global one, GNU's long links
_OWN = re.compile(r"__[^/]*__($|/)")  # names that webdataset reserves


class TarDamage(ValueError):
    """The tar cannot be read from here on; `reason` is `truncated` or `unreadable`."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class Group:
    """Members that share a key. parts: extension (lower case) -> bytes; problem: what is wrong with one of them. start:
    the byte of the tar at which the first of them begins, with its headers."""

    def __init__(self, key: str, start: int = 0):
        self.key = key
        self.start = start
        self.parts: dict[str, bytes] = {}
        self.problem: tuple[str, str] | None = None  # reason, detail


def read_groups(
    file: IO[bytes], seekable: bool, wanted: Container[str] | None = None, known: Container[str] = (), start: int = 0
) -> Iterator[Group]:
    """Yield the tar's samples in its order, from byte `start` on, the `start` of a group, to which `file` must be set.
    Samples that are not `wanted` have no parts and, if the file is `seekable`, are not read.

    A key is the member's path up to the first dot of its name, as in webdataset. But if `wanted` or, without it,
    `known` contains the path up to the last dot, or either path without its folder, that is the key. Raises TarDamage
    if the tar ends too early (samples yielded before are complete) or is not a tar.
    """
    reader = _Reader(file, seekable, start)
    group: Group | None = None
    for begin, name, size, is_link in _read_members(reader):
        path = posixpath.normpath(name)
        is_outside = path.startswith(("/", "../")) or path == ".."
        if not is_outside and (posixpath.basename(path).startswith(".") or _OWN.match(path)):
            continue
        key, extension = _split(posixpath.basename(path) if is_outside else path, known if wanted is None else wanted)
        if group is None or key != group.key or extension in group.parts:  # the next sample may repeat the key
            if group is not None:
                yield group
            group = Group(key, begin)
        if is_outside:
            group.problem = ("bad_path", f"member {name!r} leads out of the tar")
        elif wanted is not None and key not in wanted:
            continue
        elif is_link:
            group.problem = ("link", f"member {name!r} is a link to another file and has no bytes")
        elif size > MAX_FILE_BYTES:
            group.problem = ("too_large", f"member {name!r} has {size} bytes, more than {MAX_FILE_BYTES}")
        else:
            group.parts[extension] = reader.read(size)
    if group is not None:
        yield group


def _split(path: str, known: Container[str]) -> tuple[str, str]:
    """Return (key, the rest after the dot, in lower case)."""
    folder, _, name = path.rpartition("/")
    first, last = name.partition("."), name.rpartition(".")
    for key, _, extension in (last, first):
        for whole in (f"{folder}/{key}" if folder else key, key):
            if key and whole in known:
                return whole, extension.lower()
    return f"{folder}/{first[0]}" if folder else first[0], first[2].lower()


class _Reader:
    """Reads a file forwards; skipped parts are not read if the file can seek."""

    def __init__(self, file: IO[bytes], seekable: bool, position: int):
        self._file = file
        self._seekable = seekable
        self.position = position

    def read(self, size: int) -> bytes:
        """Return exactly `size` bytes. Raises TarDamage if there are fewer."""
        data = self._file.read(size)
        while len(data) < size and (more := self._file.read(size - len(data))):  # a stream may return fewer bytes
            data += more
        if len(data) < size:
            reason = "truncated" if self.position or data else "unreadable"
            raise TarDamage(reason, f"the tar breaks off at byte {self.position + len(data)}, without an end mark")
        self.position += size
        return data

    def skip_to(self, position: int) -> None:
        if self._seekable:
            self._file.seek(position)
            self.position = position
        while self.position < position:
            self.read(min(position - self.position, _MAX_CHUNK))


def _read_members(reader: _Reader) -> Iterator[tuple[int, str, int, bool]]:
    """Yield (where its headers begin, name, bytes, whether it is a link) of each file, while `reader` is at its first
    byte."""
    name_before, size_before = None, None  # from an extra header before the member's own
    begin: int | None = None
    while True:
        start = reader.position
        begin = start if begin is None else begin
        header = reader.read(BLOCK)
        if header == bytes(BLOCK):  # a complete tar ends with two such blocks
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
        elif kind not in _HEADERS:
            size = size if size_before is None else _number(size_before, start)
            name, is_link = name_before or name, kind in _LINKS
            size = 0 if is_link else size  # some writers store the size of the link's target
            if (kind in _REGULAR or is_link) and not name.endswith("/"):  # old tars mark folders by a final slash
                yield begin, name, size, is_link
            name_before, size_before, begin = None, None, None
        reader.skip_to(start + BLOCK + -(-size // BLOCK) * BLOCK)


def _parse_header(header: bytes, start: int) -> tuple[str, int, bytes]:
    """Return (name, bytes of content, kind). Raises TarDamage if the checksum is wrong."""
    checksum = sum(header) - sum(header[148:156]) + 8 * ord(" ")  # counts its own field as spaces
    try:
        stored = int(header[148:156].strip(b" \0") or b"0", 8)
    except ValueError:
        stored = -1
    # Some old writers sum signed bytes.
    if stored not in (checksum, checksum - 256 * sum(byte > 127 for byte in header[:148] + header[156:])):
        raise TarDamage("truncated" if start else "unreadable", f"no tar header at byte {start}")
    field = header[124:136]
    # Sizes that octal digits cannot hold (8 GiB or more) are big-endian binary, marked by the first bit (GNU, star).
    size = int.from_bytes(field[1:], "big") if field[0] & 0x80 else _number(_text(field).strip() or "0", start, base=8)
    name, prefix = _text(header[:100]), _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name, size, header[156:157]


def _parse_pax(data: bytes, start: int) -> dict[str, str]:
    """Return the records of a pax header: "LENGTH KEY=VALUE\\n", where LENGTH counts the whole record."""
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
        raise TarDamage("truncated", f"the header at byte {start} has {text!r} in the place of a number")
    return value


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "backslashreplace")
