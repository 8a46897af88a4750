"""Opening, amending and looking up rounds."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from emu_data.votes.harvest.plan import plan_queue
from emu_data.votes.log import GENESIS
from emu_studio.database import Amendment, Database, Item, Round, now
from emu_studio.items import NewItem
from emu_studio.plan import DECISIONS, RoundPlan

ROWS_AT_ONCE = 5000  # that are inserted together; chosen here


@dataclass(frozen=True)
class OpenRound:
    """A round as the pages need it."""

    id: int
    name: str
    plan: RoundPlan
    plan_digest: str
    opened: str
    closed: str | None


def open_round(database: Database, plan: RoundPlan, items: Sequence[NewItem]) -> OpenRound:
    """Record the plan and what it is about; from then on neither changes. Raises ValueError if the round is open
    already, or if items do not fit the plan."""
    _check_items(plan, items)
    keys, strata = [item.key for item in items], [item.stratum for item in items]
    drawn = plan_queue(keys, strata, plan.seed, plan.num_control, plan.explore_share).control
    control = {keys[row] for row in drawn.tolist()}
    with database.write() as session:
        if session.scalar(select(Round).where(Round.name == plan.name)):
            raise ValueError(f"the round {plan.name} exists already; give the new one another name, or reopen that one")
        found = Round(
            name=plan.name, plan=plan.model_dump(mode="json"), plan_digest=plan.digest, opened=now(), head=GENESIS
        )
        session.add(found)
        session.flush()
        for start in range(0, len(items), ROWS_AT_ONCE):
            part = items[start : start + ROWS_AT_ONCE]
            rows = [
                {
                    "round_id": found.id,
                    "place": start + number,
                    "key": item.key,
                    "seen": item.seen,
                    "pictures": [picture.to_json() for picture in item.pictures],
                    "caption": item.caption,
                    "stratum": item.stratum,
                    "gold": item.gold,
                    "is_control": item.key in control,
                    "draft": vars(item.draft) if item.draft else None,
                }
                for number, item in enumerate(part)
            ]
            session.execute(insert(Item), rows)
        return _to_open(found)


def _check_items(plan: RoundPlan, items: Sequence[NewItem]) -> None:
    if not items:
        raise ValueError(f"the round {plan.name} has nothing to show")
    wanted = 2 if plan.is_pairs else None
    for item in items:
        if not item.pictures or (wanted and len(item.pictures) != wanted):
            raise ValueError(
                f"{item.key}: a round of {plan.question} needs {wanted or 'one or more'} pictures per item"
            )
        if item.gold is not None and item.gold not in DECISIONS[plan.question]:
            raise ValueError(f"{item.key}: the known decision {item.gold!r} is none of {DECISIONS[plan.question]}")
    if len({item.key for item in items}) < len(items):
        raise ValueError(f"the round {plan.name} has a key twice")
    if plan.planned_prompts and plan.planned_prompts > (num := len({item.stratum or item.key for item in items})):
        raise ValueError(f"planned_prompts is {plan.planned_prompts}, and there are {num} prompts")
    if plan.num_control > len(items):
        raise ValueError(f"num_control is {plan.num_control}, and there are {len(items)} items")


def list_rounds(database: Database) -> list[OpenRound]:
    """Return all rounds, open ones first, by name."""
    with database.read() as session:
        found = [_to_open(one) for one in session.scalars(select(Round))]
    return sorted(found, key=lambda one: (one.closed is not None, one.name))


def find_round(database: Database, name: str) -> OpenRound:
    """Return a round. Raises LookupError if there is none of that name."""
    with database.read() as session:
        found = session.scalar(select(Round).where(Round.name == name))
        if found is None:
            raise LookupError(f"there is no round {name!r}")
        return _to_open(found)


def amend(database: Database, name: str, pseudonym: str, why: str, changes: "Changes") -> None:
    """Record a change of an open round, and make it. Raises LookupError, or ValueError without a reason."""
    if not why.strip():
        raise ValueError("an amendment needs a reason")
    with database.write() as session:
        found = session.scalar(select(Round).where(Round.name == name))
        if found is None:
            raise LookupError(f"there is no round {name!r}")
        changes.apply(session, found)
        session.add(Amendment(round_id=found.id, time=now(), pseudonym=pseudonym, why=why.strip()))


@dataclass(frozen=True)
class Changes:
    """What an amendment may change: whether the round is closed."""

    closed: bool | None = None

    def apply(self, session: Session, found: Round) -> None:
        """Make the change."""
        if self.closed is not None:
            found.closed = now() if self.closed else None


def _to_open(found: Round) -> OpenRound:
    plan = RoundPlan.model_validate(found.plan)
    return OpenRound(found.id, found.name, plan, found.plan_digest, found.opened, found.closed)
