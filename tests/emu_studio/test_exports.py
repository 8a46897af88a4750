"""Out and in: what leaves comes back as it was, and nothing that does not fit comes in at all."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from emu_data.votes.vote import VOTE_COLUMNS, Vote, counted
from emu_studio.adjudication import adjudicate
from emu_studio.app import Studio
from emu_studio.ballots import Ballot, read_votes
from emu_studio.clerk import Clerk
from emu_studio.database import Database, open_database
from emu_studio.exports import FORMULA, PICK_A_PIC, NotGiven, to_csv, to_label_studio, to_parquet, write_preferences
from emu_studio.imports import NotImported, import_votes, read_csv
from emu_studio.items import group_bursts, items_of_folder
from emu_studio.people import Person, erase_name, invite, list_people
from emu_studio.plan import default_plan
from emu_studio.queue import Queue
from emu_studio.rounds import find_round, list_rounds, open_round
from emu_studio.serve import open_studio
from emu_studio.verifying import verify_record
from tests.emu_studio.inside import come_in, record_of, vote_of
from tests.emu_studio.served import paint, pairs_of

# As the data set yuvalkirstain/pickapic_v2 lists them, less pandas' __index_level_0__.
COLUMNS = (
    "are_different best_image_uid caption created_at has_label image_0_uid image_0_url image_1_uid image_1_url jpg_0 "
    "jpg_1 label_0 label_1 model_0 model_1 ranking_id user_id num_example_per_prompt"
)
GENERALIST = default_plan("generalist")
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    """Rounds of each kind: specialists on six pictures of which two are near-twins, an evaluation, and a comparison
    that was drawn for training, on two prompts more than that."""
    studio = open_studio(tmp_path / "data")
    items = group_bursts(items_of_folder(paint(tmp_path / "pictures", 6)), {"0001.png": "0000.png"})
    open_round(studio.database, default_plan("specialist", raters_per_item=2), items)
    open_round(studio.database, default_plan("appeal"), pairs_of(tmp_path / "pairs", 3))
    training = default_plan("faithfulness", is_evaluation=False, raters_per_item=2)
    open_round(studio.database, training, pairs_of(tmp_path / "pairs", 5, with_caption=True))
    yield studio
    studio.database.close()


class Voting:
    """People who vote in a round, each word with a ballot of its own."""

    def __init__(self, studio: Studio, name: str) -> None:
        self.studio, self.queue = studio, studio.queues.of(name)
        self.clerk, self.number = Clerk(studio.database, self.queue), 0

    def ballot(self, place: int, decision: str, **more: Any) -> Ballot:
        self.number += 1
        return Ballot(ballot=f"{self.number:08d}", item=int(self.queue.ids[place]), decision=decision, **more)

    def say(self, person: Person, place: int, decision: str, **more: Any) -> None:
        self.clerk.cast(person, [self.ballot(place, decision, **more)])


def person(studio: Studio, name: str, role: str = "specialist") -> Person:
    return invite(studio.database, name, role)[0]


def verify_rounds(database: Database) -> dict[str, list[str]]:
    return {one.name: verify_record(database, one) for one in list_rounds(database)}


def choose(studio: Studio) -> tuple[Person, Person]:
    """Words of every kind: corrected, withdrawn, skipped, on a burst, with awkward reasons; and an adjudication."""
    voting, anna, ben = Voting(studio, "specialist"), person(studio, "Anna"), person(studio, "Ben")
    voting.say(anna, 0, "keep", picked=1, seconds=1.25)
    voting.say(anna, 0, "keep", picked=0, seconds=2.5)
    voting.say(anna, 1, "drop", reason='=HYPERLINK("x"), light\nand "more"')
    voting.say(anna, 2, "skipped", reason="-1")
    voting.say(ben, 1, "drop", reason="light")
    voting.say(ben, 1, "drop", reason="unsafe")  # the same decision for another reason is another word
    voting.say(ben, 3, "keep")
    voting.say(ben, 3, "withdrawn")
    voting.say(ben, 2, "unsure")
    voting.say(ben, 0, "drop", reason="'quoted")
    adjudicate(studio.database, voting.queue, person(studio, "Lea", "lead"), voting.ballot(1, "keep"))
    return anna, ben


def compare(studio: Studio, name: str) -> None:
    voting = Voting(studio, name)
    middle = "both" if name == "faithfulness" else "tie"
    for rater in (person(studio, "Jo", "rater"), person(studio, "Kim", "rater")):
        for place in range(len(voting.queue)):
            voting.say(rater, place, ("left", "right", middle)[place % 3], seconds=1.0)
    voting.say(rater, 0, "right", is_repeat=True)


def words(studio: Studio, name: str) -> list[Vote]:
    return studio.records.of(name).votes


def unnamed(votes: list[Vote]) -> list[Vote]:
    """Votes with raters numbered by appearance, and without a source."""
    numbers = {rater: f"r{n}" for n, rater in enumerate(dict.fromkeys(vote.rater for vote in votes))}
    return [replace(vote, rater=numbers[vote.rater], source="") for vote in votes]


def elsewhere(studio: Studio, tmp_path: Path, name: str) -> Studio:
    """Another studio with the same round and nobody in it."""
    other = open_studio(tmp_path / "other")
    items = {
        "specialist": lambda: group_bursts(items_of_folder(tmp_path / "pictures"), {"0001.png": "0000.png"}),
        "appeal": lambda: pairs_of(tmp_path / "pairs", 3),
        "faithfulness": lambda: pairs_of(tmp_path / "pairs", 5, with_caption=True),
    }
    open_round(other.database, find_round(studio.database, name).plan, items[name]())
    return other


def test_the_tables_hold_every_word_and_say_which_count(studio: Studio) -> None:
    choose(studio)
    record = studio.records.of("specialist")
    assert len(record.words) == 14  # a burst's are two votes each
    table = pq.read_table(io.BytesIO(to_parquet(record)))
    assert table.column_names == [*VOTE_COLUMNS, "counts"]
    assert table.schema.metadata[b"vote_log_head"].decode() == record.head
    counting = counted(record.votes, record.shown)
    assert Counter(table["counts"].to_pylist()) == {True: len(counting), False: 14 - len(counting)}
    rows = list(csv.DictReader(io.StringIO(to_csv(record))))
    assert [row["counts"] == "true" for row in rows] == table["counts"].to_pylist()
    assert not any(FORMULA.match(cell) for row in rows for cell in row.values() if not cell.startswith("'"))
    assert [row["key"] for row in rows] == table["key"].to_pylist()


@pytest.mark.parametrize("name", ["specialist", "appeal", "faithfulness"])
def test_a_csv_comes_back_word_for_word_with_its_source_and_new_pseudonyms(
    studio: Studio, tmp_path: Path, name: str
) -> None:
    choose(studio) if name == "specialist" else compare(studio, name)
    before, other = words(studio, name), elsewhere(studio, tmp_path, name)
    found = import_votes(other.database, other.queues.of(name), to_csv(studio.records.of(name)), "csv", "the first")
    after = words(other, name)
    assert (found.num_votes, found.num_known, found.ignored) == (len(before), 0, ())
    assert unnamed(after) == unnamed(before) and {vote.source for vote in after} == {"the first"}
    assert not {vote.rater for vote in after} & {vote.rater for vote in before}
    assert all(vote.rater.startswith("import-") for vote in after)
    assert verify_rounds(other.database) == {name: []}
    shown = other.records.of(name).shown
    assert unnamed(counted(after, shown)) == unnamed(counted(before, shown))
    # taken again it adds nothing, and the queue counts each voter once
    again = import_votes(other.database, other.queues.of(name), to_csv(studio.records.of(name)), "csv", "the first")
    assert (again.num_votes, again.num_known) == (0, len(before)) and words(other, name) == after
    live, rebuilt = other.queues.of(name).num_votes, Queue(other.database, find_round(other.database, name)).num_votes
    assert live.tolist() == rebuilt.tolist() == studio.queues.of(name).num_votes.tolist()
    other.database.close()


@pytest.mark.parametrize("name", ["specialist", "appeal", "faithfulness"])
def test_label_studios_json_comes_back_as_what_stands(studio: Studio, tmp_path: Path, name: str) -> None:
    choose(studio) if name == "specialist" else compare(studio, name)
    record, other = studio.records.of(name), elsewhere(studio, tmp_path, name)
    text = to_label_studio(record, studio.database)
    tasks = json.loads(text)
    assert {task["data"]["key"]: task["data"]["seen"] for task in tasks} == record.shown
    for task in tasks:
        for annotation in task["annotations"]:
            (result,) = annotation["result"]
            assert result["type"] == "choices" and len(result["value"]["choices"]) == 1
            assert result["to_name"] in task["data"] and "completed_by" not in annotation
    import_votes(other.database, other.queues.of(name), text, "label-studio", "Label Studio")
    before, after = counted(record.votes, record.shown), counted(words(other, name), record.shown)

    def sorted_out(votes: list[Vote]) -> list[tuple]:
        return sorted((v.key, v.decision, v.reason, str(v.seconds), v.time, v.side_order) for v in votes)

    assert sorted_out(after) == sorted_out(before)
    other.database.close()


def test_what_was_annotated_in_label_studio_joins_as_theirs(studio: Studio) -> None:
    """Decided there from the start, changed there, skipped there."""
    anna, _ = choose(studio)
    tasks = json.loads(to_label_studio(studio.records.of("specialist"), studio.database))
    theirs = [task for task in tasks if task["data"]["key"] in ("0003.png", "0004.png", "0005.png")]
    choice = {"from_name": "decision", "to_name": "image", "type": "choices", "value": {"choices": ["keep"]}}
    stamp = {"created_at": "2026-11-27T10:00:00.5+02:00", "lead_time": 4.5}
    meta = {"vote": {"rater": anna.pseudonym, "decision": "drop", "reason": "light"}}
    theirs[0]["annotations"] = [{"result": [choice], "completed_by": 10, **stamp}]
    theirs[1]["annotations"] = [{"result": [{**choice, "meta": meta}], "completed_by": {"id": 1, "email": "a@b.c"}}]
    theirs[2]["annotations"] = [{"result": [], "was_cancelled": True, "completed_by": 10}]
    queue = studio.queues.of("specialist")
    num = len(words(studio, "specialist"))
    assert import_votes(studio.database, queue, json.dumps(theirs), "label-studio", "LS").num_raters == 2
    new = words(studio, "specialist")[num:]
    assert [(vote.key, vote.decision, vote.reason) for vote in new] == [
        ("0003.png", "keep", ""),
        ("0004.png", "keep", ""),  # "light" was said of the decision before
        ("0005.png", "skipped", ""),
    ]
    assert new[0].time == "2026-11-27T08:00:00.500Z" and new[0].seconds == 4.5 and new[0].plan == ""
    assert new[0].rater == new[2].rater != new[1].rater and new[1].rater != anna.pseudonym
    names = {one.pseudonym: one for one in list_people(studio.database)}
    assert names[new[0].rater].name == "10 (LS)" and names[new[0].rater].revoked
    erase_name(studio.database, new[0].rater)
    assert verify_rounds(studio.database)["specialist"] == []


GOOD = "0002.png"
BAD_LINES = {
    "no item": "anna,nowhere.png,keep,,",
    "no decision here": f"anna,{GOOD},A,,",
    "another picture": f"anna,{GOOD},keep,{'0' * 64},",
    "no rater": f",{GOOD},keep,,",
    "no person's": f"anna,{GOOD},keep,,rubric",
    "cells under": f"anna,{GOOD}",
}


@pytest.mark.parametrize("told", BAD_LINES)
def test_one_line_that_does_not_fit_refuses_the_file_and_is_named(studio: Studio, told: str) -> None:
    queue, before = studio.queues.of("specialist"), len(list_people(studio.database))
    lines = ["rater,key,decision,seen,rater_kind", f'"an\nna",{GOOD},keep,,', BAD_LINES[told], f"ben,{GOOD},drop,,"]
    with pytest.raises(NotImported, match=rf"^line 4: .*{told}"):  # the second vote begins at line 4 of the file
        import_votes(studio.database, queue, "\n".join(lines), "csv", "elsewhere")
    assert words(studio, "specialist") == [] and len(list_people(studio.database)) == before
    assert queue.num_votes.sum() == 0
    lines.pop(2)
    assert import_votes(studio.database, queue, "\n".join(lines), "csv", "elsewhere").num_votes == 2


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("specialist", "", "rater, key, decision must be there"),
        ("specialist", "rater,key,decision", "no vote in this file"),
        ("specialist", f"rater,key,decision,seconds\na,{GOOD},keep,fast", "line 2: seconds is 'fast'"),
        ("specialist", f"rater,key,decision,seconds\na,{GOOD},keep,nan", "line 2: seconds is nan"),
        ("specialist", f"rater,key,decision,time\na,{GOOD},keep,yesterday", "line 2: time is 'yesterday'"),
        ("specialist", f"rater,key,decision,is_repeat\na,{GOOD},keep,true", "line 2: only pairs"),
        ("specialist", f"rater,key,decision,side_order\na,{GOOD},keep,AB", "line 2: a single picture"),
        ("specialist", f'rater,key,decision\na,{GOOD},"keep', "line 2: unexpected end"),
        ("appeal", "rater,key,decision,side_order\na,0000,A,AB", "line 2: a vote on a pair must say what was"),
        ("appeal", "rater,key,decision\na,0000,keep", "line 2: 'keep' is no decision"),
    ],
)
def test_files_that_say_nothing_usable_are_refused(studio: Studio, name: str, text: str, told: str) -> None:
    with pytest.raises(NotImported, match=told):
        import_votes(studio.database, studio.queues.of(name), text, "csv", "elsewhere")
    assert words(studio, name) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("{}", "list of tasks"),
        ('[{"data": {"key": "0002.png"}, "annotations": [{"result": []}]}]', "task 1, annotation 1: .*one choice"),
        ('[{"data": null, "annotations": [7]}]', "task 1, annotation 1"),
    ],
)
def test_json_that_is_no_export_is_refused(studio: Studio, text: str, told: str) -> None:
    with pytest.raises(NotImported, match=told):
        import_votes(studio.database, studio.queues.of("specialist"), text, "label-studio", "LS")


def test_many_problems_are_counted_and_a_closed_round_takes_nothing(studio: Studio) -> None:
    queue = studio.queues.of("specialist")
    text = "rater,key,decision\n" + "a,nowhere,keep\n" * 50
    with pytest.raises(NotImported, match="line 21: .*\nand 30 more") as refused:
        import_votes(studio.database, queue, text, "csv", "elsewhere")
    assert str(refused.value).count("\n") == 20
    with pytest.raises(NotImported, match="where the votes come from"):
        import_votes(studio.database, queue, text, "csv", " ")


def test_the_page_refuses_and_takes_files(studio: Studio) -> None:
    lead = come_in(studio, "lead", "Lea")
    path, given = "/api/lead/rounds/specialist/import", {"kind": "csv", "source": "a table"}
    answer = lead.post(path, {**given, "text": "rater,key,decision\nanna,nowhere.png,keep\n"})
    assert answer.status_code == 400 and answer.json()["detail"].startswith("line 2: the round has no item")
    answer = lead.post(path, {**given, "text": f"rater,key,decision,mood\nanna,{GOOD},keep,good\n"})
    assert answer.json() == {"num_votes": 1, "num_known": 0, "num_raters": 1, "ignored": ["mood"]}
    assert "anna (a table)" in lead.get("/lead/rounds/specialist").text
    for kind in ("csv", "parquet", "label-studio"):
        answer = lead.get(f"/lead/rounds/specialist/out/{kind}")
        assert answer.status_code == 200 and "attachment" in answer.headers["content-disposition"]
    assert lead.get("/lead/rounds/specialist/out/preferences").status_code == 409


def test_the_prompts_of_an_evaluation_never_become_preference_pairs(studio: Studio, tmp_path: Path) -> None:
    """Neither its own round nor another gives them; what is left has Pick-a-Pic's columns."""
    compare(studio, "appeal")
    compare(studio, "faithfulness")
    choose(studio)
    for name, why in (("appeal", "measures models"), ("specialist", "only a comparison")):
        with pytest.raises(NotGiven, match=why):
            write_preferences(studio.records.of(name), studio.database, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
    record = studio.records.of("faithfulness")
    given_ = write_preferences(record, studio.database, tmp_path / "out.parquet")
    assert (given_.num_pairs, given_.num_withheld) == (4, 6)  # two raters; prompts 0, 1, 2 are the evaluation's
    table = pq.read_table(tmp_path / "out.parquet")
    assert " ".join(table.column_names) == COLUMNS and table.schema.equals(PICK_A_PIC)
    rows = table.to_pylist()
    assert {row["caption"] for row in rows} == {"prompt 3", "prompt 4"}
    votes = {(vote.rater, vote.key): vote for vote in counted(record.votes, record.shown)}
    users = sorted({rater for rater, _ in votes})
    for row in rows:
        vote = votes[users[row["user_id"]], f"000{row['caption'][-1]}"]
        assert (row["model_0"], row["model_1"]) == tuple(vote.side_order)
        best = {"A": vote.side_order.index("A"), "B": vote.side_order.index("B")}[vote.decision]
        assert (row["label_0"], row["label_1"]) == (1 - best, best)
        assert row["best_image_uid"] == row[f"image_{best}_uid"] and row["num_example_per_prompt"] == 2
        assert row["has_label"] and row["are_different"] and row["created_at"]
        assert Image.open(io.BytesIO(row["jpg_0"])).size == (64, 48)


def test_a_tie_is_two_halves(studio: Studio, tmp_path: Path) -> None:
    other = open_studio(tmp_path / "other")
    plan = default_plan("appeal", is_evaluation=False, raters_per_item=2)
    open_round(other.database, plan, pairs_of(tmp_path / "pairs", 3))
    compare(other, "appeal")
    write_preferences(other.records.of("appeal"), other.database, tmp_path / "out.parquet")
    ties = [row for row in pq.read_table(tmp_path / "out.parquet").to_pylist() if row["caption"] == "prompt 2"]
    assert [(row["label_0"], row["label_1"], row["best_image_uid"]) for row in ties] == [(0.5, 0.5, "tie")] * 2
    other.database.close()


@settings(max_examples=40)
@given(st.lists(st.tuples(TEXT, st.sampled_from(["keep", "drop"]), st.none() | st.floats(0, 1e6)), max_size=8))
def test_any_reason_and_time_survives_a_csv_and_none_is_a_formula(said: list[tuple[str, str, float | None]]) -> None:
    votes = [vote_of("anna", 0, decision, reason=reason, seconds=sec) for reason, decision, sec in said]
    text = to_csv(record_of(GENERALIST, 1, votes))
    for row in csv.reader(io.StringIO(text)):
        assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) for cell in row)
    found, ignored = read_csv(text)
    assert ignored == ()
    for one, vote in zip(found, votes, strict=True):
        assert one.fields["reason"].strip() == vote.reason.strip()
        assert one.fields["seconds"] == ("" if vote.seconds is None else repr(vote.seconds))


EDITS = {
    "another rater": 'UPDATE votes SET rater_id = 2 WHERE "index" = 3',
    "another item": 'UPDATE votes SET item_id = 5 WHERE "index" = 4',
    "another decision": "UPDATE votes SET decision = 'keep' WHERE \"index\" = 4",
    "another decision, of a twin": "UPDATE votes SET decision = 'drop' WHERE \"index\" = 1",
    "another showing": 'UPDATE votes SET is_adjudication = 1 WHERE "index" = 4',
    "another picture": "UPDATE items SET pictures = replace(pictures, '0002.png', '0009.png') WHERE id = 2",
    "another plan": "UPDATE rounds SET plan = replace(plan, '\"raters_per_item\": 2', '\"raters_per_item\": 1')",
    "the line": "UPDATE votes SET line = replace(line, 'light', 'colour') WHERE \"index\" = 6",
    "the end": 'DELETE FROM votes WHERE "index" = (SELECT max("index") FROM votes)',
}


@pytest.mark.parametrize("what", EDITS)
def test_any_edit_is_found(studio: Studio, tmp_path: Path, what: str) -> None:
    import sqlite3

    choose(studio)
    assert verify_rounds(studio.database) == {"appeal": [], "faithfulness": [], "specialist": []}
    with sqlite3.connect(tmp_path / "data" / "studio" / "studio.db") as connection:
        assert connection.execute(EDITS[what]).rowcount >= 1
    connection.close()
    altered = open_database(tmp_path / "data" / "studio" / "studio.db")
    assert verify_record(altered, find_round(altered, "specialist")), what
    altered.close()
    assert come_in(studio, "lead", "Lea").get("/lead/rounds/specialist/out/csv").status_code == 409


def test_votes_are_read_once_and_new_ones_join_them(studio: Studio) -> None:
    voting, anna = Voting(studio, "specialist"), person(studio, "Anna")
    first = studio.records.of("specialist")
    voting.say(anna, 1, "keep")
    second = studio.records.of("specialist")
    assert first.words == [] and second.votes == read_votes(studio.database, second.round.id)
    assert second.items is first.items and second.head != first.head
