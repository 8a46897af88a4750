"""What counts: one function, whatever the log holds."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu_data.votes.vote import (
    WITHDRAWN,
    Vote,
    check_counted,
    counted,
    counted_of_raters,
    counted_repeats,
    describe_voters,
)

KEYS: tuple[str, ...] = ("1", "2", "3")
ITEMS = {"1": "one", "2": "two"}  # "3" is not shown any more
kinds = st.sampled_from(["person", "rubric"])
raters = st.sampled_from(["anna", "ben", "rubric-1"])
pictures = st.builds(
    Vote,
    st.just("specialist"),
    raters,
    kinds,
    st.sampled_from(KEYS),
    st.sampled_from(["keep", "drop", WITHDRAWN]),
    is_repeat=st.booleans(),
    seen=st.sampled_from(["", "one", "two", "something else"]),
)
pairs = st.builds(
    Vote,
    st.just("appeal"),
    raters,
    kinds,
    st.sampled_from(KEYS),
    st.sampled_from(["A", "B", "tie", WITHDRAWN]),
    side_order=st.sampled_from(["AB", "BA"]),
    is_repeat=st.booleans(),
    seen=st.sampled_from(["", "one", "two", "something else"]),
)
logs = st.lists(pictures, max_size=30) | st.lists(pairs, max_size=30)
adjudications = st.builds(
    Vote,
    st.just("specialist"),
    st.sampled_from(["lead-1", "lead-2", "anna"]),
    st.just("person"),
    st.sampled_from(KEYS),
    st.sampled_from(["keep", "drop", WITHDRAWN]),
    seen=st.sampled_from(["", "one", "two"]),
    is_adjudication=st.just(True),
)


@given(logs)
def test_what_counts_is_one_word_a_rater_and_item_about_what_is_shown(votes: list[Vote]):
    found = counted(votes, ITEMS)
    check_counted(found)
    assert counted(found, ITEMS) == found
    for vote in found:
        own = [v for v in votes if (v.rater_kind, v.rater, v.key) == (vote.rater_kind, vote.rater, vote.key)]
        shown = [v for v in own if v.seen == ITEMS[v.key] or (v.seen == "" and not v.side_order)]
        assert [v for v in shown if not v.is_repeat][-1] == vote and vote.decision != WITHDRAWN


@given(logs, st.data())
def test_a_panel_never_speaks_where_a_person_did(votes: list[Vote], data: st.DataObject):
    by_people = {vote.key for vote in counted(votes, ITEMS) if vote.rater_kind == "person"}
    for vote in [*counted(votes, ITEMS), *counted_repeats(votes, ITEMS)]:
        assert vote.rater_kind == "person" or vote.key not in by_people
    rubric = [vote for vote in votes if vote.rater_kind == "rubric"]
    people = [vote for vote in votes if vote.rater_kind == "person"]
    # Whatever the panel says, before or after: what counts of people's votes is the same.
    mixed = data.draw(st.permutations([*people, *rubric]))
    kept = [vote for vote in mixed if vote.rater_kind == "person"]
    assert [v for v in counted(mixed, ITEMS) if v.rater_kind == "person"] == counted(kept, ITEMS)


@given(logs)
def test_nothing_shown_nothing_counts(votes: list[Vote]):
    assert counted(votes, {}) == counted_repeats(votes, {}) == []
    elsewhere = dict.fromkeys(KEYS, "other pictures")
    assert all(vote.seen == "" and not vote.side_order for vote in counted(votes, elsewhere))


def test_the_last_word_counts_and_can_be_taken_back_and_given_again():
    keep = Vote("specialist", "anna", "person", "1", "keep", seen="one")
    drop, gone = replace(keep, decision="drop"), replace(keep, decision=WITHDRAWN)
    panel = replace(keep, rater="rubric-1", rater_kind="rubric")
    for votes, expected in (
        ([keep, drop], [drop]),
        ([keep, panel], [keep]),
        ([panel, keep, gone], [panel]),
        ([keep, gone, drop], [drop]),
        ([keep, replace(drop, seen="another corpus")], [keep]),
    ):
        assert counted(votes, ITEMS) == expected


@given(st.lists(pictures | adjudications, max_size=30))
def test_an_adjudication_decides_a_picture_and_erases_nobodys_word(votes: list[Vote]):
    found = counted(votes, ITEMS)
    check_counted(found)
    assert counted(found, ITEMS) == found
    decided = {}
    for vote in votes:
        if vote.is_adjudication and vote.key in ITEMS and vote.seen in ("", ITEMS[vote.key]):
            decided[vote.key] = vote
    for key in ITEMS:
        own = [vote for vote in found if vote.key == key]
        if key in decided and decided[key].decision != WITHDRAWN:
            assert own == [decided[key]]
        else:
            assert own == [vote for vote in counted_of_raters(votes, ITEMS) if vote.key == key]
    assert counted_of_raters(votes, ITEMS) == counted([v for v in votes if not v.is_adjudication], ITEMS)


def test_taste_is_not_adjudicated():
    with pytest.raises(ValueError, match="adjudicated"):
        Vote("appeal", "lead-1", "person", "1", "A", side_order="AB", is_adjudication=True)


def test_a_pair_that_does_not_say_what_was_seen_never_counts_and_a_picture_does():
    """A pair's key is the number of a prompt, which the next evaluation uses again for other pictures."""
    pair = Vote("appeal", "anna", "person", "1", "A", side_order="AB")
    assert counted([pair], ITEMS) == [] and counted([replace(pair, seen="one")], ITEMS)
    assert counted([Vote("specialist", "anna", "person", "1", "keep")], ITEMS)


def test_rounds_are_counted_one_at_a_time():
    with pytest.raises(ValueError, match="several rounds"):
        counted([Vote(name, "anna", "person", "1", "keep") for name in ("generalist", "specialist")], ITEMS)


def test_who_voted_is_said_as_it_is():
    def votes(num: int, raters: int, kind: str) -> list[Vote]:
        return [Vote("r", f"{kind}{n % raters}", kind, f"{n}", "keep") for n in range(num)]  # type: ignore[arg-type]

    people, panel = votes(412, 5, "person"), votes(88, 3, "rubric")
    assert describe_voters([*people, *panel]) == "412 votes of 5 people, 88 of the rubric panel"
    assert describe_voters(people) == "412 votes of 5 people"
    assert describe_voters(panel) == "88 votes of the rubric panel, not people"
    assert describe_voters(votes(1, 1, "person")) == "1 vote of 1 person"
    assert describe_voters(votes(1, 1, "rubric")) == "1 vote of the rubric panel, not people"
    assert describe_voters([]) == "no votes"


@given(logs)
def test_not_people_is_said_just_where_no_person_voted(votes: list[Vote]):
    told = describe_voters(votes)
    has_people = any(vote.rater_kind == "person" for vote in votes)
    assert ("not people" in told) == (bool(votes) and not has_people)
    assert ("rubric panel" in told) == any(vote.rater_kind == "rubric" for vote in votes)
