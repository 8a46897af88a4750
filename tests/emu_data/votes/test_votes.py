import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu_data.votes.log import GENESIS, TruncatedVoteLog, VoteLog, VoteLogError, export_parquet, exported_head
from emu_data.votes.tally import choose, tally
from emu_data.votes.vote import Vote, counted, votes_to_frame


def make_vote(number: int, rater: str = "r1", decision: str = "keep", **changes) -> Vote:
    return Vote("generalist", rater, "rubric", f"{number:09d}", decision, **changes)


@pytest.fixture
def log(tmp_path: Path) -> VoteLog:
    log = VoteLog(tmp_path / "votes.jsonl")
    log.append(make_vote(number, score=0.5) for number in range(5))
    log.append([make_vote(5, decision="drop", reason="naïve ‘shading’\r\n\u2028")])
    return log


def test_round_trip_keeps_every_field(log: VoteLog):
    votes = log.read()
    assert [vote.key for vote in votes] == [f"{number:09d}" for number in range(6)]
    assert votes[5].reason == "naïve ‘shading’\r\n\u2028"
    assert votes[0].score == 0.5
    found = log.verify()
    assert found.is_sound and found.num_votes == 6


def test_a_given_time_is_kept_and_an_empty_append_changes_nothing(tmp_path: Path):
    log = VoteLog(tmp_path / "votes.jsonl")
    assert log.read() == [] and log.verify().is_sound
    head = log.append([make_vote(1, time="2026-11-23T10:00:00.000Z")])
    assert log.read()[0].time == "2026-11-23T10:00:00.000Z"
    assert log.append([]) == head


def test_people_have_a_clock_and_panels_have_none(tmp_path: Path):
    """So that the same panel writes the same bytes whenever it sits."""
    log = VoteLog(tmp_path / "votes.jsonl")
    log.append([make_vote(1), Vote("generalist", "anna", "person", "1", "keep")])
    rubric, person = log.read()
    assert rubric.time == "" and person.time.endswith("Z")


def test_a_log_of_the_previous_version_is_whole(tmp_path: Path):
    """Written by the code of the first release, when a vote said nothing of what was seen."""
    (tmp_path / "votes.jsonl").write_text(
        '{"hash":"e96bc1d68efd70b0dc631f9ecc583c9856d44ac7577385ad716adbc986e9face","index":0,'
        '"previous":"0000000000000000000000000000000000000000000000000000000000000000",'
        '"vote":{"decision":"drop","is_repeat":false,"key":"000000001","rater":"r1","rater_kind":"person",'
        '"reason":"shading","round":"generalist","score":null,"seconds":null,"side_order":"","time":"2026-11-20T10:00:00.000Z"}}\n'
    )
    log = VoteLog(tmp_path / "votes.jsonl")
    log.append([make_vote(2, seen="ab")])
    assert log.verify().is_sound and [vote.seen for vote in log.read()] == ["", "ab"]


def test_a_log_is_read_up_to_a_head_and_says_what_came_since(log: VoteLog):
    heads = [GENESIS, *(json.loads(line)["hash"] for line in _lines(log))]
    for number, head in enumerate(heads):
        assert log.read(until=head) == log.read()[:number] and log.num_since(head) == 6 - number
    assert log.head() == heads[-1] and log.num_since("ab" * 32) is None
    with pytest.raises(VoteLogError, match="not in this log"):
        log.read(until="ab" * 32)


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_an_append_does_not_reach_through_a_link_into_a_cache(log: VoteLog, tmp_path: Path, link):
    cached = tmp_path / "cached"
    log.path.rename(cached)
    link(cached, log.path)
    before = cached.read_bytes()
    log.append([make_vote(9)])
    assert cached.read_bytes() == before and log.verify().num_votes == 7 and log.verify().is_sound


def _lines(log: VoteLog) -> list[bytes]:
    return log.path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("line", range(6))
def test_any_edit_removal_or_reorder_is_found(log: VoteLog, line: int):
    lines = _lines(log)
    record = json.loads(lines[line])
    record["vote"]["decision"] = "drop" if record["vote"]["decision"] == "keep" else "keep"
    edited = lines.copy()
    edited[line] = json.dumps(record).encode() + b"\n"
    removed = lines[:line] + lines[line + 1 :]
    swapped = lines.copy()
    other = (line + 1) % 6
    swapped[line], swapped[other] = lines[other], lines[line]
    inserted = lines[:line] + [lines[line]] + lines[line:]
    for damaged in (edited, removed, swapped, inserted):
        log.path.write_bytes(b"".join(damaged))
        assert not log.verify().is_sound
        with pytest.raises(VoteLogError):
            log.read()
    log.path.write_bytes(b"".join(lines))
    assert log.verify().is_sound


def test_removal_from_the_end_also_stops_appending(log: VoteLog):
    log.path.write_bytes(b"".join(_lines(log)[:-2]))
    assert "missing from the end" in log.verify().problems[0]
    with pytest.raises(VoteLogError, match="removed from the end"):
        log.append([make_vote(9)])


def test_a_rewritten_log_does_not_hold_a_head_that_was_printed(log: VoteLog, tmp_path: Path):
    printed = log.verify().head
    log.append([make_vote(7)])
    assert log.verify(expected_head=printed).is_sound
    forged = VoteLog(tmp_path / "forged.jsonl")
    forged.append(log.read()[1:])
    assert forged.verify().is_sound and not forged.verify(expected_head=printed).is_sound


@pytest.mark.parametrize("num_bytes_lost", [1, 40])
def test_a_truncated_last_line_is_reported_and_recovered(log: VoteLog, num_bytes_lost: int):
    # The crash came before the head was written: the head still speaks of the first five.
    head = json.loads(_lines(log)[4])["hash"]
    log.head_path.write_text(json.dumps({"num_votes": 5, "head": head}))
    log.path.write_bytes(log.path.read_bytes()[:-num_bytes_lost])
    for use in (log.read, lambda: log.append([make_vote(9)])):
        with pytest.raises(TruncatedVoteLog, match="recover"):
            use()
    assert log.verify().num_truncated_bytes > 0
    aside = log.recover()
    assert aside is not None and aside.read_bytes().startswith(b'{"hash"')
    assert log.verify().is_sound and log.verify().num_votes == 5
    log.append([make_vote(9)])
    assert [vote.key for vote in log.read()][-1] == "000000009"
    assert log.recover() is None


def test_a_crash_between_the_line_and_the_head_loses_nothing(log: VoteLog):
    head = json.loads(_lines(log)[4])["hash"]
    log.head_path.write_text(json.dumps({"num_votes": 5, "head": head}))
    assert log.verify().is_sound and len(log.read()) == 6
    log.append([])
    assert json.loads(log.head_path.read_text())["num_votes"] == 6


def _append_many(path: Path, rater: str) -> None:
    log = VoteLog(path)
    for number in range(20):
        log.append([make_vote(number, rater=rater), make_vote(100 + number, rater=rater)])


def test_several_processes_append_at_once(tmp_path: Path):
    path = tmp_path / "votes.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append_many, args=(path, f"r{n}")) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert all(worker.exitcode == 0 for worker in workers)
    votes = VoteLog(path).read()
    assert len(votes) == 160 and VoteLog(path).verify().num_votes == 160
    own = [vote.key for vote in votes if vote.rater == "r2"]
    assert own == [f"{key:09d}" for number in range(20) for key in (number, 100 + number)]


def test_export_holds_the_votes_and_the_head(log: VoteLog, tmp_path: Path):
    path = tmp_path / "out" / "votes.parquet"
    assert exported_head(path) is None
    assert export_parquet(log, path) == (log.read(), log.head())
    assert exported_head(path) == log.head()
    expected = votes_to_frame(log.read()).astype({"score": float, "seconds": float})
    pd.testing.assert_frame_equal(pd.read_parquet(path), expected)


@pytest.mark.parametrize(
    "changes",
    [{"decision": "maybe"}, {"rater_kind": "robot"}, {"key": ""}, {"decision": "A"}, {"side_order": "left"}],
)
def test_a_vote_that_means_nothing_is_refused(changes: dict):
    values: dict[str, Any] = {
        "round": "r",
        "rater": "a",
        "rater_kind": "person",
        "key": "k",
        "decision": "keep",
    } | changes
    with pytest.raises(ValueError):
        Vote(**values)


def test_tally_orders_by_votes_then_score():
    votes = [
        make_vote(1, "r1", "drop", reason="shading"),
        make_vote(1, "r2", "drop", reason="shading"),
        make_vote(1, "r3", "keep"),
        make_vote(2, "r1", "keep", score=0.4),
        make_vote(2, "r2", "keep", score=0.6),
        make_vote(3, "r1", "keep", score=0.9),
        make_vote(3, "r2", "keep", score=0.7),
        make_vote(4, "r1", "drop", reason="colour"),
    ]
    table = tally(votes, "majority").set_index("key")
    assert choose(tally(votes, "majority")) == ["000000003", "000000002"]
    assert choose(tally(votes, "majority"), 1) == ["000000003"]
    assert choose(tally(votes, "any")) == ["000000003", "000000002", "000000001"]
    assert table.loc["000000001", "reason"] == "shading" and not table.loc["000000004", "goes_on"]
    pd.testing.assert_frame_equal(tally(votes[:7][::-1]), tally(votes[:7]))


def test_of_two_that_all_kept_the_one_that_people_kept_comes_first():
    votes = [make_vote(1, score=0.99), Vote("generalist", "anna", "person", "2", "keep")]
    assert choose(tally(votes), 1) == ["2"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.builds(make_vote, st.integers(0, 5), st.sampled_from("abcd"), st.sampled_from(["keep", "drop"]))))
def test_what_the_votes_turned_down_is_never_chosen(votes: list[Vote]):
    """Whatever the rule and however many are wanted."""
    votes = counted(votes, {vote.key: "" for vote in votes})
    for rule in ("any", "majority"):
        for wanted in (1, 3, 100, None):
            chosen = choose(tally(votes, rule), wanted)
            assert len(chosen) == len(set(chosen)) <= (wanted or 100)
            for key in chosen:
                own = [vote.decision for vote in votes if vote.key == key]
                assert own.count("keep") > (own.count("drop") if rule == "majority" else 0)


def test_tally_refuses_votes_that_were_not_counted_and_pairs():
    other = Vote("specialist", "r1", "rubric", "1", "keep")
    with pytest.raises(ValueError, match="several rounds"):
        tally([make_vote(1), other])
    with pytest.raises(ValueError, match="more than one vote"):
        tally([make_vote(1), make_vote(1, decision="drop")])
    with pytest.raises(ValueError, match="people and a panel"):
        tally([make_vote(1), Vote("generalist", "anna", "person", "000000001", "keep")])
    with pytest.raises(ValueError, match="side-by-side"):
        tally([Vote("appeal", "r1", "rubric", "1", "A", side_order="AB")])
