"""Colours are what a browser shows: the expectations are computed here from the standards' formulas."""

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emu_data.colour import DISPLAY_P3, SRGB, make_profile
from emu_data.samples import DecodeError, decode_rgb
from tests.shards import encode

D65, D50 = (0.3127, 0.3290), (0.3457, 0.3585)
ADOBE = (*D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)  # Adobe RGB (1998), with gamma 563 / 256
PROPHOTO = (*D50, 0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001)  # ISO 22028-2, here with gamma 1.8 throughout
SPACES = {"Display P3": (DISPLAY_P3, None), "Adobe RGB": (ADOBE, 563 / 256), "ProPhoto": (PROPHOTO, 1.8)}
FORMATS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 98, "subsampling": 0},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "AVIF": {"quality": 98, "subsampling": "4:4:4"},
    "HEIF": {"quality": 98, "chroma": 444},
}
pytest.importorskip("pillow_heif").register_heif_opener()


def to_light(value: np.ndarray) -> np.ndarray:
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def to_xyz(chromaticities: tuple[float, ...]) -> np.ndarray:
    """Convert light of a space's primaries to XYZ, adapted to D50 (Lindbloom's formulas)."""
    x, y = np.array(chromaticities).reshape(4, 2).T
    xyz = np.stack([x / y, np.ones(4), (1 - x - y) / y])
    matrix = xyz[:, 1:] * np.linalg.solve(xyz[:, 1:], xyz[:, 0])
    cone = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    scale = (cone @ (0.9642, 1, 0.8249)) / (cone @ xyz[:, 0])
    return np.linalg.inv(cone) @ np.diag(scale) @ cone @ matrix


def photograph() -> np.ndarray:
    """Return sRGB, uint8 (48, 64, 3): smooth, and inside every space."""
    rng = np.random.default_rng(3)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    return np.asarray(small.resize((64, 48), Image.Resampling.BICUBIC))


def stored(shown: np.ndarray, chromaticities: tuple[float, ...], gamma: float | None) -> Image.Image:
    """Return the same colours in the numbers of another space."""
    light = to_light(shown / 255) @ to_xyz(SRGB).T @ np.linalg.inv(to_xyz(chromaticities)).T
    light = np.clip(light, 0, 1)
    srgb = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return Image.fromarray(np.round(255 * (srgb if gamma is None else light ** (1 / gamma))).astype(np.uint8))


def error_of(data: bytes, shown: np.ndarray) -> float:
    return float(np.abs(np.asarray(decode_rgb(data)).astype(int) - shown).mean())


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("format_name", FORMATS)
def test_one_photograph_in_four_spaces_is_the_same_photograph(name: str, format_name: str) -> None:
    shown, options = photograph(), FORMATS[format_name]
    image = stored(shown, *SPACES[name])
    limit = 2.5 if format_name in ("AVIF", "HEIF") else 2  # in a wide space the encoder's errors are larger
    assert error_of(encode(image, format_name, icc_profile=make_profile(*SPACES[name]), **options), shown) < limit
    assert error_of(encode(image, format_name, **options), shown) > 5  # the numbers alone would be other colours
    plain = Image.fromarray(shown)
    tagged = encode(plain, format_name, icc_profile=make_profile(SRGB), **options)
    assert np.array_equal(np.asarray(decode_rgb(tagged)), np.asarray(decode_rgb(encode(plain, format_name, **options))))


@pytest.mark.parametrize("name", SPACES)
def test_transparency_and_palettes_keep_their_colours(name: str) -> None:
    shown, profile = photograph(), make_profile(*SPACES[name])
    image = stored(shown, *SPACES[name])
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1)))
    on_white = Image.composite(Image.fromarray(shown), Image.new("RGB", image.size, "white"), alpha)
    image.putalpha(alpha)
    assert error_of(encode(image, "PNG", icc_profile=profile), np.asarray(on_white)) < 2
    few = Image.new("P", (4, 1))
    few.putpalette([value for x in (3, 20, 40, 60) for value in image.convert("RGB").getpixel((x, 24))])  # type: ignore[union-attr]
    few.putdata(range(4))
    data = encode(few, "PNG", icc_profile=profile, transparency=3)
    decoded = np.asarray(decode_rgb(data)).astype(int)[0]
    assert np.abs(decoded[:3] - shown[24, [3, 20, 40]]).max() < 6 and (decoded[3] == 255).all()


def grey_profile(gamma: float) -> bytes:
    """Return a profile of greys: a white and a curve (ICC.1, monochrome input profile)."""
    tags = {
        b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061),
        b"kTRC": b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(gamma * 256)),
    }
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, tag in tags.items():
        table, body = table + struct.pack(">4sII", name, start + len(body), len(tag)), body + tag
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"lcms", 0x02400000, b"mntr", b"GRAY", b"XYZ ") + bytes(12)
    head += b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + body


@pytest.mark.parametrize("mode", ["L", "LA", "I;16", "1"])
def test_grey_pictures_have_profiles_too(mode: str) -> None:
    values = np.tile(np.linspace(0, 255, 256).astype(np.uint8), (4, 1))
    image = Image.fromarray(values.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(values).convert(mode)
    data = encode(image, "PNG", icc_profile=grey_profile(1.0))
    light = np.asarray(image.convert("L") if mode != "I;16" else values) / 255
    shown = 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(np.asarray(decode_rgb(data)) - shown[..., None]).max() < 2
    # greys in a space of colours, as JPEGs of some programs have, and colours with a profile of greys
    if mode == "L":
        grey = encode(image, "PNG", icc_profile=make_profile(SRGB, 1.0))
        assert np.abs(np.asarray(decode_rgb(grey)) - shown[..., None]).max() < 2
    colours = Image.fromarray(photograph())
    assert error_of(encode(colours, "PNG", icc_profile=grey_profile(1.0)), photograph()) == 0


@pytest.mark.parametrize(
    "broken", [b"none", make_profile(DISPLAY_P3)[:300], make_profile(DISPLAY_P3)[:127], bytes(600)]
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "I;16"])
def test_a_broken_profile_is_ignored(broken: bytes, mode: str) -> None:
    image = Image.fromarray(photograph()).convert("RGB" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257)
    with_profile, without = (decode_rgb(encode(image, "PNG", **named)) for named in ({"icc_profile": broken}, {}))
    assert np.array_equal(np.asarray(with_profile), np.asarray(without))


def with_chunks(image: Image.Image, **chunks: bytes) -> bytes:
    data, added = encode(image), b""
    for name, body in chunks.items():
        chunk = name.encode() + body
        added += struct.pack(">I", len(body)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return data[:33] + added + data[33:]  # after the signature and IHDR


def test_a_png_may_give_its_space_in_numbers() -> None:
    shown = photograph()
    numbers = {
        name: struct.pack(">8I", *(round(1e5 * value) for value in space)) for name, (space, _) in SPACES.items()
    }
    adobe = stored(shown, *SPACES["Adobe RGB"])
    gamma = struct.pack(">I", round(1e5 * 256 / 563))
    assert error_of(with_chunks(adobe, gAMA=gamma, cHRM=numbers["Adobe RGB"]), shown) < 2
    assert error_of(with_chunks(stored(shown, *SPACES["Display P3"]), cICP=bytes((12, 13, 0, 1))), shown) < 2
    light = stored(shown, SRGB, 1.0)
    assert error_of(with_chunks(light, gAMA=struct.pack(">I", 100_000)), shown) < 3  # few steps in the dark
    plain = Image.fromarray(shown)
    for chunks in (
        {"gAMA": gamma},
        {"gAMA": struct.pack(">I", 100_000), "sRGB": b"\0"},
        {"cHRM": numbers["ProPhoto"]},
        {"gAMA": gamma, "cHRM": bytes(32)},
        {"gAMA": bytes(4)},
    ):
        assert error_of(with_chunks(plain, **chunks), shown) == 0, chunks


def test_an_avif_may_give_its_space_by_code_points() -> None:
    shown = photograph()
    data = encode(stored(shown, *SPACES["Display P3"]), "AVIF", quality=98, subsampling="4:4:4")
    assert (place := data.find(b"colrnclx")) > 0
    marked = data[: place + 8] + b"\0\x0c\0\x0d" + data[place + 12 :]
    assert error_of(marked, shown) < 2 < error_of(data, shown)


def test_inks_are_not_guessed() -> None:
    image = Image.fromarray(photograph()).convert("CMYK")
    for options in ({}, {"icc_profile": make_profile(SRGB)}, {"icc_profile": b"none"}):
        with pytest.raises(DecodeError, match="CMYK") as caught:
            decode_rgb(encode(image, "JPEG", **options))
        assert caught.value.reason == "unsupported"


def test_cielab_has_its_own_space() -> None:
    lab = Image.frombytes(
        "LAB", (2, 1), bytes((255, 0, 0, 128, 0, 0))
    )  # white and a middle grey: L 100 and 50, a = b = 0
    decoded = np.asarray(decode_rgb(encode(lab, "TIFF"))).astype(int)
    assert np.abs(decoded[0] - [[255] * 3, [119] * 3]).max() <= 1
