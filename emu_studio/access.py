"""Who may take part in which round."""

from sqlalchemy import exists, select

from emu_studio.database import CastVote, Database, Round
from emu_studio.people import Person
from emu_studio.plan import CHOOSING, PAIRS
from emu_studio.rounds import OpenRound


def why_not(database: Database, person: Person, round_: OpenRound) -> str:
    """Return why somebody may not take part in a round; "" if they may."""
    plan = round_.plan
    if person.role not in plan.roles:
        return f"This round is for: {', '.join(plan.roles)}."
    if round_.closed is not None:
        return "This round is closed."
    if plan.question in PAIRS and not plan.judges_may_choose and has_chosen(database, person):
        return "You chose pictures that the models learned from, so you do not judge what they draw."
    return ""


def has_chosen(database: Database, person: Person) -> bool:
    """Whether somebody voted in a round in which pictures were chosen."""
    with database.read() as session:
        voted = exists().where(CastVote.round_id == Round.id, CastVote.rater_id == person.id)
        return any(plan["question"] in CHOOSING for plan in session.scalars(select(Round.plan).where(voted)))
