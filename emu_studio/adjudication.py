"""A lead's word on pictures on which raters disagree, or that one of them called unsafe.

It is a vote of its own in the same chain, under the lead's pseudonym, marked as an adjudication: it decides the picture
(emu_data.votes.vote.counted), and erases nobody's word. It goes around the queue, so raters are asked as before.
Comparisons have none: what people prefer is the result, and who sees the votes sees it before its time.
"""

from dataclasses import replace

from sqlalchemy import select

from emu_data.votes.vote import CURATION_DECISIONS, WITHDRAWN
from emu_studio.ballots import Ballot, Confirmed, NotTaken, append, lines_of, votes_of
from emu_studio.database import CastVote, Database, Item, Round
from emu_studio.people import Person
from emu_studio.plan import CHOOSING
from emu_studio.queue import Queue


def adjudicate(database: Database, queue: Queue, lead: Person, ballot: Ballot) -> Confirmed:
    """Record a lead's word on a picture; `withdrawn` takes it back, and the raters' votes count again. Raises NotTaken
    in a round in which no pictures are chosen, and as Clerk.cast does."""
    if queue.plan.question not in CHOOSING:
        raise NotTaken("only pictures that are kept or dropped are adjudicated")
    if ballot.decision not in (allowed := (*CURATION_DECISIONS, WITHDRAWN)):
        raise NotTaken(f"{ballot.decision!r} is no adjudication; there are: {', '.join(allowed)}")
    with database.write() as session:
        round_ = session.get_one(Round, queue.round.id, with_for_update=True)
        if round_.closed is not None:
            raise NotTaken(f"the round {round_.name} is closed: reopen it first")
        mine = (CastVote.round_id == round_.id, CastVote.rater_id == lead.id, CastVote.ballot == ballot.ballot)
        if (held := session.scalar(select(CastVote).where(*mine))) is not None:
            return Confirmed(ballot.ballot, held.index, False)
        item = session.get(Item, ballot.item)
        if item is None or item.round_id != round_.id:
            raise NotTaken(f"item {ballot.item} is not of the round {round_.name}")
        votes = [replace(vote, is_adjudication=True, is_repeat=False) for vote in votes_of(ballot, item, queue, lead)]
        index = round_.num_votes
        append(session, round_, lines_of(votes, ballot.ballot, item.id, lead))
    return Confirmed(ballot.ballot, index, True)
