"""One image-text pair: its key, its columns, and how its bytes become pixels.

The columns are img2dataset's, so that its corpora can be read unchanged: `sha256` is of the bytes as downloaded,
`key` has five digits for the shard and four for the row in it, and a failed download has a row but no picture.
"""

import io
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

import numpy as np
from PIL import ExifTags, Image

from emu_data.colour import BROKEN, DISPLAY_P3, SRGB, lab_profile, make_profile, to_srgb
from emu_data.formats import Format, recognise
from emu_data.jxl import JxlHead
from emu_data.jxl import read_head as read_jxl_head
from emu_data.notes import read_code_points, without_notes
from emu_data.texts import describe_error

# img2dataset's columns after the input columns, in its order.
RAW_COLUMNS = (
    "url",
    "caption",
    "key",
    "status",
    "error_message",
    "width",
    "height",
    "original_width",
    "original_height",
    "exif",
    "sha256",
)
NEEDED_COLUMNS = ("key", "caption", "status")  # without these, a parquet's rows cannot be used
# Usual names of a caption, in tables and in the .json of a tar, in the order in which they are tried.
CAPTION_NAMES = ("caption", "text", "top_caption", "alt_text", "prompt")
STATUS_SUCCESS = "success"
STATUS_FAILED = "failed_to_download"
STATUS_QUARANTINED = "quarantined"  # rejected when the corpus was registered; error_message is "reason: detail"
STATUS_UNLISTED = "unlisted"  # found in a tar when it was measured, without a row in the parquet

NUM_SHARD_DIGITS = 5
NUM_INDEX_DIGITS = 4

# A picture with more pixels is refused before it is decoded. Pillow warns of a decompression bomb at 89 million; a 4k
# photograph has 8 million, the largest pictures of LAION-5B that img2dataset keeps by default under 50. Chosen here.
MAX_PIXELS = 64_000_000

# Increase it when the same bytes decode to other pixels, another size or another reason: it is part of the names under
# which values and encodings of pixels are kept.
DECODING = 2

# EXIF's orientation (Exif 3.0, 4.6.5.1.6) -> how a picture is turned for display.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPING = {_TURNS[number] for number in (5, 6, 7, 8)}

_DISPLAY_P3_POINTS = (12, 13)  # ITU-T H.273: Display P3's primaries, and the curve of sRGB
# A PNG with a gamma this near to 1 / 2.2, and without chromaticities, is sRGB, as in Chromium (tried: 0.45 to 0.46).
_SRGB_GAMMA = 0.01

_TIFF_SUBFILE = 254  # the tag NewSubfileType (TIFF 6.0)
_TIFF_BESIDE = 0b101  # its bits for a preview and a mask


@dataclass(frozen=True)
class Sample:
    """A pair as it is in a shard. image: the file's bytes, unchanged; meta: its row, or its .json in a tar."""

    key: str
    image: bytes
    caption: str
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleError:
    """A sample that could not be read: its key (bodies.TAR_KEY for a whole tar), a one-word reason, and the detail."""

    key: str
    reason: str
    detail: str


class DecodeError(ValueError):
    """The bytes are not a picture that we accept; `reason` is a word for the ledger, the message gives the detail."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def make_key(shard: int, index: int) -> str:
    """Return the key of row `index` (0..9999) of shard `shard` (0..99999), nine digits."""
    assert 0 <= shard < 10**NUM_SHARD_DIGITS and 0 <= index < 10**NUM_INDEX_DIGITS, (shard, index)
    return f"{shard:0{NUM_SHARD_DIGITS}d}{index:0{NUM_INDEX_DIGITS}d}"


def read_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) in px as the picture is shown, from its header. Raises DecodeError if it is unreadable."""
    return _despite_notes(data, _read_size)


def image_extension(data: bytes) -> str:
    """Return the file name extension (no dot) that fits the bytes. Raises DecodeError if that format is not read."""
    return _format_of(data).extensions[0]


def published(data: bytes) -> bytes:
    """Return the bytes for data/filtered and data/curated: the original ones, or a PNG of the pixels as they are shown
    (see formats.Format.kept). Raises DecodeError if the picture cannot be decoded.
    """
    if _format_of(data).kept:
        return data
    buffer = io.BytesIO()
    decode_rgb(data).save(buffer, "PNG", compress_level=1)  # half the time of Pillow's default 6, and 10 % larger
    return buffer.getvalue()


def decode_rgb(data: bytes, max_pixels: int = MAX_PIXELS, side: int | None = None) -> Image.Image:
    """Decode to 8-bit sRGB as a browser shows it on white: colours are converted by the embedded profile, transparency
    is composited on white, 16-bit grey is scaled (Pillow's own conversion clips it to white), palettes are converted,
    and EXIF's orientation is applied. Broken EXIF, XMP or profiles are ignored.

    side: px; the picture is halved as long as its long side keeps that much: JPEGs while they are decoded (Pillow's
    `draft`, which spares half of the time and more), others by means of boxes.

    Raises DecodeError with `reason` too_large (more than `max_pixels`, according to the header), animated (more than
    one frame or page: it is unknown which one the caption describes), unsupported (a format that is not read, floating
    point, CMYK without a usable profile) or corrupt (anything else).
    """
    return _despite_notes(data, lambda data: _decode(data, max_pixels, side))


Read = TypeVar("Read")


def _despite_notes(data: bytes, read: Callable[[bytes], Read]) -> Read:
    """Return `read(data)` or, if the bytes are corrupt, the same of the bytes without notes (notes.py)."""
    with warnings.catch_warnings():
        # Pillow's warnings of bombs (we check max_pixels ourselves) and of odd tags: only whether it decodes matters.
        warnings.simplefilter("ignore")
        try:
            return read(data)
        except DecodeError as error:
            for keep_shown in (True, False) if error.reason == "corrupt" else ():
                bare = without_notes(data, keep_shown)
                if bare != data:
                    with suppress(DecodeError):
                        return read(bare)
            raise


def _read_size(data: bytes) -> tuple[int, int]:
    known = _format_of(data)
    if known.name == "JPEG XL":
        return _jxl_head(data).size
    image = _open(data, known)
    width, height = image.size
    return (height, width) if _turn(image, known) in _SWAPPING else (width, height)


def _decode(data: bytes, max_pixels: int, side: int | None) -> Image.Image:
    known = _format_of(data)
    if known.name == "JPEG XL":  # its reader decodes on opening
        head = _jxl_head(data)
        _check_pixels(head.size, max_pixels)
        if head.is_animation:
            raise DecodeError("animated", "it is an animation")
    image = _open(data, known)
    _check_pixels(image.size, max_pixels)
    try:
        num_frames = getattr(image, "n_frames", 1)
        if known.frames == "animation" and num_frames > 1:
            raise DecodeError("animated", f"it has {num_frames} frames")
        factor = 1 if side is None else _times_too_large(image.size, side)
        factor //= _draft(image, factor)
        image.load()
        turn = _turn(image, known)
        image = _to_rgb(image, _profile_of(image, data))
        if factor > 1:
            image = image.reduce(factor)
        return image if turn is None else image.transpose(turn)
    except DecodeError:
        raise
    except Exception as error:  # decoders raise anything on broken bytes: SyntaxError, struct.error, …
        raise _corrupt(known, error) from error


def _times_too_large(size: tuple[int, int], side: int) -> int:
    """Return the largest power of two by which a picture can be divided so that its long side keeps `side` px."""
    return 1 << max(0, (max(size) // side).bit_length() - 1)


def _draft(image: Any, factor: int) -> int:
    """Let the decoder of an opened picture halve it, if it can, up to `factor`; return the factor that it will give."""
    width, height = image.size
    drafted = image.draft(None, (max(1, width // factor), max(1, height // factor))) if factor > 1 else None
    return round(width / drafted[1][2]) if drafted else 1  # the box in px of what it will give: (0, 0, width, height)


def _format_of(data: bytes) -> Format:
    """Return the format that the bytes have. Raises DecodeError if it is unknown or not read."""
    if not data:
        raise DecodeError("corrupt", "the file is empty")
    known = recognise(data)
    if known is None:
        raise DecodeError("corrupt", f"cannot identify the picture: its first bytes are {data[:16]!r}")
    if not known.reader:
        raise DecodeError("unsupported", f"{known.name} is not read; save the picture as PNG or JPEG")
    return known


def _open(data: bytes, known: Format) -> Image.Image:
    try:
        image = known.open()(io.BytesIO(data))
        if known.frames == "pages":
            _seek_main_page(image)
        return image
    except DecodeError:
        raise
    except ImportError as error:
        raise DecodeError("unsupported", f"{known.name} needs the package {known.package or error.name}") from error
    except Exception as error:
        raise _corrupt(known, error) from error


def _corrupt(known: Format, error: Exception) -> DecodeError:
    if isinstance(error, Image.DecompressionBombError):  # raised by Pillow for a picture within a picture
        return DecodeError("too_large", str(error))
    return DecodeError("corrupt", f"{known.name}: {describe_error(error)}")


def _jxl_head(data: bytes) -> JxlHead:
    try:
        return read_jxl_head(data)
    except ValueError as error:
        raise DecodeError("corrupt", str(error)) from error


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise DecodeError("too_large", f"it has {width} x {height} pixels, more than {max_pixels}")


def _seek_main_page(image: Any) -> None:
    """Go to the page of a TIFF that is its picture: the only one that is not marked as a preview or a mask, or whose
    longest side is more than twice that of the others (which are then unmarked thumbnails). Raises DecodeError if there
    is no such page.
    """
    sides: dict[int, int] = {}
    for page in count():
        try:
            image.seek(page)
        except Exception:  # there are no more pages (EOFError), or one beside the picture is cut off
            break
        if not image.tag_v2.get(_TIFF_SUBFILE, 0) & _TIFF_BESIDE:
            sides[page] = max(image.size)
    if not sides:
        raise DecodeError("unsupported", "all pages of the TIFF are previews or masks, as in cameras' raw files")
    main = max(sides, key=lambda page: sides[page])
    num_others = sum(2 * side >= sides[main] for page, side in sides.items() if page != main)
    if num_others:
        raise DecodeError("animated", f"it has {num_others + 1} pages of similar size")
    image.seek(main)


def _turn(image: Image.Image, known: Format) -> Image.Transpose | None:
    """Return how EXIF says that the picture must be turned for display; None if it does not, or is broken."""
    exif = image.info.get("exif")
    if known.is_turned or not isinstance(exif, bytes):
        return None
    try:
        notes = Image.Exif()
        notes.load(exif)
        return _TURNS.get(notes[ExifTags.Base.Orientation])
    except Exception:  # there is no orientation (KeyError), or EXIF is broken, which can raise anything
        return None


def _profile_of(image: Image.Image, data: bytes) -> bytes:
    """Return the embedded profile, or one made from the numbers that replace it; b"" if the colours are sRGB."""
    profile = image.info.get("icc_profile")
    if isinstance(profile, bytes) and profile:
        return profile
    if read_code_points(data) == _DISPLAY_P3_POINTS:
        return make_profile(DISPLAY_P3)
    gamma, chromaticities = image.info.get("gamma"), image.info.get("chromaticity")  # PNG's gAMA and cHRM
    if not gamma or "srgb" in image.info or (not chromaticities and abs(gamma - 1 / 2.2) < _SRGB_GAMMA):
        return b""
    with suppress(ValueError):
        return make_profile(chromaticities or SRGB, 1 / gamma)
    return b""


def _to_rgb(image: Image.Image, profile: bytes) -> Image.Image:
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DecodeError("unsupported", f"it has {image.mode} values outside 0..65535")
        # 65535 / 255 = 257 maps 16 bits exactly to 8.
        image = Image.fromarray(np.round(values / 257).astype(np.uint8))
    if image.mode == "F":
        raise DecodeError("unsupported", "floating-point pixels have no agreed range")
    if image.mode == "LAB":
        profile = profile or lab_profile()
    elif image.mode in ("PA", "RGBa", "La") or (image.mode != "LA" and "transparency" in image.info):
        image = image.convert("RGBA")
    elif image.mode in ("1", "P", "YCbCr", "HSV", "RGBX"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if image.mode in ("CMYK", "LAB") or profile:
        image = _by_profile(image, profile)
    if image.mode in ("RGBA", "LA"):
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return image.convert("RGB")


def _by_profile(image: Image.Image, profile: bytes) -> Image.Image:
    if image.mode == "CMYK" and not profile:
        # Pillow's own conversion does not model inks, and its colours are garish.
        raise DecodeError("unsupported", "CMYK without a colour profile: the colours of its inks are unknown")
    try:
        return to_srgb(image, profile)
    except BROKEN as error:
        if image.mode in ("CMYK", "LAB"):
            raise DecodeError("unsupported", f"{image.mode} with a broken colour profile: {error}") from error
        return image
