"""What people put into the folder of raw shards is adopted, left where it is, or refused; it is never lost."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from emu_data.addresses import Store
from emu_data.files import write_json
from emu_data.samples import Sample, make_key
from emu_data.shards import iter_rows, list_shards, read_samples, write_shard
from emu_data.sources import folder, img2dataset, table
from emu_data.sources.damage import check_truth, write_truth
from emu_data.sources.standing import CORPUS_FILE, new_in, read_corpus_file, write_corpus
from tests.shards import encode

Make = Callable[[], Any]


def add_shard(where: Path, number: int, colour: int = 0, num: int = 2) -> None:
    keys = [make_key(number, i) for i in range(num)]
    picture = encode(Image.new("RGB", (8, 9), (colour, 0, 0)))
    rows = pd.DataFrame({"key": keys, "caption": "a square", "status": "success"}, dtype="string")
    where.mkdir(parents=True, exist_ok=True)
    write_shard(where, number, [Sample(key, picture, "a square") for key in keys], rows)


def make_shards(source: Path, raw: Path, copy: bool) -> int:
    return img2dataset.register_shards(Store(str(source)), raw, copy=copy, progress=False)


def make_folder(source: Path, raw: Path, copy: bool) -> int:
    return folder.register_folder(Store(str(source)), raw, copy, samples_per_shard=2, progress=False)


def make_table(source: Path, raw: Path, copy: bool) -> int:
    return table.register_table(Store(str(source / "table.csv")), raw, copy=copy, samples_per_shard=2, progress=False)


MAKERS = {"shards": make_shards, "folder": make_folder, "table": make_table}


def write_source(kind: str, source: Path, numbers: tuple[int, ...] = (0, 1, 2, 3)) -> None:
    """Write two shards of two rows each, in any of the layouts."""
    if kind == "shards":
        for number in numbers[::2]:
            add_shard(source, number // 2, number)
        return
    source.mkdir(parents=True)
    for number in numbers:
        (source / f"{number}.png").write_bytes(encode(Image.new("RGB", (8, 9), (number, 0, 0))))
        (source / f"{number}.txt").write_text("a square")
    pd.DataFrame({"path": [f"{n}.png" for n in numbers], "caption": "a square"}).to_csv(source / "table.csv")


@pytest.fixture(params=[(kind, copy) for kind in MAKERS for copy in (False, True)], ids=str)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, Make]:
    """A source of each kind, by reference and copied; the folder of raw shards made from it; how to make it again."""
    kind, copy = request.param
    source, raw = tmp_path / "source", tmp_path / "data" / "raw"
    write_source(kind, source)

    def make() -> int:
        return MAKERS[kind](source, raw, copy)

    make()
    return source, raw, make


def read_files(where: Path) -> dict[str, bytes]:
    return {f.relative_to(where).as_posix(): f.read_bytes() for f in sorted(where.rglob("*")) if f.is_file()}


def assert_refused(make: Make, raw: Path, reported: str) -> None:
    """Assert that it is refused with one line that names a file and what to do, and that nothing is changed or left
    beside it."""
    before = read_files(raw.parent)
    with pytest.raises(ValueError, match=reported) as caught:
        make()
    assert "\n" not in str(caught.value) and "emu materialize raw_corpus" in str(caught.value)
    assert read_files(raw.parent) == before


def test_made_again_it_has_the_same_bytes(made: tuple[Path, Path, Make]) -> None:
    _, raw, make = made
    before = read_files(raw)
    assert len(list_shards(raw)) == 2
    make()
    assert read_files(raw) == before


def test_a_whole_shard_that_is_added_stays_and_counts(made: tuple[Path, Path, Make]) -> None:
    _, raw, make = made
    add_shard(raw, 7, 200)
    before = read_files(raw)
    for _ in range(2):
        make()
        assert [path.stem for path in list_shards(raw)] == ["00000", "00001", "00007"]
        assert sum(len(rows) for rows in iter_rows(raw)) == 6
        assert len(list(read_samples(raw / "00007.tar"))) == 2
        after = read_files(raw)
        assert {name for name in before if before[name] != after.get(name)} <= {CORPUS_FILE}
        record = read_corpus_file(raw)
        assert record is not None and record["adopted"] == ["00007"]


def test_other_files_and_folders_stay_where_they_are(made: tuple[Path, Path, Make]) -> None:
    _, raw, make = made
    (raw / "notes" / "deep").mkdir(parents=True)
    (raw / "notes" / "deep" / "more.txt").write_text("mine")
    (raw / "readme.txt").write_text("mine")
    (raw / "link").symlink_to("readme.txt")
    before = read_files(raw)
    for _ in range(2):
        make()
        assert read_files(raw) == before and (raw / "link").is_symlink()


@pytest.mark.parametrize("missing", [".tar", ".parquet"])
def test_half_a_shard_is_refused(made: tuple[Path, Path, Make], missing: str) -> None:
    _, raw, make = made
    add_shard(raw, 7)
    (raw / f"00007{missing}").unlink()
    assert_refused(make, raw, "00007.*half a shard")


def test_a_shard_without_the_layouts_columns_is_refused(made: tuple[Path, Path, Make]) -> None:
    _, raw, make = made
    add_shard(raw, 7)
    pd.DataFrame({"key": [70000, 70001], "caption": "x"}).to_parquet(raw / "00007.parquet")
    assert_refused(make, raw, "00007.parquet lacks the column key, the column status")
    (raw / "00007.parquet").write_bytes(b"no parquet")
    assert_refused(make, raw, "00007.parquet lacks all columns")


def test_what_was_changed_since_is_not_overwritten(made: tuple[Path, Path, Make]) -> None:
    _, raw, make = made
    rows = pd.read_parquet(raw / "00001.parquet").assign(caption="a better caption")
    (raw / "00001.parquet").unlink()
    rows.to_parquet(raw / "00001.parquet")
    assert_refused(make, raw, "00001.parquet are not as raw_corpus wrote them")


def test_what_changed_in_the_source_is_read(tmp_path: Path) -> None:
    source, raw = tmp_path / "source", tmp_path / "data" / "raw"
    write_source("shards", source)
    make_shards(source, raw, False)
    rows = pd.read_parquet(source / "00001.parquet").assign(caption="a better caption")
    with (source / "00001.parquet").open("wb") as file:  # in place: a link would follow it
        rows.to_parquet(file)
    assert "a better caption" not in set(pd.read_parquet(raw / "00001.parquet")["caption"])
    make_shards(source, raw, False)
    assert set(pd.read_parquet(raw / "00001.parquet")["caption"]) == {"a better caption"}


def test_a_missing_file_of_ours_is_made_again(made: tuple[Path, Path, Make]) -> None:
    _, raw, make = made
    before = read_files(raw)
    (raw / "00001.parquet").unlink()
    make()
    assert read_files(raw) == before


def test_a_shard_with_the_name_of_one_of_the_source_is_refused(tmp_path: Path) -> None:
    source, raw = tmp_path / "source", tmp_path / "data" / "raw"
    write_source("shards", source)
    make_shards(source, raw, False)
    add_shard(raw, 2, 200)
    add_shard(source, 2, 100)
    assert_refused(lambda: make_shards(source, raw, False), raw, "00002.parquet.* were put there, and the source has")


def test_only_our_files_are_replaced_by_another_corpus_and_an_added_shard_is_not(made: tuple[Path, Path, Make]) -> None:
    source, raw, _ = made
    other = source.with_name("other")
    add_shard(other, 0, 99, num=1)
    add_shard(raw, 7, 200)
    assert_refused(lambda: make_shards(other, raw, True), raw, "00007.*another corpus")
    for name in ("00007.tar", "00007.parquet"):
        shutil.move(raw / name, source.parent / name)
    make_shards(other, raw, True)
    assert [path.name for path in list_shards(raw)] == ["00000.tar"]
    assert sum(len(rows) for rows in iter_rows(raw)) == 1


def test_pictures_that_the_source_lost_are_not_removed(tmp_path: Path) -> None:
    """If copied, the bytes in data/raw are all that is left of them."""
    source, raw = tmp_path / "source", tmp_path / "shards" / "raw"
    write_source("shards", source)
    make_shards(source, raw, True)
    for file in source.glob("00001*"):
        file.unlink()
    assert_refused(lambda: make_shards(source, raw, True), raw, "00001.tar are the only copies")
    source, raw = tmp_path / "pictures", tmp_path / "copied" / "raw"
    write_source("folder", source)
    make_folder(source, raw, True)
    (source / "0.png").unlink()
    assert_refused(lambda: make_folder(source, raw, True), raw, "1 more rows than its source has")


def test_shards_that_nobody_registered_are_not_replaced(tmp_path: Path) -> None:
    write_source("shards", tmp_path / "source")
    add_shard(tmp_path / "raw", 0)
    before = read_files(tmp_path / "raw")
    with pytest.raises(ValueError, match="raw_corpus did not write"):
        make_shards(tmp_path / "source", tmp_path / "raw", False)
    assert read_files(tmp_path / "raw") == before


def test_a_corpus_of_an_earlier_version_is_adopted_or_refused(made: tuple[Path, Path, Make]) -> None:
    """Its corpus.json does not say which files it wrote."""
    source, raw, make = made
    record = read_corpus_file(raw)
    assert record is not None
    whole = read_files(raw)
    earlier = {name: record[name] for name in ("source", "config")}
    write_json(raw / CORPUS_FILE, earlier)
    assert new_in(raw, record["source"], None, {"x": 1}) == []
    add_shard(source.with_name("other"), 0, 99)
    assert_refused(lambda: make_shards(source.with_name("other"), raw, True), raw, "an earlier version")
    make()
    assert read_files(raw) == whole
    write_json(raw / CORPUS_FILE, earlier)
    add_shard(raw, 7, 200)
    make()
    assert [path.stem for path in list_shards(raw)] == ["00000", "00001", "00007"]


def test_a_kill_between_the_two_renames_loses_nothing(made: tuple[Path, Path, Make]) -> None:
    _, raw, make = made
    add_shard(raw, 7, 200)
    make()
    before = read_files(raw)
    raw.rename(raw.with_name(".raw.tmp-0123abcd-old"))
    make()
    assert read_files(raw) == before


def test_a_source_that_fails_halfway_leaves_what_was_there(tmp_path: Path) -> None:
    write_source("shards", tmp_path / "source")
    make_shards(tmp_path / "source", tmp_path / "raw", True)
    before = read_files(tmp_path)
    with pytest.raises(OSError, match="gone"), write_corpus(tmp_path / "raw", "img2dataset", "x", {}) as partial:
        add_shard(partial, 0)
        raise OSError("the store is gone")
    assert read_files(tmp_path) == before


def test_what_is_new_in_the_source_is_found_in_its_listing(made: tuple[Path, Path, Make]) -> None:
    source, raw, make = made
    kind = str((read_corpus_file(raw) or {})["source"])
    add = {
        "img2dataset": lambda: add_shard(source, 2, 50),
        "folder": lambda: write_pair(source, 9),
        "table": lambda: append_row(source),
    }[kind]

    def ask() -> list[str]:
        if kind == "table":
            config = table.describe(Store(str(source / "table.csv")), None, None, None)
            return new_in(raw, kind, config, table.inspect_source(Store(str(source / "table.csv"))))
        module = {"img2dataset": img2dataset, "folder": folder}[kind]
        return new_in(raw, kind, str(source), module.inspect_source(Store(str(source))))

    assert ask() == []
    add()
    names = {"img2dataset": ["00002.parquet", "00002.tar"], "folder": [str(source)]}
    assert ask() == names.get(kind, [str(source / "table.csv")])
    make()
    assert ask() == []
    assert new_in(raw, kind, "another corpus", {"x": 1}) == []


def write_pair(source: Path, number: int) -> None:
    (source / f"{number}.png").write_bytes(encode(Image.new("RGB", (8, 9))))
    (source / f"{number}.txt").write_text("a square")


def append_row(source: Path) -> None:
    rows = pd.read_csv(source / "table.csv", index_col=0)
    pd.concat([rows, rows.tail(1)]).to_csv(source / "table.csv")


def test_the_truth_about_the_damage_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "damage.parquet"
    one, other = (pd.DataFrame({"key": ["a"], "damage": [kind]}) for kind in ("", "text"))
    for truth in (one, other, other):
        check_truth(path, truth)
        write_truth(path, truth)
    pd.read_parquet(path).assign(damage="mine").to_parquet(path)
    with pytest.raises(ValueError, match="damage.parquet is not as raw_corpus wrote it"):
        check_truth(path, one)
    one.to_parquet(path)  # written by an earlier version, which is the same
    check_truth(path, one)
