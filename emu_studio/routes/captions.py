"""What the page on which captions are written asks for."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from emu_studio.app import changes, studio_of, who
from emu_studio.ballots import NotTaken
from emu_studio.captions import MAX_CAPTIONS, GivenCaptions, Written, find, list_versions, look, save
from emu_studio.people import Person, list_people
from emu_studio.queue import Turn
from emu_studio.routes.api import queue_of, studio_items, turn_to_json

router = APIRouter(prefix="/api/rounds/{name}/captions")
ItemId = Annotated[int, Path(ge=1, le=2**31 - 1)]


class Captions(BaseModel):
    """What a page wants saved."""

    model_config = ConfigDict(extra="forbid")
    captions: list[GivenCaptions] = Field(min_length=1, max_length=MAX_CAPTIONS)


@router.post("")
def save_captions(
    request: Request, name: str, given: Captions, person: Annotated[Person, Depends(changes)]
) -> dict[str, Any]:
    """Save captions. What is confirmed is on disk."""
    queue = queue_of(request, name, person)
    try:
        saved = save(studio_of(request).database, queue, person, given.captions)
    except NotTaken as error:
        raise HTTPException(400, str(error)) from None
    return {"confirmed": [vars(one) for one in saved]}


@router.get("/{item_id}")
def item(request: Request, name: str, item_id: ItemId, person: Annotated[Person, Depends(who)]) -> dict[str, Any]:
    """An item as it comes with its turn, and all that was saved for it; by: who wrote it."""
    queue, studio = queue_of(request, name, person), studio_of(request)
    try:
        versions = list_versions(studio.database, queue, item_id)
        place = queue.place_of(item_id)
    except (NotTaken, LookupError) as error:
        raise HTTPException(404, str(error)) from None
    pseudonyms = {one.id: one.pseudonym for one in list_people(studio.database)}
    turn = Turn(item_id, place)
    return {
        "turn": turn_to_json(queue, studio_items(studio, [turn])[item_id], turn),
        "versions": [
            {
                "short": one.short,
                "long": one.long,
                "time": one.time,
                "by": "you" if one.rater_id == person.id else pseudonyms[one.rater_id],
            }
            for one in versions
        ],
    }


@router.post("/{item_id}/check")
def check(
    request: Request, name: str, item_id: ItemId, written: Written, person: Annotated[Person, Depends(changes)]
) -> dict[str, Any]:
    """What is to be said of captions before they are saved."""
    queue = queue_of(request, name, person)
    try:
        found = find(studio_of(request).database, queue, item_id, written)
    except NotTaken as error:
        raise HTTPException(400, str(error)) from None
    return {"findings": [vars(one) for one in found]}


@router.post("/{item_id}/old")
def old(request: Request, name: str, item_id: ItemId, person: Annotated[Person, Depends(changes)]) -> dict[str, str]:
    """The corpus's caption; that it was asked for is recorded."""
    queue = queue_of(request, name, person)
    try:
        return {"caption": look(studio_of(request).database, queue, person, item_id)}
    except NotTaken as error:
        raise HTTPException(400, str(error)) from None
