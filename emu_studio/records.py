"""What a lead's numbers are made of: the items of a round and all that was said of them, read once and kept."""

import json
import threading
from dataclasses import dataclass, field

from sqlalchemy import select

from emu_data.votes.log import GENESIS
from emu_data.votes.vote import Vote
from emu_studio.database import Caption, CastVote, Database, Item, Rater, Round
from emu_studio.rounds import OpenRound, find_round


@dataclass(frozen=True)
class Known:
    """An item as numbers need it; see database.Item. keys: of its pictures, of a pair the pair's own."""

    id: int
    keys: tuple[str, ...]
    prompt: str
    gold: str | None


@dataclass(frozen=True)
class Word:
    """A line of a round's chain. place: of its item in the round. is_rest: it is on the rest of a burst, of which one
    decision made several votes, and this is not the first."""

    vote: Vote
    place: int
    is_rest: bool


@dataclass(frozen=True)
class Written:
    """A version of an item's captions. is_unedited: a model's draft that was left as it was."""

    rater: str
    place: int
    time: str
    seconds: float | None
    is_unedited: bool


@dataclass
class Record:
    """A round, its items by place, and all words in their order. shown: key -> digest, as emu_data.votes.vote.counted
    takes it. head: the hash of the last word. captions: all versions in their order, where captions are written."""

    round: OpenRound
    items: list[Known]
    shown: dict[str, str]
    words: list[Word] = field(default_factory=list)
    head: str = GENESIS
    captions: list[Written] = field(default_factory=list)

    @property
    def votes(self) -> list[Vote]:
        """All votes in their order."""
        return [word.vote for word in self.words]


class Records:
    """The records of all rounds. Items never change and words are only added, so each is read once; captions, which are
    few, each time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock, self._records = threading.Lock(), dict[str, Record]()

    def of(self, name: str) -> Record:
        """Return a round as it is now; the words do not grow while somebody reads them. Raises LookupError if there is
        no such round."""
        round_ = find_round(self._database, name)
        with self._lock:
            known = self._records.get(name) or _read_items(self._database, round_)
            new, head = _read_words(self._database, round_.id, len(known.words))
            words = [*known.words, *new]
            captions = _read_captions(self._database, round_.id) if round_.plan.question == "captions" else []
            self._records[name] = Record(round_, known.items, known.shown, words, head or known.head, captions)
            return self._records[name]


def _read_items(database: Database, round_: OpenRound) -> Record:
    items, shown = [], {}
    columns = (Item.id, Item.key, Item.seen, Item.pictures, Item.stratum, Item.gold)
    with database.read() as session:
        for row in session.execute(select(*columns).where(Item.round_id == round_.id).order_by(Item.place)):
            seen = {row.key: row.seen} if round_.plan.is_pairs else {p["key"]: p["digest"] for p in row.pictures}
            shown.update(seen)
            items.append(Known(row.id, tuple(seen), row.stratum or row.key, row.gold))
    return Record(round_, items, shown)


def _read_words(database: Database, round_id: int, since: int) -> tuple[list[Word], str]:
    """The words from line `since` on, and the hash of the last; "" if there is none."""
    columns = (CastVote.line, CastVote.hash, CastVote.ballot, Item.place)
    lines = select(*columns).join(Item, Item.id == CastVote.item_id)
    lines = lines.where(CastVote.round_id == round_id, CastVote.index >= since).order_by(CastVote.index)
    with database.read() as session:
        rows = session.execute(lines).all()
    words = [Word(Vote(**json.loads(row.line)["vote"]), row.place, "." in row.ballot) for row in rows]
    return words, rows[-1].hash if rows else ""


def _read_captions(database: Database, round_id: int) -> list[Written]:
    columns = (Rater.pseudonym, Item.place, Caption.time, Caption.seconds, Caption.unedited)
    rows = select(*columns).join(Rater, Rater.id == Caption.rater_id).join(Item, Item.id == Caption.item_id)
    with database.read() as session:
        found = session.execute(rows.where(Caption.round_id == round_id).order_by(Caption.id)).all()
    return [Written(row.pseudonym, row.place, row.time, row.seconds, bool(row.unedited)) for row in found]


def evaluation_prompts(database: Database) -> set[str]:
    """Return the prompts of all rounds that measure models, as `fold_prompt` writes them."""
    with database.read() as session:
        plans = session.execute(select(Round.id, Round.plan)).all()
        measuring = [row.id for row in plans if row.plan["is_evaluation"]]
        prompts = select(Item.stratum).where(Item.round_id.in_(measuring)).distinct()
        return {fold_prompt(prompt) for prompt in session.scalars(prompts)}


def fold_prompt(prompt: str) -> str:
    """Return a prompt without what does not make it another: case and runs of blanks."""
    return " ".join(prompt.casefold().split())
