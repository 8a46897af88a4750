"""The rows of a training: a file that says what the table and the shards say, read by any process, stale for none."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from emu_data.samples import Sample, make_key
from emu_data.shards import iter_samples, shard_digest, write_shard
from emu_models.training import parts, row_file
from emu_models.training.jobs import SHARD_MARKS
from emu_models.training.order import held_out
from emu_models.training.parts import Part, count_groups
from emu_models.training.row_file import RowFile, Texts, open_rows
from emu_models.training.rows import PictureRows
from tests.shards import encode

CAPTIONS = ("a red square", "ein Übermaß", "", '"quoted" \\ text\n', "a red square", "漢字", "x" * 300)


def write_shards(folder: Path, num_shards: int = 2, num_rows: int = 7, tint: int = 0) -> tuple[Path, Path]:
    """Write shards and a table of all rows but the last, in no order; return both paths."""
    tables = []
    for shard in range(num_shards):
        keys = [make_key(shard, i) for i in range(num_rows)]
        captions = [CAPTIONS[i % len(CAPTIONS)] for i in range(num_rows)]
        pictures = [encode(Image.new("RGB", (16 + i, 16), (9 * i, 99 * shard, tint))) for i in range(num_rows)]
        table = pd.DataFrame({"key": keys, "caption": captions, "status": "success", "width": 1, "height": 1})
        samples = [Sample(*given) for given in zip(keys, pictures, captions, strict=True)]
        write_shard(folder / "shards", shard, samples, table)
        tables.append(table.assign(shard=f"{shard:05d}"))
    every = pd.concat(tables, ignore_index=True).iloc[:-1].sample(frac=1, random_state=0)
    every[["key", "caption"]].to_parquet(folder / "rows.parquet")
    return folder / "shards", folder / "rows.parquet"


def as_measured(shards: Path, table: Path, **columns: int) -> Path:
    """Write beside the table one that has digests, as the ledger has them, with the marks of the shards."""
    digests = {sample.key: hashlib.sha256(sample.image).hexdigest() for sample in iter_samples(shards)}
    frame = pd.read_parquet(table)
    sizes = {"width": 16, "height": 16} | columns
    frame = frame.assign(shard=frame["key"].str[:5], digest=frame["key"].map(digests), **sizes)
    marks = {shard: shard_digest(shards / f"{shard}.parquet") for shard in frame["shard"].unique()}
    measured = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(
        measured.replace_schema_metadata({SHARD_MARKS: json.dumps(marks)}), table.with_name("measured.parquet")
    )
    return table.with_name("measured.parquet")


def all_of(file: RowFile, *columns: str) -> list[tuple]:
    return list(zip(*file.read(np.arange(len(file)), *columns), strict=True))


def test_the_file_says_what_the_table_and_the_pictures_say(tmp_path):
    shards, table = write_shards(tmp_path)
    file = open_rows(shards, table, tmp_path / "cache")
    given = pd.read_parquet(table).sort_values("key")
    pictures = {sample.key: sample.image for sample in iter_samples(shards)}
    assert len(file) == len(given) == 13
    for (key, caption, digest, of_caption, width, shard), row in zip(
        all_of(file, "key", "caption", "digest", "caption_digest", "width", "shard"), given.itertuples(), strict=True
    ):
        assert (key, caption) == (row.key, row.caption)
        assert digest == hashlib.sha256(pictures[key]).digest()
        assert of_caption == hashlib.sha256(caption.encode()).digest()[:16]
        assert width == 16 + int(key[5:]) and file.shard_names[shard] == key[:5]
    (flags,) = file.read(np.arange(13), "is_held_out")
    expected = held_out(given["key"].tolist(), row_file.HELD_OUT_SHARE, row_file.HELD_OUT_MINIMUM)
    assert flags == expected.astype(int).tolist() and sum(flags) == 4


def test_rows_beyond_a_block_are_the_same(tmp_path, monkeypatch):
    shards, table = write_shards(tmp_path)
    names = row_file.COLUMNS.names
    file = open_rows(shards, table, tmp_path / "whole")
    num_blocks, whole, keys = file.num_blocks, all_of(file, *names), list(Texts(file, "key"))
    for module in (parts, row_file):
        monkeypatch.setattr(module, "ROWS_PER_BLOCK", 4)
    blocks = open_rows(shards, table, tmp_path / "blocks")
    assert (num_blocks, blocks.num_blocks) == (1, 4)
    assert all_of(blocks, *names) == whole
    mixed = np.array([11, 0, 5, 5, 12])
    assert blocks.read(mixed, "key")[0] == [keys[i] for i in mixed]
    pictures = PictureRows(shards, blocks, [(16, 16), (24, 16)], 1)
    assert list(pictures.keys) == keys
    is_held = np.array(blocks.read(np.arange(13), "is_held_out")[0], bool)
    assert pictures.trained.rows(np.arange(9)).tolist() == np.flatnonzero(~is_held).tolist()
    assert pictures.held_out.rows(np.arange(4)).tolist() == np.flatnonzero(is_held).tolist()


@given(width=st.integers(1, 4000), height=st.integers(1, 4000), size=st.sampled_from([(16, 16), (24, 16), (16, 32)]))
@settings(max_examples=60, deadline=None)
def test_sizes_say_what_was_cropped_away(tmp_path_factory, width, height, size):
    """The margins and the crop together are the resized original; a picture of unknown size counts as uncropped."""
    folder = tmp_path_factory.mktemp("sizes")
    table = as_measured(*write_shards(folder, 1, 3), width=width, height=height)
    rows = PictureRows(folder / "shards", open_rows(folder / "shards", table, folder / "cache"), [size], 1)
    found = rows.sizes_of(np.array([1, 0]))
    assert found.shape == (2, 6) and bool((found[0] == found[1]).all())
    own_height, own_width, top, left, target_height, target_width = found[0].tolist()
    assert (own_width, own_height, target_width, target_height) == (width, height, *size)
    assert min(top, left) == 0 and min(found[0].tolist()) >= 0
    scale = min(width / size[0], height / size[1])
    assert abs(2 * top + size[1] - height / scale) <= 1 and abs(2 * left + size[0] - width / scale) <= 1
    unknown = as_measured(folder / "shards", folder / "rows.parquet", width=0)
    rows = PictureRows(folder / "shards", open_rows(folder / "shards", unknown, folder / "other"), [size], 1)
    assert rows.sizes_of(np.array([0])).tolist() == [[size[1], size[0], 0, 0, size[1], size[0]]]


def test_the_hashes_are_those_of_the_rows_wherever_they_are_and_in_any_order(tmp_path):
    """And of nothing else; a training's identity has them."""
    hashes = []
    for name, tint in (("one", 0), ("two", 0), ("other", 1)):
        shards, table = write_shards(tmp_path / name, tint=tint)
        if name == "two":
            pd.read_parquet(table).sort_values("key").assign(more=1).to_parquet(table)
        hashes.append(open_rows(shards, table, tmp_path / name / "cache").hashes)
    assert hashes[0] == hashes[1]
    assert hashes[0]["pictures"] != hashes[2]["pictures"] and hashes[0]["pairs"] != hashes[2]["pairs"]
    frame = pd.read_parquet(tmp_path / "one" / "rows.parquet")
    frame.loc[frame.index[3], "caption"] = "another"
    frame.to_parquet(tmp_path / "one" / "told.parquet")
    told = open_rows(tmp_path / "one" / "shards", tmp_path / "one" / "told.parquet", tmp_path / "one" / "cache").hashes
    assert told["pictures"] == hashes[0]["pictures"] and told["pairs"] != hashes[0]["pairs"]


def test_a_missing_picture_is_named(tmp_path):
    shards, table = write_shards(tmp_path)
    frame = pd.read_parquet(table)
    pd.concat([frame, pd.DataFrame({"key": ["000009999"], "caption": "x"})]).to_parquet(table)
    with pytest.raises(ValueError, match="1 keys have no readable sample.*000009999"):
        open_rows(shards, table, tmp_path / "cache")


def refuse(*arguments: object, **more: object) -> None:
    raise AssertionError("it was read again")


def test_digests_of_the_ledger_are_taken_and_a_changed_tar_is_noticed(tmp_path, monkeypatch):
    shards, table = write_shards(tmp_path)
    hashed = open_rows(shards, table, tmp_path / "hashed")
    measured = as_measured(shards, table)
    with monkeypatch.context() as patch:
        patch.setattr(row_file, "read_samples", refuse)
        taken = open_rows(shards, measured, tmp_path / "cache")
    assert taken.hashes == hashed.hashes
    write_shards(tmp_path / "new", tint=5)
    os.replace(tmp_path / "new" / "shards" / "00001.tar", shards / "00001.tar")
    changed = open_rows(shards, measured, tmp_path / "cache")
    same = [mine == theirs for mine, theirs in zip(all_of(changed, "digest"), all_of(taken, "digest"), strict=True)]
    assert same == [True] * 7 + [False] * 6
    digests = {sample.key: hashlib.sha256(sample.image).digest() for sample in iter_samples(shards)}
    assert all(digests[key] == digest for key, digest in all_of(changed, "key", "digest"))


def test_a_later_start_reads_neither_shards_nor_table(tmp_path, monkeypatch):
    shards, table = write_shards(tmp_path)
    first = open_rows(shards, table, tmp_path / "cache")
    with monkeypatch.context() as patch:
        for name in ("read_samples", "shard_digest", "file_sha256", "_write"):
            patch.setattr(row_file, name, refuse)
        assert open_rows(shards, table, tmp_path / "cache").name == first.name
    os.utime(shards / "00000.tar", ns=(1, 1))  # touched, as by a checkout: looked at again, but not made again
    with monkeypatch.context() as patch:
        for name in ("read_samples", "_write"):
            patch.setattr(row_file, name, refuse)
        assert open_rows(shards, table, tmp_path / "cache").name == first.name
    assert not list((tmp_path / "cache" / "rows").glob("*-of-*"))


def test_no_picture_is_used_whose_bytes_the_ledger_did_not_see(tmp_path):
    shards, table = write_shards(tmp_path)
    measured = as_measured(shards, table)
    frame = pq.read_table(measured)
    wrong = frame.to_pandas().sort_values("key", ignore_index=True)
    wrong.loc[3, "digest"] = "0" * 64
    pq.write_table(pa.Table.from_pandas(wrong).replace_schema_metadata(frame.schema.metadata), measured)
    pictures = PictureRows(shards, open_rows(shards, measured, tmp_path / "cache"), [(16, 16)], 1)
    assert next(pictures.read(np.array([4, 2, 9]), 3)).shape == (3, 16, 16, 3)
    with pytest.raises(ValueError, match="1 pictures have changed.*000000003.*filter_ledger"):
        next(pictures.read(np.array([4, 3]), 2))


def test_a_size_that_is_unknown_is_refused_only_where_a_bucket_depends_on_it(tmp_path):
    shards, table = write_shards(tmp_path)
    file = open_rows(shards, as_measured(shards, table, height=0), tmp_path / "cache")
    assert len(PictureRows(shards, file, [(16, 16)], 1)) == 13
    with pytest.raises(ValueError, match="the size of 000000000"):
        PictureRows(shards, file, [(16, 16), (24, 16)], 1)


@given(groups=st.lists(st.sampled_from([0, 1, 5, 128, 133]), max_size=40), chosen=st.sets(st.integers(0, 255)))
@settings(deadline=None)
def test_a_part_finds_its_rows_without_a_list_of_them(groups, chosen):
    group_N, wanted = np.array(groups, np.uint8), tuple(sorted(chosen | {0, 133}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "ROWS_PER_BLOCK", 3)
        part = Part(group_N, count_groups(group_N), wanted)
        expected = np.flatnonzero(np.isin(group_N, wanted))
        assert len(part) == len(expected)
        places = np.random.default_rng(0).permutation(len(expected))
        assert part.rows(places).tolist() == expected[places].tolist()
        assert part.buckets_of(expected).tolist() == (group_N[expected] % 128).tolist()
        assert sum(len(bucket) for bucket in part.buckets) == len(part)
