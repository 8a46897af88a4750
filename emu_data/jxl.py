"""Reads the header of a JPEG XL file (ISO/IEC 18181-1, SizeHeader and ImageMetadata; 18181-2 for the boxes around it).

Pillow's plugin must decode a picture to learn its size. Reading the size here first lets us refuse a decompression bomb
before anything is decoded, and register a corpus at the cost of a few bytes per picture.
"""

from dataclasses import dataclass

_CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
_CODESTREAM = b"\xff\x0a"
_SIZE_BITS = (9, 13, 18, 30)
# Width / height for the ratio codes 1 to 7, with which a file stores only its height.
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


@dataclass(frozen=True)
class JxlHead:
    """What the header says. size: (width, height) in px, as the picture is shown. is_animation: even if the animation
    has a single frame."""

    size: tuple[int, int]
    is_animation: bool


def read_head(data: bytes) -> JxlHead:
    """Read the header of a JPEG XL file from its first bytes. Raises ValueError if it is broken or not in `data`."""
    bits = _Bits(_find_codestream(data))
    width, height = _read_size(bits)
    is_animation = False
    if not bits.read(1) and bits.read(1):  # not all_default, and extra_fields
        if bits.read(3) >= 4:  # orientation - 1; from orientation 5 on the sides are swapped, as in EXIF
            width, height = height, width
        if bits.read(1):
            _read_size(bits)  # the intrinsic size, at which it should be shown
        has_preview = bits.read(1)
        is_animation = not has_preview and bits.read(1) == 1  # a preview's size would come first; no known file has one
    return JxlHead((width, height), is_animation)


class _Bits:
    """Reads numbers from a string of bits, the lowest bit of each byte first."""

    def __init__(self, data: bytes):
        self._value = int.from_bytes(data[:64], "little")  # the header is far shorter
        self._left = 8 * min(len(data), 64)

    def read(self, num_bits: int) -> int:
        if num_bits > self._left:
            raise ValueError("the header of the JPEG XL file is cut off")
        value = self._value & ((1 << num_bits) - 1)
        self._value >>= num_bits
        self._left -= num_bits
        return value


def _read_size(bits: _Bits) -> tuple[int, int]:
    is_small = bits.read(1)

    def read_side() -> int:
        return 8 * (bits.read(5) + 1) if is_small else bits.read(_SIZE_BITS[bits.read(2)]) + 1

    height = read_side()
    ratio = bits.read(3)
    if not ratio:
        return read_side(), height
    numerator, denominator = _RATIOS[ratio - 1]
    return height * numerator // denominator, height


def _find_codestream(data: bytes) -> bytes:
    """Return the bytes from the start of the codestream, after any boxes before it."""
    position = len(_CONTAINER) if data.startswith(_CONTAINER) else 0
    while position and position + 8 <= len(data):
        size, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        start = position + 8
        if size == 1:  # a 64-bit size follows
            size, start = int.from_bytes(data[start : start + 8], "big"), start + 8
        if kind in (b"jxlc", b"jxlp"):
            position, data = 0, data[start + (4 if kind == b"jxlp" else 0) :]  # jxlp: after the part's number
        elif size < 8:
            break
        else:
            position += size
    if position or not data.startswith(_CODESTREAM):
        raise ValueError("the JPEG XL file has no codestream, or it starts too late")
    return data[len(_CODESTREAM) :]
