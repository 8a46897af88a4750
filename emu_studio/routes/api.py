"""What the pages' scripts ask for: the next items, votes to be recorded, pictures."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from emu_studio.access import Claim, Refused, admit, why_not
from emu_studio.app import Studio, changes, claim_of_page, studio_of, who
from emu_studio.ballots import MAX_BALLOTS, Ballot, NotTaken, side_order
from emu_studio.database import Item
from emu_studio.people import Person, agree
from emu_studio.pictures import original
from emu_studio.queue import Queue, Turn

router = APIRouter()
MAX_TURNS = 200  # that one request may lease; chosen here
# A picture of an item never changes; what stands left depends on who is asking.
KEPT = {"Cache-Control": "private, max-age=3600, immutable", "Vary": "Cookie"}


class Wanted(BaseModel):
    """How many items a page wants to hold."""

    model_config = ConfigDict(extra="forbid")
    num: int = Field(ge=1, le=MAX_TURNS)


class Ballots(BaseModel):
    """What a page wants recorded."""

    model_config = ConfigDict(extra="forbid")
    ballots: list[Ballot] = Field(min_length=1, max_length=MAX_BALLOTS)


def queue_of(request: Request, name: str, person: Person) -> Queue:
    """Return the queue of a round that somebody takes part in. Raises 404, or 403 if they do not."""
    studio = studio_of(request)
    try:
        queue = studio.queues.of(name)
    except LookupError:
        raise HTTPException(404, f"There is no round {name}.") from None
    claim = Claim(person.id, person.pseudonym)
    with studio.database.read() as session:
        admitted = admit(session, queue.round, [claim])[claim]
    if isinstance(admitted, Refused):
        raise HTTPException(admitted.status, admitted.told)
    return queue


@router.post("/api/rounds/{name}/consent")
def consent(request: Request, name: str, person: Annotated[Person, Depends(changes)]) -> dict[str, bool]:
    """Agree to the text of a round."""
    studio = studio_of(request)
    try:
        round_ = studio.queues.of(name).round
    except LookupError:
        raise HTTPException(404, f"There is no round {name}.") from None
    if told := why_not(studio.database, person, round_):
        raise HTTPException(403, told)
    agree(studio.database, round_.id, person.id)
    return {"agreed": True}


@router.post("/api/rounds/{name}/turns")
def turns(request: Request, name: str, wanted: Wanted, person: Annotated[Person, Depends(changes)]) -> dict[str, Any]:
    """Lease items until the asker holds `num`, and return all that they hold."""
    queue, studio = queue_of(request, name, person), studio_of(request)
    found = queue.take(person, wanted.num)
    items = studio_items(studio, found)
    size = "tile" if queue.plan.question == "generalist" else "view"
    studio.previews.prepare((picture for item in items.values() for picture in item.pictures), size)
    return {
        "turns": [turn_to_json(queue, items[turn.item_id], turn) for turn in found],
        "num_left": queue.num_left(person),
        "num_decided": queue.num_decided(person),
    }


@router.post("/api/rounds/{name}/votes")
async def votes(
    request: Request, name: str, given: Ballots, claim: Annotated[Claim, Depends(claim_of_page)]
) -> dict[str, Any]:
    """Record votes. What is confirmed is on disk. Many press a key at the same moment, so all of it but the writing is
    done in the server's own thread, and the clerk looks up for all of them at once whether they may."""
    queues = studio_of(request).queues
    try:
        clerk = queues.ready_clerk(name) or await run_in_threadpool(queues.clerk, name)
        confirmed = await clerk.cast_claimed(claim, given.ballots)
    except LookupError:
        raise HTTPException(404, f"There is no round {name}.") from None
    except NotTaken as error:
        raise HTTPException(400, str(error)) from None
    except Refused as error:
        raise HTTPException(error.status, error.told) from None
    return {"confirmed": [vars(one) for one in confirmed]}


@router.get("/pictures/{item_id}/{number}/{size}", include_in_schema=False)
def picture(
    request: Request,
    item_id: int,
    number: int,
    size: Literal["tile", "view", "full"],
    person: Annotated[Person, Depends(who)],
    repeat: Annotated[bool, Query()] = False,
    rater: Annotated[str, Query(max_length=60)] = "",
) -> Response:
    """A picture of an item; of a pair 0 is what stands left for who is asking, 1 what stands right. rater: whose page
    asks, since somebody else may have come in by the same browser, and sides would change under its votes."""
    studio = studio_of(request)
    if rater and rater != person.pseudonym:
        raise HTTPException(403, "Somebody else came in by this browser: reload the page.")
    with studio.database.read() as session:
        item = session.get(Item, item_id) if 0 < item_id < 2**31 else None
    if item is None or not 0 <= number < len(item.pictures):
        raise HTTPException(404, "There is no such picture.")
    round_ = studio.queues.by_id(item.round_id).round
    if person.role != "lead" and (told := why_not(studio.database, person, round_)):
        raise HTTPException(403, told)
    chosen = item.pictures[number]
    if round_.plan.is_pairs:
        order = side_order(round_.plan.seed, person.pseudonym, item.key, repeat)
        chosen = item.pictures["AB".index(order[number])]
    try:
        if size == "full":
            data, media = original(chosen)
            return Response(data, media_type=media, headers=KEPT)
        path = studio.previews.path(chosen, size)
    except (OSError, ValueError) as error:
        raise HTTPException(410, f"This picture can no longer be read: {error}") from None
    return FileResponse(path, media_type="image/webp", headers=KEPT)


def studio_items(studio: Studio, found: list[Turn]) -> dict[int, Item]:
    """Return the items of turns by id."""
    from sqlalchemy import select

    with studio.database.read() as session:
        wanted = [turn.item_id for turn in found]
        return {item.id: item for item in session.scalars(select(Item).where(Item.id.in_(wanted)))}


def turn_to_json(queue: Queue, item: Item, turn: Turn) -> dict[str, Any]:
    """What a page may know of an item: no score, no name, no source, and a caption only where it is judged. group: the
    same number for pairs of the same prompt."""
    question = queue.plan.question
    found: dict[str, Any] = {"item": item.id, "is_repeat": turn.is_repeat, "num_pictures": len(item.pictures)}
    if question == "faithfulness":
        found["caption"] = item.caption
    if queue.plan.is_pairs:
        found["group"] = int(queue.prompts[turn.place])
    if question == "captions":
        found["draft"] = item.draft and {"short": item.draft["short"], "long": item.draft["long"]}
    return found
