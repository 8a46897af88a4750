"""Converts the colours of a picture to sRGB by its embedded profile, as browsers do, and makes profiles where a format
gives numbers instead.

The conversion is relative colorimetric with black point compensation (ISO 18619), Photoshop's default. For the
profiles of cameras and screens (three primaries and a curve) it is also what Chromium shows: black is black in both
spaces, so that compensation changes nothing. Compared with Chromium on 124 pictures (docs/log.md).
"""

import io
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

# A profile that changes none of the colours below by more than this, in levels of 255, is sRGB by another name: pixels
# are left as they are, which is exact and free. The test is skcms_ApproximatelyEqualProfiles of Chromium's skcms, whose
# tolerance is also one level.
TOLERANCE = 1
_LEVELS = np.linspace(0, 255, 9).astype(np.uint8)
_GREYS = np.arange(256, dtype=np.uint8)[None]
_PROBE = np.stack(np.meshgrid(_LEVELS, _LEVELS, _LEVELS), axis=-1).reshape(1, -1, 3)

_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}  # a profile's colour space -> Pillow's mode

Chromaticities = tuple[float, ...]  # CIE 1931 x and y of white, red, green and blue: eight numbers, as in PNG's cHRM

# ITU-T H.273, ColourPrimaries 1 and 12; white is D65 in both.
SRGB = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
DISPLAY_P3 = (0.3127, 0.3290, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)

_D50 = np.array([0.9642, 1.0, 0.8249])  # the white of profiles (ICC.1:2022, 7.2.16)
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])  # ICC.1, E.3

# Errors that a broken profile raises, in lcms or in Pillow.
BROKEN = (ImageCms.PyCMSError, OSError, ValueError, TypeError)


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Return a picture of mode RGB, RGBA, L, LA, CMYK or LAB in sRGB, as RGB, or RGBA if it has transparency.

    A profile for another colour space than the picture's is ignored, as browsers do, except that a grey picture may
    have an RGB profile. Raises one of BROKEN if the profile is broken, and ValueError if it does not fit a CMYK or
    CIELAB picture, which cannot be shown without one.
    """
    alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
    colours = image.convert(image.mode.removesuffix("A")) if alpha else image
    mode = _MODES.get(_colour_space(profile), "")
    if mode == "RGB" and colours.mode == "L":
        colours = colours.convert("RGB")
    if mode == colours.mode:
        way = _way_from(profile, mode)
        colours = colours if way is None else way(colours)
    elif colours.mode in ("CMYK", "LAB"):
        raise ValueError(f"its colours are {colours.mode}, but its profile is for other colours")
    colours = colours.convert("RGB")
    if alpha:
        colours.putalpha(alpha)
    return colours


@lru_cache(maxsize=32)
def make_profile(chromaticities: Chromaticities, gamma: float | None = None) -> bytes:
    """Return an ICC profile, version 2, with three primaries and one curve.

    gamma: light = value ** gamma, both 0..1; None for the curve of sRGB and Display P3 (IEC 61966-2-1). Raises
    ValueError if no light has these chromaticities.
    """
    x, y = np.array(chromaticities).reshape(4, 2).T
    if not (y > 0).all():
        raise ValueError(f"no colours have the chromaticities {chromaticities}")
    white, *primaries = np.stack([x / y, np.ones(4), (1 - x - y) / y], axis=-1)
    try:
        matrix = np.array(primaries).T
        matrix = matrix * np.linalg.solve(matrix, white)  # so that all three together are white
    except np.linalg.LinAlgError as error:
        raise ValueError(f"the primaries {chromaticities} are on one line") from error
    scale = (_BRADFORD @ _D50) / (_BRADFORD @ white)
    matrix = np.linalg.inv(_BRADFORD) @ (scale[:, None] * (_BRADFORD @ matrix))

    def numbers(kind: bytes, values: np.ndarray) -> bytes:  # s15Fixed16: 16 bits before the point, 16 after it
        return kind + bytes(4) + np.round(values * 65536).astype(">i4").tobytes()

    value = np.linspace(0, 1, 1024)
    srgb = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    light = np.round((srgb if gamma is None else value**gamma) * 65535).astype(">u2")
    curve = b"curv" + bytes(4) + len(light).to_bytes(4, "big") + light.tobytes()
    tags = {b"wtpt": numbers(b"XYZ ", _D50)}
    for place, colour in enumerate((b"r", b"g", b"b")):
        tags |= {colour + b"XYZ": numbers(b"XYZ ", matrix[:, place]), colour + b"TRC": curve}
    start = 128 + 4 + 12 * len(tags)
    table, body = len(tags).to_bytes(4, "big"), b""
    for name, tag in tags.items():
        table += name + (start + len(body)).to_bytes(4, "big") + len(tag).to_bytes(4, "big")
        body += tag
    head = (start + len(body)).to_bytes(4, "big") + b"lcms\2\x40\0\0mntrRGB XYZ " + bytes(12) + b"acsp"
    return (head.ljust(68, b"\0") + numbers(b"", _D50)[4:]).ljust(128, b"\0") + table + body


def lab_profile() -> bytes:
    """Return the profile of CIELAB itself (D50), for pictures that are stored in it."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def _colour_space(profile: bytes) -> str:
    """The four letters in a profile's header that name its colour space (ICC.1:2022, 7.2.8)."""
    return profile[16:20].decode("latin-1")


@lru_cache(maxsize=32)
def _way_from(profile: bytes, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """Return the conversion from a profile to sRGB, for pictures of its mode; None if it changes nothing."""

    def apply(image: Image.Image) -> Image.Image:
        shown = transform.apply(image)
        assert shown is not None
        return shown

    # There are only 256 greys, so a table is built without lcms's optimisation, which would be faster but puts a linear
    # profile off by up to 10 levels of 255 in the shadows.
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION | (ImageCms.Flags.NOOPTIMIZE if mode == "L" else 0)
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags,
    )
    if mode not in ("RGB", "L"):
        return apply
    probe = Image.fromarray(_GREYS if mode == "L" else _PROBE)
    shown = np.asarray(apply(probe))
    if np.abs(shown.astype(int) - np.asarray(probe.convert("RGB"))).max() <= TOLERANCE:
        return None
    if mode == "RGB":
        return apply
    tables = [channel.tolist() for channel in shown[0].T]
    return lambda image: Image.merge("RGB", [image.point(table) for table in tables])
