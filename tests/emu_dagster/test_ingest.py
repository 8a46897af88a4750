"""`emu ingest` in its own project: params.yaml changes only in the lines that must change, and the corpus is read from
it."""

from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from emu_data.cascade import measure_group, read_values
from emu_data.shards import iter_rows, list_shards
from emu_data.signals.geometry import GeometrySignal
from emu_steps.corpora import first_images, read_corpus, set_entries
from emu_steps.layout import Layout
from emu_steps.params import read_params
from tests.profiles import NAMES, text_of
from tests.shards import write_toy_shards

TOP = Path(__file__).parent.parent.parent


def run(*arguments: str) -> str:
    from emu_dagster.cli import app

    result = CliRunner().invoke(app, ["ingest", *arguments])
    if result.exception:
        raise result.exception
    return result.output


@pytest.fixture
def root(project: Path) -> Path:
    (project / "params.yaml").write_text(text_of("smoke"))
    return project


@pytest.mark.parametrize("profile", NAMES)
def test_ingest_changes_its_entries_and_no_other_line(project: Path, profile: str) -> None:
    (project / "params.yaml").write_text(text_of(profile))
    write_toy_shards(project, 4)
    before = (project / "params.yaml").read_text().splitlines()
    reported = run(str(project / "shards"), "--copy")
    after = (project / "params.yaml").read_text().splitlines()
    assert "next: emu materialize raw_corpus" in reported
    assert "1 shards" in reported
    section = read_params(project / "params.yaml").raw_corpus
    assert (section.source, section.path, section.copy_files) == ("img2dataset", str(project / "shards"), True)
    gone = [line for line in before if line not in after]
    assert {line.split(":")[0].strip() for line in gone} <= {"source", "path"}
    assert sum("#" in line for line in after) == sum("#" in line for line in before)


def test_corpus_is_read_measured_and_replaced_by_another(root: Path) -> None:
    layout, signals = Layout(root), (GeometrySignal(),)
    counts = []
    for kind, num in (("shards", 4), ("pictures", 2)):
        if kind == "shards":
            write_toy_shards(root, num)
        else:
            (root / kind).mkdir()
            for index, sample in enumerate(first_images(layout.raw, num, 20)[0]):
                from PIL import Image

                Image.fromarray(sample).save(root / kind / f"{index}.png")
                (root / kind / f"{index}.txt").write_text("a square")
        run(str(root / kind))
        read_corpus(read_params(root / "params.yaml").raw_corpus, layout)
        assert len(pd.read_parquet(layout.damage)) == 0
        names = [path.stem for path in list_shards(layout.raw)]
        measure_group(layout.raw, names, signals, layout.signals, progress=False)
        values = read_values(layout.raw, names, signals, layout.signals)
        assert len(values) == sum(len(rows) for rows in iter_rows(layout.raw, ["key"])) == num
        counts.append(sorted(values["min_side"].unique()))
    assert counts == [[48], [20]]  # of the second corpus, although shard and keys have the same names


def test_table_writes_what_it_found(root: Path) -> None:
    folder = root / "my data"
    folder.mkdir()
    pd.DataFrame({"picture": ["a.png"], "words": ["x"]}).to_csv(folder / "t.csv", index=False)
    with pytest.raises(ValueError, match="image_column"):
        run(str(folder / "t.csv"))
    assert (root / "params.yaml").read_text() == text_of("smoke")
    reported = run(str(folder / "t.csv"), "--image-column", "picture", "--caption-column", "words")
    assert "0 of 1 pictures tried" in reported
    section = read_params(root / "params.yaml").raw_corpus
    assert (section.source, section.path, section.base) == ("table", str(folder / "t.csv"), str(folder))
    assert (section.image_column, section.caption_column) == ("picture", "words")
    write_toy_shards(root, 4)
    run(str(root / "shards"))
    section = read_params(root / "params.yaml").raw_corpus
    assert (section.source, section.image_column, section.base) == ("img2dataset", None, None)


def test_a_corpus_without_a_readable_row_is_one_line(root: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        run(str(root / "none"))
    (root / "pictures").mkdir()
    (root / "pictures" / "a.png").write_bytes(b"none")
    run(str(root / "pictures"))
    read_corpus(read_params(root / "params.yaml").raw_corpus, Layout(root))
    images, captions = first_images(root / "data" / "raw", 3, 8)  # no contact sheet, and no failure
    assert images.shape == (0, 8, 8, 3) and captions == []


words = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=12)


@given(
    entries=st.dictionaries(st.sampled_from(["source", "path", "base"]), st.none() | st.booleans() | words, min_size=1),
    old=st.sampled_from(["source: packages   # why", "source: 'a # b'", 'source: "x"  # c', "source:"]),
)
def test_set_entries_sets_what_is_given_and_keeps_comments(entries: dict[str, object], old: str) -> None:
    text = f"# top\nraw_corpus:  # here\n  {old}\n  # between\n  seed: 0  # s\n\n# next\nother:\n  path: kept\n"
    result = set_entries(text, "raw_corpus", entries)
    loaded = yaml.safe_load(result)
    assert loaded["other"] == {"path": "kept"} and loaded["raw_corpus"]["seed"] == 0
    for name, value in entries.items():
        assert loaded["raw_corpus"].get(name, value) == value
        assert name in loaded["raw_corpus"] or not value
    for comment in ("# top", "# here", "# between", "# s", "# next"):
        assert comment in result
    assert ("# why" in old) == ("# why" in result)
