"""The demo corpus from synthetic packages, a folder of pictures, and shards that img2dataset wrote."""

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from emu_data.addresses import Store
from emu_data.files import file_sha256
from emu_data.samples import RAW_COLUMNS, decode_rgb
from emu_data.shards import list_shards, read_many, read_samples, write_shard
from emu_data.sources import npm, packages
from emu_data.sources.damage_shares import DamageShares
from emu_data.sources.folder import register_folder
from emu_data.sources.img2dataset import register_shards
from emu_data.sources.npm import Package, PackageUnavailable, fetch_package
from emu_data.sources.packages import DemoCorpusConfig, build_demo_corpus, read_subjects
from tests.shards import encode, read_all_rows

NUM_SUBJECTS = 40


def draw(number: int, style: int, side: int) -> bytes:
    """Return a coloured ellipse of its own shape on nothing, as emoji are."""
    rng = np.random.default_rng([number, style])
    image = np.zeros((side, side, 4), np.uint8)
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    waves = np.cos(np.arctan2(y, x) * rng.integers(2, 7) + rng.uniform(0, 6)) * 0.1
    image[np.hypot(x, y * rng.uniform(0.7, 1.5)) < 0.3 + waves] = (*rng.integers(0, 255, 3), 255)
    return encode(Image.fromarray(image), "WEBP" if style == 2 else "PNG")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three packages with the layout of the real ones, whose digests the module knows while the tests run."""
    folder = tmp_path_factory.mktemp("packages")
    names = [
        {"name": f"THING  NUMBER {i}", "short_name": f"thing_{i}", "image": f"1f{i:03x}-fe0f.png"}
        for i in range(NUM_SUBJECTS)
    ]
    styles = {}
    for number, style in enumerate(packages.STYLES.values()):
        made = Package(style.package.name, style.package.version, "")
        with tarfile.open(folder / made.file_name, "w:gz") as tar:
            files = {"emoji.json": json.dumps(names).encode()} if number == 0 else {}
            for i in range(NUM_SUBJECTS):
                code = f"1f{i:03x}" + ("-fe0f" if number != 1 else "")  # packages differ in it
                files[style.path.replace("HEX", code)] = draw(i, number, 256 if number == 2 else 64)
            for name, data in files.items():
                info = tarfile.TarInfo(f"package/{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        made = Package(made.name, made.version, file_sha256(folder / made.file_name))
        styles[style.name] = packages.Style(style.name, made, style.path)
    patch = pytest.MonkeyPatch()
    patch.setattr(packages, "STYLES", styles)
    patch.setattr(packages, "NAMES_PACKAGE", styles["google"].package)
    yield folder
    patch.undo()


def make_config(seed: int = 0) -> DemoCorpusConfig:
    things = [f"thing_{i}" for i in range(NUM_SUBJECTS - 1)]
    concepts = {"even": things[::2], "odd": [*things[1::2], {"name": "thing_39", "caption": "the last one"}]}
    return DemoCorpusConfig(read_subjects(concepts), samples_per_shard=20, seed=seed)


@pytest.fixture(scope="module")
def corpus(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    build_demo_corpus(folder / "raw", folder / "damage.parquet", make_config(), cache, progress=False)
    return folder


def test_the_demo_corpus_has_a_row_for_all_and_a_picture_for_all_that_arrived(corpus: Path) -> None:
    rows, damage = read_all_rows(corpus / "raw"), pd.read_parquet(corpus / "damage.parquet")
    samples = [sample for tar in list_shards(corpus / "raw") for sample in read_samples(tar)]
    num_pictures = NUM_SUBJECTS * 3
    shares = DamageShares()
    assert len(rows) == num_pictures + round(shares.duplicate * num_pictures) == len(damage)
    assert {s.key for s in samples} == set(rows.loc[rows["status"] == "success", "key"])
    assert tuple(rows.columns[: len(RAW_COLUMNS)]) == RAW_COLUMNS
    assert list(rows["key"]) == list(damage["key"])
    assert rows["key"].str.len().eq(9).all()
    for kind, count in damage["damage"].value_counts().items():
        assert not kind or count == round(getattr(shares, str(kind)) * num_pictures)
    sizes = {s.key: decode_rgb(s.image).size for s in samples}
    stored = rows.dropna(subset="width").set_index("key")
    assert sizes == {key: (row["width"], row["height"]) for key, row in stored.iterrows()}


def test_damage_is_what_the_truth_says(corpus: Path) -> None:
    rows = read_all_rows(corpus / "raw").set_index("key")
    damage = pd.read_parquet(corpus / "damage.parquet").set_index("key")
    of = {kind: list(group.index) for kind, group in damage.groupby("damage")}
    samples = read_many(corpus / "raw", [key for kind, keys in of.items() if kind != "failed" for key in keys])
    sides = rows.loc[of["sliver"], ["width", "height"]].astype(int)
    assert (sides.max(axis=1) > 3 * sides.min(axis=1)).all()
    assert rows.loc[of["shrink"], "width"].between(24, 48).all()
    assert (rows.loc[of["unsafe"], "punsafe"] >= 0.9).all()
    assert (rows.drop(of["unsafe"])["punsafe"] < 0.9).all()
    assert (rows.loc[of["caption"], "caption"] != damage.loc[of["caption"], "true_caption"]).all()
    others = damage.index.difference(of["caption"])
    assert (rows.loc[others, "caption"] == damage.loc[others, "true_caption"]).all()
    assert (rows.loc[of["failed"], "status"] == "failed_to_download").all()
    assert damage.loc[of["text"], "detail"].astype(float).between(0.1, 0.3).all()
    copies = damage.loc[of["duplicate"], ["duplicate_of", "detail"]].itertuples()
    for key, source, kind in copies:
        assert source in of[""]
        assert (samples[key].image == samples[source].image) == (kind == "exact")
    assert "the last one" in set(rows["caption"])
    assert "a thing number 3" in set(rows["caption"])


def test_clean_pictures_are_on_white_at_full_size(corpus: Path) -> None:
    damage = pd.read_parquet(corpus / "damage.parquet")
    keys = list(damage.loc[damage["damage"] == "", "key"])
    for sample in read_many(corpus / "raw", keys).values():
        image = np.asarray(decode_rgb(sample.image))
        assert image.shape == (128, 128, 3)
        assert (image[0, 0] == 255).all()


def test_truth_is_not_in_the_shards(corpus: Path) -> None:
    columns = set(read_all_rows(corpus / "raw").columns)
    assert not columns & {"damage", "detail", "duplicate_of", "concept", "subject", "style", "true_caption"}
    (sample, *_) = read_samples(list_shards(corpus / "raw")[0])
    assert set(sample.meta) == columns - {"shard"}


def test_the_same_config_gives_the_same_bytes_and_another_seed_does_not(
    cache: Path, corpus: Path, tmp_path: Path
) -> None:
    def digests(folder: Path) -> dict[str, str]:
        return {p.name: file_sha256(p) for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "corpus.json"}

    for seed, same in ((0, True), (1, False)):
        out = tmp_path / str(seed)
        build_demo_corpus(out / "raw", out / "damage.parquet", make_config(seed=seed), cache, progress=False)
        assert (digests(out) == digests(corpus)) == same


def test_another_corpus_is_not_overwritten(cache: Path, tmp_path: Path) -> None:
    samples = [{"key": "000000000", "status": "failed_to_download"}]
    write_shard(tmp_path / "raw", 0, [], pd.DataFrame(samples))
    with pytest.raises(ValueError, match="raw_corpus did not write"):
        build_demo_corpus(tmp_path / "raw", tmp_path / "damage.parquet", make_config(), cache, progress=False)
    assert len(list_shards(tmp_path / "raw")) == 1


def test_a_subject_that_is_not_in_the_packages_is_named(cache: Path, tmp_path: Path) -> None:
    config = DemoCorpusConfig(read_subjects({"none": ["unicorn_of_mars"]}))
    with pytest.raises(ValueError, match="unicorn_of_mars"):
        build_demo_corpus(tmp_path / "raw", tmp_path / "damage.parquet", config, cache, progress=False)


def test_first_subjects_of_each_concept() -> None:
    subjects = read_subjects({"a": ["one", "two", "three"], "b": [{"name": "four"}]}, num_per_concept=2)
    assert [(s.name, s.concept) for s in subjects] == [("one", "a"), ("two", "a"), ("four", "b")]


def test_an_unreachable_registry_is_one_line_that_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    with pytest.raises(PackageUnavailable, match="emoji-datasource-none@1.0.0") as caught:
        fetch_package(Package("emoji-datasource-none", "1.0.0", "0" * 64), tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path / "cache") == []


def test_a_tarball_with_a_wrong_digest_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = b"the tarball"
    (tmp_path / "good").write_bytes(good)
    package = Package("@scope/thing", "2.0.0", file_sha256(tmp_path / "good"))
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "scope-thing-2.0.0.tgz").write_bytes(b"half of the tar")
    sent = [good, b"forged"]

    def run_npm(arguments: list[str], package: Package) -> object:
        folder = Path(arguments[arguments.index("--pack-destination") + 1])
        (folder / package.file_name).write_bytes(sent.pop(0))
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr(npm, "_run_npm", run_npm)
    for _ in range(2):  # the second time from the cache
        assert fetch_package(package, cache).read_bytes() == good
    (cache / "scope-thing-2.0.0.tgz").unlink()
    with pytest.raises(PackageUnavailable, match="digest"):
        fetch_package(package, cache)
    assert os.listdir(cache) == []


@pytest.mark.parametrize("copy", [False, True])
def test_folder_of_pictures_with_captions(tmp_path: Path, copy: bool) -> None:
    source = tmp_path / "pictures"
    (source / "deep").mkdir(parents=True)
    for index, name in enumerate(["a", "deep/b", "c", "d", "e"]):
        (source / f"{name}.png").write_bytes(encode(Image.new("RGB", (9, 7), (index, 0, 0))))
        (source / f"{name}.txt").write_text(f"caption of {name}\n")
    (source / "c.txt").unlink()
    (source / "d.txt").write_bytes(b"\xff\xfa")
    (source / "e.png").write_bytes(b"no picture")
    for _ in range(2):  # registering again replaces
        assert register_folder(Store(str(source)), tmp_path / "raw", copy, samples_per_shard=2, progress=False) == 5
    shards = list_shards(tmp_path / "raw")
    assert [path.name for path in shards] == [f"0000{i}.{'tar' if copy else 'ref'}" for i in range(3)]
    rows = read_all_rows(tmp_path / "raw").set_index("url")
    assert dict(rows["caption"].dropna()) == {f"{name}.png": f"caption of {name}" for name in ["a", "e", "deep/b"]}
    assert dict(rows["width"].dropna()) == {"a.png": 9, "deep/b.png": 9}
    failed = rows[rows["status"] != "success"]["error_message"]
    assert list(failed.index) == ["c.png", "d.png", *(["e.png"] if copy else [])]
    assert failed["c.png"] == "no_caption: c.txt is missing"
    assert failed["d.png"].startswith("bad_text: d.txt is not UTF-8")
    samples = [sample for path in shards for sample in read_samples(path) if sample.image != b"no picture"]
    assert [sample.caption for sample in samples] == ["caption of a", "caption of deep/b"]
    with pytest.raises(ValueError, match="no pictures"):
        register_folder(Store(str(tmp_path / "raw")), tmp_path / "other", progress=False)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("copy", [False, True])
def test_shards_of_img2dataset_are_registered_as_they_are(corpus: Path, tmp_path: Path, copy: bool) -> None:
    num_shards = register_shards(Store(str(corpus / "raw")), tmp_path / "raw", copy=copy, progress=False)
    assert num_shards == len(list_shards(tmp_path / "raw")) == len(list_shards(corpus / "raw"))
    pd.testing.assert_frame_equal(read_all_rows(tmp_path / "raw"), read_all_rows(corpus / "raw"))
    assert (tmp_path / "raw" / "00000.tar").exists() == copy
    assert (tmp_path / "raw" / "00000.ref").exists() == (not copy)
