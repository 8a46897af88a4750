"""Taking votes: each once however often it is sent, chained to the one before, on disk before it is confirmed.

Votes that arrive while others are being written are written together: one transaction, one look at who may vote, at the
items and at the end of the chain, one wait for the disk. So the more people vote, the less a vote costs.
"""

import asyncio
import json
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from emu_data.votes.vote import SKIPPED, WITHDRAWN
from emu_studio.access import Claim, Refused, admit
from emu_studio.ballots import Ballot, Confirmed, Line, NotTaken, append, lines_of, votes_of
from emu_studio.database import CastVote, Database, Item, Round
from emu_studio.people import Person
from emu_studio.plan import DECISIONS, PAIRS
from emu_studio.queue import Queue, end_leases

# Made once: putting a statement together costs more than running it.
ITEMS = select(Item).where(Item.id.in_(bindparam("items", expanding=True)))
_COLUMNS = (CastVote.rater_id, CastVote.ballot, CastVote.item_id, CastVote.is_repeat, CastVote.is_adjudication)
# Two statements, each with an index of its own: with `or` between them, or with the round as a further condition of the
# first, SQLite looks through all votes of a rater or of the round.
SAID_OF_ITEMS = select(*_COLUMNS, CastVote.line).where(CastVote.item_id.in_(bindparam("items", expanding=True)))
SAID_IN_BALLOTS = select(*_COLUMNS, CastVote.line).where(
    CastVote.round_id == bindparam("round"),
    CastVote.rater_id.in_(bindparam("raters", expanding=True)),
    CastVote.ballot.in_(bindparam("ballots", expanding=True)),
)


@dataclass
class _Request:
    """What somebody sent, and what became of it. person: None until it is known whether they may vote."""

    claim: Claim
    person: Person | None
    ballots: Sequence[Ballot]
    confirmed: list[Confirmed] = field(default_factory=list)
    noted: list[tuple[int, str, bool]] = field(default_factory=list)
    error: Exception | None = None
    is_done: bool = False

    def result(self) -> list[Confirmed]:
        assert self.is_done
        if self.error is not None:
            raise self.error
        return self.confirmed


class Clerk:
    """Takes the votes of one round."""

    def __init__(self, database: Database, queue: Queue) -> None:
        self._database, self._queue = database, queue
        self._waiting: list[_Request] = []
        self._arrival, self._turn = threading.Lock(), threading.Lock()
        self._next = asyncio.Lock()

    def cast(self, person: Person, ballots: Sequence[Ballot]) -> list[Confirmed]:
        """Record ballots and return what the database then holds, in their order. A ballot that is held already is
        confirmed again, by its first content, and so is what is the person's last word already: picture, decision and
        reason.

        Raises NotTaken, and takes none of them, if one is on an item of another round or has a decision that the round
        does not ask for. A vote whose lease ended meanwhile is taken: no work of a person is thrown away.
        """
        request = self._enter(Claim(person.id, person.pseudonym), person, ballots)
        self._write_waiting()
        return request.result()

    async def cast_claimed(self, claim: Claim, ballots: Sequence[Ballot]) -> list[Confirmed]:
        """As `cast`, for many who are served by one thread; whether they may vote is looked up with their votes. Raises
        access.Refused if they may not."""
        request = self._enter(claim, None, ballots)
        async with self._next:
            if not request.is_done:
                await asyncio.to_thread(self._write_waiting)
        return request.result()

    def _enter(self, claim: Claim, person: Person | None, ballots: Sequence[Ballot]) -> _Request:
        _check_decisions(ballots, self._queue.plan.question)
        request = _Request(claim, person, ballots)
        with self._arrival:
            self._waiting.append(request)
        return request

    def _write_waiting(self) -> None:
        """Write all that wait, and return when they, and those that others had begun to write, are done."""
        with self._turn:
            with self._arrival:
                requests, self._waiting = self._waiting, []
            if not requests:
                return
            try:
                with self._database.write() as session:
                    self._write(session, requests)
            except Exception as error:  # of the database: nothing of all this was written
                for request in requests:
                    request.error = error
            for request in requests:
                request.is_done = True
                if request.error is None and request.person is not None:
                    for item_id, decision, is_repeat in request.noted:
                        self._queue.note(request.person, item_id, decision, is_repeat)

    def _write(self, session: Session, requests: Sequence[_Request]) -> None:
        round_ = session.get_one(Round, self._queue.round.id, with_for_update=True)
        claims = [request.claim for request in requests if request.person is None]
        people = admit(session, self._queue.round, claims) if claims else {}
        known = _Known(session, round_.id, requests)
        lines: list[Line] = []
        for request in requests:
            who = request.person or people[request.claim]
            try:
                if isinstance(who, Refused):
                    raise who
                request.person = who
                lines += self._record(who, round_, known, request, round_.num_votes + len(lines))
            except (NotTaken, Refused) as error:
                request.error = error
        if lines:
            append(session, round_, lines)
            ended = [(line.item_id, line.rater_id, line.vote.is_repeat) for line in lines]  # a repeat has its own
            end_leases(session, ended)

    def _record(self, person: Person, round_: Round, known: "_Known", request: _Request, index: int) -> list[Line]:
        """One request's votes, of which the first will have this index; raises NotTaken if none of them is taken."""
        if round_.closed is not None:
            raise NotTaken(f"the round {round_.name} is closed; nothing more is taken")
        held: dict[str, int] = {}
        last: dict[tuple[int, bool], tuple[_Word, int]] = {}
        lines: list[Line] = []
        for ballot in request.ballots:
            item = known.items.get(ballot.item)
            if item is None or item.round_id != round_.id:
                raise NotTaken(f"item {ballot.item} is not of the round {round_.name}")
            votes = votes_of(ballot, item, self._queue, person)
            word, at = _word(vars(votes[0])), (item.id, ballot.is_repeat)
            before = last.get(at) or known.last.get((person.id, *at))
            known_index = held.get(ballot.ballot, known.held.get((person.id, ballot.ballot)))
            if known_index is None and before and before[0] == word:
                known_index = before[1]
            if known_index is not None:
                request.confirmed.append(Confirmed(ballot.ballot, known_index, False))
                continue
            held[ballot.ballot], last[at] = index + len(lines), (word, index + len(lines))
            request.confirmed.append(Confirmed(ballot.ballot, index + len(lines), True))
            request.noted.append((item.id, votes[0].decision, ballot.is_repeat))
            lines += lines_of(votes, ballot.ballot, item.id, person)
        known.held |= {(person.id, name): number for name, number in held.items()}
        known.last |= {(person.id, *at): word for at, word in last.items()}
        return lines


_Word = tuple[str, str, str]


def _word(vote: Mapping[str, Any]) -> _Word:
    """What makes a vote another one: which picture of a burst it is on, the decision, and its reason."""
    return vote["key"], vote["decision"], vote["reason"]


class _Known:
    """What the database holds of what some requests are about. items: by id. held: (rater, ballot) -> index of its
    vote. last: (rater, item, repeat) -> their last word and its index."""

    def __init__(self, session: Session, round_id: int, requests: Iterable[_Request]) -> None:
        sent = [(request.claim.rater_id, ballot) for request in requests for ballot in request.ballots]
        asked = list({ballot.item for _, ballot in sent})
        self.items = {item.id: item for item in session.scalars(ITEMS, {"items": asked})}
        self.held: dict[tuple[int, str], int] = {}
        self.last: dict[tuple[int, int, bool], tuple[_Word, int]] = {}
        about = session.execute(SAID_OF_ITEMS, {"items": asked}).all()
        sent_as = {"raters": list({rater for rater, _ in sent}), "ballots": list({one.ballot for _, one in sent})}
        again = session.execute(SAID_IN_BALLOTS, {"round": round_id, **sent_as}).all()
        said = [(json.loads(row.line), row) for row in {*about, *again}]
        for line, row in sorted(said, key=lambda one: one[0]["index"]):
            self.held[row.rater_id, row.ballot] = line["index"]
            if not row.is_adjudication and "." not in row.ballot:
                self.last[row.rater_id, row.item_id, row.is_repeat] = (_word(line["vote"]), line["index"])


def _check_decisions(ballots: Collection[Ballot], question: str) -> None:
    allowed = {*DECISIONS[question], WITHDRAWN}
    if question in PAIRS:
        allowed = (allowed - {"A", "B"}) | {"left", "right"}
    for ballot in ballots:
        if ballot.decision not in allowed:
            raise NotTaken(f"{ballot.decision!r} is no decision here; there are: {', '.join(sorted(allowed))}")
        if ballot.decision == SKIPPED and not ballot.reason.strip():
            raise NotTaken("a skip needs a reason")
        if ballot.is_repeat and question not in PAIRS:
            raise NotTaken("only pairs are shown again")
