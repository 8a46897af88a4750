"""Looking for edits of what people said: in the chains of votes, and in what the database keeps beside each line."""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from emu_studio.ballots import verify_chain
from emu_studio.database import CastVote, Database, Item, Rater, Round
from emu_studio.plan import RoundPlan
from emu_studio.rounds import OpenRound


def verify_record(database: Database, round_: OpenRound) -> list[str]:
    """Return what is wrong with a round: its plan, the chain of its votes, the columns by which the studio finds them,
    and whether they were cast on what the round shows. The chain alone says that a file was not edited; the columns
    say whom the studio believes to have voted on what."""
    if problems := verify_chain(database, round_.id):
        return problems
    with database.read() as session:
        found = session.get_one(Round, round_.id)
        if RoundPlan.model_validate(found.plan).digest != found.plan_digest:
            problems.append(f"{round_.name}: the plan is not the one that the round was opened with")
        columns = (*_COLUMNS, Rater.pseudonym, Item.round_id.label("of"), Item.key, Item.seen, Item.pictures)
        rows = select(*columns).join(Rater, Rater.id == CastVote.rater_id).join(Item, Item.id == CastVote.item_id)
        decision = ""
        for row in session.execute(rows.where(CastVote.round_id == round_.id).order_by(CastVote.index)):
            vote = json.loads(row.line)["vote"]
            if "." not in row.ballot:  # else on the rest of a burst, whose column has the picked picture's decision
                decision = vote["decision"]
            for told in _faults(row, vote, decision, round_):
                problems.append(f"{round_.name}, vote {row.number + 1}: {told}")
    return problems


_COLUMNS = (
    CastVote.index.label("number"),
    CastVote.line,
    CastVote.ballot,
    CastVote.decision,
    CastVote.is_repeat,
    CastVote.is_adjudication,
)


def _faults(row: Any, vote: Mapping[str, Any], decision: str, round_: OpenRound) -> list[str]:
    """Where the columns beside a line say what the line does not."""
    shown = {row.key: row.seen} if round_.plan.is_pairs else {one["key"]: one["digest"] for one in row.pictures}
    showing = (row.is_repeat, row.is_adjudication)
    checks = {
        "it is another rater's": vote["rater"] == row.pseudonym,
        "it is of another round": row.of == round_.id and vote["round"] == round_.plan.recorded_as,
        "it was cast on another item": vote["key"] in shown,
        "it was cast on another picture": vote["seen"] in ("", shown.get(vote["key"])),
        "it names another plan": bool(vote["source"]) or vote["plan"] == round_.plan_digest,
        "it has another decision": row.decision == decision,
        "it is of another showing": showing == (vote["is_repeat"], vote["is_adjudication"]),
    }
    return [told for told, holds in checks.items() if not holds]
