"""The studio's web application: who comes in, what every answer carries, and the parts that it is made of.

Pages come from the server with a little plain JavaScript; nothing is loaded from elsewhere. Every address but a
personal link's needs its cookie, every change the token of the page that it comes from.
"""

import hashlib
import hmac
import logging
import secrets
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from itsdangerous import BadSignature, URLSafeTimedSerializer
from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy.exc import OperationalError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from emu_data.files import atomic_file
from emu_data.formatting import format_count, format_number, format_p_value, format_share, format_span, format_time
from emu_studio.access import REVOKED, Claim
from emu_studio.database import Database
from emu_studio.openable import Registry
from emu_studio.people import Person, find_by_token, find_person
from emu_studio.pictures import Previews
from emu_studio.preparing import Preparations
from emu_studio.progress import Numbers
from emu_studio.queues import Queues
from emu_studio.records import Records

log = logging.getLogger("emu_studio")

COOKIE = "emu_studio"
COOKIE_SECONDS = 30 * 24 * 3600  # a month, then the personal link is opened again; chosen here
STATIC = Path(__file__).parent / "static"
POLICY = (
    "default-src 'none'; img-src 'self' blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "font-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",  # where an answer says nothing else
}
SAFE = ("GET", "HEAD", "OPTIONS")  # methods that change nothing


@dataclass(frozen=True)
class Studio:
    """What the routes work with."""

    database: Database
    queues: Queues
    previews: Previews
    secret: bytes
    votes_folder: Path  # data/votes, into which a closed round is written
    records: Records
    openable: Registry = dict
    numbers: Numbers = field(default_factory=Numbers)
    preparations: Preparations = field(default_factory=Preparations)

    @cached_property
    def signer(self) -> URLSafeTimedSerializer:
        """What signs cookies."""
        return URLSafeTimedSerializer(self.secret, salt="session")

    def csrf(self, claim: Claim) -> str:
        """The token that a page of this person's must send with every change."""
        told = f"csrf\0{claim.rater_id}\0{claim.pseudonym}".encode()
        return hmac.new(self.secret, told, hashlib.sha256).hexdigest()


TEMPLATES = Environment(
    loader=PackageLoader("emu_studio"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
TEMPLATES.filters |= {
    "count": format_count,
    "number": format_number,
    "p_value": format_p_value,
    "share": format_share,
    "span": format_span,
    "time": format_time,
}


def make_app(studio: Studio) -> FastAPI:
    """Return the application."""
    from emu_studio.routes import PARTS

    @asynccontextmanager
    async def lifespan(_: FastAPI):
        yield
        studio.queues.close()
        studio.previews.close()

    app = FastAPI(title="Emu studio", openapi_url=None, lifespan=lifespan)
    app.state.studio = studio
    app.add_middleware(Guard)
    app.add_exception_handler(StarletteHTTPException, _explain)
    app.add_exception_handler(RequestValidationError, _explain_request)
    app.add_exception_handler(OperationalError, _explain_database)
    app.mount("/static", StaticFiles(directory=STATIC))
    app.get("/enter/{token}", include_in_schema=False)(_enter)
    for part in PARTS:
        app.include_router(part)
    return app


def studio_of(request: Request) -> Studio:
    """A dependency of routes."""
    return request.app.state.studio


async def claim(request: Request) -> Claim:
    """Who says that they are asking; a dependency of routes. Raises 401 without a valid cookie."""
    try:
        found = studio_of(request).signer.loads(request.cookies.get(COOKIE, ""), max_age=COOKIE_SECONDS)
        rater_id, pseudonym = found
        return Claim(int(rater_id), str(pseudonym))
    except (BadSignature, TypeError, ValueError):
        refused = "Open your personal link to come in; whoever leads the round makes it (emu studio invite)."
        raise HTTPException(401, refused) from None


async def claim_of_page(request: Request, claimed: Annotated[Claim, Depends(claim)]) -> Claim:
    """Who says that they are changing something; a dependency of routes. Raises 403 without the token of a page."""
    given = request.headers.get("X-CSRF-Token", "")
    if not hmac.compare_digest(given.encode(), studio_of(request).csrf(claimed).encode()):
        raise HTTPException(403, "The page is out of date: reload it. Nothing was changed.")
    return claimed


def who(request: Request, claimed: Annotated[Claim, Depends(claim)]) -> Person:
    """Who is asking; a dependency of routes. Raises 401 without a valid cookie, or if the link was revoked."""
    person = find_person(studio_of(request).database, claimed.rater_id)
    if person is None or person.pseudonym != claimed.pseudonym:
        raise HTTPException(401, REVOKED)
    return person


async def changes(person: Annotated[Person, Depends(who)], _: Annotated[Claim, Depends(claim_of_page)]) -> Person:
    """Who is changing something; a dependency of routes that change. Raises 403 without the token of a page."""
    return person


def lead(person: Annotated[Person, Depends(who)]) -> Person:
    """Who is asking, if it is a lead. Raises 403 otherwise."""
    if person.role != "lead":
        raise HTTPException(403, "Only a lead may see this.")
    return person


def render(
    request: Request, template: str, person: Person | None = None, status: int = 200, **values: Any
) -> HTMLResponse:
    """Return a page. Every value is escaped: nothing of a caption is markup."""
    csrf = studio_of(request).csrf(Claim(person.id, person.pseudonym)) if person else ""
    page = TEMPLATES.get_template(template).render(person=person, csrf=csrf, **values)
    return HTMLResponse(page, status)


class Guard:
    """Refuses changes that another site's page sends, and puts the security headers on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        site = Headers(scope=scope).get("Sec-Fetch-Site", "same-origin")
        if scope["method"] not in SAFE and site not in ("same-origin", "none"):
            refusal = JSONResponse({"detail": "a request of another site"}, 403)
            return await refusal(scope, receive, send_guarded)
        await self._app(scope, receive, send_guarded)


def _enter(request: Request, token: str) -> Response:
    """A personal link: sets the cookie."""
    studio = studio_of(request)
    person = find_by_token(studio.database, token)
    if person is None:
        return render(request, "message.html.j2", status=404, title="No such link", told="Ask the lead for a new one.")
    response = RedirectResponse("/", 303)
    signed = studio.signer.dumps([person.id, person.pseudonym])
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, signed, COOKIE_SECONDS, httponly=True, samesite="lax", secure=secure, path="/")
    return response


async def _explain(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    if request.url.path.startswith("/api/"):
        return JSONResponse({"detail": error.detail}, error.status_code, headers=getattr(error, "headers", None))
    title = {401: "Not signed in", 403: "Not allowed", 404: "Not here"}.get(error.status_code, "That did not work")
    return render(request, "message.html.j2", status=error.status_code, title=title, told=str(error.detail))


async def _explain_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    told = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    return JSONResponse({"detail": told}, 422)


async def _explain_database(request: Request, error: Exception) -> Response:
    log.error("the database does not answer: %s", " ".join(str(error).split())[:300])
    return JSONResponse({"detail": "The database does not answer; nothing is lost, this page tries again."}, 503)


def read_secret(file: Path) -> bytes:
    """Return the secret that signs cookies, made at the first call, readable by the owner alone."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as partial:
            partial.touch(0o600)
            partial.write_bytes(secrets.token_bytes(32))
    return file.read_bytes()
