"""What can be read can be published: every format, every key and every text reaches data/curated and can be read
there."""

import io
import itertools
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from emu_data.formats import EXTENSIONS, FORMATS, recognise
from emu_data.jxl import read_head
from emu_data.names import MAX_BYTES, name_of
from emu_data.samples import DecodeError, Sample, decode_rgb, image_extension, make_key, read_size
from emu_data.shards import list_shards, read_manifest, read_rows, read_samples, write_shard, write_subset
from emu_data.texts import clean
from tests.shards import encode

pytest.importorskip("pillow_heif").register_heif_opener()
pytest.importorskip("pillow_jxl")

SIZE = (40, 24)


def draw(size: tuple[int, int] = SIZE) -> Image.Image:
    """Return soft colours, which lossy formats keep well, without symmetry."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    return Image.fromarray(np.uint8(np.stack([40 + 180 * x, 200 - 150 * y, 60 + 100 * x * y], axis=-1)))


def write_psd(image: Image.Image) -> bytes:
    """A PSD without layers: five sections, of which the middle three are empty, and planes of bytes (Adobe's
    specification; Pillow writes none).
    """
    head = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, image.height, image.width, 8, 3)
    return head + bytes(12) + bytes(2) + np.asarray(image).transpose(2, 0, 1).tobytes()


def write(name: str) -> bytes:
    """Return a picture in a format of the table."""
    if name == "PSD":
        return write_psd(draw())
    if name in ("ICO", "ICNS"):
        size = (32, 32)
        return encode(draw(size), name, **({"sizes": [size]} if name == "ICO" else {}))
    of_pillow = {"JPEG XL": "JXL", "HEIC": "HEIF", "JPEG 2000": "JPEG2000", "PNM": "PPM"}
    options = {"JPEG": {"quality": 95}, "HEIC": {"quality": 95}, "GIF": {}, "AVIF": {"quality": 95}}
    return encode(draw(), of_pillow.get(name, name.upper() if name != "WebP" else "WEBP"), **options.get(name, {}))


READ = [known.name for known in FORMATS if known.reader]


@pytest.mark.parametrize("name", READ)
def test_a_format_is_recognised_by_its_bytes_and_its_header_gives_what_is_decoded(name: str) -> None:
    data = write(name)
    known = recognise(data)
    assert known is not None and known.name == name
    decoded = decode_rgb(data)
    assert read_size(data) == decoded.size and image_extension(data) == known.extensions[0]
    difference = np.abs(np.asarray(decoded).astype(int) - np.asarray(draw(decoded.size)))
    assert difference.mean() < 6 and decoded.mode == "RGB"


def test_a_picture_of_every_format_reaches_the_curated_set_and_can_be_read(tmp_path: Path) -> None:
    keys = [make_key(0, index) for index in range(len(READ))]
    samples = [Sample(key, write(name), f"a picture in {name}") for key, name in zip(keys, READ, strict=True)]
    rows = pd.DataFrame({"key": keys, "caption": [s.caption for s in samples], "status": "success"})
    write_shard(tmp_path / "raw", 0, samples, rows)
    write_subset(tmp_path / "raw", tmp_path / "filtered", keys[::-1], 7)
    write_subset(tmp_path / "filtered", tmp_path / "curated", keys, 5)
    found = [sample for tar in list_shards(tmp_path / "curated") for sample in read_samples(tar)]
    assert [(s.key, s.caption) for s in found] == [(s.key, s.caption) for s in samples]
    for name, before, after in zip(READ, samples, found, strict=True):
        known = next(known for known in FORMATS if known.name == name)
        assert (after.image == before.image) == known.kept, name
        assert np.array_equal(np.asarray(decode_rgb(after.image)), np.asarray(decode_rgb(before.image))), name
        assert image_extension(after.image) == (known.extensions[0] if known.kept else "png")
        Image.open(io.BytesIO(after.image)).load()


@pytest.mark.parametrize("wrong", ["jpg", "png", "heic", "svg"])
def test_the_bytes_decide_and_not_the_name(tmp_path: Path, wrong: str) -> None:
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for index, name in enumerate(READ):
            for extension, data in ((wrong, write(name)), ("txt", b"words")):
                info = tarfile.TarInfo(f"{index}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    found = list(read_samples(tmp_path / "00000.tar"))
    assert [recognise(sample.image).name for sample in found] == READ  # type: ignore[union-attr]


def test_what_is_not_a_picture_has_a_reason() -> None:
    reasons = {
        b"": "corrupt: the file is empty",
        b"<html>404</html>": "corrupt: cannot identify the picture: its first bytes are b'<html>404</html>'",
        b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg">': "unsupported: SVG is not read",
        b"%PDF-1.7": "unsupported: PDF is not read",
        b"%!PS-Adobe-3.0 EPSF": "unsupported: PostScript is not read",
        b"\0\0\0\x18ftypheic" + bytes(100): "corrupt: HEIC: ",
        b"\0\0\0\x18ftypcrx " + bytes(100): "unsupported: camera raw is not read",
        b"\0\0\0\x18ftypisom" + bytes(100): "unsupported: film is not read",
        b"II*\0\x10\0\0\0CR\x02\0" + bytes(100): "unsupported: camera raw is not read",
        b"\xff\x0a" + bytes(1): "corrupt: the header of the JPEG XL file is cut off",
    }
    for data, reported in reasons.items():
        for read in (read_size, decode_rgb):
            with pytest.raises(DecodeError) as caught:
                read(data)
            assert f"{caught.value.reason}: {caught.value}".startswith(reported), data


def test_a_reader_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = write("HEIC")
    monkeypatch.setattr("emu_data.formats._import", lambda reader: __import__("no_such_module"))
    with pytest.raises(DecodeError, match="HEIC needs the package pillow-heif") as caught:
        decode_rgb(data)
    assert caught.value.reason == "unsupported"


def test_extensions_are_lower_case_and_each_belongs_to_one_format() -> None:
    assert len(set(EXTENSIONS)) == len(EXTENSIONS) and all(e == e.lower() and "." not in e for e in EXTENSIONS)


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("read", [read_size, decode_rgb])
def test_no_message_contains_a_memory_address(name: str, read) -> None:
    data = write(name)
    for cut in {1, 4, 9, 20, len(data) // 3, len(data) // 2, len(data) - 8}:
        try:
            read(data[:cut])
        except DecodeError as error:
            assert " at 0x" not in str(error)


def test_bombs_are_refused_by_their_headers() -> None:
    small, large = Image.new("L", (64, 64)), Image.new("L", (1200, 1200))
    for name in ("PNG", "GIF", "WEBP", "AVIF", "JXL", "HEIF", "TIFF", "JPEG2000", "JPEG"):
        with pytest.raises(DecodeError) as caught:
            decode_rgb(encode(large.convert("RGB"), name), max_pixels=1_000_000)
        assert (caught.value.reason, "1200 x 1200" in str(caught.value)) == ("too_large", True), name
        assert decode_rgb(encode(small.convert("RGB"), name), max_pixels=1_000_000).size == (64, 64)
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 2**30, 2**30, 8, 2, 0, 0, 0)
    with pytest.raises(DecodeError, match="more than"):
        decode_rgb(head + struct.pack(">I", zlib.crc32(head[12:])) + struct.pack(">I4s", 0, b"IDAT") + bytes(20))


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (64, 32), (96, 72), (600, 400), (7, 9000), (300, 20), (257, 256)])
def test_the_header_of_a_jpeg_xl_gives_its_size(size: tuple[int, int]) -> None:
    for use_container in (False, True):
        data = encode(Image.new("RGB", size, "red"), "JXL", use_container=use_container, effort=1)
        assert read_head(data).size == size == read_size(data) and not read_head(data).is_animation


def test_an_animated_jpeg_xl_is_recognised_by_its_header() -> None:
    # 8 x 8: small, 1 x 8, ratio 1:1; then not the usual values, extra fields, orientation 1, no size of its own, no
    # preview, an animation
    bits = [1, *[0] * 5, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    data = b"\xff\x0a" + sum(bit << place for place, bit in enumerate(bits)).to_bytes(3, "little") + bytes(20)
    assert read_head(data).size == (8, 8)
    with pytest.raises(DecodeError) as caught:
        decode_rgb(data)
    assert caught.value.reason == "animated"


KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text(
    st.sampled_from("./\\%~ aü\0\n\r\t\x7f:*?\"'<>|-_25E"), max_size=12
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), max_size=80)
META = st.dictionaries(
    st.text(max_size=8), st.none() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20), max_size=3
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(KEYS, st.tuples(TEXTS, META), min_size=1, max_size=6))
@example({"a/b": ("", {}), "a%2Fb": ("\x01", {}), "a.b": ("\r\n", {}), "": ("\u200b", {}), "a": ("\ud7ff", {})})
@example({"x" * n: ("x" * 100_000, {"y": "\ud83d"}) for n in (99, 100, 101, MAX_BYTES, MAX_BYTES + 1, 300, 5000)})
@example(
    {
        "ü" * 60: ("🎈", {"key": "other"}),
        "ü" * 119 + "a": ("", {}),
        "ü" * 200: ("", {}),
        "..": ("", {}),
        "~2": ("", {}),
        "._a": ("", {}),
    }
)
def test_every_key_text_and_note_can_be_read_again(tmp_path_factory, given: dict[str, tuple[str, dict]]) -> None:
    tmp_path = tmp_path_factory.mktemp("keys")
    image = encode(Image.new("RGB", (4, 4)))
    # a reader replaces what not every file format can hold (texts.clean)
    samples = [Sample(key, image, text, clean(meta)) for key, (text, meta) in given.items()]
    rows = pd.DataFrame({"key": list(given), "caption": [s.caption for s in samples], "status": "success"})
    as_given = [Sample(key, image, text, meta) for key, (text, meta) in given.items()]
    write_shard(tmp_path / "raw", 0, as_given, rows)
    assert list(read_samples(tmp_path / "raw" / "00000.tar")) == samples
    write_subset(tmp_path / "raw", tmp_path / "filtered", list(given)[::-1], 2)
    write_subset(tmp_path / "filtered", tmp_path / "curated", list(given), 4)
    found = [sample for tar in list_shards(tmp_path / "curated") for sample in read_samples(tar)]
    assert found == samples
    assert list(read_manifest(tmp_path / "curated")["caption"]) == [s.caption for s in samples]
    # webdataset sees as many keys, and they are names that a file system accepts
    members: list[str] = []
    for path in list_shards(tmp_path / "curated"):
        with tarfile.open(path) as tar:
            members += tar.getnames()
    assert len({name.partition(".")[0] for name in members}) == len(samples) == len(members) / 3
    assert all(name.count(".") == 1 and "/" not in name and len(name.encode()) <= 255 for name in members)


@given(st.lists(KEYS | st.text(st.sampled_from("%25aé./"), max_size=300), unique=True))
def test_no_two_keys_have_the_same_name(keys: list[str]) -> None:
    names = [name_of(key) for key in keys]
    assert len(set(names)) == len(keys)


def test_names_of_other_programs_are_read_as_they_are(tmp_path: Path) -> None:
    image = encode(Image.new("RGB", (4, 4)))
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name, data in itertools.chain(*(((f"{key}.png", image), (f"{key}.txt", b"x")) for key in ("a%2Fb", "50%"))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert [sample.key for sample in read_samples(tmp_path / "00000.tar")] == ["a%2Fb", "50%"]


def test_rows_of_shards_with_other_types_are_written_to_one_shard(tmp_path: Path) -> None:
    image, columns = encode(Image.new("RGB", (4, 4))), ([1, 2], ["a", "b"], [["c", "d"], None], [None, None])
    keys = []
    for shard, values in enumerate(columns):
        part = [make_key(shard, index) for index in range(2)]
        rows = pd.DataFrame({"key": part, "caption": "x", "status": "success", "likes": values})
        write_shard(tmp_path / "raw", shard, [Sample(key, image, "x") for key in part], rows)
        keys += part
    write_subset(tmp_path / "raw", tmp_path / "out", keys, 100)
    assert list(read_rows(tmp_path / "out" / "00000.tar")["likes"].astype("string").fillna("-")) == [
        "1", "2", "a", "b", '["c", "d"]', "-", "-", "-",
    ]  # fmt: skip
