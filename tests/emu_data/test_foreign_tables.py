"""Tables and folders that other programs wrote: what pandas, csv and `datasets` can read is read, and no line is
lost."""

import csv
import json
import os
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from emu_data.addresses import Store
from emu_data.shards import list_shards, read_samples
from emu_data.sources.detect import find_corpus
from emu_data.sources.folder import register_folder
from emu_data.sources.table import register_table
from emu_data.sources.text_tables import ERROR, read_frames
from tests.shards import encode, read_all_rows

PICTURES = [encode(Image.fromarray(np.full((8, 8, 3), shade, np.uint8))) for shade in range(6)]
cells = st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff"), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=6),
    separator=st.sampled_from(",\t;|"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_well_formed_values_are_read_as_csv_wrote_them(
    tmp_path: Path, rows: list[tuple[str, str, str]], separator: str, encoding: str, end: str
) -> None:
    path = tmp_path / ("t.tsv" if separator == "\t" else "t.csv")
    with open(path, "w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=separator, lineterminator=end, quoting=csv.QUOTE_ALL)
        writer.writerows([("path", "caption", "x"), *rows])
    (frame,) = read_frames(path, 100, ("path", "caption", "x"))
    assert list(frame[["path", "caption", "x"]].itertuples(index=False, name=None)) == rows
    assert frame[ERROR].isna().all()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(num=st.integers(1, 8), data=st.data())
def test_a_stray_mark_or_separator_loses_at_most_its_own_line(tmp_path: Path, num: int, data: st.DataObject) -> None:
    lines = [f"{i}.png\tthing number {i}" for i in range(num)]
    odd = data.draw(st.integers(0, num - 1))
    place = data.draw(st.integers(0, len(lines[odd])))
    lines[odd] = lines[odd][:place] + data.draw(st.sampled_from('"\t')) + lines[odd][place:]
    path = tmp_path / "t.tsv"
    path.write_text("\n".join(["path\tcaption", *lines]) + "\n")
    (frame,) = read_frames(path, 100, ("path", "caption"))
    assert len(frame) == num
    for i, (name, caption) in enumerate(zip(frame["path"], frame["caption"], strict=True)):
        assert i == odd or (name, caption) == (f"{i}.png", f"thing number {i}")


def test_one_line_with_a_comma_too_many_is_a_row_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,caption\n0.png,a thing, red\n")
    assert register_table(Store(str(tmp_path / "t.csv")), tmp_path / "raw", progress=False) == 1
    (reported,) = read_all_rows(tmp_path / "raw")["error_message"]
    assert reported == "bad_row: line 2 has 3 fields, but the first line has 2"


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_folder_with_metadata_is_read_as_datasets_reads_it(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source" / "train"
    source.mkdir(parents=True)
    table = pd.DataFrame({"file_name": [f"{i}.png" for i in range(4)], "text": [f"thing {i}" for i in range(4)]})
    for name, data in zip(table["file_name"], PICTURES, strict=False):
        (source / name).write_bytes(data)
    write = {
        "jsonl": lambda file: table.to_json(file, orient="records", lines=True),
        "csv": lambda file: table.to_csv(file, index=False),
        "parquet": lambda file: table.to_parquet(file),
    }
    write[kind](source / f"metadata.{kind}")
    theirs = datasets.load_dataset(
        "imagefolder", data_dir=str(source), cache_dir=str(tmp_path / "cache"), split="train"
    )
    (source / "stranger.png").write_bytes(PICTURES[5])
    store = Store(str(tmp_path / "source"))
    assert find_corpus(store).source == "folder"
    assert register_folder(store, tmp_path / "raw", progress=False) == 5
    found = [(s.caption, s.image) for path in list_shards(tmp_path / "raw") for s in read_samples(path)]
    assert found == [(row["text"], PICTURES[i]) for i, row in enumerate(theirs)]  # pyrefly: ignore
    reported = read_all_rows(tmp_path / "raw").set_index("url")["error_message"].dropna()
    assert dict(reported) == {"train/stranger.png": "no_caption: no metadata lists it"}


def test_pictures_inside_a_parquet_of_datasets_are_read_from_it(tmp_path: Path) -> None:
    images = [Image.fromarray(np.full((8, 8, 3), shade, np.uint8)) for shade in range(5)]
    features = datasets.Features({"image": datasets.Image(), "captions": datasets.Sequence(datasets.Value("string"))})
    captions = [["", f"thing {i}", "x"] for i in range(5)]
    written = datasets.Dataset.from_dict({"image": images, "captions": captions}, features=features)
    (tmp_path / "source").mkdir()
    written.to_parquet(tmp_path / "source" / "train.parquet", batch_size=2)
    store = Store(str(tmp_path / "source"))
    assert find_corpus(store).source == "table"
    assert register_table(store, tmp_path / "raw", samples_per_shard=3, progress=False) == 5
    found = {s.caption: s for path in list_shards(tmp_path / "raw") for s in read_samples(path)}
    assert list(found) == [f"thing {i}" for i in range(5)]
    for i, sample in enumerate(found.values()):
        assert sample.image == encode(images[i]) and (sample.meta["width"], sample.meta["height"]) == (8, 8)


@pytest.mark.parametrize("layout", ["files", "parquet"])
def test_what_img2dataset_could_not_download_has_a_row_in_its_other_layouts_too(tmp_path: Path, layout: str) -> None:
    """As img2dataset 1.47 writes them: loose files in NNNNN/ beside NNNNN.parquet, or the bytes in a column `jpg`."""
    rows = pd.DataFrame(
        {
            "caption": [f"thing {i}" for i in range(6)],
            "url": [f"http://127.0.0.1:1/{i}.png" for i in range(6)],
            "key": [f"{i // 3:05d}{i % 3:04d}" for i in range(6)],
            "status": ["success", "failed_to_download", "success", "success", "failed_to_resize", "success"],
            "error_message": [None, "HTTP Error 404: Not Found", None, None, "Image decoding error", None],
            "width": pd.array([8, None, 8, 8, None, 8], "Int32"),
            "digest": [b"text", None, b"of", b"bytes", None, b""],
        }
    )
    source = tmp_path / "source"
    for shard in range(2):
        part = rows[3 * shard : 3 * shard + 3]
        (source / f"{shard:05d}").mkdir(parents=True)
        there = part["status"] == "success"
        if layout == "parquet":
            (source / f"{shard:05d}").rmdir()
            bytes_of = [picture if good else None for picture, good in zip(PICTURES[3 * shard :], there, strict=False)]
            part = part.assign(jpg=pd.Series(bytes_of, index=part.index, dtype=object))
        else:
            for key, caption in zip(part["key"][there], part["caption"][there], strict=True):
                (source / f"{shard:05d}" / f"{key}.jpg").write_bytes(PICTURES[int(caption[-1])])
                (source / f"{shard:05d}" / f"{key}.txt").write_text(caption)
                (source / f"{shard:05d}" / f"{key}.json").write_text("{}")
        part.to_parquet(source / f"{shard:05d}.parquet")
        (source / f"{shard:05d}_stats.json").write_text("{}")
    if layout == "files":
        (source / "00001" / f"{rows['key'][5]}.jpg").unlink()  # lost since then
    store = Store(str(source))
    found = find_corpus(store)
    assert found.source == ("folder" if layout == "files" else "table")
    register = register_folder if layout == "files" else register_table
    assert register(store, tmp_path / "raw", samples_per_shard=2, progress=False) == 6
    wanted = {f"thing {i}": PICTURES[i] for i in (0, 2, 3, 5)[: 3 if layout == "files" else 4]}
    assert {s.caption: s.image for path in list_shards(tmp_path / "raw") for s in read_samples(path)} == wanted
    reported = dict(read_all_rows(tmp_path / "raw").set_index("caption")["error_message"].dropna())
    assert reported == (
        {
            "thing 1": "missing_file: failed_to_download: HTTP Error 404: Not Found",
            "thing 4": "missing_file: failed_to_resize: Image decoding error",
            "thing 5": "missing_file: success",
        }
        if layout == "files"
        else {
            "thing 1": "no_image: column 'jpg' is null: HTTP Error 404: Not Found",
            "thing 4": "no_image: column 'jpg' is null: Image decoding error",
        }
    )


def test_each_file_named_like_a_picture_has_a_row_and_the_others_are_counted(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    endings = ["png", "JPG", "jfif", "jpe", "avif", "heic", "jxl", "cr2"]
    for ending in endings:
        (source / f"{ending}.{ending}").write_bytes(PICTURES[0])
        (source / f"{ending}.{'TXT' if ending == 'png' else 'caption'}").write_text("a thing")
    for name in ("._png.png", ".DS_Store", "film.mp4", "README"):
        (source / name).write_bytes(b"x")
    odd = os.fsencode(source) + b"/caf\xe9.png"
    with open(odd, "wb") as file:
        file.write(PICTURES[0])
    (source / "utf16.png").write_bytes(PICTURES[0])
    (source / "utf16.txt").write_bytes("a thing".encode("utf-16"))
    (source / "bom.png").write_bytes(PICTURES[0])
    (source / "bom.txt").write_bytes("a thing".encode("utf-8-sig"))
    store = Store(str(source))
    notes = "\n".join(find_corpus(store).notes)
    assert "11 pictures" in notes and "1 have a name that is not UTF-8" in notes
    assert "4 other files are left out: 2 hidden" in notes and "1 .mp4" in notes
    assert register_folder(store, tmp_path / "raw", progress=False) == 11
    rows = read_all_rows(tmp_path / "raw").set_index("url")
    assert set(rows["caption"].dropna()) == {"a thing"} and rows["caption"].notna().sum() == 10
    assert str(rows.loc["caf\\xe9.png", "error_message"]).startswith("bad_path: the file's name is not UTF-8")


def test_what_is_not_a_table_is_an_error_with_the_cause(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    with pytest.raises(ValueError, match="t.xlsx is a spreadsheet: save it as CSV"):
        find_corpus(Store(str(tmp_path)))
    (tmp_path / "t.json").write_text(json.dumps([{"path": "a.png", "caption": "x"}]))
    assert "1 rows, of which 1 can be used" in "\n".join(find_corpus(Store(str(tmp_path / "t.json"))).notes)
