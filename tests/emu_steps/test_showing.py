"""`emu show KEY` says what the records say about one picture, and nothing else."""

import io
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from emu_data.corpus_gates import final_ledger
from emu_data.ledger import decide, write_ledger
from emu_data.samples import Sample
from emu_data.shards import write_shard, write_subset
from emu_data.votes.log import export_parquet
from emu_data.votes.rounds import EXPORT_NAME, open_log
from emu_data.votes.vote import Vote, digest_picture
from emu_steps.filtering import corpus_policy
from emu_steps.layout import Layout
from emu_steps.params import Params
from emu_steps.showing import Picture, find_picture, print_picture
from emu_steps.training_jobs import write_gated_rows
from tests.profiles import params_of
from tests.shards import encode, toy_values

TOP = Path(__file__).parents[2]
KEYS = [f"00000{i:04d}" for i in range(12)]
SMALL, UNREADABLE, ORIGINAL, COPY = KEYS[0], KEYS[1], KEYS[2], KEYS[3]
TEXT = [
    "key",
    "shard",
    "caption",
    "url",
    "status",
    "error_message",
    "error",
    "unmeasured",
    "concept",
    "sha256",
    "looks",
]


@pytest.fixture(scope="module")
def params() -> Params:
    return params_of("smoke")


@pytest.fixture
def layout(tmp_path: Path, params: Params) -> Layout:
    """Twelve pictures: one too small, one that did not arrive, one that copies another, eight kept, one beyond the
    quota."""
    layout = Layout(tmp_path)
    values = toy_values(
        KEYS,
        min_side=[16] + [128] * 11,
        num_bytes=[1000] * 3 + [900] + [1000] * 8,
        read_text_area=0.0,
        concept="animal",
    )
    values.loc[1, ["status", "error_message"]] = ["failed_to_download", "HTTP Error 404"]
    values.loc[3, "looks"] = str(values.loc[2, "looks"])
    pictures = [
        Sample(key, encode(Image.new("RGB", (32, 32), (i * 20, 0, 0))), f"thing [{i}]") for i, key in enumerate(KEYS)
    ]
    values["stored_sha256"] = [digest_picture(picture.image) for picture in pictures]
    values = values.astype(dict.fromkeys(TEXT, "string"))
    write_ledger(layout.ledger, decide(values, params.filter_ledger.policy.model_dump()))
    write_shard(layout.raw, 0, pictures, values[["key", "status", "caption", "url"]])
    return layout


def finish(layout: Layout, params: Params) -> list[str]:
    """Run the gates that compare pictures, data/filtered and the round of the generalists; return the kept keys."""
    section = params.filtered_corpus.model_copy(update={"num_images": 8, "max_concept_share": 1.0})
    final_ledger(layout.ledger, layout.filtered / "ledger", corpus_policy(section))
    ledger = pd.read_parquet(layout.filtered / "ledger" / "00000.parquet")
    kept = ledger.loc[ledger["kept"], "key"].tolist()
    write_subset(
        layout.raw, layout.filtered, kept, 100, columns=ledger[ledger["kept"]][["key", "concept", "stored_sha256"]]
    )
    return kept


def printed(picture: Picture) -> str:
    console = Console(file=io.StringIO(), width=160)
    print_picture(picture, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_value_beyond_its_threshold_is_where_the_picture_was_dropped(layout, params):
    picture = find_picture(layout, params, SMALL)
    assert picture.gate == "geometry" and not picture.is_final
    assert [held.limit.column for held in picture.held if held.breaks] == ["min_side"]
    reported = printed(picture)
    assert (
        "dropped by: geometry" in reported
        and "at least 64" in reported
        and "fails" in reported
        and "thing [0]" in reported
    )


def test_what_is_shown_as_broken_agrees_with_the_gate_for_every_picture(layout, params):
    for key in KEYS:
        picture = find_picture(layout, params, key)
        broken = {held.limit.gate for held in picture.held if held.breaks}
        assert broken == ({picture.gate} - {"", "readable"})


def test_a_picture_that_did_not_arrive_says_why(layout, params):
    reported = printed(find_picture(layout, params, UNREADABLE))
    assert "dropped by: readable" in reported and "HTTP Error 404" in reported


def test_a_duplicate_names_the_kept_picture_and_vice_versa(layout, params):
    finish(layout, params)
    copy, original = (find_picture(layout, params, key) for key in (COPY, ORIGINAL))
    assert copy.gate == "duplicate" and f"{ORIGINAL} was kept instead" in printed(copy)
    assert original.twins == {COPY: "duplicate"} and set(copy.twins) == {ORIGINAL}


def test_the_places_where_it_is_used_are_where_it_is(layout, params):
    kept = finish(layout, params)
    learned = set(pd.read_parquet(write_gated_rows(layout, "pretrained_low", params.pretrained_low.gates))["key"])
    for key in KEYS:
        went = find_picture(layout, params, key).went
        assert ("in data/filtered" in went) == (key in kept)
        assert any("pretrained_low" in text for text in went) == (key in learned)
    assert "it was not used further" in printed(find_picture(layout, params, SMALL))


def test_votes_are_shown_with_whether_they_count(layout, params):
    key = finish(layout, params)[0]
    picture = encode(Image.new("RGB", (32, 32), (KEYS.index(key) * 20, 0, 0)))
    folder = layout.votes("generalist")
    log = open_log(folder)
    said = (("ann", "drop", ""), ("ann", "keep", digest_picture(picture)), ("bob", "drop", "0" * 64))
    for rater, decision, seen in said:
        why = "[dull]" if decision == "drop" else ""
        log.append([Vote("generalist", rater, "person", key, decision, why, seen=seen)])
    export_parquet(log, folder / EXPORT_NAME)
    found = find_picture(layout, params, key)
    assert [(one.vote.rater, one.vote.decision, one.counts) for one in found.spoken] == [
        ("ann", "drop", False),
        ("ann", "keep", True),  # the last vote
        ("bob", "drop", False),  # on another picture under the same key
    ]
    assert "[dull]" in printed(found) and "does not count" in printed(found)
    assert "no votes" in printed(find_picture(layout, params, SMALL))


def test_an_unknown_key_is_refused_with_keys_that_exist(layout, params):
    with pytest.raises(ValueError, match=f"'nix'.*{KEYS[0]} to {KEYS[-1]}"):
        find_picture(layout, params, "nix")
    with pytest.raises(ValueError, match="emu materialize filtered_corpus --upstream"):
        find_picture(Layout(layout.root / "elsewhere"), params, KEYS[0])
