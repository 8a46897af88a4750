"""Votes that are written together are taken as if they had come one after the other, and no vote looks through all."""

import asyncio
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from emu_data.votes.vote import Vote
from emu_studio.access import Claim, Refused
from emu_studio.ballots import Ballot, Confirmed, NotTaken, read_votes, verify_chain
from emu_studio.clerk import Clerk
from emu_studio.database import Database, open_database
from emu_studio.items import NewItem, Shown
from emu_studio.people import Person, agree, invite, revoke
from emu_studio.plan import default_plan
from emu_studio.queue import Queue
from emu_studio.rounds import open_round

NUM_ITEMS, NUM_PEOPLE = 4, 3
Sent = tuple[int, Sequence[Ballot]]  # the number of who sends, and what
T = TypeVar("T")
Outcome = list[Confirmed] | str


class Office:
    """A round, its clerk, and people of whom the last one's link was revoked after they had come in."""

    def __init__(self, folder: Path, question: str = "specialist", url: str | None = None) -> None:
        self.database: Database = open_database(url or folder / "studio.db")
        burst = tuple(Shown(Path(name), name, name * 64) for name in "ab")
        items = [NewItem(f"k{n}", "0", burst if question == "specialist" else burst[:2]) for n in range(NUM_ITEMS)]
        self.round = open_round(self.database, default_plan(question), items)
        self.queue = Queue(self.database, self.round)
        self.clerk = Clerk(self.database, self.queue)
        role = "specialist" if question == "specialist" else "rater"
        self.people: list[Person] = [invite(self.database, f"person {n}", role)[0] for n in range(NUM_PEOPLE)]
        for person in self.people:
            agree(self.database, self.round.id, person.id)
        revoke(self.database, self.people[-1].pseudonym)

    def claim(self, number: int) -> Claim:
        return Claim(self.people[number].id, self.people[number].pseudonym)

    async def send(self, number: int, ballots: Sequence[Ballot]) -> Outcome:
        try:
            return await self.clerk.cast_claimed(self.claim(number), ballots)
        except (NotTaken, Refused) as error:
            return f"{type(error).__name__}: {error}"

    async def one_by_one(self, sent: Sequence[Sent]) -> list[Outcome]:
        return [await self.send(*one) for one in sent]

    async def at_once(self, sent: Sequence[Sent]) -> list[Outcome]:
        return list(await asyncio.gather(*(self.send(*one) for one in sent)))

    def votes(self) -> list[Vote]:
        """All that was taken, without what differs from one day to another."""
        assert verify_chain(self.database, self.round.id) == []
        names = {person.pseudonym: f"person {n}" for n, person in enumerate(self.people)}
        return [replace(v, time="", rater=names[v.rater]) for v in read_votes(self.database, self.round.id)]


def run(work: Coroutine[Any, Any, T]) -> T:
    """In a thread of its own: in this one, a browser's loop may be running."""
    with ThreadPoolExecutor(1) as one:
        return one.submit(asyncio.run, work).result()


ballots = st.builds(
    Ballot,
    ballot=st.sampled_from([f"ballot-{n:02d}" for n in range(8)]),
    item=st.integers(1, NUM_ITEMS + 1),  # the last one there is not
    decision=st.sampled_from(["keep", "drop", "unsure", "withdrawn"]),
    picked=st.integers(0, 1),
)
requests = st.tuples(st.integers(0, NUM_PEOPLE - 1), st.lists(ballots, min_size=1, max_size=3))


@settings(max_examples=25, deadline=None)
@given(st.lists(requests, min_size=1, max_size=10))
def test_at_once_is_as_one_after_the_other(sent: list[Sent]) -> None:
    with TemporaryDirectory() as first, TemporaryDirectory() as second:
        alone, together = Office(Path(first)), Office(Path(second))
        assert run(together.at_once(sent)) == run(alone.one_by_one(sent))
        assert together.votes() == alone.votes()
        assert all(vote.rater != f"person {NUM_PEOPLE - 1}" for vote in together.votes())  # the revoked one's
        assert together.queue.num_votes.tolist() == alone.queue.num_votes.tolist()
        for office in (alone, together):
            office.database.close()


def test_many_that_wait_are_one_transaction(tmp_path: Path, url: str | None) -> None:
    office, commits = Office(tmp_path, url=url), []
    event.listen(office.database.engine, "commit", commits.append)
    sent = [(n % 2, [Ballot(ballot=f"ballot-{n:02d}", item=1 + n // 2 % 4, decision="keep")]) for n in range(40)]
    taken = run(office.at_once(sent))
    assert all(isinstance(one, list) for one in taken) and len(commits) <= 3
    assert len(office.votes()) == 16  # two people, four bursts of two: the same word again is no vote
    office.database.close()


@pytest.mark.parametrize("question", ["specialist", "appeal"])
def test_a_vote_looks_through_no_table(tmp_path: Path, question: str) -> None:
    """Each statement finds its rows by an index, by all columns that it has, so that a vote costs the same after a
    million of them; only the few rounds are looked through."""
    office = Office(tmp_path, question)
    said: list[tuple[str, tuple]] = []
    event.listen(office.database.engine, "before_cursor_execute", lambda *given: said.append((given[2], given[3])))
    decision = "keep" if question == "specialist" else "left"
    run(office.at_once([(n, [Ballot(ballot=f"ballot-{n}", item=1, decision=decision)]) for n in range(2)]))
    with office.database.read() as session:
        plans = {}
        for statement, values in said:
            if statement.split()[0] in ("SELECT", "DELETE", "UPDATE"):
                values = values[0] if isinstance(values, list) else values
                rows = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)
                plans[statement] = [row[-1] for row in rows]
    office.database.close()
    assert len(plans) >= 6
    for statement, steps in plans.items():
        for step in steps:
            assert not step.startswith("SCAN") or step == "SCAN rounds" or "CONSTANT" in step, (statement, steps)
            assert not ("votes" in step and step.endswith("(round_id=?)")), (statement, steps)
            assert not ("votes" in step and step.endswith("(rater_id=?)")), (statement, steps)
