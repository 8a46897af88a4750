"""Who may take part in which round."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Select, and_, bindparam, exists, select
from sqlalchemy.orm import Session

from emu_studio.database import CastVote, Consent, Database, Name, Rater, Round
from emu_studio.people import PERSON, Person, person_of
from emu_studio.plan import CHOOSING, PAIRS
from emu_studio.rounds import OpenRound


@dataclass(frozen=True)
class Claim:
    """Who somebody says they are, by a cookie that the studio signed. It may have been revoked since."""

    rater_id: int
    pseudonym: str


class Refused(Exception):
    """Somebody may not do what they asked for. status: of HTTP, 401 where they must come in again, or else 403."""

    def __init__(self, status: int, told: str) -> None:
        super().__init__(told)
        self.status, self.told = status, told


REVOKED = "This link was revoked. Ask the lead for a new one."
_voted = exists().where(CastVote.round_id == Round.id, CastVote.rater_id == Rater.id).correlate(Round, Rater)
_chose = exists().where(Round.plan["question"].as_string().in_(CHOOSING), _voted).correlate(Rater)
# Those of `ids` who were invited, with what decides whether they may vote in round `round`.
FACTS: Select = (
    select(*PERSON, Consent.time.label("agreed"))
    .outerjoin(Name, Name.rater_id == Rater.id)
    .outerjoin(Consent, and_(Consent.rater_id == Rater.id, Consent.round_id == bindparam("round")))
    .where(Rater.id.in_(bindparam("ids", expanding=True)))
)
WHO_CHOSE: Select = select(Rater.id).where(Rater.id.in_(bindparam("ids", expanding=True)), _chose)


def admit(session: Session, round_: OpenRound, claims: Collection[Claim]) -> dict[Claim, Person | Refused]:
    """Return, for all who want to work in a round, who they are, or why they may not."""
    ids = list({claim.rater_id for claim in claims})
    rows = {row.id: row for row in session.execute(FACTS, {"round": round_.id, "ids": ids})}
    chose = _who_chose(session, round_, ids)
    found: dict[Claim, Person | Refused] = {}
    for claim in claims:
        row = rows.get(claim.rater_id)
        if row is None or row.pseudonym != claim.pseudonym or row.revoked is not None:
            found[claim] = Refused(401, REVOKED)
        elif told := _why_not(row.role, round_, row.id in chose):
            found[claim] = Refused(403, told)
        elif row.agreed is None:
            found[claim] = Refused(403, "Read the round's text and agree to it first.")
        else:
            found[claim] = person_of(row)
    return found


def why_not(database: Database, person: Person, round_: OpenRound) -> str:
    """Return why somebody may not take part in a round, whose text they may still have to agree to; "" if they may."""
    with database.read() as session:
        return _why_not(person.role, round_, bool(_who_chose(session, round_, [person.id])))


def _why_not(role: str, round_: OpenRound, has_chosen: bool) -> str:
    if role not in round_.plan.roles:
        return f"This round is for: {', '.join(round_.plan.roles)}."
    if round_.closed is not None:
        return "This round is closed."
    if has_chosen:
        return "You chose pictures that the models learned from, so you do not judge what they draw."
    return ""


def _who_chose(session: Session, round_: OpenRound, ids: Collection[int]) -> set[int]:
    """Those who voted in a round in which pictures were chosen, where that matters."""
    if round_.plan.question not in PAIRS or round_.plan.judges_may_choose:
        return set()
    return set(session.scalars(WHO_CHOSE, {"ids": list(ids)}))
