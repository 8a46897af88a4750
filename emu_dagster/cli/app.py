"""The Typer apps that the commands are registered on, and the options that they share."""

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
votes_app = typer.Typer(no_args_is_help=True, help="Rounds of votes, by people and by the rubric panel.")
app.add_typer(votes_app, name="votes")
plan_app = typer.Typer(invoke_without_command=True)
app.add_typer(plan_app, name="plan")


def not_blank(value: str | None) -> str | None:
    """Return `value`, the callback of options and arguments that name something. Raises typer.BadParameter if it is
    blank.
    """
    if value is not None and not value.strip():
        raise typer.BadParameter("it is empty")
    return value


Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="replace params.yaml even if it was edited; the old one is kept beside it")
]
Profile = Annotated[str, typer.Option(help="name of a file in profiles/, without .yaml")]
