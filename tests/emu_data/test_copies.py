"""Shards read many times: from a copy of a remote tar, and from any place of a local one."""

from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest
from PIL import Image

from emu_data import bodies
from emu_data.addresses import Store
from emu_data.bodies import read_body, read_often
from emu_data.copies import Copies
from emu_data.refs import Reference
from emu_data.samples import Sample
from emu_data.shards import write_shard
from tests.shards import encode


def write(folder: Path, number: int, keys: list[str]) -> Path:
    samples = [Sample(key, encode(Image.new("RGB", (8, 8), (number, i, 0))), f"x{i}") for i, key in enumerate(keys)]
    table = pd.DataFrame({"key": keys, "caption": "x", "status": "success"})
    return write_shard(folder, number, samples, table)


def send_away(tar: Path) -> Path:
    """Move a tar to a store in memory and return its reference."""
    address = f"memory://far/{tar.parent.parent.name}/{tar.name}"
    with fsspec.open(address, "wb") as opened:
        file: Any = opened
        file.write(tar.read_bytes())
    Reference(tar.with_suffix(".ref"), "tar", Store(address)).write()
    tar.unlink()
    return tar.with_suffix(".ref")


def test_any_sample_is_found_again_without_the_ones_before_it(tmp_path, monkeypatch):
    keys = ["a", "b.c", "d/e", "f%", "ü" * 120, "g"]
    tar = write(tmp_path, 0, keys)
    whole = {sample.key: sample for sample in read_body(tar, lambda error: None)}
    assert set(whole) == set(keys)
    bodies._index_tar.cache_clear()
    for key in [*reversed(keys), *keys]:
        assert list(read_often(tar, {key})) == [whole[key]]
    assert bodies._index_tar.cache_info().hits == 2 * len(keys) - 1
    assert list(read_often(tar, {"missing"})) == []
    write(tmp_path, 0, ["a", "z"])  # replaced: its places are looked for again
    assert [sample.key for sample in read_often(tar, {"z"})] == ["z"]


@pytest.mark.parametrize("damage", ["cut", "more", "compressed"])
def test_a_tar_that_is_odd_is_read_as_ever(tmp_path, damage):
    import gzip

    tar = write(tmp_path, 0, ["a", "b", "c"])
    if damage == "cut":
        tar.write_bytes(tar.read_bytes()[:-9000])
    elif damage == "more":
        pd.read_parquet(tar.with_suffix(".parquet")).iloc[:2].to_parquet(tar.with_suffix(".parquet"))
    else:
        tar.write_bytes(gzip.compress(tar.read_bytes()))
    for key in ("a", "b", "c"):
        assert list(read_often(tar, {key})) == list(read_body(tar, lambda error: None, {key}))


def test_a_remote_tar_is_fetched_once_and_the_oldest_copies_make_room(tmp_path):
    raw = tmp_path / "raw"
    tars = [write(raw, number, ["a", "b"]) for number in range(3)]
    size = tars[0].stat().st_size
    shards = [send_away(tar) for tar in tars]
    copies = Copies(tmp_path / "copies", int(2.5 * size))
    paths = [copies.of(shard) for shard in shards[:2]]
    assert all([s.key for s in read_often(path, {"b"})] == ["b"] for path in paths)
    fsspec.filesystem("memory").rm("/far", recursive=True)  # so that nothing can be fetched again
    assert [copies.of(shard) for shard in shards[:2]] == paths
    with pytest.raises(OSError):
        copies.of(shards[2])
    assert not list((tmp_path / "copies").rglob(".*"))


def test_what_was_used_longest_ago_goes(tmp_path):
    import os

    tars = [write(tmp_path / "raw", number, ["a"]) for number in range(3)]
    size = tars[0].stat().st_size
    shards = [send_away(tar) for tar in tars]
    copies = Copies(tmp_path / "copies", int(2.5 * size))
    first, second = copies.of(shards[0]), copies.of(shards[1])
    os.utime(second, (1, 1))
    third = copies.of(shards[2])
    assert first.is_file() and third.is_file() and not second.parent.exists()


def test_a_local_shard_is_not_copied(tmp_path):
    tar = write(tmp_path / "raw", 0, ["a"])
    assert Copies(tmp_path / "copies", 1).of(tar) == tar
    assert not (tmp_path / "copies").exists()
