"""A round's log as an input: people's votes stay and decide, the panel fills in, and what was recorded stays whole."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu_data.votes.log import GENESIS, VoteLog, VoteLogError
from emu_data.votes.rounds import append_panel, check_log, num_new, open_log, read_round, record_round
from emu_data.votes.vote import Vote, counted, counted_repeats

ITEMS = {f"{n}": f"seen-{n}" for n in range(6)}
NOWHERE = Path("nowhere/votes.jsonl")


def panel(num_raters: int, seed: int = 0, items: dict[str, str] = ITEMS) -> list[Vote]:
    """Votes that depend on rater, seed and key alone."""
    return [
        Vote("specialist", f"rubric-{r}", "rubric", key, ["keep", "drop"][(r + seed + int(key)) % 2], score=0.5)
        for key in items
        for r in range(num_raters)
    ]


def person(name: str, key: str, decision: str = "keep", seen: str | None = None) -> Vote:
    return Vote("specialist", name, "person", key, decision, seen=ITEMS[key] if seen is None else seen)


def record(folder: Path, votes: list[Vote], items: dict[str, str] = ITEMS, older: Path = NOWHERE) -> str:
    with record_round(folder, votes, items, older) as found:
        return found.head


def test_a_panel_that_sits_again_says_nothing_new(tmp_path: Path):
    head = record(tmp_path, panel(3))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert record(tmp_path, panel(3)) == head
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    votes = read_round(tmp_path, NOWHERE).votes
    assert len(votes) == 18 and all(vote.seen == ITEMS[vote.key] and vote.time == "" for vote in votes)


histories = st.lists(
    st.one_of(
        st.tuples(st.just("panel"), st.integers(0, 3), st.integers(0, 2)),
        st.tuples(st.just("person"), st.sampled_from(["anna", "ben"]), st.sampled_from(sorted(ITEMS))),
        st.tuples(st.just("repeat"), st.integers(0, 3), st.just(0)),
    ),
    max_size=8,
)


@settings(max_examples=25, deadline=None)
@given(histories, st.integers(1, 3), st.integers(0, 1))
def test_what_counts_of_a_panel_is_what_it_says_now_where_no_person_voted(history, num_raters: int, seed: int):
    """Whatever panels sat before, with more raters or other seeds, and whoever voted in between."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        log = open_log(Path(folder))
        given_votes: list[Vote] = []
        heads: list[str] = [GENESIS]
        for kind, first, second in history:
            if kind == "panel":
                append_panel(log, panel(first, second), ITEMS)
            elif kind == "repeat":
                append_panel(log, [replace(vote, is_repeat=True) for vote in panel(first)], ITEMS)
            else:
                given_votes.append(person(first, second, "drop"))
                log.append(given_votes[-1:])
            heads.append(log.head())
        append_panel(log, panel(num_raters, seed), ITEMS)
        votes = log.read()
        counting = counted(votes, ITEMS)
        by_people = {vote.key for vote in given_votes}
        rubric = [vote for vote in counting if vote.rater_kind == "rubric"]
        wanted = [replace(v, seen=ITEMS[v.key]) for v in panel(num_raters, seed) if v.key not in by_people]
        assert sorted(rubric, key=str) == sorted(wanted, key=str) and counted_repeats(votes, ITEMS) == []
        kept = [replace(vote, time="") for vote in votes if vote.rater_kind == "person"]
        assert kept == given_votes
        assert all(log.verify(expected_head=head).is_sound for head in heads)
        num_lines = len(votes)
        append_panel(log, panel(num_raters, seed), ITEMS)
        assert len(log.read()) == num_lines


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_an_interrupted_append_ends_with_the_bytes_of_one_that_was_not(data: st.DataObject):
    """kill -9 at any byte of the panel's append, before or after its head file was written."""
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory() as top:
        alone, killed = Path(top, "alone"), Path(top, "killed")
        open_log(alone).append([replace(person("anna", "0"), time="2026-11-26T10:00:00.000Z")])
        shutil.copytree(alone, killed)
        size = (killed / "votes.jsonl").stat().st_size
        head = record(alone, panel(2))
        whole = (alone / "votes.jsonl").read_bytes()
        cut = data.draw(st.integers(size, len(whole)))
        (killed / "votes.jsonl").write_bytes(whole[:cut])
        assert record(killed, panel(2)) == head
        for name in ("votes.jsonl", "votes.jsonl.head.json", "votes.parquet"):
            assert (alone / name).read_bytes() == (killed / name).read_bytes()


def test_votes_about_other_pictures_under_the_same_keys_do_not_count_and_the_panel_votes_anew(tmp_path: Path):
    open_log(tmp_path).append([person("anna", "1", "drop")])
    record(tmp_path, panel(2))
    others = {key: f"other-{key}" for key in ITEMS}
    record(tmp_path, panel(2), others)
    found = counted(read_round(tmp_path, NOWHERE).votes, others)
    assert len(found) == 12 and {vote.rater_kind for vote in found} == {"rubric"}
    assert {vote.seen for vote in found} == set(others.values())
    record(tmp_path, panel(2))  # the first pictures again: what people said of them still stands
    assert [v.rater for v in counted(read_round(tmp_path, NOWHERE).votes, ITEMS) if v.key == "1"] == ["anna"]


def test_what_reads_a_round_reads_it_as_recorded_and_new_votes_show(tmp_path: Path):
    head = record(tmp_path, panel(2))
    assert num_new(tmp_path, head) == 0
    open_log(tmp_path).append([person("anna", "1"), person("ben", "1")])
    assert num_new(tmp_path, head) == 2
    assert read_round(tmp_path, NOWHERE).head == head and len(read_round(tmp_path, NOWHERE).votes) == 12
    later = record(tmp_path, panel(2))
    assert num_new(tmp_path, later) == 0 and num_new(tmp_path, head) == 2
    assert num_new(tmp_path, "ab" * 32) is None
    assert {v.rater_kind for v in counted(read_round(tmp_path, NOWHERE).votes, ITEMS) if v.key == "1"} == {"person"}


def test_nobody_appends_while_a_round_is_recorded(tmp_path: Path):
    from filelock import Timeout

    other = open_log(tmp_path)
    other._lock.timeout = 0.05
    with record_round(tmp_path, panel(1), ITEMS, NOWHERE) as found:
        with pytest.raises(Timeout):
            other.append([person("anna", "1")])
        assert open_log(tmp_path).head() == found.head
    other.append([person("anna", "1")])


def test_a_replaced_log_is_refused_although_it_is_sound(tmp_path: Path):
    record(tmp_path, panel(2))
    for name in ("votes.jsonl", "votes.jsonl.head.json"):
        (tmp_path / name).unlink()
    open_log(tmp_path).append(panel(1))
    assert open_log(tmp_path).verify().is_sound
    assert "not in this log" in check_log(tmp_path)[0]
    for use in (lambda: record(tmp_path, panel(2)), lambda: read_round(tmp_path, NOWHERE)):
        with pytest.raises(VoteLogError, match="dvc checkout"):
            use()


def test_people_s_votes_of_an_older_place_are_taken_over_once_and_stay_earlier(tmp_path: Path):
    older = VoteLog(tmp_path / "curated" / "votes.jsonl")
    early = replace(person("anna", "1", "drop", seen=""), time="2026-11-20T10:00:00.000Z")
    older.append([*panel(2), early, replace(early, key="2")])
    folder = tmp_path / "specialist"
    open_log(folder).append([person("anna", "1", "keep")])  # anna has changed her mind since
    for _ in range(2):
        record(folder, panel(2), older=older.path)
    votes = read_round(folder, older.path).votes
    assert votes.count(early) == 1 and votes.count(replace(early, key="2")) == 1
    found = {vote.key: vote for vote in counted(votes, ITEMS) if vote.rater_kind == "person"}
    assert found["1"].decision == "keep" and found["2"].decision == "drop"
    older.append([replace(early, key="3")])
    with pytest.raises(ValueError, match="1 votes? of people.*materialise specialist_votes"):
        read_round(folder, older.path)


def test_a_round_on_which_nobody_can_vote_is_recorded_all_the_same(tmp_path: Path):
    """As where the judge knows the subject of no prompt: its files are there for DVC, and it may grow later."""
    folder = tmp_path / "round"
    for _ in range(2):
        with record_round(folder, [], {"a": "1"}, tmp_path / "older.jsonl") as recorded:
            assert recorded.votes == []
    assert {path.name for path in folder.iterdir()} >= {"votes.jsonl", "votes.jsonl.head.json", "votes.parquet"}
    assert check_log(folder) == [] and num_new(folder, recorded.head) == 0
    open_log(folder).append([Vote("appeal", "anna", "person", "a", "A", side_order="AB", seen="1")])
    assert num_new(folder, recorded.head) == 1


def test_a_round_that_was_never_recorded_is_one_sentence(tmp_path: Path):
    with pytest.raises(ValueError, match="materialise specialist_votes first"):
        read_round(tmp_path / "specialist", NOWHERE)
