import io
import itertools
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from emu_data.samples import DecodeError, decode_rgb, image_extension, make_key, read_size
from tests.shards import encode


def gradient(side: int = 32) -> np.ndarray:
    return np.tile(np.linspace(0, 1, side), (side, 1))


def test_16_bit_grey_keeps_its_tones() -> None:
    data = encode(Image.fromarray((gradient() * 65535).astype(np.uint16)), "PNG")
    decoded = np.asarray(decode_rgb(data))[..., 0]
    assert np.abs(decoded - gradient() * 255).max() <= 1


def test_transparent_pixels_become_white() -> None:
    rgba = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    rgba.paste((255, 0, 0, 255), (0, 0, 4, 8))
    for image in (rgba, rgba.quantize(4)):
        decoded = np.asarray(decode_rgb(encode(image, "PNG")))
        assert (decoded[:, 4:] == 255).all()
        assert (decoded[:, :4] == (255, 0, 0)).all()


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGB", "LA"])
def test_every_usual_mode_becomes_rgb(mode: str) -> None:
    image = Image.fromarray((gradient() * 255).astype(np.uint8)).convert("RGB").convert(mode)
    decoded = decode_rgb(encode(image, "PNG"))
    assert decoded.mode == "RGB"
    assert decoded.size == (32, 32)
    assert np.asarray(decoded)[:, -1].mean() > np.asarray(decoded)[:, 0].mean()


def write_ink_profile() -> bytes:
    """Return an ICC profile (v2) of an imagined press: a table of 2 x 2 x 2 x 2 inks in CIELAB, 8 bits each."""
    table = bytearray()
    for inks in itertools.product((0, 1), repeat=4):
        cyan, magenta, yellow, black = inks
        lightness = 0 if black else 100 - 20 * (cyan + magenta + yellow)
        table += bytes((lightness * 255 // 100, 128 + 50 * magenta - 40 * cyan, 128 + 50 * yellow - 30 * cyan))
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    curve = bytes(range(256))
    tag = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity + curve * 4 + bytes(table) + curve * 3
    head = struct.pack(">4sI4s4s4s", b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab ") + bytes(12) + b"acsp"
    head = (head + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)).ljust(124, b"\0")
    tags = struct.pack(">I4sII", 1, b"A2B0", 144, len(tag))
    return struct.pack(">I", 144 + len(tag)) + head + tags + tag


def test_inks_become_colours_by_their_profile_and_are_refused_without_one() -> None:
    image = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 255, 0), (4, 0, 8, 8))
    data = encode(image, "JPEG", icc_profile=write_ink_profile(), quality=95)
    paper, yellow = (np.asarray(decode_rgb(data))[4, x].astype(int) for x in (1, 6))
    assert paper.min() > 245
    assert yellow[2] < 130 < yellow[0]
    assert yellow[0] < 240  # no light at full strength, as the plain conversion would give
    for broken in (encode(image, "JPEG"), encode(image, "JPEG", icc_profile=b"none")):
        with pytest.raises(DecodeError):
            decode_rgb(broken)


def test_rotation_by_exif_is_applied() -> None:
    exif = Image.Exif()
    exif[274] = 6  # orientation: rotate by a quarter turn
    data = encode(Image.new("RGB", (20, 10)), "JPEG", exif=exif)
    assert decode_rgb(data).size == (10, 20)


def test_bad_pictures_have_a_reason() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    cases = {
        "animated": encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "too_large": encode(Image.new("1", (4000, 4000)), "PNG"),
        "unsupported": encode(Image.fromarray(gradient().astype(np.float32)), "TIFF"),
        "corrupt": encode(noise, "JPEG")[:-500],
    }
    for reason, data in cases.items():
        with pytest.raises(DecodeError) as caught:
            decode_rgb(data, max_pixels=1_000_000)
        assert caught.value.reason == reason
    with pytest.raises(DecodeError, match="cannot identify the picture: its first bytes are"):
        decode_rgb(b"<html>404</html>")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_bytes_decode_or_raise_our_error(data: st.DataObject) -> None:
    format_name = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]))
    good = encode(Image.fromarray((gradient(16) * 255).astype(np.uint8)).convert("RGB"), format_name)
    cut = data.draw(st.integers(0, len(good)))
    broken = bytearray(good[:cut])
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4)):
        if place < len(broken):
            broken[place] = value
    try:
        assert decode_rgb(bytes(broken), max_pixels=1_000_000).mode == "RGB"
    except DecodeError as error:
        assert error.reason in {"corrupt", "too_large", "animated", "unsupported"}


def test_the_header_alone_gives_size_and_extension() -> None:
    data = encode(Image.new("RGB", (20, 10)), "JPEG")
    assert read_size(data) == (20, 10)
    assert image_extension(data) == "jpg"
    assert make_key(12, 34) == "000120034"


@pytest.mark.parametrize(("width", "height", "factor"), [(1100, 700, 2), (2200, 90, 4), (4500, 3001, 8), (9001, 5, 16)])
def test_a_large_jpeg_is_halved_in_its_decoder_as_by_boxes(width: int, height: int, factor: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (max(1, height // 8), width // 8, 3), np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    halved, boxes = decode_rgb(buffer.getvalue(), side=512), decode_rgb(buffer.getvalue()).reduce(factor)
    assert halved.size == boxes.size
    # of noise in all colours, which are stored at half the size: what differs is how they are interpolated
    assert np.abs(np.asarray(halved, int) - np.asarray(boxes, int)).mean() < 4
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image.save(turned, "JPEG", exif=exif)
    assert decode_rgb(turned.getvalue(), side=512).size == halved.size[::-1]


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_halving_in_the_decoder_refuses_what_decoding_does(data: st.DataObject) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 1100), np.uint8)
    broken = bytearray(encode(Image.fromarray(noise), "JPEG", quality=50))
    where = data.draw(st.integers(0, len(broken) - 1))
    del broken[where : where + data.draw(st.integers(0, 2000))]
    reasons = []
    for side in (None, 512):
        try:
            decode_rgb(bytes(broken), side=side)
            reasons.append("")
        except DecodeError as error:
            reasons.append(error.reason)
    assert reasons[0] == reasons[1]
