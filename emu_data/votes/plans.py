"""plan.json beside a round's votes: the plans by which people voted, what was amended, and on which items.

A vote names its plan by digest. Several rounds of a studio may be recorded in one folder, one after the other, as when
another model's pictures are compared: each is an entry of its own.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emu_data.files import write_json

PLAN_NAME = "plan.json"


@dataclass(frozen=True)
class RecordedPlan:
    """A round that people took part in. Times are UTC in ISO 8601.

    round: its name in the studio. plan: as it was when the round was opened; digest: of it, as in `Vote.plan`. items:
    digest_items of what was shown. num_items: decisions that one rater could make. closed: the last time that it was
    closed. amendments: time, by (a pseudonym) and why of each. votes: how many are in the studio's chain, head: the
    hash of the last of them.
    """

    round: str
    digest: str
    plan: dict[str, Any]
    opened: str
    closed: str
    items: str
    num_items: int
    amendments: list[dict[str, str]]
    votes: int
    head: str


def digest_items(items: Mapping[str, str]) -> str:
    """SHA-256 over the items of a round, in whatever order. items: key -> `Vote.seen` of a vote on it."""
    digest = hashlib.sha256()
    for key in sorted(items):
        digest.update(f"{json.dumps([key, items[key]])}\n".encode())
    return digest.hexdigest()


def read_plans(folder: Path) -> list[RecordedPlan]:
    """Return the plans of the round in `folder`, oldest first; none if nobody voted by a plan. Raises ValueError if the
    file is damaged."""
    path = folder / PLAN_NAME
    if not path.is_file():
        return []
    try:
        return [RecordedPlan(**entry) for entry in json.loads(path.read_bytes())["plans"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not readable ({error}); restore it with the votes beside it") from error


def put_plan(folder: Path, plan: RecordedPlan) -> None:
    """Add a plan, or replace what was recorded of the same round of the same studio."""
    plans = {(entry.round, entry.opened): entry for entry in read_plans(folder)}
    plans[plan.round, plan.opened] = plan
    _write(folder, sorted(plans.values(), key=lambda entry: (entry.opened, entry.round)))


def ensure_plans(folder: Path) -> None:
    """Write a file without plans where there is none, so that what DVC records of a round is always there."""
    if not (folder / PLAN_NAME).is_file():
        _write(folder, [])


def _write(folder: Path, plans: list[RecordedPlan]) -> None:
    write_json(folder / PLAN_NAME, {"plans": [asdict(plan) for plan in plans]})
