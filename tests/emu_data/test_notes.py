"""What a file has beside the pixels never costs the picture, and rotates it only if it is valid."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from emu_data.notes import without_notes
from emu_data.samples import DecodeError, decode_rgb, read_size
from tests.shards import encode

pytest.importorskip("pillow_heif").register_heif_opener()
pytest.importorskip("pillow_jxl")

IMAGE = Image.fromarray(np.random.default_rng(5).integers(0, 256, (24, 40, 3), np.uint8))
ORIENTATION = 0x0112


def exif_of(value: object) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    exif[0x010F] = "maker"
    return exif.tobytes()


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", range(11))
def test_a_valid_orientation_rotates_the_picture_and_its_size(format_name: str, orientation: int) -> None:
    options = {"WEBP": {"lossless": True}}.get(format_name, {})
    data = encode(IMAGE, format_name, exif=exif_of(orientation), **options)
    plain = encode(IMAGE, format_name, **options)
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    decoded = decode_rgb(data)
    assert read_size(data) == decoded.size == expected.size
    assert np.array_equal(np.asarray(decoded), np.asarray(expected))
    assert (decoded.size == IMAGE.size) == (orientation not in (5, 6, 7, 8)) and read_size(plain) == IMAGE.size


@pytest.mark.parametrize("format_name", ["HEIF", "JXL"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_what_its_reader_has_rotated_is_not_rotated_again(format_name: str, orientation: int) -> None:
    data = encode(IMAGE, format_name, exif=exif_of(orientation))
    decoded = decode_rgb(data)
    assert read_size(data) == decoded.size
    if format_name == "JXL":  # in which EXIF says nothing about how it is shown (ISO/IEC 18181-2)
        assert decoded.size == IMAGE.size
    else:
        assert (decoded.size == IMAGE.size) == (orientation in (1, 3))


BAD_EXIF = {
    "none": b"",
    "garbage": b"Exif\0\0garbage garbage",
    "zeros": bytes(60),
    "cut": exif_of(6)[:20],
    "text": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04top\0\0\0\0\0",
    "far": b"Exif\0\0MM\0*\xff\xff\xff\xff",
    "loop": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x87\x69\0\x04\0\0\0\x01\0\0\0\x08\0\0\0\x08",
    "no unit": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x1a\0\x05\0\0\0\x01\0\0\0\x1a\0\0\0\0\0\0\0\0\0\0\0\0",
}


@pytest.mark.parametrize("name", BAD_EXIF)
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_leaves_the_picture_as_it_is(name: str, format_name: str) -> None:
    options = {"WEBP": {"lossless": True}}.get(format_name, {})
    plain = encode(IMAGE, format_name, **options)
    data = encode(IMAGE, format_name, exif=BAD_EXIF[name], **options)
    assert read_size(data) == IMAGE.size
    assert np.array_equal(np.asarray(decode_rgb(data)), np.asarray(decode_rgb(plain)))


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


JPEG, PNG = encode(IMAGE, "JPEG"), encode(IMAGE)
# Beginnings of notes that readers interpret, and any other.
JPEG_HEADS = st.sampled_from(
    [
        b"Exif\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08",
        b"http://ns.adobe.com/xap/1.0/\0",
        b"ICC_PROFILE\0\x01\x01",
        b"MPF\0",
        b"MPF\0MM\0*\0\0\0\x08",
        b"Photoshop 3.0\x008BIM\x03\xed",
        b"JFIF\0",
        b"FPXR\0",
        b"",
    ]  # fmt: skip
)
JPEG_MARKERS = st.integers(0xE0, 0xED) | st.sampled_from([0xEF, 0xFE])
PNG_NAMES = st.sampled_from(
    [
        b"tEXt",
        b"zTXt",
        b"iTXt",
        b"eXIf",
        b"iCCP",
        b"gAMA",
        b"cHRM",
        b"sRGB",
        b"pHYs",
        b"cICP",
        b"bKGD",
        b"tIME",
        b"xxXx",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(JPEG_MARKERS, JPEG_HEADS, st.binary(max_size=60)), max_size=4))
def test_any_notes_of_a_jpeg_leave_its_pixels_unchanged(notes: list[tuple[int, bytes, bytes]]) -> None:
    data = JPEG[:2] + b"".join(segment(marker, head + body) for marker, head, body in notes) + JPEG[2:]
    assert np.array_equal(np.asarray(decode_rgb(data)), np.asarray(decode_rgb(JPEG)))
    assert read_size(data) == IMAGE.size


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(PNG_NAMES, st.binary(max_size=60), st.booleans(), st.booleans()), max_size=4))
def test_any_notes_of_a_png_leave_its_shape_unchanged(notes: list[tuple[bytes, bytes, bool, bool]]) -> None:
    before = after = b""
    for name, body, is_before, has_checksum in notes:
        note = chunk(name, body)
        note = note if has_checksum else note[:-1] + bytes((note[-1] ^ 1,))
        before, after = (before + note, after) if is_before else (before, after + note)
    data = PNG[:33] + before + PNG[33:-12] + after + PNG[-12:]
    assert decode_rgb(data).size == read_size(data) == IMAGE.size
    if not any(name in (b"iCCP", b"gAMA", b"cHRM", b"cICP") for name, *_ in notes):
        assert np.array_equal(np.asarray(decode_rgb(data)), np.asarray(IMAGE))


def test_texts_larger_than_pillow_takes_do_not_cost_the_picture_or_its_profile() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "{" + "x" * 3_000_000 + "}", zip=True)
    data = encode(IMAGE, "PNG", pnginfo=text, exif=exif_of(6))
    assert read_size(data) == (24, 40) and np.array_equal(
        np.asarray(decode_rgb(data)), np.asarray(IMAGE.transpose(Image.Transpose.ROTATE_270))
    )


def test_broken_pixels_stay_broken() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 3_000_000, zip=True)
    for data in (encode(IMAGE, "PNG", pnginfo=text)[:-1000], JPEG[:2] + segment(0xE1, b"Exif\0\0x") + JPEG[2:-300]):
        with pytest.raises(DecodeError) as caught:
            decode_rgb(data)
        assert caught.value.reason == "corrupt"


@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8", JPEG[:200], PNG[:30], PNG[:200]]), st.booleans())
def test_removing_notes_accepts_any_bytes(data: bytes, head: bytes, keep_shown: bool) -> None:
    bare = without_notes(head + data, keep_shown)
    assert len(bare) <= len(head + data)
    assert without_notes(bare, keep_shown) == bare


def write_mpo(*images: Image.Image) -> bytes:
    return encode(images[0], "MPO", save_all=True, append_images=list(images[1:]))


def test_a_photograph_with_a_preview_is_a_photograph() -> None:
    preview = IMAGE.resize((10, 6))
    plain = np.asarray(decode_rgb(encode(IMAGE, "JPEG")))
    for others in ((preview,), (preview, preview), (IMAGE,)):
        data = write_mpo(IMAGE, *others)
        end = data.rfind(b"\xff\xd8\xff")  # where the last of the others begins
        for kept in (data, data[: end + 30], data[:end], data + b"a gain map", data[:end] + bytes(50)):
            assert np.array_equal(np.asarray(decode_rgb(kept)), plain) and read_size(kept) == IMAGE.size


def test_a_tiff_with_a_thumbnail_is_its_large_page_and_one_with_several_is_refused() -> None:
    thumbnail, mask = IMAGE.resize((10, 6)), Image.new("1", IMAGE.size)

    def pages(*images: Image.Image) -> bytes:
        return encode(images[0], "TIFF", save_all=True, append_images=list(images[1:]))

    for data in (pages(IMAGE, thumbnail), pages(thumbnail, IMAGE), pages(thumbnail, IMAGE, thumbnail)):
        assert np.array_equal(np.asarray(decode_rgb(data)), np.asarray(IMAGE)) and read_size(data) == IMAGE.size
    cut = pages(IMAGE, thumbnail)
    second = struct.unpack("<I", cut[4:8])[
        0
    ]  # the offset of the first page's directory, whose end gives the next offset
    (num_entries,) = struct.unpack("<H", cut[second : second + 2])
    (next_page,) = struct.unpack("<I", cut[second + 2 + 12 * num_entries :][:4])
    assert np.array_equal(np.asarray(decode_rgb(cut[: next_page + 5])), np.asarray(IMAGE))
    for data in (pages(IMAGE, IMAGE), pages(IMAGE, mask), pages(thumbnail, IMAGE, IMAGE)):
        with pytest.raises(DecodeError, match="2 pages") as caught:
            decode_rgb(data)
        assert caught.value.reason == "animated"
    beside = encode(IMAGE, "TIFF", tiffinfo={254: 1})
    with pytest.raises(DecodeError, match="raw") as caught:
        decode_rgb(beside)
    assert caught.value.reason == "unsupported"


@pytest.mark.parametrize("format_name", ["GIF", "PNG", "WEBP", "AVIF"])
def test_animations_are_rejected_and_single_frames_are_not(format_name: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    with pytest.raises(DecodeError, match="3 frames") as caught:
        decode_rgb(encode(frames[0], format_name, save_all=True, append_images=frames[1:]))
    assert caught.value.reason == "animated"
    assert decode_rgb(encode(frames[0], format_name, save_all=True)).size == (16, 16)


def test_a_heic_with_several_pictures_is_its_primary_one() -> None:
    small = Image.new("RGB", (64, 64), "red")
    data = encode(small, "HEIF", save_all=True, append_images=[IMAGE.resize((80, 64))], primary_index=1)
    assert decode_rgb(data).size == read_size(data) == (80, 64)
