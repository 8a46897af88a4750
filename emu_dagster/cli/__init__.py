"""The command `emu`. Each command is a few lines over the library; `emu --help` lists them.

Each kind of command has a file, which registers them on `app`. Every error is one line on stderr that says what to do,
and a non-zero exit code: 2 for a wrong command line, 130 for Ctrl-C, 1 for anything else.
"""

import os
import sys
from collections.abc import Sequence

import typer

from emu_dagster.cli import graph, models, project, studio
from emu_dagster.cli.app import app
from emu_dagster.machine.environment import collect_rarely, prepare_environment

__all__ = ["app", "graph", "main", "models", "project", "run", "studio"]


def main() -> None:
    """Run the command of this process."""
    collect_rarely()
    prepare_environment()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code. Only the command's own output reaches the terminal: an error is one line,
    and the traceback is shown only with EMU_DEBUG=1.
    """
    try:
        code = app(list(arguments) or ["--help"], prog_name="emu", standalone_mode=False)
    except typer.TyperException as error:
        return _report_usage(error)
    except typer.Abort:
        code = 130
    except Exception as error:
        if os.environ.get("EMU_DEBUG"):
            raise
        print(f"emu: {describe_error(error)}", file=sys.stderr)
        return 1
    if code == 130:
        print("emu: interrupted; the same command continues from here", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _report_usage(error: typer.TyperException) -> int:
    """Print what is wrong with a command line, and return the exit code."""
    context = getattr(error, "ctx", None)
    message = error.format_message().strip().rstrip(".")  # for a missing argument, `message` itself is empty
    if not message:  # `emu votes` alone: its help has been printed
        return 2
    help_command = f"{context.command_path if context is not None else 'emu'} --help"
    print(f"emu: {message}; `{help_command}` shows what is possible", file=sys.stderr)
    return 2


def describe_error(error: Exception) -> str:
    """Return the message that a command prints for an error. The messages of ValueError, RuntimeError and OSError are
    written for users; for any other error the message says that it was not expected.
    """
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}; give another path, or correct that one"
    if isinstance(error, (ValueError, RuntimeError, OSError)) and str(error):
        return str(error)
    message = " ".join(str(error).split())
    return f"unexpected {type(error).__name__}: {message}; with EMU_DEBUG=1 before the command, the traceback is shown"
