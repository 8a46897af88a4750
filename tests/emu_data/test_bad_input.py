"""Whatever a corpus holds, it is registered and measured to the end: each row in the ledger once, each bad one with
its reason.
"""

import io
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from emu_data.addresses import Store
from emu_data.cascade import measure_group, read_values
from emu_data.ledger import check_conserved, decide
from emu_data.samples import STATUS_UNLISTED, SampleError, make_key
from emu_data.shards import iter_rows, list_shards, read_many, read_rows, read_samples
from emu_data.signals.geometry import GeometrySignal
from emu_data.sources.img2dataset import register_shards
from emu_data.tars import TarDamage, read_groups
from tests.shards import encode

SIGNALS = (GeometrySignal(),)
POLICY = {"min_side": 1}

Member = tuple[str, bytes]


def draw(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (12, 12, 3), np.uint8))


def sample(key: str, image: bytes | None = None, caption: bytes = b"a picture") -> list[Member]:
    return [(f"{key}.png", image or encode(draw(len(key)))), (f"{key}.txt", caption), (f"{key}.json", b"{}")]


def write_source(folder: Path, shard: int, members: list[Member], rows: list[dict[str, Any]] | None) -> Path:
    """Write a shard as another program may have written it, without any of our rules."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{shard:05d}.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1700000000.25  # webdataset's fractional times make pax headers
            tar.addfile(info, io.BytesIO(data))
    if rows is not None:
        pd.DataFrame(rows).to_parquet(path.with_suffix(".parquet"))
    return path


def row(key: Any, status: str = "success", **others: Any) -> dict[str, Any]:
    return {"url": f"u{key}", "likes": 7, "key": key, "caption": "a picture", "status": status, **others}


def make_ledger(source: Path, tmp_path: Path, register: bool = True) -> pd.DataFrame:
    """Register, measure and decide; every row of the parquets, and of what no parquet lists, is there once."""
    raw = tmp_path / "raw"
    if register:
        register_shards(Store(str(source)), raw, progress=False)
    names = [path.stem for path in list_shards(raw)]
    measure_group(raw, names, SIGNALS, tmp_path / "signals", progress=False)
    ledger = decide(read_values(raw, names, SIGNALS, tmp_path / "signals"), POLICY)
    listed = sum(len(rows) for rows in iter_rows(raw, ["key"]))
    check_conserved(ledger, listed + int((ledger["status"] == STATUS_UNLISTED).sum()))
    dropped = ledger[~ledger["kept"]]
    assert (dropped["first_failed_gate"] == "readable").all()
    return ledger.assign(reported=ledger["error"].fillna(ledger["error_message"])).set_index("key")


def reasons(ledger: pd.DataFrame) -> dict[str, str]:
    """Return key -> "" if kept, otherwise the word before the colon (of the signal's error, the second)."""
    reported = ledger["reported"].str.removeprefix("geometry: ").str.partition(":")[0]
    return dict(reported.where(~ledger["kept"], ""))


def animate() -> bytes:
    return encode(draw(0), "GIF", save_all=True, append_images=[draw(1)])


def bomb() -> bytes:
    """Return a PNG whose header claims 50 000 x 50 000 pixels."""
    data = bytearray(encode(draw(0)))
    data[16:24] = struct.pack(">II", 50_000, 50_000)
    import zlib

    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def test_pictures_that_cannot_be_used_have_a_reason(tmp_path: Path) -> None:
    grey = Image.fromarray((np.linspace(0, 1, 144).reshape(12, 12) * 65535).astype(np.uint16))
    cases = {
        "corrupt": encode(draw(0))[:-200],
        "animated": animate(),
        "too_large": bomb(),
        "unsupported": encode(Image.new("CMYK", (12, 12)), "JPEG"),
        "": encode(grey),  # 16 bits are scaled, which loses nothing that a screen shows
    }
    keys = [make_key(0, index) for index in range(len(cases))]
    members = [member for key, data in zip(keys, cases.values(), strict=True) for member in sample(key, data)]
    write_source(tmp_path / "source", 0, members, [row(key) for key in keys])
    assert list(reasons(make_ledger(tmp_path / "source", tmp_path)).values()) == list(cases)


def test_members_and_captions_that_cannot_be_used_have_a_reason(tmp_path: Path) -> None:
    k = [make_key(0, index) for index in range(9)]
    members = [
        *sample(f"../{k[0]}"),
        *sample(f"/etc/{k[1]}"),
        *sample(f"inside/../../{k[2]}"),
        *sample(k[3], caption=b"caf\xe9"),
        (f"{k[4]}.txt", b"no picture"),
        (f"{k[5]}.png", encode(draw(5))),
        *sample(k[6]),
        (f"{k[8]}.png", encode(draw(8))),
        (f"{k[8]}.txt", b"x"),
        (f"{k[8]}.json", b"[1"),
    ]
    rows = [row(key) for key in k]
    rows[6] |= {"status": "failed_to_download", "error_message": "HTTP Error 404"}
    write_source(tmp_path / "source", 0, members, rows)
    found = reasons(make_ledger(tmp_path / "source", tmp_path))
    expected = ["bad_path"] * 3 + ["bad_text", "no_image", "no_caption", "HTTP Error 404", "missing", "bad_text"]
    assert list(found.values()) == expected
    assert not (tmp_path / "etc").exists()


def test_samples_that_no_row_lists_get_a_row(tmp_path: Path) -> None:
    k = [make_key(0, index) for index in range(3)]
    members = [*sample(k[0]), *sample("stranger"), *sample(k[1]), *sample(k[0]), *sample("../far")]
    write_source(tmp_path / "source", 0, members, [row(k[0]), row(k[1])])
    found = reasons(make_ledger(tmp_path / "source", tmp_path))
    assert found == {
        k[0]: "",
        k[1]: "",
        "stranger~00000": "no_row",
        f"{k[0]}~00000": "duplicate_key",
        "far~00000": "bad_path",
    }


def test_equal_keys_within_and_across_shards_keep_the_first(tmp_path: Path) -> None:
    source = tmp_path / "source"
    own, shared = make_key(1, 0), "a-name-of-its-own"
    write_source(source, 0, [*sample(shared), *sample(own)], [row(shared), row(own)])
    write_source(source, 1, [*sample(own), *sample(shared), *sample(own)], [row(own), row(shared), row(own)])
    before = (source / "00001.parquet").read_bytes()
    ledger = make_ledger(source, tmp_path)
    assert reasons(ledger) == {
        shared: "",
        own: "",
        f"{shared}~2": "duplicate_key",
        f"{own}~2": "duplicate_key",
        f"{own}~3": "duplicate_key",
    }
    assert list(read_rows(tmp_path / "raw" / "00001.parquet")["likes"]) == [7, 7, 7]
    assert (source / "00001.parquet").read_bytes() == before  # the link to it was replaced, not written through


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, None])
def test_a_tar_that_cannot_be_opened_loses_only_its_rows(tmp_path: Path, content: bytes | None) -> None:
    k = [make_key(shard, 0) for shard in range(2)]
    for shard in range(2):
        write_source(tmp_path / "source", shard, sample(k[shard]), [row(k[shard]), row(f"{k[shard]}9", "failed")])
    victim = tmp_path / "source" / "00001.tar"
    victim.unlink() if content is None else victim.write_bytes(content)
    found = reasons(make_ledger(tmp_path / "source", tmp_path))
    assert (found[k[0]], found[k[1]], len(found)) == ("", "unreadable", 4)


def test_a_truncated_tar_keeps_its_beginning_and_the_rest_has_a_reason(tmp_path: Path) -> None:
    k = [make_key(0, index) for index in range(5)]
    tar = write_source(tmp_path / "source", 0, [m for key in k for m in sample(key)], [row(key) for key in k])
    data = tar.read_bytes()
    with tarfile.open(tar) as opened:
        cut = opened.getmember(f"{k[2]}.txt").offset_data
    tar.write_bytes(data[:cut])
    assert list(reasons(make_ledger(tmp_path / "source", tmp_path)).values()) == ["", ""] + ["truncated"] * 3


def test_missing_parquet_is_made_from_the_tar_and_says_so(tmp_path: Path) -> None:
    k = [make_key(0, index) for index in range(3)]
    members = [*sample(k[0])[:2], (f"{k[0]}.json", b'{"likes": 3, "exif": {"a": 1}}'), *sample(k[1], caption=b"\xff")]
    tar = write_source(tmp_path / "source", 0, [*members, *sample(k[2])], None)
    with tarfile.open(tar) as opened:
        end = opened.getmember(f"{k[2]}.png").offset_data + 20
    tar.write_bytes(tar.read_bytes()[:end])
    ledger = make_ledger(tmp_path / "source", tmp_path)
    assert reasons(ledger) == {k[0]: "", f"{k[1]}~00000": "bad_text", "tar~00000": "truncated"}
    assert ledger.loc[k[0], "error_message"] == "no_parquet: the row was made from the tar"
    first = read_rows(tmp_path / "raw" / "00000.parquet").query("key == @k[0]").iloc[0]
    assert (first["likes"], first["width"], first["exif"]) == (3, 12, '{"a": 1}')
    assert not (tmp_path / "source" / "00000.parquet").exists()


def test_a_shard_put_into_data_raw_without_a_parquet_is_measured_too(tmp_path: Path) -> None:
    key = make_key(0, 0)
    write_source(tmp_path / "raw", 0, [*sample(key), *sample(key)], None)
    found = reasons(make_ledger(tmp_path, tmp_path, register=False))
    assert found == {key: "", f"{key}~00000": "duplicate_key"}


@pytest.mark.parametrize("lacking", ["key", "caption", "status", "all"])
def test_a_parquet_that_lacks_columns_is_completed_from_the_tar(tmp_path: Path, lacking: str) -> None:
    k = [make_key(0, index) for index in range(3)]
    rows = [row(key) for key in k]
    members = [m for key in k[:2] for m in sample(key)]
    path = write_source(tmp_path / "source", 0, members, [{c: v for c, v in r.items() if c != lacking} for r in rows])
    if lacking == "all":
        path.with_suffix(".parquet").write_bytes(b"PAR1 and then nothing of use")
    ledger = make_ledger(tmp_path / "source", tmp_path)
    found = reasons(ledger)
    kept = ledger[ledger["kept"]]
    assert list(kept.index) == k[:2]
    assert kept["error_message"].str.startswith("bad_parquet").all()
    assert (kept["caption"] == "a picture").all()
    assert found.get(k[2]) == {"caption": "missing", "status": "no_status"}.get(lacking)
    if lacking == "key":  # it is unknown which rows are those of the tar's samples, but one of three has none
        assert found["00000-row2"] == "no_key" and len(found) == 3
    if lacking in ("caption", "status"):
        assert list(read_rows(tmp_path / "raw" / "00000.parquet")["likes"]) == [7] * 3


def test_rows_without_a_key_and_keys_that_are_numbers(tmp_path: Path) -> None:
    write_source(tmp_path / "source", 0, [*sample("a"), *sample("b")], [row("a"), row(None), row("b"), row("")])
    write_source(tmp_path / "source", 1, sample("7"), [row(7)])
    found = reasons(make_ledger(tmp_path / "source", tmp_path))
    assert found == {"a": "", "b": "", "00000-row1": "no_key", "00000-row3": "no_key", "7": ""}


def test_rows_and_types_of_a_sound_parquet_are_not_changed(tmp_path: Path) -> None:
    key = make_key(0, 0)
    path = write_source(tmp_path / "source", 0, sample(key), None)
    table = pa.table(
        {
            **{name: [value] for name, value in row(key).items()},
            "tags": [["a", "b"]],
            "seen": pa.array([None], pa.timestamp("ms")),
            "score": pa.array([0.5], pa.float16()),
        }
    )
    pq.write_table(table, path.with_suffix(".parquet"))
    register_shards(Store(str(tmp_path / "source")), tmp_path / "raw", progress=False)
    assert pq.read_table(tmp_path / "raw" / "00000.parquet").equals(table)


def test_a_few_keys_are_read_without_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    for shard in range(2):
        keys = [f"name-{shard}-{index}" for index in range(6)]
        members = [m for key in keys for m in sample(key, encode(Image.fromarray(big)))]
        write_source(tmp_path, shard, members, [row(key) for key in keys])
    num_read = 0
    real = open

    def count(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        opened = real(file, mode, *rest, **named)
        if str(file).endswith(".tar"):
            read = opened.read

            class Counting:
                def read(self, size: int) -> bytes:
                    nonlocal num_read
                    num_read += size
                    return read(size)

                def __enter__(self) -> "Counting":
                    return self

                def __exit__(self, *_: object) -> None:
                    opened.close()

                def __getattr__(self, name: str) -> Any:
                    return getattr(opened, name)

            return Counting()
        return opened

    monkeypatch.setattr(Store, "open", lambda store: count(store.address, "rb"))
    found = read_many(tmp_path, ["name-1-4"])
    assert list(found) == ["name-1-4"]
    assert num_read < 2 * len(found["name-1-4"].image)


names = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=200)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(names, st.binary(max_size=1500)), max_size=6), st.sampled_from(["USTAR", "GNU", "PAX"]))
def test_tars_of_every_format_are_read_as_tarfile_reads_them(members: list[Member], kind: str) -> None:
    buffer, written = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w", format=getattr(tarfile, f"{kind}_FORMAT")) as tar:
        for number, (name, data) in enumerate(members):
            info = tarfile.TarInfo(f"folder/{number}.{name}")
            info.size = len(data)
            try:
                tar.addfile(info, io.BytesIO(data))
            except ValueError:  # ustar has no room for so long a name
                continue
            written.append((f"folder/{number}", {name.lower(): data}))
    for seekable in (True, False):
        buffer.seek(0)
        assert [(group.key, group.parts) for group in read_groups(buffer, seekable)] == written


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_tar_is_read_or_reported(tmp_path: Path, data: st.DataObject) -> None:
    keys = [make_key(0, index) for index in range(4)]
    path = write_source(tmp_path, 0, [m for key in keys for m in sample(key)], [row(key) for key in keys])
    whole = path.read_bytes()
    broken = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(whole)), st.integers(0, 255)), max_size=4)):
        if place < len(broken):
            broken[place] = value
    path.write_bytes(bytes(broken))
    errors: list[SampleError] = []
    read = [found.key for found in read_samples(path, errors.append)]
    assert len(read) == len(set(read))
    assert set(keys) <= set(read) | {error.key for error in errors} or not set(read) <= set(keys)


def test_a_stream_that_returns_little_at_a_time_is_read_whole() -> None:
    class Dripping(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 0, 100))

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("a.png")
        info.size = 5000
        tar.addfile(info, io.BytesIO(b"x" * 5000))
    (group,) = read_groups(Dripping(buffer.getvalue()), seekable=False)
    assert group.parts == {"png": b"x" * 5000}
    with pytest.raises(TarDamage):
        list(read_groups(Dripping(buffer.getvalue()[:700]), seekable=False))
