"""What a corpus refers to stays its owner's: it is not linked, copied or changed, and a change of it is noticed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from emu_data.refs import changed_references, digest_files, read_ref
from emu_data.shards import iter_samples, list_shards, read_images
from tests.emu_data.test_standing import MAKERS, write_source


@pytest.fixture(params=list(MAKERS))
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, Callable[[], object]]:
    source, raw = tmp_path / "source", tmp_path / "data" / "raw"
    write_source(request.param, source)
    make = MAKERS[request.param]
    make(source, raw, False)
    return source, raw, lambda: make(source, raw, False)


def a_picture_file(source: Path) -> Path:
    return sorted([*source.glob("*.tar"), *source.glob("*.png")])[0]


def looks(folder: Path) -> dict[str, tuple[int, ...]]:
    stats = {p.name: p.stat() for p in sorted(folder.iterdir())}
    return {name: (s.st_ino, s.st_nlink, s.st_size, s.st_mtime_ns, s.st_mode) for name, s in stats.items()}


def test_the_owners_files_are_neither_linked_nor_copied_nor_changed(made, tmp_path: Path) -> None:
    source, raw, make = made
    before = looks(source)
    assert all(nlink == 1 for _, nlink, *_ in before.values())
    make()
    for _ in (0, 1):  # all pictures are read
        assert len(read_images(raw, [s.key for s in iter_samples(raw)], 8)) == 4
    assert looks(source) == before
    assert [path.suffix for path in list_shards(raw)] == [".ref", ".ref"]
    assert not list(raw.glob("*.png")) and not any(path.is_symlink() for path in raw.rglob("*"))


def test_a_change_of_the_same_size_and_time_is_noticed_by_its_bytes(made) -> None:
    source, raw, make = made
    assert changed_references(raw) == []
    file = a_picture_file(source)
    stat, data = file.stat(), bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert changed_references(raw) in ([str(file)], [str(source)])
    make()
    assert changed_references(raw) == []


def test_a_missing_file_counts_as_changed_and_one_that_comes_back_does_not(made) -> None:
    source, raw, _ = made
    file = a_picture_file(source)
    shutil.move(file, source / "aside")
    assert len(changed_references(raw)) == 1
    shutil.move(source / "aside", file)
    assert changed_references(raw) == []


def test_a_shard_of_one_tar_has_the_tars_md5(tmp_path: Path) -> None:
    write_source("shards", tmp_path / "source")
    MAKERS["shards"](tmp_path / "source", tmp_path / "raw", False)
    reference = read_ref(tmp_path / "raw" / "00000.ref")
    assert reference.md5 == digest_files({"any name": tmp_path / "source" / "00000.tar"})
