"""What the commands are registered on, and the kinds of options that they share."""

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
votes_app = typer.Typer(no_args_is_help=True, help="Rounds of votes: people's, and the rubric panel's.")
app.add_typer(votes_app, name="votes")


def not_blank(value: str | None) -> str | None:
    """A callback of texts that name something."""
    if value is not None and not value.strip():
        raise typer.BadParameter("it is empty")
    return value


Profile = Annotated[str, typer.Option(help="a file of profiles/, without .yaml")]
