"""The notes beside the pixels in a file: texts, thumbnails, XMP, EXIF, profiles. Removes them, and reads one kind that
Pillow does not read.

A note that is broken, or larger than a reader allows, does not make the picture worse. So if a reader fails, the
picture is tried again without its notes, as browsers ignore what they do not understand.
"""

import struct
from collections.abc import Iterator

_JPEG_START, _JPEG_SCAN = 0xD8, 0xDA
_JPEG_ADOBE = 0xEE  # APP14 is not a note: it says whether three colours are YCbCr, and whether four are inverted
_JPEG_EXIF, _JPEG_PROFILE = 0xE1, 0xE2
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"tRNS", b"acTL", b"fcTL", b"fdAT")  # not notes, although their first letter is lower case
_PNG_SHOWN = (b"iCCP", b"eXIf")

_BOXES_WITHIN = 64 * 1024  # bytes that hold the boxes of a HEIC or AVIF before its pixels; chosen here


def without_notes(data: bytes, keep_shown: bool) -> bytes:
    """Return a JPEG or PNG without its notes, any other file unchanged; other damage is not repaired.

    keep_shown: keep the notes that say how a picture is shown: its profile and its EXIF.
    """
    if data.startswith(b"\xff\xd8"):
        return _bare_jpeg(data, keep_shown)
    return _bare_png(data, keep_shown) if data.startswith(_PNG_START) else data


def read_code_points(data: bytes) -> tuple[int, int] | None:
    """Return the code points of ITU-T H.273 with which a PNG, a HEIC or an AVIF names its colours' primaries and curve;
    None if it has none.
    """
    if data.startswith(_PNG_START):
        for kind, start, end in _png_chunks(data):
            if kind == b"IDAT":  # the cICP chunk comes before the pixels
                return None
            if kind == b"cICP" and end - start >= 14:
                return data[start + 8], data[start + 9]
    elif data[4:8] == b"ftyp":
        place = data[:_BOXES_WITHIN].find(b"colrnclx")  # ISO/IEC 23008-12: a box that begins with two 16-bit numbers
        if 0 <= place <= len(data) - 12:
            primaries, curve = struct.unpack(">HH", data[place + 8 : place + 12])
            return primaries, curve
    return None


def _bare_jpeg(data: bytes, keep_shown: bool) -> bytes:
    kept, position = [data[:2]], 2
    while data[position : position + 1] == b"\xff" and position + 4 <= len(data):
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        if marker == _JPEG_SCAN:
            break
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        is_note = (0xE0 <= marker <= 0xEF and marker != _JPEG_ADOBE) or marker == 0xFE
        head = data[position + 4 : position + 20]
        is_shown = (marker == _JPEG_EXIF and head.startswith(b"Exif\0")) or (
            marker == _JPEG_PROFILE and head.startswith(b"ICC_PROFILE\0")
        )
        if not is_note or (is_shown and keep_shown):
            kept.append(data[position:end])
        position = end
    return b"".join([*kept, data[position:]])


def _bare_png(data: bytes, keep_shown: bool) -> bytes:
    kept = [_PNG_START]
    for kind, start, end in _png_chunks(data):
        is_note = bool(kind[:1].islower()) and kind not in _PNG_PIXELS
        if not is_note or (keep_shown and kind in _PNG_SHOWN):
            kept.append(data[start:end])
    return b"".join(kept)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start, end) of each chunk; its length, name and checksum are four bytes each."""
    position = len(_PNG_START)
    while position + 12 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        start, position = position, position + 12 + length
        yield data[start + 4 : start + 8], start, position
