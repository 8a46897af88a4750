"""Tars that other programs wrote: what plain webdataset can read is read, and what it cannot has a row with its
reason."""

import gzip
import io
import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from emu_data.addresses import Store
from emu_data.cascade import StopRule, measure_group, read_values
from emu_data.cascade_order import find_order
from emu_data.files import file_sha256
from emu_data.samples import make_key
from emu_data.shards import iter_samples, list_shards, read_rows, read_samples, write_subset
from emu_data.signals.geometry import GeometrySignal
from emu_data.sources.detect import find_corpus
from emu_data.sources.img2dataset import register_shards
from tests.emu_data.test_bad_input import make_ledger, reasons, row, sample, write_source
from tests.shards import encode

PICTURES = [encode(Image.fromarray(np.full((8, 8, 3), shade, np.uint8))) for shade in range(8)]
APPLE_DOUBLE = b"\x00\x05\x16\x07" + bytes(80)


def write_tar(path: Path, members: Sequence[tuple[str, bytes | None]], kind: str = "PAX", mode: str = "w") -> None:
    """Write a tar; a member of None is a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=getattr(tarfile, f"{kind}_FORMAT")) as tar:  # pyrefly: ignore
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.mtime, info.size = 1.5, len(data or b"")
            info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            tar.addfile(info, io.BytesIO(data or b""))


def read_plain(path: Path) -> dict[str, dict[str, bytes]]:
    """Return what plain webdataset makes of a tar: key -> ending -> bytes."""
    found = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)  # pyrefly: ignore
    return {one["__key__"].removeprefix("./"): {k: v for k, v in one.items() if k[0] != "_"} for one in found}


@pytest.mark.parametrize("with_parquets", [False, True])
def test_tars_that_each_number_their_samples_from_0_lose_none(tmp_path: Path, with_parquets: bool) -> None:
    """As webdataset's writer does: a key says which sample of its own tar it is. The samples stay with their captions,
    also those that lie twice in one tar, and those of keys with dots."""
    keys = ["000000", "000001", "x.2", "000001"]
    captions = {}
    for shard in range(3):
        members = []
        for number, key in enumerate(keys):
            caption = captions[shard, number] = f"picture {number} of tar {shard}"
            members += sample(key, caption=caption.encode())
        rows = [row(key) | {"caption": captions[shard, number]} for number, key in enumerate(keys)]
        write_source(tmp_path / "source", shard, members, rows if with_parquets else None)
    found = find_corpus(Store(str(tmp_path / "source"))).notes
    assert any("count their samples" in note and "00001-000000" in note for note in found), found
    ledger = make_ledger(tmp_path / "source", tmp_path)
    assert len(ledger) == 12
    bad = {key: reason for key, reason in reasons(ledger).items() if reason}
    assert len(bad) == 3 and set(bad.values()) == {"duplicate_key"}
    for shard in range(3):
        read = [(s.key, s.caption) for s in read_samples(tmp_path / "raw" / f"{shard:05d}.ref", lambda error: None)]
        prefix = f"{shard:05d}-" if shard else ""
        assert read == [(f"{prefix}{key}", captions[shard, number]) for number, key in enumerate(keys[:3])]


letters = st.characters(codec="utf-8", exclude_characters="\0/.\\", exclude_categories=["Cc"])
names = st.text(letters, min_size=1, max_size=9)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keys=st.lists(st.tuples(st.sampled_from(["", "./", "a/", "./b/c/"]), names), min_size=1, max_size=5, unique=True),
    is_mac=st.booleans(),
    kind=st.sampled_from(["GNU", "PAX"]),
    image=st.sampled_from(["jpg", "JPG", "png", "image.png", "avif"]),
    text=st.sampled_from(["txt", "TXT", "caption.txt", "json"]),
    mode=st.sampled_from(["w", "w:gz", "w:bz2", "w:xz"]),
)
def test_what_webdataset_reads_is_read(
    tmp_path: Path, keys: list[tuple[str, str]], is_mac: bool, kind: str, image: str, text: str, mode: str
) -> None:
    caption = json.dumps({"caption": "a thing"}).encode() if text == "json" else b"a thing"
    members: list[tuple[str, bytes | None]] = [("./", None), ("./b/", None)]
    for number, (folder, name) in enumerate(keys):
        for ending, data in ((image, PICTURES[number]), (text, caption)):
            # in a folder, webdataset takes a hidden file for a sample, and splits the one beside it
            is_hidden_beside = is_mac and folder in ("", "./")
            members += [(f"{folder}._{name}.{ending}", APPLE_DOUBLE)] if is_hidden_beside else []
            members.append((f"{folder}{name}.{ending}", data))
    path = tmp_path / "00000.tar"
    write_tar(path, members, kind, mode)
    plain = read_plain(path)
    read = {found.key: found for found in read_samples(path)}
    assert set(read) == set(plain)
    for key, parts in plain.items():
        assert read[key].image == parts[image.lower()] and read[key].caption == "a thing"


@pytest.mark.parametrize("kind", ["00000", "train-0001"])
def test_tars_of_any_name_become_shards(tmp_path: Path, kind: str) -> None:
    endings = {"00000": ".tar", "train-0001": ".tar.gz"}
    members = [m for key in "ab" for m in sample(key)]
    write_tar(tmp_path / "source" / f"{kind}{endings[kind]}", members, mode="w:gz")
    assert reasons(make_ledger(tmp_path / "source", tmp_path)) == {"a": "", "b": ""}


def test_keys_with_dots_and_folders_are_distinguished_and_published(tmp_path: Path) -> None:
    keys = ["img.1", "img.2", "x/y", "z/y", "v1.0-cat"]
    write_tar(tmp_path / "source" / "00000.tar", [m for key in keys for m in sample(key)])
    write_source(
        tmp_path / "source", 1, [m for key in ("img.3", "img.4") for m in sample(key)], [row("img.3"), row("img.4")]
    )
    ledger = make_ledger(tmp_path / "source", tmp_path)
    assert reasons(ledger) == dict.fromkeys([*keys, "img.3", "img.4"], "")
    (tmp_path / "out").mkdir()
    write_subset(tmp_path / "raw", tmp_path / "out", list(ledger.index), 3)
    assert [found.key for path in list_shards(tmp_path / "out") for found in read_samples(path)] == list(ledger.index)


def test_a_folder_around_the_samples_does_not_hide_them_from_their_rows(tmp_path: Path) -> None:
    k = [make_key(0, index) for index in range(2)]
    members = [(f"./part/{name}", data) for key in k for name, data in sample(key)]
    write_source(tmp_path / "source", 0, members, [row(key) for key in k])
    assert reasons(make_ledger(tmp_path / "source", tmp_path)) == dict.fromkeys(k, "")


def test_links_names_that_are_not_utf8_and_unlisted_samples_have_a_row(tmp_path: Path) -> None:
    path = tmp_path / "source" / "00000.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for name, data in sample("café"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("b.png")
        info.type, info.linkname = tarfile.LNKTYPE, "café.png"
        tar.addfile(info)
    found = reasons(make_ledger(tmp_path / "source", tmp_path))
    assert found == {"caf\\xe9": "", "b~00000": "link"}


def test_half_a_surrogate_pair_in_the_json_of_a_tar_loses_nothing(tmp_path: Path) -> None:
    members = [*sample("a")[:2], ("a.json", b'{"title": "sunset \\ud83d", "caption": "nul \\u0000"}')]
    write_tar(tmp_path / "source" / "00000.tar", members)
    assert reasons(make_ledger(tmp_path / "source", tmp_path)) == {"a": ""}
    assert read_rows(tmp_path / "raw" / "00000.parquet")["title"].tolist() == ["sunset \N{REPLACEMENT CHARACTER}"]


columns = {
    "key": lambda keys: pa.array(keys).dictionary_encode(),
    "caption": lambda keys: pa.array([[None, "a picture", "b"] for _ in keys]),
    "status": lambda keys: pa.array([b"success" for _ in keys]),
    "sha256": lambda keys: pa.array(range(len(keys))),
    "width": lambda keys: pa.array(["12", "x", None][: len(keys)]),
    "height": lambda keys: pa.array([12.0, None, 12.0][: len(keys)]),
    "url": lambda keys: pa.nulls(len(keys)),
    "error_message": lambda keys: pa.array([None] * len(keys), pa.float64()),
    "exif": lambda keys: pa.array([{"a": 1} for _ in keys]),
}


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(odd=st.sets(st.sampled_from(sorted(columns))), absent=st.sets(st.sampled_from(sorted(columns))))
def test_columns_of_any_type_or_none_at_all_reach_the_filtered_shards(
    tmp_path_factory: pytest.TempPathFactory, odd: set[str], absent: set[str]
) -> None:
    tmp_path = tmp_path_factory.mktemp("columns")
    for shard in range(2):  # the second is as it should be, so columns of two types meet
        keys = [make_key(shard, index) for index in range(3)]
        path = write_source(tmp_path / "source", shard, [m for key in keys for m in sample(key)], None)
        usual = pd.DataFrame([row(key, sha256=f"{key:>064}", width=12, height=12, exif="{}") for key in keys])
        table = pa.Table.from_pandas(usual.assign(error_message=None), preserve_index=False)
        for name in (odd | absent) if shard == 0 else ():
            place = table.column_names.index(name)
            table = table.remove_column(place)
            table = table if name in absent else table.append_column(name, columns[name](keys))
        pq.write_table(table, path.with_suffix(".parquet"))
    ledger = make_ledger(tmp_path / "source", tmp_path)
    assert set(reasons(ledger).values()) == {""} and len(ledger) == 6
    assert set(ledger["caption"]) == {"a picture"}
    (tmp_path / "out").mkdir()
    write_subset(tmp_path / "raw", tmp_path / "out", list(ledger.index), 1000)
    assert [found.key for found in iter_samples(tmp_path / "out")] == list(ledger.index)


def test_a_parquet_with_an_index_from_pandas_keeps_its_key(tmp_path: Path) -> None:
    path = write_source(tmp_path / "source", 0, sample("a"), None)
    pd.DataFrame([row("a")]).set_index("key").to_parquet(path.with_suffix(".parquet"))
    assert reasons(make_ledger(tmp_path / "source", tmp_path)) == {"a": ""}


def test_keys_that_became_numbers_find_their_samples(tmp_path: Path) -> None:
    keys = [make_key(0, index) for index in range(3)]
    rows = pd.DataFrame([row(key) for key in keys]).assign(key=[0.0, 1.0, 2.0])
    path = write_source(tmp_path / "source", 0, [m for key in keys for m in sample(key)], None)
    rows.to_parquet(path.with_suffix(".parquet"))
    assert reasons(make_ledger(tmp_path / "source", tmp_path)) == dict.fromkeys(keys, "")


def count_members(path: Path) -> Counter[str]:
    """Return the samples of a tar by the standard library: the names of its pictures without their ending."""
    with tarfile.open(path) as tar:
        return Counter(m.name.rpartition(".")[0].rpartition("/")[2] for m in tar if m.name.endswith(".png"))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from("abcdefgh"), max_size=8), st.sets(st.sampled_from("abcdefgh")), st.booleans())
def test_every_member_of_a_tar_has_a_row_even_if_the_pilot_measured_the_shard(
    tmp_path_factory: pytest.TempPathFactory, members: list[str], listed: set[str], has_pilot: bool
) -> None:
    tmp_path = tmp_path_factory.mktemp("members")
    source, raw = tmp_path / "source", tmp_path / "raw"
    tar = write_source(
        source, 0, [m for key in members for m in sample(key)], [row(key) for key in sorted(listed | {"z"})]
    )
    register_shards(Store(str(source)), raw, progress=False)
    signals = (GeometrySignal(),)
    if has_pilot:
        find_order(raw, ["00000"], signals, StopRule(), tmp_path / "signals", tmp_path / "ms.json")
    measure_group(raw, ["00000"], signals, tmp_path / "signals", progress=False)
    values = read_values(raw, ["00000"], signals, tmp_path / "signals")
    by_key = values.groupby(values["key"].str.partition("~")[0]).size()
    for key, number in count_members(tar).items():
        assert by_key[key] == max(number, key in listed)
    assert set(by_key.index) == {*members, *listed, "z"}
    # whoever reads pictures gets none without its own row
    assert {found.key for found in iter_samples(raw)} == set(members) & listed


def test_values_say_so_if_the_rest_of_the_tar_was_not_examined(tmp_path: Path) -> None:
    make_ledger(write_source(tmp_path / "source", 0, sample("a"), [row("a")]).parent, tmp_path)
    (tmp_path / "signals" / "unlisted" / "00000.parquet").unlink()
    with pytest.raises(ValueError, match="unlisted/00000.parquet is missing: measure the shard first"):
        read_values(tmp_path / "raw", ["00000"], (GeometrySignal(),), tmp_path / "signals")


def test_two_runs_over_damaged_pictures_give_the_same_bytes(tmp_path: Path) -> None:
    bad = [
        b"",
        b"no picture",
        PICTURES[0][:40],
        PICTURES[0][:-9],
        b"GIF89a" + bytes(9),
        b"\xff\xd8\xff\xe0" + bytes(90),
    ]
    keys = [make_key(0, index) for index in range(len(bad))]
    members = [m for key, data in zip(keys, bad, strict=True) for m in [(f"{key}.png", data), (f"{key}.txt", b"x")]]
    write_source(tmp_path / "source", 0, members, [row(key) for key in keys])
    digests = []
    for run in "ab":
        ledger = make_ledger(tmp_path / "source", tmp_path / run)
        ledger.to_parquet(tmp_path / f"{run}.parquet")
        assert not ledger["reported"].str.contains(r"0x[0-9a-f]{6}|/tmp|\.tmp-").any()
        digests.append({f.name: file_sha256(f) for f in sorted((tmp_path / run).rglob("*.parquet"))})
    assert digests[0] == digests[1] and file_sha256(tmp_path / "a.parquet") == file_sha256(tmp_path / "b.parquet")


def test_ingest_opens_every_shard_and_counts_what_it_can_read(tmp_path: Path) -> None:
    write_source(tmp_path, 0, [m for key in "abcd" for m in sample(key)], [row(key) for key in "abcd"])
    write_source(tmp_path, 1, [*sample("e", image=b"none"), ("f.png", PICTURES[0])], None)
    (tmp_path / "00002.tar").write_bytes(b"no tar" * 100)
    (tmp_path / "00003.tar").write_bytes(gzip.compress((tmp_path / "00000.tar").read_bytes())[:200])
    (tmp_path / "notes.tar").write_bytes(b"")
    notes = "\n".join(find_corpus(Store(str(tmp_path))).notes)
    assert "4 shards, 00000.tar to 00003.tar" in notes.replace("00000.parquet", "00000.tar")
    assert "of each of the 4 tars, 3 can be read" in notes
    for reason in (
        "1 corrupt (first e in 00001.tar",
        "1 no_caption (first f in 00001.tar",
        "1 unreadable (first 00002.tar",
    ):
        assert reason in notes
    assert "00003.tar" in notes and "1 tars are left out, since their name is not a number (first notes.tar)" in notes
    with pytest.raises(ValueError, match="is one tar: give the folder"):
        find_corpus(Store(str(tmp_path / "00000.tar")))
