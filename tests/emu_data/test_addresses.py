"""The three kinds of corpus at a local path, on the web, in an S3 bucket and in memory; tables of every format."""

import functools
import http.server
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from emu_data.addresses import Store, check_options
from emu_data.samples import SampleError, decode_rgb
from emu_data.shards import list_shards, read_many, read_samples
from emu_data.sources.detect import find_corpus
from emu_data.sources.folder import register_folder
from emu_data.sources.img2dataset import register_shards
from emu_data.sources.table import register_table
from emu_data.sources.text_tables import ERROR, read_frames
from emu_data.texts import clean
from tests.shards import read_all_rows, write_toy_shards

STORES = ("local", "web", "s3", "memory")
NUM_PICTURES = 5


def encode(colour: int, format_name: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 10, 3), colour, np.uint8)).save(buffer, format_name)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards/ as img2dataset leaves them, pictures/ with captions, tables/ that name those pictures."""
    top = tmp_path_factory.mktemp("corpora")
    write_toy_shards(top, NUM_PICTURES)
    (top / "pictures" / "a b").mkdir(parents=True)
    rows = []
    for number in range(NUM_PICTURES):
        name = f"a b/{number} ü.webp" if number % 2 else f"{number}.png"
        path = top / "pictures" / name
        path.write_bytes(encode(number * 40, "WEBP" if number % 2 else "PNG"))
        path.with_suffix(".txt").write_text(f"grey {number}", encoding="utf-8")
        rows.append({"file_name": name, "text": f"grey {number}", "url": f"http://x/{number}", "likes": number})
    table = pd.DataFrame(rows)
    (top / "tables").mkdir()
    table.to_parquet(top / "pictures" / "table.parquet")
    table.to_csv(top / "pictures" / "table.csv", index=False)
    (top / "pictures" / "table.jsonl").write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    return top


@pytest.fixture(scope="module")
def web(corpora: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(corpora))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def bucket(corpora: Path) -> Iterator[str]:
    """A bucket whose address and keys are in the environment, where s3fs reads them."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    patch = pytest.MonkeyPatch()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        patch.setenv(name, value)
    s3 = fsspec.filesystem("s3", skip_instance_cache=True)
    s3.mkdir("corpora")
    copy_all(corpora, s3, "corpora")
    yield "s3://corpora"
    patch.undo()
    server.stop()


def copy_all(source: Path, filesystem: Any, target: str) -> None:
    for file in source.rglob("*"):
        if file.is_file():
            filesystem.pipe_file(f"{target}/{file.relative_to(source).as_posix()}", file.read_bytes())


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, corpora: Path) -> str:
    """The address under which the corpora are."""
    match request.param:
        case "web":
            return request.getfixturevalue("web")
        case "s3":
            return request.getfixturevalue("bucket")
        case "memory":
            copy_all(corpora, fsspec.filesystem("memory"), "/corpora")
            return "memory://corpora"
    return str(corpora)


def read_everything(raw: Path) -> dict[str, tuple[int, str]]:
    """Return caption -> (grey of the first pixel, key), with every way of reading."""
    errors: list[SampleError] = []
    samples = [sample for path in list_shards(raw) for sample in read_samples(path, errors.append)]
    assert not errors
    assert read_many(raw, [sample.key for sample in samples]) == {sample.key: sample for sample in samples}
    rows = read_all_rows(raw)
    assert set(rows["key"]) == {sample.key for sample in samples}
    return {s.caption: (decode_rgb(s.image).getpixel((0, 0))[0], s.key) for s in samples}  # type: ignore[index]


@pytest.mark.parametrize("copy", [False, True])
def test_shards_from_every_store(store: str, corpora: Path, tmp_path: Path, copy: bool) -> None:
    assert find_corpus(Store(f"{store}/shards")).source == "img2dataset"
    assert register_shards(Store(f"{store}/shards"), tmp_path / "raw", copy, progress=False) == 1
    (path,) = list_shards(tmp_path / "raw")
    assert path.suffix == (".tar" if copy else ".ref")
    assert len({key for _, key in read_everything(tmp_path / "raw").values()}) == 4  # of five, two are alike
    theirs = corpora / "shards" / "00000.parquet"
    assert (tmp_path / "raw" / "00000.parquet").read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("copy", [False, True])
def test_folders_from_every_store(store: str, tmp_path: Path, copy: bool) -> None:
    corpus = find_corpus(Store(f"{store}/pictures"), kind="folder")
    assert corpus.source == "folder"
    num_rows = register_folder(Store(corpus.path), tmp_path / "raw", copy, samples_per_shard=2, progress=False)
    assert num_rows == NUM_PICTURES
    found = read_everything(tmp_path / "raw")
    assert {caption: grey for caption, (grey, _) in found.items()} == {f"grey {n}": n * 40 for n in range(NUM_PICTURES)}
    rows = read_all_rows(tmp_path / "raw")
    assert set(rows["width"]) == {10} and set(rows["height"]) == {8}
    assert sorted(rows["url"])[-1] == "a b/3 ü.webp"


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_tables_from_every_store(store: str, tmp_path: Path, suffix: str) -> None:
    corpus = find_corpus(Store(f"{store}/pictures/table.{suffix}"))
    assert corpus.source == "table"
    assert corpus.settings["image_column"] == "file_name"  # the path, not the URL that it came from
    assert f"{NUM_PICTURES} of {NUM_PICTURES} pictures tried" in corpus.notes[-1]
    num_rows = register_table(Store(corpus.path), tmp_path / "raw", samples_per_shard=2, progress=False)
    assert num_rows == NUM_PICTURES
    found = read_everything(tmp_path / "raw")
    assert {caption: grey for caption, (grey, _) in found.items()} == {f"grey {n}": n * 40 for n in range(NUM_PICTURES)}
    rows = read_all_rows(tmp_path / "raw")
    assert list(rows["likes"]) == list(range(NUM_PICTURES))
    assert list(rows["table_url"]) == [f"http://x/{n}" for n in range(NUM_PICTURES)]


def test_table_of_urls_and_bad_rows(web: str, corpora: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(encode(9))
    table = pd.DataFrame(
        {
            "url": [
                f"{web}/pictures/0.png",
                f"{web}/pictures/none.png",
                "http://127.0.0.1:9/dead.png",
                str(secret),
                "../secret.png",
                f"file://{secret}",
                None,
                f"{web}/pictures/2.png",
            ],
            "TEXT": [*"abcdefg", None],
        }
    )
    folder = tmp_path / "tables"
    folder.mkdir()
    table.to_parquet(folder / "one.parquet")
    (folder / "two.parquet").write_bytes(b"no parquet")
    assert find_corpus(Store(str(folder))).settings["caption_column"] == "TEXT"
    assert register_table(Store(str(folder)), tmp_path / "raw", progress=False) == 9
    errors: list[SampleError] = []
    good = [s.caption for path in list_shards(tmp_path / "raw") for s in read_samples(path, errors.append)]
    assert good == ["a"]
    assert [error.reason for error in errors] == ["missing_file", "unreachable"]
    reported = read_all_rows(tmp_path / "raw")["error_message"].str.partition(":")[0].dropna()
    assert list(reported) == ["bad_path"] * 3 + ["bad_row", "no_caption", "bad_table"]


def test_bad_lines_and_bytes_of_text_tables_lose_only_their_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(
        b"path,caption,code,n,x\n"
        b'a.png,"one, quoted",007,1,1.5\nb.png,caf\xe9,1,2,\nfew,fields\nd.png,e,f,1,2,3\nc.png,"two\nlines",2,,2\n'
    )
    (frame,) = read_frames(tmp_path / "t.csv", 10)
    assert list(frame[ERROR].str.partition(":")[0].fillna("")) == ["", "bad_text", "", "bad_row", ""]
    assert list(frame["code"].fillna("-")) == ["007", "1", "-", "-", "2"]
    assert (str(frame["n"].dtype), str(frame["x"].dtype)) == ("Int64", "Float64")
    assert list(frame["caption"].dropna()) == ["one, quoted", r"caf\xe9", "fields", "two\nlines"]
    (tmp_path / "t.jsonl").write_bytes(
        b'{"path": "a", "n": 1}\n[1]\n{"path": \n\n{"path": "b", "n": {"k": 1}}\n{"path": "\\ud800"}\n'
    )
    (frame,) = read_frames(tmp_path / "t.jsonl", 10)
    assert list(frame[ERROR].notna()) == [False, True, True, False, False]
    assert frame["path"].iloc[-1] == "\N{REPLACEMENT CHARACTER}"
    assert list(frame["n"].dropna()) == ["1", '{"k": 1}']


def test_parquet_text_that_is_not_utf8_loses_only_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(0))
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    table = pa.table({"path": ["a.png", "a.png"], "caption": pa.chunked_array([bad, pa.array(["fine"])])})
    pq.write_table(table, tmp_path / "t.parquet")
    register_table(Store(str(tmp_path / "t.parquet")), tmp_path / "raw", progress=False)
    rows = read_all_rows(tmp_path / "raw")
    assert list(rows["status"]) == ["quarantined", "success"]
    assert rows["error_message"][0].startswith("bad_text: caption is not UTF-8")


values = st.one_of(st.none(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False, allow_infinity=False), st.text())


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.dictionaries(st.sampled_from(["a", "b", "c"]), values), min_size=1), size=st.integers(1, 4))
def test_json_lines_are_read_in_order_with_one_type_per_column(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], size: int
) -> None:
    file = tmp_path_factory.mktemp("lines") / "t.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    frames = list(read_frames(file, size))
    assert [len(frame) for frame in frames[:-1]] == [size] * (len(frames) - 1)
    assert len({tuple(frame.dtypes.astype(str)) for frame in frames}) == 1
    for row, (_, got) in zip(rows, pd.concat(frames, ignore_index=True).iterrows(), strict=True):
        for name, value in row.items():
            if value is None:
                assert pd.isna(got[name])
            else:
                assert got[name] == clean(value) or got[name] == json.dumps(value)


@given(st.text(st.sampled_from("ab./:%~"), min_size=1, max_size=12))
def test_a_row_cannot_read_outside_its_base(name: str) -> None:
    try:
        address = Store("/data/base").resolve(name)
    except ValueError:
        return
    assert Path(address).resolve().is_relative_to("/data/base")


def test_secrets_are_not_written_to_params() -> None:
    check_options({"s3": {"anon": True, "endpoint_url": "http://127.0.0.1"}})
    with pytest.raises(ValueError, match="through the environment"):
        check_options({"s3": {"secret": "x"}})


def test_what_is_not_a_corpus_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="is not a corpus"):
        find_corpus(Store(str(tmp_path)))
    with pytest.raises(ValueError, match="does not exist"):
        find_corpus(Store(str(tmp_path / "none")))
    with pytest.raises(ValueError, match="cannot be read"):
        find_corpus(Store("nosuch://bucket"))
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="image_column"):
        find_corpus(Store(str(tmp_path / "t.parquet")))
