"""Pages for people who take part: their rounds, the text that they agree to, and the place where they work."""

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import HTMLResponse

from emu_studio.access import why_not
from emu_studio.app import render, studio_of, who
from emu_studio.people import Person, has_agreed
from emu_studio.plan import PARTS
from emu_studio.rounds import list_rounds

router = APIRouter(include_in_schema=False)
# The page of each question.
PAGES = {
    "generalist": "sheet.html.j2",
    "specialist": "single.html.j2",
    "captions": "captions.html.j2",
    "appeal": "compare.html.j2",
    "faithfulness": "compare.html.j2",
}


@router.get("/")
def home(request: Request, person: Annotated[Person, Depends(who)]) -> HTMLResponse:
    """The rounds that somebody may take part in, with what is left for them."""
    studio = studio_of(request)
    rows = []
    for round_ in list_rounds(studio.database):
        if person.role not in round_.plan.roles:
            continue
        queue = studio.queues.of(round_.name)
        told = why_not(studio.database, person, round_)
        rows.append(
            {
                "round": round_,
                "why_not": told,
                "num_left": queue.num_left(person),
                "num_decided": queue.num_decided(person),
            }
        )
    return render(request, "home.html.j2", person, rows=rows)


@router.get("/rounds/{name}")
def work(request: Request, name: str, person: Annotated[Person, Depends(who)]) -> HTMLResponse:
    """Where the round is worked on; the text to agree to, before that."""
    studio = studio_of(request)
    try:
        queue = studio.queues.of(name)
        studio.queues.refresh(name)  # the command line may have closed it
    except LookupError:
        raise HTTPException(404, f"There is no round {name}.") from None
    if told := why_not(studio.database, person, queue.round):
        raise HTTPException(403, told)
    plan = queue.plan
    guideline, consent = plan.guideline.split("\n\n"), plan.consent.split("\n\n")
    if not has_agreed(studio.database, queue.round.id, person.id):
        return render(request, "consent.html.j2", person, plan=plan, guideline=guideline, consent=consent)
    return render(request, PAGES[plan.question], person, plan=plan, guideline=guideline, parts=PARTS)
