"""What a page sends as a decision, what votes it is, and how they are chained."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from emu_data.votes.log import GENESIS, VoteLogError, chain_vote
from emu_data.votes.pairs import draw_side_order, swap
from emu_data.votes.vote import Vote
from emu_studio.database import CastVote, Database, Item, Round, now
from emu_studio.people import Person
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
