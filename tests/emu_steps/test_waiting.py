"""`voters` in params.yaml: who may decide, what waits for people, and that labels say so."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu_data.shards import read_manifest
from emu_data.votes.plans import RecordedPlan, digest_items, put_plan
from emu_data.votes.rounds import open_log
from emu_data.votes.vote import Vote, counted
from emu_steps.choosing import read_chosen_by, select_generalists_choice, write_curated_set
from emu_steps.judging import appeal_ballots, faithfulness_ballots, report_preference
from emu_steps.layout import Layout
from emu_steps.needs import find_shortages, refuse_shortage
from emu_steps.params import AppealVotes, CurationVotes, FaithfulnessVotes, Params
from emu_steps.params.kinds import Voters
from emu_steps.voting import generalist_ballots, read_votes, recorded_round, shown_to_generalists, specialist_ballots
from emu_steps.waiting import shown_items
from tests.emu_data.drawings import draw_balls
from tests.profiles import params_of
from tests.rounds import COMPARISON, write_filtered, write_pairs

STUDIO = "http://127.0.0.1:8001"
PEOPLE_FIRST: Voters = "people, then panel"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    write_filtered(layout, np.concatenate([draw_balls(False)[::2], draw_balls(True)[::2]]))
    write_pairs(layout, draw_balls(True)[:6])
    return layout


def params_with(voters: Voters) -> Params:
    params = params_of("smoke").model_copy(update={"comparison": COMPARISON})
    names = ("generalist_votes", "specialist_votes", "appeal_votes", "faithfulness_votes")
    sections = {name: getattr(params, name).model_copy(update={"voters": voters}) for name in names}
    return params.model_copy(update=sections)


def hold(layout: Layout, voters: Voters) -> tuple[str, str]:
    """Materialises generalist_votes; returns its head and its label."""
    ballots = generalist_ballots(layout, CurationVotes(voters=voters, num_raters=3, seed=0), 8)
    with recorded_round(layout, "generalist", ballots) as found:
        return found.head, found.voters


def vote(layout: Layout, name: str, keys: list[str], decision: str = "drop") -> None:
    items = shown_items(layout, params_with("people"), name)
    side = "" if decision in ("keep", "drop") else "AB"
    votes = [Vote(name, "anna", "person", key, decision, side_order=side, seen=items[key]) for key in keys]
    open_log(layout.votes(name)).append(votes)


def test_where_only_people_decide_a_round_says_how_many_pictures_wait_and_where_to_go(layout: Layout):
    params, keys = params_with("people"), shown_to_generalists(layout)
    with pytest.raises(ValueError) as told:
        refuse_shortage(layout, params, "generalist_votes", STUDIO)
    assert f"{len(keys)} of {len(keys)} pictures wait for people" in str(told.value)
    assert STUDIO in str(told.value) and "emu studio open generalist" in str(told.value) and "\n" not in str(told.value)
    vote(layout, "generalist", keys[3:])
    waiting = {text.split(":")[0]: text for text in find_shortages(layout, params, STUDIO)}
    assert "3 of" in waiting["generalist_votes"] and "6 of 6 pairs of pictures" in waiting["appeal_votes"]
    assert "specialist_votes" not in waiting  # nothing was chosen for them yet
    vote(layout, "generalist", keys[:3], "keep")
    refuse_shortage(layout, params, "generalist_votes", STUDIO)
    for voters in (PEOPLE_FIRST, "panel"):
        refuse_shortage(layout, params_with(voters), "appeal_votes", STUDIO)


def test_a_round_that_was_closed_over_these_pictures_waits_no_longer(layout: Layout):
    """Its stopping rule left some out; with another picture it waits again."""
    params, items = params_with("people"), shown_items(layout, params_with("people"), "generalist")
    vote(layout, "generalist", list(items)[:2])
    plan = RecordedPlan("generalist", "d", {}, "2026-11-27", "", digest_items(items), len(items), [], 2, "h")
    put_plan(layout.votes("generalist"), plan)  # opened, not closed
    with pytest.raises(ValueError, match="wait for people"):
        refuse_shortage(layout, params, "generalist_votes", STUDIO)
    put_plan(layout.votes("generalist"), replace(plan, closed="2026-11-28"))
    refuse_shortage(layout, params, "generalist_votes", STUDIO)
    write_filtered(layout, draw_balls(True)[::2])
    with pytest.raises(ValueError, match="pictures wait for people"):
        refuse_shortage(layout, params, "generalist_votes", STUDIO)


def test_the_rest_of_a_killed_append_is_no_reason_to_go_on(layout: Layout):
    vote(layout, "generalist", shown_to_generalists(layout)[:1])
    with open_log(layout.votes("generalist")).path.open("ab") as stream:
        stream.write(b'{"hash":"half a li')
    with pytest.raises(ValueError, match="wait for people"):
        refuse_shortage(layout, params_with("people"), "generalist_votes", STUDIO)


def test_where_only_people_decide_the_panel_says_nothing_and_takes_back_what_it_said(layout: Layout):
    hold(layout, PEOPLE_FIRST)
    vote(layout, "generalist", shown_to_generalists(layout)[:2], "keep")
    _, label = hold(layout, "people")
    assert label == "2 votes of 1 person"
    choice = select_generalists_choice(layout, 8, "people")
    assert list(choice.chosen["key"]) == shown_to_generalists(layout)[:2]
    assert choice.metrics["num_chosen_by_people"] == 2
    everything = read_votes(layout, "generalist", PEOPLE_FIRST).votes
    counting = counted(everything, shown_items(layout, params_with("people"), "generalist"))
    assert {one.rater_kind for one in counting} == {"person"}  # whoever reads the log sees that it withdrew


def test_the_panel_alone_decides_only_where_params_say_so_and_labels_say_it(layout: Layout):
    keys = shown_to_generalists(layout)
    hold(layout, PEOPLE_FIRST)
    before = set(select_generalists_choice(layout, 8, PEOPLE_FIRST).chosen["key"])
    vote(layout, "generalist", keys)  # anna drops all
    head, label = hold(layout, "panel")
    assert label.endswith("of the rubric panel, not people; people's votes do not count, since voters is `panel`")
    choice = select_generalists_choice(layout, 8, "panel")
    assert set(choice.chosen["key"]) == before and choice.tables["chosen_by"].endswith("since voters is `panel`")
    assert hold(layout, "panel")[0] == head  # it said all that it says
    with pytest.raises(ValueError, match="chose none"):
        hold(layout, PEOPLE_FIRST)
        select_generalists_choice(layout, 8, PEOPLE_FIRST)


def test_the_curated_set_says_that_people_were_left_out_and_their_next_vote_changes_no_byte(layout: Layout):
    hold(layout, PEOPLE_FIRST)
    select_generalists_choice(layout, 8, PEOPLE_FIRST)

    def curate() -> dict[str, bytes]:
        ballots = specialist_ballots(layout, CurationVotes(voters="panel", num_raters=5, seed=1), 4)
        with recorded_round(layout, "specialist", ballots):
            pass
        write_curated_set(layout, 4, "panel")
        return {path.name: path.read_bytes() for path in layout.curated.iterdir()}

    before = curate()
    assert "people's votes do not count" in read_chosen_by(layout)
    vote(layout, "specialist", read_manifest(layout.curated)["key"].tolist())
    assert curate() == before


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from([PEOPLE_FIRST, "people", "panel", "vote"]), min_size=1, max_size=6))
def test_what_counts_depends_on_the_votes_and_on_who_may_decide_now_not_on_the_way_there(steps: list):
    import tempfile

    from emu_data.votes.rounds import append_panel
    from emu_steps.voting import admitted

    items = {str(number): f"seen-{number}" for number in range(4)}
    panel = [Vote("generalist", f"rubric-{r}", "rubric", key, "keep", score=0.5) for key in items for r in range(2)]

    def sit(log, voters: Voters) -> list[Vote]:
        append_panel(log, [] if voters == "people" else panel, items, voters == "panel")
        votes = counted(admitted(log.read(), voters), items)
        return sorted((vote for vote in votes), key=lambda vote: (vote.rater, vote.key))

    with tempfile.TemporaryDirectory() as folder:
        log, alone, num = open_log(Path(folder, "a")), open_log(Path(folder, "b")), 0
        for step in steps:
            if step == "vote":
                key, num = str(num % 4), num + 1
                both = [Vote("generalist", "anna", "person", key, "drop", seen=items[key], time="2026-11-27")]
                log.append(both)
                alone.append(both)
            else:
                sit(log, step)
        for voters in ("panel", "people", PEOPLE_FIRST):
            assert sit(log, voters) == sit(alone, voters)


def test_reports_on_pairs_say_who_decides_too(layout: Layout):
    items = shown_items(layout, params_with("people"), "appeal")
    vote(layout, "appeal", list(items), "B")
    for voters, lose, told in (("people", 100, "6 votes of 1 person"), ("panel", None, "voters is `panel`")):
        params = params_with(voters)  # pyrefly: ignore
        section = AppealVotes(voters=params.appeal_votes.voters, num_raters=3, repeat_share=0, seed=0)
        with recorded_round(layout, "appeal", appeal_ballots(layout, section, COMPARISON)) as found:
            assert told in found.voters
        metrics, label, _ = report_preference(layout, params, "appeal", {})
        assert told in label and (lose is None or metrics["lose"] == lose)
    assert metrics["num_votes_of_people"] == 0


def test_people_alone_need_no_judge_of_faithfulness(layout: Layout):
    ballots = faithfulness_ballots(layout, FaithfulnessVotes(voters="people", num_raters=3, seed=0), COMPARISON)
    assert ballots.panel == [] and ballots.items == shown_items(layout, params_with("people"), "faithfulness")


def test_an_unknown_decider_is_refused():
    with pytest.raises(ValueError, match="'people, then panel', 'people' or 'panel'"):
        CurationVotes(voters="nobody", num_raters=1, seed=0)  # pyrefly: ignore
