"""`emu studio`: the pages on which people choose, caption and compare. Dagster is not needed for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emu_dagster.cli.app import app, not_blank
from emu_steps.layout import Layout, project_root

if TYPE_CHECKING:
    from emu_studio.database import Database

studio_app = typer.Typer(help="Live pages on which people choose pictures, caption and compare them.")
app.add_typer(studio_app, name="studio")

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database",
        envvar="EMU_STUDIO_DATABASE",
        metavar="URL",
        help="postgresql://… or sqlite:///…; by default SQLite in data/studio",
        callback=not_blank,
    ),
]
RoundName = Annotated[str, typer.Argument(metavar="ROUND", callback=not_blank)]
Pseudonym = Annotated[str, typer.Argument(help="as `emu studio people` lists it", callback=not_blank)]


@studio_app.callback(invoke_without_command=True)
def studio(
    context: typer.Context,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8001,
    host: Annotated[
        str, typer.Option(help="where it listens; others than this machine need https before it", callback=not_blank)
    ] = "127.0.0.1",
    address: Annotated[
        str | None,
        typer.Option(metavar="URL", help="at which people reach it, if a proxy with https stands before it"),
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="open rounds, and invite invented people to them")] = False,
    database: DatabaseUrl = None,
) -> None:
    """Start the studio; Ctrl-C stops it. Nothing that was confirmed to somebody is lost by that."""
    if context.invoked_subcommand is not None:
        return
    from emu_dagster.commands.studio import run_studio

    run_studio(Layout(project_root()), database, host, port, address, demo)


@studio_app.command()
def invite(
    name: Annotated[str, typer.Argument(help="of the person; kept apart from what they decide", callback=not_blank)],
    role: Annotated[str, typer.Option(help="generalist, specialist, rater or lead", callback=not_blank)],
    database: DatabaseUrl = None,
) -> None:
    """Print somebody's personal link. It is kept nowhere: who loses it gets a new one with `renew`."""
    from emu_dagster.commands.studio import link
    from emu_studio.people import invite as invite_person

    with _opened(database) as opened:
        person, token = invite_person(opened, name, role)
    print(f"{person.name} is {person.pseudonym}; the link is for nobody else:")
    print(link(Layout(project_root()), token))


@studio_app.command()
def renew(pseudonym: Pseudonym, database: DatabaseUrl = None) -> None:
    """Print a new personal link for somebody; the old one is worthless from then on."""
    from emu_dagster.commands.studio import link
    from emu_studio.people import renew as renew_link

    with _opened(database) as opened:
        token = renew_link(opened, pseudonym)
    print(link(Layout(project_root()), token))


@studio_app.command()
def revoke(pseudonym: Pseudonym, database: DatabaseUrl = None) -> None:
    """Make somebody's link worthless at once; what they decided stays."""
    from emu_studio.people import revoke as revoke_link

    with _opened(database) as opened:
        revoke_link(opened, pseudonym)
    print(f"{pseudonym} can no longer come in")


@studio_app.command()
def erase(pseudonym: Pseudonym, database: DatabaseUrl = None) -> None:
    """Erase the name behind a pseudonym for good; votes and their chain stay as they are."""
    from emu_studio.people import erase_name

    with _opened(database) as opened:
        erase_name(opened, pseudonym)
    print(f"who {pseudonym} is is no longer known here")


@studio_app.command()
def people(database: DatabaseUrl = None) -> None:
    """List who was invited."""
    from emu_dagster.commands.studio import describe_people

    with _opened(database) as opened:
        lines = describe_people(opened)
    print(*lines or ["nobody is invited yet: emu studio invite NAME --role lead"], sep="\n")


@studio_app.command(name="open")
def open_round(
    name: RoundName,
    pictures: Annotated[
        list[str] | None,
        typer.Option(metavar="FOLDER", help="show these and not the project's; given twice for pairs"),
    ] = None,
    plan: Annotated[
        str | None, typer.Option(metavar="FILE", help="YAML with the round's plan: docs/studio.md", callback=not_blank)
    ] = None,
    drafts: Annotated[
        str | None, typer.Option(metavar="FILE", help="a model's captions, to begin with", callback=not_blank)
    ] = None,
    probe: Annotated[
        bool, typer.Option(help="embed the project's pictures, so that the queue follows what people keep")
    ] = True,
    database: DatabaseUrl = None,
) -> None:
    """Open a round: generalist, specialist, captions, appeal or faithfulness, or one of your own with --plan. From then
    on its plan does not change.
    """
    from emu_dagster.commands.studio_rounds import Shown, open_a_round

    folders = [Path(not_blank(folder) or "") for folder in pictures or []]
    shown = Shown(folders, Path(plan) if plan else None, Path(drafts) if drafts else None, probe)
    with _opened(database) as opened:
        found = open_a_round(Layout(project_root()), opened, name, shown)
    print(f"{found.name} is open for: {', '.join(found.plan.roles)}")
    print("next: emu studio invite NAME --role ROLE for each of them, and emu studio, which serves it")


@studio_app.command()
def close(name: RoundName, database: DatabaseUrl = None) -> None:
    """Close a round and write what it decided to data/votes; of a closed one, write what is missing there."""
    from emu_studio.closing import close_round

    layout = Layout(project_root())
    with _opened(database) as opened:
        closed = close_round(opened, name, layout.data / "votes")
    where = closed.folder.relative_to(layout.root)
    print(f"{name} is closed: {closed.voters}, {closed.num_new} new in {where}")
    if closed.num_captions:
        print(f"{closed.num_captions} captions are new there")
    print("next: emu materialize, which makes again what depends on them")


@studio_app.command()
def reopen(
    name: RoundName,
    why: Annotated[str, typer.Option(help="the reason, which is recorded as an amendment", callback=not_blank)],
    database: DatabaseUrl = None,
) -> None:
    """Take votes again in a closed round."""
    from emu_studio.closing import reopen_round

    with _opened(database) as opened:
        reopen_round(opened, name, "command line", why)
    print(f"{name} is open again")


@studio_app.command()
def rounds(database: DatabaseUrl = None) -> None:
    """List the rounds, and how far each is."""
    from emu_dagster.commands.studio import describe_rounds

    with _opened(database) as opened:
        lines = describe_rounds(opened)
    print(*lines or ["no round was opened yet: emu studio open ROUND"], sep="\n")


@studio_app.command(name="export")
def export_votes(
    name: RoundName,
    file: Annotated[Path, typer.Argument(dir_okay=False, help="replaced if it is there")],
    kind: Annotated[
        str | None,
        typer.Option(
            help="csv, parquet, label-studio or preferences; by default what FILE's name tells", callback=not_blank
        ),
    ] = None,
    database: DatabaseUrl = None,
) -> None:
    """Write the votes of a round to a file, or the preference pairs that a comparison gives."""
    from emu_dagster.commands.studio import export_round

    with _opened(database) as opened:
        print(f"{export_round(opened, name, file, kind)} in {file}")


@studio_app.command(name="import")
def import_votes(
    name: RoundName,
    file: Annotated[Path, typer.Argument(dir_okay=False, help="a CSV, or Label Studio's JSON export")],
    source: Annotated[str, typer.Option(help="where the votes were cast; kept with each of them", callback=not_blank)],
    kind: Annotated[
        str | None, typer.Option(help="csv or label-studio; by default what FILE's name tells", callback=not_blank)
    ] = None,
    database: DatabaseUrl = None,
) -> None:
    """Add votes that were cast elsewhere to an open round. A file with a line that does not fit is refused whole."""
    from emu_dagster.commands.studio import import_file

    with _opened(database) as opened:
        found = import_file(Layout(project_root()), opened, name, file, kind, source)
    print(f"{found.num_votes} votes of {found.num_raters} people joined {name}; {found.num_known} were there already")
    if found.ignored:
        print(f"not read: the columns {', '.join(found.ignored)}")


@studio_app.command()
def verify(database: DatabaseUrl = None) -> None:
    """Verify each round's chain of votes, and that what was closed is in data/votes; the exit code is 1 after any
    edit.
    """
    from emu_dagster.commands.studio import verify_chains

    found = verify_chains(Layout(project_root()), database)
    for name, problems in found:
        print(f"{name}: {'; '.join(problems) or 'sound'}")
    if not found:
        print("no round was opened yet")
    raise typer.Exit(int(any(problems for _, problems in found)))


@contextmanager
def _opened(url: str | None) -> "Iterator[Database]":
    """The project's database. A name that it does not know is an error that people can read."""
    from emu_dagster.commands.studio import open_project_database

    database = open_project_database(Layout(project_root()), url)
    try:
        yield database
    except LookupError as error:
        raise ValueError(str(error.args[0])) from error
    finally:
        database.close()
