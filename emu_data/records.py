"""One image-text pair, its key, its columns, and how its bytes become pixels.

Columns are img2dataset's, so that corpora written by it are read as they are: `sha256` is of the bytes that
arrived, `key` is five digits of shard and four of the row within it, failed rows have a row but no picture.
"""

import io
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

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
NEEDED_COLUMNS = ("key", "caption", "status")  # what rows cannot be read without
STATUS_SUCCESS = "success"
STATUS_FAILED = "failed_to_download"
STATUS_QUARANTINED = "quarantined"  # turned away when the corpus was registered; error_message is "reason: detail"
STATUS_UNLISTED = "unlisted"  # found in a tar when it was measured, with no row of its own in the parquet

NUM_SHARD_DIGITS = 5
NUM_INDEX_DIGITS = 4

# A picture of more pixels than this is refused before it is decoded. Pillow warns of a bomb at 89 million; a
# 4k photograph has 8, the largest of LAION-5B's that img2dataset keeps by default fewer than 50. Chosen here.
MAX_PIXELS = 64_000_000

_EXTENSION_BY_FORMAT = {
    "PNG": "png",
    "JPEG": "jpg",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
}
IMAGE_EXTENSIONS = (*_EXTENSION_BY_FORMAT.values(), "jpeg", "tiff")


@dataclass(frozen=True)
class Sample:
    """A pair as it lies in a shard: the picture's bytes untouched, its caption, and its row as a dict."""

    key: str
    image: bytes
    caption: str
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordError:
    """What could not be read: the key (bodies.TAR_KEY for a whole tar), a short reason, and the detail."""

    key: str
    reason: str
    detail: str


class DecodeError(ValueError):
    """The bytes are no picture that we take; `reason` is a word for the ledger, the message says more."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def make_key(shard: int, index: int) -> str:
    """Return the key of row `index` (0..9999) of shard `shard` (0..99999), nine digits."""
    assert 0 <= shard < 10**NUM_SHARD_DIGITS and 0 <= index < 10**NUM_INDEX_DIGITS, (shard, index)
    return f"{shard:0{NUM_SHARD_DIGITS}d}{index:0{NUM_INDEX_DIGITS}d}"


def read_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) from the header alone. Raises DecodeError."""
    return _open(data).size


def image_extension(data: bytes) -> str:
    """Return the file name extension (no dot) that fits the bytes. Raises DecodeError."""
    format_name = _open(data).format or ""
    if format_name not in _EXTENSION_BY_FORMAT:
        raise DecodeError(
            "unsupported", f"format {format_name or 'unknown'} is not one of {list(_EXTENSION_BY_FORMAT)}"
        )
    return _EXTENSION_BY_FORMAT[format_name]


def decode_rgb(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode to 8-bit RGB: transparency laid on white, 16-bit grey scaled (Pillow's own conversion clips it
    to white), CMYK converted by the profile that it brings, palettes converted, EXIF rotation applied.

    Raises DecodeError with `reason` too_large (more than `max_pixels`, told from the header), animated (more than one
    frame: which one the caption means is unknown), unsupported (floating point, CMYK without a profile) or corrupt
    (anything else).
    """
    image = _open(data)
    width, height = image.size
    if width * height > max_pixels:
        raise DecodeError("too_large", f"{width} x {height} pixels, more than {max_pixels}")
    try:
        num_frames = getattr(image, "n_frames", 1)
        if num_frames > 1:
            raise DecodeError("animated", f"{num_frames} frames")
        image.load()
        image = ImageOps.exif_transpose(image)
        return _to_rgb(image)
    except DecodeError:
        raise
    except Exception as error:  # on broken bytes decoders raise anything: SyntaxError, struct.error, …
        raise DecodeError("corrupt", f"{type(error).__name__}: {error}") from error


def _open(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        # Of bombs (the limit is max_pixels, checked by us) and of odd tags: what matters is whether it decodes.
        warnings.simplefilter("ignore")
        try:
            return Image.open(io.BytesIO(data))
        except Image.DecompressionBombError as error:
            raise DecodeError("too_large", str(error)) from error
        except Exception as error:
            raise DecodeError("corrupt", f"{type(error).__name__}: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DecodeError("unsupported", f"{image.mode} values outside 0..65535")
        # 65535 / 255 = 257: the exact map of 16 bits to 8.
        return Image.fromarray(np.round(values / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DecodeError("unsupported", "floating-point pixels have no agreed range")
    if image.mode == "CMYK":
        # Pillow's own conversion knows no ink: it takes four channels for light, and colours come out garish.
        profile = image.info.get("icc_profile")
        if not profile:
            raise DecodeError("unsupported", "CMYK without a colour profile: what its inks look like is unknown")
        ink, light = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, ink, light, outputMode="RGB")
        assert converted is not None  # None is for inPlace
        return converted
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
