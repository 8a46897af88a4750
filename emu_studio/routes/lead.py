"""A lead's pages: how the rounds go, what must be decided by a lead, who takes part; and what their buttons do."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi import Path as PathParam
from fastapi.responses import FileResponse, HTMLResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import select
from starlette.background import BackgroundTask

from emu_data.texts import clean
from emu_data.votes.vote import Vote, counted, counted_of_raters
from emu_studio.adjudication import adjudicate
from emu_studio.app import Studio, changes, lead, render, studio_of
from emu_studio.ballots import Ballot, NotTaken
from emu_studio.closing import close_round, reopen_round
from emu_studio.database import Amendment
from emu_studio.exports import NotGiven, count_preferences, to_csv, to_label_studio, to_parquet, write_preferences
from emu_studio.imports import NotImported, import_votes
from emu_studio.people import Person, erase_name, invite, list_people, renew, revoke
from emu_studio.plan import PARTS, ROLES, UNSAFE, Role, parse_plan, write_plan
from emu_studio.queue import Queue
from emu_studio.records import Record
from emu_studio.results import finished_prompts, is_hidden, result_of
from emu_studio.rounds import list_rounds, open_round
from emu_studio.verifying import verify_record

router = APIRouter()
REASONS = (*PARTS, UNSAFE)  # with which a lead drops a picture
PER_PAGE = 20  # pictures to adjudicate; chosen here
MAX_FILE = 100_000_000  # characters of a file that is imported; chosen here
AT_ONCE = 1.0  # s in which a round is open or refused before the lead sees that it is being prepared; chosen here
DOWNLOADS = {"csv": "csv", "parquet": "parquet", "label-studio": "json", "preferences": "parquet"}


def lead_changes(person: Annotated[Person, Depends(changes)]) -> Person:
    """Who is changing something, if it is a lead. Raises 403 otherwise."""
    return lead(person)


Lead = Annotated[Person, Depends(lead)]
Changing = Annotated[Person, Depends(lead_changes)]
Name = Annotated[str, PathParam(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
Pseudonym = Annotated[str, PathParam(pattern=r"^[a-z0-9-]{1,40}$")]
Text = Annotated[str, AfterValidator(clean), Field(max_length=2000)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Why(_Body):
    """Why a round is closed or reopened."""

    why: Text


class Whose(_Body):
    """Whose leases end."""

    pseudonym: Text


class Guest(_Body):
    """Who is invited."""

    name: Text
    role: Role


class Proposed(_Body):
    """A plan, as YAML."""

    plan: str = Field(max_length=100_000)


class Votes(_Body):
    """A file of votes that were cast elsewhere, and where."""

    text: str = Field(max_length=MAX_FILE)
    kind: Literal["csv", "label-studio"]
    source: Annotated[Text, Field(max_length=200)]


def queue_of(request: Request, name: str) -> Queue:
    """Return the queue of a round. Raises 404."""
    try:
        return studio_of(request).queues.of(name)
    except LookupError:
        raise HTTPException(404, f"There is no round {name}.") from None


def record_of(request: Request, name: str) -> Record:
    """Return what was said in a round. Raises 404."""
    try:
        return studio_of(request).records.of(name)
    except LookupError:
        raise HTTPException(404, f"There is no round {name}.") from None


@router.get("/lead", include_in_schema=False)
def overview(request: Request, person: Lead) -> HTMLResponse:
    """All rounds, and those that may be opened."""
    studio = studio_of(request)
    rounds = list_rounds(studio.database)
    rows = [{"round": one, "queue": studio.queues.of(one.name)} for one in rounds]
    known = {one.name for one in rounds}
    preparing = [one for one in studio.preparations.list() if one.name not in known]
    known |= {one.name for one in preparing if not one.problem}
    openable = sorted(name for name in studio.openable() if name not in known)
    return render(request, "lead.html.j2", person, rows=rows, preparing=preparing, openable=openable)


@router.get("/lead/rounds/{name}", include_in_schema=False)
def one_round(request: Request, name: Name, person: Lead) -> HTMLResponse:
    """How a round goes."""
    studio, queue, record = studio_of(request), queue_of(request, name), record_of(request, name)
    plan = record.round.plan
    people = {one.pseudonym: one for one in list_people(studio.database)}
    names = {one.pseudonym: one.name for one in people.values()}
    leases = queue.leases()
    progress = studio.numbers.of(record, datetime.now(UTC))
    values = {
        "round": record.round,
        "plan": plan,
        "plan_text": write_plan(plan),
        "progress": progress,
        "num_prompts": len(finished_prompts(record)) if plan.is_pairs else 0,
        "is_hidden": is_hidden(record),
        "result": result_of(record),
        "people": people,
        "held": {one.pseudonym: leases[one.id] for one in people.values() if leases.get(one.id)},
        "began": {one.pseudonym for one in progress.raters},
        "raters": sorted(progress.raters, key=lambda one: (names.get(one.pseudonym, ""), one.pseudonym)),
        "amendments": _amendments(studio, record.round.id),
        "preferences": _preferences_of(studio, record),
        "harvest": queue.harvester.describe() if queue.harvester else "",
        "stop": queue.harvester.stop() if queue.harvester else None,
    }
    return render(request, "lead_round.html.j2", person, **values)


def _amendments(studio: Studio, round_id: int) -> Sequence[Amendment]:
    with studio.database.read() as session:
        return session.scalars(select(Amendment).where(Amendment.round_id == round_id).order_by(Amendment.id)).all()


def _preferences_of(studio: Studio, record: Record) -> Any:
    """How many preference pairs a round gives; why it gives none, as a text."""
    try:
        return count_preferences(record, studio.database)
    except NotGiven as error:
        return str(error)


@dataclass(frozen=True)
class Judged:
    """A picture and what was said of it, for a lead. decided: the adjudication, if there is one."""

    key: str
    votes: list[Vote]
    decided: Vote | None


@router.get("/lead/rounds/{name}/{what}", include_in_schema=False)
def pictures(
    request: Request,
    name: Name,
    what: Literal["disputed", "unsafe", "adjudicated"],
    person: Lead,
    after: Annotated[int, Query(ge=0, le=10**9)] = 0,
) -> HTMLResponse:
    """Pictures that a lead decides on, with all votes on them."""
    record = record_of(request, name)
    progress = studio_of(request).numbers.of(record, datetime.now(UTC))
    places = {"disputed": progress.disputed, "unsafe": progress.unsafe, "adjudicated": progress.adjudicated}[what]
    part = places[after : after + PER_PAGE]
    keys = {key for place in part for key in record.items[place].keys}
    own: dict[str, list[Vote]] = {}
    for vote in counted_of_raters((v for v in record.votes if v.key in keys), record.shown):
        own.setdefault(vote.key, []).append(vote)
    decided = {v.key: v for v in counted(record.votes, record.shown) if v.is_adjudication and v.key in keys}
    shown = [
        {
            "item": record.items[place],
            "pictures": [Judged(key, own.get(key, []), decided.get(key)) for key in record.items[place].keys],
        }
        for place in part
    ]
    names = {one.pseudonym: one.name for one in list_people(studio_of(request).database)}
    values = {"what": what, "shown": shown, "names": names, "after": after, "num": len(places), "parts": REASONS}
    return render(request, "lead_pictures.html.j2", person, round=record.round, **values)


@router.get("/lead/people", include_in_schema=False)
def people(request: Request, person: Lead) -> HTMLResponse:
    """Who was invited."""
    return render(request, "lead_people.html.j2", person, people=list_people(studio_of(request).database), roles=ROLES)


@router.get("/lead/open/{name}", include_in_schema=False)
def plan_of(request: Request, name: Name, person: Lead) -> HTMLResponse:
    """The plan of a round before it is opened."""
    proposed = studio_of(request).openable().get(name)
    if proposed is None:
        raise HTTPException(404, f"There is no round {name} to open.")
    return render(request, "lead_open.html.j2", person, name=name, plan_text=write_plan(proposed.plan))


@router.get("/lead/rounds/{name}/out/{kind}", include_in_schema=False)
def download(
    request: Request,
    name: Name,
    kind: Literal["csv", "parquet", "label-studio", "preferences"],
    person: Lead,
) -> Response:
    """The votes of a round as a file."""
    studio, record = studio_of(request), record_of(request, name)
    if is_hidden(record):
        raise HTTPException(409, "These votes are given out when the planned number of prompts is reached.")
    if problems := verify_record(studio.database, record.round):
        raise HTTPException(409, f"The votes were edited in the database: {problems[0]}")
    as_file = {"Content-Disposition": f'attachment; filename="{name}-{kind}.{DOWNLOADS[kind]}"'}
    if kind == "csv":
        return Response(to_csv(record), media_type="text/csv; charset=utf-8", headers=as_file)
    if kind == "parquet":
        return Response(to_parquet(record), media_type="application/vnd.apache.parquet", headers=as_file)
    if kind == "label-studio":
        return Response(to_label_studio(record, studio.database), media_type="application/json", headers=as_file)
    handle, path = tempfile.mkstemp(suffix=".parquet")
    os.close(handle)
    remove = BackgroundTask(os.unlink, path)
    try:
        write_preferences(record, studio.database, Path(path))
    except (NotGiven, OSError, ValueError) as error:
        os.unlink(path)
        raise HTTPException(409, str(error)) from None
    return FileResponse(path, media_type="application/vnd.apache.parquet", headers=as_file, background=remove)


@router.post("/api/lead/rounds/{name}/close")
def close(request: Request, name: Name, given: Why, person: Changing) -> dict[str, bool]:
    """Close a round, and write what it decided to data/votes."""
    studio, queue = studio_of(request), queue_of(request, name)
    if not (why := given.why.strip()):
        raise HTTPException(400, "an amendment needs a reason")
    if queue.round.closed is not None:
        raise HTTPException(409, f"The round {name} is closed already.")
    try:
        close_round(studio.database, name, studio.votes_folder, person.pseudonym, why)
    except (OSError, ValueError) as error:
        told = f"The round is closed, but what it decided could not be written: {error}. `emu studio close {name}`"
        raise HTTPException(500, f"{told} writes it once that is mended.") from None
    finally:
        studio.queues.refresh(name)
    return {"done": True}


@router.post("/api/lead/rounds/{name}/reopen")
def reopen(request: Request, name: Name, given: Why, person: Changing) -> dict[str, bool]:
    """Take votes again."""
    studio, queue = studio_of(request), queue_of(request, name)
    if queue.round.closed is None:
        raise HTTPException(409, f"The round {name} is open already.")
    try:
        reopen_round(studio.database, name, person.pseudonym, given.why)
    except ValueError as error:
        raise HTTPException(400, str(error)) from None
    studio.queues.refresh(name)
    return {"done": True}


@router.post("/api/lead/rounds/{name}/release")
def release(request: Request, name: Name, given: Whose, person: Changing) -> dict[str, int]:
    """Free what somebody holds, so that others are shown it."""
    queue, whose = queue_of(request, name), _find(request, given.pseudonym)
    return {"released": queue.release(whose.id)}


@router.post("/api/lead/rounds/{name}/adjudicate")
def decide(request: Request, name: Name, given: Ballot, person: Changing) -> dict[str, Any]:
    """Record a lead's word on a picture."""
    try:
        return vars(adjudicate(studio_of(request).database, queue_of(request, name), person, given))
    except NotTaken as error:
        raise HTTPException(400, str(error)) from None


@router.post("/api/lead/rounds/{name}/import")
def take_in(request: Request, name: Name, given: Votes, person: Changing) -> dict[str, Any]:
    """Add votes that were cast elsewhere."""
    queue = queue_of(request, name)
    try:
        return vars(import_votes(studio_of(request).database, queue, given.text, given.kind, given.source))
    except NotImported as error:
        raise HTTPException(400, str(error)) from None


@router.post("/api/lead/open/{name}")
def open_one(request: Request, name: Name, given: Proposed, person: Changing) -> dict[str, str]:
    """Open a round by a plan. Where its pictures are not there at once, the list of rounds shows how far it is."""
    studio = studio_of(request)
    proposed = studio.openable().get(name)
    if proposed is None:
        raise HTTPException(404, f"There is no round {name} to open.")
    try:
        plan = parse_plan(given.plan)
        for field in ("name", "folder", "question", "is_evaluation"):
            if getattr(plan, field) != (fixed := getattr(proposed.plan, field)):
                raise ValueError(f"{field}: this round's is {fixed}, which goes with what it shows")
        prepared = studio.preparations.start(name, lambda tell: open_round(studio.database, plan, proposed.items(tell)))
    except ValueError as error:
        raise HTTPException(400, str(error)) from None
    if not prepared.ended.wait(AT_ONCE):
        return {"to": "/lead"}
    if prepared.problem:
        raise HTTPException(400, prepared.problem)
    return {"to": f"/lead/rounds/{name}"}


@router.post("/api/lead/people")
def invite_one(request: Request, given: Guest, person: Changing) -> dict[str, str]:
    """Invite somebody; the answer alone has their link."""
    try:
        guest, token = invite(studio_of(request).database, given.name, given.role)
    except ValueError as error:
        raise HTTPException(400, str(error)) from None
    return {"pseudonym": guest.pseudonym, "link": f"/enter/{token}"}


@router.post("/api/lead/people/{pseudonym}/{act}")
def change_person(
    request: Request, pseudonym: Pseudonym, act: Literal["revoke", "renew", "erase"], person: Changing
) -> dict[str, str]:
    """Revoke or renew somebody's link, or forget their name."""
    studio, whose = studio_of(request), _find(request, pseudonym)
    if act == "erase":
        erase_name(studio.database, pseudonym)
        return {}
    if act == "renew":
        return {"pseudonym": pseudonym, "link": f"/enter/{renew(studio.database, pseudonym)}"}
    if whose.id == person.id:
        raise HTTPException(400, "Your own link is revoked by another lead, or by `emu studio revoke`.")
    revoke(studio.database, pseudonym)
    for round_ in list_rounds(studio.database):
        studio.queues.of(round_.name).release(whose.id)
    return {}


def _find(request: Request, pseudonym: str) -> Person:
    for one in list_people(studio_of(request).database):
        if one.pseudonym == pseudonym:
            return one
    raise HTTPException(404, f"Nobody is called {pseudonym}.")
