"""Rounds and what they choose, on a small corpus: people's votes stay, decide, and are never lost."""

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from emu_dagster.cli import app
from emu_dagster.registering import describe_judges
from emu_data.samples import read_size
from emu_data.shards import list_shards, read_manifest, read_samples
from emu_data.votes.log import GENESIS, VoteLog
from emu_data.votes.rounds import open_log
from emu_data.votes.tally import tally
from emu_data.votes.vote import Vote, counted
from emu_steps.choosing import select_generalists_choice, sheets, write_curated_set
from emu_steps.judging import appeal_ballots, report_preference
from emu_steps.layout import Layout
from emu_steps.params import AppealVotes, CurationVotes
from emu_steps.params.kinds import Voters
from emu_steps.voting import (
    digest_pictures,
    generalist_ballots,
    grown,
    read_votes,
    recorded_round,
    shown_to_generalists,
    specialist_ballots,
    verify_rounds,
)
from tests.emu_data.drawings import draw_balls
from tests.profiles import params_of
from tests.rounds import CAPTION, COMPARISON, write_filtered, write_pairs

TOP = Path(__file__).parent.parent.parent
PANEL = {"generalist": CurationVotes(num_raters=3, seed=0), "specialist": CurationVotes(num_raters=5, seed=1)}
PEOPLE_FIRST: Voters = "people, then panel"
WANTED = {"generalist": 8, "specialist": 4}


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    layout = Layout(tmp_path_factory.mktemp("filtered"))
    write_filtered(layout, np.concatenate([draw_balls(False)[::2], draw_balls(True)[::2]]))
    return layout


@pytest.fixture
def layout(filtered: Layout, tmp_path: Path) -> Layout:
    shutil.copytree(filtered.data, tmp_path / "data")
    return Layout(tmp_path)


def hold(layout: Layout, name: str) -> str:
    """Materialise a round of curation; return the head with which it was recorded."""
    ballots = (generalist_ballots if name == "generalist" else specialist_ballots)(layout, PANEL[name], WANTED[name])
    with recorded_round(layout, name, ballots) as found:
        return found.head


def make_all(layout: Layout) -> None:
    hold(layout, "generalist")
    select_generalists_choice(layout, WANTED["generalist"], PEOPLE_FIRST)
    hold(layout, "specialist")
    write_curated_set(layout, WANTED["specialist"], PEOPLE_FIRST)


def as_person(layout: Layout, name: str, key: str, decision: str, rater: str = "anna") -> Vote:
    seen = digest_pictures(layout, [key])[key]
    return Vote(name, rater, "person", key, decision, seen=seen)


def test_a_curated_picture_has_the_caption_of_the_corpus(layout: Layout):
    make_all(layout)
    (tar,) = list_shards(layout.curated)
    assert {sample.caption for sample in read_samples(tar)} == {CAPTION}
    assert set(read_manifest(layout.curated)["caption"]) == {CAPTION}


def test_small_curated_pictures_are_enlarged_and_say_by_what(layout: Layout):
    make_all(layout)
    sizes = {sample.key: read_size(sample.image) for tar in list_shards(layout.curated) for sample in read_samples(tar)}
    side = max(min(size) for size in sizes.values()) + 32
    choice = write_curated_set(layout, WANTED["specialist"], PEOPLE_FIRST, upsample_to=side)
    manifest = read_manifest(layout.curated)
    assert choice.metrics["num_upsampled"] == len(sizes) == len(manifest)
    assert set(manifest["upsampled_by"]) == {"Lanczos resampling, which adds no detail"}
    for tar in list_shards(layout.curated):
        rows = pd.read_parquet(tar.with_suffix(".parquet")).set_index("key")
        for sample in read_samples(tar):
            width, height = read_size(sample.image)
            before = sizes[sample.key]
            assert min(width, height) == side and abs(width / height - before[0] / before[1]) < 0.02
            assert (rows["width"][sample.key], rows["height"][sample.key]) == (width, height)
    write_curated_set(layout, WANTED["specialist"], PEOPLE_FIRST, upsample_to=1)
    assert read_manifest(layout.curated)["upsampled_by"].isna().all()


def test_no_picture_that_most_specialists_rejected_is_in_the_set(layout: Layout):
    """Of 8 pictures the five keep 4 each; if 8 are wanted, the set is smaller and says so."""
    make_all(layout)
    choice = write_curated_set(layout, 8, PEOPLE_FIRST)
    table = tally(
        counted(
            read_votes(layout, "specialist", PEOPLE_FIRST).votes, digest_pictures(layout, list(choice.table["key"]))
        )
    )
    turned_down = set(table.loc[2 * table["num_keep"] <= table["num_votes"], "key"])
    chosen = set(read_manifest(layout.curated)["key"])
    assert turned_down and chosen and not chosen & turned_down and len(chosen) + len(turned_down) == 8
    assert choice.metrics["num_images"] == len(chosen) and choice.metrics["num_wanted"] == 8
    assert choice.tables["result"] == f"{len(chosen)} of 8 wanted: the round chose no more"
    assert sheets(layout, choice)["dropped"].width > 1


def test_no_picture_that_every_generalist_rejected_is_in_the_selection(layout: Layout):
    keys = shown_to_generalists(layout)
    hold(layout, "generalist")
    open_log(layout.votes("generalist")).append(as_person(layout, "generalist", key, "drop") for key in keys[:9])
    hold(layout, "generalist")
    choice = select_generalists_choice(layout, 8, PEOPLE_FIRST)
    chosen = pd.read_parquet(layout.generalist / "selection.parquet")["key"]
    assert set(chosen) <= set(keys[9:]) and len(chosen) == choice.metrics["num_images"] <= 3
    assert "chose no more" in choice.tables["result"]


def test_a_set_as_large_as_wanted_says_so_too(layout: Layout):
    make_all(layout)
    choice = write_curated_set(layout, 2, PEOPLE_FIRST)
    assert choice.tables["result"] == "2 of 2 wanted" and len(read_manifest(layout.curated)) == 2


def test_a_round_that_chose_nothing_is_one_sentence_and_leaves_the_set(layout: Layout):
    make_all(layout)
    before = read_manifest(layout.curated)
    shown = list(pd.read_parquet(layout.generalist / "selection.parquet")["key"])
    open_log(layout.votes("specialist")).append(as_person(layout, "specialist", key, "drop") for key in shown)
    hold(layout, "specialist")
    with pytest.raises(ValueError, match=r"specialists chose none of 8 pictures \(8 votes of 1 person\)"):
        write_curated_set(layout, 4, PEOPLE_FIRST)
    pd.testing.assert_frame_equal(read_manifest(layout.curated), before)


def test_people_decide_where_they_voted_and_are_named(layout: Layout):
    make_all(layout)
    panels_choice = set(read_manifest(layout.curated)["key"])
    manifest = read_manifest(layout.curated)
    assert all("not people" in text for text in manifest["chosen_by"])
    shown = sorted(pd.read_parquet(layout.generalist / "selection.parquet")["key"])
    liked = [key for key in shown if key not in panels_choice][:2]
    votes = [as_person(layout, "specialist", key, "keep", name) for key in liked for name in ("anna", "ben")]
    votes += [as_person(layout, "specialist", key, "drop") for key in panels_choice]
    open_log(layout.votes("specialist")).append(votes)
    hold(layout, "specialist")
    choice = write_curated_set(layout, 4, PEOPLE_FIRST)
    manifest = read_manifest(layout.curated).set_index("key")
    assert set(liked) <= set(manifest.index) and not panels_choice & set(manifest.index)
    assert set(manifest.loc[liked, "chosen_by"]) == {"2 votes of 2 people"}
    assert choice.tables["chosen_by"].startswith("4 votes of 2 people")
    assert choice.metrics["num_chosen_by_people"] == 2


def test_a_vote_that_changes_no_chosen_picture_changes_no_byte_of_the_set(layout: Layout):
    """Otherwise every new vote would train the model again."""
    make_all(layout)
    before = {path.name: path.read_bytes() for path in layout.curated.iterdir()}
    shown = pd.read_parquet(layout.generalist / "selection.parquet")["key"]
    other = next(key for key in shown if key not in set(read_manifest(layout.curated)["key"]))
    open_log(layout.votes("specialist")).append([as_person(layout, "specialist", other, "drop")])
    make_all(layout)
    assert before == {path.name: path.read_bytes() for path in layout.curated.iterdir()}


@settings(max_examples=8, deadline=None)
@given(
    st.lists(
        st.sampled_from(["generalist", "select", "specialist", "curate", "vote", "kill", "other corpus"]), max_size=7
    )
)
def test_twenty_votes_of_people_survive_whatever_is_made_in_whatever_order(filtered: Layout, steps: list[str]):
    """Even after a kill in the middle of an append, and with another corpus under the same keys. In the end they
    decide."""
    import tempfile

    with tempfile.TemporaryDirectory() as root:
        layout = Layout(Path(root))
        shutil.copytree(filtered.data, layout.data)
        keys = shown_to_generalists(layout)
        votes = [
            replace(as_person(layout, name, key, decision, rater), time="2026-11-26T10:00:00.000Z")
            for key, decision in zip(keys[:5], ["keep", "drop", "keep", "drop", "keep"], strict=True)
            for rater in ("anna", "ben")
            for name in ("generalist", "specialist")
        ]
        waiting = list(votes)
        heads: dict[str, list[str]] = {"generalist": [GENESIS], "specialist": [GENESIS]}
        original = filtered.filtered

        def step(what: str) -> None:
            if what == "vote":
                for vote in waiting[:4]:
                    heads[vote.round].append(open_log(layout.votes(vote.round)).append([vote]))
                    waiting.pop(0)  # from now on it is reported as accepted
            elif what == "kill":
                log = open_log(layout.votes("specialist"))
                if log.path.exists():
                    with log.path.open("ab") as stream:
                        stream.write(b'{"hash":"half a li')
            elif what == "other corpus":
                write_filtered(layout, draw_balls(True)[::2] // 2)
            elif what in heads:
                heads[what].append(hold(layout, what))
            elif what == "select":
                select_generalists_choice(layout, 8, PEOPLE_FIRST)
            else:
                write_curated_set(layout, 4, PEOPLE_FIRST)

        for what in steps:
            with suppress(ValueError, OSError):  # its inputs do not exist yet, or a log has to be repaired first
                step(what)
        for name in heads:
            open_log(layout.votes(name)).recover()
        while waiting:
            step("vote")
        shutil.rmtree(layout.filtered)
        shutil.copytree(original, layout.filtered)
        make_all(layout)
        for name, known in heads.items():
            log = open_log(layout.votes(name))
            assert [v for v in log.read() if v.rater_kind == "person"] == [v for v in votes if v.round == name]
            assert all(log.verify(expected_head=head).is_sound for head in known)
        chosen = set(read_manifest(layout.curated)["key"])
        assert not chosen & {keys[1], keys[3]} and {keys[0], keys[2], keys[4]} <= chosen


def test_what_grew_is_said_and_waits_to_be_recorded(layout: Layout):
    head = hold(layout, "generalist")
    assert grown(layout, "generalist_votes", head) is None and grown(layout, "curated_set", head) is None
    vote = as_person(layout, "generalist", shown_to_generalists(layout)[0], "drop")
    open_log(layout.votes("generalist")).append([vote])
    assert grown(layout, "generalist_votes", head) == "1 new vote"
    open_log(layout.votes("generalist")).append([replace(vote, rater="ben")])
    assert grown(layout, "generalist_votes", head) == "2 new votes"
    select_generalists_choice(layout, 8, PEOPLE_FIRST)  # of what was recorded; the new votes wait
    assert grown(layout, "generalist_votes", hold(layout, "generalist")) is None
    assert grown(layout, "generalist_votes", "ab" * 32) == "its log is not the one that was recorded"


def test_what_a_killed_append_left_stops_nobody(layout: Layout):
    head = hold(layout, "generalist")
    log = open_log(layout.votes("generalist"))
    with log.path.open("ab") as stream:
        stream.write(b'{"hash":"half a li')
    select_generalists_choice(layout, 8, PEOPLE_FIRST)
    assert grown(layout, "generalist_votes", head) == "its log was altered"
    assert hold(layout, "generalist") == head and log.verify().is_sound


def test_votes_that_an_older_version_kept_in_the_set_s_folder_are_adopted(layout: Layout):
    make_all(layout)
    shown = sorted(pd.read_parquet(layout.generalist / "selection.parquet")["key"])
    old = VoteLog(layout.curated / "votes.jsonl")
    given_votes = [
        Vote("specialist", "anna", "person", key, "drop", time="2026-11-20T10:00:00.000Z") for key in shown[:3]
    ]
    old.append(given_votes)
    with pytest.raises(ValueError, match="3 votes of people: materialise specialist_votes"):
        write_curated_set(layout, 4, PEOPLE_FIRST)  # would replace the folder that they are in
    assert old.path.exists()
    hold(layout, "specialist")
    write_curated_set(layout, 4, PEOPLE_FIRST)
    assert not set(shown[:3]) & set(read_manifest(layout.curated)["key"])
    assert [v for v in read_votes(layout, "specialist", PEOPLE_FIRST).votes if v.rater_kind == "person"] == given_votes


def test_verify_finds_an_edit_in_any_round_and_says_where(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    make_all(layout)
    assert all(found.is_sound for found in verify_rounds(layout))
    assert [found.report for found in verify_rounds(layout, "appeal")] == ["no votes yet"]
    path = layout.votes("specialist") / "votes.jsonl"
    path.write_bytes(path.read_bytes().replace(b"rubric-specialist-1", b"rubric-specialist-9", 1))
    (found,) = verify_rounds(layout, "specialist")
    assert not found.is_sound and "line 1" in found.report and "edited" in found.report
    monkeypatch.setenv("EMU_ROOT", str(layout.root))
    done = CliRunner().invoke(app, ["votes", "verify"])
    assert done.exit_code == 1 and "specialist: " in done.output and "line 1: the line was edited" in done.output
    assert CliRunner().invoke(app, ["votes", "verify", "generalist"]).exit_code == 0
    with pytest.raises(ValueError, match="there is no round"):
        verify_rounds(layout, "nobody")


# ---- side by side


def test_a_report_is_about_the_votes_on_the_current_pictures(tmp_path: Path):
    layout = Layout(tmp_path)
    params = params_of("smoke").model_copy(update={"comparison": COMPARISON})
    section = AppealVotes(num_raters=3, repeat_share=0.3, seed=0)
    write_pairs(layout, draw_balls(True)[:6])

    def hold_appeal() -> dict[str, str]:
        ballots = appeal_ballots(layout, section, COMPARISON)
        with recorded_round(layout, "appeal", ballots):
            return ballots.items

    items = hold_appeal()
    metrics, voters, _ = report_preference(layout, params, "appeal", {})
    assert voters == "18 votes of the rubric panel, not people" and metrics["num_votes_of_people"] == 0
    people = [
        Vote("appeal", rater, "person", key, "B", side_order="AB", seen=items[key])
        for key in items
        for rater in ("anna", "ben")
    ]
    open_log(layout.votes("appeal")).append(people[:4])
    hold_appeal()
    metrics, voters, _ = report_preference(layout, params, "appeal", {})
    assert voters == "4 votes of 2 people, 12 of the rubric panel" and metrics["num_votes"] == 16
    open_log(layout.votes("appeal")).append(people[4:])
    hold_appeal()
    metrics, voters, _ = report_preference(layout, params, "appeal", {})
    assert voters == "12 votes of 2 people" and metrics["lose"] == 100
    assert describe_judges(layout) == "appeal: 12 votes of 2 people"

    # Another model under the same keys: what people said about the old pictures is kept and says nothing about these.
    write_pairs(layout, draw_balls(True)[6:])
    with pytest.raises(ValueError, match="materialise appeal_votes"):
        report_preference(layout, params, "appeal", {})
    ballots = appeal_ballots(layout, section, COMPARISON)
    with recorded_round(layout, "appeal", ballots) as found:
        assert found.tables["not_counted"].startswith("12 votes of people are on pictures that are no longer shown")
    metrics, voters, _ = report_preference(layout, params, "appeal", {})
    assert voters == "18 votes of the rubric panel, not people" and metrics["lose"] < 50
    kept = [v for v in read_votes(layout, "appeal", PEOPLE_FIRST).votes if v.rater_kind == "person"]
    assert [replace(vote, time="") for vote in kept] == people
