"""Captions that people write for chosen pictures: a short and a long one, every version kept, the last one counts."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from emu_data.texts import clean
from emu_studio.ballots import NotTaken
from emu_studio.caption_checks import Finding, check_captions, edit_distance
from emu_studio.database import Caption, Database, Item, Lease, Look, Round, now
from emu_studio.items import Draft, NewItem
from emu_studio.people import Person
from emu_studio.queue import CAPTIONED, Queue

MAX_CAPTIONS = 50  # in one request: what a page could not send for an hour or two; chosen here
Line = Annotated[str, Field(max_length=500)]
Text = Annotated[str, Field(max_length=5000)]


class Written(BaseModel):
    """Two captions as they stand in a page."""

    model_config = ConfigDict(extra="forbid")

    short: Line
    long: Text
    used_draft: bool = False


class GivenCaptions(Written):
    """What a page wants saved of one item. ballot: as in Ballot. used_draft: whether it was begun with the model's
    draft. known: findings that the writer was told of, each "FIELD CODE". seconds: since the item was shown.
    """

    ballot: str = Field(min_length=8, max_length=60, pattern=r"^[A-Za-z0-9_-]+$")
    item: int = Field(ge=1, le=2**31 - 1)
    known: list[Annotated[str, Field(max_length=40)]] = Field(default=[], max_length=20)
    seconds: float | None = Field(default=None, ge=0, le=7 * 24 * 3600)


@dataclass(frozen=True)
class Saved:
    """Captions that the database holds. version: the number of their row; is_new: this request brought it."""

    ballot: str
    version: int
    is_new: bool


def save(database: Database, queue: Queue, person: Person, given: Sequence[GivenCaptions]) -> list[Saved]:
    """Save captions, each once however often it is sent, and return what the database then holds, in their order.

    Raises NotTaken, and saves nothing, if the round is closed or takes no captions, an item is of another round, or a
    caption is empty. As with votes, captions are saved also where the lease ended meanwhile.
    """
    _check_round(queue)
    findings = [find(database, queue, one.item, one) for one in given]
    with database.write() as session:
        round_ = session.get_one(Round, queue.round.id, with_for_update=True)  # one at a time, as votes are
        if round_.closed is not None:
            raise NotTaken(f"the round {round_.name} is closed; nothing more is saved")
        saved = [_save_one(session, round_, person, one, found) for one, found in zip(given, findings, strict=True)]
    for one in given:
        queue.note(person, one.item, CAPTIONED, False)
    return saved


def _save_one(
    session: Session, round_: Round, person: Person, given: GivenCaptions, findings: Sequence[Finding]
) -> Saved:
    short, long = _strip(given)
    if not short or not long:
        raise NotTaken("both captions are needed: write them, or skip the picture with a reason")
    item = _item(session, round_.id, given.item)
    where = (Caption.round_id == round_.id, Caption.rater_id == person.id)
    held = session.scalar(select(Caption).where(*where, Caption.ballot == given.ballot))
    if held is None:
        newest = select(Caption).where(Caption.item_id == item.id).order_by(Caption.id.desc()).limit(1)
        last = session.scalar(newest)
        if last is not None and (last.rater_id, last.short, last.long) == (person.id, short, long):
            held = last  # from another tab, or after the back button
    if held is not None:
        return Saved(given.ballot, held.id, False)
    draft = _draft_of(item, short, long, given.used_draft)
    version = Caption(
        round_id=round_.id,
        item_id=item.id,
        rater_id=person.id,
        ballot=given.ballot,
        short=short,
        long=long,
        draft="\n\n".join(draft) if draft else "",
        distance=edit_distance(draft[0], short) + edit_distance(draft[1], long) if draft else None,
        unedited=[one.field for one in findings if one.code == "draft"],
        has_looked=session.get(Look, (item.id, person.id)) is not None,
        findings=[{**asdict(one), "is_known": f"{one.field} {one.code}" in given.known} for one in findings],
        seconds=given.seconds,
        time=now(),
    )
    session.add(version)
    session.flush()
    lease = session.get(Lease, (item.id, person.id, False))
    if lease is not None:
        session.delete(lease)
    return Saved(given.ballot, version.id, True)


def find(database: Database, queue: Queue, item_id: int, written: Written) -> list[Finding]:
    """Return what is to be said of captions of an item before they are saved. Raises NotTaken if it is of another
    round."""
    _check_round(queue)
    short, long = _strip(written)
    with database.read() as session:
        item = _item(session, queue.round.id, item_id)
        columns = select(Caption.short, Caption.long).where(Caption.id.in_(_latest(queue.round.id)))
        others = [(row.short, row.long) for row in session.execute(columns.where(Caption.item_id != item_id))]
    return check_captions(short, long, item.caption, others, _draft_of(item, short, long, written.used_draft))


def look(database: Database, queue: Queue, person: Person, item_id: int) -> str:
    """Return the old caption of an item, and record that somebody asked for it. Raises NotTaken if it is of another
    round."""
    _check_round(queue)
    with database.write() as session:
        item = _item(session, queue.round.id, item_id)
        session.get_one(Round, queue.round.id, with_for_update=True)
        if session.get(Look, (item.id, person.id)) is None:
            session.add(Look(item_id=item.id, rater_id=person.id, time=now()))
        return item.caption


def list_versions(database: Database, queue: Queue, item_id: int) -> list[Caption]:
    """Return all that was saved for an item, the first first. Raises NotTaken if it is of another round."""
    _check_round(queue)
    with database.read() as session:
        _item(session, queue.round.id, item_id)
        return list(session.scalars(select(Caption).where(Caption.item_id == item_id).order_by(Caption.id)))


def list_captions(database: Database, round_id: int) -> dict[str, Caption]:
    """Return the captions that count in a round: key of the picture -> the version that was saved last."""
    with database.read() as session:
        keys = {row.id: row.key for row in session.execute(select(Item.id, Item.key).where(Item.round_id == round_id))}
        found = session.scalars(select(Caption).where(Caption.id.in_(_latest(round_id))))
        return {keys[one.item_id]: one for one in found}


def read_drafts(file: Path) -> dict[str, Draft]:
    """Read drafts of a model: a line of JSON per picture, {"key", "short", "long", "model"}. Raises ValueError, saying
    which line is wrong; the last line of a key counts."""
    found = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            given = clean(json.loads(line))
            key, short, long, model = (given[name] for name in ("key", "short", "long", "model"))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}, line {number}: no object with key, short, long and model ({error})") from error
        if not all(isinstance(value, str) for value in (key, short, long, model)):
            raise ValueError(f"{file}, line {number}: key, short, long and model must be texts")
        found[key] = Draft(short.strip(), long.strip(), model)
    return found


def with_drafts(items: Sequence[NewItem], draft_of: Callable[[str], Draft | None]) -> list[NewItem]:
    """Return the items of a round that is about to be opened with drafts of a model: what draft_of says of their keys,
    `read_drafts(file).get` or a function that asks a model."""
    return [replace(item, draft=draft_of(item.key)) for item in items]


def _check_round(queue: Queue) -> None:
    if queue.plan.question != "captions":
        raise NotTaken(f"the round {queue.round.name} takes no captions")


def _item(session: Session, round_id: int, item_id: int) -> Item:
    item = session.get(Item, item_id)
    if item is None or item.round_id != round_id:
        raise NotTaken(f"item {item_id} is not of this round")
    return item


def _strip(written: Written) -> tuple[str, str]:
    """The captions as they are saved: as they were written, but for white space around them and NUL characters."""
    return clean(written.short).strip(), clean(written.long).strip()


def _draft_of(item: Item, short: str, long: str, used_draft: bool) -> tuple[str, str] | None:
    """The draft, if the writer began with it, or wrote just the same."""
    draft: dict[str, Any] | None = item.draft
    if draft is None:
        return None
    is_same = short == draft["short"] or long == draft["long"]
    return (draft["short"], draft["long"]) if used_draft or is_same else None


def _latest(round_id: int) -> Select[Any]:
    """The numbers of the versions that count."""
    return select(func.max(Caption.id)).where(Caption.round_id == round_id).group_by(Caption.item_id)
