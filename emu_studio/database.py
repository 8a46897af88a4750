"""The studio's tables, on SQLite by default and on PostgreSQL by URL.

What people decided is in `votes`, whose rows are only ever added and form a hash chain per round, line by line as
emu_data.votes.log writes it. Names are in a table of their own, so that they can be erased while the chain stays whole.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Engine, ForeignKey, Index, String, Text, UniqueConstraint, create_engine, event, text
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

BUSY_SECONDS = 60  # that a writer waits for another; chosen here, a commit takes milliseconds
POOL = 20  # connections to PostgreSQL, as many more when they are all busy; chosen here


class Table(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON}


class Rater(Table):
    """Somebody who takes part. `token` is the SHA-256 of the personal link's secret; times are UTC in ISO 8601."""

    __tablename__ = "raters"
    id: Mapped[int] = mapped_column(primary_key=True)
    pseudonym: Mapped[str] = mapped_column(String(40), unique=True)
    role: Mapped[str] = mapped_column(String(20))
    token: Mapped[str] = mapped_column(String(64), unique=True)
    invited: Mapped[str] = mapped_column(String(40))
    revoked: Mapped[str | None] = mapped_column(String(40), default=None)


class Name(Table):
    """Whose pseudonym it is. The only table with names; a row may be erased at any time."""

    __tablename__ = "names"
    rater_id: Mapped[int] = mapped_column(ForeignKey("raters.id"), primary_key=True)
    name: Mapped[str] = mapped_column(Text)


class Round(Table):
    """A round and its plan. `num_votes` and `head` are the end of its chain of votes."""

    __tablename__ = "rounds"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40), unique=True)
    plan: Mapped[dict[str, Any]]
    plan_digest: Mapped[str] = mapped_column(String(64))
    opened: Mapped[str] = mapped_column(String(40))
    closed: Mapped[str | None] = mapped_column(String(40), default=None)
    num_votes: Mapped[int] = mapped_column(default=0)
    head: Mapped[str] = mapped_column(String(64))


class Amendment(Table):
    """What was changed in a round after it was opened, by whom and why."""

    __tablename__ = "amendments"
    id: Mapped[int] = mapped_column(primary_key=True)
    round_id: Mapped[int] = mapped_column(ForeignKey("rounds.id"), index=True)
    time: Mapped[str] = mapped_column(String(40))
    pseudonym: Mapped[str] = mapped_column(String(40))
    why: Mapped[str] = mapped_column(Text)


class Consent(Table):
    """Who agreed to a round's text, and when."""

    __tablename__ = "consents"
    round_id: Mapped[int] = mapped_column(ForeignKey("rounds.id"), primary_key=True)
    rater_id: Mapped[int] = mapped_column(ForeignKey("raters.id"), primary_key=True)
    time: Mapped[str] = mapped_column(String(40))


class Item(Table):
    """What is decided on at once: a picture with its near-twins, or a pair of pictures.

    place: 0.. within its round, the row of its embedding. key, seen: as in Vote. pictures: of a pair A's and B's, of a
    burst the centre first; each {"path", "offset", "size", "digest", "key"}, size 0 for a whole file. caption: the
    corpus's, or the prompt; "" where raters must not see any. stratum: its concept, of a pair its prompt. gold: the
    decision that is known, or None. is_control: drawn uniformly before the probe existed. draft: captions that a model
    proposed, {"short", "long", "model"}, or None.
    """

    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    round_id: Mapped[int] = mapped_column(ForeignKey("rounds.id"))
    place: Mapped[int]
    key: Mapped[str] = mapped_column(Text)
    seen: Mapped[str] = mapped_column(String(64))
    pictures: Mapped[list[Any]]
    caption: Mapped[str] = mapped_column(Text, default="")
    stratum: Mapped[str] = mapped_column(Text, default="")
    gold: Mapped[str | None] = mapped_column(String(20), default=None)
    is_control: Mapped[bool] = mapped_column(default=False)
    draft: Mapped[dict[str, Any] | None] = mapped_column(default=None)
    __table_args__ = (UniqueConstraint("round_id", "place"), UniqueConstraint("round_id", "key"))


class Lease(Table):
    """An item that somebody was shown and has not decided on. expires: seconds since 1970."""

    __tablename__ = "leases"
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"), primary_key=True)
    rater_id: Mapped[int] = mapped_column(ForeignKey("raters.id"), primary_key=True)
    round_id: Mapped[int] = mapped_column(ForeignKey("rounds.id"), index=True)
    is_repeat: Mapped[bool] = mapped_column(default=False, primary_key=True)
    expires: Mapped[float]


class HarvestStep(Table):
    """One step of a round's harvest (emu_data.votes.harvest.queue.Step); rows are only ever added."""

    __tablename__ = "harvest_steps"
    round_id: Mapped[int] = mapped_column(ForeignKey("rounds.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    place: Mapped[int]
    why: Mapped[str] = mapped_column(String(10))
    is_shown: Mapped[bool]


class CastVote(Table):
    """One line of a round's chain. ballot: the key that the page gave it, so that it is taken once however often it is
    sent. line: the line as emu_data.votes.log writes it."""

    __tablename__ = "votes"
    round_id: Mapped[int] = mapped_column(ForeignKey("rounds.id"), primary_key=True)
    index: Mapped[int] = mapped_column(primary_key=True)
    rater_id: Mapped[int] = mapped_column(ForeignKey("raters.id"), index=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"), index=True)
    ballot: Mapped[str] = mapped_column(String(64))
    decision: Mapped[str] = mapped_column(String(20))
    is_repeat: Mapped[bool] = mapped_column(default=False)
    is_adjudication: Mapped[bool] = mapped_column(default=False)
    line: Mapped[str] = mapped_column(Text)
    hash: Mapped[str] = mapped_column(String(64))
    __table_args__ = (UniqueConstraint("round_id", "rater_id", "ballot"),)


class Caption(Table):
    """A version of an item's captions; the last one counts. draft: what a model proposed and the writer began with,
    short and long with an empty line between them, "" if nothing. distance: how many characters were edited in it
    (Levenshtein), None without one. unedited: the fields that are the draft's as they were, "short" or "long".
    has_looked: whether the writer had asked for the old caption. findings: what the checks found in the saved text,
    each {"field", "code", "told", "is_known"}; is_known: the writer was told and saved it all the same."""

    __tablename__ = "captions"
    id: Mapped[int] = mapped_column(primary_key=True)
    round_id: Mapped[int] = mapped_column(ForeignKey("rounds.id"))
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"))
    rater_id: Mapped[int] = mapped_column(ForeignKey("raters.id"))
    ballot: Mapped[str] = mapped_column(String(64))
    short: Mapped[str] = mapped_column(Text)
    long: Mapped[str] = mapped_column(Text)
    draft: Mapped[str] = mapped_column(Text, default="")
    distance: Mapped[int | None] = mapped_column(default=None)
    unedited: Mapped[list[Any]] = mapped_column(default=list)
    has_looked: Mapped[bool] = mapped_column(default=False)
    findings: Mapped[list[Any]] = mapped_column(default=list)
    seconds: Mapped[float | None] = mapped_column(default=None)
    time: Mapped[str] = mapped_column(String(40))
    __table_args__ = (
        UniqueConstraint("round_id", "rater_id", "ballot"),
        Index("captions_of_item", "round_id", "item_id"),
    )


class Look(Table):
    """Who asked for the old caption of an item, and when first."""

    __tablename__ = "looks"
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"), primary_key=True)
    rater_id: Mapped[int] = mapped_column(ForeignKey("raters.id"), primary_key=True)
    time: Mapped[str] = mapped_column(String(40))


class Database:
    """Sessions on the studio's database."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        # SQLite has one writer at a time: threads wait for one another here, in order, rather than in its busy loop.
        self._writer = threading.Lock() if engine.dialect.name == "sqlite" else None

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that changes nothing."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session whose changes are on disk when the block ends, and gone if it raises."""
        if self._writer is None:
            with Session(self.engine, expire_on_commit=False) as session, session.begin():
                yield session
            return
        with self._writer, Session(self.engine, expire_on_commit=False) as session:
            session.execute(text("BEGIN IMMEDIATE"))
            yield session
            session.commit()

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def open_database(url: str | Path) -> Database:
    """Open the database at a URL, or in a SQLite file, and make what tables it lacks. Raises ValueError if it cannot be
    reached, saying what to do."""
    if isinstance(url, Path):
        url.parent.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{url}"
    if url.startswith("postgresql://"):
        url = url.replace("postgresql://", "postgresql+psycopg://", 1)
    try:
        options: dict[str, Any] = {} if url.startswith("sqlite") else {"pool_size": POOL, "max_overflow": POOL}
        engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"), **options)
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _prepare_sqlite)
        Table.metadata.create_all(engine)
    except (ArgumentError, OperationalError, sqlite3.Error) as error:
        told = " ".join(str(getattr(error, "orig", None) or error).split())
        raise ValueError(f"the studio's database cannot be opened ({told}): check the address") from error
    return Database(engine)


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say so
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",  # a confirmed vote survives the loss of power, not only of the process
        f"busy_timeout = {BUSY_SECONDS * 1000}",
        "foreign_keys = ON",
        "secure_delete = ON",  # an erased name is not left in a free page
    ):
        connection.execute(f"PRAGMA {pragma}")


def now() -> str:
    """The present time as ISO 8601 in UTC with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
