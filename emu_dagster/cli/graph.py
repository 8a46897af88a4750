"""Commands about the graph and the pictures that went through it."""

import time
from typing import Annotated

import typer

from emu_dagster.cli.app import Overwrite, Profile, app, not_blank
from emu_dagster.cli.project import use_profile
from emu_steps.layout import project_root


@app.command()
def demo(profile: Profile = "emoji", overwrite: Overwrite = False) -> None:
    """Materialise the whole graph, resuming what was interrupted, and print a one-screen summary."""
    began = time.monotonic()
    use_profile(profile, overwrite)  # before the graph is loaded: its code versions depend on the params
    from emu_dagster.commands.driver import materialize_stale
    from emu_steps.summary import print_summary

    materialize_stale()
    print_summary(time.monotonic() - began)


@app.command()
def materialize(
    assets: Annotated[list[str] | None, typer.Argument(help="asset keys; default: all that are stale")] = None,
    upstream: Annotated[
        bool, typer.Option("--upstream", help="first make what is missing or stale upstream of the named assets")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show what would be made, and why")] = False,
) -> None:
    """Materialise the named assets, or all that are missing or stale."""
    from emu_dagster.commands import driver

    if upstream and not assets:
        raise ValueError("--upstream needs the name of an asset; without a name, all stale assets are made anyway")
    if dry_run:
        from emu_dagster.commands.standing import print_dry_run

        print_dry_run(assets or [], upstream)
    elif assets:
        driver.materialize_named(assets, upstream)
    else:
        driver.materialize_stale()


@app.command()
def status() -> None:
    """Show which assets are stale and why, when each was made, and about how long the stale ones will take."""
    from emu_dagster.commands.standing import print_status

    print_status()


@app.command(name="funnel")
def show_funnel(
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="try another threshold; may be repeated")
    ] = None,
    examples: Annotated[str | None, typer.Option(metavar="GATE", help="list some rows that this gate rejected")] = None,
) -> None:
    """Show how many pictures each gate rejected; with --set, how many other thresholds would reject, within seconds and
    without a model.
    """
    from emu_steps import redeciding
    from emu_steps.layout import Layout
    from emu_steps.params import read_params

    layout = Layout(project_root())
    redeciding.show_funnel(layout, read_params(layout.root / "params.yaml"), change or [], examples)


@app.command()
def show(
    key: Annotated[str, typer.Argument(help="key of a picture, as in the ledger: 000010007", callback=not_blank)],
) -> None:
    """Show what is recorded about a picture: its values and the thresholds, its near-twins, its votes, and where it is
    used.
    """
    from emu_steps.layout import Layout
    from emu_steps.params import read_params
    from emu_steps.showing import find_picture, print_picture

    layout = Layout(project_root())
    print_picture(find_picture(layout, read_params(layout.root / "params.yaml"), key))


@app.command()
def prune(
    yes: Annotated[bool, typer.Option("--yes", help="remove it; default: only list it")] = False,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="also remove unfinished trainings")] = False,
) -> None:
    """List what is no longer needed below data/, with sizes and reasons; with --yes, remove it."""
    from emu_dagster.commands.pruning import prune as remove

    remove(project_root(), yes, unfinished)
