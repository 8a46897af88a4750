"""Closing a round: what people decided becomes files in data/votes/FOLDER, and no name is among them.

First the database says that the round is closed, and takes nothing more; then the files are written, each so that it
may be written again. So a closing that was interrupted is finished by closing once more, and one that was not changes
nothing.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from emu_data.votes.captions import WrittenCaption, add_captions
from emu_data.votes.plans import RecordedPlan, digest_items, put_plan
from emu_data.votes.rounds import open_log
from emu_data.votes.vote import Vote, describe_voters
from emu_studio.ballots import read_votes
from emu_studio.database import Amendment, Caption, Database, Item, Rater, Round, now
from emu_studio.rounds import Changes, OpenRound, amend, find_round
from emu_studio.verifying import verify_record


@dataclass(frozen=True)
class Closed:
    """What a closing wrote. voters: who voted in the studio, in words. num_new, num_captions: the votes and versions of
    captions that the files did not hold before."""

    folder: Path
    voters: str
    num_new: int
    num_captions: int


def close_round(database: Database, name: str, votes_folder: Path, by: str = "", why: str = "") -> Closed:
    """Close a round and write what it decided below `votes_folder`; of a closed one, write what is missing there.

    by, why: who closes it, by pseudonym, and the reason, if that is to be recorded as an amendment. Raises LookupError
    if there is no such round, VoteLogError if its chain or the log in the folder was altered.
    """
    with database.write() as session:
        found = session.scalar(select(Round).where(Round.name == name).with_for_update())
        if found is None:
            raise LookupError(f"there is no round {name!r}")
        if found.closed is None:
            found.closed = now()
            if why:
                session.add(Amendment(round_id=found.id, time=found.closed, pseudonym=by, why=why))
    return write_round(database, find_round(database, name), votes_folder)


def reopen_round(database: Database, name: str, pseudonym: str, why: str) -> None:
    """Take votes again, as an amendment that is recorded at the next closing. Raises LookupError, or ValueError without
    a reason or if the round is open."""
    if find_round(database, name).closed is None:
        raise ValueError(f"the round {name} is open")
    amend(database, name, pseudonym, why, Changes(closed=False))


def write_round(database: Database, round_: OpenRound, votes_folder: Path) -> Closed:
    """Write a round's plan, votes and captions below `votes_folder`, as far as they are not there."""
    folder = votes_folder / round_.plan.recorded_as
    votes = read_votes(database, round_.id)
    log = open_log(folder)
    with log.held():
        log.recover()
        put_plan(folder, describe_plan(database, round_))
        new = missing_votes(log.read(), votes)
        log.append(new)
        num_captions = add_captions(folder, written_captions(database, round_))
    return Closed(folder, describe_voters(votes), len(new), num_captions)


def missing_votes(present: Sequence[Vote], votes: Sequence[Vote]) -> list[Vote]:
    """Return those of a chain's votes that a log does not hold, in their order; equal votes count one by one."""
    left = Counter(vote for vote in present if vote.rater_kind == "person")
    missing = []
    for vote in votes:
        if left[vote]:
            left[vote] -= 1
        else:
            missing.append(vote)
    return missing


def describe_plan(database: Database, round_: OpenRound) -> RecordedPlan:
    """Return what plan.json says of a round."""
    with database.read() as session:
        found = session.get_one(Round, round_.id)
        items: dict[str, str] = {}
        num_items = 0
        for item in session.scalars(select(Item).where(Item.round_id == round_.id)):
            num_items += 1
            if round_.plan.is_pairs:
                items[item.key] = item.seen
            else:
                items |= {picture["key"]: picture["digest"] for picture in item.pictures}
        changes = session.scalars(select(Amendment).where(Amendment.round_id == round_.id).order_by(Amendment.id))
        return RecordedPlan(
            round=round_.name,
            digest=round_.plan_digest,
            plan=found.plan,
            opened=round_.opened,
            closed=round_.closed or "",
            items=digest_items(items),
            num_items=num_items,
            amendments=[{"time": one.time, "by": one.pseudonym, "why": one.why} for one in changes],
            votes=found.num_votes,
            head=found.head,
        )


def written_captions(database: Database, round_: OpenRound) -> list[WrittenCaption]:
    """Return every version of a round's captions in the order in which they were written."""
    with database.read() as session:
        rows = (
            select(Caption, Item, Rater.pseudonym)
            .join(Item, Item.id == Caption.item_id)
            .join(Rater, Rater.id == Caption.rater_id)
            .where(Caption.round_id == round_.id)
            .order_by(Caption.id)
        )
        return [
            WrittenCaption(
                key=item.key,
                seen=item.seen,
                short=caption.short,
                long=caption.long,
                rater=pseudonym,
                time=caption.time,
                plan=round_.plan_digest,
                draft=caption.draft,
                distance=caption.distance,
                unedited=",".join(caption.unedited),
            )
            for caption, item, pseudonym in session.execute(rows)
        ]


def verify_round(database: Database, round_: OpenRound, votes_folder: Path) -> list[str]:
    """Return what is wrong with a round in the database, and with what was written of it once it was closed; empty if
    nothing is."""
    if problems := verify_record(database, round_):
        return problems
    if round_.closed is None:
        return []
    folder = votes_folder / round_.plan.recorded_as
    log = open_log(folder)
    if told := log.verify().problems:
        return list(told)
    if missing := missing_votes(log.read(), read_votes(database, round_.id)):
        again = f"`emu studio close {round_.name}` writes them"
        return [f"{round_.name}: {len(missing)} of its votes are not in {log.path}; {again}"]
    return []
