"""The command `emu`. Each command is a few lines over the library; `emu --help` lists them.

Commands stand in a file per kind, which registers them on `app`. Whatever goes wrong is one line on stderr that says
what to do, and an exit code that is not 0: 2 for what was typed, 130 for Ctrl-C, 1 for the rest.
"""

import os
import sys
from collections.abc import Sequence

import typer

from emu_dagster.cli import graph, models, project
from emu_dagster.cli.app import app
from emu_dagster.machine.environment import collect_rarely, prepare_environment

__all__ = ["app", "graph", "main", "models", "project", "run"]


def main() -> None:
    """Runs the command of this process."""
    collect_rarely()
    prepare_environment()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs a command and returns its exit code. Nothing but its own output reaches the terminal: an error is one line,
    and only EMU_DEBUG=1 shows the traceback."""
    try:
        code = app(list(arguments) or ["--help"], prog_name="emu", standalone_mode=False)
    except typer.TyperException as error:
        return _complain_of_typing(error)
    except typer.Abort:
        code = 130
    except Exception as error:
        if os.environ.get("EMU_DEBUG"):
            raise
        print(f"emu: {describe_error(error)}", file=sys.stderr)
        return 1
    if code == 130:
        print("emu: interrupted; the same command goes on from here", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _complain_of_typing(error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    if not error.message.strip():  # `emu votes` alone: its help has been printed
        return 2
    help_command = f"{context.command_path if context is not None else 'emu'} --help"
    print(f"emu: {error.format_message().strip().rstrip('.')}; `{help_command}` lists what there is", file=sys.stderr)
    return 2


def describe_error(error: Exception) -> str:
    """What a command says of an error. ValueError, RuntimeError and OSError are what the library raises for people to
    read; anything else was not foreseen, which it says."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}; give another path, or mend that one"
    if isinstance(error, (ValueError, RuntimeError, OSError)) and str(error):
        return str(error)
    told = " ".join(str(error).split())
    return f"{type(error).__name__}: {told}; nobody foresaw this: with EMU_DEBUG=1 before the command it says where"
