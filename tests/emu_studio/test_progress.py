"""A lead's numbers, against cases counted by hand; what a comparison shows, and when."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu_data.votes.vote import Vote, counted, counted_of_raters
from emu_studio import progress
from emu_studio.plan import UNSAFE, default_plan
from emu_studio.progress import measure
from emu_studio.records import Written
from emu_studio.results import finished_prompts, is_hidden, result_of
from tests.emu_studio.inside import record_of, vote_of

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
PER_PROMPT = 2


def at(hours_ago: float) -> dict[str, Any]:
    return {"time": (NOW - timedelta(hours=hours_ago)).isoformat(timespec="milliseconds").replace("+00:00", "Z")}


def test_a_round_of_three_specialists_by_hand():
    """Five pictures, three raters each: 15 votes are wanted."""
    votes = [
        *(vote_of("anna", item, "keep", seconds=2.0, **at(30)) for item in range(4)),
        *(vote_of("ben", item, "drop", reason="light", seconds=0.1, **at(20)) for item in range(5)),
        vote_of("ben", 0, "keep", seconds=6.0, **at(19)),  # corrects himself
        vote_of("carl", 0, "keep", seconds=4.0, **at(80)),
        vote_of("carl", 1, "drop", reason=UNSAFE, **at(80)),
        vote_of("carl", 2, "skipped", reason="cannot tell", **at(79)),
        vote_of("lead", 3, "drop", is_adjudication=True, **at(1)),
    ]
    record = record_of(default_plan("specialist"), 5, votes, gold={0: "keep", 2: "drop"})
    found = measure(record, NOW)
    pace = found.pace
    # k0 3, k1 3, k2 2, k3 2, k4 1
    assert (pace.num_items, pace.num_finished, pace.num_done, pace.num_wanted, pace.num_kept) == (5, 2, 11, 15, 4)
    # in the last 72 hours: four of anna's and six of ben's; carl's are older
    assert pace.per_day == pytest.approx(10 / 3)
    assert pace.end is not None and (pace.end - NOW) / timedelta(days=1) == pytest.approx(4 / (10 / 3))
    anna, ben, carl = found.raters
    assert (anna.num_decided, anna.seconds, anna.num_too_fast, anna.num_gold, anna.num_right) == (4, 2.0, 0, 2, 1)
    assert (ben.num_decided, ben.seconds, ben.num_timed, ben.num_too_fast) == (5, 0.1, 6, 5)
    assert (ben.num_gold, ben.num_right) == (2, 2) and not ben.is_too_fast  # of six one cannot say
    assert (carl.num_decided, carl.num_skipped, carl.num_timed) == (2, 1, 1) and carl.last == at(79)["time"]
    # k1 is 1:2, k2 1:1, k3 1:1 but adjudicated; k0 all keep
    assert found.disputed == [2, 1] and found.unsafe == [1] and found.adjudicated == [3]
    assert found.consistency is None and found.bias is None
    assert found.agreement.num_items == 4 and found.agreement.num_raters == 3


def test_the_first_day_is_a_whole_day_and_without_votes_there_is_no_end():
    plan = default_plan("generalist")
    quick = measure(record_of(plan, 100, [vote_of("anna", n, "drop", **at(0.5)) for n in range(20)]), NOW).pace
    assert quick.per_day == 20 and quick.end == NOW + timedelta(days=4)
    for votes in ([], [vote_of("anna", 0, "keep", **at(100))]):
        pace = measure(record_of(plan, 100, votes), NOW).pace
        assert pace.per_day == 0 and pace.end is None


def test_a_rater_who_is_too_fast_is_named():
    votes = [vote_of("anna", n, "drop", seconds=0.2 if n < 2 else 3.0, **at(1)) for n in range(20)]
    (anna,) = measure(record_of(default_plan("generalist"), 20, votes), NOW).raters
    assert anna.num_too_fast == 2 and anna.is_too_fast
    (anna,) = measure(record_of(default_plan("generalist", min_seconds=0.1), 20, votes), NOW).raters
    assert anna.num_too_fast == 0 and not anna.is_too_fast


def test_pairs_shown_again_and_the_side_that_is_chosen():
    votes = [vote_of("anna", n, "A", side_order="AB", **at(1)) for n in range(8)]
    votes += [vote_of("anna", n, "A" if n < 3 else "B", side_order="BA", is_repeat=True, **at(1)) for n in range(4)]
    found = measure(record_of(default_plan("appeal"), 8, votes), NOW)
    assert found.consistency and (found.consistency.num_repeats, found.consistency.same_share) == (4, 0.75)
    assert found.bias and (found.bias.num_choices, found.bias.left_share) == (8, 1.0)
    assert found.bias.p_value == pytest.approx(2 / 2**8)
    assert found.raters[0].consistency == found.consistency and found.disputed == []


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.sampled_from(["keep", "drop", "withdrawn"]))))
def test_what_is_finished_is_what_has_enough_words_that_count(said: list[tuple[str, int, str]]):
    votes = [vote_of(rater, item, decision, **at(1)) for rater, item, decision in said]
    record = record_of(default_plan("specialist", raters_per_item=2), 4, votes)
    found = measure(record, NOW)
    own = counted_of_raters(votes, record.shown)
    num = [len({v.rater for v in own if v.key == f"k{n}"}) for n in range(4)]
    assert found.pace.num_finished == sum(n >= 2 for n in num)
    assert found.pace.num_done == sum(min(n, 2) for n in num) <= found.pace.num_wanted == 8
    assert sum(rater.num_decided for rater in found.raters) == len(own)
    decisions = [{v.decision for v in own if v.key == f"k{n}"} for n in range(4)]
    assert set(found.disputed) == {n for n in range(4) if len(decisions[n]) == 2}


def votes_on(num_prompts: int, num_won: int) -> list[Vote]:
    """Two raters a prompt, of one mind: A wins the first prompts, B the others."""
    return [
        vote_of(rater, n, "A" if n < num_won else "B", side_order=side, **at(1))
        for n in range(num_prompts)
        for rater, side in (("anna", "AB"), ("ben", "BA"))
    ]


def test_a_planned_comparison_is_hidden_until_its_number_and_then_shows_just_that():
    plan = default_plan("appeal", raters_per_item=PER_PROMPT, planned_prompts=10)
    votes = votes_on(12, 8)
    for num in range(10):
        early = record_of(plan, 12, votes[: 2 * num + 1])
        assert is_hidden(early) and result_of(early) is None and len(finished_prompts(early)) == num
    for num in (20, 24):  # what comes after was not planned
        found = result_of(record_of(plan, 12, votes[:num]))
        assert found and not found.is_anytime and found.num_prompts == 10
        assert (found.win.estimate, found.lose.estimate, found.win_less_lose.estimate) == pytest.approx((80, 20, 60))
    # exact, of a count: Clopper and Pearson for 8 of 10
    assert (found.win.low, found.win.high) == pytest.approx((44.39, 97.48), abs=0.01)


def test_a_closed_comparison_is_not_hidden():
    plan = default_plan("appeal", raters_per_item=PER_PROMPT, planned_prompts=10)
    record = record_of(plan, 12, votes_on(6, 6))
    record.round = replace(record.round, closed="2026-11-27T12:00:00.000Z")
    found = result_of(record)
    assert not is_hidden(record) and found and found.num_prompts == 6 and not found.is_anytime


def test_without_a_number_a_sequence_is_shown_and_called_so():
    plan = default_plan("appeal", raters_per_item=PER_PROMPT)
    votes = [vote_of(rater, n, "B" if n % 4 == 3 else "A", **at(1)) for n in range(40) for rater in ("anna", "ben")]
    found = result_of(record_of(plan, 40, votes))
    assert found and found.is_anytime and found.num_prompts == 40
    assert found.win.estimate == pytest.approx(75) and found.win_less_lose.estimate == pytest.approx(50)
    assert 50 < found.win.low < 60 and 85 < found.win.high < 95 and found.win_less_lose.low > 0
    empty = record_of(plan, 40)
    assert result_of(empty) is None and not is_hidden(empty)


def test_a_prompt_is_finished_when_its_last_pair_is_and_again_after_a_withdrawal():
    plan = default_plan("appeal", raters_per_item=PER_PROMPT)
    votes = votes_on(3, 3)
    assert finished_prompts(record_of(plan, 3, [*votes[4:], *votes[:4]])) == ["prompt 2", "prompt 0", "prompt 1"]
    gone = vote_of("anna", 0, "withdrawn", **at(0))
    assert finished_prompts(record_of(plan, 3, [*votes, gone])) == ["prompt 1", "prompt 2"]
    assert finished_prompts(record_of(plan, 3, [*votes, gone, votes[0]])) == ["prompt 1", "prompt 2", "prompt 0"]
    assert len(counted([*votes, gone], record_of(plan, 3).shown)) == 5


def test_captions_are_counted_and_unedited_drafts_are_named():
    def written(rater: str, item: int, hours_ago: float, is_unedited: bool = False) -> Written:
        return Written(rater, item, at(hours_ago)["time"], 60.0, is_unedited)

    record = record_of(default_plan("captions"), 8, [vote_of("ben", 7, "skipped", reason="blurred", **at(2))])
    record.captions = [written("anna", 0, 3, True), written("anna", 0, 2), written("anna", 1, 2, True)]
    record.captions.append(written("ben", 2, 1))
    found = measure(record, NOW)
    assert (found.pace.num_done, found.pace.num_wanted, found.pace.num_finished, found.pace.per_day) == (3, 8, 3, 4)
    anna, ben = found.raters
    assert (anna.num_decided, anna.num_unedited, anna.num_skipped, anna.seconds) == (2, 1, 0, 60.0)
    assert (ben.num_decided, ben.num_unedited, ben.num_skipped, ben.last) == (1, 0, 1, at(1)["time"])


def test_the_numbers_of_a_large_round_are_kept_for_a_while(monkeypatch: pytest.MonkeyPatch):
    numbers, plan = progress.Numbers(), default_plan("generalist")

    def shown(num: int, seconds: float) -> int:
        record = record_of(plan, 5, [vote_of("anna", n, "keep", **at(1)) for n in range(num)])
        record.head = f"{num}"
        return numbers.of(record, NOW + timedelta(seconds=seconds)).pace.num_done

    assert [shown(1, 0), shown(2, 1)] == [1, 2]
    monkeypatch.setattr(progress, "LARGE", 3)
    assert [shown(3, 2), shown(4, 12.1), shown(5, 20)] == [2, 4, 4]
