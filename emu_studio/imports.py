"""In: votes that were cast elsewhere join a round as what they are.

They name their source; their raters get pseudonyms of this studio (names go where names go, and can be erased). A file
with a line that does not fit is refused whole, with the number of each such line. Taken again, a file adds nothing, as
long as its raters' names were not erased.
"""

import csv
import hashlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from emu_data.texts import clean
from emu_data.votes.vote import SKIPPED, VOTE_COLUMNS, WITHDRAWN, Vote
from emu_studio.ballots import Line, append
from emu_studio.database import CastVote, Database, Item, Round
from emu_studio.people import enrol
from emu_studio.plan import DECISIONS, RoundPlan
from emu_studio.queue import Queue

MOST_PROBLEMS = 20  # that are told of one file; chosen here
LONGEST_NAME = 200  # of a rater, in characters; chosen here
TEXTS = ("rater", "key", "decision", "reason", "side_order", "time", "seen", "plan", "sheet")
UNDO = re.compile(r"'+[=+\-@\t\r]")  # what exports.to_csv put a quote before
FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}


class NotImported(ValueError):
    """A file that does not fit; nothing of it was taken. problems: a line for each place that is wrong."""

    def __init__(self, problems: Sequence[str]) -> None:
        more = [f"and {len(problems) - MOST_PROBLEMS} more"] if len(problems) > MOST_PROBLEMS else []
        super().__init__("\n".join([*problems[:MOST_PROBLEMS], *more]))


@dataclass(frozen=True)
class Found:
    """A vote in a file. where: its line, for people. fields: of `Vote`, as far as the file has them."""

    where: str
    fields: dict[str, Any]


@dataclass(frozen=True)
class Imported:
    """What an import did. num_known: votes that an earlier import of the same file brought. ignored: columns that say
    nothing here."""

    num_votes: int
    num_known: int
    num_raters: int
    ignored: tuple[str, ...] = ()


def read_csv(text: str) -> tuple[list[Found], tuple[str, ...]]:
    """Return the votes of a CSV and the columns that were not read. It needs rater, key and decision; for a comparison
    side_order and seen, too. Raises NotImported."""
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff")), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if lacking := [name for name in ("rater", "key", "decision") if name not in header]:
            raise NotImported([f"line 1: the column{'s' * (len(lacking) > 1)} {', '.join(lacking)} must be there"])
        if len(set(header)) < len(header):
            raise NotImported(["line 1: a column comes twice"])
        found, problems, line = [], [], 2
        for cells in reader:
            where, line = f"line {line}", reader.line_num + 1
            if not any(cells):
                continue
            if len(cells) != len(header):
                problems.append(f"{where}: {len(cells)} cells under {len(header)} columns")
                continue
            row = {name: _from_cell(cell) for name, cell in zip(header, cells, strict=True) if name in VOTE_COLUMNS}
            found.append(Found(where, row))
    except csv.Error as error:
        raise NotImported([f"line {reader.line_num}: {error}"]) from error
    if problems:
        raise NotImported(problems)
    return found, tuple(name for name in header if name not in (*VOTE_COLUMNS, "counts"))


def _from_cell(cell: str) -> str:
    return cell[1:] if UNDO.match(cell) else cell.strip()


def read_label_studio(text: str) -> tuple[list[Found], tuple[str, ...]]:
    """Return the votes of Label Studio's JSON export. A task's data must have `key`; an annotation's decision is its
    one choice, for a comparison A, B, tie, both or neither, and the task's data then says `seen` and `side_order`.
    Raises NotImported."""
    try:
        tasks = clean(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise NotImported([f"no JSON ({error})"]) from error
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise NotImported(["Label Studio's JSON export is a list of tasks, and this is none"])
    found, problems = [], []
    for number, task in enumerate(tasks, 1):
        for count, annotation in enumerate(task.get("annotations") or [], 1):
            where = f"task {number}, annotation {count}"
            try:
                found.append(Found(where, _of_annotation(task.get("data"), annotation)))
            except ValueError as error:
                problems.append(f"{where}: {error}")
    if problems:
        raise NotImported(problems)
    return found, ()


def _of_annotation(data: Any, annotation: Any) -> dict[str, Any]:
    if not isinstance(data, dict) or not isinstance(annotation, dict):
        raise ValueError("no task's data or no annotation")
    results = [one for one in annotation.get("result") or [] if isinstance(one, dict) and one.get("type") == "choices"]
    values = [one["value"].get("choices") for one in results if isinstance(one.get("value"), dict)]
    if annotation.get("was_cancelled"):
        decision, own = SKIPPED, {}
    elif len(values) != 1 or not isinstance(values[0], list) or len(values[0]) != 1:
        raise ValueError("it must have just one choice")
    else:
        decision = values[0][0]
        meta = results[0].get("meta")
        own = meta.get("vote") if isinstance(meta, dict) else None
        if not isinstance(own, dict) or own.get("decision") != decision:
            own = {}  # not cast here, or changed there
    by = annotation.get("completed_by")
    user = by.get("email") or by.get("id") if isinstance(by, dict) else by
    given = {
        "rater": user,
        "key": data.get("key"),
        "seen": data.get("seen", ""),
        "side_order": data.get("side_order", ""),
        "seconds": annotation.get("lead_time"),
        "time": annotation.get("created_at") or "",
        **{name: value for name, value in own.items() if name in VOTE_COLUMNS},
        "decision": decision,
    }
    return {name: "" if value is None else value for name, value in given.items()}


READERS: dict[str, Callable[[str], tuple[list[Found], tuple[str, ...]]]] = {
    "csv": read_csv,
    "label-studio": read_label_studio,
}


def import_votes(database: Database, queue: Queue, text: str, kind: str, source: str) -> Imported:
    """Add the votes of a file to a round that is open. kind: csv or label-studio. source: where the file comes from.

    Raises NotImported, and takes nothing, if any line does not fit: an item or a decision that the round does not have,
    a picture that was another, a vote of a panel.
    """
    if not (source := clean(source).strip()):
        raise NotImported(["say where the votes come from"])
    found, ignored = READERS[kind](clean(text))
    if not found:
        raise NotImported(["there is no vote in this file"])
    with database.write() as session:
        round_ = session.get_one(Round, queue.round.id, with_for_update=True)
        if round_.closed is not None:
            raise NotImported([f"the round {round_.name} is closed; nothing more is taken"])
        items = _items_by_key(session, round_.id, queue.plan)
        votes = _checked(found, items, queue, source)
        people = {name: enrol(session, name, source, queue.plan.roles[0]) for name in {vote.rater for vote in votes}}
        who = CastVote.rater_id.in_([person.id for person in people.values()])
        held = set(session.execute(select(CastVote.rater_id, CastVote.ballot).where(who)))
        owners = [people[vote.rater] for vote in votes]
        votes = [replace(vote, rater=person.pseudonym) for vote, person in zip(votes, owners, strict=True)]
        lines = [
            Line(vote, person.id, items[vote.key].id, ballot, vote.decision)
            for vote, person, ballot in zip(votes, owners, _ballots(votes), strict=True)
            if (person.id, ballot) not in held
        ]
        if lines:
            append(session, round_, lines)
    by_id = {person.id: person for person in people.values()}
    for line in lines:
        if not line.vote.is_adjudication:
            queue.note(by_id[line.rater_id], line.item_id, line.decision, line.vote.is_repeat)
    return Imported(len(lines), len(votes) - len(lines), len(people), ignored)


@dataclass(frozen=True)
class _Shown:
    """What the round shows under a key."""

    id: int
    seen: str


def _items_by_key(session: Session, round_id: int, plan: RoundPlan) -> dict[str, _Shown]:
    found = {}
    for row in session.execute(select(Item.id, Item.key, Item.seen, Item.pictures).where(Item.round_id == round_id)):
        if plan.is_pairs:
            found[row.key] = _Shown(row.id, row.seen)
        else:
            found |= {picture["key"]: _Shown(row.id, picture["digest"]) for picture in row.pictures}
    return found


def _checked(found: Sequence[Found], items: Mapping[str, _Shown], queue: Queue, source: str) -> list[Vote]:
    votes, problems = [], []
    for one in found:
        try:
            votes.append(_vote(one.fields, items, queue, source))
        except ValueError as error:
            problems.append(f"{one.where}: {error}")
    if problems:
        raise NotImported(problems)
    return votes


def _vote(given: Mapping[str, Any], items: Mapping[str, _Shown], queue: Queue, source: str) -> Vote:
    """The vote that a file has, its rater by the name there. Raises ValueError with what does not fit."""
    plan, text = queue.plan, {name: str(given.get(name, "")) for name in TEXTS}
    if not text["rater"] or len(text["rater"]) > LONGEST_NAME:
        raise ValueError(f"no rater, or a name of more than {LONGEST_NAME} characters")
    if text["key"] not in items:
        raise ValueError(f"the round has no item {text['key']!r}")
    if text["decision"] not in (allowed := (*DECISIONS[plan.question], WITHDRAWN)):
        raise ValueError(f"{text['decision']!r} is no decision here; there are: {', '.join(allowed)}")
    if given.get("rater_kind", "") not in ("", "person"):
        raise ValueError(f"a vote of a {given['rater_kind']} is no person's; only people's are taken")
    if text["seen"] not in ("", items[text["key"]].seen):
        raise ValueError(f"it was cast on another picture than the one that the round shows as {text['key']!r}")
    if plan.is_pairs and not (text["seen"] and text["side_order"]):
        raise ValueError("a vote on a pair must say what was `seen`, and the `side_order` in which")
    is_repeat, is_adjudication = _flag(given, "is_repeat"), _flag(given, "is_adjudication")
    if is_repeat and not plan.is_pairs:
        raise ValueError("only pairs are shown again")
    if not plan.is_pairs and text["side_order"]:
        raise ValueError("a single picture has no side_order")
    before = given.get("source", "")
    return Vote(
        **{**text, "time": _time(text["time"])},
        round=plan.recorded_as,
        rater_kind="person",
        score=_number(given, "score", least=None),
        seconds=_number(given, "seconds", least=0.0),
        is_repeat=is_repeat,
        is_adjudication=is_adjudication,
        source=f"{before}, by way of {source}" if before else source,
    )


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = str(given.get(name, "")).lower()
    if value not in FLAGS:
        raise ValueError(f"{name} is {value!r}; it must be true or false")
    return FLAGS[value]


def _number(given: Mapping[str, Any], name: str, least: float | None) -> float | None:
    text = str(given.get(name, ""))
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}, which is no number") from None
    if not math.isfinite(value) or (least is not None and value < least):
        raise ValueError(f"{name} is {text}, which cannot be")
    return value


def _time(text: str) -> str:
    """A time as votes have it, in UTC; without a zone it is taken for UTC."""
    if not text:
        return ""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"time is {text!r}; it must be in ISO 8601") from None
    time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _ballots(votes: Sequence[Vote]) -> Iterator[str]:
    """A name for each vote, the same whenever the same file is taken: of what it says, and how often it said so."""
    said = Counter[Vote]()
    for vote in votes:
        said[vote] += 1
        yield hashlib.sha256(f"{vote!r} {said[vote]}".encode()).hexdigest()[:40]
