"""`emu studio`: the server, links, lists, and votes in and out. Dagster is not needed for it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from emu_dagster.machine.addresses import HOST, known_ports, refuse_taken, remember_ports
from emu_data.files import atomic_file
from emu_steps.layout import Layout
from emu_studio.closing import verify_round
from emu_studio.database import Database, open_database
from emu_studio.people import list_people
from emu_studio.rounds import find_round, list_rounds
from emu_studio.verifying import verify_record

if TYPE_CHECKING:
    from emu_studio.imports import Imported

KINDS = {"csv": ".csv", "parquet": ".parquet", "label-studio": ".json", "preferences": ".parquet"}


def open_project_database(layout: Layout, url: str | None) -> Database:
    """Open the studio's database at a URL, by default the project's own. Raises ValueError if that cannot be done."""
    return open_database(url or _database_file(layout))


def _database_file(layout: Layout) -> Path:
    return layout.data / "studio" / "studio.db"


def verify_chains(layout: Layout, url: str | None, folder: str | None = None) -> list[tuple[str, list[str]]]:
    """Return the problems of each round of the studio (name, problems): of those recorded in `folder` of data/votes, or
    of all. Nothing if the project has no studio."""
    if not url and not _database_file(layout).is_file():
        return []
    database = open_project_database(layout, url)
    try:
        rounds = [one for one in list_rounds(database) if folder in (None, one.plan.recorded_as)]
        return [(f"studio, {one.name}", verify_round(database, one, layout.data / "votes")) for one in rounds]
    finally:
        database.close()


def describe_rounds(database: Database) -> list[str]:
    """Return a line per round: its question, how far it is, its guideline, and where its votes go."""
    from emu_studio.queue import Queue

    lines = []
    for one in list_rounds(database):
        queue = Queue(database, one)
        state = "open" if one.closed is None else f"closed on {one.closed[:10]}"
        lines.append(
            f"{one.name}: {one.plan.question}, {state}, {queue.num_finished} of {len(queue)} decided, "
            f"guideline {one.plan.guideline_version}, recorded in data/votes/{one.plan.recorded_as}"
        )
        if queue.harvester is not None:
            queue.harvester.close()
    return lines


def describe_people(database: Database) -> list[str]:
    """Return a line per person who was invited."""
    return [
        f"{one.pseudonym}: {one.name or '(name erased)'}, {one.role}, "
        + (f"revoked on {one.revoked[:10]}" if one.revoked else f"invited on {one.invited[:10]}")
        for one in list_people(database)
    ]


def export_round(database: Database, name: str, file: Path, kind: str | None) -> str:
    """Write a round's votes to a file; return what was written, in words. kind: one of KINDS, None: by the file's name.

    Raises LookupError if there is no such round; ValueError if its votes are hidden until the planned number of
    prompts, were edited, or cannot be written as that.
    """
    from emu_studio.exports import to_csv, to_label_studio, to_parquet, write_preferences
    from emu_studio.records import Records
    from emu_studio.results import is_hidden

    known = {suffix: one for one, suffix in reversed(KINDS.items())}
    kind = kind or known.get(file.suffix.lower())
    if kind not in KINDS:
        raise ValueError(f"--kind {kind or ''}: give one of {', '.join(KINDS)}; {file.name} does not tell")
    record = Records(database).of(name)
    if is_hidden(record):
        raise ValueError(f"the votes of {name} are given out once the planned number of prompts is reached")
    if problems := verify_record(database, record.round):
        raise ValueError(problems[0])
    if kind == "preferences":
        written = write_preferences(record, database, file)
        return (
            f"{written.num_pairs} preference pairs ({written.num_withheld} left out: an evaluation has their prompts)"
        )
    texts = {"csv": lambda: to_csv(record), "label-studio": lambda: to_label_studio(record, database)}
    with atomic_file(file) as partial:
        partial.write_bytes(texts[kind]().encode() if kind in texts else to_parquet(record))
    return f"{len(record.votes)} votes"


def import_file(layout: Layout, database: Database, name: str, file: Path, kind: str | None, source: str) -> "Imported":
    """Add the votes of a file to an open round. kind: csv or label-studio, None: by the file's name.

    Raises LookupError if there is no such round; ValueError, and takes nothing, if the file does not fit or the studio
    is being served, whose queues would not know of them.
    """
    from emu_studio.imports import NotImported, import_votes
    from emu_studio.queue import Queue

    kind = kind or {".csv": "csv", ".json": "label-studio"}.get(file.suffix.lower(), "")
    if kind not in ("csv", "label-studio"):
        raise ValueError(f"--kind {kind}: give csv or label-studio; {file.name} does not tell")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8 ({error.reason})") from error
    with serving(layout, "import on the lead's page"):
        try:
            return import_votes(database, Queue(database, find_round(database, name)), text, kind, source)
        except NotImported as error:
            raise ValueError("; ".join(str(error).splitlines())) from error


@contextmanager
def serving(layout: Layout, otherwise: str) -> Iterator[None]:
    """Be the only process that serves the project's studio: its queues are in memory, and two would show items twice.

    Raises ValueError if another process serves it. otherwise: what to do then.
    """
    file = layout.data / "studio" / "serving.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"the studio of this project is running, at {base_address(layout)}: {otherwise}") from None
    try:
        yield
    finally:
        lock.release()


def link(layout: Layout, token: str) -> str:
    """Return the personal link of a token."""
    return f"{base_address(layout)}/enter/{token}"


def base_address(layout: Layout) -> str:
    """Return where people reach the studio: at the address that `emu studio` was started with, or on this machine."""
    file = _address_file(layout)
    return file.read_text().strip() if file.is_file() else f"http://{HOST}:{known_ports(layout).studio}"


def _address_file(layout: Layout) -> Path:
    return layout.data / "studio" / "address"


def run_studio(layout: Layout, url: str | None, host: str, port: int, address: str | None, demo: bool) -> None:
    """Serve the studio until a signal. address: at which people reach it, if a proxy stands before it. demo: whether to
    open rounds for invented people (studio_demo).

    Raises ValueError if the port is taken, the address is none, or the studio is being served already.
    """
    from emu_dagster.commands.studio_rounds import openable_rounds
    from emu_studio.serve import open_studio, serve

    if address is not None and not address.startswith(("https://", "http://")):
        raise ValueError(f"--address {address}: give the whole address, https://…")
    with serving(layout, "stop that one first"):
        refuse_taken("--port", port, host)
        database = open_project_database(
            layout, url
        )  # of its own: what can be opened is looked up while pages are made
        studio = open_studio(layout.data, url, lambda: openable_rounds(layout, database))
        remember_ports(layout, replace(known_ports(layout), studio=port))
        _remember_address(layout, address)
        if host != HOST:
            print(
                f"emu: the studio listens on {host} without encryption, and whoever can listen on the network reads "
                "links and cookies: put https before it, and start it with --address https://…",
                file=sys.stderr,
            )
        print(*_greet(layout, database, demo), sep="\n", flush=True)
        try:
            serve(studio, port, host, proxied=address is not None)
        except KeyboardInterrupt:
            pass
        finally:
            database.close()


def _remember_address(layout: Layout, address: str | None) -> None:
    if address is None:
        _address_file(layout).unlink(missing_ok=True)
        return
    with atomic_file(_address_file(layout)) as partial:
        partial.write_text(address.rstrip("/"))


def _greet(layout: Layout, database: Database, demo: bool) -> list[str]:
    if demo:
        from emu_dagster.commands.studio_demo import open_demo

        return [*open_demo(layout, database), f"Studio   {base_address(layout)}"]
    rounds = [one.name for one in list_rounds(database) if one.closed is None]
    lines = [f"Studio   {base_address(layout)}"]
    lines.append(f"open rounds: {', '.join(rounds)}" if rounds else "no round is open yet: emu studio open ROUND")
    if not list_people(database):
        lines.append("nobody is invited yet: emu studio invite NAME --role lead")
    return lines
