"""Captions that people wrote: recorded with every version, taken by the curated set, and chosen from by a training."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from emu_data.shards import iter_rows, list_shards, read_manifest, read_samples
from emu_data.votes.captions import WrittenCaption, add_captions
from emu_data.votes.rounds import open_log
from emu_steps.captioning import ASSET, pick_captions, recorded_captions
from emu_steps.choosing import read_captioned_by, select_generalists_choice, write_curated_set
from emu_steps.layout import Layout
from emu_steps.params import CurationVotes
from emu_steps.training_jobs import write_curated_rows
from emu_steps.voting import digest_pictures, generalist_ballots, grown, recorded_round, specialist_ballots
from tests.emu_data.drawings import draw_balls
from tests.rounds import CAPTION, write_filtered


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    write_filtered(layout, draw_balls(True)[::2])
    section = CurationVotes(num_raters=3, seed=0)
    with recorded_round(layout, "generalist", generalist_ballots(layout, section, 8)):
        pass
    select_generalists_choice(layout, 8, section.voters)
    with recorded_round(layout, "specialist", specialist_ballots(layout, section, 4)):
        pass
    curate(layout)
    return layout


def curate(layout: Layout) -> pd.DataFrame:
    write_curated_set(layout, 4, "people, then panel")
    return read_manifest(layout.curated).set_index("key")


def write(layout: Layout, *captions: WrittenCaption) -> None:
    """What closing a round does."""
    with open_log(layout.votes("captions")).held():
        add_captions(layout.votes("captions"), captions)


def record(layout: Layout) -> str:
    with recorded_captions(layout) as found:
        return found.version


def caption_of(
    layout: Layout, key: str, short: str = "a red ball", long: str = "A red ball on white."
) -> WrittenCaption:
    seen = digest_pictures(layout, [key])[key]
    return WrittenCaption(key, seen, short, long, "specialist-1", "2026-11-27T10:00:00.000Z")


def test_a_written_caption_takes_the_place_of_the_corpus_s_everywhere_in_the_set(layout: Layout):
    before = read_manifest(layout.curated)
    assert (before["caption"] == CAPTION).all() and before["short"].isna().all()
    assert read_captioned_by(layout) == "nobody: the captions are the corpus's"
    first, second, *others = before["key"]
    write(layout, caption_of(layout, first, "a ball"), caption_of(layout, first), caption_of(layout, second, long=""))
    assert (read_manifest(layout.curated)["caption"] == CAPTION).all()  # until it is recorded and made again
    record(layout)
    manifest = curate(layout)
    assert manifest.loc[first, "caption"] == "a red ball" and manifest.loc[first, "long"] == "A red ball on white."  # pyrefly: ignore
    assert manifest.loc[first, "captioned_by"] == "specialist-1" and pd.isna(manifest.loc[second, "long"])  # pyrefly: ignore
    assert (manifest["caption_old"] == CAPTION).all() and (manifest.loc[others, "caption"] == CAPTION).all()
    assert read_captioned_by(layout) == "1 person: 2 of 4 captions, the others are the corpus's"
    (tar,) = list_shards(layout.curated)
    told = {sample.key: sample.caption for sample in read_samples(tar)}
    assert told == manifest["caption"].to_dict()
    rows = next(iter_rows(layout.curated)).set_index("key")
    assert rows["caption"].to_dict() == told and rows.loc[first, "short"] == "a red ball"  # pyrefly: ignore


def test_a_caption_of_another_picture_under_the_same_key_is_left_out(layout: Layout):
    key = read_manifest(layout.curated)["key"].iloc[0]
    write(layout, replace(caption_of(layout, key), seen="of another picture"))
    record(layout)
    assert curate(layout)["short"].isna().all()


def test_a_caption_of_a_picture_that_was_not_chosen_changes_no_byte(layout: Layout):
    before = {path.name: path.read_bytes() for path in layout.curated.iterdir()}
    chosen = set(read_manifest(layout.curated)["key"])
    other = next(key for key in read_manifest(layout.filtered)["key"] if key not in chosen)
    write(layout, caption_of(layout, other))
    record(layout)
    curate(layout)
    assert before == {path.name: path.read_bytes() for path in layout.curated.iterdir()}


def test_captions_that_came_since_they_were_recorded_show(layout: Layout):
    version, key = record(layout), read_manifest(layout.curated)["key"].iloc[0]
    assert grown(layout, ASSET, version) is None and record(layout) == version
    write(layout, caption_of(layout, key))
    assert grown(layout, ASSET, version) == "its captions were added to or changed"
    write(layout, caption_of(layout, key))  # the same again is nothing new
    with recorded_captions(layout) as found:
        assert found.metrics == {"num_pictures": 1, "num_versions": 1, "num_people": 1, "num_drafts_unedited": 0}
    assert grown(layout, ASSET, found.version) is None


def test_a_training_takes_the_captions_that_its_params_name(layout: Layout):
    keys = [f"{number:09d}" for number in range(400)]
    manifest = pd.DataFrame({"key": keys, "caption_old": "old", "short": "short", "long": "long"}).astype("string")
    manifest.loc[0, ["short", "long"]] = pd.NA
    manifest.loc[1, "long"] = pd.NA
    manifest.loc[2, "short"] = pd.NA

    def picked(which: str) -> list[str]:
        return pick_captions(manifest, which)["caption"].tolist()

    assert picked("short") == ["old", "short", "long", *["short"] * 397]
    assert picked("long") == ["old", "short", *["long"] * 398]
    assert picked("corpus") == ["old"] * 400
    mixed = picked("mixed")
    assert mixed[:3] == ["old", "short", "long"] and 160 < mixed.count("long") < 240 and picked("mixed") == mixed
    write(layout, caption_of(layout, read_manifest(layout.curated)["key"].iloc[0]))
    record(layout)
    curate(layout)
    assert set(pd.read_parquet(write_curated_rows(layout, "long"))["caption"]) == {CAPTION, "A red ball on white."}
    with pytest.raises(ValueError, match="older version"):
        pick_captions(manifest.drop(columns="caption_old"), "short")


def test_a_set_is_not_made_from_captions_that_nobody_recorded(layout: Layout):
    (layout.votes("captions") / "captions.parquet").unlink()
    with pytest.raises(ValueError, match="materialise written_captions"):
        curate(layout)
