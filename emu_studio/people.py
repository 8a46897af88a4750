"""Who takes part: personal links, roles, pseudonyms, and names that can be erased."""

import hashlib
import secrets
from dataclasses import dataclass

from sqlalchemy import Row, bindparam, delete, select
from sqlalchemy.orm import Session

from emu_studio.database import Consent, Database, Lease, Name, Rater, now
from emu_studio.plan import ROLES, Role

FOREIGN = "import-"  # how the pseudonyms of those begin whose votes were cast elsewhere
TOKEN_BYTES = 24  # 192 bits: unguessable however often it is tried


PERSON = (Rater.id, Rater.pseudonym, Rater.role, Rater.invited, Rater.revoked, Name.name)
ONE_PERSON = select(*PERSON).outerjoin(Name, Name.rater_id == Rater.id).where(Rater.id == bindparam("id"))


@dataclass(frozen=True)
class Person:
    """Somebody who was invited; name "" once it was erased."""

    id: int
    pseudonym: str
    role: Role
    name: str
    invited: str
    revoked: str | None


def invite(database: Database, name: str, role: str) -> tuple[Person, str]:
    """Invite somebody; return them and the secret of their personal link, which is kept nowhere else."""
    if role not in ROLES:
        raise ValueError(f"there is no role {role!r}; there are: {', '.join(ROLES)}")
    if not name.strip():
        raise ValueError("an invitation needs a name, so that you know whose link it is")
    token = secrets.token_urlsafe(TOKEN_BYTES)
    with database.write() as session:
        rater = Rater(pseudonym=f"{role}-{secrets.token_hex(4)}", role=role, token=_digest(token), invited=now())
        session.add(rater)
        session.flush()
        session.add(Name(rater_id=rater.id, name=name.strip()))
        return _to_person(rater, name.strip()), token


def enrol(session: Session, name: str, source: str, role: Role) -> Person:
    """Return somebody whose votes were cast elsewhere, the same at each import: they have a pseudonym and no link."""
    told = f"{name} ({source})"
    known = select(Rater).join(Name, Name.rater_id == Rater.id).where(Name.name == told)
    rater = session.scalar(known.where(Rater.pseudonym.startswith(FOREIGN)))
    if rater is None:
        token, time = _digest(secrets.token_urlsafe(TOKEN_BYTES)), now()
        rater = Rater(pseudonym=f"{FOREIGN}{secrets.token_hex(4)}", role=role, token=token, invited=time, revoked=time)
        session.add(rater)
        session.flush()
        session.add(Name(rater_id=rater.id, name=told))
    return _to_person(rater, told)


def find_by_token(database: Database, token: str) -> Person | None:
    """Return whose link it is; None if it was never given out or was revoked."""
    with database.read() as session:
        rater = session.scalar(select(Rater).where(Rater.token == _digest(token), Rater.revoked.is_(None)))
        return _to_person(rater, _name(session, rater.id)) if rater else None


def find_person(database: Database, rater_id: int) -> Person | None:
    """Return somebody who may take part; None if there is no such, or their link was revoked."""
    with database.read() as session:
        row = session.execute(ONE_PERSON, {"id": rater_id}).first()
    return person_of(row) if row and row.revoked is None else None


def person_of(row: Row) -> Person:
    """Return the person that a row with their columns of Rater, and their name, is about."""
    return _to_person(row, row.name or "")


def list_people(database: Database) -> list[Person]:
    """Return everybody who was invited, in that order."""
    with database.read() as session:
        names = {row.rater_id: row.name for row in session.scalars(select(Name))}
        return [
            _to_person(rater, names.get(rater.id, "")) for rater in session.scalars(select(Rater).order_by(Rater.id))
        ]


def revoke(database: Database, pseudonym: str) -> None:
    """Make a link worthless at once and free what its owner was shown. Raises LookupError."""
    with database.write() as session:
        rater = session.scalar(select(Rater).where(Rater.pseudonym == pseudonym))
        if rater is None:
            raise LookupError(f"nobody is called {pseudonym}")
        rater.revoked = rater.revoked or now()
        session.execute(delete(Lease).where(Lease.rater_id == rater.id))


def renew(database: Database, pseudonym: str) -> str:
    """Replace somebody's link by a new one and return its secret. Raises LookupError."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    with database.write() as session:
        rater = session.scalar(select(Rater).where(Rater.pseudonym == pseudonym))
        if rater is None:
            raise LookupError(f"nobody is called {pseudonym}")
        rater.token, rater.revoked = _digest(token), None
    return token


def erase_name(database: Database, pseudonym: str) -> None:
    """Forget who a pseudonym is; the votes and their chain stay as they are. Raises LookupError."""
    with database.write() as session:
        rater = session.scalar(select(Rater).where(Rater.pseudonym == pseudonym))
        if rater is None:
            raise LookupError(f"nobody is called {pseudonym}")
        session.execute(delete(Name).where(Name.rater_id == rater.id))


def agree(database: Database, round_id: int, rater_id: int) -> None:
    """Record that somebody agreed to a round's text; again changes nothing."""
    with database.write() as session:
        if session.get(Consent, (round_id, rater_id)) is None:
            session.add(Consent(round_id=round_id, rater_id=rater_id, time=now()))


def has_agreed(database: Database, round_id: int, rater_id: int) -> bool:
    """Whether somebody agreed to a round's text."""
    with database.read() as session:
        return session.get(Consent, (round_id, rater_id)) is not None


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _name(session, rater_id: int) -> str:
    found = session.get(Name, rater_id)
    return found.name if found else ""


def _to_person(rater: Rater | Row, name: str) -> Person:
    return Person(rater.id, rater.pseudonym, rater.role, name, rater.invited, rater.revoked)  # pyrefly: ignore
