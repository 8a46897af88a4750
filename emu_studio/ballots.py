"""Taking votes: each once however often it is sent, chained to the one before, on disk before it is confirmed."""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import delete, insert, or_, select, tuple_
from sqlalchemy.orm import Session

from emu_data.votes.log import GENESIS, VoteLogError, chain_vote
from emu_data.votes.pairs import draw_side_order, swap
from emu_data.votes.vote import SKIPPED, WITHDRAWN, Vote
from emu_studio.database import CastVote, Database, Item, Lease, Round, now
from emu_studio.people import Person
from emu_studio.plan import DECISIONS, PAIRS
from emu_studio.queue import Queue

TWIN_PICKED = "a near-twin was picked"  # the reason of a drop, of the rest of a burst
MAX_BALLOTS = 100  # in one request: a sheet has 24 pictures; chosen here
Short = Annotated[str, Field(max_length=500)]


class Ballot(BaseModel):
    """What a page sends about one item. ballot: a key of the page's own, new for each decision, by which a repeated
    request is recognised. decision: as in the plan; of a pair "left" and "right" are what was clicked. picked: of a
    burst, which picture is kept. seconds: since the item was shown.
    """

    model_config = ConfigDict(extra="forbid")

    ballot: str = Field(min_length=8, max_length=60, pattern=r"^[A-Za-z0-9_-]+$")
    item: int = Field(ge=1, le=2**31 - 1)
    decision: str = Field(min_length=1, max_length=20)
    reason: Short = ""
    picked: int = Field(default=0, ge=0, le=1000)
    seconds: float | None = Field(default=None, ge=0, le=24 * 3600)
    sheet: str = Field(default="", max_length=60)
    is_repeat: bool = False


@dataclass(frozen=True)
class Confirmed:
    """A vote that the database holds. index: of its line in the round's chain. is_new: this request brought it."""

    ballot: str
    index: int
    is_new: bool


class NotTaken(ValueError):
    """A ballot that does not fit; nothing of its request was taken."""


def side_order(seed: int, pseudonym: str, key: str, is_repeat: bool) -> str:
    """Which of A and B stands left for a rater: "AB" or "BA", swapped in a repeat."""
    order = draw_side_order(seed, pseudonym, key)
    return swap(order) if is_repeat else order


@dataclass
class _Request:
    """What somebody sent, and what became of it."""

    person: Person
    ballots: Sequence[Ballot]
    confirmed: list[Confirmed] = field(default_factory=list)
    noted: list[tuple[int, str, bool]] = field(default_factory=list)
    error: Exception | None = None
    is_done: bool = False


class Clerk:
    """Takes the votes of one round. Requests that arrive while others are being written are written together: one
    transaction, one look at the end of the chain, one wait for the disk.
    """

    def __init__(self, database: Database, queue: Queue) -> None:
        self._database, self._queue = database, queue
        self._waiting: list[_Request] = []
        self._arrival, self._turn = threading.Lock(), threading.Lock()

    def cast(self, person: Person, ballots: Sequence[Ballot]) -> list[Confirmed]:
        """Record ballots and return what the database then holds, in their order. A ballot that is held already is
        confirmed again, by its first content, and so is what is the person's last word already: picture, decision and
        reason.

        Raises NotTaken, and takes none of them, if one is on an item of another round or has a decision that the round
        does not ask for. A vote whose lease ended meanwhile is taken: no work of a person is thrown away.
        """
        _check_decisions(ballots, self._queue.plan.question)
        request = _Request(person, ballots)
        with self._arrival:
            self._waiting.append(request)
        with self._turn:
            if not request.is_done:
                self._write_waiting()
        if request.error is not None:
            raise request.error
        return request.confirmed

    def _write_waiting(self) -> None:
        with self._arrival:
            requests, self._waiting = self._waiting, []
        try:
            with self._database.write() as session:
                round_ = session.get_one(Round, self._queue.round.id, with_for_update=True)
                for request in requests:
                    try:
                        self._record(session, round_, request)
                    except NotTaken as error:
                        request.error = error
        except Exception as error:  # of the database: nothing of all this was written
            for request in requests:
                request.error = error
        for request in requests:
            request.is_done = True
            if request.error is None:
                for item_id, decision, is_repeat in request.noted:
                    self._queue.note(request.person, item_id, decision, is_repeat)

    def _record(self, session: Session, round_: Round, request: _Request) -> None:
        """Add one request's votes to the session, or raise NotTaken before anything is added."""
        if round_.closed is not None:
            raise NotTaken(f"the round {round_.name} is closed; nothing more is taken")
        person, ballots = request.person, request.ballots
        asked = {ballot.item for ballot in ballots}
        items = {item.id: item for item in session.scalars(select(Item).where(Item.id.in_(asked)))}
        mine = (CastVote.round_id == round_.id, CastVote.rater_id == person.id)
        columns = (CastVote.ballot, CastVote.item_id, CastVote.is_repeat, CastVote.is_adjudication, CastVote.line)
        about = or_(CastVote.item_id.in_(asked), CastVote.ballot.in_([ballot.ballot for ballot in ballots]))
        held: dict[str, int] = {}
        last: dict[tuple[int, bool], tuple[_Word, int]] = {}
        for name, item_id, is_repeat, is_adjudication, line in session.execute(
            select(*columns).where(*mine, about).order_by(CastVote.index)
        ):
            said = json.loads(line)
            held[name] = said["index"]
            if not is_adjudication and "." not in name:
                last[item_id, is_repeat] = (_word(said["vote"]), said["index"])
        lines: list[Line] = []
        for ballot in ballots:
            item = items.get(ballot.item)
            if item is None or item.round_id != round_.id:
                raise NotTaken(f"item {ballot.item} is not of the round {round_.name}")
            votes = votes_of(ballot, item, self._queue, person)
            word, index = _word(vars(votes[0])), round_.num_votes + len(lines)
            before = last.get((item.id, ballot.is_repeat))
            if ballot.ballot in held or (before and before[0] == word):
                known = held[ballot.ballot] if ballot.ballot in held else before[1] if before else 0
                request.confirmed.append(Confirmed(ballot.ballot, known, False))
                continue
            held[ballot.ballot], last[item.id, ballot.is_repeat] = index, (word, index)
            request.confirmed.append(Confirmed(ballot.ballot, index, True))
            request.noted.append((item.id, votes[0].decision, ballot.is_repeat))
            lines += lines_of(votes, ballot.ballot, item.id, person)
        if lines:
            append(session, round_, lines)
            done = [(item_id, is_repeat) for item_id, _, is_repeat in request.noted]  # a repeat has its own lease
            of_these = tuple_(Lease.item_id, Lease.is_repeat).in_(done)
            session.execute(delete(Lease).where(Lease.rater_id == person.id, of_these))


_Word = tuple[str, str, str]


def _word(vote: Mapping[str, Any]) -> _Word:
    """What makes a vote another one: which picture of a burst it is on, the decision, and its reason."""
    return vote["key"], vote["decision"], vote["reason"]


@dataclass(frozen=True)
class Line:
    """A vote that is to be chained. ballot, decision: as in CastVote; of a burst the decision is the picked one's."""

    vote: Vote
    rater_id: int
    item_id: int
    ballot: str
    decision: str


def lines_of(votes: Sequence[Vote], ballot: str, item_id: int, person: Person) -> list[Line]:
    """Return the lines of what one ballot said, the picked picture's first."""
    names = [f"{ballot}.{number}" if number else ballot for number in range(len(votes))]
    return [Line(vote, person.id, item_id, name, votes[0].decision) for vote, name in zip(votes, names, strict=True)]


def append(session: Session, round_: Round, lines: Sequence[Line]) -> None:
    """Add votes to the end of a round's chain. round_: read for update, so that nobody else adds meanwhile."""
    rows: list[dict[str, Any]] = []
    for line in lines:
        text, head = chain_vote(round_.num_votes, round_.head, dict(vars(line.vote)))
        row = {"round_id": round_.id, "index": round_.num_votes, "rater_id": line.rater_id, "item_id": line.item_id}
        row |= {"ballot": line.ballot, "decision": line.decision, "is_repeat": line.vote.is_repeat}
        rows.append(row | {"is_adjudication": line.vote.is_adjudication, "line": text.decode(), "hash": head})
        round_.num_votes, round_.head = round_.num_votes + 1, head
    session.execute(insert(CastVote), rows)


def _check_decisions(ballots: Sequence[Ballot], question: str) -> None:
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


def votes_of(ballot: Ballot, item: Item, queue: Queue, person: Person) -> list[Vote]:
    """The votes that a ballot is: one, or one per picture of a burst, the picked one's first."""
    plan = queue.plan
    common: dict[str, Any] = {
        "round": plan.recorded_as,
        "rater": person.pseudonym,
        "rater_kind": "person",
        "reason": ballot.reason.strip(),
        "seconds": ballot.seconds,
        "time": now(),
        "plan": queue.round.plan_digest,
        "sheet": ballot.sheet,
        "is_repeat": ballot.is_repeat,
    }
    if plan.is_pairs:
        order = side_order(plan.seed, person.pseudonym, item.key, ballot.is_repeat)
        decision = {"left": order[0], "right": order[1]}.get(ballot.decision, ballot.decision)
        return [Vote(**common, key=item.key, seen=item.seen, decision=decision, side_order=order)]
    pictures = item.pictures
    if ballot.picked >= len(pictures):
        raise NotTaken(f"item {item.id} has {len(pictures)} pictures, and number {ballot.picked} was picked")
    picked = pictures[ballot.picked]
    votes = [Vote(**common, key=picked["key"], seen=picked["digest"], decision=ballot.decision)]
    is_kept = ballot.decision == "keep"
    if is_kept:
        common["reason"] = TWIN_PICKED
    for one in pictures:
        if one is not picked:
            decision = "drop" if is_kept else ballot.decision
            votes.append(Vote(**common, key=one["key"], seen=one["digest"], decision=decision))
    return votes


def verify_chain(database: Database, round_id: int) -> list[str]:
    """Return what is wrong with a round's chain of votes in the database; empty if nothing is."""
    problems: list[str] = []
    with database.read() as session:
        round_ = session.get_one(Round, round_id)
        index, previous = 0, GENESIS
        for row in session.scalars(select(CastVote).where(CastVote.round_id == round_id).order_by(CastVote.index)):
            where = f"{round_.name}, vote {row.index + 1}"
            try:
                vote = json.loads(row.line)["vote"]
                line, head = chain_vote(index, previous, vote)
            except (ValueError, KeyError, TypeError) as error:
                return [*problems, f"{where}: no readable vote ({error})"]
            if row.index != index:
                return [*problems, f"{where}: does not follow the vote before (removed or inserted)"]
            if line.decode() != row.line or head != row.hash:
                return [*problems, f"{where}: the vote was edited (its hash does not fit)"]
            index, previous = index + 1, head
        if (round_.num_votes, round_.head) != (index, previous):
            problems.append(f"{round_.name}: {round_.num_votes} votes were confirmed and {index} are there")
    return problems


def read_votes(database: Database, round_id: int) -> list[Vote]:
    """Return a round's votes in their order. Raises VoteLogError if the chain is broken."""
    if problems := verify_chain(database, round_id):
        raise VoteLogError(problems[0])
    with database.read() as session:
        lines = session.scalars(select(CastVote.line).where(CastVote.round_id == round_id).order_by(CastVote.index))
        return [Vote(**json.loads(line)["vote"]) for line in lines]
