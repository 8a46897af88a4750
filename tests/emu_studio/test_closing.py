"""Closing a round: all that people decided is in files, once, whatever was interrupted, and nobody's name is."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from emu_data import files
from emu_data.votes import log as log_module
from emu_data.votes.captions import CAPTIONS_NAME, read_captions
from emu_data.votes.log import VoteLogError
from emu_data.votes.plans import digest_items, read_plans
from emu_data.votes.rounds import check_log, open_log, record_round
from emu_data.votes.vote import Vote
from emu_studio.ballots import Ballot, NotTaken, read_votes
from emu_studio.clerk import Clerk
from emu_studio.closing import close_round, reopen_round, verify_round
from emu_studio.database import Caption, CastVote, Database, Round, now, open_database
from emu_studio.items import items_of_folder
from emu_studio.people import Person, invite
from emu_studio.plan import RoundPlan, default_plan
from emu_studio.queue import Queue
from emu_studio.rounds import find_round, open_round

NAME = "Anna Unmistakable"


class Killed(BaseException):
    """Nothing catches it, as nothing catches kill -9."""


@pytest.fixture
def database(tmp_path: Path, url: str | None) -> Iterator[Database]:
    found = open_database(url or tmp_path / "studio.db")
    yield found
    found.close()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (32, 32), (40 * number, 90, 120)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def anna(database: Database) -> Person:
    return invite(database, NAME, "generalist")[0]


def begin(database: Database, pictures: Path, **changes: object) -> Queue:
    plan: RoundPlan = default_plan("generalist", **changes)
    return Queue(database, open_round(database, plan, items_of_folder(pictures)))


def decide(database: Database, queue: Queue, person: Person, num: int, start: int = 0) -> None:
    for place in range(start, start + num):
        decision = ("keep", "drop")[place % 2]
        ballot = Ballot(ballot=f"ballot-{place}", item=int(queue.ids[place]), decision=decision, seconds=1.5)
        Clerk(database, queue).cast(person, [ballot])


def write(database: Database, queue: Queue, person: Person, place: int, short: str) -> None:
    with database.write() as session:
        row = {"round_id": queue.round.id, "item_id": int(queue.ids[place]), "rater_id": person.id, "time": now()}
        texts = {"short": short, "long": f"{short}.", "draft": "red", "distance": 3, "unedited": ["long"]}
        session.add(Caption(**row, **texts, ballot=f"{place}{short}"))


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


def test_closing_writes_plan_votes_and_captions_and_no_name(tmp_path, database, pictures, anna):
    queue = begin(database, pictures)
    decide(database, queue, anna, 4)
    write(database, queue, anna, 0, "a red ball")
    write(database, queue, anna, 0, "a round red ball")
    closed = close_round(database, "generalist", tmp_path / "votes")
    assert (closed.num_new, closed.num_captions, closed.voters) == (4, 2, "4 votes of 1 person")
    assert open_log(closed.folder).read() == read_votes(database, queue.round.id) and check_log(closed.folder) == []
    (plan,) = read_plans(closed.folder)
    assert RoundPlan.model_validate(plan.plan) == queue.plan and plan.digest == queue.plan.digest
    assert {vote.plan for vote in open_log(closed.folder).read()} == {plan.digest}
    shown = {item.key: item.seen for item in items_of_folder(pictures)}
    assert plan.items == digest_items(shown) and plan.num_items == 6 and plan.closed and plan.votes == 4
    first, last = read_captions(closed.folder)
    assert (first.short, last.short, last.key, last.seen) == ("a red ball", "a round red ball", "0.png", shown["0.png"])
    assert (last.rater, last.draft, last.distance, last.unedited) == (anna.pseudonym, "red", 3, "long")
    for data in files_in(closed.folder).values():
        assert NAME.encode() not in data and b"Unmistakable" not in data


def test_closing_twice_changes_no_byte(tmp_path, database, pictures, anna):
    queue = begin(database, pictures)
    decide(database, queue, anna, 3)
    write(database, queue, anna, 1, "a green ball")
    folder = close_round(database, "generalist", tmp_path).folder
    before = files_in(folder)
    again = close_round(database, "generalist", tmp_path)
    assert (again.num_new, again.num_captions) == (0, 0) and files_in(folder) == before


def test_a_closed_round_takes_nothing_and_a_reopened_one_appends(tmp_path, database, pictures, anna):
    queue = begin(database, pictures)
    decide(database, queue, anna, 2)
    folder = close_round(database, "generalist", tmp_path).folder
    with pytest.raises(NotTaken, match="closed"):
        decide(database, queue, anna, 1, start=2)
    with pytest.raises(ValueError, match="needs a reason"):
        reopen_round(database, "generalist", "lead-1", "  ")
    reopen_round(database, "generalist", "lead-1", "Ben was ill")
    with pytest.raises(ValueError, match="is open"):
        reopen_round(database, "generalist", "lead-1", "once more")
    decide(database, queue, anna, 2, start=2)
    assert len(open_log(folder).read()) == 2  # until it is closed again
    closed = close_round(database, "generalist", tmp_path)
    assert closed.num_new == 2 and open_log(folder).read() == read_votes(database, queue.round.id)
    (plan,) = read_plans(folder)
    (amendment,) = plan.amendments
    assert (amendment["by"], amendment["why"]) == ("lead-1", "Ben was ill") and plan.digest == queue.plan.digest


def test_a_panel_that_voted_in_between_and_a_log_from_elsewhere_are_kept(tmp_path, database, pictures, anna):
    queue = begin(database, pictures)
    decide(database, queue, anna, 2)
    folder = close_round(database, "generalist", tmp_path).folder
    shown = {item.key: item.seen for item in items_of_folder(pictures)}
    panel = [Vote("generalist", "rubric-0", "rubric", key, "keep") for key in shown]
    with record_round(folder, panel, shown, tmp_path / "none"):
        pass
    open_log(folder).append([Vote("generalist", "imported", "person", "5.png", "drop", source="a table")])
    reopen_round(database, "generalist", "lead-1", "more")
    decide(database, queue, anna, 1, start=2)
    close_round(database, "generalist", tmp_path)
    votes = open_log(folder).read()
    assert [vote.rater_kind for vote in votes] == [*["person"] * 2, *["rubric"] * 4, "person", "person"]
    assert [vote for vote in votes if vote.rater == anna.pseudonym] == read_votes(database, queue.round.id)


def test_a_second_round_is_recorded_beside_the_first(tmp_path, database, pictures, anna):
    """As when other pictures came: its votes join, under the name of the folder."""
    decide(database, begin(database, pictures), anna, 2)
    close_round(database, "generalist", tmp_path)
    Image.new("RGB", (32, 32), "white").save(pictures / "0.png")
    second = begin(database, pictures, name="generalist-2", folder="generalist")
    decide(database, second, anna, 3)
    closed = close_round(database, "generalist-2", tmp_path)
    assert closed.folder == tmp_path / "generalist" and closed.num_new == 3
    assert [plan.round for plan in read_plans(closed.folder)] == ["generalist", "generalist-2"]
    assert {vote.round for vote in open_log(closed.folder).read()} == {"generalist"}
    for name in ("generalist", "generalist-2"):
        assert verify_round(database, find_round(database, name), tmp_path) == []


@pytest.fixture
def killing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Raises Killed instead of the nth step by which something comes to the disk: a file's bytes reaching it, a rename,
    a piece of the log, and the commit of the database."""
    steps = [0, 0]

    def count() -> None:
        steps[0] += 1
        if steps[0] == steps[1]:
            raise Killed

    def before(module, name: str) -> None:
        function = getattr(module, name)

        def wrapped(*arguments, **options):
            count()
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, wrapped)

    before(files.os, "replace")
    before(files.os, "fsync")
    before(log_module.VoteLog, "_write_head")
    before(log_module.VoteLog, "append")

    def arm(number: int) -> None:
        steps[:] = [0, number]

    return arm


def test_killed_before_any_write_it_is_finished_by_closing_again(tmp_path, database, pictures, anna, killing):
    queue = begin(database, pictures)
    decide(database, queue, anna, 5)
    write(database, queue, anna, 1, "a green ball")
    killing(0)
    whole = files_in(close_round(database, "generalist", tmp_path / "whole").folder)
    num_killed = 0
    for number in range(1, 100):
        target = tmp_path / f"killed-{number}"
        killing(number)
        try:
            close_round(database, "generalist", target)
        except Killed:
            num_killed += 1
        else:
            break
        killing(0)
        folder = close_round(database, "generalist", target).folder
        assert files_in(folder) == whole, f"killed before step {number}"
        shutil.rmtree(target)
    assert num_killed >= 8  # plan, log, head and captions: each reaches the disk and is renamed


def test_half_a_line_of_an_append_that_was_killed_is_written_again(tmp_path, database, pictures, anna):
    queue = begin(database, pictures)
    decide(database, queue, anna, 4)
    whole = close_round(database, "generalist", tmp_path / "whole").folder
    data = (whole / "votes.jsonl").read_bytes()
    for cut in range(0, len(data), 97):
        folder = tmp_path / f"cut-{cut}" / "generalist"
        folder.mkdir(parents=True)
        (folder / "votes.jsonl").write_bytes(data[:cut])
        close_round(database, "generalist", folder.parent)
        assert (folder / "votes.jsonl").read_bytes() == data and check_log(folder) == []


def test_an_edited_chain_is_not_written(tmp_path, database, pictures, anna):
    queue = begin(database, pictures)
    decide(database, queue, anna, 3)
    with database.write() as session:
        row = session.get_one(CastVote, (queue.round.id, 1))
        row.line = row.line.replace('"decision":"drop"', '"decision":"keep"')
    with pytest.raises(VoteLogError, match="vote 2: the vote was edited"):
        close_round(database, "generalist", tmp_path)
    assert not (tmp_path / "generalist" / "votes.jsonl").exists()


def test_verifying_compares_the_chain_with_what_was_written(tmp_path, database, pictures, anna):
    queue = begin(database, pictures)
    decide(database, queue, anna, 3)
    assert verify_round(database, queue.round, tmp_path) == []  # open: nothing is written yet
    folder = close_round(database, "generalist", tmp_path).folder
    closed = find_round(database, "generalist")
    assert verify_round(database, closed, tmp_path) == []
    shutil.rmtree(folder)
    (told,) = verify_round(database, closed, tmp_path)
    assert "3 of its votes are not in" in told and "emu studio close generalist" in told
    close_round(database, "generalist", tmp_path)
    path = folder / "votes.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"decision":"drop"', b'"decision":"keep"', 1))
    (told,) = verify_round(database, closed, tmp_path)
    assert "edited" in told


def test_a_reclosed_round_has_its_own_time_and_an_unknown_one_is_named(tmp_path, database, pictures):
    begin(database, pictures)
    close_round(database, "generalist", tmp_path)
    with database.read() as session:
        closed = session.get_one(Round, 1).closed
    assert close_round(database, "generalist", tmp_path) and find_round(database, "generalist").closed == closed
    with pytest.raises(LookupError, match="no round 'nix'"):
        close_round(database, "nix", tmp_path)


def test_a_damaged_line_of_captions_is_named(tmp_path):
    (tmp_path / CAPTIONS_NAME).write_text(json.dumps({"key": "a"}) + "\n")
    with pytest.raises(ValueError, match="line 1: no readable caption"):
        read_captions(tmp_path)
