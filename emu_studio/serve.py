"""The studio's server: one process, since its queues are in memory; its threads serve everybody."""

from pathlib import Path

import uvicorn

from emu_studio.app import Studio, make_app, read_secret
from emu_studio.database import open_database
from emu_studio.openable import Registry
from emu_studio.pictures import Previews
from emu_studio.queues import Queues
from emu_studio.records import Records

HOST = "127.0.0.1"
GRACE_SECONDS = 3  # that requests in progress get when the server is stopped; chosen here


def open_studio(data: Path, url: str | None = None, openable: Registry = dict) -> Studio:
    """Open the studio of a project's data folder. url: of its database; None: SQLite in data/studio. openable: rounds
    that a lead may open from the page. Raises ValueError if the database cannot be opened."""
    database = open_database(url or data / "studio" / "studio.db")
    previews = Previews(data / "cache" / "studio")
    secret, records = read_secret(data / "studio" / "secret"), Records(database)
    queues = Queues(database, data / "studio" / "embeddings")
    return Studio(database, queues, previews, secret, data / "votes", records, openable)


def serve(studio: Studio, port: int, host: str = HOST, proxied: bool = False) -> None:
    """Serve until a signal. proxied: behind a reverse proxy that speaks https, whose headers are believed."""
    config = uvicorn.Config(
        make_app(studio),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        proxy_headers=proxied,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    uvicorn.Server(config).run()
