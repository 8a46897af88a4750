"""What is known of the corpus's pictures is read from it, and compared with what curation found."""

import pandas as pd
import pytest

from emu_data.files import write_parquet
from emu_data.shards import write_manifest
from emu_steps.layout import Layout
from emu_steps.params import Wanted
from emu_steps.wanted import measure_curation, wanted_keys

KEYS = [f"{number:09d}" for number in range(10)]


@pytest.fixture
def layout(tmp_path) -> Layout:
    layout = Layout(tmp_path)
    layout.raw.mkdir(parents=True)
    urls = [f"http://127.0.0.1/{'shaded' if number < 4 else 'flat'}/{number}.png" for number in range(9)]
    write_parquet(layout.raw / "00000.parquet", pd.DataFrame({"key": KEYS, "url": [*urls, None]}))
    (layout.raw / "00000.tar").touch()
    for folder, keys in ((layout.filtered, KEYS[1:]), (layout.curated, KEYS[2:6])):
        folder.mkdir(parents=True)
        write_manifest(folder, pd.DataFrame({"key": keys, "shard": "00000"}))
    return layout


def test_precision_is_of_the_curated_and_recall_of_the_filtered_pictures(layout):
    keys = wanted_keys(layout, Wanted(name="shaded", column="url", contains="/shaded/"))
    assert keys == set(KEYS[:4])  # a row without a url is not one of them
    found = measure_curation(layout, keys)
    assert found.precision.estimate == 50 and found.recall.estimate == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("column", "contains", "why"),
    [("link", "x", r"no column 'link', only \['key', 'shard', 'url'\]"), ("url", "sha.ed", "no url contains 'sha.ed'")],
)
def test_what_the_corpus_does_not_say_is_refused(layout, column, contains, why):
    with pytest.raises(ValueError, match=why):
        wanted_keys(layout, Wanted(name="shaded", column=column, contains=contains))
