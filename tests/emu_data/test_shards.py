import io
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from emu_data.bodies import TAR_KEY
from emu_data.files import file_sha256
from emu_data.samples import Sample, SampleError, make_key
from emu_data.shards import (
    list_shards,
    read_images,
    read_manifest,
    read_rows,
    read_rows_of,
    read_samples,
    write_shard,
    write_subset,
)


def make_samples(shard: int, num: int) -> list[Sample]:
    samples = []
    for index in range(num):
        buffer = io.BytesIO()
        Image.new("RGB", (12, 10), (shard * 40, index * 20, 7)).save(buffer, "PNG")
        key = make_key(shard, index)
        samples.append(Sample(key, buffer.getvalue(), f"picture {key} ü", {"key": key, "likes": index}))
    return samples


def write(folder: Path, shard: int, num: int) -> list[Sample]:
    samples = make_samples(shard, num)
    rows = [{"key": s.key, "caption": s.caption, "status": "success"} for s in samples]
    rows.append({"key": make_key(shard, num), "caption": "gone", "status": "failed_to_download"})
    write_shard(folder, shard, samples, pd.DataFrame(rows))
    return samples


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def test_round_trip(tmp_path: Path) -> None:
    samples = write(tmp_path, 3, 5)
    (tar,) = list_shards(tmp_path)
    assert list(read_samples(tar)) == samples
    assert list(read_rows(tar)["status"]) == ["success"] * 5 + ["failed_to_download"]
    assert tar.name == "00003.tar"


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, 0, 4)
    for suffix in ("00000.tar", "00000.parquet", "00000_stats.json"):
        assert file_sha256(tmp_path / "one" / suffix) == file_sha256(tmp_path / "two" / suffix)


def test_a_truncated_tar_keeps_its_good_beginning(tmp_path: Path) -> None:
    samples = write(tmp_path, 0, 6)
    tar = tmp_path / "00000.tar"
    data = tar.read_bytes()
    read = []
    for num_blocks in range(1, 45):  # of 512 bytes: member headers, contents, and the bounds between them
        tar.write_bytes(data[: num_blocks * 512 - (num_blocks % 2) * 100])
        errors: list[SampleError] = []
        read = list(read_samples(tar, errors.append))
        assert read == samples[: len(read)]
        assert {error.reason for error in errors} == {"truncated"} or len(read) == 6
        assert {error.key for error in errors} in ({s.key for s in samples[len(read) :]}, {TAR_KEY})
        if len(read) < 6:
            with pytest.raises(ValueError, match="truncated"):
                list(read_samples(tar))
    assert len(read) >= 5


def test_bad_records_are_reported_and_the_rest_is_read(tmp_path: Path) -> None:
    good = make_samples(0, 1)[0]
    path = tmp_path / "00000.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "../../etc/evil.png", good.image)
        add(tar, "a.png", good.image)
        add(tar, "a.txt", b"\xff no text")
        add(tar, "b.txt", b"no picture")
        add(tar, "c.png", good.image)
        add(tar, "c.txt", b"fine")
        add(tar, "d.png", good.image)
        add(tar, "c.png", good.image)
        add(tar, "c.txt", b"again")
    errors: list[SampleError] = []
    read = list(read_samples(path, errors.append))
    assert [sample.caption for sample in read] == ["fine"]
    reported = {(error.key, error.reason) for error in errors}
    assert reported == {
        ("evil", "bad_path"),
        ("a", "bad_text"),
        ("b", "no_image"),
        ("d", "no_caption"),
        ("c", "duplicate_key"),
    }


def test_images_come_in_the_requested_order(tmp_path: Path) -> None:
    write(tmp_path, 0, 3)
    write(tmp_path, 1, 3)
    keys = [make_key(1, 2), make_key(0, 0), make_key(1, 0), make_key(1, 2)]
    images = read_images(tmp_path, keys, 8)
    assert images.shape == (4, 8, 8, 3)
    assert [tuple(image[0, 0]) for image in images] == [(40, 40, 7), (0, 0, 7), (40, 0, 7), (40, 40, 7)]
    with pytest.raises(ValueError, match=make_key(5, 5)):
        read_images(tmp_path, [make_key(5, 5)], 8)


def test_the_central_square_is_used(tmp_path: Path) -> None:
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    sample = Sample(make_key(0, 0), buffer.getvalue(), "white in the middle")
    write_shard(tmp_path, 0, [sample], pd.DataFrame([{"key": sample.key, "status": "success"}]))
    assert (read_images(tmp_path, [sample.key], 10) == 255).all()


def test_a_subset_keeps_keys_bytes_and_captions(tmp_path: Path) -> None:
    before = {s.key: s for s in write(tmp_path / "raw", 0, 5) + write(tmp_path / "raw", 1, 5)}
    keys = [make_key(1, 4), make_key(0, 1), make_key(1, 0)]
    extra = pd.DataFrame({"key": keys, "votes": [3, 2, 1]})
    write_subset(tmp_path / "raw", tmp_path / "out", keys, 2, extra)
    after = {s.key: s for tar in list_shards(tmp_path / "out") for s in read_samples(tar)}
    assert list(after) == keys
    assert {key: s.image for key, s in after.items()} == {key: before[key].image for key in keys}
    assert list(read_manifest(tmp_path / "out")["votes"]) == [3, 2, 1]
    assert {key: s.caption for key, s in after.items()} == {key: before[key].caption for key in keys}
    assert list(read_manifest(tmp_path / "out")["caption"]) == [before[key].caption for key in keys]
    with pytest.raises(ValueError, match="no row, the first are .*missing"):
        read_rows_of(tmp_path / "out", [*keys, "missing"])
    assert (read_images(tmp_path / "out", keys, 8) == read_images(tmp_path / "raw", keys, 8)).all()


def test_unfinished_and_foreign_files_are_not_shards(tmp_path: Path) -> None:
    write(tmp_path, 0, 1)
    for name in (".00001.tar.tmp-1234", "notes.tar", "1.tar"):
        (tmp_path / name).write_bytes(b"")
    assert [tar.name for tar in list_shards(tmp_path)] == ["00000.tar"]


def test_samples_need_rows_and_keys_are_unique(tmp_path: Path) -> None:
    samples = make_samples(0, 2)
    with pytest.raises(ValueError, match="no row"):
        write_shard(tmp_path, 0, samples, pd.DataFrame([{"key": samples[0].key, "status": "success"}]))
    with pytest.raises(ValueError, match="repeated keys"):
        write_shard(tmp_path, 0, [], pd.DataFrame([{"key": "1", "status": "x"}] * 2))
    assert list_shards(tmp_path) == []
